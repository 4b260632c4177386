"""``--plan auto``: from a model and the user's samples to a plan that was measured.

With samples: contribution analysis of a few of them, the best plans under the budget
(``choose.offers``), these trained on all samples, and the one with the least held-out loss taken,
its true gain beside the predicted one.  With the file of an analysis: the same without training.
Without either: the gains of ``choose.unknown``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import choose, frontends, rates
from .analyze import (
    Bench,
    Contributions,
    Gain,
    Settings,
    accuracies,
    analyze,
    mean_loss,
    read,
    subject,
)
from .blob import FLAG_LEARNS, Blob
from .compile import compile_model
from .data import load_samples
from .footprint import Footprint
from .frontends.head import replace_head
from .frontier import FAMILIES, Point, measure, plans
from .graph import SproutError
from .plan import UpdatePlan
from .progress import Reporter

BEST_SHOWN = 12


@dataclass
class Wanted:
    """What the user asked for; see the options of ``sprout compile``."""

    classes: list[str] | None = None
    max_classes: int | None = None
    seed: int = 0
    fractions: str = "all"
    rows: bool = False
    input_range: tuple[float, float] | None = None
    ram: int | None = None
    step_mmac: float | None = None
    data: Path | None = None
    analysis: Path | None = None
    select: str = "exact"
    within: float = 1.0
    samples: int = 480
    seeds: int = 3
    epochs: int = 2
    rate: float = 0.004
    cache: Path = Path("build/analysis")
    scheduler: str | None = None


def make_bench(model: Path, data: Path, want: Wanted, console: Console, report: Reporter) -> Bench:
    """Return the bench for a model and a file of samples.  Raises SproutError."""
    blob = compile_model(
        model, "last", want.classes, want.max_classes, input_range=want.input_range
    )
    samples = load_samples(data, blob, lambda text: console.print(text, markup=False))
    settings = Settings(want.samples, want.seeds, want.epochs, want.rate, want.fractions)
    return Bench(
        frontends.load(model), model.read_bytes(), samples, want.classes, want.max_classes,
        settings, want.cache, want.scheduler, report, want.input_range,
    )  # fmt: skip


def choose_plan(
    model: Path, make: Callable[[UpdatePlan], Blob], want: Wanted, console: Console
) -> Blob:
    """Return the blob of the plan that is found, and say what is known of it."""
    if want.ram is None:
        raise SproutError("--plan auto needs --ram, such as --ram 160K: all that it may take.")
    if want.data is not None and want.analysis is not None:
        raise SproutError("--data and --analysis are two ways to the gains: give one of them.")
    if want.select == "eliminate" and want.data is None:
        raise SproutError("--select eliminate trains plan after plan and needs --data.")
    macs = None if want.step_mmac is None else round(want.step_mmac * 1e6)
    graph = frontends.load(model)
    if want.classes is not None:
        make(UpdatePlan(head=False))  # complains of the classes in the words of the command
        graph = replace_head(graph, want.classes, want.max_classes, seed=want.seed)
    network = Footprint(graph, want.fractions, want.rows)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    bench: Bench | None = None
    found: Contributions | None = None
    with Reporter(console) as report:
        if want.data is not None:
            choose.require_head(network, want.ram, macs)
            bench = make_bench(model, want.data, want, console, report)
            found = analyze(bench, want.ram, want.rows)
        elif want.analysis is not None:
            found = read(want.analysis, subject(model.read_bytes(), want.classes))
            if note := _left_out(found, want.analysis, want.ram):
                say(note)
        trials: list[choose.Trial] = []
        head: list[dict[str, Any]] = []
        if want.select == "eliminate":
            assert bench is not None and found is not None
            plan = choose.eliminate(bench, network, found, want.within, want.ram, macs)
            say(f"backward elimination leaves {plan}")
            blob, gain = make(plan), choose.from_analysis(found).of(plan)
            results = bench.run(["last", str(plan)], "trying")
            head, learned = results["last"], results[str(plan)]
        elif bench is not None and found is not None:
            choices = choose.offers(network, found, want.ram, macs, make, report)
            bench = bench.having(samples=bench.all_samples)
            head = bench.run(["last"], "trying")["last"]
            trials = choose.compete(bench, choices)
            best = choose.winner(bench, trials)
            choice, learned = best.choice, best.results
        else:
            if found is None:
                gains, of = choose.unknown(network)
            else:
                gains, of = choose.from_analysis(found), choose.MEASURED
            choice = choose.best(network, gains, want.ram, macs, make, report)
            choice = dataclasses.replace(choice, of=of)
        if want.select != "eliminate":
            plan, blob, gain = choice.plan, choice.blob, choice.gain
            say(_proof(choice))
        if bench and mean_loss(learned) > mean_loss(head):
            say(f"{plan} learns worse than the head alone, which is taken.")
            plan, gain = UpdatePlan(), 0.0
            blob = make(plan)
        if bench:
            rate = blob.meta["rate"] = find_rate(bench, blob, say)
            verified = bench.having(rate=rate).run(["last", str(plan)], "verifying")
    if len(trials) > 1:
        console.print(_trials(trials, head))
    if found is not None:
        alone = sum(found.head) / len(found.head)
        text = f"head alone {alone:.1f} %, predicted gain {gain:+.1f} points"
        if bench:
            before, after = (accuracies(verified[name]) for name in ("last", str(plan)))
            true = after - before
            each = ", ".join(f"{t:+.1f}" for t in true)
            text += (
                f", true gain {true.mean():+.1f} ({each}): {before.mean():.1f} -> "
                f"{after.mean():.1f} % with {len(bench.task.labels):,} samples at rate {rate:g}"
            )
        say(text)
    return blob


def set_rate(model: Path, blob: Blob, want: Wanted, console: Console) -> None:
    """Find the learning rate of a blob on the user's samples and write it into its meta."""
    if not blob.flags & FLAG_LEARNS:
        raise SproutError(
            "--data finds a learning rate, and with --plan none nothing learns: give another plan."
        )
    assert want.data is not None
    with Reporter(console) as report:
        bench = make_bench(model, want.data, want, console, report)
        blob.meta["rate"] = find_rate(
            bench, blob, lambda text: console.print(text, markup=False, soft_wrap=True)
        )


