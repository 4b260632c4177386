"""The kernels made for ARMv7E-M against the plain ones: the cases of those for ARMv6-M.

The module runs on an emulated Cortex-M4 with guard pages around every buffer, the plain kernels on
this machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import test_kernels_armv6m as cases
from emulator import emulate
from machine import Machine


@pytest.fixture(scope="module", params=["start", "end"])
def processor(request: Any) -> Machine:
    return emulate("cortex-m4", edge=request.param)


@pytest.mark.parametrize("seed", range(40))
def test_convolution(processor: Machine, seed: int) -> None:
    cases.test_convolution(processor, seed)


@pytest.mark.parametrize("seed", range(60))
def test_depthwise(processor: Machine, seed: int) -> None:
    cases.test_depthwise(processor, seed)


@pytest.mark.parametrize("kernel", cases.KERNELS)
def test_depthwise_of_whole_windows(processor: Machine, kernel: tuple[int, int]) -> None:
    cases.test_depthwise_of_whole_windows(processor, kernel)


@pytest.mark.parametrize("seed", range(40))
def test_input_gradients(processor: Machine, seed: int) -> None:
    cases.test_input_gradients(processor, seed)


@pytest.mark.parametrize("seed", range(40))
def test_weight_updates(processor: Machine, seed: int) -> None:
    cases.test_weight_updates(processor, seed)


@pytest.mark.parametrize("seed", range(10))
def test_addition(processor: Machine, seed: int) -> None:
    cases.test_addition(processor, seed)


@pytest.mark.parametrize("bits", [1, 7, 14])
def test_scaled_gradients(processor: Machine, bits: int) -> None:
    cases.test_scaled_gradients(processor, bits)


def test_requantization(processor: Machine) -> None:
    cases.test_requantization(processor)
