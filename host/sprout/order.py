"""Schedule -> schedule: the order of its operators that keeps the least alive at once.

A model file gives its operators in some order, and a network with branches has many: what one
branch has read and another still needs waits in the arena.  ``reorder`` finds the order with the
lowest peak exactly, as a shortest path on which the longest step counts: a state is the set of
operators that are done, a step is one operator more, and its length the bytes alive during it.
An operator that raises nothing, neither the peak so far nor what is alive after it, may come at
once, because any order from there on is at least as good with it in front; this leaves a few
hundred states for a chain with residuals.

Forward and backward operators keep apart, since predicting runs the forward ones alone.  No byte
of a result depends on the order: whatever reads, writes or updates the same bytes keeps its order.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

from . import memory
from .autodiff import Schedule
from .graph import Op, Tensor

MOST_STATES = 20_000
"""States that a search may visit before it keeps the order it was given."""


def reorder(schedule: Schedule) -> Schedule | None:
    """Return the schedule, without its reshapes, in the order with the lowest peak.

    None if no order has a lower peak than the one it has, or if there is too much to look at.
    """
    ops = [op for op in schedule.ops if op.kind != "reshape"]
    n = sum(op.kind != "reshape" for op in schedule.ops[: schedule.n_forward])
    spans = memory.lifetimes(schedule)
    result: list[Op] = []
    better = False
    for first, last in ((0, n), (n, len(ops))):
        limit = max(memory.live(spans.values(), len(ops))[first:last], default=0)
        order = _Search(ops, first, last, spans).best(limit)
        better = better or order is not None
        result += [ops[i] for i in order or range(first, last)]
    return dataclasses.replace(schedule, ops=result, n_forward=n) if better else None


def peak(schedule: Schedule) -> int:
    """Return the most bytes that are alive at once: no placement can do with less."""
    ops = [op for op in schedule.ops if op.kind != "reshape"]
    return max(memory.live(memory.lifetimes(schedule).values(), len(ops)), default=0)


def precedence(ops: Sequence[Op]) -> list[set[int]]:
    """Return for each operator the numbers of those that have to come before it."""
    before: list[set[int]] = [set() for _ in ops]
    written: dict[int, int] = {}
    read: dict[int, set[int]] = {}
    inputs: dict[int, int] = {}  # convolution -> its input gradient, which reads its weight
    for i, op in enumerate(ops):
        sources, results = _roots(op.inputs), _roots(op.outputs)
        before[i].update(written[t] for t in sources | results if t in written)
        before[i].update(j for t in results for j in read.get(t, ()))
        for t in sources:
            read.setdefault(t, set()).add(i)
        for t in results:
            written[t], read[t] = i, set()
        before[i].discard(i)
        conv = op.attrs.get("conv_index", -1)
        if op.kind.endswith("_input_grad"):
            inputs[conv] = i
        elif op.kind.endswith("_weight_update") and conv in inputs:
            before[i].add(inputs[conv])
    return before


def _roots(tensors: Sequence[Tensor]) -> set[int]:
    return {id(t.root()) for t in tensors}


class _Search:
    """The orders of operators [first, last); sets of operators are the bits of an int."""

    def __init__(
        self, ops: list[Op], first: int, last: int, spans: dict[int, memory.Buffer]
    ) -> None:
        self.first, self.n = first, last - first
        rows = precedence(ops)[first:last]
        self.before = [sum(1 << j - first for j in row if j >= first) for row in rows]
        self.users: dict[int, int] = {}
        self.touched = [_roots((*op.inputs, *op.outputs)) for op in ops[first:last]]
        for i, tensors in enumerate(self.touched):
            for t in tensors:
                self.users[t] = self.users.get(t, 0) | 1 << i
        self.size = {t: b.aligned for t, b in spans.items()}
        self.early = {t for t, b in spans.items() if b.first < first}
        self.late = {t for t, b in spans.items() if b.last >= last}
        # What no operator here touches is alive all the time, or while the first one runs: the
        # outputs of the forward pass.
        idle = [b for t, b in spans.items() if t not in self.users and b.first <= first <= b.last]
        self.always = sum(b.aligned for b in idle if b.last >= last - 1)
        self.at_first = sum(b.aligned for b in idle) - self.always

    def alive(self, done: int) -> set[int]:
        """The tensors alive between two operators."""
        return {
            t
            for t, users in self.users.items()
            if (t in self.early or users & done) and (t in self.late or users & ~done)
        }

    def bytes_of(self, tensors: set[int]) -> int:
        return self.always + sum(self.size[t] for t in tensors)

    def best(self, limit: int) -> list[int] | None:
        """Return the numbers of the operators in the order with the lowest peak, if that is below
        ``limit`` bytes; None if it is not, or if there is too much to look at."""
        if self.n == 0 or limit <= max(map(self.bytes_of, self.touched)):
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
            if done == (1 << self.n) - 1:
                return self._path(came, done)
            for price, i in self._steps(done, highest):
                after = done | 1 << i
                if price < reached.get(after, limit):
                    reached[after], came[after] = price, (done, i)
                    heapq.heappush(heap, (price, -after.bit_count(), after))
        return None

    def _steps(self, done: int, highest: int) -> list[tuple[int, int]]:
        """(peak then, operator) of what may come next; one alone where nothing speaks against."""
        now = self.alive(done)
        size = self.bytes_of(now) + (0 if done else self.at_first)
        steps = []
        for i in range(self.n):
            if not done >> i & 1 and not self.before[i] & ~done:
                price = max(highest, size + self.bytes_of(self.touched[i] - now) - self.always)
                if price == highest and self.bytes_of(self.alive(done | 1 << i)) <= size:
                    return [(price, i)]
                steps.append((price, i))
        return steps

    def _path(self, came: dict[int, tuple[int, int]], done: int) -> list[int]:
        order = []
        while done:
            done, i = came[done]
            order.append(self.first + i)
        return order[::-1]
