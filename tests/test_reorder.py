"""The order of operators: the lowest peak there is, and the same bytes."""

import functools
import random

import numpy as np
import pytest
from nets import Maker, picture
from sprout import compile as compiler
from sprout import frontends, passes
from sprout.engine import Engine
from sprout.graph import Graph
from sprout.passes import reorder
from sprout.passes.reorder import order_branches, peak
from sprout.schedule import rate_parts

SHARED = [
    "mcunet_vww_int8.tflite", "mlperf_kws_ref_model_int8.tflite",
    "mlperf_resnet8_cifar10_int8.tflite", "mlperf_vww_96_int8.tflite", "mcunet-5fps.pkl",
    "proxyless-w0.3.pkl",
]  # fmt: skip


def branches(n=3):
    """Wide layers side by side, as a file may list them: all that widen, then all that narrow."""
    m = Maker(0)
    x = picture(8, 8, 3)
    stem = m.conv(x, 4, 3)
    wide = [m.conv(stem, 16 + 8 * i, 3) for i in range(n)]
    narrow = [m.conv(w, 4, relu=False) for w in wide]
    y = narrow[0]
    for other in narrow[1:]:
        y = m.op("add", [y, other], y.shape, 0.06, -1)
    flat = m.op("reshape", [y], (1, 1, 256), y.scale, y.zero_point)
    return m.graph(x, m.conv(flat, 4, relu=False))


def random_net(seed):
    """Convolutions that read any earlier tensor, summed up at the end."""
    rng = random.Random(seed)
    m = Maker(seed)
    x = picture(4, 4, 2)
    made = [m.conv(x, 3)]
    for _ in range(rng.randint(2, 4)):
        made.append(m.conv(rng.choice(made), rng.randint(1, 9), rng.choice((1, 3))))
    read = {id(t) for op in m.ops for t in op.inputs}
    ends = [m.conv(t, 2, relu=False) for t in made if id(t) not in read]
    y = ends[0]
    for t in ends[1:]:
        y = m.op("add", [y, t], y.shape, 0.06, -1)
    flat = m.op("reshape", [y], (1, 1, 32), y.scale, y.zero_point)
    return m.graph(x, m.conv(flat, 2, relu=False))


def lowest(graph):
    """The lowest peak over every order of the operators."""
    n = len(graph.ops)

    @functools.cache
    def rest(done):
        """Operators are done in this order; the lowest peak of orders that go on so."""
        if len(done) == n:
            return peak(Graph("", [graph.ops[i] for i in done], graph.input, graph.output,
                              graph.logits))  # fmt: skip
        ready = {id(t) for i in done for t in graph.ops[i].outputs} | {id(graph.input)}
        return min(
            rest((*done, i))
            for i in set(range(n)) - set(done)
            if all(id(t) in ready for t in graph.ops[i].inputs)
        )

    return rest(())


@pytest.mark.parametrize("seed", range(12))
def test_no_order_has_a_lower_peak(seed):
    graph = random_net(seed)
    found = order_branches(graph)
    assert peak(found) == lowest(graph)
    assert sorted(map(id, found.ops)) == sorted(map(id, graph.ops))


def test_the_search_finds_better_orders():
    """Otherwise the test above would pass with one that gives up."""
    nets = [random_net(seed) for seed in range(12)]
    assert sum(order_branches(net) is not net for net in nets) >= 3


def test_the_peak_is_what_the_compiler_counts():
    for graph in (branches(), *map(random_net, range(4))):
        graph = passes.run(graph)
        blob = compiler.compile_graph(graph, "none", run_passes=False, save=False)
        assert blob.info["memory"]["lower_bound"] == peak(graph)


@pytest.mark.parametrize("rows", [False, True])
def test_the_same_bytes_in_less_memory(rows):
    graph = branches()
    plain = compiler.compile_graph(graph, "last", run_passes=False, save=False)
    better = compiler.compile_graph(graph, "last", rows=rows)
    assert better.arena_len < plain.arena_len
    rng = np.random.default_rng(1)
    one, two = (Engine(b.to_bytes()) for b in (plain, better))
    for t in range(12):
        x = rng.integers(0, 256, (8, 8, 3), np.uint8)
        outputs = []
        for engine in (one, two):
            engine.set_input(x)
            outputs.append(engine.forward().tobytes())
            engine.step(x, t % 4, rate_parts(0.01), 7, t)
        assert outputs[0] == outputs[1]
    assert one.trained.tobytes() == two.trained.tobytes()


def test_a_search_that_is_too_large_keeps_the_order(monkeypatch):
    monkeypatch.setattr(reorder, "MOST_STATES", 3)
    graph = branches()
    assert order_branches(graph) is graph


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED)
def test_the_order_of_real_networks_is_the_best_there_is(shared, name, monkeypatch):
    """Their files list chains with residuals; this proves that no other order needs less."""
    monkeypatch.setattr(reorder, "MOST_STATES", 10**9)
    graph = frontends.load(shared / "models" / name)
    assert order_branches(graph) is graph