def find_rate(bench: Bench, blob: Blob, say: Callable[[str], None]) -> float:
    """Return the learning rate for a blob's plan, and say what is known of it."""
    found = rates.find(bench, blob.info["plan"])
    say(str(found))
    return found.rate


def _left_out(found: Contributions, path: Path, ram: int) -> str:
    """Say that an analysis was for less than ``ram`` bytes, if it was."""
    limit = found.about.get("ram", ram)
    if limit >= ram:
        return ""
    return (
        f"{path} leaves out what takes more than {limit:,} bytes by itself: 'sprout analyze --ram "
        f"{ram}' may lead to better plans."
    )


def _trials(trials: Sequence[choose.Trial], head: Sequence[dict[str, Any]]) -> Table:
    """What the plans came to that were trained to find the best of them, at their rates."""
    result = Table(
        "trained", "rate", "RAM", "predicted", "true gain", "loss", box=None, pad_edge=False
    )
    for trial in trials:
        true = (accuracies(trial.results) - accuracies(head)).mean()
        result.add_row(
            str(trial.choice.plan), f"{trial.rate:g}", f"{trial.choice.cost.ram:,}",
            f"{trial.choice.gain:+.1f}", f"{true:+.1f}", f"{trial.loss:.3f}",
        )  # fmt: skip
    for column in result.columns[1:]:
        column.justify = "right"
    return result


def _proof(choice: choose.Choice) -> str:
    """How good the plan is among all, in a line."""
    if choice.short > 1e-6:
        word = f"at most {choice.short:.3f} points below the optimum"
    else:
        word = "the optimum"
    effort = f"{choice.solved} programmes solved, {choice.compiled} plans compiled"
    return f"{choice.plan}: {word} {choice.of} ({effort}, {choice.seconds:.1f} s)"


def _error(points: float | None) -> str:
    return "" if points is None else f"{points:.1f}"


def table(found: Contributions) -> Table:
    """The candidates that gain most, by the loss, which is less noisy than accuracy."""
    head = sum(found.head) / len(found.head)
    result = Table(
        "learns, with the head", "gain, points", "std. error", "loss", "each seed",
        title=f"head alone: {head:.1f} %", title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    rows: list[tuple[str, Gain]] = [(f"b{k}", g) for k, g in found.biases.items()]
    rows += [(f"{i}:{f}", g) for (i, f), g in found.weights.items()]
    for name, gain in sorted(rows, key=lambda row: -row[1].loss)[:BEST_SHOWN]:
        each = ", ".join(f"{g:+.1f}" for g in gain.each)
        result.add_row(name, f"{gain.mean:+.1f}", _error(gain.error), f"{-gain.loss:+.3f}", each)
    for column in result.columns[1:]:
        column.justify = "right"
    return result


def frontier_points(
    bench: Bench, budgets: Sequence[int], analysis: Path | None, rows: bool, report: Reporter
) -> list[Point]:
    """Analyse, or read the file of an analysis, choose a plan for each budget (bytes; with
    ``rows`` frames arrive by rows), and measure all families of plans.  Raises SproutError."""
    network = Footprint(bench.task.network(0), bench.task.settings.fractions, rows)
    if analysis is None:
        found = analyze(bench, max(budgets), rows)
    else:
        found = read(analysis, {key: bench.about[key] for key in ("model", "classes")})
        if note := _left_out(found, analysis, max(budgets)):
            report.console.print(note, markup=False, soft_wrap=True)
    return measure(bench, list(plans(network, found, budgets, report)))


def too_little(points: Sequence[Point], budgets: Sequence[int]) -> str:
    """Say for which budgets there is no plan, if there are such."""
    found = {p.budget for p in points}
    least = min(p.ram for p in points)
    missing = [f"{ram:,}" for ram in budgets if ram not in found]
    if not missing:
        return ""
    return f"Nothing fits {' or '.join(missing)} bytes: the least plan here takes {least:,}."


def frontier_table(points: Sequence[Point]) -> Table:
    """The points in rows."""
    result = Table(
        "",
        "plan",
        "RAM",
        "MACs a step",
        "rate",
        "accuracy",
        "std. error",
        box=None,
        pad_edge=False,
    )
    for p in points:
        result.add_row(
            FAMILIES[p.family], p.plan, f"{p.ram:,}", f"{p.macs:,}", f"{p.rate:g}",
            f"{p.accuracy:.1f}", _error(p.error),
        )  # fmt: skip
    for column in result.columns[2:]:
        column.justify = "right"
    return result
