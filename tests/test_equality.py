"""The same bytes everywhere: reference.py, the C core on this machine, and MicroPython.

Real networks at full size, real pictures: 64 predictions, then 200 training steps.
"""

from __future__ import annotations

import numpy as np
import pytest
from nets import everything_net, residual_net
from sprout import compile as compiler
from sprout.board import sim
from sprout.engine import Engine
from sprout.reference import Machine
from sprout.schedule import rate_at, rate_parts

NETWORKS = {
    "mcunet-5fps.pkl": "b20,24:1/4,27:1/2,30:1/2",
    "proxyless-w0.3.pkl": "b24,46:1/2,48:1/4,54:1,58:1/2",
    "mlperf_vww_96_int8.tflite": "b12,21:1/2,22:1/4,24:1",
    "mcunet_vww_int8.tflite": "b14,34:1/2,36:1/2,40:1",
}
FORWARDS, STEPS, SEED = 64, 200, 7
RATE = 0.002
HEAP = 512 * 1024


def compiled(shared, name):
    classes = ["no_person", "person"] if name.endswith(".pkl") else None
    return compiler.compile_model(shared / "models" / name, NETWORKS[name], classes)


def train(net, x, y, order, n_classes=2):
    """Two hundred steps as the board does them, the rate falling from RATE to nothing."""
    mantissa, exponent = rate_parts(RATE)
    for t, i in enumerate(order):
        rate = (rate_at(mantissa, t, len(order)), exponent)
        net.step(x[i], int(y[i]), rate=rate, seed=SEED, step=t, n_classes=n_classes)
    return net.digest()


def outputs(net, x):
    result = []
    for frame in x:
        net.set_input(frame)
        result.append(np.array(net.forward()).ravel())
    return np.array(result)


@pytest.mark.parametrize("name", NETWORKS)
def test_reference_host_and_micropython_agree(name, shared, load, tmp_path):
    blob = compiled(shared, name)
    x, y, _ = load.images("person_test", FORWARDS, blob.tensors[blob.input].h)
    order = np.random.default_rng(SEED).integers(0, len(x), STEPS)
    data = blob.to_bytes()
    engine, machine = Engine(data), Machine(blob)
    expected = outputs(machine, x)
    assert (outputs(engine, x) == expected).all()
    assert len(np.unique(expected, axis=0)) > FORWARDS // 2, "the pictures tell nothing apart"

    initial = machine.digest()
    trained = train(machine, x, y, order)
    assert trained != initial
    assert train(engine, x, y, order) == trained
    assert train(Engine(data, in_place=False), x, y, order) == trained, "streamed weights differ"

    file = tmp_path / "net.sprout"
    file.write_bytes(data)
    assert (sim.run_on_board(file, x, heap=HEAP) == expected).all()
    result = sim.learn_on_board(
        file, x, y, order.astype(np.uint32), x[:8], y[:8], RATE, seed=SEED, heap=HEAP
    )
    assert result["digest"] == trained


@pytest.mark.parametrize("net", [residual_net, everything_net])
@pytest.mark.parametrize("plan", ["last", "b3,2:1/2", "b2", "full"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("fractions", ["none", "head", "all"])
def test_every_operator_and_mode(net, plan, accumulate, fractions):
    """Small nets with every operator, over steps of every size, large enough to hurt too."""
    blob = compiler.compile_graph(net(3), plan, fractions=fractions)
    engine = Engine(blob.to_bytes(), accumulate=accumulate)
    machine = Machine(blob, accumulate=accumulate)
    rng = np.random.default_rng(5)
    shape = blob.tensors[blob.input].shape
    for t in range(60):
        x = rng.integers(-128, 128, shape).astype(np.int8)
        arguments = {"rate": rate_parts(10.0 ** rng.uniform(-5, 0)), "seed": t * 977, "step": t}
        label = int(rng.integers(0, 4))
        for one in (engine, machine):
            one.step(x, label, n_classes=4, **arguments)
            if accumulate and t % 3 == 2:
                one.apply()
        assert engine.digest() == machine.digest(), f"step {t}"
        engine.set_input(x)
        machine.set_input(x)
        assert (engine.forward() == machine.forward()).all(), f"step {t}"


@pytest.mark.parametrize("net", [residual_net, everything_net])
def test_the_arena_changes_nothing(net):
    """Placed buffers give what a tensor of its own for every value gives (the reference's way)."""
    blob = compiler.compile_graph(net(1), "full")
    engine, machine = Engine(blob.to_bytes()), Machine(blob)
    x = np.random.default_rng(2).integers(-128, 128, blob.tensors[blob.input].shape)
    for one in (engine, machine):
        one.set_input(x.astype(np.int8))
    assert (engine.forward() == machine.forward()).all()
    assert (engine.tensor(blob.logits) == machine.value(blob.logits)).all()


def test_training_mcunet_fits_256_kilobytes_with_everything_counted(shared, load, tmp_path):
    """The headline of 'On-Device Training Under 256KB Memory', with weights streamed from flash.

    The heap holds arena, trained weights, scratch, tables, the device package and all objects; the
    machine code, which the unix port maps outside, is taken off the heap first.
    """
    blob = compiled(shared, "mcunet-5fps.pkl")
    x, y, _ = load.images("person_test", 8, 128)
    file = tmp_path / "net.sprout"
    file.write_bytes(blob.to_bytes())
    order = np.arange(8, dtype=np.uint32)
    result = sim.learn_on_board(file, x, y, order, x[:2], y[:2], RATE, heap=256 * 1024)
    assert result["heap_limit"] == 256 * 1024
    assert result["heap_peak"] <= 256 * 1024
    held = result["arena_bytes"] + result["trained_bytes"] + result["native_bytes"]
    assert result["heap_peak"] > held
    assert result["digest"] != Engine(file.read_bytes()).digest()
