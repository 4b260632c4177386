"""The memory planner: nothing alive overlaps, and the arena comes to its lower bound."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import everything_net, residual_net
from sprout import compile as compiler
from sprout import memory

BUFFERS = st.lists(
    st.tuples(st.integers(1, 4000), st.integers(0, 30), st.integers(0, 12)),
    min_size=1,
    max_size=40,
)


def overlaps(a, b):
    in_time = a.first <= b.last and b.first <= a.last
    return in_time and a.offset < b.offset + b.size and b.offset < a.offset + a.size


@settings(max_examples=60, deadline=None)
@given(BUFFERS)
def test_no_two_live_buffers_share_a_byte(spans):
    buffers = [memory.Buffer(size, first, first + length) for size, first, length in spans]
    peak = memory.place(buffers, effort=50)
    assert peak >= memory.lower_bound(buffers)
    assert peak == max((b.offset + b.size + 7) // 8 * 8 for b in buffers)
    for i, a in enumerate(buffers):
        assert a.offset % memory.ALIGN == 0
        assert not any(overlaps(a, b) for b in buffers[i + 1 :])


def test_the_search_beats_first_fit_where_first_fit_fails():
    """Three buffers for which every order of arrival leaves a hole that only a swap closes."""
    spans = [(8, 0, 1), (16, 0, 0), (8, 1, 2), (24, 2, 3), (16, 1, 1), (8, 3, 3)]
    buffers = [memory.Buffer(*s) for s in spans]
    assert memory.place(buffers) == memory.lower_bound(buffers)


@pytest.mark.parametrize("net", [residual_net, everything_net])
@pytest.mark.parametrize("plan", ["none", "last", "b3,2:1/2", "full"])
def test_the_same_placement_every_time(net, plan):
    first = compiler.compile_graph(net(), plan).to_bytes()
    assert compiler.compile_graph(net(), plan).to_bytes() == first


PLANS = {
    "mcunet-5fps.pkl": [
        "b20,24:1/4,27:1/2,30:1/2",
        "b22,12:1,18:1/2,21:1/2,22:1,24:1,36:1/8,40:1/8",
        "full",
    ],
    "proxyless-w0.3.pkl": ["b20,24:1/4,27:1/2,30:1/2", "b8,3:1/2,5:1"],
    "mcunet_vww_int8.tflite": ["b20,24:1/4,27:1/2,30:1/2", "full"],
    "mlperf_vww_96_int8.tflite": ["b8,3:1/2,5:1", "full"],
}


CASES = [(m, p, rows) for m, some in PLANS.items() for p in some for rows in (False, True)]


# Where everything learns the whole frame has to stay.
@pytest.mark.parametrize(("model", "plan", "rows"), [c for c in CASES if c[1:] != ("full", True)])
def test_real_networks_take_no_more_than_their_largest_live_set(shared, model, plan, rows):
    sizes = compiler.compile_model(shared / "models" / model, plan, rows=rows).info["memory"]
    assert sizes["arena"] == sizes["lower_bound"] > 0
