"""What found plans are worth at equal RAM (``make bench-plans``).

mcunet-5fps learns person detection and CIFAR-10 with the paper's 49 KB plan, with the plan that
``sprout compile --plan auto`` finds for the RAM of that plan from a few samples of the training
set, and with the largest numbers of last layers and of last biases that fit: on the integer
engine, at the rate that ``make bench-accuracy`` found for the paper's plan.  Every finished run is
kept in build/bench-plans, and the analysis in build/analysis.  Needs ../shared.
"""

from __future__ import annotations

import argparse
from typing import Any

import bench_common as common
import numpy as np
from bench_common import PLAN, Samples, Settings
from rich.console import Console
from sprout import choose, frontends, frontier
from sprout import data as npz
from sprout import plan as plans
from sprout.analyze import Bench, analyze
from sprout.analyze import Settings as Analysis
from sprout.footprint import Footprint
from sprout.graph import SproutError
from sprout.progress import Reporter
from sprout.replay import Replay, fingerprint

FOLDER = "bench-plans"
SETS = {"person": (4000, 3, 0.004, 480, 3), "cifar10": (10000, 2, 0.002, 360, 2)}
"""Samples to learn, epochs, rate; samples of the analysis and its seeds."""

TITLES = {
    "paper": "the paper's plan",
    "found": "the plan found",
    "layers": "most last layers",
    "biases": "most last biases",
}


def find(name: str, train: Samples, classes: list[str]) -> dict[str, str]:
    """Return the plans to compare, all of at most the RAM of the paper's."""
    network = Footprint(common.network(classes, 0, "last"))
    ram = network.cost(plans.parse(PLAN, len(network.convs))).ram + 32  # as compiled
    samples = npz.Samples(train.x, train.y, train.x.shape[1:])
    with Reporter(Console()) as report:
        bench = Bench(
            frontends.load(common.MODEL), common.MODEL.read_bytes(), samples, classes, None,
            Analysis(*SETS[name][3:]), common.BUILD / "analysis", None, report,
        )  # fmt: skip
        gains = choose.from_analysis(analyze(bench, 128 << 10))
        found = choose.best(network, gains, ram, None, None, report)
    print(f"{name}: {found.plan}, {found.cost.ram:,} of {ram:,} bytes, gain {found.gain:.1f}")
    result = {"paper": PLAN, "found": str(found.plan)}
    for family, make in (("layers", frontier.last_layers), ("biases", frontier.last_biases)):
        largest = frontier.largest(network, make, ram)
        if largest is None:
            raise SproutError(f"not even the head alone fits {ram:,} bytes")
        result[family] = str(largest)
    return result


def measure(name: str, seeds: int, only: list[str]) -> list[dict[str, Any]]:
    """Learn with every plan on one data set."""
    count, epochs, rate, few, _ = SETS[name]
    some, classes = common.load(f"{name}_train", few)
    compared = find(name, some, classes)
    train, _ = common.load(f"{name}_train", count)
    test, _ = common.load(f"{name}_test")
    rows = []
    for title in only:
        plan, accuracies = compared[title], []
        inputs: list[Replay] = []
        for seed in range(seeds):
            blob = common.compiled(tuple(classes), seed, plan)
            run = Settings(name, plan, rate, epochs, seed, count, fractions="all")
            key = common.run_key("int", "test", fingerprint(blob), run)
            if not common.cache_path(FOLDER, key).exists():
                inputs = inputs or [Replay.of(blob, part.x) for part in (train, test)]
                result = common.learn(blob, run, inputs[0], train.y, inputs[1], test.y)
                common.keep(FOLDER, key, result)
            accuracies.append(common.cached(FOLDER, key)["accuracy"])
        memory = blob.info["memory"]
        ram = sum(memory[part] for part in ("arena", "trained", "scratch", "program"))
        rows.append(
            {"title": title, "plan": plan, "ram": ram, "macs": sum(blob.info["macs"].values()),
             "accuracies": accuracies, "mean": float(np.mean(accuracies))}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", default="person,cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(TITLES), help="which of " + ",".join(TITLES))
    args = parser.parse_args()
    results = {}
    for name in args.datasets.split(","):
        results[name] = measure(name, args.seeds, args.only.split(","))
    for name, rows in results.items():
        count, epochs, rate, few, _ = SETS[name]
        print(f"\n{name}: {count:,} samples, {epochs} epochs, rate {rate:g}; analysis of {few}\n")
        lines = []
        for r in rows:
            spread = f"{r['mean']:.1f} ({min(r['accuracies']):.1f}-{max(r['accuracies']):.1f})"
            lines.append(
                [TITLES[r["title"]], r["plan"], f"{r['ram']:,}", f"{r['macs']:,}", spread]
            )
        common.print_table(["", "plan", "RAM", "MACs a step", "accuracy, %"], lines)
    common.write_json("plans", results)


if __name__ == "__main__":
    main()
