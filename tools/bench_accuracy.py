"""What integer learning loses against float32 (``make bench-accuracy``).

mcunet-5fps with a fresh head learns person detection and CIFAR-10 from pictures, one at a time or
eight at a time: in the boards' integer arithmetic (``sprout.engine``, the C core on this machine)
and in float32 (PyTorch, plain SGD).  Both have the same plan, samples, order, initial head,
schedule and rate, the one of a grid that is best for both on a part of the training set that is
neither learned nor tested.  Every finished run is kept in build/bench-accuracy, so that a bench
that was stopped goes on where it was.  Needs PyTorch (requirements-train.txt) and ../shared.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import bench_common as common
import numpy as np
import torch
from bench_common import PLAN, Replay, Samples, Settings
from sprout.cache import Cache
from sprout.compile import input_table
from sprout.replay import fingerprint
from sprout.schedule import rate_at, rate_parts
from torch_net import FloatNet

FOLDER = "bench-accuracy"
GOAL = 0.5
"""Points that integer learning may lose."""

SIDES = {"fractions": "int8 + fractions", "float": "float32", "bare": "bare int8"}
"""Integers whose trained weights keep 4 bits below their LSB, floats, integers without them."""

TUNING_SEED = 100
TRAIN = {"person": ("person_train", 4000, 3), "cifar10": ("cifar10_train", 10000, 2)}
"""Training set, samples and epochs."""

HELD_OUT = {"person": 4000, "cifar10": 1000}
"""Pictures to choose the rate on: among those of person the rates differ by little."""

TITLES = {
    "last": "head only",
    "b20": "last 20 biases",
    PLAN: f"49 KB plan ({PLAN})",
    "full": "everything",
}
GRIDS = {
    "last": (0.0005, 0.001, 0.002, 0.004, 0.008),
    "b20": (0.004,),
    PLAN: (0.001, 0.002, 0.004),
    "full": (0.001,),
}


@dataclasses.dataclass
class Dataset:
    """Pictures to learn, to choose the rate on, and to test on."""

    name: str
    classes: tuple[str, ...]
    train: Samples
    held_out: Samples
    test: Samples


def dataset(name: str, samples: int) -> Dataset:
    """Read a data set; the held-out pictures follow those that are learned."""
    train, classes = common.load(TRAIN[name][0], TRAIN[name][1] + HELD_OUT[name])
    test, _ = common.load(TRAIN[name][0].replace("train", "test"))
    held_out = train[TRAIN[name][1] :]
    return Dataset(name, tuple(classes), train[:samples], held_out, test)


class Bench:
    """Both sides of one data set; a run that was made before is not made again."""

    def __init__(self, name: str, samples: int, epochs: int) -> None:
        self.name, self.samples, self.epochs = name, samples, epochs
        self._data: Dataset | None = None
        self._inputs: dict[tuple[str, str, str], Any] = {}
        self.float_code = common.code_digest(FloatNet)
        self.classes = ("no_person", "person") if name == "person" else CIFAR

    @property
    def data(self) -> Dataset:
        """The pictures, read at first use."""
        if self._data is None:
            self._data = dataset(self.name, self.samples)
            assert self._data.classes == self.classes
        return self._data

    def settings(self, plan: str, rate: float, seed: int, batch: int, side: str) -> Settings:
        """Return the settings of a run on this data set."""
        fractions = "all" if side == "fractions" else "none"
        return Settings(self.name, plan, rate, self.epochs, seed, self.samples, batch, fractions)

    def runs(self, side: str, runs: Sequence[Settings], on: str) -> list[dict[str, Any]]:
        """Return the results of runs of one side; ``on`` is "test" or "held_out"."""
        return self.float(runs, on) if side == "float" else self.integer(runs, on)

    def integer(self, runs: Sequence[Settings], on: str) -> list[dict[str, Any]]:
        """Learn in integers, one run after the other."""
        results = []
        for run in runs:
            blob = common.compiled(self.classes, run.seed, run.plan, run.fractions)
            key = self.key("int", run, on, fingerprint(blob))

            def make(run: Settings = run, blob: Any = blob) -> dict[str, Any]:
                def frozen(part: str) -> Replay:
                    x = getattr(self.data, part).x
                    note = f"{self.name} {part}"
                    return self.once(("int", run.plan, part), lambda: common.replay(blob, x, note))

                truth = getattr(self.data, on).y
                common.check_replay(blob, frozen("train"), self.data.train)
                return common.learn(
                    blob, run, frozen("train"), self.data.train.y, frozen(on), truth
                )

            results.append(common.cached(FOLDER, key, make))
        return results

    def float(self, runs: Sequence[Settings], on: str) -> list[dict[str, Any]]:
        """Learn in float32, all runs side by side; they differ in seed and rate only."""
        nets = {s: common.network(self.classes, s, runs[0].plan) for s in {r.seed for r in runs}}
        codes = {s: self.float_code + common.parameters_digest(net) for s, net in nets.items()}
        keys = [self.key("float", run, on, codes[run.seed]) for run in runs]
        cache = Cache(common.BUILD / FOLDER)
        todo = [i for i, key in enumerate(keys) if cache.get(key) is None]
        if todo:
            missing = [runs[i] for i in todo]
            net = FloatNet([nets[run.seed] for run in missing])
            table = input_table(net.graph)
            assert table is not None

            def frozen(part: str) -> list[torch.Tensor]:
                x = getattr(self.data, part).x
                return self.once(("float", runs[0].plan, part), lambda: net.prefix(x, table))

            results = learn_float(
                net, missing, len(self.classes), frozen("train"),
                torch.as_tensor(self.data.train.y), frozen(on),
                torch.as_tensor(getattr(self.data, on).y),
            )  # fmt: skip
            for i, result in zip(todo, results, strict=True):
                cache.put(keys[i], result)
        return [common.cached(FOLDER, key, dict) for key in keys]

    def once(self, key: tuple[str, str, str], make: Callable[[], Any]) -> Any:
        """Return what the frozen operators make of a part of the data; only one plan is kept."""
        if key not in self._inputs:
            for other in [k for k in self._inputs if k[:2] != key[:2]]:
                del self._inputs[other]
            self._inputs[key] = make()
        return self._inputs[key]

    def key(self, side: str, run: Settings, on: str, code: str) -> dict[str, Any]:
        """Return all that a result depends on."""
        if on == "held_out":
            on += f" {HELD_OUT[self.name]}"
        return common.run_key(side, on, code, run)

    def tuned(self, plan: str, grid: Sequence[float]) -> float:
        """Return the rate of the grid with the best held-out accuracy, mean of both sides."""
        if len(grid) == 1:
            return grid[0]
        found = []
        for side in ("fractions", "float"):
            runs = [self.settings(plan, rate, TUNING_SEED, 1, side) for rate in grid]
            found.append([r["accuracy"] for r in self.runs(side, runs, "held_out")])
        return grid[int(np.argmax(np.mean(found, axis=0)))]


CIFAR = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def learn_float(
    net: FloatNet,
    runs: Sequence[Settings],
    n_classes: int,
    train: list[torch.Tensor],
    labels: torch.Tensor,
    test: list[torch.Tensor],
    truth: torch.Tensor,
) -> list[dict[str, Any]]:
    """Learn side by side; return for each run the accuracy (percent) by epoch, and more."""
    order = torch.as_tensor(np.stack([common.orders(run) for run in runs]).astype(np.int64))
    total, batch, samples = order.shape[1], runs[0].batch, runs[0].samples
    parts = [rate_parts(run.rate) for run in runs]
    rates = torch.tensor([[rate_at(m, t, total) * 2.0**e for t in range(total)] for m, e in parts])
    curves: list[list[float]] = []
    losses = torch.zeros(len(runs))
    what = common.describe("float", runs[0]) + (f" and {len(runs) - 1} more" if runs[1:] else "")
    bar, start = common.Progress(what, total), time.perf_counter()
    for t in range(0, total, batch):
        now = order[:, t : t + batch]
        loss = net.step([x[now] for x in train], labels[now], rates[:, t : t + batch], n_classes)
        if t >= total - samples:
            losses += loss
        if (t + batch) % samples == 0:
            curves.append(accuracy_float(net, n_classes, test, truth))
        bar.update(t + batch, str([round(c, 1) for c in curves[-1]]) if curves else "")
    bar.close()
    seconds = (time.perf_counter() - start) / len(runs)
    return [
        {
            "accuracy": curves[-1][i],
            "curve": [c[i] for c in curves],
            "loss": float(losses[i]) / samples,
            "seconds": seconds,
        }
        for i in range(len(runs))
    ]


@torch.no_grad()
def accuracy_float(
    net: FloatNet, n_classes: int, test: list[torch.Tensor], truth: torch.Tensor
) -> list[float]:
    """Return each model's percentage of right answers."""
    right = torch.zeros(net.models)
    for i in range(0, len(truth), 50):
        some = [x[i : i + 50].expand(net.models, -1, -1, -1, -1) for x in test]
        answers = net.logits(some)[..., :n_classes].argmax(2)
        right += (answers == truth[i : i + 50]).sum(1)
    return (100.0 * right / len(truth)).tolist()


