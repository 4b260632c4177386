"""What integer learning loses against float32 (``make bench-accuracy``).

mcunet-5fps with a fresh head learns person detection and CIFAR-10 from pictures, one at a time or
eight at a time: in the boards' integer arithmetic (``sprout.engine``, the C core on this machine)
and in float32 (PyTorch, plain SGD).  Both have the same plan, samples, order, initial head and
schedule.

The protocol, written before its first run; nothing in it looks at a test picture:

- What is learned: the first 4,000 pictures of person_train, 3 epochs; the first 10,000 of
  cifar10_train, 2 epochs.  The rate is that of a sample, also in batches.
- What a rate is chosen on: all other pictures of those files, 8,000 and 10,000.  Every rate of a
  row's grid (GRIDS) learns with each of TUNING_SEEDS, which no test uses; a rate's score is the
  mean accuracy after the last epoch.  The smaller rate wins a tie.
- Two readings.  *One rate*: that with the best mean score of both sides (weighted alike), used by
  both.  *Own rates*: each side has the rate that is best for itself.
- The test: all pictures of person_test (1,892) and cifar10_test (2,000), seeds 0, 1, 2 and so on.
  A difference is the mean of integers minus float32 over the seeds; its standard error is that of
  the mean of the differences by seed, which have order and initial head in common.  It is that of
  learning again, not of other test pictures.
- Bare int8 weights, without the 4 bits below their LSB, learn at the one rate of their row.

Every finished run is kept in build/bench-accuracy, so that a bench that was stopped goes on where
it was; ``--kept`` prints what there is.  The float runs of a row learn side by side, on a CUDA
device if there is one.  All of it is some ten hours of one core and five minutes of a large GPU.
Needs PyTorch (requirements-train.txt) and ../shared.
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
from bench_common import CLASSES, FOLDER, PLAN, TRAIN, Dataset, Settings, Task
from sprout.compile import input_table
from sprout.schedule import rate_at, rate_parts
from torch_net import FloatNet

GOAL = 0.5
"""Points that integer learning may lose."""

SIDES = {"int": "int8 + fractions", "float": "float32", "bare": "bare int8"}
"""Integers whose trained weights keep 4 bits below their LSB, floats, integers without them."""

NOT_RUN = "not run"

TUNING_SEEDS = (100, 101, 102)

TITLES = {
    PLAN: f"49 KB plan ({PLAN})",
    "b20": "last 20 biases",
    "last": "head only",
    "full": "everything",
}
FIVE = (0.0005, 0.001, 0.002, 0.004, 0.008)
GRIDS = {
    PLAN: FIVE,
    "b20": FIVE,
    "last": (*FIVE, 0.016, 0.032),
    "full": (0.000125, 0.00025, 0.0005, 0.001, 0.002),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: what learns, how many samples make a step, with how many seeds."""

    plan: str
    batch: int = 1
    seeds: int = 5
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    bare: bool = False


ROWS = [
    Row(PLAN, seeds=10, bare=True),
    Row(PLAN, 8),
    Row("b20"),
    Row("last", seeds=10),
    Row("full", seeds=3, tuning_seeds=TUNING_SEEDS[:2]),
]


class Bench:
    """All runs on one data set; ``quick`` for a trial of the bench itself."""

    def __init__(self, name: str, quick: bool) -> None:
        self.name, self.quick = name, quick
        samples, epochs = TRAIN[name]
        self.samples, self.epochs = (320, 1) if quick else (samples, epochs)
        self.data = Dataset(name, self.samples, quick)

    def settings(self, row: Row, side: str, rate: float, seed: int) -> Settings:
        """Return the settings of a run."""
        fractions = "all" if side == "int" else "none"
        return Settings(
            self.name, row.plan, rate, self.epochs, seed, self.samples, row.batch, fractions
        )

    def tuning(self, row: Row, side: str) -> list[Task]:
        """Return the runs that a side's rate is chosen by: seed by seed for each rate."""
        return [
            (self.settings(row, side, rate, seed), "held_out")
            for rate in GRIDS[row.plan]
            for seed in row.tuning_seeds
        ]

    def tests(self, row: Row, side: str, rate: float) -> list[Task]:
        """Return the runs of a side at a rate that are tested."""
        seeds = range(1 if self.quick else row.seeds)
        return [(self.settings(row, side, rate, seed), "test") for seed in seeds]


