"""What the exact choice of a plan is worth against an evolutionary search (``make bench-choice``).

Both get the same gains, the same model of memory and the same budgets for mcunet-5fps.  The search
is the usual one ('On-Device Training Under 256KB Memory', section 3.2, uses such a one): a
population of plans, the best quarter of which is kept, crossed and mutated; what does not fit
loses choices at random until it does.  Its best plan is compiled like the exact one, and the next
best takes its place where it does not fit.  The gains are those of the rule for unknown data, or
measured ones: ``--analysis FILE``, which ``sprout analyze -o`` wrote.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import bench_common as common
import numpy as np
from sprout import choose, frontends
from sprout.analyze import read
from sprout.choose import Gains
from sprout.footprint import Footprint, Key, measured
from sprout.frontends.head import replace_head
from sprout.plan import UpdatePlan

CLASSES = ("no_person", "person")
BUDGETS = (96, 128, 160, 192)
"""KiB of RAM."""

POPULATION = 128
GENERATIONS = 80
MUTATION = 0.04


class Evolution:
    """An evolutionary search for the plan with the largest sum of gains under a budget.

    A genome is an index into what is offered: the numbers of last biases, and for each layer its
    fractions, 0 for none.
    """

    def __init__(self, network: Footprint, gains: Gains, ram: int, seed: int) -> None:
        self.network, self.gains, self.ram = network, gains, ram
        self.rng = np.random.default_rng(seed)
        self.biases = [0, *sorted(gains.biases)]
        layers = sorted({i for i, _ in gains.weights})
        self.weights: list[list[Key]] = [[k for k in gains.weights if k[0] == i] for i in layers]
        self.sizes = np.array([len(self.biases), *(1 + len(keys) for keys in self.weights)])
        self.evaluated = 0

    def plan(self, genome: np.ndarray) -> UpdatePlan:
        """Return the plan of a genome."""
        chosen = [keys[g - 1] for keys, g in zip(self.weights, genome[1:], strict=True) if g]
        return UpdatePlan(self.biases[genome[0]], dict(chosen))

    def fits(self, genome: np.ndarray) -> bool:
        """Whether a genome's plan fits the budget."""
        self.evaluated += 1
        return self.network.cost(self.plan(genome)).ram <= self.ram

    def repaired(self, genome: np.ndarray) -> np.ndarray:
        """Return the genome with as few choices taken back at random as make it fit."""
        genome = genome.copy()
        while not self.fits(genome):
            genome[self.rng.choice(np.flatnonzero(genome))] -= 1
        return genome

    def value(self, genome: np.ndarray) -> float:
        """Return the sum of a genome's gains."""
        return self.gains.of(self.plan(genome))

    def run(self) -> list[UpdatePlan]:
        """Return the plans of the last generation, the best first."""
        few = self.rng.random((POPULATION, len(self.sizes))) < 0.1
        start = few * self.rng.integers(0, self.sizes, few.shape)
        population = [self.repaired(genome) for genome in start]
        for _ in range(GENERATIONS):
            population.sort(key=self.value, reverse=True)
            parents = population[: POPULATION // 4]
            children = []
            while len(parents) + len(children) < POPULATION:
                a, b = (parents[i] for i in self.rng.integers(0, len(parents), 2))
                child = np.where(self.rng.random(len(a)) < 0.5, a, b)
                mutate = self.rng.random(len(a)) < MUTATION
                child = np.where(mutate, self.rng.integers(0, self.sizes), child)
                children.append(self.repaired(child))
            population = parents + children
        return [self.plan(genome) for genome in sorted(population, key=self.value, reverse=True)]


def evolved(network: Footprint, gains: Gains, ram: int, seed: int) -> dict[str, Any]:
    """Search once; return the best plan that compiles to at most ``ram`` bytes."""
    start = time.perf_counter()
    search = Evolution(network, gains, ram, seed)
    for plan in [*search.run(), UpdatePlan()]:
        cost = measured(network.build(plan))
        if cost.ram <= ram:
            break
    return {
        "plan": str(plan), "gain": gains.of(plan), "ram": cost.ram, "evaluated": search.evaluated,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def exact(network: Footprint, gains: Gains, ram: int) -> dict[str, Any]:
    """Choose once."""
    found = choose.best(network, gains, ram)
    return {
        "plan": str(found.plan), "gain": found.gain, "short": found.short, "ram": found.cost.ram,
        "solved": found.solved, "compiled": found.compiled, "seconds": found.seconds,
    }  # fmt: skip


def measure(gains: Gains | None, budgets: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Run both on each budget, each with a model of memory of its own: neither profits from what
    the other has worked out."""
    rows = []
    graph = replace_head(frontends.load(common.MODEL), CLASSES)
    for kib in budgets:
        network = Footprint(graph)
        choose.require_head(network, kib << 10, None)
        worth = gains or choose.rule(network)
        rows.append({"kib": kib, "exact": exact(network, worth, kib << 10), "evolved": []})
        for seed in range(seeds):
            rows[-1]["evolved"].append(evolved(Footprint(graph), worth, kib << 10, seed))
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--analysis", type=pathlib.Path, help="measured gains, not the rule's")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="KiB")
    parser.add_argument("--seeds", type=int, default=3, help="of the search")
    args = parser.parse_args()
    gains = choose.from_analysis(read(args.analysis)) if args.analysis else None
    rows = measure(gains, [int(kib) for kib in args.budgets.split(",")], args.seeds)
    lines = []
    for row in rows:
        one, many = row["exact"], row["evolved"]
        values = [run["gain"] for run in many]
        spread = f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
        lines.append([
            f"{row['kib']} KiB", f"{one['gain']:.3f}", f"{one['short']:.3f}",
            f"{one['seconds']:.1f}", spread,
            f"{np.mean([run['seconds'] for run in many]):.1f}",
        ])  # fmt: skip
    header = ["RAM", "exact: gain", "bound above it", "s", "evolutionary: gain", "s"]
    common.print_table(header, lines)
    about = {"gains": str(args.analysis) if args.analysis else "rule", "rows": rows}
    common.write_json("choice", {"population": POPULATION, "generations": GENERATIONS} | about)


if __name__ == "__main__":
    main()
