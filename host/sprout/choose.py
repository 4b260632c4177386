"""Chooses what learns: the best plan under a budget of RAM and of multiplications a step.

Gains add up to first order ('On-Device Training Under 256KB Memory', equation 3): the gain of the
last K biases and of each part of a weight, measured (``analyze``) or by a rule (``rule``).
A few samples say little of what many biases are worth to more samples, and of early layers, which
take long to learn: ``offers`` gives the optima among all plans, among those with many biases and
among those whose weights are those of expansions alone, of the measured gains and of the rule's,
and the one that trains best is taken (``compete``, ``winner``).
Memory does not add up: the arena is the peak over the whole schedule of saved activations, masks,
gradients and row buffers.  Within a case (``footprint``) it is the greatest of sums that are
linear in the choices, so ``best`` poses a mixed-integer programme for each case and lets HiGHS
(scipy.optimize.milp) solve it to proven optimality:

    maximise    sum gain[k] b[k] + sum gain[i,f] w[i,f]  -  TIE * bytes / budget
    subject to  arena >= live[t] + sum over pieces at t - sum of savings at t     for each step t
                scratch >= what each choice needs
                arena + scratch + trained + tables <= budget,  multiplications <= budget
                at most one K, at most one fraction of a weight
                w, b binary; overwriting (``overwrite``) and shared tensors binary too

Cases are taken up best first by their bounds, and the best solution of all is compiled.  The model
never says more than compiling does, so a plan that turns out to fit is optimal; one that does not,
by some bytes of tables or of placement, is cut off and the next best takes its place.  Every plan
that is returned has been compiled and fits.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import heapq
import itertools
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import blob as blobs
from .analyze import (
    Bench,
    Contributions,
    Gain,
    accuracies,
    close_to_least,
    least_samples,
    mean_loss,
)
from .blob import Blob
from .compile import DEFAULT_SCRATCH
from .footprint import Base, Case, Cost, Footprint, Key, Piece, Weight, measured
from .graph import SproutError
from .plan import UpdatePlan
from .progress import Reporter
from .schedule import LEAST_RATE

TIE = 1e-3
"""Points that the whole budget is worth: of plans that gain the same, the one with less RAM."""

PATIENCE = 6
"""Plans that are compiled and do not fit before the search allows itself fewer bytes."""

LEAST = (0.0, 0.25, 0.5)
"""Shares of all biases that learn at least in the plans that are tried."""

DECAY, BIAS, DEPTHWISE = 0.97, 1 / 16, 1 / 16
"""The numbers of ``rule``."""

MEASURED, RULE = "of the measured gains", "by the rule for unknown data"
"""What a plan is the optimum of."""

MOST_AGAIN = 4
"""Plans that are close and learn again with twice as many seeds, at most."""

Cut = tuple[frozenset[int], frozenset[int]]
"""A solution that is not allowed: its choices that are made, and those that are not."""


@dataclass
class Gains:
    """Points by number of last biases, and by weight; what is not there is not offered."""

    biases: dict[int, float]
    weights: dict[Key, float]

    def of(self, plan: UpdatePlan) -> float:
        """Return the sum of a plan's gains; what is not there adds nothing."""
        weights = (self.weights.get(key, 0.0) for key in plan.weights.items())
        return self.biases.get(plan.biases, 0.0) + sum(weights)

    def among(self, layers: Container[int] | None, least: int) -> Gains:
        """Return the gains that offer weights of some layers alone (None: of all), and so many
        biases at least where those fit."""
        weights = {k: g for k, g in self.weights.items() if layers is None or k[0] in layers}
        # more than any sum of weights, so that no plan with fewer biases is better
        bonus = sum(gain for gain in weights.values() if gain > 0) if least else 0.0
        return Gains({k: g + bonus for k, g in self.biases.items() if k >= least}, weights)


