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

import pytest
import test_kernels_armv6m as cases
import walled
from machine import Fault, Machine

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


def step_outside(host: Machine) -> None:
    buffer = host.place("buffer", 8)
    host.peek(buffer.address - 1 if host.edge == "start" else buffer.address + 8, 1)


def test_an_access_outside_is_a_fault(run: Run) -> None:
    with pytest.raises(Fault, match="touched memory outside"):
        run(step_outside)
