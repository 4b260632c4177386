"""Schedule -> schedule: runs of frozen operators that work row by row where that saves memory.

A network's first layers have its largest activations.  Run one after the other, two of those are
in the arena at a time; run row by row, a convolution needs only as many rows of its input as its
kernel is high, and what stands between the first and the last operator of such a group passes
through buffers of a few rows.  No row is computed twice and no byte of a result changes.

Which operators form groups is found exactly: ``group`` looks for the cut of the forward pass into
groups and single operators with the lowest peak, and among those for the one in which members are
called the fewest times.  As many rows at a time as the peak leaves room for save calls too.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass

from . import blob, memory, overwrite
from .autodiff import Schedule
from .graph import INT32, Op, SproutError, Tensor

MOST_MEMBERS = 64
"""Members that the core takes in a group."""

VIEW_WORDS = 7
"""Words of a group's buffer for the executor's own use."""

WINDOWS = ("conv", "depthwise", "average_pool", "max_pool")
KINDS = (*WINDOWS, "add", "requantize")


def rows_behind(op: Op, row: int, n: int = 1) -> tuple[int, int]:
    """Return the rows [from, to) of an operator's inputs that n rows of its output from ``row`` on
    are made from."""
    height = op.inputs[0].shape[0]
    if op.kind not in WINDOWS:
        return row, row + n
    kernel = op.attrs["kernel"][0] if "kernel" in op.attrs else op.params["weight"].shape[1]
    stride = op.attrs["stride"][0]
    start = row * stride - op.attrs["padding"][0]
    return max(0, start), min(height, start + (n - 1) * stride + kernel)


def can_stream(op: Op) -> bool:
    """Whether an operator can be a member: frozen, without a mask, and no row of nothing."""
    frozen = not (op.attrs.get("train_bias") or op.attrs.get("train_weight"))
    if op.kind not in KINDS or not frozen or len(op.outputs) > 1 or op.attrs.get("infer_only"):
        return False
    spans = [rows_behind(op, row) for row in range(op.outputs[0].shape[0])]
    return all(low < high for low, high in spans) and op.inputs[0].shape[0] < 1 << 15


@dataclass
class Group:
    """Operators [first, last] of a schedule as a group.

    ``sources``: for each member and input the number of the member it comes from, ``len(members)``
    for the input as it arrives, -1 for a whole tensor.  ``at_a_time``: how many rows each member
    gives at once.  ``rows``: rows to make room for, by the id of a tensor that passes through.
    ``kept``: bytes of constants.
    """

    first: int
    last: int
    members: list[Op]
    sources: list[list[int]]
    at_a_time: list[int]
    rows: dict[int, int]
    kept: int
    fed: bool

    @property
    def buffer_words(self) -> int:
        """int32 elements of the group's buffer (see STREAM in ``blob``)."""
        n = len(self.members)
        return n * blob.OP_SIZE // 4 + n + 1 + VIEW_WORDS + self.kept // 4

    @property
    def calls(self) -> int:
        """How many times members give rows: the price of a group."""
        pairs = zip(self.members, self.at_a_time, strict=True)
        return sum(-(-op.outputs[0].shape[0] // n) for op, n in pairs)


def make_group(
    ops: list[Op], first: int, last: int, passing: set[int], fed: Tensor | None, rows_out: int = 1
) -> Group:
    """Return operators [first, last] as a group that gives ``rows_out`` rows at a time.

    ``passing`` are the ids of tensors that need not be there as a whole, ``fed`` the input where
    it arrives row by row.
    """
    members = ops[first : last + 1]
    n = len(members)
    number = {id(op.outputs[0]): k for k, op in enumerate(members)}
    if fed is not None:
        number[id(fed)] = n
    sources = [[number.get(id(t), -1) for t in op.inputs] for op in members]
    at_a_time = _rows_at_a_time(members, sources, rows_out)
    most = _most_held(members, sources, at_a_time)
    outputs = [op.outputs[0] for op in members] + ([fed] if fed is not None else [])
    rows = {
        id(t): most[k] for k, t in enumerate(outputs) if id(t) in passing and most[k] < t.shape[0]
    }
    kept = sum(
        _padded(w.shape[0] * blob.forward_record_size(w[0].size))
        for w in (op.params["weight"] for op in members if "weight" in op.params)
    )
    return Group(first, last, members, sources, at_a_time, rows, kept, fed is not None)


def _padded(n: int) -> int:
    return (n + 7) // 8 * 8


def _rows_at_a_time(members: list[Op], sources: list[list[int]], rows_out: int) -> list[int]:
    """Return how many rows each member gives at once, so that those after it can give theirs."""
    n = len(members)
    result = [0] * n
    for k in range(n - 1, -1, -1):
        readers = [j for j in range(n) if k in sources[j]]
        needed = [
            result[j] * (members[j].attrs["stride"][0] if members[j].kind in WINDOWS else 1)
            for j in readers
        ]
        result[k] = min([members[k].outputs[0].shape[0], *(needed or [rows_out])])
    return result


def _most_held(members: list[Op], sources: list[list[int]], at_a_time: list[int]) -> list[int]:
    """Return the most rows that each member's output, then the input, holds: by playing the
    executor's rule."""
    n = len(members)
    heights = [op.outputs[0].shape[0] for op in members]
    readers = [[j for j in range(n) if k in sources[j]] for k in range(n + 1)]
    done, most, dropped = [0] * (n + 1), [0] * (n + 1), [0] * (n + 1)

    def give(k: int, rows: int) -> None:
        waiting = [rows_behind(members[j], done[j])[0] for j in readers[k] if done[j] < heights[j]]
        dropped[k] = max(dropped[k], min([done[k], *waiting]))
        done[k] += rows
        most[k] = max(most[k], done[k] - dropped[k])

    def ready(k: int) -> int:
        rows = min(at_a_time[k], heights[k] - done[k])
        needed = rows_behind(members[k], done[k], rows)[1]
        return rows if all(s < 0 or done[s] >= needed for s in sources[k]) else 0

    while done[n - 1] < heights[n - 1]:
        able = ((k, rows) for k in range(n - 1, -1, -1) if (rows := ready(k)))
        give(*next(able, (n, 1)))
    return most


class _Costs:
    """What lies in the arena while a group, or a single operator, runs."""

    def __init__(self, schedule: Schedule, feed: bool) -> None:
        self.schedule, self.feed = schedule, feed
        self.ops = [op for op in schedule.ops if op.kind != "reshape"]
        self.n_forward = sum(op.kind != "reshape" for op in schedule.ops[: schedule.n_forward])
        graph = schedule.graph
        self.spans = memory.lifetimes(schedule)
        self.live = memory.live(self.spans.values(), len(self.ops))
        touched: dict[int, list[int]] = {}
        for step, op in enumerate(self.ops):
            for t in (*op.inputs, *op.outputs):
                touched.setdefault(id(t), []).append(step)
        aliased = {id(t.root()) for op in self.ops for t in (*op.inputs, *op.outputs) if t.alias}
        ends = {id(t.root()) for t in (graph.input, graph.output, graph.logits)}
        self.inner = {
            t: steps for t, steps in touched.items() if t not in aliased and t not in ends
        }
        self.input_steps = touched.get(id(graph.input), [])

    def group(self, first: int, last: int, limit: int = 0) -> Group:
        """Return operators [first, last] as a group that gives as many rows at a time as ``limit``
        bytes allow, and one at least."""
        members = self.ops[first : last + 1]
        passing = {
            id(op.outputs[0])
            for op in members
            if self._within(self.inner.get(id(op.outputs[0]), []), first, last)
        }
        fed = None
        if self.feed and first == 0:
            fed = self.schedule.graph.input
            passing.add(id(fed))
        best = make_group(self.ops, first, last, passing, fed)
        for rows_out in (2, 4, 8, 16) if limit else ():
            more = make_group(self.ops, first, last, passing, fed, rows_out)
            whole = fed is not None and id(fed) not in more.rows
            if whole or self.of(more) > limit:
                break
            best = more
        return best

    def _within(self, steps: list[int], first: int, last: int) -> bool:
        return bool(steps) and first <= min(steps) and max(steps) <= last

    def of(self, g: Group) -> int:
        """Return the bytes in the arena while a group runs."""
        total = (4 * g.buffer_words + 7) // 8 * 8
        tensors = {id(t): t for op in g.members for t in (*op.inputs, *op.outputs)}
        small = {id(t.root()) for t in tensors.values() if id(t) in g.rows}
        for key, t in tensors.items():
            if key in g.rows:
                _, w, c = t.shape
                total += (g.rows[key] * w * c + 7) // 8 * 8
        for key, b in self.spans.items():
            if key not in small and b.first <= g.last and b.last >= g.first:
                total += b.aligned
        return total

    def may_feed(self, last: int) -> bool:
        """Whether nothing after operator ``last`` reads the input."""
        return bool(self.input_steps) and max(self.input_steps) <= last


def group(schedule: Schedule, feed: bool = False) -> Schedule:
    """Return the schedule with groups where they lower the peak of the arena.

    ``feed``: the input arrives row by row, and the first group takes it so.  Raises SproutError
    if it cannot.
    """
    costs = _Costs(schedule, feed)
    ops, n = costs.ops, costs.n_forward
    able = [can_stream(op) for op in ops[:n]]
    floor = 0  # nothing here is going to lower these
    for step in range(len(ops)):
        if step >= n or not able[step]:
            floor = max(floor, costs.live[step] - overwrite.saving(ops, step))
    options: list[list[tuple[int, int, Group | None]]] = [[] for _ in range(n)]  # by last operator
    for last in range(n):
        if not (feed and last == 0):
            options[last].append((costs.live[last], last, None))
        for first in range(last, max(-1, last - MOST_MEMBERS), -1):
            if not able[first]:
                break
            fed = feed and first == 0
            worth = fed or (last > first and max(costs.live[first : last + 1]) > floor)
            if worth and not (fed and not costs.may_feed(last)):
                g = costs.group(first, last)
                options[last].append((costs.of(g), first, g))
    lowest = _cut(options, lambda cost, g: cost, max)
    if lowest is None:
        raise SproutError(
            "The first layers of this network cannot work row by row, so that it takes whole "
            "frames: compile it without --rows."
        )
    limit = max(lowest[0], floor)
    allowed = [
        [
            (cost, first, g and costs.group(g.first, g.last, limit))
            for cost, first, g in row
            if cost <= limit
        ]
        for row in options
    ]
    chosen = _cut(allowed, lambda cost, g: g.calls if g else 0, operator.add)
    assert chosen is not None
    return _apply(schedule, costs, chosen[1])


def _cut(
    options: list[list[tuple[int, int, Group | None]]],
    price: Callable[[int, Group | None], int],
    join: Callable[[int, int], int],
) -> tuple[int, list[Group]] | None:
    """Return (price, groups) of the cheapest cut of all operators into options, None if there is
    none.

    ``options[last]`` are (bytes, first operator, group or None for a single one); ``join`` makes
    the price of a cut from those of its parts.
    """
    best: list[tuple[int, list[Group]] | None] = [(0, [])]  # by number of operators
    for row in options:
        found = []
        for cost, first, g in row:
            before = best[first]
            if before is not None:
                groups = before[1] + ([g] if g else [])
                found.append((join(before[0], price(cost, g)), groups))
        best.append(min(found, key=lambda f: f[0], default=None))
    return best[-1]


def _apply(schedule: Schedule, costs: _Costs, groups: list[Group]) -> Schedule:
    """Return the schedule with a STREAM before the members of each group."""
    new: dict[int, Tensor] = {}
    for g in groups:
        tensors = {id(t): t for op in g.members for t in (*op.inputs, *op.outputs)}
        for key, rows in g.rows.items():
            new[key] = dataclasses.replace(tensors[key], rows=rows)

    def renewed(op: Op, **attrs: object) -> Op:
        inputs, outputs = ([new.get(id(t), t) for t in ts] for ts in (op.inputs, op.outputs))
        return dataclasses.replace(op, inputs=inputs, outputs=outputs, attrs=op.attrs | attrs)

    starts = {g.first: g for g in groups}
    ops: list[Op] = []
    n_forward, step = 0, 0
    while step < len(costs.ops):
        if step not in starts:
            ops.append(costs.ops[step])
            step += 1
        else:
            g = starts[step]
            buffer = Tensor(f"group {g.first}", (1, 1, g.buffer_words), INT32)
            attrs = {"members": len(g.members), "kept": g.kept, "fed": g.fed}
            ops.append(Op("stream", [], [buffer], attrs, name=f"{len(g.members)} by row"))
            for op, sources, n in zip(g.members, g.sources, g.at_a_time, strict=True):
                ops.append(renewed(op, sources=sources, at_a_time=n))
            step = g.last + 1
        if step <= costs.n_forward:
            n_forward = len(ops)
    graph = schedule.graph
    graph = dataclasses.replace(graph, input=new.get(id(graph.input), graph.input))
    return dataclasses.replace(schedule, graph=graph, ops=ops, n_forward=n_forward)