def from_analysis(found: Contributions) -> Gains:
    """Return measured gains in points, freed from most of their noise.

    A few hundred held-out answers tell accuracies apart to about a point, and that is what whole
    layers are worth.  Their loss tells more: the gain of a candidate is how much it lowers the
    loss, times the points of accuracy that a lower loss is worth over all candidates (least
    squares through the origin).  Where loss and accuracy do not go together, accuracy counts
    alone.

    More of the same layer, or more biases, cannot be worth less but for noise: the gains are those
    of the isotonic regression, which averages where they fall.
    """
    from scipy.optimize import isotonic_regression

    everything = [*found.biases.values(), *found.weights.values()]
    loss = np.array([g.loss for g in everything])
    points = np.array([g.mean for g in everything])
    slope = float(loss @ points) / max(float(loss @ loss), 1e-12)

    def rising(gains: list[Gain]) -> list[float]:
        some = [slope * g.loss if slope > 0 else g.mean for g in gains]
        result: list[float] = isotonic_regression(some).x.tolist() if some else []
        return result

    ks = sorted(found.biases)
    biases = dict(zip(ks, rising([found.biases[k] for k in ks]), strict=True))
    weights: dict[Key, float] = {}
    for i in sorted({i for i, _ in found.weights}):
        keys = sorted(key for key in found.weights if key[0] == i)
        weights |= dict(zip(keys, rising([found.weights[key] for key in keys]), strict=True))
    return Gains(biases, weights)


def expansions(network: Footprint) -> frozenset[int] | None:
    """Return the numbers of the convolutions whose results go to depthwise ones; None if none do.

    What they read, which their gradient needs, is the narrow end of an inverted residual block:
    they cost less than others, and it is they that the paper's plans teach.
    """
    read = {id(op.inputs[0]) for op in network.convs if op.kind == "depthwise"}
    found = frozenset(
        i for i, op in enumerate(network.convs)
        if op.kind == "conv" and any(id(t) in read for t in op.outputs)
    )  # fmt: skip
    return found or None


def unknown(network: Footprint) -> tuple[Gains, str]:
    """Return the gains to choose by where there are no samples, and what to call them.

    Those of ``rule``, of the weights of expansions alone where there are any: on person detection,
    CIFAR-10 and spoken digits its optima among all weights learned worse (``make bench-plans``).
    """
    narrow = expansions(network)
    return rule(network).among(narrow, 0), RULE + _among(narrow, 0)


def _among(layers: Container[int] | None, least: int) -> str:
    """Say among which plans ``Gains.among`` leaves the optimum."""
    bound = [f"at least {least} biases"] if least else []
    bound += ["weights of expansions alone"] if layers is not None else []
    return f" among plans with {' and '.join(bound)}" if bound else ""


def rule(network: Footprint, power: float = 0.5) -> Gains:
    """Return gains for a network of which nothing was measured.

    The weight of a layer d layers before the head is worth 0.97**d points, its fraction f
    f**power of that; its bias a sixteenth, and so the weight of a depthwise layer.  These are
    about the proportions measured for mcunet-5fps on person detection, where depthwise weights
    gained nothing, and biases a little each, wherever they stood.
    """
    n = len(network.convs)
    worth = [DECAY ** (n - 1 - i) for i in range(n)]
    biases = {k: BIAS * sum(worth[n - k : n - 1]) for k in range(2, n + 1)}
    weights = {
        w.key: worth[i] * float(w.key[1]) ** power
        * (DEPTHWISE if network.convs[i].kind == "depthwise" else 1.0)
        for i in range(n - 1) for w in network.weights[i]
    }  # fmt: skip
    return Gains(biases, weights)


@dataclass
class Choice:
    """A plan, its predicted gain, by how much the optimum may be better at most (both points), and
    what it takes, compiled; the effort of finding it: programmes solved, plans compiled, seconds;
    and what it is the optimum of, and among which plans.
    """

    plan: UpdatePlan
    gain: float
    short: float
    cost: Cost
    blob: Blob
    solved: int
    compiled: int
    seconds: float
    of: str = MEASURED


