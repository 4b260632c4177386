"""The trade-off: accuracy against RAM, and against multiplications a step, plan by plan.

For each budget the best of the plans that are tried (``choose.offers``), the largest number of
last layers and the largest number of last biases that fit; the last layer alone and everything
stand beside them.  Each plan learns from the user's samples and is tested on held-out ones, with
the seeds of the analysis (``analyze.Bench``).  The more learns, the smaller a rate has to be: a
family learns at that multiple of the analysis's (``rates.climb``) at which its largest plan has
the least held-out loss.  The samples that chose a rate or a plan also test it, so all numbers are
somewhat flattering, those of the found plans most.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .analyze import Bench, Contributions, accuracies, mean_loss, standard_error
from .choose import offers
from .footprint import Footprint, measured
from .graph import SproutError
from .plan import UpdatePlan, parse
from .progress import Reporter
from .rates import climb

BUDGETS = tuple(range(32, 257, 32))
"""KiB of RAM."""

FAMILIES = {
    "found": "the plan found for each budget",
    "layers": "last k layers",
    "biases": "last k biases",
    "last": "last layer",
    "full": "everything",
}


@dataclass
class Point:
    """A plan of a family and what it reached: RAM in bytes, MACs of a step, accuracy in percent
    (mean of the seeds, its standard error, None with one seed, and each) at a rate; ``budget`` in
    bytes if it was found for one."""

    family: str
    plan: str
    ram: int
    macs: int
    rate: float = 0.0
    accuracy: float = 0.0
    error: float | None = None
    each: tuple[float, ...] = ()
    budget: int | None = None


def last_layers(k: int, n: int) -> UpdatePlan:
    """Return the plan of the last k layers of n, whole, with their biases."""
    text = ",".join([f"b{k}", *(f"{i}:1" for i in range(n - k, n - 1))])
    return parse(text, n) if k > 1 else UpdatePlan()


def last_biases(k: int, n: int) -> UpdatePlan:
    """Return the plan of the last k biases of n."""
    return UpdatePlan(k if k > 1 else 0)


def largest(
    network: Footprint, make: Callable[[int, int], UpdatePlan], ram: int
) -> UpdatePlan | None:
    """Return the plan ``make(k, n)`` with the largest k that fits, compiled; None if not even 1
    does."""
    n = len(network.convs)
    fitting = []
    for k in range(1, n + 1):
        try:
            if network.cost(make(k, n)).ram > ram:
                break
        except SproutError:  # no gradient gets there
            break
        fitting.append(make(k, n))
    compiled = (plan for plan in reversed(fitting) if measured(network.build(plan)).ram <= ram)
    return next(compiled, None)


def plans(
    network: Footprint,
    analysis: Contributions,
    budgets: Sequence[int],
    report: Reporter | None = None,
) -> Iterator[Point]:
    """Yield the points of all families for budgets in bytes, without their accuracy, and all plans
    that are tried.  Everything can only learn from whole frames, whatever the others do."""
    for done, ram in enumerate(budgets, 1):
        try:
            choices = offers(network, analysis, ram)
        except SproutError:  # nothing fits that little
            continue
        finally:
            if report:
                report("choosing", done, len(budgets))
        for choice in choices:
            yield Point("found", str(choice.plan), choice.cost.ram, choice.cost.macs, budget=ram)
    n = len(network.convs)
    fixed = [("last", UpdatePlan()), ("full", parse("full", n))]
    for family, make in (("layers", last_layers), ("biases", last_biases)):
        for ram in budgets:
            plan = largest(network, make, ram)
            if plan is not None and (family, plan) not in fixed:
                fixed.append((family, plan))
    whole = Footprint(network.source, network.fractions)  # what everything learning needs
    for family, plan in fixed:
        try:
            cost = measured((whole if family == "full" else network).build(plan))
        except SproutError:  # there is no gradient for all of it
            continue
        yield Point(family, str(plan), cost.ram, cost.macs)


def rates(bench: Bench, points: Sequence[Point]) -> dict[str, float]:
    """Return the rate of each family."""
    largest = {p.family: p.plan for p in sorted(points, key=lambda p: p.ram)}
    guess = bench.task.settings.rate

    def score(plan: str, powers: Sequence[int]) -> list[float]:
        found = []
        for rate in (guess * 2.0**power for power in powers):
            results = bench.having(rate=rate).run([plan], f"learning at rate {rate:g}")
            found.append(-mean_loss(results[plan]))
        return found

    best = {family: climb(functools.partial(score, plan)) for family, plan in largest.items()}
    return {family: guess * 2.0**power for family, (power, _) in best.items()}


def measure(bench: Bench, points: Sequence[Point]) -> list[Point]:
    """Return the points with their rates and with what their plans reach; of the plans tried for a
    budget, the one with the least held-out loss."""
    rate = rates(bench, points)
    points = [dataclasses.replace(p, rate=rate[p.family]) for p in points]
    results = {
        at: bench.having(rate=at).run([p.plan for p in points if p.rate == at], "learning")
        for at in sorted(set(rate.values()))
    }

    def loss(p: Point) -> float:
        return mean_loss(results[p.rate][p.plan])

    tried: dict[int | None, list[Point]] = {}
    for p in points:
        tried.setdefault(p.budget, []).append(p)
    found = []
    for p in points:
        if p.budget is not None and p is not min(tried[p.budget], key=loss):
            continue
        each = accuracies(results[p.rate][p.plan])
        mean, error = float(each.mean()), standard_error(each)
        found.append(dataclasses.replace(p, accuracy=mean, error=error, each=tuple(each.tolist())))
    return found


def to_json(points: Sequence[Point], about: dict[str, Any]) -> dict[str, Any]:
    """Return what ``sprout frontier`` writes: ``about`` the runs, and the points."""
    return {"about": about, "points": [dataclasses.asdict(p) for p in points]}


def picture(points: Sequence[Point], title: str) -> bytes:
    """Return a PNG: measured accuracy, with its standard error, against RAM and against
    multiplications of a step.

    Everything learning takes so much more of both than all else that its figures stand in the
    legend instead, where there is anything else.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    scales = (lambda p: p.ram / 1024, lambda p: p.macs / 1e6)
    drawn = [p for p in points if p.family != "full"] or points
    for axis, of in zip(axes, scales, strict=True):
        for family, label in FAMILIES.items():
            some = sorted((p for p in drawn if p.family == family), key=of)
            if some:
                axis.errorbar(
                    [of(p) for p in some], [p.accuracy for p in some],
                    yerr=[p.error or 0.0 for p in some], label=label, capsize=2,
                    marker="o", markersize=4, linewidth=2.2 if family == "found" else 1.0,
                    elinewidth=0.8, zorder=3 if family == "found" else 2,
                )  # fmt: skip
        axis.grid(alpha=0.3)
    axes[0].set(xlabel="RAM for training, KiB", ylabel="held-out accuracy, %", xscale="log")
    sizes = [math.log2(p.ram / 1024) for p in drawn]
    low, high = math.floor(min(sizes)), math.ceil(max(sizes))
    ticks = [m * 2.0**e for e in range(low, high + 1) for m in (1, 1.5)]
    axes[0].set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes[0].minorticks_off()
    axes[0].set_xlim(2 ** (min(sizes) - 0.3), 2 ** (max(sizes) + 0.3))
    axes[1].set(xlabel="multiply-accumulates of a step, millions")
    for p in points:
        if p not in drawn:
            text = f"{FAMILIES[p.family]}: {p.accuracy:.1f} %, {p.ram / 1024:,.0f} KiB, "
            axes[0].plot([], [], " ", label=f"{text}{p.macs / 1e6:.1f} M (not drawn)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    pyplot.close(figure)
    return out.getvalue()
