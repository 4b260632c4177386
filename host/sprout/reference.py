"""The arithmetic of a blob in plain numpy: every other executor must match it byte for byte.

Written to be read.  Every operator is one function of arrays and plain numbers, and stands next to
its gradient; ``Machine`` at the end only fetches parameters, calls them and stores results.
Everything is an integer: int64 arrays, wrapped to int32 where the specification (the docstring of
``blob``) says so.

Conventions.  Activations ``x`` are *centred*: the zero point is already subtracted, so a tap
outside the input is a plain 0.  Shapes are (h, w, c) for ``x`` and (oh, ow, o) for ``y`` and
``g``.  ``g`` are the int16 mantissas of a gradient, ``exponent`` its power of two.  Convolutions,
pools and their gradients all walk the kernel taps and see the input through ``window``: what the
forward pass reads there, the gradient adds to there.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .blob import (
    EXP2_POLY,
    EXP_ZERO,
    INFER,
    NONE,
    TRAIN,
    Blob,
    BlobOp,
    BlobTensor,
    forward_record_size,
    transposed_record_size,
)
from .graph import SproutError

Array = np.ndarray
NUMPY_TYPES = {"int8": np.int8, "int16": np.int16, "int32": np.int32}
GRADIENT_BITS = 14  # a gradient's mantissas never pass 2**14, so two of them add up inside int16
WEIGHT_LIMIT = 127
BIAS_LIMIT = STEP_LIMIT = 1 << 30
WEIGHT_FRACTION, BIAS_FRACTION = 22, 8  # fractional bits of an update step
ACCUMULATOR_FRACTION = 8
KEPT_FRACTION = 4  # bits of a weight below its LSB, where it has them


# -------------------------------------------------------------------------------------------------
# Integers


def wrap32(x: Array) -> Array:
    """Return int64 ``x`` reduced to what an int32 register would hold."""
    return np.asarray(x, np.int64).astype(np.int32).astype(np.int64)


def fits32(v: Array) -> Array:
    """Return the sums ``v`` of a gradient; OverflowError unless they fit int32, as promised."""
    if v.size and int(np.abs(v).max()) >> 31:
        raise OverflowError(
            "A gradient's sum does not fit int32: the compiler's range analysis is wrong."
        )
    return v


def rshift(x: Array, n: int) -> Array:
    """Return x / 2**n to the nearest integer, halves upwards; ``n`` >= 0, and past 62 gives 0."""
    x = np.asarray(x, np.int64)
    if n == 0:
        return x
    if n > 62:
        return np.zeros_like(x)
    return (x + (1 << (n - 1))) >> n


def bitlen(x: int) -> int:
    """Return the position of the highest set bit of ``x`` >= 0 plus 1, 0 for 0."""
    return int(x).bit_length()


def div_away(a: Array | int, n: Array | int) -> Array:
    """Return a / n to the nearest integer, halves away from zero; ``n`` >= 1."""
    a = np.asarray(a, np.int64)
    return np.sign(a) * ((np.abs(a) + np.asarray(n) // 2) // n)


def high_mul(a: Array, b: Array | int) -> Array:
    """Return a * b / 2**31 to the nearest integer, gemmlowp's SaturatingRoundingDoublingHighMul.

    Halves go upwards: the nudge and the truncating division of the specification come to this.
    int32 x int32 -> int32 in int64 arrays; a = b = -2**31, the one case that saturates, does not
    occur here.
    """
    return rshift(np.asarray(a, np.int64) * b, 31)


def divide_by_pot(x: Array, n: Array | int) -> Array:
    """Return x / 2**n, halves rounded away from zero: gemmlowp's RoundingDivideByPOT."""
    mask = (np.int64(1) << n) - 1
    return (x >> n) + ((x & mask) > (mask >> 1) + (x < 0))


def mbqm(x: Array, multiplier: Array | int, shift: Array | int) -> Array:
    """Return x * multiplier / 2**31 * 2**shift: TFLite's MultiplyByQuantizedMultiplier.

    Rounds twice.  ``x`` int32 in int64; one ``multiplier`` and ``shift`` per channel or for all.
    """
    shift = np.clip(shift, -31, 30)
    y = wrap32(np.asarray(x, np.int64) << np.maximum(shift, 0))
    return divide_by_pot(high_mul(y, multiplier), np.maximum(-shift, 0))


def once(x: Array, multiplier: Array | int, shift: Array | int) -> Array:
    """Return x * multiplier / 2**31 * 2**shift rounded a single time, halves away from zero.

    What TFLite's FULLY_CONNECTED does, there in float64.
    """
    v, down = np.asarray(x, np.int64) * multiplier, 31 - np.clip(shift, -31, 30)
    return np.sign(v) * ((np.abs(v) + (np.int64(1) << (down - 1))) >> down)


def normalize(v: Array, bits: int, exponent: int, least_shift: int = 0) -> tuple[Array, int]:
    """Return (q, E): q * 2**E is v * 2**exponent, rounded so that |q| <= 2**bits.

    ``least_shift`` bits at least are dropped.  E is EXP_ZERO if ``v`` is all 0.
    """
    top = int(np.abs(v).max())
    if top == 0:
        return np.zeros_like(v), EXP_ZERO
    s = max(least_shift, bitlen(top) - bits)
    return rshift(v, s), exponent + s


def clamp(v: Array, low: int, high: int) -> tuple[Array, Array]:
    """Return (v limited to [low, high], mask of the elements inside, ends included)."""
    return np.clip(v, low, high), (v >= low) & (v <= high)


def masked(g: Array, mask: Array | None) -> Array:
    """Return ``g`` with 0 where the forward value was saturated; no mask lets everything pass."""
    g = g.astype(np.int64)
    return g if mask is None else np.where(mask, g, 0)


# -------------------------------------------------------------------------------------------------
# Windows


