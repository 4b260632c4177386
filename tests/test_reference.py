"""The reference arithmetic against definitions of another kind.

Fractions for the integers, floats for the functions, nested loops for the windows, inner products
for the gradients, LiteRT's own bytes for its softmax.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sprout import blob, reference
from sprout.blob import EXP_ZERO
from sprout.graph import SproutError, quantize_multiplier
from sprout.reference import Geometry, Machine

settings.register_profile("reference", max_examples=60, deadline=None)
settings.load_profile("reference")

int32s = st.integers(-(1 << 31), (1 << 31) - 1)
RATE = (64, -16)


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


# -- integers -------------------------------------------------------------------------------------


@given(int32s, st.integers(0, (1 << 31) - 1), st.integers(-40, 0))
def test_mbqm_rounds_twice_like_gemmlowp(x, multiplier, shift):
    doubled = half_up(Fraction(x * multiplier, 1 << 31))
    assert reference.mbqm(x, multiplier, shift) == half_away(
        Fraction(doubled, 1 << min(-shift, 31))
    )


@given(st.integers(-1000, 1000), st.integers(1 << 30, (1 << 31) - 1), st.integers(0, 20))
def test_mbqm_with_a_left_shift_is_the_rounded_product(x, multiplier, shift):
    exact = Fraction(x * multiplier << shift, 1 << 31)
    assert reference.mbqm(x, multiplier, shift) == half_up(exact)


@given(int32s, st.integers(0, (1 << 31) - 1), st.integers(-31, 30))
def test_mbqm_follows_the_sentence_of_the_specification(x, multiplier, shift):
    y = (x << max(shift, 0)) + (1 << 31) & 0xFFFFFFFF
    ab = (y - (1 << 31)) * multiplier
    nudge = 1 << 30 if ab >= 0 else 1 - (1 << 30)
    y = int(math.copysign(1, ab + nudge)) * (abs(ab + nudge) >> 31)
    e = max(-shift, 0)
    mask = (1 << e) - 1
    expected = (y >> e) + ((y & mask) > (mask >> 1) + (y < 0))
    assert reference.mbqm(x, multiplier, shift) == expected


@given(int32s, st.integers(0, (1 << 31) - 1), st.integers(-40, 30))
def test_once_rounds_once(x, multiplier, shift):
    exact = Fraction(x * multiplier, 1 << 31) * Fraction(2) ** max(shift, -31)
    assert reference.once(x, multiplier, shift) == half_away(exact)


@given(int32s, st.integers(0, 80))
def test_rshift_and_bitlen(x, n):
    assert reference.rshift(x, n) == (half_up(Fraction(x, 1 << n)) if n <= 62 else 0)
    assert (1 << reference.bitlen(abs(x))) > abs(x) >= (1 << reference.bitlen(abs(x))) // 2


@given(int32s, st.integers(1, 1 << 20))
def test_div_away(a, n):
    assert reference.div_away(a, n) == half_away(Fraction(a, n))


@given(
    st.lists(st.integers(-(1 << 45), 1 << 45), min_size=1, max_size=20),
    st.integers(7, 14),
    st.integers(-60, 20),
)
def test_normalize_keeps_the_value_and_the_bound(values, bits, exponent):
    v = np.array(values)
    q, e = reference.normalize(v, bits, exponent)
    if not v.any():
        assert e == EXP_ZERO
        assert not q.any()
        return
    assert np.abs(q).max() <= 1 << bits
    assert e == exponent or np.abs(q).max() >= 1 << (bits - 1)  # no bit is given away
    error = np.abs(q.astype(object) * (1 << (e - exponent)) - v)
    assert (2 * error <= 1 << (e - exponent)).all()


# -- convolutions ---------------------------------------------------------------------------------


@st.composite
def windows(draw, depthwise=False, pooling=False):
    """Return (rng, Geometry, (h, w, c), (oh, ow, o)), padding on every side included."""
    kh, kw, sh, sw = (draw(st.integers(1, 3)) for _ in range(4))
    top, left, bottom, right = (draw(st.integers(0, k - 1)) for k in (kh, kw, kh, kw))
    h, w = draw(st.integers(kh, 6)), draw(st.integers(kw, 6))
    c = draw(st.integers(1, 3))
    o = c * draw(st.integers(1, 2)) if depthwise else c if pooling else draw(st.integers(1, 4))
    out = (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    return rng, Geometry(kh, kw, sh, sw, top, left), (h, w, c), (*out, o)


def taps_inside(geo, shape, oy, ox):
    """Return every (ky, kx, y, x) of one window that lies inside the input, in order."""
    for ky, kx in itertools.product(range(geo.kh), range(geo.kw)):
        y, x = oy * geo.sh + ky - geo.top, ox * geo.sw + kx - geo.left
        if 0 <= y < shape[0] and 0 <= x < shape[1]:
            yield ky, kx, y, x


def pixels(shape):
    return itertools.product(*(range(n) for n in shape))


def inner(a, b):
    return int((a.astype(object) * b.astype(object)).sum())


@given(windows())
def test_conv_is_the_nested_loops_and_its_gradients_are_its_adjoints(case):
    rng, geo, (h, w, c), (oh, ow, o) = case
    x = rng.integers(-255, 256, (h, w, c))
    weight = rng.integers(-127, 128, (o, geo.kh, geo.kw, c)).astype(np.int8)
    expected = np.zeros((oh, ow, o), np.int64)
    for oy, ox, j in pixels(expected.shape):
        for ky, kx, iy, ix in taps_inside(geo, x.shape, oy, ox):
            for i in range(c):
                expected[oy, ox, j] += int(x[iy, ix, i]) * int(weight[j, ky, kx, i])
    y = reference.conv(x, weight, geo, oh, ow)
    np.testing.assert_array_equal(y, expected)

    # <g, conv(x, w)> = <dx(g, w), x> = <dw(g, x), w>, in integers
    g = rng.integers(-(1 << 14), (1 << 14) + 1, y.shape).astype(np.int16)
    assert inner(g, y) == inner(reference.conv_input_grad(g, weight, geo, h, w), x)
    assert inner(g, y) == inner(reference.conv_weight_grad(g, x, geo), weight)


@given(windows(depthwise=True))
def test_depthwise_is_the_nested_loops_and_its_gradients_are_its_adjoints(case):
    rng, geo, (h, w, c), (oh, ow, o) = case
    x = rng.integers(-255, 256, (h, w, c))
    weight = rng.integers(-127, 128, (o, geo.kh, geo.kw)).astype(np.int8)
    expected = np.zeros((oh, ow, o), np.int64)
    for oy, ox, j in pixels(expected.shape):
        for ky, kx, iy, ix in taps_inside(geo, x.shape, oy, ox):
            expected[oy, ox, j] += int(x[iy, ix, j // (o // c)]) * int(weight[j, ky, kx])
    y = reference.depthwise(x, weight, geo, oh, ow)
    np.testing.assert_array_equal(y, expected)

    g = rng.integers(-(1 << 14), (1 << 14) + 1, y.shape).astype(np.int16)
    assert inner(g, y) == inner(reference.depthwise_input_grad(g, weight, geo, h, w, c), x)
    assert inner(g, y) == inner(reference.depthwise_weight_grad(g, x, geo), weight)


def test_float64_matmul_is_exact_where_float32_is_not():
    x = np.full((1, 1, 4096), 255)
    weight = np.full((1, 1, 1, 4096), 127, np.int8)
    weight[..., 0] = 126
    y = reference.conv(x, weight, Geometry(1, 1, 1, 1, 0, 0), 1, 1)
    assert y.item() == 255 * (127 * 4096 - 1) > 1 << 24


# -- pools, mean, pad, add ------------------------------------------------------------------------


@given(windows(pooling=True))
def test_average_pool_and_its_gradient(case):
    rng, geo, shape, out = case
    x = rng.integers(-128, 128, shape).astype(np.int8)
    g = rng.integers(-(1 << 14), (1 << 14) + 1, out).astype(np.int16)
    y, dx = np.zeros(out, np.int64), np.zeros(shape, np.int64)
    for oy, ox, c in pixels(out):
        at = [(iy, ix, c) for *_, iy, ix in taps_inside(geo, shape, oy, ox)]
        y[oy, ox, c] = half_away(Fraction(sum(int(x[i]) for i in at), len(at)))
        for i in at:
            dx[i] += int(g[oy, ox, c]) * half_away(Fraction(1 << 15, len(at)))
    np.testing.assert_array_equal(reference.average_pool(x, geo, *out[:2]), y)
    np.testing.assert_array_equal(reference.average_pool_grad(g, geo, *shape[:2]), dx)


@given(windows(pooling=True))
def test_max_pool_and_its_gradient(case):
    rng, geo, shape, out = case
    x = rng.integers(-3, 3, shape).astype(np.int8)  # few values: many ties
    g = rng.integers(-(1 << 14), (1 << 14) + 1, out).astype(np.int16)
    y, arg, dx = np.zeros(out, int), np.zeros(out, int), np.zeros(shape, int)
    for oy, ox, c in pixels(out):
        taps = list(taps_inside(geo, shape, oy, ox))
        ky, kx, iy, ix = max(taps, key=lambda tap: x[tap[2], tap[3], c])  # the first, if several
        y[oy, ox, c], arg[oy, ox, c] = x[iy, ix, c], ky * geo.kw + kx
        dx[iy, ix, c] += g[oy, ox, c]
    got_y, got_arg = reference.max_pool(x, geo, *out[:2])
    np.testing.assert_array_equal(got_y, y)
    np.testing.assert_array_equal(got_arg, arg)
    np.testing.assert_array_equal(reference.max_pool_grad(g, arg, geo, *shape[:2]), dx)


def test_mean_and_its_gradient():
    rng = np.random.default_rng(0)
    x = rng.integers(-255, 256, (5, 4, 30))
    multiplier, shift = quantize_multiplier(0.37)
    y = reference.mean(x, 1, (multiplier << 4) // 20, shift - 4, zero_point=9)
    assert np.abs(y - 9 - 0.37 * x.mean(axis=(0, 1))).max() <= 0.501

    g = rng.integers(-(1 << 14), 1 << 14, (1, 1, 30))
    mantissa, exponent = tiny.q30(0.37 / 20)
    q, e = reference.mean_grad(g, int(mantissa), int(exponent), -20, 5, 4)
    assert q.shape == x.shape
    expected = np.broadcast_to(g * 2.0**-20 * 0.37 / 20, x.shape)
    np.testing.assert_allclose(q * 2.0**e, expected, atol=2.0**e * 0.5001)


def test_pad_and_its_gradient():
    x = np.arange(12).reshape(2, 3, 2)
    y = reference.pad(x, 1, 2, -7, 4, 6)
    np.testing.assert_array_equal(y, np.pad(x, ((1, 1), (2, 1), (0, 0)), constant_values=-7))
    np.testing.assert_array_equal(reference.pad_grad(y, 1, 2, 2, 3), x)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 1 << 30))
def test_add_is_the_rounded_sum_of_reals(scale_a, scale_b, seed):
    a, b = np.random.default_rng(seed).integers(-255, 256, (2, 50))
    scale_y, twice = max(scale_a, scale_b), 2 * max(scale_a, scale_b)
    p = [scale_a / twice, scale_b / twice, twice / (2**20 * scale_y)]
    p = [n for real in p for n in quantize_multiplier(real)]
    y = reference.add(a, b, p, zero_point=-5)
    assert np.abs(y + 5 - (a * scale_a + b * scale_b) / scale_y).max() <= 0.501


@given(st.integers(-40, 0), st.integers(-40, 0), st.integers(0, 1 << 30))
def test_add_grads_adds_and_never_outgrows_int16(ea, eb, seed):
    a, b = np.random.default_rng(seed).integers(-(1 << 14), (1 << 14) + 1, (2, 50))
    q, e = reference.add_grads(a, ea, b, eb)
    assert np.abs(q).max() <= 1 << 14
    assert np.abs(q * 2.0**e - (a * 2.0**ea + b * 2.0**eb)).max() <= 0.75 * 2.0**e
    zero = np.zeros(50, np.int64)
    q, e = reference.add_grads(a, ea, zero, EXP_ZERO)
    np.testing.assert_array_equal(q, np.round(a / 2))  # ties to even
    assert e == ea + 1
    assert reference.add_grads(zero, EXP_ZERO, zero, EXP_ZERO)[1] == EXP_ZERO


@given(st.integers(0, 1 << 30), st.integers(7, 14))
def test_scale_grad_is_the_product(seed, bits):
    rng = np.random.default_rng(seed)
    g = rng.integers(-(1 << 14), (1 << 14) + 1, (3, 4, 5))
    real = rng.uniform(0.001, 3, 5)
    top = np.frexp(real.max())[1]
    table = np.round(real * 2.0 ** (30 - top)).astype(np.int64)
    q, e = reference.scale_grad(g, table, bits, -12 + top - 30)
    assert np.abs(q).max() <= 1 << bits
    assert np.abs(q * 2.0**e - g * 2.0**-12 * real).max() <= 0.51 * 2.0**e
    mask = rng.random(g.shape) < 0.5
    assert not reference.masked(g, mask)[~mask].any()


# -- softmax and loss -----------------------------------------------------------------------------


def softmax_parameters(scale, beta=1.0):
    multiplier, shift = quantize_multiplier(min(scale * beta * 2**26, 2**31 - 1))
    return multiplier, shift, -((31 << 26) >> shift)


def float_softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


@pytest.mark.parametrize(
    ("scale", "x", "y"),
    [  # mlperf_resnet8_cifar10, mlperf_vww_96 and mlperf_kws through LiteRT's reference kernel
        (
            0.17185351252555847,
            [-56, -63, -14, 5, 29, 16, -47, 19, -48, -65],
            [-128, -128, -128, -125, 68, -107, -128, -93, -128, -128],
        ),
        (0.014636218547821045, [76, -83], [105, -105]),
        (
            0.14469251036643982,
            [-15, -22, -55, -61, 47, 118, -49, -51, 1, -49, -82, 31],
            [-128, -128, -128, -128, -128, 127] + [-128] * 6,
        ),
    ],
)
def test_softmax_is_litert_s(scale, x, y):
    got = reference.softmax(np.array(x, np.int8), *softmax_parameters(scale))
    assert got.tolist() == y


@given(st.floats(0.001, 1), st.integers(1, 200), st.integers(0, 1 << 30))
def test_softmax_is_near_the_real_one(scale, n, seed):
    x = np.random.default_rng(seed).integers(-128, 128, n).astype(np.int8)
    y = reference.softmax(x, *softmax_parameters(scale))
    exact = np.minimum(float_softmax(x * scale) * 256 - 128, 127)
    assert np.abs(y - exact).max() <= 1


def loss_parameters(scale):
    fraction, exponent = math.frexp(scale)
    p1, p2 = min(round(fraction * 2**15), 2**15 - 1), exponent - 15
    return round(scale * math.log2(math.e) * 65536), p1, p2


@given(
    st.lists(st.integers(-128, 127), min_size=2, max_size=100), st.floats(0.002, 0.5), st.data()
)
def test_cross_entropy_is_the_float_one(values, scale, data):
    logits, label = np.array(values, np.int8), data.draw(st.integers(0, len(values) - 1))
    p0, p1, p2 = loss_parameters(scale)
    loss, q, e = reference.cross_entropy(logits, label, p0, p1, p2)
    p = float_softmax(logits * (p0 / 65536 / math.log2(math.e)))
    assert np.abs(q).max() <= 1 << 14
    gradient = (p - (np.arange(len(p)) == label)) * p1 * 2.0**p2
    # The largest gradient to 15 bits, and exp itself to 2**-20.
    tolerance = 2**-12 * np.abs(gradient).max() + 2**-18 * scale
    assert np.abs(q * 2.0**e - gradient).max() <= tolerance
    # A p below 2**-20 is 0, its loss is not: that is computed from t, not from e.
    assert abs(loss / 65536 - -np.log(p[label])) < 1e-3 + 1e-4 * -np.log(p[label])
    assert np.abs(reference.probabilities(logits, p0) / 2**15 - p).max() < 2e-4


def test_cross_entropy_of_a_certain_answer_is_no_gradient():
    loss, q, e = reference.cross_entropy(np.array([127, -128], np.int8), 0, *loss_parameters(0.5))
    assert (loss, e) == (0, EXP_ZERO)
    assert not q.any()


# -- updates --------------------------------------------------------------------------------------


def scalar_mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 500))
def test_draw_is_the_formula(seed, step, key):
    start = scalar_mix(seed + 0x9E3779B9 * (step + 1) & 0xFFFFFFFF)
    k = scalar_mix(start ^ (key * 0x85EBCA6B + 1 & 0xFFFFFFFF))
    expected = [scalar_mix(k + e * 0x9E3779B9 & 0xFFFFFFFF) for e in range(5)]
    assert reference.draw(seed, step, key, 5).tolist() == expected


def test_draws_are_uniform_and_unlike_at_the_next_step_and_tensor():
    u = np.stack([reference.draw(1, s, k, 1 << 14) for s in range(4) for k in range(4)]) / 2**32
    assert np.abs(u.mean(axis=1) - 0.5).max() < 5 * (1 / 12 / (1 << 14)) ** 0.5
    assert np.abs(np.corrcoef(u) - np.eye(16)).max() < 5 * (1 << 14) ** -0.5
    counts = np.bincount((u.ravel() * 256).astype(int), minlength=256)
    assert np.abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5


@given(
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.integers(-60, 10),
    st.integers(1 << 29, (1 << 30) - 1),
    st.integers(-60, 10),
    st.integers(1, 4095),
    st.integers(-30, 0),
    st.sampled_from([8, 22]),
)
def test_update_steps_are_the_product_to_sixteen_bits(v, e, mantissa, exponent, rm, re, fraction):
    steps = reference.update_steps(
        np.array([v]), e, np.array([mantissa]), np.array([exponent]), (rm, re), fraction
    )
    scale = Fraction(2) ** (e + exponent + re + fraction)
    truncated = math.floor(v * ((mantissa >> 14) * rm) * scale * 2**14)
    assert steps.item() == max(-(1 << 30), min(1 << 30, truncated))
    exact = v * mantissa * rm * scale
    if abs(exact) < 1 << 30:
        assert abs(steps.item() - exact) <= abs(exact) / 2**15 + 1


@pytest.mark.parametrize("step", [0.3, -0.3, 0.001, -1.75, 5.0])
def test_rounding_is_unbiased(step):
    """A step much smaller than one LSB is taken in the mean, in either direction."""
    n = 1 << 18
    random = reference.draw(3, 1, 4, n)
    t = np.full(n, round(step * 2**22))
    moved = -reference.step_weight(np.zeros(n, np.int8), t, random).astype(float)
    sigma = 0.5 * n**-0.5
    assert abs(moved.mean() - step) < 5 * sigma
    assert set(np.unique(moved)) <= {math.floor(step), math.ceil(step)}
    t = np.full(n, round(step * 2**8))
    moved = -reference.step_bias(np.zeros(n, np.int32), t, random)
    assert abs(moved.mean() - t[0] / 2**8) < 5 * sigma
    t = np.full(n, round(step * 2**22))
    a = reference.accumulate_weight(np.zeros(n, np.int16), t, random)
    assert abs(a.mean() / 256 - step) < 5 * sigma / 256


def test_updates_saturate_and_never_wrap():
    t = np.array([1 << 30, -(1 << 30)])
    random = np.array([(1 << 32) - 1, 0])
    assert reference.step_weight(np.array([-120, 120], np.int8), t, random).tolist() == [-127, 127]
    most = (1 << 30) - 5
    assert reference.step_bias(np.array([-most, most]), t, random).tolist() == [-1 << 30, 1 << 30]
    a = reference.accumulate_weight(np.array([32700, -32700], np.int16), t, random)
    assert a.tolist() == [32767, -32768]
    assert reference.accumulate_bias(np.array([most, -most]), t).tolist() == [1 << 30, -1 << 30]


@given(st.integers(-32768, 32767), st.integers(-127, 127))
def test_the_remainder_stays_in_the_accumulator(a, w):
    new, rest = reference.apply_accumulator(np.array([w], np.int8), np.array([a], np.int16), 127)
    assert -128 <= rest.item() < 128
    n = (a - rest.item()) // 256
    assert n * 256 + rest.item() == a
    assert new.item() == max(-127, min(127, w - n))


# -- the executor ---------------------------------------------------------------------------------


def pictures(n=8):
    return np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)


def trained_parts(machine):
    """Return {offset: values} of every trained parameter."""
    kinds = ("bias_update", "conv_weight_update", "depthwise_weight_update")
    updates = [machine._update_of(op) for op in machine.blob.ops if op.kind in kinds]
    return {u.offset: machine._parameter(u).copy() for u in updates}


def learn(machine, steps, seed=7, rate=RATE):
    x = pictures()
    return [machine.step(x[i % 8], i % 4, rate, seed, i, 4) / 65536 for i in range(steps)]


def test_a_network_learns_and_does_it_the_same_way_twice():
    made = blob.read(tiny.learner().to_bytes())
    machine, again, other = (Machine(made) for _ in range(3))
    losses = learn(machine, 160)
    assert np.mean(losses[-8:]) < 0.75 * np.mean(losses[:8])
    assert learn(again, 160) == losses
    assert again.digest() == machine.digest()
    learn(other, 160, seed=8)
    assert other.digest() != machine.digest()


def test_prediction_and_learning_see_the_same_network():
    machine = Machine(tiny.learner())
    x = pictures(1)[0]
    machine.set_input(x)
    output = machine.forward()
    logits = machine.value(machine.blob.logits)
    machine.set_input(machine.blob.lut[x])
    np.testing.assert_array_equal(machine.forward(learn=True), logits)
    p0 = loss_parameters(1 / 16)[0]
    assert np.abs(machine.probabilities(4, p0) / 2**7 - (output.ravel() + 128.0)).max() < 1.5


def test_the_last_layer_s_gradient_is_the_textbook_s():
    machine = Machine(tiny.learner(), keep=True)
    machine.step(pictures()[0], 2, RATE, 0, 0, 4)
    conv = [op for op in machine.blob.ops if op.kind == "conv"][-1]
    x = machine._centred(conv.t[0]).ravel()
    p = float_softmax(machine.value(machine.blob.logits).ravel() / 16)
    records = reference.forward_records(machine.blob.constants, conv.p[4], 4, 8)
    real = records.multiplier / 2.0**31 * 2.0**records.shift  # d logit / d accumulator
    g = (p - (np.arange(4) == 2)) / 16 * real
    v, e = machine.gradients[conv.p[6]]
    np.testing.assert_allclose(v * 2.0**e, g, atol=1e-3 * np.abs(g).max())
    v, e = machine.gradients[conv.p[5]]
    expected = g[:, None] * x
    np.testing.assert_allclose(v[:, 0, 0] * 2.0**e, expected, atol=1e-3 * np.abs(expected).max())


def test_classes_past_those_in_use_are_neither_seen_nor_moved():
    machine = Machine(tiny.learner(), keep=True)
    before = trained_parts(machine)
    for i in range(20):
        machine.step(pictures()[i % 8], i % 2, (4000, -16), 1, i, 2)
    conv = [op for op in machine.blob.ops if op.kind == "conv"][-1]
    for at in conv.p[5], conv.p[6]:
        after = trained_parts(machine)[at]
        assert not machine.gradients[at][0][2:].any()
        np.testing.assert_array_equal(after[2:], before[at][2:])
        assert (after[:2] != before[at][:2]).any()


def test_frozen_channels_stay():
    machine = Machine(tiny.learner(), keep=True)
    at = next(op.p[5] for op in machine.blob.ops if op.kind == "depthwise")
    before = trained_parts(machine)[at]
    learn(machine, 40, rate=(4000, -16))
    moved = (trained_parts(machine)[at] != before).any(axis=(1, 2))
    assert moved[0]
    assert not moved[3]  # tiny.FROZEN is the last of the trained channels
    assert machine.gradients[at][0][3].any()


def test_the_accumulator_waits_for_apply_and_keeps_the_rest():
    machine = Machine(tiny.learner(), accumulate=True)
    before = trained_parts(machine)
    digest = machine.digest()
    losses = learn(machine, 8)
    assert machine.digest() == digest
    assert machine.accumulators.strip(b"\0")
    taken = np.frombuffer(machine.accumulators, np.int16).copy()
    machine.apply()
    assert machine.digest() != digest
    conv = [op for op in machine.blob.ops if op.kind == "conv"][-1]
    update = next(op for op in machine.blob.ops if op.kind == "conv_weight_update")
    u = machine._update_of(update)
    whole = (before[conv.p[5]].astype(int) - machine._parameter(u)).ravel() * 256
    start = u.accumulator // 2
    total = taken[start : start + whole.size]
    np.testing.assert_array_equal(whole + machine._accumulator(u).ravel(), total)
    for _ in range(20):
        last = learn(machine, 8)
        machine.apply()
    assert np.mean(last) < np.mean(losses)


def test_a_whole_step_of_either_mode_is_the_same_in_the_mean():
    """Steps with an accumulator lose nothing against steps without: 200 seeds of one sample."""
    made, x = tiny.learner(), pictures()[0]
    conv = [op for op in made.ops if op.kind == "conv"][-1]
    moved = {False: [], True: []}
    for accumulate, seed in itertools.product(moved, range(200)):
        machine = Machine(made, accumulate)
        before = trained_parts(machine)[conv.p[5]].astype(int)
        machine.step(x, 1, (64, -15), seed, 0, 4)
        machine.apply()
        u = machine._update_of(next(o for o in made.ops if o.kind == "conv_weight_update"))
        if accumulate:
            rest = machine._accumulator(u) / 256
        else:
            packed = np.frombuffer(machine.trained, np.uint8, 16, u.fraction)
            rest = reference.unpack_fractions(packed, 32).reshape(u.shape) / 16
        moved[accumulate].append(before - trained_parts(machine)[conv.p[5]] + rest)
    plain, accumulated = (np.mean(moved[k], axis=0) for k in (False, True))
    assert np.abs(plain).max() > 0.2
    assert np.abs(plain - accumulated).max() < 5 * 0.5 / 200**0.5


def test_every_window_operator_runs_from_a_blob():
    """A pool, a pad, a requantisation and their gradients, against the functions themselves."""
    b = tiny.Builder()
    rng = np.random.default_rng(5)
    x = b.tensor((4, 4, 2), zero=3)
    padded, best, average = b.tensor((5, 5, 2)), b.tensor((3, 3, 2)), b.tensor((1, 1, 2))
    y = b.tensor((1, 1, 2), zero=-2)
    arg, mask, last = b.like(best, "int8"), b.like(average, "bits"), b.like(y, "bits")
    g = {t: b.like(t, "int16") for t in (x, padded, best, average, y)}
    two, three = tiny.geometry((2, 2), (2, 2), (1, 1)), tiny.geometry((3, 3))
    multiplier = quantize_multiplier(0.5)
    b.op("pad", [x, padded], [0, 1, 3])
    b.op("max_pool", [padded, best, arg], [*two, -128, 127])
    b.op("average_pool", [best, average, mask], [*three, -128, 127])
    b.op("requantize", [average, y, last], [*multiplier, -128, 127])
    b.backward()
    b.op("cross_entropy", [y, g[y]], [*loss_parameters(0.1)])
    b.op("scale_grad", [g[y], last, g[average]], [-1, -30, 14, 1 << 29])
    b.op("average_pool_grad", [g[average], mask, g[best]], three)
    b.op("max_pool_grad", [g[best], arg, g[padded]], two)
    b.op("pad_grad", [g[padded], g[x]], [0, 1])
    machine = Machine(blob.read(b.blob(x, y, y).to_bytes()))
    data = rng.integers(-128, 128, (4, 4, 2)).astype(np.int8)
    machine.step(data, 0, RATE, 0, 0, 2)
    np.testing.assert_array_equal(
        machine.value(padded), np.pad(data, ((0, 1), (1, 0), (0, 0)), constant_values=3)
    )
    # Every window passes its whole gradient on to one tap; PAD_GRAD cuts the border off.
    p = float_softmax(machine.value(y).ravel() * 0.1)
    q, e = machine._gradient(g[padded])
    expected = (p - [1, 0]) * 0.1 * 0.5
    np.testing.assert_allclose(q.astype(int).sum(axis=(0, 1)) * 2.0**e, expected, rtol=5e-3)
    np.testing.assert_array_equal(machine.value(g[x]), q[:4, 1:])
    assert machine.exponent(machine.blob.tensors[g[x]].slot) == e


def test_a_reshaped_tensor_is_read_through_its_other_row():
    b = tiny.Builder()
    x = b.tensor((2, 3, 4))
    y = b.tensor((2, 3, 4))
    flat, out = b.tensor((1, 1, 24), at=y), b.tensor((1, 1, 2))
    b.op("requantize", [x, y], [1 << 30, 1, -128, 127])
    b.op("gather", [flat, out], [b.indices([5, 23]), 2])
    machine = Machine(b.blob(x, out, out))
    for sign in 1, -1:
        machine.set_input((sign * np.arange(24)).astype(np.int8))
        assert machine.forward().ravel().tolist() == [5 * sign, 23 * sign]


def test_mistakes_are_named():
    b = tiny.Builder()
    x, never, y = b.tensor((1, 1, 2)), b.tensor((1, 1, 2)), b.tensor((1, 1, 2))
    b.op("requantize", [never, y], [1 << 30, 1, -128, 127])
    machine = Machine(b.blob(x, y, y))
    with pytest.raises(SproutError, match="no input table"):
        machine.set_input(np.zeros(2, np.uint8))
    with pytest.raises(SproutError, match="float64"):
        machine.set_input(np.zeros(2))
    machine.set_input(np.zeros(2, np.int8))
    with pytest.raises(SproutError, match="Tensor 1"):
        machine.forward()
    with pytest.raises(OverflowError):
        reference.fits32(np.array([-(1 << 31) - 1]))
