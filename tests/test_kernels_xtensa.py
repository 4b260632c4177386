"""The kernels made for Xtensa against the plain ones: the cases of those for ARMv6-M.

The module runs on an emulated dc233c with nothing around the buffers, the plain kernels on this
machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import test_kernels_armv6m as cases
from emulator import emulate, missing
from machine import Machine

pytestmark = pytest.mark.skipif(bool(missing("xtensa")), reason=f"NOT TESTED: {missing('xtensa')}")


@pytest.fixture(scope="module", params=["start", "end"])
def processor(request: Any) -> Machine:
    return emulate("xtensa", edge=request.param)


@pytest.mark.parametrize("seed", range(60))
def test_convolution(processor: Machine, seed: int) -> None:
    cases.test_convolution(processor, seed)


@pytest.mark.parametrize("seed", range(60))
def test_depthwise(processor: Machine, seed: int) -> None:
    cases.test_depthwise(processor, seed)


@pytest.mark.parametrize("seed", range(40))
def test_input_gradients(processor: Machine, seed: int) -> None:
    cases.test_input_gradients(processor, seed)


@pytest.mark.parametrize("seed", range(40))
def test_weight_updates(processor: Machine, seed: int) -> None:
    cases.test_weight_updates(processor, seed)


def test_requantization(processor: Machine) -> None:
    cases.test_requantization(processor)
