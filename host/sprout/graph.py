"""The one representation that every stage of the compiler passes along.

A ``Graph`` is a list of ``Op`` in execution order over ``Tensor`` values.  Front ends make it,
passes and autodiff turn it into another one, the memory planner gives its tensors addresses and
``blob`` writes it down.  Activations are NHWC with batch 1, so a shape is always ``(h, w, c)``; a
vector is ``(1, 1, c)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

INT8, INT16, INT32, BITS = "int8", "int16", "int32", "bits"


class SproutError(Exception):
    """A mistake the user can mend: one sentence naming the thing, the fault and the way out."""


@dataclass(eq=False)
class Tensor:
    """A value in the arena.

    ``shape`` is ``(h, w, c)``.  ``dtype`` is ``int8`` for activations, ``int16`` for gradients
    (with a run-time power-of-two exponent), ``bits`` for saturation masks (one bit an element) and
    ``int32`` for the executor's own tables.  ``scale`` and ``zero_point`` belong to int8
    activations: real = scale * (q - zero_point).  ``alias`` names the tensor whose bytes this one
    re-reads (reshape).  ``rows`` is how many rows the arena holds at a time of a tensor that
    passes through (``stream``), 0 for all of them.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: str = INT8
    scale: float = 0.0
    zero_point: int = 0
    alias: Tensor | None = None
    rows: int = 0
    index: int | None = None  # its number in the model file, where the file numbers tensors

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the arena."""
        if self.dtype == BITS:
            return (self.elements + 7) // 8
        h, w, c = self.shape
        return (self.rows or h) * w * c * {INT8: 1, INT16: 2, INT32: 4}[self.dtype]

    def root(self) -> Tensor:
        """The tensor that owns the bytes: itself unless it is an alias."""
        return self if self.alias is None else self.alias.root()

    def __repr__(self) -> str:
        return f"{self.name}:{self.dtype}{list(self.shape)}"


@dataclass(eq=False)
class SourceTensor:
    """Where a tensor of the model file is to be found in the Graph.

    ``shape`` is the file's.  ``order`` is None where ``tensor`` keeps the elements in the file's
    order, else the int64 position in ``tensor`` of each element of the file's tensor (a transpose
    that was folded away).
    """

    name: str
    shape: tuple[int, ...]
    tensor: Tensor
    order: np.ndarray | None = None

    def restore(self, value: np.ndarray) -> np.ndarray:
        """Return ``value``, the elements of ``tensor``, as the file's tensor."""
        flat = value.reshape(-1)
        return (flat if self.order is None else flat[self.order]).reshape(self.shape)


@dataclass(eq=False)
class Op:
    """One step of the schedule.

    ``kind`` is a name of ``blob.OPCODES``.  ``attrs`` holds plain numbers (``stride``,
    ``act_min``, ...), ``params`` numpy arrays (``weight``, ``bias``, ``weight_scales``), see the
    table below.

    ==================  ==========================  ===============================================
    kind                inputs -> outputs           attrs and params
    ==================  ==========================  ===============================================
    conv                x -> y                      weight int8 [O,KH,KW,I], bias int32 [O],
                                                    weight_scales float64 [O]; stride (h, w),
                                                    padding (top, left, bottom, right),
                                                    act_min, act_max; conv_index (its number among
                                                    the convolutions, from 0 in order)
    depthwise           x -> y                      weight int8 [C,KH,KW], C output channels; reads
                                                    input channel c // multiplier; rest as conv
    add                 a, b -> y                   act_min, act_max
    average_pool        x -> y                      kernel (h, w), stride, padding, act_min,
                                                    act_max
    max_pool            x -> y                      kernel, stride, padding, act_min, act_max
    mean                x -> y                      over h and w, or w alone (y keeps the rows):
                                                    mult, shift (see blob); act_min,
                                                    act_max
    pad                 x -> y                      padding (top, left, bottom, right), value
    requantize          x -> y                      act_min, act_max
    softmax             x -> y                      beta
    reshape             x -> y                      y aliases x; takes no time, is not emitted
    ==================  ==========================  ===============================================

    A fully connected layer is a ``conv`` with a 1x1 kernel over a (1, 1, K) input;
    ``attrs["layer"]`` keeps the importer's word for it.  ``act_min`` and ``act_max`` are int8
    limits, both inclusive.
    """

    kind: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    attrs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)
    name: str = ""

    def __repr__(self) -> str:
        return f"{self.kind}({self.name}: {self.inputs} -> {self.outputs})"


