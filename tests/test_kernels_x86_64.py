"""The kernels made for x86-64 against the plain ones: the cases of those for ARMv6-M.

Both run on this machine, with guard pages around every buffer of the library that has these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_kernels_armv6m as cases
import walled
from machine import Fault, Machine

from native_modules import build

Run = Callable[..., None]
pytestmark = pytest.mark.skipif(
    build.HOST_KERNELS != "x86_64", reason="NOT TESTED: this machine is no x86-64"
)


@pytest.fixture(params=["start", "end"])
def run(request: Any) -> Run:
    """Runs a case on the kernels, its buffers beginning or ending at a page."""

    def run_case(case: Callable[..., None], *args: Any) -> None:
        walled.run(case, build.build_host(), request.param, *args)

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


def step_outside(host: Machine, before: bool) -> None:
    buffer = host.place("buffer", 8)
    host.peek(buffer.address - 1 if before else buffer.address + 8, 1)


def test_an_access_outside_is_a_fault(run: Run, request: Any) -> None:
    with pytest.raises(Fault, match="touched memory outside"):
        run(step_outside, request.node.callspec.params["run"] == "start")