class Geometry(NamedTuple):
    """Kernel, stride and top-left padding of a sliding window."""

    kh: int
    kw: int
    sh: int
    sw: int
    top: int
    left: int

    @staticmethod
    def unpack(p0: int, p1: int) -> Geometry:
        """Take the packed parameters p0 and p1 of an operator apart."""
        return Geometry(
            p0 & 255, p0 >> 8 & 255, p0 >> 16 & 255, p0 >> 24 & 255, p1 & 255, p1 >> 8 & 255
        )

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Return every (ky, kx) of the kernel in the order of the records."""
        return [(ky, kx) for ky in range(self.kh) for kx in range(self.kw)]


def bordered(x: Array, geo: Geometry, oh: int, ow: int, fill: int = 0) -> Array:
    """Return ``x`` (h, w, c) in a border of ``fill`` that holds every tap of (oh, ow) windows."""
    h, w, c = x.shape
    rows = max(geo.top + h, (oh - 1) * geo.sh + geo.kh)
    columns = max(geo.left + w, (ow - 1) * geo.sw + geo.kw)
    out = np.full((rows, columns, c), fill, x.dtype)
    inside(out, geo, h, w)[...] = x
    return out


def inside(padded: Array, geo: Geometry, h: int, w: int) -> Array:
    """Return the view (h, w, c) of a bordered array that is the input itself."""
    return padded[geo.top : geo.top + h, geo.left : geo.left + w]


def window(padded: Array, geo: Geometry, ky: int, kx: int, oh: int, ow: int) -> Array:
    """Return the view (oh, ow, c) of a bordered array that tap (ky, kx) of each output sees."""
    return padded[
        ky : ky + (oh - 1) * geo.sh + 1 : geo.sh, kx : kx + (ow - 1) * geo.sw + 1 : geo.sw
    ]


def tap_counts(h: int, w: int, geo: Geometry, oh: int, ow: int) -> Array:
    """Return how many taps of each window lie inside an (h, w) input, int64 (oh, ow, 1)."""
    ones = bordered(np.ones((h, w, 1), np.int64), geo, oh, ow)
    return np.sum([window(ones, geo, ky, kx, oh, ow) for ky, kx in geo.taps], axis=0)


# -------------------------------------------------------------------------------------------------
# Convolution
#
# numpy multiplies integer matrices without BLAS, some fifty times slower than floats.  float64 is
# exact here: products stay below 2**23 and a sum of k of them below k * 2**23 < 2**53 for any k
# under 2**30, so no partial sum is ever rounded, in whatever order BLAS adds.


def conv(x: Array, weight: Array, geo: Geometry, oh: int, ow: int) -> Array:
    """Return the sums (oh, ow, O) of x (h, w, I) with weight [O, kh, kw, I]."""
    xf, wf = bordered(x.astype(np.float64), geo, oh, ow), weight.astype(np.float64)
    y = np.zeros((oh, ow, weight.shape[0]))
    for ky, kx in geo.taps:
        y += window(xf, geo, ky, kx, oh, ow) @ wf[:, ky, kx].T
    return y.astype(np.int64)


def conv_input_grad(g: Array, weight: Array, geo: Geometry, h: int, w: int) -> Array:
    """Return dx (h, w, I) = sum of g (oh, ow, O) * weight over windows and output channels.

    The adjoint of ``conv`` in x.
    """
    oh, ow, _ = g.shape
    gf, wf = g.astype(np.float64), weight.astype(np.float64)
    dx = bordered(np.zeros((h, w, weight.shape[3])), geo, oh, ow)
    for ky, kx in geo.taps:
        window(dx, geo, ky, kx, oh, ow)[...] += gf @ wf[:, ky, kx]
    return inside(dx, geo, h, w).astype(np.int64)


def conv_weight_grad(g: Array, x: Array, geo: Geometry) -> Array:
    """Return dw [O, kh, kw, I] = sum of g (oh, ow, O) * x (h, w, I) over pixels.

    The adjoint of ``conv`` in the weight.
    """
    oh, ow, o = g.shape
    xf, gf = bordered(x.astype(np.float64), geo, oh, ow), g.reshape(-1, o).astype(np.float64)
    dw = np.zeros((o, geo.kh, geo.kw, x.shape[2]), np.int64)
    for ky, kx in geo.taps:
        dw[:, ky, kx] = gf.T @ window(xf, geo, ky, kx, oh, ow).reshape(oh * ow, -1)
    return dw


# Depthwise: output channel c reads input channel c // multiplier, multiplier = outputs / inputs.


def depthwise(x: Array, weight: Array, geo: Geometry, oh: int, ow: int) -> Array:
    """Return the sums (oh, ow, C) of x (h, w, C / multiplier) with weight [C, kh, kw]."""
    c = weight.shape[0]
    padded = bordered(np.repeat(x.astype(np.int64), c // x.shape[2], axis=2), geo, oh, ow)
    y = np.zeros((oh, ow, c), np.int64)
    for ky, kx in geo.taps:
        y += window(padded, geo, ky, kx, oh, ow) * weight[:, ky, kx].astype(np.int64)
    return y


def depthwise_input_grad(
    g: Array, weight: Array, geo: Geometry, h: int, w: int, c_in: int
) -> Array:
    """Return dx (h, w, c_in) = sum of g (oh, ow, C) * weight: the adjoint in x."""
    oh, ow, c = g.shape
    dx = bordered(np.zeros((h, w, c), np.int64), geo, oh, ow)
    for ky, kx in geo.taps:
        window(dx, geo, ky, kx, oh, ow)[...] += g.astype(np.int64) * weight[:, ky, kx]
    return inside(dx, geo, h, w).reshape(h, w, c_in, c // c_in).sum(axis=3)


def depthwise_weight_grad(g: Array, x: Array, geo: Geometry) -> Array:
    """Return dw [C, kh, kw] = sum of g (oh, ow, C) * x over pixels: the adjoint in the weight."""
    oh, ow, c = g.shape
    padded = bordered(np.repeat(x.astype(np.int64), c // x.shape[2], axis=2), geo, oh, ow)
    dw = np.zeros((c, geo.kh, geo.kw), np.int64)
    for ky, kx in geo.taps:
        dw[:, ky, kx] = (g * window(padded, geo, ky, kx, oh, ow)).sum(axis=(0, 1))
    return dw


# -------------------------------------------------------------------------------------------------
# Addition


def add(a: Array, b: Array, p: list[int], zero_point: int) -> Array:
    """Return the requantised sum (before the clamp) of centred a and b of one shape; p0 to p5."""
    scaled_a = mbqm(a.astype(np.int64) << 20, p[0], p[1])
    scaled_b = mbqm(b.astype(np.int64) << 20, p[2], p[3])
    return zero_point + mbqm(wrap32(scaled_a + scaled_b), p[4], p[5])


def add_grads(a: Array, ea: int, b: Array, eb: int) -> tuple[Array, int]:
    """Return (q, E), the sum of the gradients a * 2**ea and b * 2**eb of two consumers.

    Halved at once: so |q| <= 2**14 holds without a look at the values.  Ties go to even; upwards,
    they would pull every element of every sum the same way.
    """
    if ea == EXP_ZERO and eb == EXP_ZERO:
        return np.zeros(a.shape, np.int64), EXP_ZERO
    e = max(ea, eb)
    total = rshift(a, e - ea) + rshift(b, e - eb)
    return (total + (total >> 1 & 1)) >> 1, e + 1


# -------------------------------------------------------------------------------------------------
# Pooling


def average_pool(x: Array, geo: Geometry, oh: int, ow: int) -> Array:
    """Return the rounded means (oh, ow, c) over the taps inside x (h, w, c), *not* centred."""
    padded = bordered(x.astype(np.int64), geo, oh, ow)
    total = np.sum([window(padded, geo, ky, kx, oh, ow) for ky, kx in geo.taps], axis=0)
    return div_away(total, tap_counts(x.shape[0], x.shape[1], geo, oh, ow))


def average_pool_grad(g: Array, geo: Geometry, h: int, w: int) -> Array:
    """Return dx (h, w, c) * 2**15: each window shares its masked g (oh, ow, c) among its taps."""
    oh, ow, c = g.shape
    share = g.astype(np.int64) * div_away(1 << 15, tap_counts(h, w, geo, oh, ow))
    dx = bordered(np.zeros((h, w, c), np.int64), geo, oh, ow)
    for ky, kx in geo.taps:
        window(dx, geo, ky, kx, oh, ow)[...] += share
    return inside(dx, geo, h, w)


def max_pool(x: Array, geo: Geometry, oh: int, ow: int) -> tuple[Array, Array]:
    """Return (maximum, ky * kw + kx of the first one) over the taps inside x (h, w, c)."""
    padded = bordered(x.astype(np.int64), geo, oh, ow, fill=-(1 << 31))
    taps = np.stack([window(padded, geo, ky, kx, oh, ow) for ky, kx in geo.taps])
    return taps.max(axis=0), taps.argmax(axis=0)


def max_pool_grad(g: Array, arg: Array, geo: Geometry, h: int, w: int) -> Array:
    """Return dx (h, w, c): each g (oh, ow, c) goes to the tap that was the maximum."""
    oh, ow, c = g.shape
    dx = bordered(np.zeros((h, w, c), np.int64), geo, oh, ow)
    for i, (ky, kx) in enumerate(geo.taps):
        window(dx, geo, ky, kx, oh, ow)[...] += np.where(arg == i, g, 0)
    return inside(dx, geo, h, w)


def mean(x: Array, rows: int, multiplier: int, shift: int, zero_point: int) -> Array:
    """Return the requantised mean (rows, 1, c) of centred x (h, w, c), before the clamp.

    It is that of each row if ``rows`` is h, and that of the whole map if it is 1.
    """
    axes = (0, 1) if rows == 1 else (1,)
    total = wrap32(x.astype(np.int64).sum(axis=axes, keepdims=True))
    return zero_point + mbqm(total, multiplier, shift)


def mean_grad(
    g: Array, multiplier: int, p_exponent: int, exponent: int, h: int, w: int
) -> tuple[Array, int]:
    """Return (q (h, w, c), E): every pixel gets masked g (1 or h, 1, c) * multiplier."""
    q, e = normalize(g.astype(np.int64) * multiplier, GRADIENT_BITS, exponent + p_exponent)
    return np.broadcast_to(q, (h, w, g.shape[2])), e


def pad(x: Array, top: int, left: int, value: int, h: int, w: int) -> Array:
    """Return x with borders of ``value`` up to (h, w, c)."""
    out = np.full((h, w, x.shape[2]), value, np.int64)
    out[top : top + x.shape[0], left : left + x.shape[1]] = x
    return out


def pad_grad(g: Array, top: int, left: int, h: int, w: int) -> Array:
    """Return the inside (h, w, c) of g."""
    return g[top : top + h, left : left + w]


# -------------------------------------------------------------------------------------------------
# Softmax as an output (gemmlowp's fixed point, TFLite's reference kernel)

_EXP_EIGHTH, _THIRD = 1895147668, 715827883  # exp(-1/8) and 1/3 in Q31
_EXP_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
"""exp(-2**k) in Q31 for k = -2 .. 4."""


def shift_left_saturating(x: Array, n: int) -> Array:
    """Return x * 2**n limited to int32."""
    return np.clip(np.asarray(x, np.int64) << n, -(1 << 31), (1 << 31) - 1)


def exp_on_negative(a: Array) -> Array:
    """Return exp(a) in Q31 for a <= 0 in Q26 (5 integer bits), as gemmlowp's fixedpoint.h does.

    -a is split into a multiple of 1/4 and a rest in (0, 1/4].  The rest goes through the Taylor
    series of order 4 about -1/8; each bit of the multiple contributes a factor exp(-2**k).
    """
    quarter = 1 << 24
    rest = (a & (quarter - 1)) - quarter
    x = shift_left_saturating(rest, 5) + (1 << 28)  # Q31, about -1/8
    x2 = high_mul(x, x)
    x3, x4 = high_mul(x2, x), high_mul(x2, x2)
    # x**2/2 + x**3/6 + x**4/24
    tail = divide_by_pot(high_mul(divide_by_pot(x4, 2) + x3, _THIRD) + x2, 1)
    result = _EXP_EIGHTH + high_mul(x + tail, _EXP_EIGHTH)
    multiple = rest - a
    for k, factor in enumerate(_EXP_POWERS):
        result = np.where(multiple >> (24 + k) & 1, high_mul(result, factor), result)
    return np.where(a == 0, (1 << 31) - 1, result)


def one_over_one_plus(x: Array) -> Array:
    """Return 1 / (1 + x) in Q31 for x in [0, 1) in Q31.

    Three steps of Newton-Raphson, in Q29, for the reciprocal of half the denominator.
    """
    half = (x + (1 << 31)) >> 1  # gemmlowp's half sum with "one" = 2**31 - 1, rounded up
    y = 1515870810 + high_mul(half, -1010580540)  # 48/17 - 32/17 * half
    for _ in range(3):
        y = y + shift_left_saturating(high_mul(y, (1 << 29) - high_mul(half, y)), 2)
    return shift_left_saturating(y, 1)


def softmax(x: Array, multiplier: int, left_shift: int, diff_min: int) -> Array:
    """Return the softmax of int8 x over its last axis, int8 of scale 1/256 and zero point -128."""
    x = x.astype(np.int64)
    diff = x - x.max(axis=-1, keepdims=True)
    e = exp_on_negative(high_mul(np.maximum(diff, diff_min) << left_shift, multiplier))
    e = np.where(diff >= diff_min, e, 0)
    total = divide_by_pot(e, 12).sum(axis=-1, keepdims=True)  # Q19: 12 integer bits
    bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)  # bitlen of each
    headroom = 32 - bits
    scale = one_over_one_plus((total << headroom) - (1 << 31))
    v = divide_by_pot(high_mul(e, scale), 12 - headroom + 31 - 8) - 128
    return np.where(diff >= diff_min, np.clip(v, -128, 127), -128)


# -------------------------------------------------------------------------------------------------
# Gather, requantize and the scale between them


def gather(x: Array, channels: Array) -> Array:
    """Return the listed channels of x (h, w, c)."""
    return x[..., channels]


def requantize(x: Array, multiplier: int, shift: int, zero_point: int) -> Array:
    """Return centred x in another scale and zero point, before the clamp."""
    return zero_point + mbqm(x, multiplier, shift)


def scale_grad(g: Array, table: Array | int, bits: int, exponent: int) -> tuple[Array, int]:
    """Return (q, E) of masked g (h, w, c) times ``table``: Q30, one per channel or one for all."""
    return normalize(g.astype(np.int64) * table, bits, exponent)


# -------------------------------------------------------------------------------------------------
# Softmax cross-entropy as a loss


@dataclass
class Softmax:
    """exp(logit - max) of the classes in use, ready for gradient, loss and probabilities."""

    t: Array  # int64 [n], -log2 of e, Q16
    e: Array  # int64 [n], Q20; the largest is 2**20
    total: int  # sum of e
    x: int  # total = mantissa * 2**x with a mantissa of 16 bits
    r: int  # 2**31 // mantissa


def softmax_q20(logits: Array, p0: int) -> Softmax:
    """Return 2**-t for t = (max - logit) * p0, p0 = scale * log2(e) in Q16; logits int8 [n]."""
    t = (logits.max().astype(np.int64) - logits) * p0
    k, f = t >> 16, t & 65535
    r = np.full_like(t, EXP2_POLY[5])
    for coefficient in EXP2_POLY[4::-1]:
        r = coefficient + ((r * f) >> 16)
    e = (r >> 10) >> np.minimum(k, 31)
    total = int(e.sum())
    x = bitlen(total) - 16
    return Softmax(t, e, total, x, (1 << 31) // (total >> x))


def log2_q16(value: int) -> int:
    """Return log2 of ``value`` in [1, 2**31), Q16: each squaring of the mantissa yields a bit."""
    m, result = value << (31 - bitlen(value)), (bitlen(value) - 1) << 16
    for b in range(15, -1, -1):
        m = (m * m) >> 30
        if m >= 1 << 31:
            m >>= 1
            result += 1 << b
    return result


def cross_entropy(logits: Array, label: int, p0: int, p1: int, p2: int) -> tuple[int, Array, int]:
    """Return (loss, q [n], E): the loss of int8 logits [n], in nats Q16, and its gradient.

    The logits' scale is p1 * 2**p2; p0 is that times log2(e) in Q16.  The derivative by the
    integer logits is scale * (e / total - onehot).
    """
    soft = softmax_q20(logits, p0)
    loss = ((log2_q16(soft.total) - 20 * 65536 + int(soft.t[label])) * 45426) >> 16
    diff = soft.e.copy()  # S * (p - onehot)
    diff[label] -= soft.total
    a = max(0, bitlen(int(np.abs(diff).max())) - GRADIENT_BITS)
    m = (soft.r * p1) >> 15
    q, e = normalize(rshift(diff, a) * m, GRADIENT_BITS, a - 16 - soft.x + p2)
    return loss, q, e


def probabilities(logits: Array, p0: int) -> Array:
    """Return the softmax of int8 logits [n] in Q15."""
    soft = softmax_q20(logits, p0)
    return ((soft.e >> 5) * soft.r) >> (11 + soft.x)


# -------------------------------------------------------------------------------------------------
# Updates


def mix(x: Array) -> Array:
    """Return a bijection of u32 that mixes well (lowbias32 of Wellons' hash-prospector)."""
    x = np.asarray(x, np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def draw(seed: int, step: int, key: int, count: int) -> Array:
    """Return the random numbers, u32 in int64, of the first elements of trained tensor ``key``."""
    state = mix(_u32(seed + 0x9E3779B9 * (step + 1))) ^ _u32(key * 0x85EBCA6B + 1)
    elements = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9)
    return mix(mix(state) + elements).astype(np.int64)


def _u32(x: int) -> Array:
    return np.array([x & 0xFFFFFFFF], np.uint32)


def update_steps(
    v: Array,
    exponent: int,
    mantissa: Array,
    table_exponent: Array,
    rate: tuple[int, int],
    fraction: int,
) -> Array:
    """Return the steps t, in 2**-fraction LSB: rate * gradient / scale**2, channel by channel.

    rate = m * 2**e, the gradient is v * 2**exponent with v [O, ...], and 1 / scale**2 is
    mantissa * 2**table_exponent, both [O].  Truncated downwards, limited to 2**30 either way.
    """
    per_channel = (-1,) + (1,) * (v.ndim - 1)
    product = v * ((mantissa >> 14) * rate[0]).reshape(per_channel)  # 32 by 28 bits
    sh = -(table_exponent + 14 + exponent + rate[1] + fraction).reshape(per_channel)
    right = product >> np.clip(sh, 0, 63)
    # What is 2**31 or more before or after the shift to the left ends at the limit anyway, so
    # neither factor need be larger than that.
    left = np.clip(product, -(1 << 31), 1 << 31) << np.clip(-sh, 0, 31)
    return np.clip(np.where(sh >= 0, right, left), -STEP_LIMIT, STEP_LIMIT)


def round_randomly(t: Array, bits: int, random: Array) -> Array:
    """Return t / 2**bits, rounded up with the probability of its fraction; ``random`` are u32."""
    return (t + (random >> (32 - bits))) >> bits


def step_weight(w: Array, t: Array, random: Array) -> Array:
    """Return int8 weights after the steps ``t`` (2**-22 LSB)."""
    return np.clip(w - round_randomly(t, WEIGHT_FRACTION, random), -WEIGHT_LIMIT, WEIGHT_LIMIT)


def step_with_fraction(w: Array, f: Array, t: Array, random: Array) -> tuple[Array, Array]:
    """Return int8 weights and their fractions (2**-4 LSB) after the steps ``t`` (2**-22 LSB)."""
    total = f + round_randomly(t, WEIGHT_FRACTION - KEPT_FRACTION, random)
    whole = (total + 8) >> KEPT_FRACTION
    return np.clip(w - whole, -WEIGHT_LIMIT, WEIGHT_LIMIT), total - (whole << KEPT_FRACTION)


def unpack_fractions(packed: Array, n: int) -> Array:
    """Return n signed 4-bit numbers as int64; the even ones are the low halves of the bytes."""
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:n].astype(np.int64)
    return (halves ^ 8) - 8


