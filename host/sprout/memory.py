"""Places every buffer of a schedule in one arena.

The problem is dynamic storage allocation: rectangles of known height (bytes) and known span in
time, to be moved in address only.  It is NP-hard, small here (some hundred buffers) and solved
offline: a search by depth for a placement within the lower bound, the largest set alive at once,
and where that fails by bisection for the smallest size that it does not fail at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .autodiff import Schedule
from .graph import Tensor

Array = np.ndarray

ALIGN = 8
_ENDLESS = 1 << 40


@dataclass
class Buffer:
    """``size`` bytes alive from step ``first`` to step ``last``, both included; ``offset`` is
    found."""

    size: int
    first: int
    last: int
    offset: int = 0

    @property
    def aligned(self) -> int:
        """The size, rounded up to a multiple of 8."""
        return (self.size + ALIGN - 1) // ALIGN * ALIGN


def lifetimes(schedule: Schedule) -> dict[int, Buffer]:
    """Return a buffer for each tensor that owns bytes, by its id: alive from its first use to its
    last, in steps of the schedule without its reshapes.

    What the members of a group use is there while the whole group runs.
    """
    spans: dict[int, Buffer] = {}

    def touch(t: Tensor, first: int, last: int) -> None:
        b = spans.setdefault(id(t.root()), Buffer(t.root().nbytes, first, last))
        b.first, b.last = min(b.first, first), max(b.last, last)

    graph, start, end = schedule.graph, 0, -1
    ops = [op for op in schedule.ops if op.kind != "reshape"]
    for step, op in enumerate(ops):
        if op.kind == "stream":
            start, end = step, step + op.attrs["members"]
        first, last = (start, end) if step <= end else (step, step)
        for t in (*op.inputs, *op.outputs):
            touch(t, first, last)
    n_forward = sum(op.kind != "reshape" for op in schedule.ops[: schedule.n_forward])
    touch(graph.input, -1, -1)
    for t in (graph.output, graph.logits):
        touch(t, n_forward, n_forward)  # they are read after the forward pass
    if schedule.exponents is not None:
        touch(schedule.exponents, n_forward, len(ops) - 1)
    return spans


def live(spans: Iterable[Buffer], steps: int) -> list[int]:
    """Return the bytes alive at each of the steps 0 to ``steps`` - 1."""
    total = [0] * steps
    for b in spans:
        for step in range(max(b.first, 0), min(b.last + 1, steps)):
            total[step] += b.aligned
    return total


def lower_bound(buffers: list[Buffer]) -> int:
    """Bytes of the largest set of buffers alive at one step: no placement can do with less."""
    steps = {b.first for b in buffers}
    return max(
        (sum(b.aligned for b in buffers if b.first <= s <= b.last) for s in steps),
        default=0,
    )


def place(buffers: list[Buffer], effort: int = 1000) -> int:
    """Set every buffer's ``offset`` (a multiple of 8) and return the arena's size in bytes.

    ``effort`` bounds the steps of each attempt to fit into a size; the result is the same for the
    same buffers and effort.
    """
    for b in buffers:
        b.offset = 0
    some = [b for b in buffers if b.size > 0]
    if not some:
        return 0
    search = _Search(some)
    low, best = lower_bound(some), search.fit(None, effort)
    assert best is not None  # nothing is in the way of a first come, first served
    size = low
    while low < search.peak(best):
        found = search.fit(size, effort)
        if found is None:
            low = size + ALIGN
        else:
            best = found
        size = (low + search.peak(best)) // 2 // ALIGN * ALIGN
    for b, at in zip(some, best.tolist(), strict=True):
        b.offset = at
    return search.peak(best)


class _Search:
    """Places buffers in the order of their offsets, each as low as the ones below it allow.

    Any placement can be brought into that form without growing. Some slices of time, those where a
    buffer begins, are enough to see all that meet. What is left decides which of the buffers that
    could be next comes next: those that live longest, or that take most bytes times steps. On the
    way a size is given up as soon as it cannot be kept: at some slice, what has to follow there
    above the lowest place that is left would not fit.
    """

    def __init__(self, buffers: list[Buffer]) -> None:
        first, last = (np.array([getattr(b, end) for b in buffers]) for end in ("first", "last"))
        self.size = np.array([b.aligned for b in buffers])
        slices = np.unique(first)
        self.alive = (first[:, None] <= slices) & (slices <= last[:, None])
        span = last - first + 1
        self.orders = [np.lexsort((-self.size, by)) for by in (-span, -self.size * span)]

    def peak(self, offset: Array) -> int:
        """Return the size of a placement in bytes."""
        return int((offset + self.size).max())

    def fit(self, size: int | None, effort: int) -> Array | None:
        """Return offsets within ``size`` bytes, or None where none were found; with None for the
        size, the better of what the first choices come to."""
        found = [self._fit(order, size or _ENDLESS, effort) for order in self.orders]
        some = [offset for offset in found if offset is not None]
        return min(some, key=self.peak, default=None)

    def _fit(self, order: Array, size: int, effort: int) -> Array | None:
        n = len(self.size)
        offset, waiting, rank = np.zeros(n, int), np.ones(n, bool), np.empty(n, int)
        rank[order] = np.arange(n)
        top = np.zeros(self.alive.shape[1], int)  # by slice: where what is placed ends
        load = (self.alive * self.size[:, None]).sum(0)  # and how much is still to come

        def next_ones(least: int) -> list[tuple[int, int]]:
            """Buffers that can be next, and where, the best one last: none where the rest
            cannot fit any more."""
            rest = np.flatnonzero(waiting)
            alive = self.alive[rest]
            low = np.maximum(np.where(alive, top, 0).max(1), least)
            floor = np.where(alive, low[:, None], _ENDLESS).min(0)
            if np.any((floor + load > size) & (load > 0)):
                return []
            # One that starts where another could end leaves room for that below it.
            some = np.flatnonzero(low < (low + self.size[rest]).min())
            some = some[np.lexsort((rank[rest[some]], low[some]))[::-1]]
            return list(zip(rest[some].tolist(), low[some].tolist(), strict=True))

        path: list[tuple[int, Array]] = []
        choices = [next_ones(0)]
        while choices:
            if not choices[-1]:
                choices.pop()
                if path:
                    i, top[self.alive[i]] = path.pop()
                    load[self.alive[i]] += self.size[i]
                    waiting[i] = True
                continue
            i, offset[i] = choices[-1].pop()
            if effort < 0 and size < _ENDLESS:
                return None
            effort -= 1
            span = self.alive[i]
            path.append((i, top[span]))
            top[span] = offset[i] + self.size[i]
            load[span] -= self.size[i]
            waiting[i] = False
            if len(path) == n:
                return offset
            choices.append(next_ones(int(offset[i])))
        return None
