"""What a plan takes, without compiling it: RAM and multiplications as linear pieces.

Which tensors a gradient reaches decides nearly everything: masks, gradients, which operators are
frozen and may work row by row.  Plans that agree in that form a *case*.  Within a case the bytes
alive at a step of the schedule are a constant plus what each trained weight adds to it, and the
arena is the greatest of those sums.  ``Case`` holds these numbers, taken from the compiler's own
schedules, so that a solver can choose among all plans of a case; ``Footprint.cost`` adds them up
for one plan.

The result is never more than what compiling the plan takes, and nearly always the same.  Two
things may add to it: the rows of the tensor table that row-wise groups take (28 bytes or so each),
and a placement in the arena that misses its lower bound.  Who needs certainty compiles.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from . import autodiff, blob, memory, overwrite, passes, ranges, stream
from . import plan as plans
from .compile import compile_graph, lower
from .graph import Graph, Op, SproutError, Tensor, macs
from .plan import UpdatePlan

Key = tuple[int, Fraction]
"""A weight that may learn: number of its convolution, and the fraction of it."""

PARTS = (Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1))

MOST_BRANCHES = 6
"""Convolutions beside the way from one layer to the head that each make cases of their own."""


@dataclass
class Weight:
    """What the weight ``key`` adds where it learns: bytes, but for ``macs``."""

    key: Key
    channels: np.ndarray | None
    trained: int
    scratch: int
    macs: int

    @property
    def index(self) -> bytes:
        """Its list of channels in the program section, nothing where all of them learn."""
        return b"" if self.channels is None else np.asarray(self.channels, "<u2").tobytes()

    @property
    def program(self) -> int:
        """Bytes of the tensor table: the saved channels are a tensor of their own."""
        return 0 if self.channels is None else blob.TENSOR_SIZE


@dataclass
class Piece:
    """``size`` bytes alive from step ``first`` to ``last`` if any weight of ``keys`` learns."""

    size: int
    first: int
    last: int
    keys: frozenset[Key]


@dataclass
class Saving:
    """Operator ``step`` may write its result over its input unless one of ``keys`` learns: saves
    ``size`` bytes of the arena and takes ``scratch`` bytes of scratch."""

    step: int
    size: int
    scratch: int
    keys: frozenset[Key]


@dataclass(frozen=True)
class Cost:
    """What a plan takes: bytes, and multiply-accumulates of a training step."""

    arena: int
    trained: int
    scratch: int
    program: int
    macs: int

    @property
    def ram(self) -> int:
        """Everything that a board keeps in RAM but for code and Python objects."""
        return self.arena + self.trained + self.scratch + self.program


@dataclass
class Base:
    """What every plan of a case takes: least bytes of the arena, of scratch and of the program
    section, and multiply-accumulates."""

    arena: int
    scratch: int
    program: int
    macs: int


class Case:
    """All plans whose gradients reach the same tensors.

    ``members`` are the convolutions that may learn, ``base`` (int64 [steps]) the bytes alive
    without any weight but the head's, ``by_row`` (bool [steps]) the operators that may work row by
    row, of which ``least`` knows more.  ``pieces`` and ``savings`` come on top.
    """

    def __init__(self, network: Footprint, roots: frozenset[int], members: frozenset[int]) -> None:
        self.network, self.roots, self.members = network, roots, members
        head = len(network.convs) - 1
        graph = network.marked(members, members)
        self.schedule = autodiff.differentiate(graph)
        ops, keys = self._optional(head)
        n_forward = sum(
            op.kind != "reshape"
            for op in self.schedule.ops[: self.schedule.n_forward]
        ) + sum(op.kind == "gather" for op in ops)  # fmt: skip
        idle = Op("idle", [], [])
        always = [op if key is None else idle for op, key in zip(ops, keys, strict=True)]
        spans = memory.lifetimes(
            dataclasses.replace(self.schedule, ops=always, n_forward=n_forward)
        )
        self.base = np.array(memory.live(spans.values(), len(ops)), np.int64)
        self.by_row = np.array(
            [step < n_forward and stream.can_stream(op) for step, op in enumerate(always)]
        )
        self.pieces = list(_pieces(ops, keys, spans))
        self.savings = list(_savings(ops, keys, always))

    def _optional(self, head: int) -> tuple[list[Op], list[Key | None]]:
        """Return the operators of all plans of the case in order, and for each the weight that
        it is there for, None where it is always there."""
        ops: list[Op] = []
        keys: list[Key | None] = []
        saved: dict[Key, Tensor] = {}

        def emit(op: Op, key: Key | None = None) -> None:
            ops.append(op)
            keys.append(key)

        for op in self.schedule.ops:
            if op.kind == "reshape":
                continue
            conv = op.attrs.get("conv_index", -1)
            if op.kind.endswith("_weight_update") and conv != head:
                g, x = op.inputs
                for w in self.network.weights[conv]:
                    emit(Op(op.kind, [g, saved.get(w.key, x)], [], op.attrs), w.key)
                continue
            if op.kind in ("conv", "depthwise") and conv in self.members and conv != head:
                x = op.inputs[0]
                for w in self.network.weights[conv]:
                    if w.channels is not None:
                        shape = (*x.shape[:2], len(w.channels))
                        saved[w.key] = Tensor(f"{x.name}/saved", shape)
                        emit(Op("gather", [x], [saved[w.key]]), w.key)
            emit(op)
        return ops, keys

    @property
    def most_biases(self) -> int:
        """The largest number of last biases of a plan in this case."""
        n = len(self.network.convs)
        return next((k for k in range(n) if n - 1 - k not in self.members), n)

    @property
    def weights(self) -> list[Weight]:
        """The weights that a plan of this case can choose among."""
        head = len(self.network.convs) - 1
        return [w for i in sorted(self.members - {head}) for w in self.network.weights[i]]

    @functools.cached_property
    def least(self) -> Base:
        """What every plan of the case takes.  Raises SproutError if frames cannot arrive by
        rows."""
        network = self.network
        graph = network.marked(self.roots, frozenset())
        schedule = autodiff.differentiate(graph)
        plain = lower(schedule, fractions=network.fractions)
        forward, backward = schedule.macs
        grouped = overwrite.depthwise_gradients(stream.group(schedule, network.rows))
        arena = memory.lower_bound(list(memory.lifetimes(grouped).values()))
        program = plain.program_len + network.rows * blob.TENSOR_SIZE  # of one group at least
        return Base(arena, plain.scratch_len, program, forward + backward)

    def cost(self, plan: UpdatePlan) -> Cost:
        """Return what a plan of this case takes."""
        network, least = self.network, self.least
        chosen = [network.weight(i, f) for i, f in plan.weights.items() if i in self.members]
        keys = {w.key for w in chosen}
        live = self.base.copy()
        for p in self.pieces:
            if p.keys & keys:
                live[p.first : p.last + 1] += p.size
        live[self.by_row] = 0
        savings = [s for s in self.savings if not s.keys & keys]
        lowest = live.copy()
        for s in savings:
            lowest[s.step] -= s.size
        arena = max(least.arena, int(lowest.max()))
        scratch = [w.scratch for w in chosen]
        scratch += [s.scratch for s in savings if live[s.step] > arena]
        return Cost(
            arena,
            network.head + network.biases(plan.biases) + sum(w.trained for w in chosen),
            max(least.scratch, *scratch, 0),
            least.program
            + sum(w.program for w in chosen)
            + sum(len(index) for index in {w.index for w in chosen}),
            least.macs + sum(w.macs for w in chosen),
        )


def _pieces(
    ops: list[Op], keys: list[Key | None], spans: dict[int, memory.Buffer]
) -> Iterator[Piece]:
    """Return what the weights' own operators keep alive beyond what is alive anyway."""
    touched: dict[int, list[tuple[int, Key]]] = {}
    tensors: dict[int, Tensor] = {}
    for step, (op, key) in enumerate(zip(ops, keys, strict=True)):
        for t in (*op.inputs, *op.outputs) if key is not None else ():
            assert key is not None
            touched.setdefault(id(t.root()), []).append((step, key))
            tensors[id(t.root())] = t.root()
    for number, touches in touched.items():
        size = memory.Buffer(tensors[number].nbytes, 0, 0).aligned
        if number not in spans:  # saved channels: of one weight alone
            yield Piece(size, touches[0][0], touches[-1][0], frozenset(k for _, k in touches))
            continue
        since = spans[number].last
        for step, _ in touches:
            if step > since:
                later = frozenset(k for s, k in touches if s >= step)
                yield Piece(size, since + 1, step, later)
                since = step


