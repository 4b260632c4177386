"""Fully-int8 .tflite files -> Graph, with the arithmetic of LiteRT's reference kernels.

Two steps.  ``_parse`` copies what matters of the flatbuffer into plain objects and checks every
offset and size on the way: the flatbuffers library has no verifier for Python.  ``_Importer`` then
turns the operators one by one: CONV_2D is imported by ``op_conv_2d``.

A tensor of the file may have any rank and any order of axes, one of a Graph is (h, w, c).  A
``SourceTensor`` ties the two: reshapes, and transposes as long as nobody needs the elements moved,
only make another one over the same Graph tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tflite as schema  # type: ignore[import-untyped]

from ..graph import (
    Graph,
    Op,
    SourceTensor,
    SproutError,
    Tensor,
    mean_multiplier,
)

IDENTIFIER = b"TFL3"
MAX_DIMENSION = 0xFFFF
"""A blob keeps h, w and c in 16 bits."""

_POOL = ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction")
_CONV = (
    "Padding",
    "StrideH",
    "StrideW",
    "DilationHFactor",
    "DilationWFactor",
    "FusedActivationFunction",
)
_OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL),
    "CONV_2D": ("Conv2DOptions", _CONV),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", _CONV),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "WeightsFormat")),
    "MAX_POOL_2D": ("Pool2DOptions", _POOL),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
}
"""Operators whose options matter, and which of them."""


def _names(enum: Any) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int) and not k.startswith("_")}


_OPERATORS = _names(schema.BuiltinOperator)
_TYPES = _names(schema.TensorType)
_ACTIVATIONS = _names(schema.ActivationFunctionType)
_DTYPES: dict[str, np.dtype[Any]] = {
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
}


def recognises(data: bytes) -> bool:
    """Whether ``data`` is a .tflite file: its identifier stands at byte 4."""
    return data[4:8] == IDENTIFIER


def read(data: bytes, name: str) -> Graph:
    """Return the Graph of a .tflite file; ``name`` is what error messages call it.

    Raises SproutError if the file is damaged or is no int8 model of the operators above.
    """
    try:
        model = _parse(data, name)
    except (
        struct.error,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        raise SproutError(
            f"{name} is damaged: an offset or a length in it leads outside the file; "
            "copy or convert the model again."
        ) from error
    return _Importer(model).graph()


@dataclass(eq=False)
class _FileTensor:
    """A tensor as the file has it; ``data`` is None unless it is a constant."""

    index: int
    name: str
    type: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    scales: np.ndarray  # float32, empty if not quantised
    zero_points: np.ndarray  # int64, empty if not given: zero
    axis: int  # quantised dimension
    data: np.ndarray | None


@dataclass(eq=False)
class _FileOp:
    """An operator as the file has it; -1 among ``inputs`` is an operand left out."""

    kind: str
    inputs: list[int]
    outputs: list[int]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _File:
    name: str
    tensors: list[_FileTensor]
    ops: list[_FileOp]
    input: int
    output: int


def _parse(data: bytes, name: str) -> _File:
    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() == 0:
        raise ValueError("no subgraph")
    if model.SubgraphsLength() != 1:
        raise SproutError(
            f"{name} has {model.SubgraphsLength()} subgraphs: Sprout takes models of one, "
            "without control flow or several signatures; convert it with one signature."
        )
    graph = model.Subgraphs(0)
    tensors = [_parse_tensor(data, model, graph, i, name) for i in range(graph.TensorsLength())]
    ends = []
    for what, numbers in (("inputs", graph.InputsAsNumpy()), ("outputs", graph.OutputsAsNumpy())):
        numbers = [] if isinstance(numbers, int) else [int(n) for n in numbers]
        if len(numbers) != 1:
            raise SproutError(
                f"{name} has {len(numbers)} {what}: Sprout takes models of one; "
                "cut the model down to one before converting it."
            )
        ends.append(_number(numbers[0], len(tensors)))
    codes = []
    for i in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(i)
        builtin = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        kind = _OPERATORS.get(builtin, f"operator {builtin}")
        if kind == "CUSTOM":
            kind = f"custom operator {(code.CustomCode() or b'?').decode('utf-8', 'replace')}"
        codes.append(kind)
    ops = []
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        kind = codes[op.OpcodeIndex()]
        inputs = [int(op.Inputs(j)) for j in range(op.InputsLength())]
        outputs = [_number(op.Outputs(j), len(tensors)) for j in range(op.OutputsLength())]
        inputs = [n if n == -1 else _number(n, len(tensors)) for n in inputs]
        ops.append(_FileOp(kind, inputs, outputs, _parse_options(op, kind)))
    return _File(name, tensors, ops, ends[0], ends[1])


def _number(n: int, count: int) -> int:
    if not 0 <= n < count:
        raise IndexError(f"tensor {n} of {count}")
    return int(n)


def _vector(table: Any, what: str) -> np.ndarray:
    """Return a vector field as an array; the library gives the number 0 for an absent one."""
    values = getattr(table, f"{what}AsNumpy")()
    return np.zeros(0, np.int64) if isinstance(values, int) else np.asarray(values)


def _parse_tensor(data: bytes, model: Any, graph: Any, index: int, name: str) -> _FileTensor:
    table = graph.Tensors(index)
    called = (table.Name() or b"").decode("utf-8", "replace")
    called = "".join(c if c.isprintable() else "?" for c in called)
    kind = _TYPES.get(table.Type(), f"type {table.Type()}")
    shape = tuple(int(d) for d in _vector(table, "Shape"))
    signature = tuple(int(d) for d in _vector(table, "ShapeSignature"))
    scales, zeros, axis = np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    quantization = table.Quantization()
    if quantization is not None:
        scales = _vector(quantization, "Scale").astype(np.float32)
        zeros = _vector(quantization, "ZeroPoint").astype(np.int64)
        axis = int(quantization.QuantizedDimension())
    if table.Sparsity() is not None:
        raise SproutError(
            f"{name} keeps tensor {index} ({called}) as a sparse matrix: convert it dense."
        )
    buffer = model.Buffers(table.Buffer())
    if buffer.Offset() > 1:
        raise SproutError(
            f"{name} keeps tensor {index} ({called}) outside the flatbuffer, as models above 2 GB "
            "do: no board holds it; take a smaller model."
        )
    raw = _vector(buffer, "Data").astype(np.uint8)
    constant = None
    if raw.size and kind in _DTYPES:
        if min(shape, default=1) < 0 or math.prod(shape) * _DTYPES[kind].itemsize != raw.size:
            raise ValueError(f"tensor {index} has {raw.size} bytes for shape {shape}")
        constant = raw.view(_DTYPES[kind]).reshape(shape)
    elif raw.size:
        constant = raw  # of a type that no operator takes: refused where it is used
    return _FileTensor(index, called, kind, shape, signature, scales, zeros, axis, constant)


def _parse_options(op: Any, kind: str) -> dict[str, Any]:
    if kind not in _OPTIONS:
        return {}
    word, fields = _OPTIONS[kind]
    table, union = getattr(schema, word)(), op.BuiltinOptions()
    if union is None or op.BuiltinOptionsType() != getattr(schema.BuiltinOptions, word):
        raise ValueError(f"{kind} without {word}")
    table.Init(union.Bytes, union.Pos)
    return {f: getattr(table, f)() for f in fields}


class _Importer:
    """Turns the operators of a file into those of a Graph."""

    def __init__(self, file: _File) -> None:
        self.file = file
        self.ops: list[Op] = []
        self.known: dict[int, SourceTensor] = {}
        self.float_input: int | None = None
        self.float_output: SourceTensor | None = None
        self.convs = 0
        self.op: _FileOp = _FileOp("", [], [])

    def graph(self) -> Graph:
        """Import everything."""
        first, last = self.file.tensors[self.file.input], self.file.tensors[self.file.output]
        self.op = _FileOp("the model's input", [], [first.index])
        if first.type == "FLOAT32":
            self.check_shape(first)
            self.float_input = first.index
        else:
            self.known[first.index] = self.new_source(first)
        if len(first.shape) > 1 and first.shape[0] != 1:
            raise self.refuse(f"has a batch of {first.shape[0]}", "convert it with a batch of 1")
        for op in self.file.ops:
            self.op = op
            method: Callable[[], None] | None = getattr(self, f"op_{op.kind.lower()}", None)
            if method is None:
                raise self.refuse(
                    "is not among the operators Sprout has",
                    "replace it in the model or cut it off",
                )
            method()
        self.op = _FileOp("the model's output", [], [last.index])
        output = self.float_output or self.known.get(last.index)
        if output is None:
            raise self.refuse("is computed by no operator", "convert the model again")
        if output.order is not None:
            raise self.refuse("is transposed", "cut the transpose off the end of the model")
        entrance = self.entrance()
        return Graph(
            name=self.file.name,
            ops=self.ops,
            input=entrance,
            output=output.tensor,
            logits=self.logits(output.tensor),
            input_float=self.float_input is not None,
            output_float=self.float_output is not None,
            input_shape=first.shape[1:],
            output_shape=last.shape[1:],
            source_tensors=self.known,
        )

    def entrance(self) -> Tensor:
        """Return the int8 tensor that the network starts from."""
        if self.float_input is None:
            return self.known[self.file.input].tensor
        for op in self.file.ops:
            if op.kind == "QUANTIZE" and op.inputs == [self.float_input]:
                return self.known[op.outputs[0]].tensor
        raise self.refuse("does not depend on the input", "convert the model again")

    def logits(self, output: Tensor) -> Tensor:
        """Return what a final softmax takes, or the output itself."""
        made = {id(op.outputs[0]): op for op in self.ops}
        t = output
        while (op := made.get(id(t))) is not None and op.kind in ("reshape", "softmax"):
            t = op.inputs[0]
            if op.kind == "softmax":
                return t
        return output

    # what operators say and what they take

    def refuse(self, fault: str, remedy: str, tensor: _FileTensor | None = None) -> SproutError:
        """Return the error: file, operator and tensor by name, the fault, the way out."""
        if tensor is None and self.op.outputs:
            tensor = self.file.tensors[self.op.outputs[0]]
        where = f" at tensor {tensor.index} ({tensor.name})" if tensor else ""
        return SproutError(f"{self.file.name}: {self.op.kind}{where} {fault}; {remedy}.")

    def operand(self, position: int) -> _FileTensor:
        """The file's tensor at this place among the operator's inputs."""
        if position >= len(self.op.inputs) or self.op.inputs[position] < 0:
            raise self.refuse(f"lacks operand {position}", "convert the model again")
        return self.file.tensors[self.op.inputs[position]]

    def result(self) -> _FileTensor:
        """The file's tensor that the operator makes."""
        if len(self.op.outputs) != 1:
            raise self.refuse(f"has {len(self.op.outputs)} outputs", "convert the model again")
        return self.file.tensors[self.op.outputs[0]]

    def source(self, position: int = 0) -> SourceTensor:
        """The activation at this place among the operator's inputs."""
        t = self.operand(position)
        if t.index in self.known:
            return self.known[t.index]
        if t.data is not None:
            raise self.refuse(
                "takes a constant where Sprout needs an activation",
                "fold it into the layer before it when converting",
                t,
            )
        self.check_int8(t)
        raise self.refuse("is used before an operator computes it", "convert the model again", t)

    def constant(self, position: int, *types: str) -> np.ndarray:
        """The constant of one of these types at this place among the operator's inputs."""
        t = self.operand(position)
        if t.type not in types:
            raise self.refuse(
                f"has {t.type} where {' or '.join(types)} belongs",
                "quantize the model fully to int8 when converting",
                t,
            )
        if t.data is None:
            raise self.refuse("is not a constant of the model", "fix it when converting", t)
        return t.data

    def check_shape(self, t: _FileTensor) -> None:
        """A shape must be known now: any batch but 1 and any other open dimension is refused."""
        open_axes = [i for i, d in enumerate(t.signature) if d < 0 and i > 0]
        if open_axes or min(t.shape, default=1) < 1:
            raise self.refuse(
                f"has the shape {list(t.signature or t.shape)}, not all of it known",
                "convert the model with a fixed input shape",
                t,
            )

    def check_int8(self, t: _FileTensor) -> None:
        if t.type != "INT8":
            raise self.refuse(
                f"is {t.type}, not INT8",
                "quantize the model fully to int8, inputs and outputs included (full integer "
                "quantization with a representative dataset)",
                t,
            )

    def new_tensor(self, t: _FileTensor, shape: tuple[int, int, int]) -> Tensor:
        """Make the Graph's tensor for an int8 activation of the file."""
        self.check_int8(t)
        self.check_shape(t)
        if len(t.scales) != 1 or len(t.zero_points) > 1:
            raise self.refuse(
                "has no single scale and zero point", "quantize activations per tensor", t
            )
        scale = float(t.scales[0])
        zero_point = int(t.zero_points[0]) if len(t.zero_points) else 0
        if not (math.isfinite(scale) and scale > 0 and -128 <= zero_point <= 127):
            raise self.refuse(
                f"has scale {scale} and zero point {zero_point}", "convert the model again", t
            )
        if math.prod(shape) != math.prod(t.shape):
            raise self.refuse(
                f"has the shape {list(t.shape)}, but the operator makes {list(shape)}",
                "convert the model again",
                t,
            )
        return Tensor(t.name, shape, scale=scale, zero_point=zero_point, index=t.index)

    def new_source(self, t: _FileTensor) -> SourceTensor:
        """Make an activation whose (h, w, c) is its own shape."""
        self.check_shape(t)
        return SourceTensor(t.name, t.shape, self.new_tensor(t, self.hwc(t.shape, t)))

    def hwc(self, shape: tuple[int, ...], t: _FileTensor) -> tuple[int, int, int]:
        """Return a shape of the file as (h, w, c); axes in front of these three go into h."""
        c, w = (shape[-1:] or (1,))[0], (shape[-2:-1] or (1,))[0]
        h = math.prod(shape[:-2])
        if max(h, w, c) > MAX_DIMENSION:
            raise self.refuse(
                f"has the shape {list(shape)}, and no more than {MAX_DIMENSION} fit one dimension",
                "take a smaller model",
                t,
            )
        return h, w, c

    def as_shape(self, source: SourceTensor, shape: tuple[int, int, int]) -> Tensor:
        """Return the tensor of ``source`` as (h, w, c) = ``shape``, by an alias if need be."""
        t = source.tensor
        if t.shape == shape:
            return t
        return self.alias(t, shape, f"{source.name}/reshape", t.scale, t.zero_point)

    def alias(
        self, t: Tensor, shape: tuple[int, int, int], name: str, scale: float, zero_point: int
    ) -> Tensor:
        y = Tensor(name, shape, scale=scale, zero_point=zero_point, alias=t, index=t.index)
        self.ops.append(Op("reshape", [t], [y], name=name))
        return y

    def picture(self, position: int = 0) -> Tensor:
        """The activation at this place as the (h, w, c) of its NHWC shape."""
        source, t = self.source(position), self.operand(position)
        if len(source.shape) != 4 or source.shape[0] != 1:
            raise self.refuse(
                f"takes the shape {list(source.shape)}, not 1 x height x width x channels",
                "convert the model with a batch of 1",
                t,
            )
        self.check_order(source, t)
        return self.as_shape(source, self.hwc(source.shape, t))

    def check_order(self, source: SourceTensor, t: _FileTensor) -> None:
        if source.order is not None:
            raise self.refuse(
                "needs the elements of a TRANSPOSE moved, which Sprout does not do",
                "convert the model with channels last",
                t,
            )

    def emit(self, kind: str, inputs: list[Tensor], y: Tensor, **attrs: Any) -> Op:
        """Append an operator that makes the result."""
        op = Op(kind, inputs, [y], attrs, name=y.name)
        self.ops.append(op)
        t = self.result()
        self.known[t.index] = SourceTensor(t.name, t.shape, y)
        return op

    def limits(self, y: Tensor) -> dict[str, int]:
        """Return act_min and act_max of the fused activation.

        kernel_util.cc, CalculateActivationRangeQuantized: the division is in float32, halves round
        away from zero.
        """
        word = self.op.options["FusedActivationFunction"]
        kind = _ACTIVATIONS.get(word, f"activation {word}")
        ranges = {
            "NONE": (-math.inf, math.inf),
            "RELU": (0.0, math.inf),
            "RELU6": (0.0, 6.0),
            "RELU_N1_TO_1": (-1.0, 1.0),
        }
        if kind not in ranges:
            raise self.refuse(f"has the activation {kind}", "use RELU, RELU6 or none")
        low, high = ranges[kind]

        def quantize(real: float) -> int:
            ratio = float(np.float32(real) / np.float32(y.scale))
            return y.zero_point + int(math.copysign(math.floor(abs(ratio) + 0.5), ratio))

        return {
            "act_min": max(-128, quantize(low)) if math.isfinite(low) else -128,
            "act_max": min(127, quantize(high)) if math.isfinite(high) else 127,
        }

    def window(self, x: Tensor, kernel: tuple[int, int]) -> dict[str, Any]:
        """Return a sliding window's stride and explicit padding, and the output's (h, w): size.

        padding.h, ComputePaddingHeightWidth: the odd row or column of SAME goes below and right.
        """
        options = self.op.options
        stride = (options["StrideH"], options["StrideW"])
        if min(stride) < 1 or min(kernel) < 1 or max(*stride, *kernel) > 255:
            raise self.refuse(
                f"has a window of {kernel[0]}x{kernel[1]} and stride {stride[0]}x{stride[1]}",
                "keep both between 1 and 255",
            )
        dilation = (options.get("DilationHFactor", 1), options.get("DilationWFactor", 1))
        if dilation != (1, 1):
            raise self.refuse(
                f"has dilation {dilation[0]}x{dilation[1]}", "use undilated convolutions"
            )
        before, after, size = [], [], []
        for n, k, s in zip(x.shape[:2], kernel, stride, strict=True):
            if options["Padding"] == schema.Padding.SAME:
                out = -(-n // s)
                total = max(0, (out - 1) * s + k - n)
            elif options["Padding"] == schema.Padding.VALID:
                out, total = (n - k) // s + 1, 0
            else:
                raise self.refuse("has an unknown padding", "use SAME or VALID")
            before.append(total // 2)
            after.append(total - total // 2)
            size.append(out)
        if min(size) < 1:
            raise self.refuse("has a window larger than its input", "convert the model again")
        return {"stride": stride, "padding": (*before, *after), "size": tuple(size)}

    # operators, by their name in the schema

    def op_conv_2d(self) -> None:
        x, weight = self.picture(), self.weight(4, axis=0)
        o, kh, kw, i = weight.shape
        if i != x.shape[2]:
            raise self.refuse(
                f"has filters over {i} of {x.shape[2]} channels", "use ungrouped convolutions"
            )
        window = self.window(x, (kh, kw))
        self.emit_conv("conv", x, (*window["size"], o), weight, window)

    def op_depthwise_conv_2d(self) -> None:
        x, weight = self.picture(), self.weight(4, axis=3)
        one, kh, kw, o = weight.shape
        if one != 1 or o % x.shape[2]:
            raise self.refuse(
                f"has weights {list(weight.shape)} over {x.shape[2]} channels",
                "convert the model again",
            )
        window = self.window(x, (kh, kw))
        weight = np.ascontiguousarray(weight[0].transpose(2, 0, 1))
        if x.shape[2] == 1:  # every output channel reads the one input channel: a convolution
            self.emit_conv("conv", x, (*window["size"], o), weight[..., None], window)
        else:
            self.emit_conv("depthwise", x, (*window["size"], o), weight, window)

    def op_fully_connected(self) -> None:
        if self.op.options["WeightsFormat"] != 0:
            raise self.refuse("has shuffled weights", "convert with the default weights format")
        source, weight = self.source(), self.weight(2, axis=0)
        o, k = weight.shape
        if source.tensor.elements % k:
            raise self.refuse(
                f"has weights over {k} values for an input of {source.tensor.elements}",
                "convert the model again",
            )
        rows = source.tensor.elements // k
        if source.order is not None:  # a transpose before it: move the weights' columns instead
            if rows != 1:
                self.check_order(source, self.operand(0))
            moved = np.empty_like(weight)
            moved[:, source.order] = weight
            weight = moved
        x = self.as_shape(source, self.hwc((rows, k), self.operand(0)))
        window = {"stride": (1, 1), "padding": (0, 0, 0, 0)}
        op = self.emit_conv("conv", x, (1, rows, o), weight.reshape(o, 1, 1, k), window)
        # fully_connected.h: the sum is multiplied in float64 and rounded once, where a convolution
        # rounds twice.
        op.attrs["rounding"] = "single"

    def weight(self, rank: int, axis: int) -> np.ndarray:
        """Return the int8 weights, checked; output channels lie on ``axis``."""
        weight, t = self.constant(1, "INT8"), self.operand(1)
        if weight.ndim != rank or 0 in weight.shape:
            raise self.refuse(f"has weights of shape {list(weight.shape)}", "convert it again", t)
        channels = weight.shape[axis]
        per_channel = len(t.scales) > 1
        if len(t.scales) not in (1, channels) or (per_channel and t.axis != axis):
            raise self.refuse(
                f"has {len(t.scales)} weight scales on axis {t.axis} for {channels} channels",
                "quantize weights per tensor or per output channel",
                t,
            )
        if np.any(t.zero_points != 0):
            raise self.refuse("has weights with a zero point", "quantize weights symmetrically", t)
        if not np.all(np.isfinite(t.scales) & (t.scales >= 0)):
            raise self.refuse("has weight scales that are no numbers", "convert it again", t)
        return weight

    def emit_conv(
        self,
        kind: str,
        x: Tensor,
        shape: tuple[int, int, int],
        weight: np.ndarray,
        window: dict[str, Any],
    ) -> Op:
        channels = shape[2]
        bias = np.zeros(channels, np.int32)
        if len(self.op.inputs) > 2 and self.op.inputs[2] >= 0:
            # A one-dimensional bias has one axis, whatever the file says of the quantised one.
            bias = self.constant(2, "INT32").astype(np.int32)
            if bias.size != channels:
                raise self.refuse(
                    f"has {bias.size} biases for {channels} channels", "convert it again"
                )
        y = self.new_tensor(self.result(), shape)
        op = self.emit(
            kind,
            [x],
            y,
            stride=window["stride"],
            padding=window["padding"],
            **self.limits(y),
            conv_index=self.convs,
            layer=self.op.kind,
        )
        self.convs += 1
        scales = self.operand(1).scales.astype(np.float64)
        op.params = {
            "weight": weight,
            "bias": bias.reshape(-1),
            "weight_scales": np.array(np.broadcast_to(scales, channels)),
        }
        return op

    def op_add(self) -> None:
        a, b = self.source(0), self.source(1)
        y = self.result()
        if a.shape != b.shape or a.shape != y.shape:
            raise self.refuse(
                f"adds {list(a.shape)} and {list(b.shape)}, and Sprout adds equal shapes only",
                "avoid broadcasting, or fold the smaller operand into a bias",
            )
        if not _same_order(a.order, b.order):
            self.check_order(a, self.operand(0))
            self.check_order(b, self.operand(1))
        t = self.new_tensor(y, a.tensor.shape)
        self.emit("add", [a.tensor, self.as_shape(b, a.tensor.shape)], t, **self.limits(t))
        self.known[y.index].order = a.order

    def op_average_pool_2d(self) -> None:
        self.pool("average_pool")

    def op_max_pool_2d(self) -> None:
        self.pool("max_pool")

    def pool(self, kind: str) -> None:
        x = self.picture()
        kernel = (self.op.options["FilterHeight"], self.op.options["FilterWidth"])
        window = self.window(x, kernel)
        y = self.new_tensor(self.result(), (*window.pop("size"), x.shape[2]))
        self.check_same_quantization(x, y)
        self.emit(kind, [x], y, kernel=kernel, **window, **self.limits(y))

    def check_same_quantization(self, x: Tensor, y: Tensor) -> None:
        if abs(x.scale - y.scale) > 1e-6 * x.scale or x.zero_point != y.zero_point:
            raise self.refuse("changes scale or zero point, which it must not", "convert it again")

    def op_mean(self) -> None:
        source, y = self.source(), self.result()
        rank = len(source.shape)
        given = [int(a) for a in self.constant(1, "INT32").reshape(-1)]
        axes = {a % rank for a in given if -rank <= a < rank}
        if not given or len(axes) != len(set(given)):
            raise self.refuse(f"averages over the axes {given}", "average over height and width")
        kept = tuple(d for i, d in enumerate(source.shape) if i not in axes)
        outer, count, inner, order = self.split(source, axes)
        if math.prod(y.shape) != math.prod(kept):
            raise self.refuse(f"makes {list(y.shape)} out of {list(kept)}", "convert it again")
        x = source.tensor
        if outer > 1 or x.shape[0] * x.shape[1] != count:
            rows = (count, 1, inner) if outer == 1 else (outer, count, inner)
            x = self.as_shape(source, self.hwc(rows, self.operand(0)))
        t = self.new_tensor(y, self.hwc((outer, 1, inner), y))
        mult, shift = mean_multiplier(x.scale, t.scale, count)
        self.emit("mean", [x], t, mult=mult, shift=shift, act_min=-128, act_max=127)
        self.known[y.index].order = order

    def split(
        self, source: SourceTensor, axes: set[int]
    ) -> tuple[int, int, int, np.ndarray | None]:
        """Return (outer, count, inner): what lies outside, on and inside the axes, in memory.

        The fourth value is the order of the elements that are left.  Axes that do not lie together
        in memory are refused.
        """
        order = _order(source)
        index = order.reshape(source.shape)
        long = [i for i, d in enumerate(source.shape) if d > 1]
        step = {i: int(np.take(index, 1, axis=i).flat[0]) for i in long}  # index starts with 0
        memory = sorted(long, key=lambda i: -step[i])
        sizes = [source.shape[i] for i in memory]
        reduced = [i in axes for i in memory]
        strides = [math.prod(sizes[n + 1 :]) for n in range(len(sizes))]
        at = [n for n, r in enumerate(reduced) if r]
        if strides != [step[i] for i in memory] or at != list(range(*_span(at))):
            raise self.refuse(
                "averages over axes that do not lie together in memory",
                "average over height and width",
            )
        start, stop = _span(at)
        kept = [i for i in memory if i not in axes]
        left = np.arange(math.prod(source.shape[i] for i in kept), dtype=np.int64)
        left = left.reshape([source.shape[i] for i in kept])
        left = left.transpose([kept.index(i) for i in sorted(kept)]).reshape(-1)
        return (
            math.prod(sizes[:start]),
            math.prod(sizes[start:stop]),
            math.prod(sizes[stop:]),
            _tidy(left),
        )

    def op_pad(self) -> None:
        x, source = self.picture(), self.source()
        amounts = self.constant(1, "INT32", "INT64")
        if amounts.shape != (4, 2) or np.any(amounts < 0) or np.any(amounts > MAX_DIMENSION):
            raise self.refuse(
                f"pads by {amounts.tolist()}", "pad height and width of a picture only"
            )
        n, (top, bottom), (left, right), c = amounts.tolist()
        if any(n) or any(c):
            raise self.refuse("pads batch or channels", "pad height and width only")
        y = self.result()
        h, w = source.shape[1] + top + bottom, source.shape[2] + left + right
        t = self.new_tensor(y, self.hwc((h, w, x.shape[2]), y))
        self.check_same_quantization(x, t)
        value = t.zero_point
        if len(self.op.inputs) > 2 and self.op.inputs[2] >= 0:
            values = self.constant(2, "INT8")
            if values.size != 1:
                raise self.refuse(f"pads with {values.size} values", "pad with one value")
            value = int(values.reshape(-1)[0])
        if x.shape == t.shape:
            self.known[y.index] = SourceTensor(y.name, y.shape, x)
        else:
            self.emit("pad", [x], t, padding=(top, left, bottom, right), value=value)

    op_padv2 = op_pad

    def op_reshape(self) -> None:
        self.rename(self.source().order)

    op_squeeze = op_expand_dims = op_reshape

    def op_transpose(self) -> None:
        source = self.source()
        axes = [int(a) for a in self.constant(1, "INT32").reshape(-1)]
        rank = len(source.shape)
        if sorted(a % rank if -rank <= a < rank else -1 for a in axes) != list(range(rank)):
            raise self.refuse(f"permutes the axes as {axes}", "convert the model again")
        index = _order(source).reshape(source.shape).transpose(axes)
        if index.shape != self.result().shape:
            raise self.refuse(
                f"makes {list(index.shape)}, not {list(self.result().shape)}", "convert it again"
            )
        self.rename(_tidy(index.reshape(-1)))

    def rename(self, order: np.ndarray | None) -> None:
        """Make the result another view of the operand's elements."""
        source, y = self.source(), self.result()
        t = self.new_tensor(y, self.hwc(y.shape, y))  # for its checks, and its scale
        if t.elements != source.tensor.elements:
            raise self.refuse(
                f"makes {list(y.shape)} out of {list(source.shape)}", "convert the model again"
            )
        same = source.tensor
        if (t.scale, t.zero_point) != (same.scale, same.zero_point):
            # LiteRT copies the bytes; what they stand for changes with the tensor.
            same = self.alias(same, same.shape, y.name, t.scale, t.zero_point)
        self.known[y.index] = SourceTensor(y.name, y.shape, same, order)

    def op_softmax(self) -> None:
        source, y = self.source(), self.result()
        self.check_order(source, self.operand(0))
        x = self.as_shape(source, self.hwc(source.shape, self.operand(0)))
        t = self.new_tensor(y, x.shape)
        if (t.scale, t.zero_point) != (1 / 256, -128):
            raise self.refuse(
                f"has output scale {t.scale:g} and zero point {t.zero_point}, not 1/256 and -128",
                "convert the model again",
            )
        beta = float(self.op.options["Beta"])
        if not 0 < beta < math.inf:
            raise self.refuse(f"has beta {beta}", "use a softmax with beta 1")
        self.emit("softmax", [x], t, beta=beta)

    def op_quantize(self) -> None:
        x, y = self.operand(0), self.result()
        if x.index == self.float_input:
            if any(x.index in op.inputs for op in self.file.ops if op is not self.op):
                raise self.refuse("shares its float input", "quantize the model's input once")
            self.known[y.index] = self.new_source(y)
            return
        source = self.source()
        t = self.new_tensor(y, source.tensor.shape)
        self.emit("requantize", [source.tensor], t, act_min=-128, act_max=127)
        self.known[y.index].order = source.order

    def op_dequantize(self) -> None:
        y = self.result()
        if y.index != self.file.output or y.type != "FLOAT32":
            raise self.refuse(
                f"makes {y.type} inside the model", "quantize the model fully to int8"
            )
        self.float_output = self.source()

    def op_shape(self) -> None:
        """Pass over what only computes the shape of a reshape, which the file states anyway."""
        if self.result().type not in ("INT32", "INT64"):
            raise self.refuse("works on activations", "replace it in the model or cut it off")

    op_strided_slice = op_pack = op_shape


def _span(places: list[int]) -> tuple[int, int]:
    return (places[0], places[-1] + 1) if places else (0, 0)


def _order(source: SourceTensor) -> np.ndarray:
    if source.order is not None:
        return source.order
    return np.arange(source.tensor.elements, dtype=np.int64)


def _tidy(order: np.ndarray) -> np.ndarray | None:
    """Return None for an order that moves nothing."""
    return None if np.all(order[1:] > order[:-1]) else order


def _same_order(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