class Runs:
    """Makes runs, or finds them in build/bench-accuracy: ``results`` by side and task.

    With ``kept`` it makes none.
    """

    def __init__(self, benches: dict[str, Bench], jobs: int, kept: bool = False) -> None:
        self.data = {name: bench.data for name, bench in benches.items()}
        self.jobs, self.kept = jobs, kept
        self.results: dict[tuple[str, Task], dict[str, Any]] = {}

    def make(self, groups: Sequence[tuple[str, list[Task]]], only: str | None) -> None:
        """Make groups of runs, (side, tasks), those of ``only`` "int" or "float", None for all."""
        floats = [tasks for side, tasks in groups if side == "float" and only != "int"]
        integers = [t for side, tasks in groups if side != "float" for t in tasks]
        if only != "float":
            self._add("int", integers, common.learn_all(integers, self.data, self.jobs, self.kept))
        for tasks in floats:
            data = self.data[tasks[0][0].dataset]
            self._add("float", tasks, learn_floats(tasks, data, self.kept))

    def _add(
        self, where: str, tasks: Sequence[Task], found: Sequence[dict[str, Any] | None]
    ) -> None:
        both = zip(tasks, found, strict=True)
        self.results.update({(where, task): r for task, r in both if r is not None})

    def accuracies(self, side: str, tasks: Sequence[Task]) -> list[float]:
        """Return the accuracies (percent) of runs, none of them if one is missing."""
        where = "float" if side == "float" else "int"
        if any((where, task) not in self.results for task in tasks):
            return []
        return [self.results[where, task]["accuracy"] for task in tasks]


# ------------------------------------------------------------------------------------------------
# Float32


def learn_floats(
    tasks: Sequence[Task], data: Dataset, kept: bool = False
) -> list[dict[str, Any] | None]:
    """Return the results of float runs that differ in seed and rate only, learned side by side.

    With ``kept`` only those in build/bench-accuracy, None for the others.
    """
    first, on = tasks[0]
    classes = CLASSES[data.name]
    nets = {s: common.network(classes, s, first.plan) for s in {run.seed for run, _ in tasks}}
    code = common.code_digest(FloatNet)
    codes = {s: code + common.parameters_digest(net) for s, net in nets.items()}
    keys = [common.run_key("float", data.tag(on), codes[run.seed], run) for run, _ in tasks]
    todo = [i for i, key in enumerate(keys) if not common.cache_path(FOLDER, key).exists()]
    if kept:
        return [None if i in todo else common.cached(FOLDER, k) for i, k in enumerate(keys)]
    if todo:
        missing = [tasks[i][0] for i in todo]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = FloatNet([nets[run.seed] for run in missing], device)
        results = learn_float(net, missing, data, on)
        for i, result in zip(todo, results, strict=True):
            common.keep(FOLDER, keys[i], result)
    return [common.cached(FOLDER, key) for key in keys]


def learn_float(
    net: FloatNet, runs: Sequence[Settings], data: Dataset, on: str
) -> list[dict[str, Any]]:
    """Learn side by side; return for each run the accuracy (percent) by epoch, and more.

    On held-out pictures it is measured after the last epoch only.
    """
    n_classes = len(CLASSES[data.name])
    table = input_table(net.graph)
    assert table is not None
    train, test = (net.prefix(data.part(part).x, table) for part in ("train", on))
    labels, truth = (torch.as_tensor(data.part(p).y, device=net.device) for p in ("train", on))
    order = torch.as_tensor(np.stack([common.orders(run) for run in runs]).astype(np.int64))
    order = order.to(net.device)
    total, batch, samples = order.shape[1], runs[0].batch, runs[0].samples
    parts = [rate_parts(run.rate) for run in runs]
    rates = torch.tensor([[rate_at(m, t, total) * 2.0**e for t in range(total)] for m, e in parts])
    rates = rates.to(net.device)
    curves: list[list[float]] = []
    losses = torch.zeros(len(runs), device=net.device)
    what = common.describe("float", runs[0]) + (f" and {len(runs) - 1} more" if runs[1:] else "")
    bar, start = common.Progress(what, total), time.perf_counter()
    step = make_step(net, train, labels, n_classes, batch)
    for t in range(0, total, batch):
        loss = step(order[:, t : t + batch], rates[:, t : t + batch])
        if t >= total - samples:
            losses += loss
        if t + batch == total or (on == "test" and (t + batch) % samples == 0):
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
            "device": net.device,
        }
        for i in range(len(runs))
    ]