def _savings(ops: list[Op], keys: list[Key | None], always: list[Op]) -> Iterator[Saving]:
    """Return the operators that may write over their input, see ``overwrite``."""
    for step, op in enumerate(always):
        size = overwrite.saving(always, step)
        if size:
            g = op.inputs[0].root()
            readers = {
                key
                for other, key in zip(ops[step + 1 :], keys[step + 1 :], strict=True)
                if key is not None and any(t.root() is g for t in other.inputs)
            }
            taps = op.params["weight"][0].size
            multiplier = op.inputs[0].shape[2] // op.outputs[0].shape[2]
            h, w, _ = op.inputs[0].shape
            scratch = multiplier * (blob.forward_record_size(taps) + 2 * h * w)
            size = memory.Buffer(size, 0, 0).aligned
            yield Saving(step, size, (scratch + 7) // 8 * 8, frozenset(readers))


class Footprint:
    """What the plans of a network take; ``fractions`` and ``rows`` as in ``compile_graph``.

    ``graph`` is the network after ``passes.run``, ``convs`` its convolutions, ``weights`` by
    convolution what can learn of it.  Raises SproutError where nothing can learn.
    """

    def __init__(self, graph: Graph, fractions: str = "all", rows: bool = False) -> None:
        self.source, self.graph = graph, passes.run(graph)
        self.fractions, self.rows = fractions, rows
        plans.apply(UpdatePlan(), self.graph)  # numbers the convolutions, complains
        self.convs = self.graph.convs
        silent = ranges.silent_channels(self.graph)
        n = len(self.convs)
        self.weights = [self._weights(i, silent[id(op)]) for i, op in enumerate(self.convs)]
        last = self.convs[-1].params
        self.head = self._trained(n - 1, last["weight"].size) + last["bias"].size * 4
        self.behind = [self._behind(op) for op in self.convs]
        self._cases: dict[frozenset[int], Case | None] = {}

    def _weights(self, i: int, silent: np.ndarray) -> list[Weight]:
        """The fractions of a convolution's weight that differ, least first."""
        op = self.convs[i]
        weight, total = op.params["weight"], op.params["weight"].size
        depthwise = op.kind == "depthwise"
        axis = weight.shape[0] if depthwise else weight.shape[3]
        if depthwise and op.inputs[0].shape[2] != op.outputs[0].shape[2]:
            parts: tuple[Fraction, ...] = (Fraction(1),)
        else:
            parts = PARTS
        found: dict[int, Weight] = {}
        for f in parts:
            channels = plans.important_channels(op, f, silent)
            count = axis if channels is None else len(channels)
            taps = weight.shape[1] * weight.shape[2]
            row = taps if depthwise else taps * count
            scratch = 8 * weight.shape[0] + 4 * row
            found.setdefault(count, Weight(
                (i, f), channels, self._trained(i, total // axis * count),
                (scratch + 7) // 8 * 8, macs(op) * count // axis,
            ))  # fmt: skip
        return list(found.values())

    def _trained(self, i: int, elements: int) -> int:
        """Bytes of trained parameters that so many weights of convolution i take."""
        last = len(self.convs) - 1
        kept = self.fractions == "all" or (self.fractions == "head" and i == last)
        return (elements + 3) // 4 * 4 + ((elements + 7) // 8 * 4 if kept else 0)

    def _behind(self, conv: Op) -> frozenset[int]:
        """Numbers of the convolutions that the output of one flows into."""
        reached = {id(conv.outputs[0])}
        found = set()
        for op in self.graph.ops:
            if any(id(t) in reached for t in op.inputs):
                reached.update(id(t) for t in op.outputs)
                if op.kind in ("conv", "depthwise"):
                    found.add(op.attrs["conv_index"])
        return frozenset(found)

    def build(self, plan: UpdatePlan) -> blob.Blob:
        """Compile a plan."""
        return compile_graph(self.source, plan, fractions=self.fractions, rows=self.rows)

    def weight(self, i: int, f: Fraction) -> Weight:
        """Return what the fraction f of convolution i is among ``weights``; KeyError if none."""
        op = self.convs[i]
        axis = op.params["weight"].shape[0 if op.kind == "depthwise" else 3]
        count = min(axis, max(1, round(axis * f)))
        for w in self.weights[i]:
            if (axis if w.channels is None else len(w.channels)) == count:
                return w
        raise KeyError((i, f))

    def biases(self, k: int) -> int:
        """Bytes of the last k biases beside the head's."""
        n = len(self.convs)
        return sum(4 * self.convs[i].params["bias"].size for i in range(n - k, n - 1))

    def marked(self, biases: Iterable[int], weights: Iterable[int]) -> Graph:
        """Return the graph, marked so that these biases and whole weights learn, and the head."""
        head = len(self.convs) - 1
        biases, weights = {head, *biases}, {head, *weights}
        for i, op in enumerate(self.convs):
            op.attrs["train_bias"] = i in biases
            op.attrs["train_weight"] = i in weights
            op.attrs["train_channels"] = None
        return passes.drop_silent(self.graph, autodiff.wanting(self.graph))

    def cases(self) -> list[Case]:
        """Return every case, those with the fewest layers first.

        Where more than six convolutions lie beside the way from a layer to the head (none of the
        networks that we know), those nearest to the head are told apart and the others left out.
        """
        n = len(self.convs)
        found = []
        for first in range(n - 1, -1, -1):
            beside = [j for j in range(first + 1, n - 1) if j not in self.behind[first]]
            beside = beside[-MOST_BRANCHES:]
            for count in range(len(beside) + 1):
                for more in itertools.combinations(beside, count):
                    case = self._case({first, *more})
                    if case is not None and case not in found:
                        found.append(case)
        return found

    def case(self, plan: UpdatePlan) -> Case:
        """Return the case of a plan.  Raises SproutError where gradients cannot get there."""
        n = len(self.convs)
        case = self._case({n - 1, *plan.weights, *range(n - plan.biases, n)})
        if case is None:
            raise SproutError(
                f"plan: {plan} has no way from the loss to all of its layers; choose later ones."
            )
        return case

    def _case(self, learning: set[int]) -> Case | None:
        members = frozenset(learning).union(*(self.behind[i] for i in learning))
        if members not in self._cases:
            try:
                self._cases[members] = Case(self, frozenset(learning), members)
            except SproutError:  # an operator without a gradient lies between
                self._cases[members] = None
        return self._cases[members]

    def cost(self, plan: UpdatePlan) -> Cost:
        """Return what a plan takes.  Raises SproutError where gradients cannot get there."""
        return self.case(plan).cost(plan)


def measured(result: blob.Blob) -> Cost:
    """Return what a compiled plan takes."""
    counts = result.info["macs"]
    return Cost(
        result.arena_len, result.trained_len, result.scratch_len, result.program_len,
        counts["forward"] + counts["backward"],
    )  # fmt: skip
