"""Graph + update plan -> blob: the compiler's last stage, and the function that runs all of them.

``compile_model`` goes file -> front end -> head -> plan -> passes -> autodiff -> memory -> blob.
Lowering an operator is one small function below, named after it: it returns the operator's row of
the table (see ``blob``).
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import autodiff, blob, frontends, latent, memory, overwrite, passes, stream
from . import plan as plans
from .frontends.head import replace_head
from .graph import (
    BITS,
    INT8,
    INT16,
    Graph,
    Op,
    SproutError,
    Tensor,
    add_multipliers,
    macs,
    quantize_multiplier,
)

DEAD_SCALE = 1e-6
"""Output channels with a smaller weight scale are frozen: their quantisation-aware step,
1/scale**2, explodes."""

GRADIENT_BITS = 14
"""Magnitude bits of a gradient element; the sign makes 15 of the 16."""

MAX_DEPTHWISE_TAPS = 640
"""Taps of one channel's window that the core's depthwise kernels have room for."""

MAX_CLASSES = 1024
"""Outputs of the logits tensor that the core's cross entropy has room for."""

MOST_P0 = (1 << 23) - 1
"""Largest p0 of CROSS_ENTROPY: 255 of them fit an int32."""

DEFAULT_SCRATCH = 4096
"""Least bytes of scratch a blob asks for: frozen weights stream through it, and smaller tiles cost
more reads."""


def compile_model(
    path: str | pathlib.Path,
    plan: str = "none",
    classes: Iterable[str] | None = None,
    max_classes: int | None = None,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    fractions: str = "all",
    rows: bool = False,
    save: bool = True,
) -> blob.Blob:
    """Compile a model file.

    ``classes`` replaces the head by a fresh one for these names with room for ``max_classes``;
    without it the model keeps its own.  ``input_range`` gives the real values of pixel 0 and 255
    where the rule of ``input_table`` is wrong; ``fractions``, ``rows`` and ``save`` are as in
    ``compile_graph``.  Raises SproutError.
    """
    graph = frontends.load(path)
    if classes:
        names = list(classes)
        if len(set(names)) != len(names) or not all(names):
            raise SproutError(
                f"classes: {','.join(names)} has an empty or a repeated name; "
                "give each class a name of its own."
            )
        if max_classes is not None and max_classes < len(names):
            raise SproutError(
                f"max-classes: {max_classes} is less than the {len(names)} classes named; "
                "raise it or name fewer."
            )
        graph = replace_head(graph, names, max_classes, seed=seed)
    elif max_classes is not None:
        raise SproutError(
            "max-classes: it needs --classes, because only a fresh head has room for more classes."
        )
    return compile_graph(
        graph, plan, fractions=fractions, input_range=input_range, rows=rows, save=save
    )


def compile_graph(
    graph: Graph,
    plan: str | plans.UpdatePlan = "none",
    *,
    run_passes: bool = True,
    gradient_bits: int = GRADIENT_BITS,
    fractions: str = "all",
    input_range: tuple[float, float] | None = None,
    rows: bool = False,
    save: bool = True,
) -> blob.Blob:
    """Compile a graph; ``plan`` is an UpdatePlan or a text that ``plan.parse`` reads.

    ``gradient_bits`` below 14 narrows the gradients that enter a layer (7: what int8 would hold),
    for measurements.  ``fractions`` says which trained weights keep 4 bits below their LSB, half a
    byte each: ``none``, ``head`` or ``all``.  ``rows``: frames arrive row by row, and are nowhere
    whole.  ``save`` False leaves out what only saves
    memory (``stream``, ``overwrite``), for comparison.
    """
    if run_passes:
        graph = passes.run(graph)
    if isinstance(plan, str):
        plan = plans.parse(plan, len(graph.convs))
    plans.apply(plan, graph)
    if run_passes:
        graph = passes.drop_silent(graph, autodiff.wanting(graph))
    schedule = autodiff.differentiate(graph)
    if save:
        schedule = overwrite.depthwise_gradients(stream.group(schedule, rows))
    result = lower(schedule, gradient_bits, fractions, input_range)
    result.info["plan"] = str(plan)
    return result