def make_step(
    net: FloatNet, train: list[torch.Tensor], labels: torch.Tensor, n_classes: int, batch: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a function that learns samples [models, batch] at rates alike; it returns the losses.

    On a CUDA device the step is one graph: launched by themselves, its hundreds of small kernels
    would take ten times as long.
    """

    def step(now: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        return net.step([x[now] for x in train], labels[now], rates, n_classes)

    if net.device == "cpu":
        return step
    now = torch.zeros(net.models, batch, dtype=torch.int64, device=net.device)
    rate = torch.zeros(net.models, batch, device=net.device)  # moves nothing while warming up
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(now, rate)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step(now, rate)

    def replay(samples: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        now.copy_(samples)
        rate.copy_(rates)
        graph.replay()
        return losses

    return replay


@torch.no_grad()
def accuracy_float(
    net: FloatNet, n_classes: int, test: list[torch.Tensor], truth: torch.Tensor
) -> list[float]:
    """Return each model's percentage of right answers."""
    right = torch.zeros(net.models, device=net.device)
    for i in range(0, len(truth), 50):
        some = [x[i : i + 50].expand(net.models, -1, -1, -1, -1) for x in test]
        answers = net.logits(some)[..., :n_classes].argmax(2)
        right += (answers == truth[i : i + 50]).sum(1)
    return (100.0 * right / len(truth)).tolist()


# ------------------------------------------------------------------------------------------------
# The table


@dataclasses.dataclass
class Rates:
    """The rates of a row, and the scores that they were chosen by: percent, by side and rate."""

    shared: float
    own: dict[str, float]
    scores: dict[str, list[float]]

    def all(self, side: str) -> list[float]:
        """Return the rates that a side is tested at."""
        return sorted({self.shared, self.own[side]})


def choose(bench: Bench, row: Row, runs: Runs) -> Rates | None:
    """Return the rates with the best held-out accuracies, of both sides and of each.

    None if a run that they need is missing.
    """
    grid, scores = GRIDS[row.plan], {}
    for side in ("int", "float"):
        found = runs.accuracies(side, bench.tuning(row, side))
        if not found:
            return None
        scores[side] = np.reshape(found, (len(grid), -1)).mean(1)
    own = {side: grid[int(score.argmax())] for side, score in scores.items()}
    both = grid[int((scores["int"] + scores["float"]).argmax())]
    return Rates(both, own, {side: score.tolist() for side, score in scores.items()})


def tests(bench: Bench, row: Row, rates: Rates | None) -> list[tuple[str, list[Task]]]:
    """Return the runs that a row of the table needs, by side."""
    if rates is None:
        return []
    groups = [
        (side, [task for rate in rates.all(side) for task in bench.tests(row, side, rate)])
        for side in ("int", "float")
    ]
    return groups + ([("bare", bench.tests(row, "bare", rates.shared))] if row.bare else [])


def result_of(bench: Bench, row: Row, rates: Rates | None, runs: Runs) -> dict[str, Any]:
    """Return a row's results: accuracies by seed at the one rate and at each side's own.

    A list is empty where a run is missing.
    """
    result: dict[str, Any] = {"plan": row.plan, "batch": row.batch, "seeds": row.seeds}
    result |= {"grid": GRIDS[row.plan], "held_out": rates and rates.scores}

    def reading(rate: dict[str, float]) -> dict[str, Any]:
        found = {s: runs.accuracies(s, bench.tests(row, s, rate[s])) for s in ("int", "float")}
        return {"rate": rate, **found, "difference": difference(found["int"], found["float"])}

    if rates:
        result["one_rate"] = reading({"int": rates.shared, "float": rates.shared})
        result["own_rates"] = reading(rates.own)
        if row.bare:
            bare = bench.tests(row, "bare", rates.shared)
            result["one_rate"]["bare"] = runs.accuracies("bare", bare)
    return result


def difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float | None] | None:
    """Return mean and standard error of a - b, paired by seed, and the mean of the first three."""
    if not (a and b):
        return None
    by_seed = np.subtract(a, b)
    error = float(by_seed.std(ddof=1) / len(by_seed) ** 0.5) if len(by_seed) > 1 else None
    return {"mean": float(by_seed.mean()), "error": error, "three": float(by_seed[:3].mean())}