class _Programme:
    """The mixed-integer programme of a case."""

    def __init__(self, case: Case, gains: Gains, ram: int, macs: int | None, least: Base) -> None:
        self.case = case
        self.weights = [w for w in case.weights if gains.weights.get(w.key, 0.0) > 0]
        self.biases = [k for k in range(2, case.most_biases + 1) if gains.biases.get(k, 0.0) > 0]
        self.choices = len(self.weights) + len(self.biases)
        self.rows: list[tuple[dict[int, float], float]] = []  # coefficients, upper bound
        self.objective: dict[int, float] = {}
        self.binary: list[bool] = []
        self.most: list[float] = []
        self.number = {w.key: self.variable() for w in self.weights}
        self.of_biases = {k: self.variable() for k in self.biases}
        self._memory(ram, least)
        for j, gain in [
            *((self.number[w.key], gains.weights[w.key]) for w in self.weights),
            *((self.of_biases[k], gains.biases[k]) for k in self.biases),
        ]:
            self.objective[j] = self.objective.get(j, 0.0) - gain
        if macs is not None:
            row = {self.number[w.key]: float(w.macs) for w in self.weights}
            self.rows.append((row, macs - least.macs + 0.5))
        self.rows.append((dict.fromkeys(self.of_biases.values(), 1.0), 1.0))
        for _, same in itertools.groupby(self.weights, lambda w: w.key[0]):
            self.rows.append(({self.number[w.key]: 1.0 for w in same}, 1.0))

    def variable(self, most: float = 1.0, binary: bool = True) -> int:
        """Add a variable from 0 to ``most``; return its number."""
        self.binary.append(binary)
        self.most.append(most)
        return len(self.most) - 1

    def any_of(self, keys: Iterable[Key]) -> dict[int, float]:
        """Return terms that are 1 if any of the weights learns, 0 if none does."""
        mine = sorted(key for key in keys if key in self.number)
        layers = [list(g) for _, g in itertools.groupby(mine, lambda key: key[0])]
        if len(layers) == 1:  # at most one fraction of a layer
            return {self.number[key]: 1.0 for key in mine}
        if not layers:
            return {}
        shared = self.variable()
        for layer in layers:
            self.rows.append(({shared: -1.0} | {self.number[key]: 1.0 for key in layer}, 0.0))
        return {shared: 1.0}

    def _memory(self, ram: int, least: Base) -> None:
        case, network = self.case, self.case.network
        arena, scratch = self.variable(np.inf, False), self.variable(np.inf, False)
        self.rows.append(({arena: -1.0}, -float(least.arena)))
        self.rows.append(({scratch: -1.0}, -float(least.scratch)))
        total: dict[int, float] = {arena: 1.0, scratch: 1.0}
        for w in self.weights:
            total[self.number[w.key]] = float(w.trained + w.program)
            self.rows.append(({scratch: -1.0, self.number[w.key]: float(w.scratch)}, 0.0))
        for k in self.biases:
            total[self.of_biases[k]] = float(network.biases(k))
        users: dict[bytes, list[Weight]] = {}
        for w in self.weights:
            if w.index:
                users.setdefault(w.index, []).append(w)
        for index, some in users.items():  # a list that several weights share is there once
            for j, c in self.any_of(w.key for w in some).items():
                total[j] = total.get(j, 0.0) + c * len(index)
        fixed = network.head + least.program
        self.rows.append((total, ram - fixed + 0.5))  # whole bytes: half of one for the solver
        for j, c in total.items():
            self.objective[j] = TIE * c / ram
        steps: list[dict[int, float]] = [{arena: -1.0} for _ in case.base]
        for p in case.pieces:
            self._add(steps, p)
        for s in case.savings:
            over = self.variable()
            steps[s.step][over] = -float(s.size)
            self.rows.append(({scratch: -1.0, over: float(s.scratch)}, 0.0))
            for j in self.any_of(s.keys):
                self.rows.append(({over: 1.0, j: 1.0}, 1.0))
        seen = set()
        for step, row in enumerate(steps):
            if not case.by_row[step]:
                bound = -float(case.base[step])
                if (line := (tuple(sorted(row.items())), bound)) not in seen:
                    seen.add(line)
                    self.rows.append((row, bound))

    def _add(self, steps: list[dict[int, float]], p: Piece) -> None:
        terms = self.any_of(p.keys)
        for step in range(p.first, p.last + 1):
            for j, c in terms.items():
                steps[step][j] = steps[step].get(j, 0.0) + c * p.size

    def solve(self, cuts: Iterable[Cut] = (), whole: bool = True) -> tuple[float, Cut] | None:
        """Return the greatest value and where it is, None if there is no solution; without
        ``whole`` of the relaxation to fractions, a bound."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        rows = list(self.rows)
        for on, off in cuts:
            rows.append((dict.fromkeys(on, 1.0) | dict.fromkeys(off, -1.0), len(on) - 1.0))
        entries = [(r, j, c) for r, (row, _) in enumerate(rows) for j, c in row.items()]
        n = len(self.most)
        r, j, c = zip(*entries, strict=True)
        matrix = coo_array((c, (r, j)), (len(rows), n)).tocsr()
        target = np.zeros(n)
        for number, value in self.objective.items():
            target[number] = value
        with _quiet():
            result = milp(
                target,
                integrality=np.array(self.binary, int) * whole,
                bounds=Bounds(np.zeros(n), np.array(self.most)),
                constraints=LinearConstraint(matrix, -np.inf, np.array([b for _, b in rows])),
                options={"mip_rel_gap": 0.0},
            )
        if result.status == 2:
            return None
        if result.status != 0:
            raise SproutError(f"The solver gave up on the choice of a plan: {result.message}")
        on = frozenset(np.flatnonzero(result.x[: self.choices] > 0.5).tolist())
        return -float(result.fun), (on, frozenset(range(self.choices)) - on)

    def plan(self, cut: Cut) -> UpdatePlan:
        """Return the plan of a solution."""
        names: list[Key | int] = [w.key for w in self.weights]
        names += self.biases
        chosen = [names[j] for j in sorted(cut[0])]
        plan = UpdatePlan(sum(k for k in chosen if isinstance(k, int)))
        plan.weights = dict(key for key in chosen if not isinstance(key, int))
        return plan


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off standard output what HiGHS prints there by itself, whatever its options say."""
    library = ctypes.CDLL(None)  # whose buffer it prints to
    sys.stdout.flush()
    library.fflush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


