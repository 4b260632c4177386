"""What found plans are worth at equal RAM (``make bench-plans``).

mcunet-5fps learns person detection, CIFAR-10 and spoken digits (as pictures, ``sprout.logmel``)
with two plans of the paper, with the plans that ``sprout compile --plan auto`` finds for the RAM
of those, with what backward elimination (``--select eliminate``) leaves of all that was measured,
with the best number of last layers that fits, and with the largest one of last biases: on the
integer engine, three seeds.  Beside them stands float32 with every layer learning, where ``make
bench-accuracy`` has run it.

Nothing but these last runs looks at a test set.  A plan is found on the training set alone: gains
come from 480 of its samples, then the plans that they lead to learn two thirds of at most 4,000,
and the one with the least loss on the other third, mean of three such cuts, is taken, or of six
where that leaves two close.  The rate is the one that suits the paper's plan: for the smaller one
and the head the one that ``make bench-accuracy`` found, else the smallest within a standard error
of the least loss in the same cuts.  Which number of last layers is best at which rate is found
likewise, by the least loss.  Elimination sees the 480 samples alone.

Every finished run is kept in build/bench-accuracy, the search in build/analysis: together some
two hours of one core.  Needs ../shared.
"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Sequence
from typing import Any

import bench_common as common
import numpy as np
from bench_common import CLASSES, PLAN, TRAIN, Dataset, Settings, Task
from rich.console import Console
from sprout import choose, frontends, frontier
from sprout import data as npz
from sprout.analyze import Bench, Contributions, analyze, close_to_least, mean_loss, spread
from sprout.analyze import Settings as Analysis
from sprout.choose import Choice
from sprout.footprint import Footprint, measured
from sprout.plan import UpdatePlan
from sprout.progress import Reporter

BUDGETS = {"49 KB": PLAN, "148 KB": "b23,21:1,24:1,27:1,30:1,36:1,39:1/2"}
"""The paper's plans by its own names for them: all beside one take at most its RAM."""

RATES = {
    ("person", PLAN): 0.004, ("person", "last"): 0.002,
    ("cifar10", PLAN): 0.002, ("cifar10", "last"): 0.008,
}  # fmt: skip
GRIDS = {
    PLAN: (0.001, 0.002, 0.004, 0.008), "last": (0.002, 0.004, 0.008, 0.016, 0.032),
    "layers": (0.0005, 0.001, 0.002, 0.004, 0.008),
}  # fmt: skip
FEW, MOST, EPOCHS, SEEDS = 480, 4000, 2, 3
"""Samples that gains come from and that trials have at most; epochs and seeds of the former."""

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
        self.rates = {plan: self.rate(plan) for plan in (*BUDGETS.values(), "last")}
        self.few = self.bench(self.rates[PLAN], FEW, EPOCHS)
        self.found = {kb: analyze(self.few, budget(self.name, p)) for kb, p in BUDGETS.items()}

    def bench(self, rate: float, count: int = MOST, epochs: int | None = None) -> Bench:
        """Return a bench for the first ``count`` training samples."""
        x, y = self.data.train.x[:count], self.data.train.y[:count]
        settings = Analysis(len(y), SEEDS, epochs or TRAIN[self.name][1], rate)
        return Bench(
            frontends.load(common.MODEL), common.MODEL.read_bytes(),
            npz.Samples(x, y, x.shape[1:]), list(CLASSES[self.name]), None, settings,
            common.BUILD / "analysis", None, self.report,
        )  # fmt: skip

    def rate(self, plan: str) -> float:
        """Return the rate for the paper's plan and those like it, or for the head."""
        if (self.name, plan) in RATES:
            return RATES[self.name, plan]
        grid = GRIDS["last"] if plan == "last" else GRIDS[PLAN]
        results = [self.bench(rate).run([plan], "tuning")[plan] for rate in grid]
        return min(grid[i] for i in close_to_least(results))

    def layers(self, network: Footprint, ram: int) -> tuple[str, float]:
        """Return the best plan of last layers for a budget in bytes, and its rate."""
        largest, n = frontier.largest(network, frontier.last_layers, ram), len(network.convs)
        assert largest is not None
        more = [str(frontier.last_layers(k, n)) for k in range(2, largest.biases + 1)]
        tried = [(plan, rate) for plan in more for rate in GRIDS["layers"]]
        tried += [("last", self.rates["last"])] if tried else []
        loss = {(p, r): mean_loss(self.bench(r).run([p], "last layers")[p]) for p, r in tried}
        return min(loss, key=lambda each: loss[each], default=("last", self.rates["last"]))

    def eliminated(self, network: Footprint, kb: str) -> UpdatePlan:
        """Return what backward elimination leaves for a budget."""
        ram = budget(self.name, BUDGETS[kb])
        return choose.eliminate(self.few, network, self.found[kb], WITHIN, ram)

    def winners(self, choices: dict[str, list[Choice]]) -> dict[str, Choice]:
        """Let all choices learn; return the best for each budget, and print what it was among."""
        found = {}
        for kb, some in choices.items():
            bench = self.bench(self.rates[BUDGETS[kb]])
            results = bench.run([BUDGETS[kb], *(str(choice.plan) for choice in some)], "trying")
            for choice in some:
                text = described(results[str(choice.plan)])
                print(f"{self.name} {kb}: {choice.plan} {choice.gain:+.1f}, {text}")
            print(f"{self.name} {kb}: paper {BUDGETS[kb]} {described(results[BUDGETS[kb]])}")
            found[kb] = choose.winner(bench, some, results)
        return found