# ------------------------------------------------------------------------------------------------
# The table


@dataclasses.dataclass
class Row:
    """A row: plan and batch, on which sides, with how many seeds."""

    plan: str
    batch: int = 1
    sides: tuple[str, ...] = ("fractions", "float", "bare")
    seeds: int = 3


ROWS = [
    Row(PLAN),
    Row("last"),
    Row("b20", sides=("fractions", "float")),
    Row(PLAN, 8, sides=("fractions", "float")),
    Row("full", sides=("fractions", "float"), seeds=1),
]


def measure(bench: Bench, row: Row, quick: bool) -> dict[str, Any]:
    """Run what a row needs on one data set."""
    rate = bench.tuned(row.plan, (0.002,) if quick else GRIDS[row.plan])
    result: dict[str, Any] = {"plan": row.plan, "batch": row.batch, "rate": rate}
    for side in row.sides:
        seeds = range(row.seeds)
        runs = [bench.settings(row.plan, rate, seed, row.batch, side) for seed in seeds]
        found = bench.runs(side, runs, "test")
        accuracies = [r["accuracy"] for r in found]
        result[side] = {
            "accuracies": accuracies,
            "mean": float(np.mean(accuracies)),
            "loss": float(np.mean([r["loss"] for r in found])),
            "seconds": float(np.mean([r["seconds"] for r in found])),
        }
    if "fractions" in result and "float" in result:
        result["difference"] = result["fractions"]["mean"] - result["float"]["mean"]
    return result