NOTHING = Base(0, DEFAULT_SCRATCH, blobs.HEADER, 0)
"""What is known of a case before anything is worked out for it."""


class _Search:
    """Takes up cases best first until a plan turns out to fit."""

    def __init__(
        self,
        network: Footprint,
        gains: Gains,
        ram: int,
        macs: int | None,
        build: Callable[[UpdatePlan], Blob],
        report: Reporter | None,
    ) -> None:
        self.network, self.gains, self.ram, self.macs = network, gains, ram, macs
        self.build, self.report = build, report
        self.solved = self.compiled = 0
        self.order = itertools.count()
        self.waiting: list[tuple[float, int, Case, _Programme, list[Cut], Cut | None]] = []

    def offer(self, case: Case, programme: _Programme, cuts: list[Cut], whole: bool) -> None:
        """Solve a case's programme, and let the solution wait for its turn."""
        self.solved += 1
        found = programme.solve(cuts, whole)
        if found is not None:
            value, cut = found
            entry = (-value, next(self.order), case, programme, cuts, cut if whole else None)
            heapq.heappush(self.waiting, entry)

    def run(self, allowed: int, patience: float) -> tuple[UpdatePlan, Blob] | None:
        """Return the best plan whose model takes at most ``allowed`` bytes and that compiles to at
        most ``ram``; None if there is none, or after ``patience`` plans that did not."""
        self.waiting.clear()
        self.over: list[int] = []
        cases = self.network.cases()
        for done, case in enumerate(cases, 1):
            programme = _Programme(case, self.gains, allowed, self.macs, NOTHING)
            self.offer(case, programme, [], whole=False)
            if self.report:
                self.report("choosing", done, len(cases))
        while self.waiting and len(self.over) < patience:
            _, _, case, programme, cuts, cut = heapq.heappop(self.waiting)
            if cut is None:
                try:
                    programme = _Programme(case, self.gains, allowed, self.macs, case.least)
                except SproutError:  # frames cannot arrive by rows
                    continue
                self.offer(case, programme, [], whole=True)
                continue
            plan = programme.plan(cut)
            self.compiled += 1
            blob = self.build(plan)
            cost = measured(blob)
            if _fits(cost, self.ram, self.macs):
                return plan, blob
            self.over.append(cost.ram - self.ram)
            self.offer(case, programme, [*cuts, cut], whole=True)
        return None