def described(results: Sequence[dict[str, Any]]) -> str:
    """Say what a plan reached on held-out samples."""
    right, of = (sum(r[key] for r in results) for key in ("right", "of"))
    return f"held-out loss {mean_loss(results):.4f}, {100 * right / of:.2f} %"


def solve(name: str, found: Contributions, ram: int) -> list[Choice]:
    """Return the choices for a budget in bytes."""
    return choose.trials(footprint(name), found, ram)


def find(finders: Sequence[Finder]) -> dict[tuple[str, str], Choice]:
    """Return the plan found for each data set and budget."""
    wanted = [(f, kb) for f in finders for kb in BUDGETS]
    work = [(f.name, f.found[kb], budget(f.name, BUDGETS[kb])) for f, kb in wanted]
    choices: dict[str, dict[str, list[Choice]]] = {f.name: {} for f in finders}
    for i, some in spread(work, solve):
        finder, kb = wanted[i]
        choices[finder.name][kb] = some
    return {
        (f.name, kb): choice
        for f in finders for kb, choice in f.winners(choices[f.name]).items()
    }  # fmt: skip


def rows(finder: Finder, kb: str, found: Choice) -> list[dict[str, Any]]:
    """Return the rows of a table: the plans to compare and the rates that they learn at."""
    network, ram = footprint(finder.name), budget(finder.name, BUDGETS[kb])
    biases = frontier.largest(network, frontier.last_biases, ram)
    rate = finder.rates[BUDGETS[kb]]
    compared = {
        "paper": (BUDGETS[kb], rate),
        "found": (str(found.plan), rate),
        "eliminated": (str(finder.eliminated(network, kb)), rate),
        "layers": finder.layers(network, ram),
        "biases": (str(biases), rate),
    }
    return [{"title": title, "plan": p, "rate": r} for title, (p, r) in compared.items()]


def tasks(name: str, row: dict[str, Any], seeds: int) -> list[Task]:
    """Return the runs of a row."""
    samples, epochs = TRAIN[name]
    return [
        (Settings(name, row["plan"], row["rate"], epochs, s, samples, fractions="all"), "test")
        for s in range(seeds)
    ]


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


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print a table for each data set and budget."""
    for name, result in results.items():
        samples, epochs = TRAIN[name]
        for kb, some in result["rows"].items():
            print(f"\n{name}: {samples:,} samples, {epochs} epochs; RAM of the {kb} plan\n")
            lines = []
            for r in some:
                each = r["accuracies"]
                spread = f"{np.mean(each):.2f} ({min(each):.2f}-{max(each):.2f})"
                lines.append([
                    TITLES[r["title"]], r["plan"], f"{r['ram']:,}", f"{r['macs']:,}",
                    f"{r['rate']:g}", spread,
                ])  # fmt: skip
            if result["float"]:
                lines.append(["float32, everything", "full", "", "", "",
                              f"{np.mean(result['float']):.2f}"])  # fmt: skip
            header = ["", "plan", "RAM", "MACs a step", "rate", "accuracy, %"]
            common.print_table(header, lines)


def main() -> None:
    """Find, learn, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", default="person,cifar10,digits")
    parser.add_argument("--seeds", type=int, default=3)
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
    wanted = [
        (row, task)
        for kb in BUDGETS for name, result in results.items() for row in result["rows"][kb]
        for task in tasks(name, row, args.seeds)
    ]  # fmt: skip
    made = common.learn_all([task for _, task in wanted], data, args.jobs)
    for (row, (run, _)), result in zip(wanted, made, strict=True):
        assert result is not None
        cost = measured(common.compiled(CLASSES[run.dataset], 0, run.plan))
        row |= {"ram": cost.ram, "macs": cost.macs}
        row.setdefault("accuracies", []).append(result["accuracy"])
    show(results)
    common.write_json("plans", results)


if __name__ == "__main__":
    main()
