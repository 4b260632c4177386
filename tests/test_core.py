"""The C core alone: its integers, its operators on hand-made blobs, and that it trusts nothing.

Whole networks against reference.py are in test_equality.py.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from sprout import blob as blobs
from sprout.blob import NONE
from sprout.engine import CHECK, LEARN, Engine, Run
from sprout.graph import SproutError, quantize_multiplier
from tiny import Builder, geometry, learner

from native_modules import build

# -------------------------------------------------------------------------------------------------
# Integers, against Python's, which have no width

EXPORTS = """
#include "arith.h"
int32_t t_mbqm(int32_t x, int32_t m, int32_t s) { return mbqm(x, m, s); }
int32_t t_once(int32_t x, int32_t m, int32_t s) { return once(x, m, s); }
int32_t t_high_mul(int32_t a, int32_t b) { return high_mul(a, b); }
int32_t t_rshift32(int32_t x, int32_t n) { return rshift32(x, n); }
int64_t t_rshift64(int64_t x, int32_t n) { return rshift64(x, n); }
int32_t t_bitlen32(uint32_t x) { return bitlen32(x); }
int32_t t_bitlen64(uint64_t x) { return bitlen64(x); }
int32_t t_div_away(int32_t a, int32_t n) { return div_away(a, n); }
int32_t t_step_of(int32_t v, int32_t factor, int32_t shift) { return step_of(v, factor, shift); }
uint32_t t_draw(uint32_t k, uint32_t e) { return draw(k, e); }
int64_t t_mul64(int32_t a, int32_t b) { return mul64(a, b); }
uint32_t t_divide(uint32_t a, uint32_t b) { return divide(a, b); }
uint32_t t_size_mul(uint32_t a, uint32_t b) { return size_mul(a, b); }
"""
WIDE = {"t_rshift64": ctypes.c_int64, "t_mul64": ctypes.c_int64}
UNSIGNED = {"t_draw", "t_divide", "t_size_mul"}


@pytest.fixture(scope="module", params=["this machine", "ARMv6-M"])
def arith(request, tmp_path_factory):
    """arith.h compiled for this machine, as it is and with the substitutes a Cortex-M0+ needs."""
    folder = tmp_path_factory.mktemp("arith")
    source = folder / "exports.c"
    source.write_text(EXPORTS)
    flags = ["-D__ARM_ARCH_6M__"] if request.param == "ARMv6-M" else []
    library = folder / "arith.so"
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC", "-std=c99", *flags,
         "-fno-sanitize=all", "-I", build.CORE, source, build.CORE / "arith.c", "-o", library],
        check=True,
        env={**os.environ, "ZIG_LOCAL_CACHE_DIR": str(build.BUILD / "zig-cache" / "local"),
             "ZIG_GLOBAL_CACHE_DIR": str(build.BUILD / "zig-cache" / "global")},
    )  # fmt: skip
    result = ctypes.CDLL(str(library))
    for name, kind in WIDE.items():
        getattr(result, name).restype = kind
    for name in UNSIGNED:
        getattr(result, name).restype = ctypes.c_uint32
    result.t_rshift64.argtypes = [ctypes.c_int64, ctypes.c_int32]
    result.t_bitlen64.argtypes = [ctypes.c_uint64]
    return result


def wrap(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def py_high_mul(a, b):
    ab = a * b
    nudged = ab + (2**30 if ab >= 0 else 1 - 2**30)
    return wrap(abs(nudged) // 2**31 * (1 if nudged >= 0 else -1))


def py_mbqm(x, m, s):
    s = min(max(s, -31), 30)
    y = py_high_mul(wrap(x * 2 ** max(s, 0)), m)
    e = max(-s, 0)
    return (y >> e) + ((y & (2**e - 1)) > (((2**e - 1) >> 1) + (y < 0)))


def py_once(x, m, s):
    s = min(max(s, -31), 30)
    y = (abs(x * m) + (1 << (30 - s))) >> (31 - s)
    return min(y, 2**30) * (1 if x * m >= 0 else -1)


def py_rshift(x, n):
    return x if n == 0 else 0 if n > 62 else (x + (1 << (n - 1))) >> n


def py_step(v, factor, shift):
    product = v * factor
    t = product >> min(shift, 63) if shift >= 0 else product << -shift
    return min(max(t, -(2**30)), 2**30)


EDGES = [0, 1, -1, 2, -2, 127, -128, 2**14, -(2**14), 2**30 - 1, 2**30, -(2**30), 2**31 - 1]


def numbers(count, low=-(2**31), high=2**31 - 1):
    """Edges, then numbers of all magnitudes."""
    rng = random.Random(5)
    yield from (x for x in [*EDGES, -(2**31)] if low <= x <= high)
    for _ in range(count):
        yield min(max(rng.randint(-(2**31), 2**31 - 1) >> rng.randrange(32), low), high)


def test_mbqm_and_once(arith):
    rng = random.Random(1)
    for x in numbers(600):
        for m in (0, 2**30, 2**31 - 1, rng.randrange(2**30, 2**31)):
            for s in (-40, -31, -30, -8, -1, 0, 1, 7, 30, 33):
                assert arith.t_mbqm(x, m, s) == py_mbqm(x, m, s), (x, m, s)
                assert arith.t_once(x, m, s) == py_once(x, m, s), (x, m, s)


def test_products_and_quotients(arith):
    values = list(numbers(40))
    for a in values:
        for b in values:
            assert arith.t_mul64(a, b) == a * b
            assert arith.t_size_mul(a % 2**32, b % 2**32) == min(
                (a % 2**32) * (b % 2**32), 2**32 - 1
            )
            if (a, b) != (-(2**31), -(2**31)):
                assert arith.t_high_mul(a, b) == py_high_mul(a, b), (a, b)
            if b % 2**32:
                assert arith.t_divide(a % 2**32, b % 2**32) == (a % 2**32) // (b % 2**32)
            if b > 0:
                sign = 1 if a > 0 else -1
                assert arith.t_div_away(a, b) == sign * ((abs(a) + b // 2) // b), (a, b)


def test_shifts_and_lengths(arith):
    for x in numbers(300):
        assert arith.t_bitlen32(x % 2**32) == (x % 2**32).bit_length()
        for n in (0, 1, 2, 15, 30, 31, 32, 33, 62, 63, 1000):
            assert arith.t_rshift32(x, n) == py_rshift(x, n), (x, n)
            wide = x * (2**29 + 12345)
            assert arith.t_rshift64(wide, n) == py_rshift(wide, n), (wide, n)
            assert arith.t_bitlen64(abs(wide)) == abs(wide).bit_length()


def test_update_steps_are_limited_and_never_wrap(arith):
    rng = random.Random(2)
    for v in numbers(300):
        for factor in (1, 2**15 * 1, (2**16 - 1) * 4095, rng.randrange(2**28)):
            for shift in (-(2**31), -100, -62, -32, -31, -30, -3, 0, 1, 20, 63, 64, 2**31 - 1):
                want = py_step(v, factor, max(shift, -200))
                assert arith.t_step_of(v, factor, shift) == want, (v, factor, shift)


def test_draws(arith):
    for k in numbers(30, 0):
        for e in (0, 1, 77, 2**20):
            x = (k + e * 0x9E3779B9) % 2**32
            for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
                x = ((x ^ x >> shift) * factor) % 2**32
            assert arith.t_draw(k, e) == x ^ x >> 16


# -------------------------------------------------------------------------------------------------
# Operators on hand-made blobs

MODES = [{}, {"in_place": False}, {"in_place": False, "scratch": "least"}]
MODE_NAMES = ["in place", "streamed", "one record at a time"]


def engine(n: Builder, inputs: dict[int, np.ndarray], output: int, least: int, **mode) -> Engine:
    """Return an engine on the builder's blob with some tensors written."""
    blob = n.blob(next(iter(inputs)), output, output)
    blob.scratch_len = least
    if mode.get("scratch") == "least":
        mode["scratch"] = least
    result = Engine(blob.to_bytes(), **mode)
    for number, values in inputs.items():
        result.tensor(number)[:] = values
    return result