def best(
    network: Footprint,
    gains: Gains,
    ram: int,
    macs: int | None = None,
    build: Callable[[UpdatePlan], Blob] | None = None,
    report: Reporter | None = None,
) -> Choice:
    """Return the plan that gains most with at most ``ram`` bytes and ``macs``
    multiply-accumulates a step, compiled by ``build``.

    With ``short`` 0 it is proven that no other plan of what ``gains`` offers is better (by more
    than HiGHS's absolute gap, 1e-6 points).  Where ``PATIENCE`` plans in a row that the model lets
    through do not fit, because the placement in the arena misses its lower bound, the search goes
    on with fewer bytes and ``short`` says how many points the optimum may be better at most.
    Raises SproutError if not even the head alone fits.
    """
    start = time.perf_counter()
    search = _Search(network, gains, ram, macs, build or network.build, report)
    found = search.run(ram, PATIENCE)
    bound = -search.waiting[0][0] if found is None and search.waiting else None
    margin = 0
    while found is None and bound is not None and margin < ram // 4:
        margin += max(min(search.over, default=1), 1)
        found = search.run(ram - margin, PATIENCE)
    if found is None and bound is not None:
        found = search.run(ram, float("inf"))
    if found is not None:
        plan, blob = found
        cost, gain, seconds = measured(blob), gains.of(plan), time.perf_counter() - start
        short = 0.0 if bound is None else max(0.0, bound - (gain - TIE * cost.ram / ram))
        return Choice(plan, gain, short, cost, blob, search.solved, search.compiled, seconds)
    raise _nothing_fits(network, measured(search.build(UpdatePlan())), ram, macs)


def _fits(cost: Cost, ram: int | None, macs: int | None) -> bool:
    return (ram is None or cost.ram <= ram) and (macs is None or cost.macs <= macs)


def require_head(network: Footprint, ram: int | None, macs: int | None) -> None:
    """Raise SproutError if not even the head alone fits."""
    least = measured(network.build(UpdatePlan()))
    if not _fits(least, ram, macs):
        raise _nothing_fits(network, least, ram, macs)


def _nothing_fits(
    network: Footprint, least: Cost, ram: int | None, macs: int | None
) -> SproutError:
    """What to say where the head alone, which takes ``least``, is too much."""
    allowed = [f"--ram allows {ram:,}"] if ram is not None else []
    allowed += [f"--step-mmac {macs:,} MACs"] if macs is not None else []
    by_rows = not network.rows and ram is not None and least.ram > ram
    return SproutError(
        f"No plan fits: the head alone takes {least.ram:,} bytes of RAM and {least.macs:,} MACs a "
        f"step, and {', '.join(allowed)}; allow more"
        + (", or let frames arrive by rows (--rows)." if by_rows else ".")
    )


def offers(
    network: Footprint,
    found: Contributions,
    ram: int,
    macs: int | None = None,
    build: Callable[[UpdatePlan], Blob] | None = None,
    report: Reporter | None = None,
) -> list[Choice]:
    """Return the plans that may be the best, each once, with the gain that was measured.

    Optima of the measured gains and of the rule's, with weights of all layers and of expansions
    alone (of those the rule's also with gains in proportion to the fractions), with at least each
    of ``LEAST`` of the biases where so many fit; and of the measured gains with as many biases as
    fit.  Raises SproutError as ``best`` does.
    """
    gains = from_analysis(found)
    many = Gains({k: float(k) for k in gains.biases}, {})
    most = best(network, many, ram, macs, build, report).plan.biases
    leasts = [math.ceil(share * len(network.convs)) for share in LEAST]
    tasks: list[tuple[str, Gains, frozenset[int] | None, int]] = []
    narrow = expansions(network)
    for of, some in ((MEASURED, gains), (RULE, rule(network))):
        tasks += [(of, some, None, least) for least in leasts]
        tasks += [(of, some, narrow, least) for least in leasts if narrow]
    proportional = RULE + " with gains in proportion to the fractions"
    tasks += [(proportional, rule(network, 1.0), narrow, least) for least in leasts if narrow]
    tasks.append((MEASURED, gains, None, most))
    choices: list[Choice] = []
    for of, some, layers, least in tasks:
        choice = best(network, some.among(layers, least), ram, macs, build, report)
        if choice.plan.biases >= least and choice.plan not in [c.plan for c in choices]:
            said, gain = of + _among(layers, least), gains.of(choice.plan)
            choices.append(dataclasses.replace(choice, gain=gain, of=said))
    return choices


