"""Hand-made blobs for tests: what the compiler does, without its judgement.

``Builder`` hands out places and collects rows.  No bytes of the arena are used twice unless ``at``
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sprout.blob import INFER, NONE, TRAIN, Blob, BlobOp, BlobTensor
from sprout.graph import quantize_multiplier

Array = np.ndarray
FROZEN = 6  # a channel of the depthwise layer of ``learner`` whose scale counts as dead


def geometry(
    kernel: Sequence[int], stride: Sequence[int] = (1, 1), top_left: Sequence[int] = (0, 0)
) -> list[int]:
    """Return p0 and p1 of a sliding window."""
    packed = kernel[0] | kernel[1] << 8 | stride[0] << 16 | stride[1] << 24
    return [packed - (1 << 32) if packed >> 31 else packed, top_left[0] | top_left[1] << 8]


def q30(values: Any) -> tuple[Array, Array]:
    """Return (m, e) with values = m * 2**e, m in [2**29, 2**30) or 0."""
    fraction, exponent = np.frexp(np.asarray(values, np.float64))
    mantissa = np.minimum(np.round(fraction * 2.0**30), 2**30 - 1).astype(np.int64)
    return mantissa, np.where(mantissa == 0, 0, exponent - 30)


class _InTail(int):
    """An offset into the tail, which starts where the tables end: known when they are complete."""


class Builder:
    """Collects the parts of a blob; ``blob`` puts them together."""

    def __init__(self) -> None:
        self.tensors: list[BlobTensor] = []
        self.ops: list[BlobOp] = []
        self.constants, self.initial, self.tail = bytearray(), bytearray(), bytearray()
        self.arena_len = self.accum_len = self.slots = self.n_forward = self.keys = 0

    def tensor(
        self, shape: Sequence[int], dtype: str = "int8", zero: int = 0, at: int | None = None
    ) -> int:
        """Add a tensor (h, w, c); ``at`` names one whose bytes it reads.  int16 is a gradient."""
        slot = NONE
        if dtype == "int16":
            slot = self.tensors[at].slot if at is not None else self.slots
            self.slots += at is None
        offset = self.arena_len if at is None else self.tensors[at].offset
        self.tensors.append(BlobTensor(offset, *shape, dtype, zero, slot))
        self.arena_len = max(self.arena_len, (offset + self.tensors[-1].nbytes + 7) // 8 * 8)
        return len(self.tensors) - 1

    def like(self, number: int, dtype: str) -> int:
        """Add a tensor of the shape of tensor ``number``: its mask, or its gradient."""
        return self.tensor(self.tensors[number].shape, dtype)

    def op(self, kind: str, tensors: Sequence[int], p: Sequence[int], flags: int = 0) -> None:
        """Add an operator."""
        rows = [*tensors, *[NONE] * (6 - len(tensors))]
        self.ops.append(BlobOp(kind, flags, rows, [*p, *[0] * (12 - len(p))]))

    def backward(self) -> None:
        """Say that the operators from here on are the backward ones."""
        self.n_forward = len(self.ops)

    def constant(self, data: bytes) -> int:
        """Add bytes to the constants section; return their offset."""
        offset = len(self.constants)
        self.constants += data + bytes(-len(data) % 4)
        return offset

    def records(self, weight: Array, bias: Array, real: Array) -> int:
        """Add forward records of int8 weight [O, ...] with the multipliers ``real`` [O]."""
        data = b""
        for row, b, r in zip(weight.reshape(len(weight), -1), bias, real, strict=True):
            head = np.array([b, *quantize_multiplier(float(r)), row.astype(int).sum()], "<i4")
            data += head.tobytes() + row.astype(np.int8).tobytes() + bytes(-row.size % 4)
        return self.constant(data)

    def transposed(self, weight: Array) -> int:
        """Add transposed records of int8 weight [O, kh, kw, I]."""
        rows = weight.astype(np.int8).transpose(3, 1, 2, 0).reshape(weight.shape[3], -1)
        return self.constant(b"".join(row.tobytes() + bytes(-row.size % 4) for row in rows))

    def scale_table(self, real: Array) -> tuple[int, int]:
        """Add a scale table; return (offset, exponent) of SCALE_GRAD."""
        top = int(np.frexp(np.max(np.abs(real)))[1])
        mantissas = np.round(np.asarray(real) * 2.0 ** (30 - top)).clip(max=2**30 - 1)
        return self.constant(mantissas.astype("<i4").tobytes()), top - 30

    def update_table(self, values: Array) -> int:
        """Add an update table of real values 1 / scale**2, 0 for a frozen channel."""
        return self.constant(np.stack(q30(values), axis=-1).astype("<i4").tobytes())

    def trained(self, values: Array) -> tuple[int, int, int]:
        """Add a trained parameter (int8 or int32); return (offset, accumulator offset, key)."""
        offset, accumulator = len(self.initial), self.accum_len
        raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
        self.initial += raw + bytes(-len(raw) % 4)
        self.accum_len += (values.size * (2 if values.dtype == np.int8 else 4) + 3) // 4 * 4
        self.keys += 1
        return offset, accumulator, self.keys - 1

    def indices(self, channels: Sequence[int]) -> int:
        """Add an index list; return its offset, good as a parameter of ``op`` only."""
        offset = _InTail(len(self.tail))
        self.tail += np.asarray(channels, "<u2").tobytes()
        return offset

    def blob(
        self, input: int, output: int, logits: int, n_classes: int = 0, lut: Array | None = None
    ) -> Blob:
        """Return the blob."""
        exponents = self.tensor((1, 1, max(1, self.slots)), "int32")
        n_forward = self.n_forward or len(self.ops)
        most = self.tensors[logits].c
        blob = Blob(
            4 * (n_forward < len(self.ops)),
            self.arena_len, len(self.initial), self.accum_len, 16384,
            n_forward, input, output, logits, exponents, most, n_classes or most,
            self.tensors, self.ops, b"", 0, bytes(self.constants), bytes(self.initial),
        )  # fmt: skip
        start = blob.tensors_len
        for op in self.ops:
            op.p = [start + p if isinstance(p, _InTail) else int(p) for p in op.p]
        if lut is not None:
            blob.lut_offset = start + len(self.tail)
            self.tail += lut.astype(np.int8).tobytes()
        blob.tail = bytes(self.tail)
        return blob


def learner(seed: int = 0, classes: int = 4) -> Blob:
    """Return a network with one of nearly everything, every gradient included.

    x 8x8x3 -> conv 3x3 stride 2 -> a 4x4x8 -> depthwise 3x3, 4 channels trained -> b
    -> conv 1x1, 3 input channels trained -> c -> add a -> d -> mean -> e 1x1x8 -> reshape -> v
    -> dense, all trained -> logits -> softmax.
    """
    rng = np.random.default_rng(seed)
    n = Builder()
    zero = {"x": -128, "a": -11, "b": 7, "c": -3, "d": -20, "e": -20, "logits": 5}
    scale = {
        "x": 1 / 128,
        "a": 1 / 48,
        "b": 1 / 40,
        "c": 1 / 40,
        "d": 1 / 32,
        "e": 1 / 32,
        "logits": 1 / 16,
    }
    t, mask, g = {}, {}, {}
    for name, shape in {
        "x": (8, 8, 3), "a": (4, 4, 8), "b": (4, 4, 8), "c": (4, 4, 8), "d": (4, 4, 8),
        "e": (1, 1, 8), "logits": (1, 1, classes),
    }.items():  # fmt: skip
        t[name] = n.tensor(shape, zero=zero[name])
        if name != "x":
            mask[name], g[name] = n.like(t[name], "bits"), n.like(t[name], "int16")
    t["b3"] = n.tensor((4, 4, 3), zero=zero["b"])  # trained input channels of the 1x1
    t["a4"] = n.tensor((4, 4, 4), zero=zero["a"])  # trained channels of the depthwise
    g["a2"] = n.like(t["a"], "int16")  # the residual branch's
    # A reshape is a second row at the same place
    t["v"], g["v"] = (
        n.tensor((1, 1, 8), zero=zero["e"], at=t["e"]),
        n.tensor((1, 1, 8), "int16", at=g["e"]),
    )
    probabilities = n.tensor((1, 1, classes), zero=-128)

    def weights(*shape: int) -> tuple[Array, Array]:
        return rng.integers(-127, 128, shape).astype(np.int8), rng.uniform(0.003, 0.009, shape[0])

    w1, s1 = weights(8, 3, 3, 3)
    w2, s2 = weights(8, 3, 3)
    w3, s3 = weights(8, 1, 1, 8)
    w4, s4 = weights(classes, 1, 1, 8)
    b1, b2, b3, b4 = (rng.integers(-2000, 2000, o).astype(np.int32) for o in (8, 8, 8, classes))
    few, some = [1, 2, 5, 6], [0, 3, 7]
    at2, acc2, key2 = n.trained(w2[few])
    at3, acc3, key3 = n.trained(np.ascontiguousarray(w3[..., some]))
    at4, acc4, key4 = n.trained(w4)
    fractions4 = n.trained(np.zeros_like(w4))[0]
    bias = {name: n.trained(b) for name, b in (("b", b2), ("c", b3), ("logits", b4))}
    some_at, few_at = n.indices(some), n.indices(few)
    three, one = geometry((3, 3), (1, 1), (1, 1)), geometry((1, 1))

    def real(inp: str, out: str, s: Array) -> Array:
        return scale[inp] * s / scale[out]

    relu = [zero["a"], 127]
    full = [-128, 127]
    r1 = n.records(w1, b1, real("x", "a", s1))
    r2, r3 = n.records(w2, b2, real("a", "b", s2)), n.records(w3, b3, real("b", "c", s3))
    r4 = n.records(w4, b4, real("e", "logits", s4))
    none = [-1, -1, -1, 0]
    n.op("conv", [t["x"], t["a"], mask["a"]], [*geometry((3, 3), (2, 2)), *relu, r1, *none])
    n.op("gather", [t["a"], t["a4"]], [few_at, 4], flags=TRAIN)
    n.op(
        "depthwise",
        [t["a"], t["b"], mask["b"]],
        [*three, zero["b"], 127, r2, at2, bias["b"][0], few_at, 4],
    )
    n.op("gather", [t["b"], t["b3"]], [some_at, 3], flags=TRAIN)
    n.op("conv", [t["b"], t["c"], mask["c"]], [*one, *full, r3, at3, bias["c"][0], some_at, 3])
    twice = 2 * max(scale["a"], scale["c"])
    sides = [quantize_multiplier(scale[k] / twice) for k in "ac"]
    total = quantize_multiplier(twice / (2**20 * scale["d"]))
    n.op("add", [t["a"], t["c"], t["d"], mask["d"]], [*sides[0], *sides[1], *total, *full])
    m, s = quantize_multiplier(scale["d"] / scale["e"])
    n.op("mean", [t["d"], t["e"], mask["e"]], [m, s - 4, *full])
    n.op(
        "conv",
        [t["v"], t["logits"], mask["logits"]],
        [*one, *full, r4, at4, bias["logits"][0], -1, 0, 1],
    )
    m, s = quantize_multiplier(scale["logits"] * 2**26)
    n.op("softmax", [t["logits"], probabilities], [m, s, -((31 << 26) >> s)], flags=INFER)
    n.backward()

    def scaled(name: str, out: str, r: Array) -> None:
        n.op("scale_grad", [g[name], mask[out], g[name]], [*n.scale_table(r), 14])

    def learn_bias(name: str, inp: str, s: Array) -> None:
        offset, accumulator, key = bias[name]
        n.op(
            "bias_update",
            [g[name]],
            [offset, n.update_table((scale[inp] * s) ** -2), accumulator, key],
        )

    fraction, exponent = np.frexp(scale["logits"])
    n.op("cross_entropy", [t["logits"], g["logits"]],
         [round(scale["logits"] * np.log2(np.e) * 65536), int(fraction * 2**15), exponent - 15],
    )  # fmt: skip
    scaled("logits", "logits", real("e", "logits", s4))
    n.op("conv_input_grad", [g["logits"], g["v"]], [*one, -1, at4, -1, 0, 0])
    n.op(
        "conv_weight_update",
        [g["logits"], t["v"]],
        [*one, at4, n.update_table(s4**-2.0), acc4, key4, -1, 0, fractions4],
    )
    learn_bias("logits", "e", s4)
    mantissa, exponent = q30(scale["d"] / scale["e"] / 16)
    n.op("mean_grad", [g["e"], mask["e"], g["d"]], [int(exponent), int(mantissa)])
    for side, out in (("a", "a2"), ("c", "c")):
        mantissa, exponent = q30(scale[side] / scale["d"])
        n.op("scale_grad", [g["d"], mask["d"], g[out]], [-1, int(exponent), 14, int(mantissa)])
    scaled("c", "c", real("b", "c", s3))
    n.op("conv_input_grad", [g["c"], g["b"]], [*one, n.transposed(w3), at3, some_at, 3, 0])
    n.op(
        "conv_weight_update",
        [g["c"], t["b3"]],
        [*one, at3, n.update_table(s3**-2.0), acc3, key3, -1, 0, -1],
    )
    learn_bias("c", "b", s3)
    scaled("b", "b", real("a", "b", s2))
    n.op("depthwise_input_grad", [g["b"], g["a"]], [*three, r2, at2, few_at, 4, 0])
    table = n.update_table(np.where(np.arange(8) == FROZEN, 0, s2**-2.0))
    update = [*three, at2, table, acc2, key2, few_at, 4, -1]
    n.op("depthwise_weight_update", [g["b"], t["a4"]], update)
    learn_bias("b", "a", s2)
    n.op("add_grads", [g["a"], g["a2"], g["a"]], [])
    lut = (np.arange(256) - 128).astype(np.int8)
    return n.blob(t["x"], probabilities, t["logits"], classes, lut)