def lower(
    schedule: autodiff.Schedule,
    gradient_bits: int = GRADIENT_BITS,
    fractions: str = "all",
    input_range: tuple[float, float] | None = None,
) -> blob.Blob:
    """Return the blob of a schedule; the rest is as in ``compile_graph``."""
    return _Lowering(schedule, gradient_bits, fractions).assemble(input_range)


def input_table(graph: Graph, input_range: tuple[float, float] | None = None) -> np.ndarray | None:
    """Return the int8 input value of each pixel value (int8 [256]), or None if the input is no
    picture.

    The rule: real = low + pixel / 255 * (high - low), where (low, high) is the one of (-1, 1), (0,
    1) and (0, 255) that the input's own quantised range comes closest to.  Where a pixel is one
    LSB, the table is pixel - 128.  With an ``input_range`` any input takes pixels.
    """
    x = graph.input
    if input_range is None and (x.shape[2] not in (1, 3) or x.shape[0] < 2 or x.shape[1] < 2):
        return None
    pixel = np.arange(256)
    low, high = x.scale * (-128 - x.zero_point), x.scale * (127 - x.zero_point)
    if input_range is None:
        usual = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-128.0, 127.0))
        input_range = min(
            usual, key=lambda r: (abs(r[0] - low) + abs(r[1] - high)) / (r[1] - r[0])
        )
        if abs(x.scale * 255 / (input_range[1] - input_range[0]) - 1) < 0.01:
            return (pixel - 128).astype(np.int8)
    real = input_range[0] + pixel / 255 * (input_range[1] - input_range[0])
    return np.clip(np.floor(real / x.scale + x.zero_point + 0.5), -128, 127).astype(np.int8)


