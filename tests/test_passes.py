"""Passes change what is stored and computed, never a byte of what comes out."""

from __future__ import annotations

import numpy as np
import pytest
from nets import Maker, everything_net, picture, residual_net
from sprout import compile as compiler
from sprout import frontends, passes
from sprout.engine import Engine
from sprout.graph import Graph, Tensor, macs, mean_multiplier
from sprout.reference import Machine


def outputs(blob, samples=20):
    machine = Machine(blob)
    shape = blob.tensors[blob.input].shape
    rng = np.random.default_rng(0)
    result = []
    for _ in range(samples):
        machine.set_input(rng.integers(-128, 128, shape).astype(np.int8))
        result.append(np.array(machine.forward()).ravel())
    return np.array(result)


def silent_net(dead=(0, 3, 5), constant=-7):
    """conv, depthwise, conv, depthwise 3x3 padded, conv; some channels of the first never move."""
    m = Maker(4)
    x = picture()
    a = m.conv(x, 8, 3, 2)
    b = m.conv(a, 8, 3, depthwise=True)
    c = m.conv(b, 12)
    d = m.conv(c, 12, 3, depthwise=True)
    e = m.conv(d, 6, 3, relu=False)
    mult, shift = mean_multiplier(e.scale, e.scale, 16)
    f = m.op("mean", [e], (1, 1, 6), e.scale, e.zero_point, mult=mult, shift=shift)
    graph = m.graph(x, m.conv(f, 3, relu=False))
    first, depthwise, second, third, _, _ = graph.convs
    first.params["weight"][list(dead)] = 0
    first.params["bias"][list(dead)] = -9000
    depthwise.params["bias"][list(dead)] = constant * -1000
    second.params["weight"][[1, 4]] = 0
    second.params["bias"][[1, 4]] = -90000
    third.params["bias"][1] = 3000  # stands at a constant that a padded reader must not fold
    third.params["bias"][4] = -3000
    return graph


def rounding_net():
    """A channel that real arithmetic rounds to its zero point and gemmlowp's two roundings do not:
    0.26 becomes 0.5 becomes 1."""
    m = Maker(1)
    x = picture(4, 4, 3)
    a = m.conv(x, 8)
    m.ops[-1].params["weight_scales"][:] = 0.26 * a.scale / x.scale
    m.ops[-1].params["weight"][0] = 0
    m.ops[-1].params["bias"][0] = 1
    b = m.conv(a, 4, relu=False)
    m.ops[-1].params["weight"][..., 0] = 127
    window = {"kernel": (4, 4), "stride": (1, 1), "padding": (0, 0, 0, 0)}
    c = m.op("average_pool", [b], (1, 1, 4), b.scale, b.zero_point, **window)
    return m.graph(x, m.conv(c, 4, relu=False))


def compiled_both_ways(make, plan):
    return [compiler.compile_graph(make(), plan, run_passes=on) for on in (False, True)]


@pytest.mark.parametrize("make", [residual_net, everything_net, silent_net, rounding_net])
@pytest.mark.parametrize("plan", ["none", "last", "b1"])
def test_outputs_keep_every_byte(make, plan):
    before, after = compiled_both_ways(make, plan)
    assert (outputs(before) == outputs(after)).all()


def test_channels_that_never_move_are_gone():
    before, after = compiled_both_ways(silent_net, "none")
    shapes = [t.shape[2] for t in after.tensors]
    assert 5 in shapes, "the three dead channels of the first convolution"
    assert 11 in shapes, "channel 4 of the third; 1 is a constant inside a padded window"
    assert after.info["macs"]["forward"] < before.info["macs"]["forward"]


def test_what_learns_is_left_alone():
    """The same trained bytes after steps, and the trained layers in their own size."""
    before, after = compiled_both_ways(silent_net, "b2,4:1/2")
    assert [t["shape"] for t in before.info["trained"]] == [
        t["shape"] for t in after.info["trained"]
    ]
    digests = []
    for blob in (before, after):
        engine = Engine(blob.to_bytes())
        rng = np.random.default_rng(1)
        for t in range(30):
            x = rng.integers(-128, 128, blob.tensors[blob.input].shape).astype(np.int8)
            engine.step(x, t % 3, rate=(3000, -18), seed=2, step=t)
        digests.append(engine.digest())
    assert digests[0] == digests[1]
    assert after.info["macs"]["forward"] < before.info["macs"]["forward"]


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("mlperf_vww_96_int8.tflite", 0.2),
        ("mcunet_vww_int8.tflite", 0.02),
        ("mcunet-5fps.pkl", 0.01),
    ],
)
def test_real_networks_lose_multiplications_and_no_byte(shared, name, saved):
    graph = frontends.load(shared / "models" / name)
    before = compiler.compile_graph(graph, "none", run_passes=False)
    after = compiler.compile_graph(graph, "none")
    assert (outputs(before, 8) == outputs(after, 8)).all()
    whole = sum(macs(op) for op in graph.ops)
    assert before.info["macs"]["forward"] == whole
    assert after.info["macs"]["forward"] < (1 - saved) * whole


def test_unread_operators_are_dropped():
    graph = residual_net()
    extra = Tensor("unread", (4, 4, 8))
    graph.ops.insert(3, type(graph.ops[0])("requantize", [graph.ops[0].outputs[0]], [extra]))
    assert [op.outputs[0] for op in passes.run(graph).ops if op.kind == "requantize"] == []


def test_a_padding_moves_into_its_convolution():
    graph: Graph = everything_net()
    folded = passes.run(graph)
    assert not [op for op in folded.ops if op.kind == "pad"]
    assert folded.convs[0].attrs["padding"] == (1, 1, 1, 1)