def cell(result: dict[str, Any], side: str) -> str:
    """Return "mean (lowest-highest)" of one side."""
    if side not in result:
        return ""
    values = result[side]["accuracies"]
    if len(values) == 1:
        return f"{values[0]:.1f} (1 seed)"
    return f"{np.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print one table per data set."""
    for name, rows in results.items():
        _, samples, epochs = TRAIN[name]
        print(f"\n{name}: {samples:,} samples, {epochs} epochs; accuracy in percent\n")
        lines = []
        for r in rows:
            difference = f"{r['difference']:+.2f}" if "difference" in r else ""
            cells = [cell(r, side) for side in SIDES]
            cells.insert(2, difference)
            lines.append([TITLES[r["plan"]], r["batch"], *cells, f"{r['rate']:g}"])
        header = ["learns", "batch", *SIDES.values(), "rate"]
        header.insert(4, "difference")
        common.print_table(header, lines)


def main() -> None:
    """Measure row after row, the most important first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="320 samples, 1 epoch, 1 seed")
    parser.add_argument("--datasets", default="person,cifar10")
    parser.add_argument("--side", choices=tuple(SIDES), help="make only these runs, no table")
    parser.add_argument("--rows", help="make only these rows (numbers from 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [ROWS[int(i)] for i in args.rows.split(",")] if args.rows else ROWS
    if args.side:
        rows = [dataclasses.replace(r, sides=(args.side,)) for r in rows if args.side in r.sides]
    benches = {}
    for name in args.datasets.split(","):
        _, samples, epochs = TRAIN[name]
        benches[name] = Bench(name, 320 if args.quick else samples, 1 if args.quick else epochs)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in benches}
    for row in rows:
        wanted = dataclasses.replace(row, seeds=1) if args.quick else row
        for name, bench in benches.items():
            results[name].append(measure(bench, wanted, args.quick))
    show(results)
    if not (args.quick or args.side):  # the first row is that of the goal
        worst = min(r[0]["difference"] for r in results.values())
        lost = f"{max(-worst, 0):.2f} points at most; goal {GOAL}"
        print(f"\n{TITLES[rows[0].plan]}: integers lose {lost}.")
        common.write_json("accuracy", {"model": "mcunet-5fps", "goal": GOAL, "results": results})


if __name__ == "__main__":
    main()
