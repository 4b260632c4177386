"""The kernels made for ARMv6-M against the plain ones: all bytes, on operators of random shapes.

The module runs on an emulated Cortex-M0 with guard pages around every buffer, the plain kernels on
this machine.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from emulator import Net, emulate
from machine import Machine
from sprout.blob import NONE
from sprout.engine import LEARN, PREDICT, Engine
from sprout.graph import quantize_multiplier
from tiny import Builder, geometry

from native_modules import build

PLAIN = build.build_host(plain=True)
STACK = 2048
KERNELS = [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (4, 2), (10, 4), (2, 9), (3, 2), (35, 1)]
Rng = np.random.Generator


@pytest.fixture(scope="module", params=["start", "end"])
def processor(request: Any) -> Machine:
    return emulate("cortex-m0", edge=request.param)


def int8(rng: Rng, *shape: int) -> np.ndarray:
    """Values of one of the kinds that could matter: any, small, or extreme ones alone."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.choice(np.array([-128, 127], np.int8), shape)
    if kind == 1:
        return np.full(shape, rng.choice([-128, 127, 0]), np.int8)
    limit = 128 if kind == 2 else 20
    return rng.integers(-limit, limit, shape).astype(np.int8)


def records(rng: Rng, n: Builder, weight: np.ndarray) -> int:
    """Forward records, now and then with multipliers that no compiler would choose."""
    outputs = len(weight)
    bias = rng.integers(-(2**15), 2**15, outputs)
    at = n.records(weight, bias, 0.5 / np.sqrt(weight[0].size) * rng.uniform(0.001, 0.03, outputs))
    if rng.random() < 0.3:
        heads = np.frombuffer(n.constants, np.int32)[at // 4 :].reshape(outputs, -1).copy()
        some = rng.random(outputs) < (0.2 if rng.random() < 0.5 else 1)
        limits = np.array([0, 1, 2**30, 2**31 - 1, -(2**31), -5])
        heads[some, 1] = rng.choice(limits, some.sum())
        heads[some, 2] = rng.integers(-40, 36, some.sum())
        heads[some, 0] = rng.integers(-(2**31), 2**31, some.sum())
        n.constants[at:] = heads.tobytes()
    return at


def compare(
    rng: Rng, processor: Machine, n: Builder, least: int, run: Any = None, stack: int = STACK
) -> None:
    """Run all operators from a random arena and compare everything that is left."""
    bits = [i for i, t in enumerate(n.tensors) if t.dtype == "bits"]
    gradients = [i for i, t in enumerate(n.tensors) if t.dtype == "int16"]
    small = next(i for i, t in enumerate(n.tensors) if t.dtype == "int8")
    blob = n.blob(small, small, small)
    blob.scratch_len = least
    last = blob.tensors[rng.integers(len(blob.tensors) - 1)]  # where the arena ends, to the byte
    blob.arena_len = (blob.arena_len + last.nbytes + 3) // 4 * 4
    last.offset = blob.arena_len - last.nbytes
    data = blob.to_bytes()
    options = {"accumulate": bool(n.accum_len) and rng.random() < 0.5}
    if rng.random() < 0.6:
        scratch = int(least + rng.choice([0, 0, 300, 9000]) + 3) & ~3
        options |= {"in_place": False, "scratch": scratch}
    one, other = Net(data, processor, **options), Engine(data, library=PLAIN, **options)
    for i, t in enumerate(n.tensors[:-1]):
        values = int8(rng, *t.shape)
        if i in gradients:
            values = rng.integers(-(2**14), 2**14 + 1, t.shape).astype(np.int16)
            values[rng.random(t.shape) < rng.choice([0, 0.5, 0.99])] = 0
        if i in bits:
            other.arena[t.offset : t.offset + t.nbytes] = rng.integers(0, 256, t.nbytes)
        else:
            other.tensor(i)[:] = values
    one.cpu.write(one.arena, other.arena.tobytes())
    mode = LEARN if gradients or rng.random() < 0.5 else PREDICT
    processor.reset_count()
    for net in (one, other):
        net.run_ops(0, len(blob.ops), mode, **(run or {}))
    told = f"{blob.ops} {[str(t) for t in blob.tensors]} {options}"
    assert one.cpu.read(one.arena) == other.arena.tobytes(), told
    assert one.cpu.read(one.trained) == other.trained.tobytes(), told
    if options["accumulate"]:
        assert one.cpu.read(one.accum) == other.accum.tobytes(), told
    assert one.run.reruns == other.run.reruns
    processor.check_surroundings()
    assert processor.stack_used <= stack


def output_size(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    return (size + before + after - kernel) // stride + 1


def window(
    rng: Rng, pointwise: float, sizes: tuple[int, int], kernel: Any = None
) -> tuple[Any, Any, Any, list[int]]:
    """A kernel, strides, pads, and the output's size, for an input of some size."""
    given = kernel
    while True:
        some = (1, 1) if rng.random() < pointwise else KERNELS[rng.integers(len(KERNELS))]
        kernel = given or some
        stride, first, last = (1, 1), (0, 0), (0, 0)
        if rng.random() < 0.8 and kernel != (1, 1) or rng.random() < 0.1:
            stride = tuple(int(s) for s in rng.integers(1, 4, 2))
            first, last = ([int(rng.integers(k)) for k in kernel] for _ in range(2))
        out = [output_size(*a) for a in zip(sizes, kernel, stride, first, last, strict=True)]
        if min(out) > 0:
            return kernel, stride, first, out


def forward(
    rng: Rng, n: Builder, sizes: Any, channels: int, outputs: int, kernel: Any = None
) -> int:
    """A convolution, depthwise if outputs is a negative multiplier; returns the least scratch."""
    deep = outputs < 0
    kernel, stride, first, out = window(rng, 0 if deep else 0.6, sizes, kernel)
    taps, outputs = kernel[0] * kernel[1], -outputs * channels if deep else outputs
    inputs = 1 if deep else channels
    x = n.tensor((*sizes, channels), zero=int(rng.choice([-128, 127, rng.integers(-128, 128)])))
    y = n.tensor((*out, outputs), zero=int(rng.choice([-128, 127, rng.integers(-128, 128)])))
    mask = n.like(y, "bits") if rng.random() < 0.5 else NONE
    low, high = sorted(int(v) for v in rng.integers(-128, 128, 2))
    if rng.random() < 0.5:
        low, high = -128, 127
    weight = int8(rng, outputs, taps * inputs)
    at = records(rng, n, weight)
    bias_at = weight_at = -1
    if rng.random() < 0.3:
        bias_at, _, _ = n.trained(rng.integers(-9999, 9999, outputs).astype(np.int32))
        shape = (outputs, taps * inputs)
        weight_at, _, _ = n.trained(int8(rng, *shape))
        n.accum_len = 0
    single = 0 if deep else int(rng.random() < 0.1)
    p = [*geometry(kernel, stride, first), low, high, at, weight_at, bias_at, -1, 0, single]
    n.op("depthwise" if deep else "conv", [x, y, mask], p)
    return 16 + (taps * inputs + 3) // 4 * 4


def some_sizes(rng: Rng, most: int) -> tuple[int, int]:
    h, w = (int(size) for size in rng.integers(1, most, 2))
    return h, w


@pytest.mark.parametrize("seed", range(60))
def test_convolution(processor: Machine, seed: int, stack: int = STACK) -> None:
    rng, n = np.random.default_rng(seed), Builder()
    most, outputs = int(rng.choice([5, 140])), int(rng.integers(1, 80))
    sizes = some_sizes(rng, 3 if rng.random() < 0.3 else 10)
    least = forward(rng, n, sizes, int(rng.integers(1, most)), outputs)
    compare(rng, processor, n, least, stack=stack)


@pytest.mark.parametrize("seed", range(60))
def test_depthwise(processor: Machine, seed: int, stack: int = STACK) -> None:
    rng, n = np.random.default_rng(seed + 1000), Builder()
    sizes = [some_sizes(rng, 12), some_sizes(rng, 3), (3, 99), (230, 2)][seed % 4]
    channels = int(rng.integers(1, 3 if max(sizes) > 20 else 40))
    least = forward(rng, n, sizes, channels, -int(rng.choice([1, 1, 2, 5])))
    compare(rng, processor, n, least, stack=stack)


@pytest.mark.parametrize("kernel", KERNELS)
def test_depthwise_of_whole_windows(processor: Machine, kernel: tuple[int, int]) -> None:
    rng, n, least = np.random.default_rng(kernel), Builder(), 0
    for _ in range(6):
        sizes = [int(k + rng.integers(5)) for k in kernel]
        least = max(least, forward(rng, n, sizes, int(rng.integers(4, 12)), -1, kernel))
    compare(rng, processor, n, least)


@pytest.mark.parametrize("seed", range(40))
def test_input_gradients(processor: Machine, seed: int) -> None:
    rng, n = np.random.default_rng(seed + 2000), Builder()
    deep, sizes = seed % 4 == 3, some_sizes(rng, 9)
    inputs = int(rng.integers(1, 70))
    outputs = inputs if deep else int(rng.integers(1, 70))
    kernel, stride, first, out = window(rng, 0 if deep else 0.7, sizes)
    taps = kernel[0] * kernel[1]
    n.tensor((1, 1, 1))
    g, dx = n.tensor((*out, outputs), "int16"), n.tensor((*sizes, inputs), "int16")
    if deep:
        at = records(rng, n, int8(rng, outputs, taps))
    else:
        at = n.transposed(int8(rng, outputs, *kernel, inputs))
    p = [*geometry(kernel, stride, first), at, -1, -1, 0, int(rng.integers(10))]
    n.op("depthwise_input_grad" if deep else "conv_input_grad", [g, dx], p)
    compare(rng, processor, n, 16 + (taps * (1 if deep else outputs) + 3) // 4 * 4)


@pytest.mark.parametrize("seed", range(40))
def test_weight_updates(processor: Machine, seed: int) -> None:
    rng, n = np.random.default_rng(seed + 3000), Builder()
    deep, sizes = seed % 4 == 3, some_sizes(rng, 12)
    inputs = int(rng.integers(1, 70))
    outputs = inputs if deep else int(rng.integers(1, 70))
    kernel, stride, first, out = window(rng, 0 if deep else 0.7, sizes)
    taps = kernel[0] * kernel[1]
    x = n.tensor((*sizes, inputs), zero=int(rng.integers(-128, 128)))
    g = n.tensor((*out, outputs), "int16")
    row = taps * (1 if deep else inputs)
    at, accum, key = n.trained(int8(rng, outputs, row).clip(-127, 127))
    magnitude = 2.0 ** rng.integers(-30, 30)
    table = n.update_table(magnitude * rng.uniform(0, 2, outputs).round(1))
    p = [*geometry(kernel, stride, first), at, table, accum, key, -1, 0]
    n.op("depthwise_weight_update" if deep else "conv_weight_update", [g, x], p)
    at, accum, key = n.trained(rng.integers(-(2**30), 2**30, outputs).astype(np.int32))
    n.op("bias_update", [g], [at, table, accum, key])
    run = {"rate": (int(rng.integers(1, 4096)), int(rng.integers(-40, 20))), "seed": seed}
    compare(rng, processor, n, 8 * outputs + 4 * max(row, outputs), run)


MULTIPLIERS = [0, 1, 5, 2**30, 2**30 + 1, 2**31 - 1, -(2**31), -(2**30), -1]


def test_requantization(processor: Machine) -> None:
    """An addition requantises three times, from sums of any size."""
    rng = np.random.default_rng(5)
    shifts = [-40, -31, -30, -9, -1, 0, 1, 11, 30, 33]
    pairs = list(itertools.product(MULTIPLIERS, shifts))
    for start in range(0, len(pairs), 15):
        n = Builder()
        a, b = n.tensor((1, 1, 70), zero=-3), n.tensor((1, 1, 70), zero=9)
        for multiplier, shift in pairs[start : start + 15]:
            y = n.tensor((1, 1, 70), zero=int(rng.integers(-128, 128)))
            sum_multiplier, sum_shift = quantize_multiplier(float(2.0 ** rng.integers(-28, 3)))
            other = int(rng.integers(-(2**31), 2**31)), int(rng.integers(-33, 33))
            p = [multiplier, shift, *other, sum_multiplier, sum_shift, -128, 127]
            n.op("add", [a, b, y, NONE], p)
        compare(rng, processor, n, 0)


@pytest.mark.parametrize("seed", range(10))
def test_addition(processor: Machine, seed: int) -> None:
    """With multipliers as the compiler makes them: that of the greater scale is 1/2."""
    rng, n = np.random.default_rng(seed + 5000), Builder()
    shape = (1, int(rng.integers(1, 5)), int(rng.integers(1, 80)))
    for scales in rng.uniform(0.01, 1, (6, 3)):
        a, b, y = (n.tensor(shape, zero=int(rng.integers(-128, 128))) for _ in range(3))
        most = 2 * scales[:2].max()
        real = [*scales[:2] / most, most / (2**20 * scales[2])]
        limits = [-128, 127] if rng.random() < 0.5 else [-90, 101]
        mask = n.like(y, "bits") if rng.random() < 0.5 else NONE
        p = [part for r in real for part in quantize_multiplier(float(r))]
        n.op("add", [a, b, y, mask], [*p, *limits])
    compare(rng, processor, n, 0)


@pytest.mark.parametrize("bits", [1, 7, 14])
def test_scaled_gradients(processor: Machine, bits: int) -> None:
    rng, n = np.random.default_rng(bits), Builder()
    n.tensor((1, 1, 1))
    for most in (0, 3, 9, 17, 30):  # bits of the scale, so that all shifts come up
        shape = int(rng.integers(1, 5)), int(rng.integers(1, 5)), int(rng.integers(1, 40))
        table = rng.choice([-1, 1], shape[2]) * 2**most - rng.integers(0, 2, shape[2])
        for scale in ([n.constant(table.astype("<i4").tobytes())], [-1, int(table[0])]):
            for passes in (False, True):
                g, out = n.tensor(shape, "int16"), n.tensor(shape, "int16")
                mask = NONE if passes else n.like(g, "bits")
                n.op("scale_grad", [g, mask, out], [scale[0], -30, bits, *scale[1:]])
                n.op("scale_grad", [out, mask, out], [scale[0], -30, bits, *scale[1:]])
    compare(rng, processor, n, 4 * 40)


def test_a_gradient_of_zeros(processor: Machine) -> None:
    rng, n = np.random.default_rng(6), Builder()
    n.tensor((1, 1, 1))
    g, dx = n.tensor((3, 3, 5), "int16"), n.tensor((3, 3, 4), "int16")
    at = n.transposed(np.zeros((5, 1, 1, 4)))
    n.op("conv_input_grad", [g, dx], [*geometry((1, 1)), at, -1, -1, 0, 3])
    compare(rng, processor, n, 20)