def int8(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def padded(x, top_left, bottom_right):
    return np.pad(x.astype(np.int64), [*zip(top_left, bottom_right, strict=True), (0, 0)])


def clamp_requantized(sums, real, zero, low, high):
    """Return (y, mask) from sums (h, w, c) and real multipliers [c]."""
    pairs = [quantize_multiplier(float(r)) for r in real]
    y = np.empty_like(sums)
    for index, value in np.ndenumerate(sums):
        y[index] = zero + py_mbqm(int(value), *pairs[index[-1]])
    return y.clip(low, high), (y >= low) & (y <= high)


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("trained", ["nothing", "biases", "some", "all"])
def test_conv(mode, trained):
    rng = np.random.default_rng(3)
    n = Builder()
    x = n.tensor((7, 6, 5), zero=-9)
    y = n.tensor((4, 3, 37), zero=4)
    mask = n.like(y, "bits")
    weight, bias = int8(rng, 37, 3, 3, 5), rng.integers(-9999, 9999, 37)
    real = rng.uniform(0.0005, 0.003, 37)
    at = n.records(weight, bias, real)
    w_at = b_at = list_at = -1
    now, now_bias = weight.copy(), bias.copy()
    chosen = [0, 2, 3] if trained == "some" else list(range(5))
    if trained != "nothing":
        now_bias = rng.integers(-9999, 9999, 37)
        b_at, _, _ = n.trained(now_bias.astype(np.int32))
    if trained in ("some", "all"):
        now[..., chosen] = int8(rng, 37, 3, 3, len(chosen))
        w_at, _, _ = n.trained(np.ascontiguousarray(now[..., chosen]))
        list_at = n.indices(chosen) if trained == "some" else -1
    window = geometry((3, 3), (2, 2), (1, 1))
    n.op("conv", [x, y, mask], [*window, -100, 90, at, w_at, b_at, list_at, len(chosen)])
    data = int8(rng, 7, 6, 5)
    e = engine(n, {x: data}, y, 16 + 48, **mode)
    out = e.forward(learn=True)

    big = padded(data.astype(np.int64) + 9, (1, 1), (2, 2))
    sums = np.array(
        [
            [
                np.einsum("hwi,ohwi->o", big[2 * i : 2 * i + 3, 2 * j : 2 * j + 3], now)
                for j in range(3)
            ]
            for i in range(4)
        ]
    )
    want, inside = clamp_requantized(sums + now_bias, real, 4, -100, 90)
    assert np.array_equal(out, want)
    assert np.array_equal(e.tensor(mask), inside)
    assert 0 < inside.sum() < inside.size


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_and_its_input_gradient(mode, multiplier):
    rng = np.random.default_rng(4)
    c = 14 * multiplier
    n = Builder()
    x, y = n.tensor((5, 5, 14), zero=3), n.tensor((5, 5, c), zero=-1)
    g, dx = n.like(y, "int16"), n.like(x, "int16")
    weight, bias = int8(rng, c, 3, 3), rng.integers(-999, 999, c)
    real = rng.uniform(0.001, 0.01, c)
    at = n.records(weight, bias, real)
    chosen = [1, 6, c - 1]
    now = weight.copy()
    now[chosen] = int8(rng, 3, 3, 3)
    w_at, _, _ = n.trained(now[chosen])
    list_at = n.indices(chosen)
    window = geometry((3, 3), (1, 1), (1, 1))
    n.op("depthwise", [x, y, NONE], [*window, -128, 127, at, w_at, -1, list_at, 3])
    n.op("depthwise_input_grad", [g, dx], [*window, at, w_at, list_at, 3, 2])
    data, q = int8(rng, 5, 5, 14), rng.integers(-16384, 16385, (5, 5, c)).astype(np.int16)
    e = engine(n, {x: data, g: q}, y, 28 * multiplier, **mode)
    e.run_ops(0, 2, LEARN)

    big = padded(data.astype(np.int64) - 3, (1, 1), (1, 1)).repeat(multiplier, axis=2)
    sums = bias + np.zeros((5, 5, c), np.int64)
    back = np.zeros((7, 7, c), np.int64)
    for ky in range(3):
        for kx in range(3):
            sums += big[ky : ky + 5, kx : kx + 5] * now[:, ky, kx]
            back[ky : ky + 5, kx : kx + 5] += q.astype(np.int64) * now[:, ky, kx]
    want, _ = clamp_requantized(sums, real, -1, -128, 127)
    assert np.array_equal(e.tensor(y), want)
    v = back[1:-1, 1:-1].reshape(5, 5, 14, multiplier).sum(axis=3)
    shift = max(2, int(np.abs(v).max()).bit_length() - 14)
    assert np.array_equal(e.tensor(dx), [py_rshift(a, shift) for a in v])
    assert e.exponent(dx) == shift
    assert e.run.reruns == 1


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("trained", ["nothing", "some", "all"])
def test_conv_input_gradient(mode, trained):
    rng = np.random.default_rng(6)
    n = Builder()
    g, dx = n.tensor((3, 3, 9), "int16"), n.tensor((6, 5, 7), "int16")
    y = n.tensor((1, 1, 1))
    weight = int8(rng, 9, 3, 2, 7)
    now = weight.copy()
    at = n.transposed(weight)
    chosen = {"nothing": [], "some": [1, 6], "all": list(range(7))}[trained]
    w_at = list_at = -1
    if chosen:
        now[..., chosen] = int8(rng, 9, 3, 2, len(chosen))
        w_at, _, _ = n.trained(np.ascontiguousarray(now[..., chosen]))
    if trained == "some":
        list_at = n.indices(chosen)
    at = -1 if trained == "all" else at
    window = geometry((3, 2), (2, 2), (1, 0))
    n.op("conv_input_grad", [g, dx], [*window, at, w_at, list_at, len(chosen), 0])
    q = rng.integers(-16384, 16385, (3, 3, 9)).astype(np.int16)
    e = engine(n, {y: 0, g: q}, y, 56, **mode)
    e.run_ops(0, 1, LEARN)

    back, wide = np.zeros((8, 7, 7), np.int64), q.astype(np.int64)
    for i in range(3):
        for j in range(3):
            part = np.einsum("o,ohwi->hwi", wide[i, j], now)
            back[2 * i : 2 * i + 3, 2 * j : 2 * j + 2] += part
    v = back[1:7, :5]
    shift = max(0, int(np.abs(v).max()).bit_length() - 14)
    assert np.array_equal(e.tensor(dx), [py_rshift(a, shift) for a in v])
    assert e.exponent(dx) == shift


def test_operators_that_move_elements():
    rng = np.random.default_rng(7)
    n = Builder()
    x, wide, some = n.tensor((2, 3, 4)), n.tensor((5, 4, 4)), n.tensor((2, 3, 2))
    g, dx = n.like(wide, "int16"), n.like(x, "int16")
    n.op("pad", [x, wide], [1, 0, -7])
    n.op("gather", [x, some], [n.indices([1, 3]), 2])
    n.op("pad_grad", [g, dx], [1, 0])
    data = int8(rng, 2, 3, 4)
    q = rng.integers(-999, 999, (5, 4, 4)).astype(np.int16)
    e = engine(n, {x: data, g: q}, wide, 0)
    e.run_ops(0, 3, LEARN)
    want = np.full((5, 4, 4), -7)
    want[1:3, :3] = data
    assert np.array_equal(e.tensor(wide), want)
    assert np.array_equal(e.tensor(some), data[..., [1, 3]])
    assert np.array_equal(e.tensor(dx), q[1:3, :3])


@pytest.mark.parametrize("rows", [1, 3])
def test_mean_of_everything_and_of_each_row(rows):
    rng = np.random.default_rng(10)
    n = Builder()
    x, y = n.tensor((3, 4, 40), zero=5), n.tensor((rows, 1, 40), zero=-2)
    g, dx = n.like(y, "int16"), n.like(x, "int16")
    count = 12 // rows
    multiplier, shift = quantize_multiplier(0.7 / count)
    n.op("mean", [x, y, NONE], [multiplier, shift, -128, 127])
    n.op("mean_grad", [g, NONE, dx], [-31, 2**29])
    data, q = int8(rng, 3, 4, 40), rng.integers(-16384, 16385, (rows, 1, 40)).astype(np.int16)
    e = engine(n, {x: data, g: q}, y, 0)
    e.run_ops(0, 2, LEARN)
    sums = (data.astype(np.int64) - 5).reshape(rows, count, 1, 40).sum(axis=1)
    want, _ = clamp_requantized(sums, np.full(40, 0.7 / count), -2, -128, 127)
    assert np.array_equal(e.tensor(y), want)
    v = q.astype(np.int64) * 2**29
    down = int(np.abs(v).max()).bit_length() - 14
    assert e.exponent(dx) == down - 31
    assert np.array_equal(
        e.tensor(dx), np.broadcast_to(py_rshift(v, down), (rows, 12 // rows, 40)).reshape(3, 4, 40)
    )


def test_pools_and_their_gradients():
    rng = np.random.default_rng(8)
    n = Builder()
    x = n.tensor((4, 4, 35))
    top, average = n.tensor((3, 3, 35)), n.tensor((3, 3, 35))
    arg = n.like(top, "int8")
    g, d_top, d_average = n.like(top, "int16"), n.like(x, "int16"), n.like(x, "int16")
    window = geometry((3, 3), (2, 2), (1, 1))
    n.op("max_pool", [x, top, arg], [*window, -128, 127])
    n.op("average_pool", [x, average, NONE], [*window, -128, 127])
    n.op("max_pool_grad", [g, arg, d_top], window)
    n.op("average_pool_grad", [g, NONE, d_average], window)
    data, q = int8(rng, 4, 4, 35), rng.integers(-16384, 16385, (3, 3, 35)).astype(np.int16)
    e = engine(n, {x: data, g: q}, top, 0)
    e.run_ops(0, 4, LEARN)

    v_top, v_average = np.zeros((4, 4, 35), np.int64), np.zeros((4, 4, 35), np.int64)
    for i in range(3):
        for j in range(3):
            ys = slice(max(2 * i - 1, 0), 2 * i + 2)
            xs = slice(max(2 * j - 1, 0), 2 * j + 2)
            part = data[ys, xs].astype(np.int64)
            count = part.shape[0] * part.shape[1]
            flat = part.reshape(count, 35)
            assert np.array_equal(e.tensor(top)[i, j], flat.max(axis=0))
            half = np.sign(flat.sum(axis=0)) * (count // 2)
            quotient = np.trunc((flat.sum(axis=0) + half) / count)
            assert np.array_equal(e.tensor(average)[i, j], quotient)
            first = flat.argmax(axis=0)
            for c in range(35):
                y0, x0 = divmod(int(first[c]), part.shape[1])
                v_top[ys.start + y0, xs.start + x0, c] += q[i, j, c]
            v_average[ys, xs] += q[i, j].astype(np.int64) * ((2**15 + count // 2) // count)
    for number, v, exponent in ((d_top, v_top, 0), (d_average, v_average, -15)):
        shift = max(0, int(np.abs(v).max()).bit_length() - 14)
        assert np.array_equal(e.tensor(number), [py_rshift(a, shift) for a in v])
        assert e.exponent(number) == exponent + shift


def test_a_gradient_of_zeros_stays_one_and_teaches_nothing():
    data = learner().to_bytes()
    blob = blobs.read(data)
    e = Engine(data)
    start = e.digest()
    gradients = [i for i, t in enumerate(blob.tensors) if t.slot != NONE]
    e.tensor(blob.exponents)[:] = blobs.EXP_ZERO
    first = next(i for i, op in enumerate(blob.ops) if op.kind == "cross_entropy")
    e.run_ops(first + 1, len(blob.ops), LEARN, rate=(4095, 0))
    assert e.digest() == start
    for i in gradients:
        if i != blob.ops[first].t[1]:
            assert e.exponent(i) == blobs.EXP_ZERO


def test_probabilities_are_softmax():
    e = Engine(learner().to_bytes())
    e.tensor(e.blob.logits)[:] = [[[40, -20, 33, 7]]]
    for n in (1, 2, 3, 4):
        p = np.exp(np.array([40, -20, 33, 7])[:n] / 16)
        assert np.allclose(e.probabilities(n), p / p.sum(), atol=2e-4)


def test_reset_forgets():
    e = Engine(learner().to_bytes(), accumulate=True)
    start, x = e.digest(), np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    first = [e.step(x, 1, (2000, -18), 1, t) for t in range(8)]
    e.apply()
    assert e.digest() != start
    e.reset()
    assert e.digest() == start
    assert [e.step(x, 1, (2000, -18), 1, t) for t in range(8)] == first


# -------------------------------------------------------------------------------------------------
# Mistakes

E_ALIGNMENT, E_ARENA, E_TRAINED, E_SCRATCH, E_ACCUM, E_CONSTANTS = -2, -3, -4, -5, -6, -7


def least_learner() -> tuple[bytes, int]:
    """Return the learner with the least scratch that passes, and that number of bytes."""
    blob = learner()
    blob.scratch_len = 0
    for size in range(0, 1024, 4):
        try:
            Engine(blob.to_bytes(), scratch=size)
        except MemoryError:
            continue
        blob.scratch_len = size
        return blob.to_bytes(), size
    raise AssertionError("no scratch is enough")


def test_a_small_scratch_is_named_with_what_is_missing():
    data, least = least_learner()
    with pytest.raises(MemoryError, match=f"{least - 4} bytes, {least} are needed; give 4 more"):
        Engine(data, scratch=least - 4)
    e, roomy = Engine(data, in_place=False, scratch=least), Engine(data)
    x = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    for t in range(8):
        assert e.step(x, t % 4, (2000, -18), 1, t) == roomy.step(x, t % 4, (2000, -18), 1, t)
    assert e.digest() == roomy.digest()


@pytest.mark.parametrize(
    "name, status",
    [
        ("arena", E_ARENA),
        ("trained", E_TRAINED),
        ("scratch", E_SCRATCH),
        ("accum", E_ACCUM),
        ("blob", E_CONSTANTS),
        ("program", -1),
    ],
)
def test_every_buffer_is_measured(name, status):
    e = Engine(learner().to_bytes(), scratch=16384, accumulate=True)
    memory = e._memory
    assert e._library.sprout_check(memory) == 0
    length, place = getattr(memory, name + "_len"), getattr(memory, name)
    setattr(memory, name + "_len", length - 1)
    assert e._library.sprout_check(memory) == status
    setattr(memory, name + "_len", length)
    setattr(memory, name, place + 2)
    assert e._library.sprout_check(memory) == E_ALIGNMENT
    setattr(memory, name, None)
    missing = {"accum": 0, "blob": 0}.get(name, status)  # both may be absent
    assert e._library.sprout_check(memory) == missing


def change_op(index, field, value):
    def change(blob):
        getattr(blob.ops[index], field[0])[int(field[1:])] = value

    return change


def change_tensor(number, **fields):
    def change(blob):
        for name, value in fields.items():
            setattr(blob.tensors[number], name, value)

    return change


def first(kind):
    return next(i for i, op in enumerate(learner().ops) if op.kind == kind)


CONV, DEPTHWISE, GRAD = 0, first("depthwise"), first("conv_input_grad")
BIAS, WEIGHT = first("bias_update"), first("conv_weight_update")
G = learner().ops[GRAD].t[0]
FIRST = learner().ops[CONV].t[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (change_op(CONV, "t0", 999), r"operator 0 \(conv\): tensor 999 is missing"),
        (change_op(CONV, "t1", NONE), "tensor 65535 is missing"),
        (change_op(CONV, "t2", 0), "tensor 0 is missing, of a wrong type"),
        (change_tensor(FIRST, offset=2**31), "tensor 0 .*outside the arena"),
        (change_tensor(FIRST, offset=2**32 - 4), "outside the arena"),
        (change_tensor(FIRST, h=65535, w=65535, c=65535), "outside the arena"),
        (change_tensor(FIRST, h=0), "outside the arena"),
        (change_tensor(G, offset=1), "outside the arena"),  # odd
        (change_tensor(G, slot=999), f"tensor {G} is missing"),
        (change_op(first("add"), "t1", FIRST), "shape of operand 1 does not fit"),
        (change_op(first("mean"), "t1", FIRST), "shape of operand"),
        (change_op(CONV, "p0", 0), "parameter 0 is out of range"),
        (change_op(CONV, "p3", 128), "parameter 3 is out of range"),
        (change_op(CONV, "p4", 2), "parameter 4"),  # not a multiple of 4
        (change_op(CONV, "p4", -8), "parameter 4"),
        (change_op(CONV, "p4", 2**31 - 4), "parameter 4"),
        (change_op(DEPTHWISE, "p5", 2**31 - 4), "parameter 5"),
        (change_op(DEPTHWISE, "p5", 2), "parameter 5"),
        (change_op(DEPTHWISE, "p7", 1), "parameter 7"),  # odd
        (change_op(DEPTHWISE, "p7", 0), "parameter 7"),  # the tables: channels too high
        (change_op(DEPTHWISE, "p8", 60000), "parameter 7"),
        (change_op(GRAD, "p6", -1), "parameter 6"),
        (change_op(GRAD, "p3", -1), "parameter 3"),
        (change_op(BIAS, "p0", -1), "parameter 0"),
        (change_op(BIAS, "p1", 2**30), "parameter 1"),
        (change_op(BIAS, "p2", 2), "parameter 2"),
        (change_op(WEIGHT, "p4", -1), "no accumulators"),
        (change_op(WEIGHT, "p4", 1), "parameter 4"),
        (change_op(WEIGHT, "p2", -1), "parameter 2"),
    ],
)
def test_every_operand_is_checked(change, message):
    blob = learner()
    change(blob)
    with pytest.raises(SproutError, match=message):
        Engine(blob.to_bytes(), accumulate=True)


def test_unknown_operators_and_blobs_that_cannot_learn():
    e = Engine(learner().to_bytes())
    struct.pack_into("<H", e._file, int(e._file[56:60].view("<u4")[0]), 77)
    with pytest.raises(SproutError, match="operator code 77 is unknown"):
        e.forward()
    blob = learner()
    blob.exponents, blob.flags = NONE, 0
    with pytest.raises(SproutError, match="the blob cannot learn"):
        Engine(blob.to_bytes())


def test_arguments_are_checked():
    e = Engine(learner().to_bytes())
    x = np.zeros((8, 8, 3), np.int8)
    with pytest.raises(SproutError, match="label 4 of 4 classes is out of range"):
        e.step(x, 4, (1, 0), 0, 0)
    with pytest.raises(SproutError, match="label 0 of 5 classes .* 4 outputs at most"):
        e.step(x, 0, (1, 0), 0, 0, n_classes=5)
    with pytest.raises(SproutError, match="mantissa 4096 is out of range; give 1 to 4095"):
        e.step(x, 0, (4096, 0), 0, 0)
    with pytest.raises(SproutError, match="not in the program"):
        e.run_ops(0, 999)
    with pytest.raises(SproutError, match="not in the program"):
        e.run_ops(0, 1, mode=3)
    with pytest.raises(SproutError, match="1 to 4 classes: 5 is out of range"):
        e.probabilities(5)
    with pytest.raises(SproutError, match="make the engine with accumulate=True"):
        e.apply()
    with pytest.raises(SproutError, match="input is float64"):
        e.set_input(np.zeros((8, 8, 3)))
    with pytest.raises(SproutError, match=r"shape \(8, 8\): blob takes \(8, 8, 3\)"):
        e.set_input(np.zeros((8, 8), np.int8))


def test_a_read_that_fails_stops_the_call():
    e = Engine(learner().to_bytes(), in_place=False)
    e.forward()
    e._file = e._file[:0]  # as if the file were gone
    with pytest.raises(SproutError, match="reading the file failed with -1"):
        e.forward()


def test_no_program_writes_outside_the_buffers():
    """Thousands of damaged programs, every operator alone, between guards of 64 bytes."""
    data = learner().to_bytes()
    rng = random.Random(9)
    e = Engine(data, scratch=16384, accumulate=True)
    guarded = {}
    for name in ("arena", "trained", "scratch", "accum"):
        size = getattr(e, name).size
        whole = np.full(size + 128, 0xA5, np.uint8)
        setattr(e, name, whole[64 : 64 + size])
        e._memory.put(name, getattr(e, name))
        guarded[name] = whole
    ops = int(e._file[56:60].view("<u4")[0])  # the constants section begins with them
    intact = e._file[: ops + 64 * len(e.blob.ops)].copy()
    damaged = [(0, 128), (128, e.blob.program_len)] + 5 * [(ops, intact.size)]
    values = (0, 1, 2, 3, 4, 0xFF, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)
    outcomes = set()
    for _ in range(400):
        e._file[: intact.size] = intact
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(*rng.choice(damaged), 2)
            width = rng.choice((1, 2, 4))
            value = rng.choice((*values, rng.getrandbits(32))) % 256**width
            e._file[at : at + width] = np.frombuffer(value.to_bytes(width, "little"), np.uint8)
        for name in guarded:
            getattr(e, name)[:] = np.frombuffer(rng.randbytes(getattr(e, name).size), np.uint8)
        for i in range(len(e.blob.ops)):
            run = Run(i, i + 1, LEARN, 1, 3, 1000, -20, 1, 1)
            outcomes.add(e._library.sprout_run(e._memory, run))
        e._library.sprout_apply(e._memory)
        for name, whole in guarded.items():
            assert (whole[:64] == 0xA5).all() and (whole[-64:] == 0xA5).all(), name
    assert len(outcomes) >= 5  # several ways to be refused, and some to run


def test_checking_runs_nothing():
    e = Engine(learner().to_bytes())
    before = bytes(e.arena), bytes(e.trained)
    e.run_ops(0, len(e.blob.ops), CHECK)
    assert (bytes(e.arena), bytes(e.trained)) == before