class _Lowering:
    """Gives tensors numbers and addresses, parameters a place, and every operator its row."""

    def __init__(self, schedule: autodiff.Schedule, gradient_bits: int, fractions: str) -> None:
        self.schedule = schedule
        self.graph = schedule.graph
        self.gradient_bits = gradient_bits
        last = len(self.graph.convs) - 1
        self.fractions = {"none": (), "head": (last,), "all": range(last + 1)}[fractions]
        self.ops = [op for op in schedule.ops if op.kind != "reshape"]
        self.n_forward = sum(op.kind != "reshape" for op in schedule.ops[: schedule.n_forward])
        self.constants = bytearray()
        self.initial = bytearray()
        self.accum_len = 0
        self.index_lists: dict[bytes, int] = {}
        self.tail = bytearray()
        self.trained: list[dict[str, Any]] = []
        self.places: dict[
            tuple[int, str], tuple[int, int]
        ] = {}  # (conv, kind) -> trained, accumulator offset
        self.records: dict[int, int] = {}  # conv -> offset of its forward records
        self.keys = 0
        self.scratch = DEFAULT_SCRATCH
        self.layer_bits: dict[int, int] = {}  # conv -> magnitude bits of the gradient entering it
        self.tensors: list[Tensor] = []
        self.number: dict[int, int] = {}
        self.collect()

    def collect(self) -> None:
        """Number every tensor that an emitted operator touches, and the graph's ends."""
        ends = [self.graph.input, self.graph.output, self.graph.logits]
        if self.schedule.exponents is not None:
            ends.append(self.schedule.exponents)
        for t in ends + [t for op in self.ops for t in (*op.inputs, *op.outputs)]:
            if id(t) not in self.number:
                self.number[id(t)] = len(self.tensors)
                self.tensors.append(t)

    # parts of the file

    def constant(self, data: bytes) -> int:
        offset = len(self.constants)
        self.constants += data + bytes(-len(data) % 8)
        return offset

    def index_list(self, channels: np.ndarray | None) -> tuple[int, int]:
        """Return (offset in the program section, length) of an index list, (-1, 0) for None."""
        if channels is None:
            return -1, 0
        data = np.asarray(channels, "<u2").tobytes()
        if data not in self.index_lists:
            self.index_lists[data] = len(self.tail)
            self.tail += data
        return len(self.tensors) * blob.TENSOR_SIZE + self.index_lists[data], len(channels)

    def place(self, op: Op, kind: str, values: np.ndarray) -> int:
        """Return the trained offset of a convolution's bias or weight, giving it one at the first
        call."""
        conv = op.attrs["conv_index"]
        if (conv, kind) not in self.places:
            self.places[conv, kind] = len(self.initial), self.accum_len
            data = values.astype("<i4" if kind == "bias" else np.int8).tobytes()
            channels = None if kind == "bias" else op.attrs["train_channels"]
            self.trained.append({
                "offset": len(self.initial), "kind": kind, "conv": conv, "layer": op.name,
                "shape": list(values.shape),
                "channels": None if channels is None else channels.tolist(),
            })  # fmt: skip
            self.initial += data + bytes(-len(data) % 4)
            if kind == "weight" and conv in self.fractions:
                self.places[conv, "fraction"] = len(self.initial), -1
                self.initial += bytes((values.size + 7) // 8 * 4)  # two to a byte
            self.accum_len += (values.size * (4 if kind == "bias" else 2) + 3) // 4 * 4
        return self.places[conv, kind][0]

    def update_table(self, reals: np.ndarray, scales: np.ndarray) -> int:
        """Write (Q30 mantissa, exponent) of each channel's step factor; dead channels get the
        mantissa 0."""
        mantissa, exponent = np.frexp(reals)
        q = np.minimum(np.round(mantissa * (1 << 30)), (1 << 30) - 1).astype(np.int64)
        q[scales < DEAD_SCALE] = 0
        exponent = np.where(q == 0, 0, exponent - 30)
        return self.constant(np.stack([q, exponent], 1).astype("<i4").tobytes())

    def forward_records(self, op: Op) -> int:
        """Write a convolution's forward records (see ``blob``)."""
        weight, bias = op.params["weight"], op.params["bias"].astype(np.int64)
        channels = weight.shape[0]
        flat = weight.reshape(channels, -1)
        x, y = op.inputs[0], op.outputs[0]
        head = np.zeros((channels, 4), "<i4")
        head[:, 0] = bias
        for c in range(channels):
            head[c, 1:3] = quantize_multiplier(
                x.scale * float(op.params["weight_scales"][c]) / y.scale
            )
        head[:, 3] = flat.astype(np.int64).sum(1)
        size = blob.forward_record_size(flat.shape[1])
        self.scratch = max(self.scratch, size)
        records = np.zeros((channels, size), np.uint8)
        records[:, :16] = head.view(np.uint8)
        records[:, 16 : 16 + flat.shape[1]] = flat.view(np.uint8)
        return self.constant(records.tobytes())

    # operators

    def geometry(self, kernel: tuple[int, int], attrs: dict[str, Any]) -> list[int]:
        stride, padding = attrs["stride"], attrs["padding"]
        fields = (*kernel, *stride)
        if max(fields) > 127 or max(padding[:2]) > 255:
            raise SproutError(
                f"a window of {kernel} with stride {stride} and padding {padding} is too large "
                "for a blob, which packs each into a byte; use smaller ones."
            )
        return [
            kernel[0] | kernel[1] << 8 | stride[0] << 16 | stride[1] << 24,
            padding[0] | padding[1] << 8,
        ]

    def conv(self, op: Op) -> list[int]:
        """CONV and DEPTHWISE; trained parts get their place in RAM."""
        weight = op.params["weight"]
        channels = op.attrs["train_channels"]
        if op.kind == "depthwise" and math.prod(weight.shape[1:3]) > MAX_DEPTHWISE_TAPS:
            raise SproutError(
                f"depthwise layer {op.name} has a window of {weight.shape[1]} x {weight.shape[2]} "
                f"and {MAX_DEPTHWISE_TAPS} taps are the most; use a smaller kernel."
            )
        w_at = b_at = -1
        if op.attrs["train_bias"]:
            b_at = self.place(op, "bias", op.params["bias"])
        if op.attrs["train_weight"]:
            part = weight
            if channels is not None:
                part = weight[channels] if op.kind == "depthwise" else weight[..., channels]
            w_at = self.place(op, "weight", part)
        records = self.forward_records(op)
        return [
            *self.geometry(weight.shape[1:3], op.attrs), op.attrs["act_min"], op.attrs["act_max"],
            records, w_at, b_at, *(self.index_list(channels) if w_at >= 0 else (-1, 0)),
            int(op.attrs.get("rounding") == "single"),
        ]  # fmt: skip

    depthwise = conv

    def add(self, op: Op) -> list[int]:
        pairs = add_multipliers(op.inputs[0], op.inputs[1], op.outputs[0])
        return [*(v for pair in pairs for v in pair), op.attrs["act_min"], op.attrs["act_max"]]

    def average_pool(self, op: Op) -> list[int]:
        """AVERAGE_POOL and MAX_POOL."""
        return [
            *self.geometry(op.attrs["kernel"], op.attrs),
            op.attrs["act_min"],
            op.attrs["act_max"],
        ]

    max_pool = average_pool

    def mean(self, op: Op) -> list[int]:
        """MEAN; its front end knows the multiplier."""
        a = op.attrs
        return [a["mult"], a["shift"], a["act_min"], a["act_max"]]

    def pad(self, op: Op) -> list[int]:
        """PAD."""
        return [op.attrs["padding"][0], op.attrs["padding"][1], op.attrs["value"]]

    def softmax(self, op: Op) -> list[int]:
        """SOFTMAX: gemmlowp's PreprocessSoftmaxScaling and CalculateInputRadius with 5 integer
        bits."""
        x = op.inputs[0]
        self.scratch = max(self.scratch, 4 * x.shape[2])
        real = min(op.attrs["beta"] * x.scale * (1 << 26), float((1 << 31) - 1))
        mult, shift = quantize_multiplier(real)
        return [mult, shift, -math.floor(31 * (1 << 26) / (1 << shift))]

    def gather(self, op: Op) -> list[int]:
        """GATHER."""
        return list(self.index_list(op.attrs["channels"]))

    def requantize(self, op: Op) -> list[int]:
        """REQUANTIZE."""
        mult, shift = quantize_multiplier(op.inputs[0].scale / op.outputs[0].scale)
        return [mult, shift, op.attrs["act_min"], op.attrs["act_max"]]

    def stream(self, op: Op, step: int) -> list[int]:
        """STREAM; the constants of its members come next."""
        a = op.attrs
        return [step + 1, a["members"], int(a["fed"]), len(self.constants), a["kept"]]

    def cross_entropy(self, op: Op) -> list[int]:
        """CROSS_ENTROPY: the logits' scale as a factor for 2**-t and as mantissa and exponent."""
        logits = op.inputs[0]
        if logits.elements > MAX_CLASSES:
            raise SproutError(
                f"logits {logits.name} has {logits.elements} outputs and {MAX_CLASSES} are the "
                "most that can learn; give it a smaller head with --classes."
            )
        self.scratch = max(self.scratch, 4 * logits.shape[2])
        mantissa, exponent = math.frexp(logits.scale)
        m = round(mantissa * (1 << 15))
        if m == 1 << 15:
            m, exponent = m // 2, exponent + 1
        p0 = probability_factor(logits.scale)
        if not 0 < p0 < MOST_P0:
            raise SproutError(
                f"logits {logits.name} have the scale {logits.scale:g}, from which nothing can "
                "learn; quantise them with a scale from 1e-5 to 88, or compile with --plan none."
            )
        return [p0, m, exponent - 15]

    def scale_grad(self, op: Op) -> list[int]:
        """SCALE_GRAD: a table of the layer's multipliers, or the one of any other operator."""
        reals = op.attrs["multipliers"]
        _, exponent = math.frexp(float(reals.max()))
        q = np.minimum(np.round(reals * 2.0 ** (30 - exponent)), (1 << 30) - 1).astype(np.int64)
        if "conv" not in op.attrs:
            return [-1, exponent - 30, GRADIENT_BITS, int(q[0])]
        self.scratch = max(self.scratch, 4 * len(q))
        bits = self.layer_bits[op.attrs["conv"].attrs["conv_index"]] = self.bits(op)
        return [self.constant(q.astype("<i4").tobytes()), exponent - 30, bits]

    def bits(self, op: Op) -> int:
        """Magnitude bits a layer's gradient may have so that no int32 sum over it can wrap: proven
        from shapes.

        The sums are those of the bias (pixels), of the weight (pixels times the input's range) and
        of the input gradient (the largest L1 norm of the weights behind one input channel; 127
        each where they are trained).
        """
        conv: Op = op.attrs["conv"]
        x, y = conv.inputs[0], conv.outputs[0]
        pixels = y.shape[0] * y.shape[1]
        bound = pixels
        if conv.attrs["train_weight"]:
            bound = max(bound, pixels * max(127 - x.zero_point, 128 + x.zero_point))
        if op.attrs["input_grad"]:
            bound = max(bound, int(_reach(conv).max()))
        return min(self.gradient_bits, _floor_log2(((1 << 31) - 1) // bound))

    def input_grad_shift(self, op: Op) -> int:
        """First guess at how far the sums of an input gradient must be shifted to fit 14 bits.

        A guess too low makes the operator run twice, one too high costs precision.  Gradients are
        heavy-tailed, so the largest sum is little more than the largest gradient element times the
        largest weight behind it: 7 bits to 10 on all networks and images measured.  Where few
        weights stand behind an input channel their L2 norm says less.
        """
        weight = op.params["weight"].astype(np.float64)
        axis = (1, 2) if op.kind.startswith("depthwise") else (0, 1, 2)
        norm = float(np.sqrt((weight**2).sum(axis=axis)).max())
        narrower = GRADIENT_BITS - self.layer_bits[op.attrs["conv_index"]]
        most = 9 if op.kind.startswith("depthwise") else 10
        return max(0, min(most, math.ceil(math.log2(max(norm, 1.0))) + 1) - narrower)

    def trained_part(self, op: Op) -> tuple[int, int, int]:
        """Trained offset of a layer's weight and the index list of its channels; -1: none."""
        if not op.attrs["train_weight"]:
            return -1, -1, 0
        channels = self.index_list(op.attrs["train_channels"])
        return self.places[op.attrs["conv_index"], "weight"][0], *channels

    def conv_input_grad(self, op: Op) -> list[int]:
        """CONV_INPUT_GRAD; transposed records are written for what is not trained."""
        weight = op.params["weight"]
        trained, *index = self.trained_part(op)
        records = -1
        inputs = weight.shape[3]
        size = blob.transposed_record_size(weight.size // inputs)
        self.scratch = max(self.scratch, size)
        if trained < 0 or index[0] >= 0:
            table = np.zeros((inputs, size), np.int8)
            table[:, : weight.size // inputs] = weight.transpose(3, 1, 2, 0).reshape(inputs, -1)
            records = self.constant(table.tobytes())
        return [
            *self.geometry(weight.shape[1:3], op.attrs),
            records, trained, *index, self.input_grad_shift(op),
        ]  # fmt: skip

    def depthwise_input_grad(self, op: Op) -> list[int]:
        """DEPTHWISE_INPUT_GRAD, from the forward records."""
        weight = op.params["weight"]
        multiplier = op.inputs[0].shape[2] // op.outputs[0].shape[2]
        taps = math.prod(weight.shape[1:3])
        if multiplier > 32 or multiplier * taps > MAX_DEPTHWISE_TAPS:
            raise SproutError(
                f"depthwise layer {op.name} has {multiplier} outputs an input of {taps} taps, "
                "too many for its gradient; choose a plan whose layers all come after it."
            )
        plane = 2 * math.prod(op.outputs[0].shape[:2]) if op.outputs[0].alias else 0
        size = blob.forward_record_size(taps) + plane
        self.scratch = max(self.scratch, multiplier * size)
        return [
            *self.geometry(weight.shape[1:3], op.attrs),
            self.records[op.attrs["conv_index"]],
            *self.trained_part(op),
            self.input_grad_shift(op),
        ]  # fmt: skip

    def key(self) -> int:
        """A number of its own for each update: the stream of its random draws."""
        self.keys += 1
        return self.keys

    def bias_update(self, op: Op) -> list[int]:
        """BIAS_UPDATE, its steps scaled by 1 / (x_scale * weight_scale)**2."""
        scales = op.params["weight_scales"].astype(np.float64)
        table = self.update_table(
            1.0 / np.maximum(op.attrs["x_scale"] * scales, 1e-30) ** 2, scales
        )
        trained, accum = self.places[op.attrs["conv_index"], "bias"]
        return [trained, table, accum, self.key()]

    def conv_weight_update(self, op: Op) -> list[int]:
        """CONV_WEIGHT_UPDATE and DEPTHWISE_WEIGHT_UPDATE, steps scaled by 1 / weight_scale**2."""
        weight = op.params["weight"]
        scales = op.params["weight_scales"].astype(np.float64)
        table = self.update_table(1.0 / np.maximum(scales, 1e-30) ** 2, scales)
        row = math.prod(weight.shape[1:3]) * (
            1 if op.kind.startswith("depthwise") else op.inputs[1].shape[2]
        )
        self.scratch = max(self.scratch, 8 * len(scales) + 4 * row)
        conv = op.attrs["conv_index"]
        trained, accum = self.places[conv, "weight"]
        fraction, _ = self.places.get((conv, "fraction"), (-1, -1))
        index: tuple[int, int] = (-1, 0)
        if op.kind.startswith("depthwise"):
            index = self.index_list(op.attrs["train_channels"])
        return [
            *self.geometry(weight.shape[1:3], op.attrs),
            trained, table, accum, self.key(), *index, fraction,
        ]  # fmt: skip

    depthwise_weight_update = conv_weight_update

    def add_grads(self, op: Op) -> list[int]:
        """ADD_GRADS."""
        return []

    def average_pool_grad(self, op: Op) -> list[int]:
        """AVERAGE_POOL_GRAD and MAX_POOL_GRAD."""
        return self.geometry(op.attrs["kernel"], op.attrs)

    max_pool_grad = average_pool_grad

    def mean_grad(self, op: Op) -> list[int]:
        """MEAN_GRAD."""
        mantissa, exponent = math.frexp(op.attrs["multiplier"])
        return [exponent - 30, min(round(mantissa * (1 << 30)), (1 << 30) - 1)]

    def pad_grad(self, op: Op) -> list[int]:
        """PAD_GRAD."""
        return [op.attrs["padding"][0], op.attrs["padding"][1]]

    # the whole

    def operands(self, op: Op) -> list[int]:
        """Tensor numbers of an operator, a missing mask as NONE in its place."""
        t = [self.number[id(v)] for v in (*op.inputs, *op.outputs)]
        if op.kind in ("scale_grad", "mean_grad", "average_pool_grad") and len(op.inputs) == 1:
            t.insert(1, blob.NONE)
        return t + [blob.NONE] * (6 - len(t))

    def assemble(self, input_range: tuple[float, float] | None) -> blob.Blob:
        """Lower every operator and put the blob together."""
        spans = memory.lifetimes(self.schedule)
        buffers = list(spans.values())
        arena = memory.place(buffers)
        rows: list[blob.BlobOp] = []
        for step, op in enumerate(self.ops):
            p = self.stream(op, step) if op.kind == "stream" else getattr(self, op.kind)(op)
            if op.kind in ("conv", "depthwise"):
                self.records[op.attrs["conv_index"]] = p[4]
            flags = blob.TRAIN if op.kind == "gather" or step >= self.n_forward else 0
            flags |= blob.INFER if op.attrs.get("infer_only") else 0
            p = [int(v) for v in p] + [0] * (12 - len(p))
            if "sources" in op.attrs:
                flags |= blob.MEMBER
                first, *second = op.attrs["sources"]
                p[10] = (first & 0xFFFF) | ((second or [0])[0] << 16)
                p[11] = op.attrs["at_a_time"]
            rows.append(blob.BlobOp(op.kind, flags, self.operands(op), p))
        lut_at = 0
        lut = input_table(self.graph, input_range)
        if lut is not None:
            lut_at = len(self.tensors) * blob.TENSOR_SIZE + len(self.tail)
            self.tail += lut.tobytes()
        slots = {id(g): i for i, g in enumerate(self.schedule.gradients)}
        table = [
            blob.BlobTensor(
                spans[id(t.root())].offset, *t.shape, t.dtype, t.zero_point if t.dtype == INT8 else
                0, slots.get(id(t.root()), blob.NONE), t.rows,
            )
            for t in self.tensors
        ]  # fmt: skip
        graph = self.graph
        learns = self.schedule.exponents is not None
        flags = (
            blob.FLAG_INPUT_FLOAT * graph.input_float | blob.FLAG_OUTPUT_FLOAT * graph.output_float
        )
        outputs = graph.logits.elements
        names = graph.classes or [f"class_{i}" for i in range(outputs)]
        result = blob.Blob(
            flags | blob.FLAG_LEARNS * learns, arena, len(self.initial), self.accum_len,
            (self.scratch + 7) // 8 * 8, self.n_forward, self.number[id(graph.input)],
            self.number[id(graph.output)], self.number[id(graph.logits)], blob.NONE if
            self.schedule.exponents is None else self.number[id(self.schedule.exponents)], outputs,
            len(names), table, rows, bytes(self.tail), lut_at, bytes(self.constants),
            bytes(self.initial),
        )  # fmt: skip
        result.meta = {
            "name": graph.name,
            "classes": names,
            "input": _quantisation(graph.input),
            "output": _quantisation(graph.output),
            "logits": _quantisation(graph.logits) | {"p0": probability_factor(graph.logits.scale)},
        }
        head = self.head_rows()
        if head:
            result.meta["head"] = head
        result.info = self.info(spans, result)
        result.meta["latent"] = [
            [cut, [[offset, length] for _, offset, length in alive]]
            for cut, alive in latent.points(result)
        ]
        return result

    def head_rows(self) -> list[list[int]]:
        """Return ``head`` of the meta section (see ``blob``), empty where rows of the last layer
        differ in more than what they learn. A last layer learns as a whole or not at all."""
        op = self.graph.convs[-1]
        same = op.outputs[0].root() is self.graph.logits.root()
        if not (same and op.attrs["train_weight"] and np.ptp(op.params["weight_scales"]) == 0):
            return []
        conv, row = op.attrs["conv_index"], op.params["weight"][0].size
        (weight, sums), (bias, bias_sums) = (self.places[conv, k] for k in ("weight", "bias"))
        parts = [[0, weight, 8 * row], [1, sums, 16 * row], [0, bias, 32], [1, bias_sums, 32]]
        if (conv, "fraction") in self.places:
            parts.append([0, self.places[conv, "fraction"][0], 4 * row])
        return parts

    def info(self, spans: dict[int, memory.Buffer], b: blob.Blob) -> dict[str, Any]:
        """Return what ``sprout inspect`` shows."""
        counts = [int(op.attrs.get("macs", 0)) or macs(op) for op in self.ops]
        saved = sum(
            t.nbytes
            for t in self.tensors
            if t.alias is None and t is not self.graph.logits and t.dtype in (INT8, BITS)
            and spans[id(t)].first < self.n_forward < spans[id(t)].last
        )  # fmt: skip
        forward, back = self.schedule.macs
        return {
            "source": self.graph.source,
            "tensors": [
                {
                    "name": t.name, "shape": list(t.shape), "dtype": t.dtype, "nbytes": t.nbytes,
                    "offset": spans[id(t.root())].offset, "alias": t.alias is not None,
                    "first": max(spans[id(t.root())].first, 0), "last": spans[id(t.root())].last,
                }
                for t in self.tensors
            ],
            "ops": [
                {"kind": op.kind, "name": op.name, "macs": m}
                for op, m in zip(self.ops, counts, strict=True)
            ],
            "trained": self.trained,
            "memory": {
                "arena": b.arena_len, "lower_bound": memory.lower_bound(list(spans.values())),
                "trained": b.trained_len, "scratch": b.scratch_len, "accum": b.accum_len,
                "saved_activations": saved,
                "gradients": sum(t.nbytes for t in self.tensors if t.dtype == INT16),
                "program": b.program_len,
            },
            "flash": {
                "program": b.program_len, "constants": len(b.constants),
                "operators": blob.OP_SIZE * len(b.ops),
                "initial": len(b.initial),
            },
            "macs": {"forward": forward, "backward": back},
        }  # fmt: skip


def probability_factor(scale: float) -> int:
    """Return p0 of CROSS_ENTROPY: a logit step of ``scale`` as a power of two, Q16.

    Where one step leaves nothing of a probability, a larger scale changes no bit of the result.
    """
    return min(round(scale * math.log2(math.e) * (1 << 16)), MOST_P0)


def _quantisation(t: Tensor) -> dict[str, Any]:
    return {"shape": list(t.shape), "scale": t.scale, "zero_point": t.zero_point}


def _floor_log2(n: int) -> int:
    return n.bit_length() - 1


def _reach(conv: Op) -> np.ndarray:
    """L1 norm of the weights behind each input channel, with 127 for every weight that is
    trained."""
    weight = np.abs(conv.params["weight"].astype(np.int64))
    if conv.attrs["train_weight"]:
        channels = conv.attrs["train_channels"]
        if channels is None:
            weight[:] = 127
        elif conv.kind == "depthwise":
            weight[channels] = 127
        else:
            weight[..., channels] = 127
    if conv.kind == "depthwise":
        per_output = weight.sum(axis=(1, 2))
        return per_output.reshape(conv.inputs[0].shape[2], -1).sum(1)
    return weight.sum(axis=(0, 1, 2))
