"""What found plans are worth at equal RAM (``make bench-plans``).

mcunet-5fps learns person detection, CIFAR-10 and spoken digits (as pictures, ``sprout.logmel``)
with two plans of the paper, with the plans that ``sprout compile --plan auto`` finds for the RAM
of those, with what backward elimination (``--select eliminate``) leaves of all that was measured,
with the best number of last layers that fits, and with the largest one of last biases: on the
integer engine, ten seeds, of which the first three have a column of their own.  Beside them stands
float32 with every layer learning, where ``make bench-accuracy`` has run it.

Nothing but these last runs looks at a test set.  A plan is found on the samples that are learned,
at most 4,000 of them: gains come from 480, then the plans that they lead to learn two thirds of
all at several rates, and the one with the least loss on the other third, mean of three such cuts,
is taken, or of six where that leaves some close (``choose.compete``, ``choose.winner``).  Which
number of last layers is best is found likewise.  Elimination sees the 480 samples alone.

The rate of each row is found as in ``make bench-accuracy``: the power of two times the first
guess with the best mean accuracy, over two seeds that no test uses, on all training samples that
no run learns.  They also judge the rows a second time, beside the test set: they are more.

Every finished run is kept in build/bench-accuracy, the search in build/analysis: together some
four hours of one core.  Needs ../shared.
"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Iterable, Sequence
from typing import Any

import bench_common as common
import numpy as np
from bench_common import CLASSES, PLAN, TRAIN, Dataset, Settings, Task
from rich.console import Console
from sprout import choose, frontends, frontier
from sprout import data as npz
from sprout.analyze import Bench, Contributions, analyze, mean_loss, spread, standard_error
from sprout.analyze import Settings as Analysis
from sprout.choose import Choice, Trial
from sprout.footprint import Footprint, measured
from sprout.plan import UpdatePlan
from sprout.progress import Reporter
from sprout.rates import climb

BUDGETS = {"49 KB": PLAN, "148 KB": "b23,21:1,24:1,27:1,30:1,36:1,39:1/2"}
"""The paper's plans by its own names for them: all beside one take at most its RAM."""

RATES = {"person": 0.004, "cifar10": 0.002, "digits": 0.008}
"""First guesses, which trials start from: for two, what bench-accuracy found for the smaller
plan."""