def plus_minus(value: dict[str, float | None] | None) -> str:
    """Return "mean +- standard error"."""
    if value is None:
        return NOT_RUN
    error = value["error"]
    return f"{value['mean']:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def cells(row: dict[str, Any], reading: str) -> list[str]:
    """Return the cells of a row of ``show``'s tables."""
    first = [TITLES[row["plan"]], f"{row['batch']}"]
    if reading not in row:
        return [*first, NOT_RUN, NOT_RUN, "", "", "", "", ""]
    found = row[reading]
    means = {s: f"{np.mean(found[s]):.2f}" if found[s] else NOT_RUN for s in SIDES if s in found}
    apart = found["difference"]
    rates = dict.fromkeys(f"{rate:g}" for rate in found["rate"].values())
    three = f"{apart['three']:+.2f}" if apart else ""
    return [
        *first, *(means.get(s, "") for s in SIDES), plus_minus(apart) if apart else "", three,
        f"{row['seeds']}", " / ".join(rates),
    ]  # fmt: skip


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print two tables per data set: one rate for both sides, each side at its own."""
    header = ["learns", "batch", *SIDES.values(), "difference", "first 3 seeds", "seeds", "rate"]
    for name, rows in results.items():
        samples, epochs = TRAIN[name]
        print(f"\n{name}: {samples:,} samples, {epochs} epochs; accuracy in percent")
        for reading, title in (("one_rate", "one rate"), ("own_rates", "own rates")):
            print(f"\n{title}\n")
            common.print_table(header, [cells(row, reading) for row in rows])


def main() -> None:
    """Choose the rates, test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="320 samples, 1 epoch, 1 seed")
    parser.add_argument("--datasets", default="person,cifar10")
    parser.add_argument("--rows", help="only these rows of the table (numbers from 0)")
    parser.add_argument("--side", choices=("int", "float"), help="make these runs, no table")
    parser.add_argument(
        "--tune", action="store_true", help="with --side: to choose the rates, no more"
    )
    parser.add_argument("--kept", action="store_true", help="the table of the runs made so far")
    common.add_jobs(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    rows = [ROWS[int(i)] for i in args.rows.split(",")] if args.rows else ROWS
    benches = {name: Bench(name, args.quick) for name in args.datasets.split(",")}
    runs = Runs(benches, args.jobs, args.kept)
    # The first row is that of the goal; of the others the longest first.
    order = [(bench, row) for row in [rows[0], *rows[:0:-1]] for bench in benches.values()]
    tuning = [(s, bench.tuning(row, s)) for bench, row in order for s in ("int", "float")]
    runs.make(tuning, args.side if args.tune else None)
    if args.side and args.tune:
        return
    rates = {(bench.name, row): choose(bench, row, runs) for bench, row in order}
    wanted = [group for b, row in order for group in tests(b, row, rates[b.name, row])]
    runs.make(wanted, args.side)
    if args.side:
        return
    results = {
        name: [result_of(bench, row, rates[name, row], runs) for row in rows]
        for name, bench in benches.items()
    }
    show(results)
    if args.quick:
        return
    print(f"\n{TITLES[rows[0].plan]}; integers minus float32, the goal is -{GOAL} or better:")
    for name, found in results.items():
        apart = [found[0].get(key, {}).get("difference") for key in ("one_rate", "own_rates")]
        one, own = map(plus_minus, apart)
        print(f"  {name}: {one} with one rate, {own} with own rates")
    common.write_json("accuracy", {"model": "mcunet-5fps", "goal": GOAL, "results": results})


if __name__ == "__main__":
    main()