@dataclass
class Trial:
    """A choice that learned at a rate, and what came of it, seed by seed."""

    choice: Choice
    rate: float
    results: list[dict[str, Any]]

    @property
    def loss(self) -> float:
        """Held-out loss in nats, mean of the seeds."""
        return mean_loss(self.results)


def compete(bench: Bench, choices: Sequence[Choice]) -> list[Trial]:
    """Let all choices learn at the rate of the bench, then the half of them with less loss at half
    that rate, and so on while that makes the least loss less; return them, the least loss first.

    Plans with more weights want lower rates: at one rate for all those with few would win.
    """
    loss = operator.attrgetter("loss")
    trials: list[Trial] = []
    some, rate, least = list(choices), bench.task.settings.rate, math.inf
    while rate >= LEAST_RATE:
        results = bench.having(rate=rate).run([str(c.plan) for c in some], "trying")
        now = sorted((Trial(c, rate, results[str(c.plan)]) for c in some), key=loss)
        trials += now
        if now[0].loss >= least:
            break
        least, rate = now[0].loss, rate / 2
        some = [trial.choice for trial in now[: (len(now) + 1) // 2]]
    return sorted(trials, key=loss)


def winner(bench: Bench, trials: Sequence[Trial]) -> Trial:
    """Return the trial with the least held-out loss, of ``trials`` with the least loss first.

    If others are within a standard error of it, that of the differences seed by seed, the first
    few of them learn again with twice as many seeds, which decides; not with too few samples for
    that.
    """
    close = [trials[i] for i in close_to_least([trial.results for trial in trials])]
    close = close[:MOST_AGAIN]
    seeds = 2 * bench.task.settings.seeds
    one = len({str(trial.choice.plan) for trial in close}) == 1
    if one or bench.all_samples < least_samples(seeds):
        return close[0]
    loss: list[float] = []
    for trial in close:
        text = str(trial.choice.plan)
        again = bench.having(rate=trial.rate, seeds=seeds).run([text], "trying again")
        loss.append(mean_loss(again[text]))
    return close[int(np.argmin(loss))]


def eliminate(
    bench: Bench,
    network: Footprint,
    found: Contributions,
    within: float,
    ram: int | None = None,
    macs: int | None = None,
) -> UpdatePlan:
    """Backward elimination: begin with everything that was measured and freeze it bit by bit.

    Weights go first, the one with the least gain for its bytes before the others, then the biases
    from the first on.  Each time the rest is trained; what cannot be missed, because the accuracy
    falls more than ``within`` points below the best so far, goes on learning: all together may be
    far from the best, as one rate is for all.  With ``ram`` or ``macs`` freezing goes on in the
    same order, whatever the accuracy, until the plan fits, compiled.  Raises SproutError if not
    even the head alone does.
    """
    require_head(network, ram, macs)
    gains = from_analysis(found)
    plan = UpdatePlan(max(gains.biases, default=0))
    for i in {i for i, _ in gains.weights}:
        plan.weights[i] = max(f for j, f in gains.weights if j == i)
    steps, total = itertools.count(1), 1 + len(plan.weights) + len(gains.biases)
    reached = 0.0

    def missed(plan: UpdatePlan) -> bool:
        nonlocal reached
        result = float(accuracies(bench.run([str(plan)], "trying")[str(plan)]).mean())
        if bench.report:
            bench.report("eliminating", next(steps), total)
        reached = max(reached, result)
        return result < reached - within

    missed(plan)

    def price(i: int) -> float:
        key = i, plan.weights[i]
        return gains.weights[key] / network.weight(*key).trained

    def fits(plan: UpdatePlan) -> bool:
        modelled = _fits(network.cost(plan), ram, macs)
        return modelled and _fits(measured(network.build(plan)), ram, macs)

    for may_lose in (False, True):
        for i in sorted(plan.weights, key=price):
            if may_lose and fits(plan):
                break
            less = UpdatePlan(plan.biases, {j: f for j, f in plan.weights.items() if j != i})
            if may_lose or not missed(less):
                plan = less
        for k in sorted((k for k in (0, *gains.biases) if k < plan.biases), reverse=True):
            if may_lose and fits(plan):
                break
            less = UpdatePlan(k, dict(plan.weights))
            if not may_lose and missed(less):
                break
            plan = less
    return plan
