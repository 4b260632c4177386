"""Places every buffer of a schedule in one arena.

The problem is dynamic storage allocation: rectangles of known height (bytes) and known span in
time, to be moved in address only.  It is NP-hard, small here (some hundred buffers) and solved
offline, so the planner starts from several good greedy orders and improves the best one by moving
buffers that touch the peak to the front of the order, until the lower bound (the largest set alive
at once) is met or the effort is spent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from .autodiff import Schedule
from .graph import Tensor

ALIGN = 8


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


def place(buffers: list[Buffer], effort: int = 400, seed: int = 0) -> int:
    """Set every buffer's ``offset`` (a multiple of 8) and return the arena's size in bytes.

    ``effort`` bounds the number of orders tried once the greedy ones miss the lower bound; the
    result is deterministic for the same buffers, effort and seed.
    """
    n = len(buffers)
    size = [b.aligned for b in buffers]
    overlap = [
        [
            j
            for j in range(n)
            if j != i
            and buffers[j].first <= buffers[i].last
            and buffers[i].first <= buffers[j].last
        ]
        for i in range(n)
    ]

    def layout(order: list[int]) -> tuple[int, list[int]]:
        offset = [-1] * n
        peak = 0
        for i in order:
            taken = sorted((offset[j], offset[j] + size[j]) for j in overlap[i] if offset[j] >= 0)
            at, best, best_gap = 0, -1, 1 << 62
            for low, high in taken:
                gap = low - at
                if size[i] <= gap < best_gap:
                    best, best_gap = at, gap
                at = max(at, high)
            offset[i] = best if best >= 0 else at
            peak = max(peak, offset[i] + size[i])
        return peak, offset

    span = [b.last - b.first + 1 for b in buffers]
    everyone = list(range(n))
    starts = [
        sorted(everyone, key=lambda i: (-size[i], buffers[i].first)),
        sorted(everyone, key=lambda i: (-size[i] * span[i], buffers[i].first)),
        sorted(everyone, key=lambda i: (-span[i], -size[i])),
        sorted(everyone, key=lambda i: (buffers[i].first, -size[i])),
        sorted(everyone, key=lambda i: (-buffers[i].last, -size[i])),
    ]
    bound = lower_bound(buffers)
    best_peak, best_offset, best_order = min(((*layout(o), o) for o in starts), key=lambda r: r[0])
    rng = random.Random(seed)
    peak, offset, order = best_peak, best_offset, best_order
    for _ in range(effort if best_peak > bound else 0):
        high = [i for i in everyone if offset[i] + size[i] == peak]
        candidate = list(order)
        mover = rng.choice(high)
        if rng.random() < 0.3 and overlap[mover]:
            mover = rng.choice(overlap[mover])
        candidate.remove(mover)
        candidate.insert(rng.randrange(max(1, order.index(mover))), mover)
        trial_peak, trial_offset = layout(candidate)
        if trial_peak <= peak or rng.random() < 0.02:
            peak, offset, order = trial_peak, trial_offset, candidate
        if peak < best_peak:
            best_peak, best_offset = peak, offset
            if best_peak <= bound:
                break
    for b, at in zip(buffers, best_offset, strict=True):
        b.offset = at
    return best_peak