LAST_RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""Tried for every number of last layers."""

FEW, MOST, EPOCHS, SEEDS = 480, 4000, 2, 3
"""Samples that gains come from and that trials have at most; epochs and seeds of the former."""

TUNING_SEEDS = (100, 101)
"""Of the runs that choose a rate."""

WITHIN = 1.0
"""Points that backward elimination may lose, the default of ``--within``."""

TITLES = {
    "paper": "the paper's plan",
    "found": "the plan found",
    "eliminated": "by backward elimination",
    "layers": "best last layers",
    "biases": "most last biases",
}


def footprint(name: str) -> Footprint:
    """Return the model of memory for a data set."""
    return Footprint(common.network(CLASSES[name], 0, "last"))


def budget(name: str, plan: str) -> int:
    """Return the bytes that a plan takes, compiled."""
    return measured(common.compiled(CLASSES[name], 0, plan)).ram


class Finder:
    """Finds plans for a data set on its training samples."""

    def __init__(self, data: Dataset, report: Reporter) -> None:
        self.name, self.data, self.report = data.name, data, report
        self.few = self.bench(FEW, EPOCHS)
        self.found = {kb: analyze(self.few, budget(self.name, p)) for kb, p in BUDGETS.items()}

    def bench(self, count: int = MOST, epochs: int | None = None) -> Bench:
        """Return a bench for the first ``count`` training samples."""
        x, y = self.data.train.x[:count], self.data.train.y[:count]
        settings = Analysis(len(y), SEEDS, epochs or TRAIN[self.name][1], RATES[self.name])
        return Bench(
            frontends.load(common.MODEL), common.MODEL.read_bytes(),
            npz.Samples(x, y, x.shape[1:]), list(CLASSES[self.name]), None, settings,
            common.BUILD / "analysis", None, self.report,
        )  # fmt: skip

    def layers(self, network: Footprint, ram: int) -> tuple[str, float]:
        """Return the best plan of last layers for a budget in bytes, and its rate."""
        largest, n = frontier.largest(network, frontier.last_layers, ram), len(network.convs)
        assert largest is not None
        plans = [str(frontier.last_layers(k, n)) for k in range(1, max(largest.biases, 1) + 1)]
        loss: dict[tuple[str, float], float] = {}
        for rate in LAST_RATES:
            results = self.bench().having(rate=rate).run(plans, "last layers")
            loss |= {(plan, rate): mean_loss(results[plan]) for plan in plans}
        return min(loss, key=lambda each: loss[each])

    def eliminated(self, network: Footprint, kb: str) -> UpdatePlan:
        """Return what backward elimination leaves for a budget."""
        ram = budget(self.name, BUDGETS[kb])
        return choose.eliminate(self.few, network, self.found[kb], WITHIN, ram)

    def winner(self, kb: str, choices: Sequence[Choice]) -> Trial:
        """Let all choices learn; return the best, and print what it was among."""
        bench = self.bench()
        trials = choose.compete(bench, choices)
        for trial in trials:
            c = trial.choice
            right, of = (sum(r[key] for r in trial.results) for key in ("right", "of"))
            print(
                f"{self.name} {kb}: {c.plan} at {trial.rate:g}, {c.of}, gain {c.gain:+.1f}: "
                f"held-out loss {trial.loss:.4f}, {100 * right / of:.2f} %"
            )
        return choose.winner(bench, trials)


def solve(name: str, found: Contributions, ram: int) -> list[Choice]:
    """Return the choices for a budget in bytes."""
    return choose.offers(footprint(name), found, ram)


def find(finders: Sequence[Finder]) -> dict[tuple[str, str], Trial]:
    """Return the plan found for each data set and budget, as it was tried."""
    wanted = [(f, kb) for f in finders for kb in BUDGETS]
    work = [(f.name, f.found[kb], budget(f.name, BUDGETS[kb])) for f, kb in wanted]
    choices: dict[int, list[Choice]] = dict(spread(work, solve))
    return {(f.name, kb): f.winner(kb, choices[i]) for i, (f, kb) in enumerate(wanted)}


def rows(finder: Finder, kb: str, found: Trial) -> list[dict[str, Any]]:
    """Return the rows of a table: the plans to compare, and first guesses of their rates."""
    network, ram = footprint(finder.name), budget(finder.name, BUDGETS[kb])
    biases = frontier.largest(network, frontier.last_biases, ram)
    rate = RATES[finder.name]
    compared = {
        "paper": (BUDGETS[kb], rate),
        "found": (str(found.choice.plan), found.rate),
        "eliminated": (str(finder.eliminated(network, kb)), rate),
        "layers": finder.layers(network, ram),
        "biases": (str(biases), rate),
    }
    return [
        {"title": title, "dataset": finder.name, "plan": p, "rate": r}
        for title, (p, r) in compared.items()
    ]


def learn(
    row: dict[str, Any],
    rates: Sequence[float],
    seeds: Iterable[int],
    on: str,
    data: dict[str, Dataset],
    jobs: int,
) -> list[list[float]]:
    """Let a row learn; return the accuracies on a part of the data, by rate and seed."""
    name, seeds = row["dataset"], list(seeds)
    samples, epochs = TRAIN[name]
    tasks: list[Task] = [
        (Settings(name, row["plan"], rate, epochs, seed, samples, fractions="all"), on)
        for rate in rates for seed in seeds
    ]  # fmt: skip
    made = [run["accuracy"] for run in common.learn_all(tasks, data, jobs) if run]
    found: list[list[float]] = np.reshape(made, (len(rates), len(seeds))).tolist()
    return found


def tune(row: dict[str, Any], data: dict[str, Dataset], jobs: int) -> None:
    """Find the rate of a row, and what it comes to on held-out samples."""
    guess = row["rate"]

    def score(powers: Sequence[int]) -> list[float]:
        some = [guess * 2.0**power for power in powers]
        found = learn(row, some, TUNING_SEEDS, "held_out", data, jobs)
        return [float(np.mean(each)) for each in found]

    power, row["held_out"] = climb(score, (-1, 0, 1))
    row["rate"] = guess * 2.0**power


def floats(name: str) -> list[float]:
    """Return the accuracies of float32 with everything learning, by seed, at the rate that turned
    out best on the test set: none where ``make bench-accuracy`` has not run."""
    by_rate: dict[float, dict[int, float]] = collections.defaultdict(dict)
    for path in (common.BUILD / common.FOLDER).glob("*.json"):
        kept = json.loads(path.read_text())
        key = kept["key"]
        wanted = {"side": "float", "dataset": name, "plan": "full", "on": "test all", "batch": 1}
        if wanted.items() <= key.items():
            by_rate[key["rate"]][key["seed"]] = kept["result"]["accuracy"]
    found = [[each[s] for s in sorted(each)] for each in by_rate.values()]
    return max(found, key=lambda each: float(np.mean(each)), default=[])


def with_error(each: np.ndarray, sign: str = "") -> str:
    """Return the mean of some seeds with its standard error."""
    error = standard_error(each)
    return f"{each.mean():{sign}.2f}" + ("" if error is None else f" +- {error:.2f}")


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print a table for each data set and budget."""
    for name, result in results.items():
        samples, epochs = TRAIN[name]
        for kb, some in result["rows"].items():
            print(f"\n{name}: {samples:,} samples, {epochs} epochs; RAM of the {kb} plan\n")
            lines = []
            for r in some:
                each = np.array(r["accuracies"])
                paper = np.array(some[0]["accuracies"])
                lines.append([
                    TITLES[r["title"]], r["plan"], f"{r['ram']:,}", f"{r['macs']:,}",
                    f"{r['rate']:g}", f"{r['held_out']:.2f}", f"{each[:3].mean():.2f}",
                    with_error(each), "" if r is some[0] else with_error(each - paper, "+"),
                ])  # fmt: skip
            if result["float"]:
                first = f"{np.mean(result['float'][:3]):.2f}"
                lines.append(["float32, everything", "full", "", "", "", "", first, "", ""])
            header = ["", "plan", "RAM", "MACs a step", "rate", "held out, %", "test, 3 seeds, %"]
            header += [f"{len(some[0]['accuracies'])} seeds", "apart from the paper's"]
            common.print_table(header, lines)


def main() -> None:
    """Find, learn, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", default="person,cifar10,digits")
    parser.add_argument("--seeds", type=int, default=10)
    common.add_jobs(parser)
    args = parser.parse_args()
    data = {name: Dataset(name, TRAIN[name][0]) for name in args.datasets.split(",")}
    with Reporter(Console()) as report:
        finders = {name: Finder(some, report) for name, some in data.items()}
        found = find(list(finders.values()))
        results: dict[str, dict[str, Any]] = {
            name: {
                "rows": {kb: rows(finder, kb, found[name, kb]) for kb in BUDGETS},
                "float": floats(name),
            }
            for name, finder in finders.items()
        }
    some = [row for result in results.values() for each in result["rows"].values() for row in each]
    for row in some:
        tune(row, data, args.jobs)
        accuracies = learn(row, [row["rate"]], range(args.seeds), "test", data, args.jobs)[0]
        cost = measured(common.compiled(CLASSES[row["dataset"]], 0, row["plan"]))
        row |= {"ram": cost.ram, "macs": cost.macs, "accuracies": accuracies}
    show(results)
    common.write_json("plans", results)


if __name__ == "__main__":
    main()
