"""A layer shared by two cores: the same bytes, whatever the second core does.

In real MicroPython the second core is a thread of the unix port, which runs beside the first one.
On emulated processors nobody helps, so that the one there is does both halves.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_kernels_armv6m as cases
from emulator import Net, emulate
from machine import Machine
from nets import everything_net, residual_net
from sprout import compile as compiler
from sprout.engine import LEARN, Engine
from test_device import fails, run, start
from test_emulated import PLANS, compare
from tiny import Builder, geometry

CPUS = ("cortex-m0", "cortex-m4", "rv32")
START = """\
import sprout, time
from sprout import native, second
net = sprout.load('net.sprout')
n = len(net.input)
def learn(steps):
    for _ in range(steps):
        t = net.step
        x = bytes((i * (t + 3) + (i >> 4)) & 255 for i in range(n))
        net.learn(x, t % len(net.classes))
def learn_together():
    before, began = second.blocks(), time.ticks_ms()
    while time.ticks_diff(time.ticks_ms(), began) < 30000:  # other programs may keep it waiting
        learn(1)
        if second.blocks() > before:
            return
    print('nobody helps')
"""
ALONE = START + "learn(steps)\nprint(net.digest(), bytes(net.output))\n"


@pytest.fixture
def flash(tmp_path: Path) -> Path:
    """A folder in place of the flash, with a net whose every layer learns."""
    blob = compiler.compile_graph(residual_net(), "full")
    (tmp_path / "net.sprout").write_bytes(blob.to_bytes())
    return tmp_path


def alone(folder: Path, steps: int) -> str:
    """What one core makes of so many steps."""
    return run(folder, f"steps = {steps}\n" + ALONE)[0]


@pytest.mark.parametrize("name", PLANS)
def test_real_networks_learn_the_same(shared: Path, tmp_path: Path, name: str) -> None:
    classes = ["no_person", "person"] if name.endswith(".pkl") else None
    blob = compiler.compile_model(shared / "models" / name, PLANS[name], classes)
    (tmp_path / "net.sprout").write_bytes(blob.to_bytes())
    together = START + (
        "print(sprout.cores(), sprout.cores(2))\n"
        "began = time.ticks_ms()\n"  # other programs may keep the helper waiting
        "while not second.blocks() and time.ticks_diff(time.ticks_ms(), began) < 60000:\n"
        "    net.predict(bytes(n))\n"
        "learn(4)\nprint(second.blocks())\n"
        "print(net.digest(), bytes(net.output))\n"
    )
    cores, blocks, result = run(tmp_path, together, heap=4 << 20)
    assert cores == "1 2"
    assert int(blocks) > 0, "the second core did nothing"
    assert result == run(tmp_path, "steps = 4\n" + ALONE, heap=4 << 20)[0]


def test_it_comes_and_goes(flash: Path) -> None:
    code = START + (
        "for _ in range(3):\n"
        "    sprout.cores(2)\n"
        "    learn_together()\n"
        "    print(sprout.cores(1), second.blocks())\n"
        "    learn(2)\n"
        "print(net.step)\nprint(net.digest(), bytes(net.output))\n"
    )
    *counts, steps, result = run(flash, code)
    assert counts == ["1 0"] * 3
    assert result == alone(flash, int(steps))


def test_it_leaves_unnoticed(flash: Path) -> None:
    """The helper ends on its own; the first core goes on alone, and can have another."""
    code = START + (
        "sprout.cores(2)\nlearn_together()\n"
        "native.core.assist(native.share, False)\n"
        "learn(5)\ntime.sleep_ms(50)\nblocks = second.blocks()\nlearn(5)\n"
        "print(blocks == second.blocks() > 0, sprout.cores(), sprout.cores(1), sprout.cores(2))\n"
        "learn_together()\n"
        "print(net.step)\nprint(net.digest(), bytes(net.output))\n"
    )
    gone, steps, result = run(flash, code)
    assert gone == "True 2 1 2"
    assert result == alone(flash, int(steps))


def test_garbage_is_collected_meanwhile(flash: Path) -> None:
    code = START + (
        "import gc\nsprout.cores(2)\n"
        "for _ in range(20):\n    learn(1)\n    gc.collect()\n    net.save()\n"
        "print(net.digest(), bytes(net.output))\n"
    )
    assert run(flash, code)[0] == alone(flash, 20)


def test_a_program_ends_with_it(flash: Path) -> None:
    process = start(flash, START + "sprout.cores(2)\nlearn(1)\nprint('end')\n")
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "end\n"), errors


def test_a_program_can_be_interrupted(flash: Path) -> None:
    process = start(flash, START + "sprout.cores(2)\nprint('start')\nlearn(10 ** 9)\n")
    assert process.stdout and process.stdout.readline() == "start\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in out + errors


NO_THREADS = "class Fake:\n    stack_size = lambda n: 0\n    def start_new_thread(*args):\n"
MISHAPS: dict[str, tuple[str, str, str]] = {
    "a number": ("sprout.cores(3)", "ValueError", "1 or 2"),
    "other firmware": (
        "class Core:\n    pass\nnative.core = Core\nsprout.cores(2)",
        "RuntimeError",
        "no second core",
    ),
    "busy": (
        NO_THREADS + "        raise OSError('core1 in use')\n"
        "import sys\nsys.modules['_thread'] = Fake\nsprout.cores(2)",
        "OSError",
        "core1 in use",
    ),
    "no memory": (
        NO_THREADS + "        bytearray(1 << 40)\n"
        "import sys\nsys.modules['_thread'] = Fake\nsprout.cores(2)",
        "MemoryError",
        "4096 bytes",
    ),
}


@pytest.mark.parametrize("name", MISHAPS)
def test_mishaps_get_a_sentence(flash: Path, name: str) -> None:
    code, kind, words = MISHAPS[name]
    assert fails(flash, START + code)[0] == kind
    assert words in fails(flash, START + code)[1]


@pytest.fixture(scope="module", params=CPUS)
def processor(request: Any) -> Machine:
    return emulate(request.param, halves=True)


@pytest.mark.parametrize("seed", range(40))
def test_halves_of_convolutions(processor: Machine, seed: int) -> None:
    cases.test_convolution(processor, seed)


@pytest.mark.parametrize("seed", range(40))
def test_halves_of_depthwise_layers(processor: Machine, seed: int) -> None:
    cases.test_depthwise(processor, seed)


@pytest.mark.parametrize("seed", range(40))
def test_halves_of_input_gradients(processor: Machine, seed: int) -> None:
    cases.test_input_gradients(processor, seed)


@pytest.mark.parametrize("cpu", CPUS)
def test_halves_of_networks(cpu: str) -> None:
    for make in (residual_net, everything_net):
        blob = compiler.compile_graph(make(3), "full").to_bytes()
        compare(blob, emulate(cpu, halves=True), 4)


def test_halves_of_a_person_detector(shared: Path) -> None:
    path = shared / "models" / "mlperf_vww_96_int8.tflite"
    blob = compiler.compile_model(path, PLANS[path.name]).to_bytes()
    compare(blob, emulate("cortex-m0", halves=True), 1)


def test_the_greatest_gradient_of_both_halves_counts(processor: Machine) -> None:
    """Where only the lower rows need a larger shift than was guessed."""
    n = Builder()
    small = n.tensor((1, 1, 1))
    g, dx = n.tensor((4, 3, 5), "int16"), n.tensor((4, 3, 4), "int16")
    at = n.transposed(np.full((5, 1, 1, 4), 100, np.int8))
    n.op("conv_input_grad", [g, dx], [*geometry((1, 1)), at, -1, -1, 0, 0])
    blob = n.blob(small, small, small)
    blob.scratch_len = 20
    data = blob.to_bytes()
    net, engine = Net(data, processor), Engine(data)
    engine.tensor(g)[:] = 0
    engine.tensor(g)[3] = 2**14
    net.cpu.write(net.arena, engine.arena.tobytes())
    for one in (net, engine):
        one.run_ops(0, 1, LEARN)
    assert net.run.reruns == engine.run.reruns == 1
    assert net.cpu.read(net.arena) == engine.arena.tobytes()
    assert net.halved == 2


def test_layers_are_halved(processor: Machine) -> None:
    """Convolutions of several rows and gradients are; what has one row is not."""
    blob = compiler.compile_graph(residual_net(3), "full").to_bytes()
    net, engine = Net(blob, processor), Engine(blob)
    halved = set()
    for i, op in enumerate(engine.blob.ops):
        before = net.halved
        net.run_ops(i, i + 1, LEARN, rate=(2048, -20), n_classes=4)
        if net.halved > before:
            halved.add(op.kind)
    assert {"conv", "depthwise"} <= halved <= {
        "conv", "depthwise", "conv_input_grad", "depthwise_input_grad",
    }  # fmt: skip
    assert any(kind.endswith("grad") for kind in halved)