def pack_fractions(f: Array) -> Array:
    """Return the bytes (uint8) that ``unpack_fractions`` reads; an odd end leaves a half of 0."""
    halves = np.zeros((f.size + 1) // 2 * 2, np.uint8)
    halves[: f.size] = f.reshape(-1) & 15
    return halves[0::2] | halves[1::2] << 4


def step_bias(b: Array, t: Array, random: Array) -> Array:
    """Return int32 biases after the steps ``t`` (2**-8 LSB)."""
    return np.clip(b - round_randomly(t, BIAS_FRACTION, random), -BIAS_LIMIT, BIAS_LIMIT)


def accumulate_weight(a: Array, t: Array, random: Array) -> Array:
    """Return int16 accumulators (2**-8 LSB) after adding the weight steps ``t`` (2**-22 LSB)."""
    total = a + round_randomly(t, WEIGHT_FRACTION - ACCUMULATOR_FRACTION, random)
    return np.clip(total, -(1 << 15), (1 << 15) - 1)


def accumulate_bias(a: Array, t: Array) -> Array:
    """Return int32 accumulators (2**-8 LSB) after adding the bias steps ``t`` of the same unit."""
    return np.clip(a + t, -BIAS_LIMIT, BIAS_LIMIT)


def apply_accumulator(parameter: Array, a: Array, limit: int) -> tuple[Array, Array]:
    """Return (parameter, accumulator) after the whole LSBs went over; the remainder stays."""
    a = a.astype(np.int64)  # int16 has no room for the half
    n = (a + (1 << (ACCUMULATOR_FRACTION - 1))) >> ACCUMULATOR_FRACTION
    return np.clip(parameter - n, -limit, limit), a - (n << ACCUMULATOR_FRACTION)


# -------------------------------------------------------------------------------------------------
# Parameters in the file


class Records(NamedTuple):
    """Forward records of O output channels: int64 [O] each, weight int8 [O, taps]."""

    bias: Array
    multiplier: Array
    shift: Array
    weight: Array


def _rows(constants: bytes, offset: int, count: int, size: int) -> Array:
    return np.frombuffer(constants, np.uint8, count * size, offset).reshape(count, size)


def forward_records(constants: bytes, offset: int, channels: int, taps: int) -> Records:
    """Read forward records; the sums of weights in them, a help for kernels, are not used here."""
    rows = _rows(constants, offset, channels, forward_record_size(taps))
    head = np.ascontiguousarray(rows[:, :16]).view("<i4").astype(np.int64)
    return Records(head[:, 0], head[:, 1], head[:, 2], rows[:, 16 : 16 + taps].view(np.int8))


def transposed_records(constants: bytes, offset: int, channels: int, taps: int) -> Array:
    """Read transposed records: int8 [input channels, taps]."""
    return _rows(constants, offset, channels, transposed_record_size(taps))[:, :taps].view(np.int8)


def _place(row: BlobTensor) -> tuple[int, int, str]:
    return row.offset, row.nbytes, row.dtype


class _Update(NamedTuple):
    """What an update operator works on."""

    offset: int
    shape: tuple[int, ...]
    is_bias: bool
    mantissa: Array  # int64 [shape[0]]
    exponent: Array
    accumulator: int
    key: int
    fraction: int  # -1: none


# -------------------------------------------------------------------------------------------------
# The executor


class Machine:
    """Runs a blob: predicts, and learns from one sample at a time.

    Tensors are kept one numpy array per row of the tensor table, not in an arena, so a mistake in
    placement shows as a difference to the executors that have one.  The only thing read off the
    offsets is a reshape: it is no operator but a second row at the same place.  A row nobody has
    written since the pass began is read from the row of equal offset, size and type that was
    written last.

    ``trained`` and ``accumulators`` are laid out as on the board.  ``accumulate`` chooses where
    steps go.  With ``keep``, ``gradients`` maps a parameter's offset in ``trained`` to (v, E) of
    the last step: v int64 in the parameter's shape, v * 2.0**E the loss's derivative by its
    integer values.
    """

    def __init__(self, blob: Blob, accumulate: bool = False, keep: bool = False) -> None:
        self.blob = blob
        self.trained = bytearray(blob.initial.ljust(blob.trained_len, b"\0"))
        self.accumulators = bytearray(blob.accum_len)
        self.accumulate = accumulate
        self.gradients: dict[int, tuple[Array, int]] = {}
        self._keep = keep
        self._values: dict[int, Array] = {}
        self._exponents: dict[int, int] = {}
        self._written: list[int] = []  # rows in the order of writing, since the pass began
        self._learning = False
        # The run-time arguments of a step
        self._label, self._n_classes, self._loss = 0, blob.n_classes, 0
        self._rate, self._seed, self._step = (1, 0), 0, 0

    # What a user calls

    def set_input(self, x: Array) -> None:
        """Set the input: int8 values, or uint8 pixels, which go through the blob's input table."""
        x = np.asarray(x)
        if x.dtype == np.uint8:
            if self.blob.lut is None:
                raise SproutError(
                    "This blob has no input table: give int8 values instead of pixels."
                )
            x = self.blob.lut[x]
        if x.dtype != np.int8:
            raise SproutError(f"The input is {x.dtype}: give int8 values or uint8 pixels.")
        self._values[self.blob.input] = x.reshape(self.blob.tensors[self.blob.input].shape)

    def forward(self, learn: bool = False) -> Array:
        """Run the forward operators on the input; return the output, int8 (h, w, c).

        With ``learn``, save what gradients need and return the logits: what only a prediction
        needs, a final softmax for instance, is left out.
        """
        self._written = [self.blob.input]
        self._learning = learn
        for op in self.blob.ops[: self.blob.n_forward]:
            if not op.flags & (INFER if learn else TRAIN):
                self._run(op)
        return self.value(self.blob.logits if learn else self.blob.output)

    def step(
        self, x: Array, label: int, rate: tuple[int, int], seed: int, step: int, n_classes: int
    ) -> int:
        """Learn from one sample; return the loss before the step, in nats Q16.

        ``rate`` is (m, e) for a learning rate of m * 2**e with 1 <= m < 4096.
        """
        self._label, self._n_classes, self._rate = label, n_classes, rate
        self._seed, self._step = seed, step
        self.set_input(x)
        self.forward(learn=True)
        for op in self.blob.ops[self.blob.n_forward :]:
            if not op.flags & INFER:
                self._run(op)
        return self._loss

    def apply(self) -> None:
        """Move the whole LSBs of all accumulators into the parameters; the remainders stay."""
        for op in self.blob.ops:
            if op.kind in ("bias_update", "conv_weight_update", "depthwise_weight_update"):
                u = self._update_of(op)
                parameter, a = self._parameter(u), self._accumulator(u)
                live = self._live(u)
                limit = BIAS_LIMIT if u.is_bias else WEIGHT_LIMIT
                new, rest = apply_accumulator(parameter, a, limit)
                parameter[...], a[...] = np.where(live, new, parameter), np.where(live, rest, a)

    def probabilities(self, n_classes: int, p0: int) -> Array:
        """Return the last pass's probabilities of the classes, Q15; p0 as in CROSS_ENTROPY."""
        return probabilities(self.value(self.blob.logits).ravel()[:n_classes], p0)

    def digest(self) -> str:
        """Return the SHA-256 of the trained bytes, in hex."""
        return hashlib.sha256(self.trained).hexdigest()

    def value(self, number: int) -> Array:
        """Return tensor ``number`` (h, w, c): int8, int16 or bool for a mask."""
        row = self.blob.tensors[number]
        if number in self._written:
            return self._values[number]
        for other in reversed(self._written):
            source = self.blob.tensors[other]
            if _place(source) == _place(row):
                return self._values[other].reshape(row.shape)
        raise SproutError(
            f"Tensor {number} is read before anything was written there: compile again."
        )

    def exponent(self, slot: int) -> int:
        """Return the power of two of the gradient tensors with this exponent slot."""
        return self._exponents[slot]

    # Tensors

    def _store(self, number: int, values: Array) -> None:
        """Write a tensor; OverflowError if a value does not fit, which the blob rules out."""
        if number == NONE:
            return
        row = self.blob.tensors[number]
        kind = bool if row.dtype == "bits" else NUMPY_TYPES[row.dtype]
        stored = np.broadcast_to(values, row.shape).astype(kind)
        if not np.array_equal(stored, values):
            raise OverflowError(f"Tensor {number} ({row.dtype}) cannot hold its values.")
        self._values[number] = stored
        if number in self._written:
            self._written.remove(number)
        self._written.append(number)

    def _store_gradient(self, number: int, q: Array, exponent: int) -> None:
        self._store(number, q)
        self._exponents[self.blob.tensors[number].slot] = exponent

    def _gradient(self, number: int) -> tuple[Array, int]:
        return self.value(number), self._exponents[self.blob.tensors[number].slot]

    def _centred(self, number: int) -> Array:
        return self.value(number).astype(np.int64) - self.blob.tensors[number].zero_point

    def _mask(self, number: int) -> Array | None:
        return None if number == NONE else self.value(number)

    # Parameters

    def _list(self, offset: int, count: int, every: int) -> Array:
        """Return an index list, or all channels for -1."""
        return np.arange(every) if offset < 0 else self.blob.indices(offset, count)

    def _view(self, memory: bytearray, offset: int, shape: tuple[int, ...], dtype: type) -> Array:
        flat = np.frombuffer(memory, np.dtype(dtype).newbyteorder("<"), math.prod(shape), offset)
        return flat.reshape(shape)

    def _weight(
        self, frozen: Array | None, shape: tuple[int, ...], at: int, where: tuple[Any, ...]
    ) -> Array:
        """Return a layer's weight, int8 ``shape``: the frozen one with the trained part put in."""
        weight = np.zeros(shape, np.int8) if frozen is None else frozen.reshape(shape).copy()
        if at >= 0:
            weight[where] = self._view(self.trained, at, weight[where].shape, np.int8)
        return weight

    def _table(self, offset: int, channels: int) -> Array:
        return np.frombuffer(self.blob.constants, "<i4", channels, offset).astype(np.int64)

    def _update_of(self, op: BlobOp) -> _Update:
        """Take an update operator apart."""
        row, p = self.blob.tensors[op.t[0]], op.p
        shape: tuple[int, ...]
        if op.kind == "bias_update":
            parameter, table, accumulator, key = p[:4]
            shape, channels, fraction = (row.c,), np.arange(row.c), -1
        else:
            geo, x = Geometry.unpack(p[0], p[1]), self.blob.tensors[op.t[1]]
            parameter, table, accumulator, key = p[2:6]
            fraction = p[8]
            if op.kind == "conv_weight_update":
                shape, channels = (row.c, geo.kh, geo.kw, x.c), np.arange(row.c)
            else:
                channels = self._list(p[6], p[7], row.c)
                shape = (len(channels), geo.kh, geo.kw)
        entries = self._table(table, 2 * row.c).reshape(-1, 2)[channels]
        is_bias = op.kind == "bias_update"
        mantissa, exponent = entries.T
        return _Update(
            parameter, shape, is_bias, mantissa, exponent, accumulator, key, fraction
        )  # fmt: skip

    def _parameter(self, u: _Update) -> Array:
        return self._view(self.trained, u.offset, u.shape, np.int32 if u.is_bias else np.int8)

    def _accumulator(self, u: _Update) -> Array:
        return self._view(
            self.accumulators, u.accumulator, u.shape, np.int32 if u.is_bias else np.int16
        )

    def _live(self, u: _Update) -> Array:
        """Return which channels learn, in a shape that broadcasts against the parameter."""
        return (u.mantissa != 0).reshape((-1,) + (1,) * (len(u.shape) - 1))

    def _update(self, op: BlobOp, v: Array, exponent: int) -> None:
        """Step a parameter, or add to its accumulator; ``v`` int64 in the parameter's shape."""
        u = self._update_of(op)
        if self._keep:
            self.gradients[u.offset] = (v, exponent)
        if exponent == EXP_ZERO:
            return
        fraction = BIAS_FRACTION if u.is_bias else WEIGHT_FRACTION
        t = update_steps(v, exponent, u.mantissa, u.exponent, self._rate, fraction)
        random = draw(self._seed, self._step, u.key, t.size).reshape(t.shape)
        if u.fraction >= 0 and not self.accumulate:
            target = self._parameter(u)
            packed = self._view(self.trained, u.fraction, ((t.size + 1) // 2,), np.uint8)
            fractions = unpack_fractions(packed, t.size).reshape(t.shape)
            new, left = step_with_fraction(target, fractions, t, random)
            packed[:] = pack_fractions(np.where(self._live(u), left, fractions))
        elif not self.accumulate:
            target = self._parameter(u)
            new = (step_bias if u.is_bias else step_weight)(target, t, random)
        else:
            target = self._accumulator(u)
            new = accumulate_bias(target, t) if u.is_bias else accumulate_weight(target, t, random)
        target[...] = np.where(self._live(u), new, target)

    # Operators: fetch, compute, store

    def _run(self, op: BlobOp) -> None:
        getattr(self, "_" + op.kind)(op)

    def _shape(self, number: int) -> tuple[int, int, int]:
        return self.blob.tensors[number].shape

    def _store_clamped(self, y: int, mask: int, v: Array, limits: list[int]) -> None:
        """Store a forward result limited to [low, high] and, when learning, its mask."""
        values, was_inside = clamp(v, *limits)
        self._store(y, values)
        if self._learning:
            self._store(mask, was_inside)

    def _store_sums(self, op: BlobOp, records: Records, sums: Array) -> None:
        """Finish a convolution: bias, requantisation, zero point, clamp."""
        (y, mask), p = op.t[1:3], op.p
        bias = records.bias
        if p[6] >= 0:
            bias = self._view(self.trained, p[6], bias.shape, np.int32)
        scale = once if p[9] else mbqm
        v = scale(wrap32(sums + bias), records.multiplier, records.shift)
        self._store_clamped(y, mask, self.blob.tensors[y].zero_point + v, p[2:4])

    def _conv(self, op: BlobOp) -> None:
        (x, y), p = op.t[:2], op.p
        geo, (oh, ow, o), c = Geometry.unpack(p[0], p[1]), self._shape(y), self._shape(x)[2]
        records = forward_records(self.blob.constants, p[4], o, geo.kh * geo.kw * c)
        trained = self._list(p[7], p[8], c)
        shape = (o, geo.kh, geo.kw, c)
        weight = self._weight(records.weight, shape, p[5], (..., trained))
        self._store_sums(op, records, conv(self._centred(x), weight, geo, oh, ow))

    def _conv_input_grad(self, op: BlobOp) -> None:
        (g, e), dx, p = self._gradient(op.t[0]), op.t[1], op.p
        geo, o, (h, w, c) = Geometry.unpack(p[0], p[1]), g.shape[2], self._shape(dx)
        frozen = None
        if p[2] >= 0:
            rows = transposed_records(self.blob.constants, p[2], c, geo.kh * geo.kw * o)
            frozen = rows.reshape(c, geo.kh, geo.kw, o).transpose(3, 1, 2, 0)
        trained = self._list(p[4], p[5], c)
        weight = self._weight(frozen, (o, geo.kh, geo.kw, c), p[3], (..., trained))
        v = fits32(conv_input_grad(g, weight, geo, h, w))
        self._store_gradient(dx, *normalize(v, GRADIENT_BITS, e, p[6]))

    def _depthwise(self, op: BlobOp) -> None:
        (x, y), p = op.t[:2], op.p
        geo, (oh, ow, o) = Geometry.unpack(p[0], p[1]), self._shape(y)
        records = forward_records(self.blob.constants, p[4], o, geo.kh * geo.kw)
        trained = self._list(p[7], p[8], o)
        weight = self._weight(records.weight, (o, geo.kh, geo.kw), p[5], (trained,))
        self._store_sums(op, records, depthwise(self._centred(x), weight, geo, oh, ow))

    def _depthwise_input_grad(self, op: BlobOp) -> None:
        (g, e), dx, p = self._gradient(op.t[0]), op.t[1], op.p
        geo, o, (h, w, c) = Geometry.unpack(p[0], p[1]), g.shape[2], self._shape(dx)
        frozen = None
        if p[2] >= 0:
            frozen = forward_records(self.blob.constants, p[2], o, geo.kh * geo.kw).weight
        trained = self._list(p[4], p[5], o)
        weight = self._weight(frozen, (o, geo.kh, geo.kw), p[3], (trained,))
        v = fits32(depthwise_input_grad(g, weight, geo, h, w, c))
        self._store_gradient(dx, *normalize(v, GRADIENT_BITS, e, p[6]))

    def _bias_update(self, op: BlobOp) -> None:
        g, e = self._gradient(op.t[0])
        self._update(op, fits32(g.astype(np.int64).sum(axis=(0, 1))), e)

    def _conv_weight_update(self, op: BlobOp) -> None:
        (g, e), x = self._gradient(op.t[0]), self._centred(op.t[1])
        self._update(op, fits32(conv_weight_grad(g, x, Geometry.unpack(op.p[0], op.p[1]))), e)

    def _depthwise_weight_update(self, op: BlobOp) -> None:
        (g, e), x = self._gradient(op.t[0]), self._centred(op.t[1])
        if op.p[6] >= 0:
            g = gather(g, self.blob.indices(op.p[6], op.p[7]))
        self._update(op, fits32(depthwise_weight_grad(g, x, Geometry.unpack(op.p[0], op.p[1]))), e)

    def _add(self, op: BlobOp) -> None:
        a, b, y, mask = op.t[:4]
        v = add(self._centred(a), self._centred(b), op.p, self.blob.tensors[y].zero_point)
        self._store_clamped(y, mask, v, op.p[6:8])

    def _add_grads(self, op: BlobOp) -> None:
        (a, ea), (b, eb) = self._gradient(op.t[0]), self._gradient(op.t[1])
        self._store_gradient(op.t[2], *add_grads(a, ea, b, eb))

    def _average_pool(self, op: BlobOp) -> None:
        x, y, mask = op.t[:3]
        v = average_pool(self.value(x), Geometry.unpack(op.p[0], op.p[1]), *self._shape(y)[:2])
        self._store_clamped(y, mask, v, op.p[2:4])

    def _average_pool_grad(self, op: BlobOp) -> None:
        (g, e), dx = self._gradient(op.t[0]), op.t[2]
        geo, (h, w, _) = Geometry.unpack(op.p[0], op.p[1]), self._shape(dx)
        v = fits32(average_pool_grad(masked(g, self._mask(op.t[1])), geo, h, w))
        self._store_gradient(dx, *normalize(v, GRADIENT_BITS, e - 15))

    def _max_pool(self, op: BlobOp) -> None:
        x, y, arg = op.t[:3]
        v, first = max_pool(self.value(x), Geometry.unpack(op.p[0], op.p[1]), *self._shape(y)[:2])
        self._store_clamped(y, NONE, v, op.p[2:4])
        if self._learning:
            self._store(arg, first.astype(np.uint8).view(np.int8))

    def _max_pool_grad(self, op: BlobOp) -> None:
        (g, e), arg, dx = self._gradient(op.t[0]), self.value(op.t[1]).view(np.uint8), op.t[2]
        geo, (h, w, _) = Geometry.unpack(op.p[0], op.p[1]), self._shape(dx)
        v = fits32(max_pool_grad(g, arg, geo, h, w))
        self._store_gradient(dx, *normalize(v, GRADIENT_BITS, e))

    def _mean(self, op: BlobOp) -> None:
        x, y, mask = op.t[:3]
        rows, zero_point = self._shape(y)[0], self.blob.tensors[y].zero_point
        v = mean(self._centred(x), rows, op.p[0], op.p[1], zero_point)
        self._store_clamped(y, mask, v, op.p[2:4])

    def _mean_grad(self, op: BlobOp) -> None:
        (g, e), dx = self._gradient(op.t[0]), op.t[2]
        h, w, _ = self._shape(dx)
        q, e = mean_grad(masked(g, self._mask(op.t[1])), op.p[1], op.p[0], e, h, w)
        self._store_gradient(dx, q, e)

    def _pad(self, op: BlobOp) -> None:
        h, w, _ = self._shape(op.t[1])
        top, left, value = op.p[:3]
        self._store(op.t[1], pad(self.value(op.t[0]), top, left, value, h, w))

    def _pad_grad(self, op: BlobOp) -> None:
        (g, e), (h, w, _) = self._gradient(op.t[0]), self._shape(op.t[1])
        self._store_gradient(op.t[1], pad_grad(g, op.p[0], op.p[1], h, w), e)

    def _softmax(self, op: BlobOp) -> None:
        self._store(op.t[1], softmax(self.value(op.t[0]), *op.p[:3]))

    def _gather(self, op: BlobOp) -> None:
        self._store(op.t[1], gather(self.value(op.t[0]), self.blob.indices(*op.p[:2])))

    def _stream(self, op: BlobOp) -> None:
        """Nothing: its members, which follow, run as wholes here."""

    def _requantize(self, op: BlobOp) -> None:
        x, y, mask = op.t[:3]
        v = requantize(self._centred(x), op.p[0], op.p[1], self.blob.tensors[y].zero_point)
        self._store_clamped(y, mask, v, op.p[2:4])

    def _scale_grad(self, op: BlobOp) -> None:
        (g, e), (at, p_exponent, bits, one) = self._gradient(op.t[0]), op.p[:4]
        table = one if at < 0 else self._table(at, g.shape[2])
        v = masked(g, self._mask(op.t[1]))
        self._store_gradient(op.t[2], *scale_grad(v, table, bits, e + p_exponent))

    def _cross_entropy(self, op: BlobOp) -> None:
        logits = self.value(op.t[0]).ravel()
        self._loss, q, e = cross_entropy(logits[: self._n_classes], self._label, *op.p[:3])
        g = np.zeros(self._shape(op.t[1]), np.int64)
        g.ravel()[: self._n_classes] = q
        self._store_gradient(op.t[1], g, e)
