"""The memory planner: nothing alive overlaps, and the arena comes close to its lower bound."""

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
