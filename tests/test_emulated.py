"""Whole networks on emulated processors: the same bytes as on this machine.

The modules are those built from the sources.  Buffers lie between guard pages (``emulator.py``),
once with their ends at one and once with their starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unicorn
from emulator import CPUS, Net, emulate, missing
from machine import Fault, Machine
from nets import everything_net, residual_net
from sprout import compile as compiler
from sprout.engine import Engine
from sprout.schedule import rate_parts

STEPS, SEED, STACK = 20, 7, 2048
RATE = rate_parts(0.01)


def emulated_cpu(cpu: str) -> Any:
    """Return a parameter of tests that are skipped where the processor cannot be emulated."""
    lack = missing(cpu)
    return pytest.param(cpu, marks=pytest.mark.skipif(bool(lack), reason=f"NOT TESTED: {lack}"))


ALL = [emulated_cpu(cpu) for cpu in CPUS]
MAIN = [emulated_cpu(cpu) for cpu in ("cortex-m0", "cortex-m4", "rv32", "xtensa")]
PLANS = {
    "mlperf_vww_96_int8.tflite": "b12,21:1/2,22:1/4,24:1",
    "mcunet-5fps.pkl": "b20,24:1/4,27:1/2,30:1/2",
}


def compare(blob: bytes, processor: Machine, steps: int, **options: bool) -> None:
    """Forward passes and training steps on the processor and on this machine."""
    net, engine = Net(blob, processor, **options), Engine(blob, **options)
    shape = engine.blob.tensors[engine.blob.input].shape
    kind = np.uint8 if engine.blob.lut_offset else np.int8
    low = np.iinfo(kind).min
    rng = np.random.default_rng(SEED)
    classes = engine.blob.n_classes
    processor.reset_count()
    for t in range(steps):
        x = rng.integers(low, low + 256, shape).astype(kind)
        losses = [one.step(x, t % classes, RATE, SEED, t) for one in (net, engine)]
        assert losses[0] == losses[1], f"step {t}"
        if options.get("accumulate") and t % 4 == 3:
            net.apply()
            engine.apply()
        assert net.digest() == engine.digest(), f"step {t}"
        assert processor.read(net.arena) == engine.arena.tobytes(), f"step {t}"
    x = rng.integers(low, low + 256, shape).astype(kind)
    for one in (net, engine):
        one.set_input(x)
    assert (net.forward() == engine.forward()).all()
    processor.check_surroundings()
    assert processor.stack_used <= STACK
    assert net.digest() != Engine(blob).digest(), "nothing was learned"


@pytest.mark.parametrize("cpu", ALL)
@pytest.mark.parametrize("in_place", [True, False])
def test_every_operator(cpu: str, in_place: bool) -> None:
    for edge in ("end", "start"):
        for make in (residual_net, everything_net):
            blob = compiler.compile_graph(make(3), "full").to_bytes()
            compare(blob, emulate(cpu, edge=edge), 4, in_place=in_place)


@pytest.mark.parametrize("cpu", MAIN)
def test_accumulators(cpu: str) -> None:
    blob = compiler.compile_graph(everything_net(4), "full").to_bytes()
    compare(blob, emulate(cpu), 8, accumulate=True)


@pytest.mark.parametrize("cpu", MAIN)
@pytest.mark.parametrize("name", ["emlearn_mnist_cnn_int8", "mlperf_kws_ref_model_int8"])
def test_twenty_training_steps(shared: Path, cpu: str, name: str) -> None:
    blob = compiler.compile_model(shared / "models" / f"{name}.tflite", "full").to_bytes()
    compare(blob, emulate(cpu), STEPS)


@pytest.mark.parametrize("cpu", MAIN)
@pytest.mark.parametrize("name", PLANS)
def test_person_detectors(shared: Path, cpu: str, name: str) -> None:
    classes = ["no_person", "person"] if name.endswith(".pkl") else None
    blob = compiler.compile_model(shared / "models" / name, PLANS[name], classes).to_bytes()
    compare(blob, emulate(cpu, edge="start"), 1)


@pytest.mark.parametrize("cpu", MAIN)
@pytest.mark.parametrize(("edge", "shift"), [("start", -2048), ("end", 2048)])
def test_the_emulator_finds_an_access_outside(cpu: str, edge: str, shift: int) -> None:
    blob = compiler.compile_graph(residual_net(3), "full").to_bytes()
    net = Net(blob, emulate(cpu, edge=edge))
    net.arena.address += shift  # what the core is told is not what is there
    with pytest.raises(Fault, match=f"{cpu} (reads|writes) .* of arena"):
        net.forward()


def test_counts_are_exact() -> None:
    """The count by blocks is what stopping at every instruction gives."""
    blob = compiler.compile_graph(residual_net(3), "full").to_bytes()
    net = Net(blob, "cortex-m0")
    seen = [0]

    def on_code(uc: object, address: int, size: int, data: object) -> None:
        seen[0] += 1

    start = net.cpu.code_address
    net.set_input(np.zeros((8, 8, 3), np.int8))
    net.cpu.uc.hook_add(unicorn.UC_HOOK_CODE, on_code, begin=start, end=start + len(net.cpu.code))
    net.cpu.uc.ctl_flush_tb()  # blocks that were translated without the hook
    net.cpu.reset_count()
    net.forward()
    assert net.cpu.count().instructions == seen[0] > 10000
