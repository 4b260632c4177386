"""Finds the order of operators that keeps the least alive at once.

A model file gives its operators in some order, and a network with branches has many: what one
branch has read and another still needs waits in the arena.  The order with the lowest peak is
found exactly, as a shortest path on which the longest step counts: a state is the set of operators
that are done, a step is one operator more, and its length the bytes alive during it.  An operator
that raises nothing, neither the peak so far nor what is alive after it, may come at once, because
any order from there on is at least as good with it in front; this leaves a few hundred states for
a chain with residuals.

The peak is that of predicting, layer by layer.  The backward pass follows the forward order in
reverse; with what training saves, another order may be a few percent better for some networks with
branches.  A plan numbers layers in this order, so that it has to be found before the plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from ..graph import Graph, Op

MOST_STATES = 20_000
"""States that a search may visit before it keeps the order it was given."""


def order_branches(graph: Graph) -> Graph:
    """Return the graph with its operators in the order with the lowest peak when predicting.

    An order that cannot be improved stays as it is, and so does one whose search is too large.
    """
    search = _Search(graph)
    order = search.best(peak(graph))
    return graph if order is None else replace(graph, ops=[graph.ops[i] for i in order])


def peak(graph: Graph) -> int:
    """Return the most bytes of tensors that are alive at once in the graph's order."""
    search, done, highest = _Search(graph), 0, 0
    for i in range(len(graph.ops)):
        highest = max(highest, search.bytes_of(search.alive(done) | search.touched[i]))
        done |= 1 << i
    return highest


def precedence(ops: Sequence[Op]) -> list[int]:
    """Return for each operator those that have to come before it, as the bits of an int."""
    before = [0] * len(ops)
    written: dict[int, int] = {}
    for i, op in enumerate(ops):
        for t in op.inputs:
            before[i] |= 1 << written[id(t)] if id(t) in written else 0
        written |= {id(t): i for t in op.outputs}
    return before


class _Search:
    """The orders of a graph's operators; sets of operators are the bits of an int."""

    def __init__(self, graph: Graph) -> None:
        self.before = precedence(graph.ops)
        self.users: dict[int, int] = {}
        self.size: dict[int, int] = {}
        self.touched: list[set[int]] = []
        for i, op in enumerate(graph.ops):
            roots = [t.root() for t in (*op.inputs, *op.outputs)]
            self.size |= {id(t): (t.nbytes + 7) // 8 * 8 for t in roots}
            self.touched.append({id(t) for t in roots})
            for t in self.touched[i]:
                self.users[t] = self.users.get(t, 0) | 1 << i
        self.early = {id(graph.input.root())}
        self.late = {id(graph.output.root()), id(graph.logits.root())}

    def alive(self, done: int) -> set[int]:
        """The tensors alive between two operators."""
        return {
            t
            for t, users in self.users.items()
            if (t in self.early or users & done) and (t in self.late or users & ~done)
        }

    def bytes_of(self, tensors: set[int]) -> int:
        return sum(self.size[t] for t in tensors)

    def best(self, limit: int) -> list[int] | None:
        """Return the numbers of the operators in the order with the lowest peak, if that is below
        ``limit`` bytes; None if it is not, or if there is too much to look at."""
        if limit <= max(map(self.bytes_of, self.touched), default=0):
            return None
        reached: dict[int, int] = {0: 0}
        came: dict[int, tuple[int, int]] = {}
        heap = [(0, 0, 0)]
        visited: set[int] = set()
        while heap and len(visited) < MOST_STATES:
            highest, _, done = heapq.heappop(heap)
            if done in visited:
                continue
            visited.add(done)
            if done == (1 << len(self.before)) - 1:
                return _path(came, done)
            for price, i in self._steps(done, highest):
                after = done | 1 << i
                if price < reached.get(after, limit):
                    reached[after], came[after] = price, (done, i)
                    heapq.heappush(heap, (price, -after.bit_count(), after))
        return None

    def _steps(self, done: int, highest: int) -> list[tuple[int, int]]:
        """(peak then, operator) of what may come next; one alone where nothing speaks against."""
        now = self.alive(done)
        size = self.bytes_of(now)
        steps = []
        for i, before in enumerate(self.before):
            if not done >> i & 1 and not before & ~done:
                price = max(highest, self.bytes_of(now | self.touched[i]))
                if price == highest and self.bytes_of(self.alive(done | 1 << i)) <= size:
                    return [(price, i)]
                steps.append((price, i))
        return steps


def _path(came: dict[int, tuple[int, int]], done: int) -> list[int]:
    order = []
    while done:
        done, i = came[done]
        order.append(i)
    return order[::-1]