@dataclass(eq=False)
class Graph:
    """A forward network (from a front end) or a training schedule (from autodiff).

    ``input`` is int8; ``input_float`` says that the model file itself takes float32, which the
    host quantizes with ``input.scale`` and ``input.zero_point``; ``output_float`` likewise for the
    output. ``logits`` is the tensor the loss is taken on: the output, or the input of a final
    softmax. ``input_shape`` and ``output_shape`` are the model file's own, without the batch; ()
    means the tensor's. ``source_tensors`` maps the file's tensor numbers to the activations of the
    Graph (a front end that has none leaves it empty).
    """

    name: str
    ops: list[Op]
    input: Tensor
    output: Tensor
    logits: Tensor
    classes: list[str] = field(default_factory=list)
    max_classes: int = 0
    input_float: bool = False
    output_float: bool = False
    source: str = ""
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    source_tensors: dict[int, SourceTensor] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor once, in order of first appearance."""
        seen: dict[int, Tensor] = {id(self.input): self.input}
        for op in self.ops:
            for t in (*op.inputs, *op.outputs):
                seen.setdefault(id(t), t)
        return list(seen.values())

    @property
    def convs(self) -> list[Op]:
        """Convolutions of any sort (fully connected layers too) in order: the plan's numbering."""
        return [op for op in self.ops if op.kind in ("conv", "depthwise")]


def macs(op: Op) -> int:
    """Multiply-accumulates of a forward convolution, 0 for every other operator."""
    if op.kind not in ("conv", "depthwise"):
        return 0
    h, w, _ = op.outputs[0].shape
    return h * w * int(op.params["weight"].size)


def mean_multiplier(in_scale: float, out_scale: float, count: int) -> tuple[int, int]:
    """Return (multiplier, shift) that turn a sum of ``count`` elements into their mean in the
    output's scale.

    LiteRT's rule (reference/reduce.h, QuantizedMeanOrSum): the division by ``count`` goes into the
    multiplier, truncated, and as many left shifts as fit keep its precision.
    """
    multiplier, shift = quantize_multiplier(in_scale / out_scale)
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << extra) // count, shift - extra


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return (multiplier, shift) with real = multiplier / 2**31 * 2**shift, as TFLite's
    QuantizeMultiplier.

    The multiplier is 0 or in [2**30, 2**31); a shift below -31 gives (0, 0), TFLite's own rule.
    ``real`` is the product in float64 of the float32 scales (kernel_util.cc,
    PopulateConvolutionQuantizationParams).
    """
    if real == 0.0:
        return 0, 0
    mantissa, shift = np.frexp(real)
    q = int(np.floor(float(mantissa) * (1 << 31) + 0.5))  # round half away from zero: real > 0
    if q == 1 << 31:
        q //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return (1 << 31) - 1, 30
    return q, int(shift)


def add_multipliers(a: Tensor, b: Tensor, y: Tensor) -> list[tuple[int, int]]:
    """Return (multiplier, shift) of both sides of an ADD and of their sum, as TFLite scales it.

    Both sides are taken relative to twice the larger scale, 20 bits up (add.cc).
    """
    twice = 2 * max(a.scale, b.scale)
    reals = (a.scale / twice, b.scale / twice, twice / ((1 << 20) * y.scale))
    return [quantize_multiplier(real) for real in reals]
