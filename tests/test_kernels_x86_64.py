"""The kernels made for x86-64 against the plain ones: the cases of those for ARMv6-M.

Both run on this machine, with guard pages around every buffer of the library that has these. It
is built for this processor, and for one that has AVX2 and nothing later.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_kernels_armv6m as cases
import walled
from machine import Fault, Machine
from tiny import Builder, geometry

from native_modules import build

Run = Callable[..., None]
HAS_AVX2 = Path("/proc/cpuinfo").exists() and "avx2" in Path("/proc/cpuinfo").read_text().split()
pytestmark = pytest.mark.skipif(
    build.HOST_KERNELS != "x86_64" or not HAS_AVX2,
    reason="NOT TESTED: this machine is no x86-64 with AVX2, or is not Linux",
)


@functools.cache
def library(processor: str) -> Path:
    """The core for this machine, or for the least that the kernels ask."""
    if processor == "native":
        return build.build_host()
    sources = build.core_sources(build.HOST_KERNELS)
    return build.build_shared(sources, build.BUILD / "libsprout_avx2.so", ["-mcpu=x86_64_v3"])


@pytest.fixture(params=itertools.product(["native", "avx2"], ["start", "end"]), ids="-".join)
def run(request: Any) -> Run:
    """Runs a case on the kernels, its buffers beginning or ending at a page."""
    processor, edge = request.param

    def run_case(case: Callable[..., None], *args: Any) -> None:
        walled.run(case, library(processor), edge, *args)

    return run_case


@pytest.mark.parametrize("seed", range(60))
def test_convolution(run: Run, seed: int) -> None:
    run(cases.test_convolution, seed)


@pytest.mark.parametrize("seed", range(60))
def test_depthwise(run: Run, seed: int) -> None:
    run(cases.test_depthwise, seed)


@pytest.mark.parametrize("kernel", cases.KERNELS)
def test_depthwise_of_whole_windows(run: Run, kernel: tuple[int, int]) -> None:
    run(cases.test_depthwise_of_whole_windows, kernel)


@pytest.mark.parametrize("seed", range(40))
def test_input_gradients(run: Run, seed: int) -> None:
    run(cases.test_input_gradients, seed)


@pytest.mark.parametrize("seed", range(40))
def test_weight_updates(run: Run, seed: int) -> None:
    run(cases.test_weight_updates, seed)


@pytest.mark.parametrize("seed", range(10))
def test_addition(run: Run, seed: int) -> None:
    run(cases.test_addition, seed)


@pytest.mark.parametrize("bits", [1, 7, 14])
def test_scaled_gradients(run: Run, bits: int) -> None:
    run(cases.test_scaled_gradients, bits)


def test_requantization(run: Run) -> None:
    run(cases.test_requantization)


def wide_rows(host: Machine, seed: int) -> None:
    """Rows about as long as those that the kernels have room for."""
    rng, n = np.random.default_rng(seed + 6000), Builder()
    kernel = [(3, 3), (5, 5), (2, 1)][seed % 3]
    sizes = kernel[0], 1024 // kernel[0] + int(rng.integers(-6, 3))
    least = cases.forward(rng, n, sizes, int(rng.integers(1, 40)), -1, kernel)
    cases.compare(rng, host, n, least)
    gradient_in_place(host, rng, sizes, int(rng.integers(1, 40)), kernel)


def gradient_in_place(
    host: Machine, rng: cases.Rng, sizes: Any, channels: int, kernel: Any
) -> None:
    """That of a depthwise layer which takes the place of what it comes from."""
    n = Builder()
    n.tensor((1, 1, 1))
    g = n.tensor((*sizes, channels), "int16")
    at = cases.records(rng, n, cases.int8(rng, channels, kernel[0] * kernel[1]))
    pad = [k // 2 for k in kernel]
    p = [*geometry(kernel, (1, 1), pad), at, -1, -1, 0, int(rng.integers(10))]
    n.op("depthwise_input_grad", [g, g], p)
    record = 16 + (kernel[0] * kernel[1] + 3) // 4 * 4
    cases.compare(rng, host, n, record + 2 * sizes[0] * sizes[1])


@pytest.mark.parametrize("seed", range(6))
def test_depthwise_of_wide_rows(run: Run, seed: int) -> None:
    run(wide_rows, seed)


def in_place(host: Machine, seed: int) -> None:
    rng = np.random.default_rng(seed + 7000)
    kernel = [(3, 3), (5, 5), (7, 7), (1, 7)][seed % 4]
    gradient_in_place(host, rng, cases.some_sizes(rng, 9), int(rng.integers(1, 40)), kernel)


@pytest.mark.parametrize("seed", range(8))
def test_depthwise_gradients_in_place(run: Run, seed: int) -> None:
    run(in_place, seed)


def many_outputs(host: Machine, outputs: int) -> None:
    """About as many as the kernel turns the weights of round."""
    rng, n = np.random.default_rng(outputs), Builder()
    n.tensor((1, 1, 1))
    g, dx = n.tensor((1, 3, outputs), "int16"), n.tensor((1, 3, 32), "int16")
    at = n.transposed(cases.int8(rng, outputs, 1, 1, 32))
    n.op("conv_input_grad", [g, dx], [*geometry((1, 1)), at, -1, -1, 0, 0])
    cases.compare(rng, host, n, 16 + outputs + 3)


@pytest.mark.parametrize("outputs", [2559, 2560, 2561])
def test_input_gradients_of_many_outputs(run: Run, outputs: int) -> None:
    run(many_outputs, outputs)


def many_pixels(host: Machine, kernel: Any, stride: int, sizes: Any, inputs: int) -> None:
    """More of them than the kernels list at a time, or have planes for."""
    rng, n = np.random.default_rng(sizes), Builder()
    outputs = 3 if inputs else 2
    pad = [k // 2 for k in kernel]
    dims = zip(sizes, kernel, pad, strict=True)
    out = [cases.output_size(size, k, stride, before, before) for size, k, before in dims]
    x = n.tensor((*sizes, inputs or outputs), zero=-77)
    g = n.tensor((*out, outputs), "int16")
    row = kernel[0] * kernel[1] * (inputs or 1)
    at, accum, key = n.trained(cases.int8(rng, outputs, row).clip(-127, 127))
    table = n.update_table(np.full(outputs, 1e-5))
    p = [*geometry(kernel, (stride, stride), pad), at, table, accum, key, -1, 0]
    n.op("conv_weight_update" if inputs else "depthwise_weight_update", [g, x], p)
    run = {"rate": (3000, -20), "seed": 1}
    cases.compare(rng, host, n, 8 * outputs + 4 * row, run)


@pytest.mark.parametrize(
    "shape",
    [
        ((1, 1), 1, (16, 16), 40),  # as many as a list has
        ((1, 1), 1, (30, 30), 23),
        ((3, 3), 2, (64, 64), 3),
        ((3, 3), 1, (20, 20), 17),
        ((3, 3), 1, (126, 126), 0),  # as many as a plane has
        ((3, 3), 1, (126, 127), 0),
        ((5, 5), 3, (60, 70), 0),
    ],
    ids=str,
)
def test_weight_updates_from_many_pixels(run: Run, shape: Any) -> None:
    run(many_pixels, *shape)


def any_scales(host: Machine, seed: int) -> None:
    rng, n = np.random.default_rng(seed + 8000), Builder()
    n.tensor((1, 1, 1))
    for channels in rng.integers(1, 70, 6):
        table = rng.integers(-(2**31), 2**31, channels) >> rng.integers(0, 31)
        table[rng.random(channels) < 0.1] = -(2**31)
        for scale in ([n.constant(table.astype("<i4").tobytes())], [-1, int(table[0])]):
            g, out = (n.tensor((3, 2, channels), "int16") for _ in range(2))
            mask = n.like(g, "bits")
            n.op("scale_grad", [g, mask, out], [scale[0], -30, 14, *scale[1:]])
    cases.compare(rng, host, n, 4 * 70)


@pytest.mark.parametrize("seed", range(6))
def test_any_scales(run: Run, seed: int) -> None:
    run(any_scales, seed)


def step_outside(host: Machine) -> None:
    buffer = host.place("buffer", 8)
    host.peek(buffer.address - 1 if host.edge == "start" else buffer.address + 8, 1)


def test_an_access_outside_is_a_fault(run: Run) -> None:
    with pytest.raises(Fault, match="touched memory outside"):
        run(step_outside)
