"""Lifelong learning as the field measures it, on the board's arithmetic (``make bench-lifelong``).

Three streams; every sample is seen once, one at a time, at one rate:

- ``cifar10``: class-incremental, 5 tasks of 2 classes.  The head starts with the first two
  classes, and two more are added as each task begins, as ``net.add_class`` does.  A seed draws the
  order of the classes and of the samples: the first 5,000 pictures of cifar10_train.
- ``person``: domain-incremental, what changes when a camera does (DOMAINS); a seed draws the order
  of the domains.  Each has 600 pictures of person_train of its own and 378 of person_test.
- ``digits``: spoken digits, as pictures (``sprout.logmel``), one speaker after another in an order
  of the seed: takes 15 to 49 of each digit to learn, 0 to 9 to test.

What learns is a network with a fresh head, its plan, and a replay buffer of so many bytes; a
sample takes the bytes of its form and ``lifelong.BESIDE``.  Forms: *raw*, the frame as the network
takes it; *latent*, what the frozen part leaves at its end; *compact*, what it leaves where that is
smallest.  All three give the same bytes for the same sample, so that a form says how many samples
there are room for and nothing else.  A plan whose first trained layer lies deeper has smaller
latents.

Baselines: *naive*, the same without replay; *last layer only*, the plan ``last``; *joint*, the
same plan, samples and number of steps (rehearsals counted), but all tasks mixed and all classes
there from the beginning: what lifelong learning is to come near to.

Two kept samples are rehearsed after each new one, at the boards' default rate.  At what fraction
of it new samples are learned is chosen for each stream, plan and network at 256 KB, with the last
layer only, which costs nothing, at every size; by the average accuracy with seed 100 on held-out
training samples that no run learns (cifar10_train 10,000 to 11,999; person_train from 3,000 on,
200 a domain; takes 10 to 14).  The rate of joint learning is chosen likewise.  Naive learning
takes the default rate.  The tests are those of seeds 0, 1 and 2 on all test samples; nothing was
chosen by them.

Measures are defined in ``sprout.lifelong``.  Every finished run is kept in build/bench-lifelong;
``--kept`` prints what there is.  At last a short stream is learned in MicroPython, too.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import inspect
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench_common as common
import numpy as np
from bench_common import PLAN, SHARED, SIZE
from PIL import Image
from sprout import compile as compiler
from sprout import frontends, latent, lifelong, logmel
from sprout.blob import Blob
from sprout.data import fit
from sprout.engine import load_library
from sprout.frontends.head import replace_head
from sprout.learning import DEFAULT_RATE
from sprout.lifelong import Method, Stream
from sprout.replay import Replay, Reservoir, fingerprint

Array = np.ndarray
FOLDER = "bench-lifelong"
SEEDS = (0, 1, 2)
TUNING_SEED = 100
KB = 1024
SIZES = (0, 8 * KB, 32 * KB, 64 * KB, 128 * KB, 256 * KB, 512 * KB)
MAIN = 256 * KB
REHEARSE = 2
JOINT_RATES = (0.001, 0.002, 0.004)
NEW = (1.0, 0.5, 0.25, 0.125)

MCUNET, PROXYLESS = "mcunet-5fps", "proxyless-w0.3"
DEEP = "b10,33:1/4,36:1/4,39:1/4"
"""All that learns lies behind the last change of resolution: latents of 4 x 4 x 96."""

TITLES = {
    (MCUNET, PLAN): "49 KB plan",
    (MCUNET, DEEP): f"deeper plan ({DEEP})",
    (MCUNET, "last"): "last layer only",
    (PROXYLESS, "last"): "proxyless-w0.3, last layer only",
}


# ------------------------------------------------------------------------------------------------
# Data


@dataclasses.dataclass
class Data:
    """Samples of a data set: frames uint8 [n, 128, 128, 3], labels, the number of the group that
    tasks are made of (class, domain, speaker), and the part of each: learn, held_out or test."""

    x: Array
    y: Array
    group: Array
    part: Array
    classes: int

    def stream(self, seed: int, on: str) -> Stream:
        """Return the stream of a seed, tested on a part."""
        rng = np.random.default_rng([seed, 1])
        by_class = bool((self.group == self.y).all())
        order = rng.permutation(self.group.max() + 1)
        tasks = order.reshape(-1, 2 if by_class else 1)
        numbers = [
            [np.flatnonzero(np.isin(self.group, task) & (self.part == part)) for task in tasks]
            for part in ("learn", on)
        ]
        labels = np.argsort(order)[self.y] if by_class else self.y
        grown = [2 * t + 2 if by_class else self.classes for t in range(len(tasks))]
        learned = [rng.permutation(some) for some in numbers[0]]
        return Stream(learned, numbers[1], labels, grown)


def parts(learn: int, held_out: int, test: int) -> Array:
    """Return the names of the parts of so many samples, in this order."""
    return np.repeat(["learn", "held_out", "test"], [learn, held_out, test])


def cifar10(quick: bool) -> Data:
    """Return CIFAR-10: its groups are its classes."""
    learn, held_out, test = (400, 100, 100) if quick else (5000, 2000, 2000)
    train, _ = common.load("cifar10_train", 10000 + held_out)
    tested, _ = common.load("cifar10_test", test)
    x = np.concatenate([train.x[:learn], train.x[10000:], tested.x])
    y = np.concatenate([train.y[:learn], train.y[10000:], tested.y])
    return Data(x, y, y, parts(learn, held_out, test), 10)


def dark(x: Array) -> Array:
    """A third of the light, and the noise of a sensor that has to make do with it."""
    noise = np.random.default_rng(0).normal(0, 6, x.shape)
    return np.clip(np.rint(x * 0.3 + noise), 0, 255).astype(np.uint8)


def grey(x: Array) -> Array:
    """No colours."""
    return np.repeat(np.rint(x @ [0.299, 0.587, 0.114]).astype(np.uint8)[..., None], 3, 3)


def blurred(x: Array) -> Array:
    """Out of focus: 16 x 16 pixels, drawn large."""

    def one(picture: Array) -> Array:
        small = Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX)
        return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    return np.stack([one(picture) for picture in x])


DOMAINS: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda x: x,
    "grey": grey,
    "dark": dark,
    "out of focus": blurred,
    "upside down": lambda x: x[:, ::-1],
}


def person(quick: bool) -> Data:
    """Return person crops in the domains of five cameras."""
    learn, held_out, test = (40, 20, 20) if quick else (600, 200, 378)
    n = len(DOMAINS)
    train, _ = common.load("person_train", 3000 + n * held_out)
    tested, _ = common.load("person_test", n * test)
    x, y, group, part = [], [], [], []
    for d, change in enumerate(DOMAINS.values()):
        for some, first, count in (
            (train, 600 * d, learn), (train, 3000 + held_out * d, held_out),
            (tested, test * d, test),
        ):  # fmt: skip
            x.append(change(some.x[first : first + count]))
            y.append(some.y[first : first + count])
        group += [d] * (learn + held_out + test)
        part.append(parts(learn, held_out, test))
    return Data(np.concatenate(x), np.concatenate(y), np.array(group), np.concatenate(part), 2)


def digits(quick: bool) -> Data:
    """Return spoken digits as pictures: the groups are the speakers."""
    path = SHARED / "data" / "spoken_digits.npz"
    if not path.exists():
        sys.exit(f"{path} is missing: this bench measures on the data of ../shared.")
    with np.load(path) as file:
        pcm, at, y, take = (file[key] for key in ("pcm", "offsets", "y", "take"))
        group = np.unique(file["speaker"], return_inverse=True)[1]
    wanted = np.flatnonzero(take % 10 == 0) if quick else np.arange(len(y))
    clips = (logmel.picture(pcm[at[i] : at[i + 1]]) for i in wanted)
    x = np.stack([fit(clip, (SIZE, SIZE, 3)) for clip in clips])
    take = take[wanted]
    part = np.where(take < 10, "test", np.where(take < 15, "held_out", "learn"))
    return Data(x, y[wanted].astype(np.int64), group[wanted], part, 10)


DATA: dict[str, Callable[[bool], Data]] = {"cifar10": cifar10, "person": person, "digits": digits}


# ------------------------------------------------------------------------------------------------
# Runs


@dataclasses.dataclass(frozen=True)
class Case:
    """A stream and what learns it."""

    dataset: str
    network: str
    plan: str

    @property
    def title(self) -> str:
        """What the tables call it."""
        return TITLES[self.network, self.plan]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, tested on ``on``: with replay where it has slots, or ``joint`` steps of joint
    learning."""

    case: Case
    rate: float
    seed: int
    new: float = 1.0
    slots: int = 0
    joint: int = 0
    on: str = "test"


@functools.cache
def model(network: str) -> Any:
    """Return a network as it is in its file."""
    return frontends.load(SHARED / "models" / f"{network}.pkl")


@functools.cache
def compiled(case: Case, seed: int) -> Blob:
    """Return the blob of a case with the head of a seed."""
    first, most = {"cifar10": (2, 10), "person": (2, 2), "digits": (10, 10)}[case.dataset]
    names = [f"class {i}" for i in range(first)]
    graph = replace_head(model(case.network), names, most, seed=seed)
    return compiler.compile_graph(graph, case.plan, save=False)


@functools.cache
def records(case: Case) -> dict[str, int]:
    """Return the bytes of a sample in each form."""
    blob = compiled(case, 0)
    sizes = [latent.size(spans) for _, spans in latent.points(blob)]
    found = {"raw": latent.size(latent.alive(blob, 0)), "latent": sizes[0]}
    return found | ({"compact": sizes[-1]} if len(sizes) > 1 else {})


def room(case: Case, size: int, form: str | None = None) -> int:
    """Return how many samples replay of ``size`` bytes holds, in the smallest form if none is
    given."""
    found = records(case)
    return lifelong.slots(size, found[form] if form else min(found.values()))


@functools.cache
def policy() -> str:
    """Return a digest of what replay keeps and picks in a long stream; code that changes without
    changing that keeps it."""
    reservoir, found = Reservoir(20, 1), []
    for t in range(3000):
        if t % 600 == 0:
            lifelong.introduce(reservoir, 2 + t // 300)
        found += [reservoir.offer((t * t + t // 7) % (2 + t // 300)), reservoir.pick()]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


@functools.cache
def code(case: Case, seed: int) -> list[str]:
    """Return digests of what a case runs: of its data, its policy and its arithmetic."""
    how = (lifelong.Learner, lifelong.learn, lifelong.joint, lifelong.introduce)
    things = (*how, DATA[case.dataset], Data.stream, dark, grey, blurred, logmel.picture)
    digest = hashlib.sha256("".join(map(inspect.getsource, things)).encode()).hexdigest()[:16]
    return [digest, policy(), fingerprint(compiled(case, seed))]


def key(run: Run, quick: bool) -> dict[str, Any]:
    """Return all that a result depends on."""
    about = {"rehearse": REHEARSE, "code": code(run.case, run.seed), "quick": quick}
    return {**dataclasses.asdict(run), **about}


def make(number: int) -> dict[str, Any]:
    """Do a run and keep its result."""
    run, run_key, inputs, data = common.inherited["runs"][number]
    blob, stream = compiled(run.case, run.seed), data.stream(run.seed, run.on)
    if run.joint:
        result = lifelong.joint(blob, inputs, stream, run.rate, run.joint, run.seed)
    else:
        method = Method(run.rate, REHEARSE if run.slots else 0, run.slots, run.new)
        result = lifelong.learn(blob, inputs, stream, method, run.seed)
    common.keep(FOLDER, run_key, result)
    return result


class Bench:
    """All data, and all runs that were made or kept; ``quick`` for a trial of the bench itself.

    With ``kept`` no run is made.
    """

    def __init__(self, jobs: int, quick: bool = False, kept: bool = False) -> None:
        self.jobs, self.quick, self.kept = jobs, quick, kept
        self.inputs: dict[Case, Replay] = {}
        self.results: dict[Run, dict[str, Any]] = {}

    @functools.cache  # noqa: B019
    def data(self, name: str) -> Data:
        """Return a data set."""
        return DATA[name](self.quick)

    def frozen(self, case: Case) -> Replay:
        """Return all samples of a case after the frozen operators, which no seed changes."""
        if case not in self.inputs:
            blob = compiled(case, 0)
            frames = self.data(case.dataset).x
            data = common.frozen_all(blob, frames, self.jobs)
            self.inputs[case] = Replay(*latent.boundary(blob), data)
        return self.inputs[case]

    def make(self, runs: Sequence[Run]) -> None:
        """Make runs, or find them; the first ones are begun first."""
        wanted = []
        for run in dict.fromkeys(runs):
            run_key = key(run, self.quick)
            if common.cache_path(FOLDER, run_key).exists():
                self.results[run] = common.cached(FOLDER, run_key)
            elif not self.kept:
                wanted.append((run, run_key, self.frozen(run.case), self.data(run.case.dataset)))
        common.inherited["runs"] = wanted
        with common.pool(self.jobs) as workers:
            futures = {workers.submit(make, n): n for n in range(len(wanted))}
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                run, result = wanted[futures[future]][0], future.result()
                self.results[run] = result
                average = lifelong.average_accuracy(result["matrix"])
                text = f"{done}/{len(wanted)} {describe(run)}: {average:.2f} %"
                print(text, file=sys.stderr, flush=True)

    def score(self, run: Run) -> float | None:
        """Return the average accuracy of a run, None if it was not made."""
        found = self.results.get(run)
        return None if found is None else lifelong.average_accuracy(found["matrix"])

    def best(self, runs: Sequence[Run]) -> Run | None:
        """Return the run with the best average accuracy, the first of equals, None if one is
        missing."""
        scores = [self.score(run) for run in runs]
        if any(score is None for score in scores):
            return None
        return runs[int(np.argmax(scores))]


def describe(run: Run) -> str:
    """Return a short name of a run."""
    how = f"joint {run.joint}" if run.joint else f"{run.slots} slots, new samples x{run.new:g}"
    return f"{run.case.dataset} {run.case.title} {how} rate {run.rate:g} seed {run.seed} {run.on}"


# ------------------------------------------------------------------------------------------------
# What is run

CIFAR = [Case("cifar10", MCUNET, plan) for plan in (PLAN, DEEP, "last")]
OTHERS = [Case(name, MCUNET, plan) for name in ("person", "digits") for plan in (PLAN, "last")]
CASES = [*CIFAR, *OTHERS, Case("cifar10", PROXYLESS, "last")]


def samples(case: Case, quick: bool) -> int:
    """Return how many samples a case learns from."""
    whole, few = {"cifar10": (5000, 400), "person": (3000, 200), "digits": (1400, 120)}[
        case.dataset
    ]
    return few if quick else whole


@dataclasses.dataclass
class Plan:
    """The runs of a case, once its rates are chosen."""

    bench: Bench
    case: Case
    chosen: dict[int, float] = dataclasses.field(default_factory=dict)
    together: Run | None = None

    @property
    def steps(self) -> int:
        """Steps with replay, which joint learning gets too."""
        return samples(self.case, self.bench.quick) * (1 + REHEARSE)

    @property
    def slots(self) -> list[int]:
        """Slots for which the fraction is chosen, those of MAIN bytes first."""
        sizes = SIZES if self.case.plan == "last" else ()
        return list(dict.fromkeys(filter(None, [room(self.case, n) for n in (MAIN, *sizes)])))

    def tuning(self, slots: int) -> list[Run]:
        """Return the runs that the fraction is chosen by."""
        return [
            Run(self.case, DEFAULT_RATE, TUNING_SEED, new, slots, on="held_out") for new in NEW
        ]

    def tuning_joint(self) -> list[Run]:
        """Return those that the rate of joint learning is chosen by."""
        return [
            Run(self.case, rate, TUNING_SEED, joint=self.steps, on="held_out")
            for rate in JOINT_RATES
        ]

    def choose(self) -> None:
        """Choose by what was run."""
        best = {slots: self.bench.best(self.tuning(slots)) for slots in self.slots}
        self.chosen = {slots: run.new for slots, run in best.items() if run}
        self.together = self.bench.best(self.tuning_joint())

    def replay(self, slots: int) -> list[Run]:
        """Return the runs with so many slots, one for each seed; without any it is naive."""
        new = self.chosen.get(slots, self.chosen.get(self.slots[0])) if slots else 1.0
        if new is None:
            return []
        seeds = SEEDS[:1] if self.bench.quick else SEEDS
        return [Run(self.case, DEFAULT_RATE, seed, new, slots) for seed in seeds]

    def joint(self, steps: int) -> list[Run]:
        """Return the runs of joint learning of so many steps."""
        if self.together is None:
            return []
        seeds = SEEDS[:1] if self.bench.quick else SEEDS
        return [Run(self.case, self.together.rate, seed, joint=steps) for seed in seeds]

    def main(self) -> dict[str, list[Run]]:
        """Return the runs of the first tables, by what they are called."""
        return {
            "naive": self.replay(0),
            "replay": self.replay(room(self.case, MAIN)),
            "joint": self.joint(self.steps),
            "joint, one pass": self.joint(samples(self.case, self.bench.quick)),
        }

    def curve(self, form: str) -> list[list[Run]]:
        """Return the runs for each of SIZES with a form of replay."""
        return [self.replay(room(self.case, size, form)) for size in SIZES]


def run_all(bench: Bench) -> list[Plan]:
    """Make all runs, what matters most first; return the plans of CASES."""
    plans = [Plan(bench, case) for case in CASES]
    tuning = [plan.tuning(slots) for plan in plans for slots in plan.slots]
    bench.make([run for some in tuning for run in some])
    bench.make([run for plan in plans for run in plan.tuning_joint()])
    for plan in plans:
        plan.choose()
    runs = [run for plan in plans for some in plan.main().values() for run in some]
    for form in ("compact", "latent", "raw"):
        for plan in reversed(plans[: len(CIFAR)]):
            if form in records(plan.case) and (form != "raw" or plan.case.plan == PLAN):
                runs += [run for some in plan.curve(form) for run in some]
    bench.make(runs)
    return plans


# ------------------------------------------------------------------------------------------------
# Tables


def spread(values: Sequence[float | None], form: str = ".1f") -> str:
    """Return mean and range."""
    some = [v for v in values if v is not None]
    if not some or len(some) < len(values):
        return "not run"
    if len(some) == 1:
        return f"{some[0]:{form}}"
    return f"{np.mean(some):{form}} ({min(some):{form}} to {max(some):{form}})"


def measures(bench: Bench, runs: Sequence[Run]) -> list[str]:
    """Return the cells average accuracy, forgetting and backward transfer of runs."""
    found = [bench.results.get(run) for run in runs] or [None]
    cells = []
    for measure in (
        lifelong.average_accuracy, lifelong.forgetting, lifelong.backward_transfer
    ):  # fmt: skip
        one = found[0]
        if measure is not lifelong.average_accuracy and one and len(one["matrix"]) == 1:
            cells.append("")
        else:
            cells.append(spread([None if r is None else measure(r["matrix"]) for r in found]))
    return cells


def show_main(bench: Bench, plans: Sequence[Plan]) -> dict[str, Any]:
    """Print what replay of MAIN bytes gives; return it."""
    data: dict[str, Any] = {}
    for name in DATA:
        print(f"\n{name}, {MAIN // KB} KB of replay; mean and range of seeds, percent\n")
        rows = []
        for plan in (p for p in plans if p.case.dataset == name):
            for how, runs in plan.main().items():
                what = f"{plan.case.title}: {how}"
                if how == "replay":
                    what += f", {room(plan.case, MAIN)} samples"
                rows.append([what, *measures(bench, runs)])
                data[f"{name}, {plan.case.network}, {plan.case.plan}, {how}"] = [
                    bench.results.get(run) for run in runs
                ]
        common.print_table(["", "average accuracy", "forgetting", "backward transfer"], rows)
    return data


def show_curve(bench: Bench, plans: Sequence[Plan]) -> dict[str, Any]:
    """Print accuracy against bytes of replay, for all plans and forms; return it."""
    print("\ncifar10: average accuracy, percent, by bytes of replay\n")
    columns: dict[str, list[list[Run]]] = {}
    for plan in plans[: len(CIFAR)]:
        for form, size in records(plan.case).items():
            if form != "raw" or plan.case.plan == PLAN:
                columns[f"{plan.case.title}, {form}, {size:,} B"] = plan.curve(form)
    rows, data = [], {}
    for i, size in enumerate(SIZES):
        values = {
            name: [bench.score(run) for run in runs[i]] or [None] for name, runs in columns.items()
        }
        data[str(size)] = values
        rows.append([f"{size // KB} KB", *map(spread, values.values())])
    common.print_table(["replay", *columns], rows)
    return data


def show_matrices(bench: Bench, plans: Sequence[Plan]) -> None:
    """Print the accuracy matrices of the first plans, means of the seeds."""
    for plan in plans[: len(CIFAR)]:
        for how, runs in list(plan.main().items())[:2]:
            found = [bench.results.get(run) for run in runs]
            if not found or None in found:
                continue
            print(f"\ncifar10, {plan.case.title}, {how}: accuracy on task j after task i\n")
            matrices = [r["matrix"] for r in found if r]
            rows = [
                [f"after {i + 1}"]
                + [f"{np.mean([m[i][j] for m in matrices]):.1f}" for j in range(i + 1)]
                + [""] * (len(matrices[0]) - i - 1)
                for i in range(len(matrices[0]))
            ]
            common.print_table(["", *[f"task {i + 1}" for i in range(len(rows))]], rows)


def show_chosen(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Print the average accuracies on held-out samples and what was chosen by them; return it."""
    print("\nheld-out samples: average accuracy, percent, by the fraction of the rate for new")
    print("samples, and of joint learning by its rate; the best is chosen\n")
    rows, data = [], []
    for plan in plans:
        runs = plan.tuning(plan.slots[0])
        scores = {f"new x{run.new:g}": plan.bench.score(run) for run in runs}
        scores |= {f"joint {r.rate:g}": plan.bench.score(r) for r in plan.tuning_joint()}
        about = {"stream": plan.case.dataset, "learns": plan.case.title, "chosen": plan.chosen}
        data.append({**about, **scores})
        title = f"{plan.case.dataset}, {plan.case.title}"
        rows.append([title, *[spread([score]) for score in scores.values()]])
    common.print_table(["", *list(data[0])[3:]], rows)
    return data


# ------------------------------------------------------------------------------------------------
# On the board

BOARD_SAMPLES = 24
BOARD_SIZE = 16 * KB


def on_board(bench: Bench) -> dict[str, Any]:
    """Learn the first samples of two tasks of cifar10 in MicroPython, with a pico's heap, and
    here; return both digests."""
    case = CIFAR[0]
    data = bench.data(case.dataset)
    whole = data.stream(0, "test")
    tasks = [task[:BOARD_SAMPLES] for task in whole.tasks[:2]]
    stream = Stream(tasks, whole.tests[:2], whole.labels, whole.classes[:2])
    graph = replace_head(model(case.network), ["class 0", "class 1"], 10)
    blob = compiler.compile_graph(graph, case.plan)
    points = latent.points(blob)
    method = Method(0.002, REHEARSE, lifelong.slots(BOARD_SIZE, latent.size(points[-1][1])), 0.5)
    with tempfile.NamedTemporaryFile(suffix=".sprout") as file:
        file.write(blob.to_bytes())
        file.flush()
        board = lifelong.learn_on_board(
            Path(file.name), data.x[np.concatenate(tasks)], stream, method, 0,
            size=BOARD_SIZE, form="compact",
        )  # fmt: skip
    numbers = np.concatenate(tasks)
    at = np.zeros(len(data.y), np.int64)
    at[numbers] = np.arange(len(numbers))
    short = Stream([at[task] for task in tasks], [], whole.labels[numbers], stream.classes)
    inputs = Replay.of(blob, data.x[numbers])
    here = lifelong.learn(blob, inputs, short, method, 0, test=False)
    return {"steps": here["steps"], "host": here["digest"], "micropython": board["digest"]}


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    common.add_jobs(parser)
    parser.add_argument("--quick", action="store_true", help="few samples, to try the bench")
    parser.add_argument("--kept", action="store_true", help="print what there is")
    args = parser.parse_args()
    load_library()  # built once
    bench = Bench(args.jobs, args.quick, args.kept)
    plans = run_all(bench)
    result: dict[str, Any] = {"chosen": show_chosen(plans)}
    result["main"] = show_main(bench, plans)
    show_matrices(bench, plans)
    result["curve"] = show_curve(bench, plans)
    result["board"] = board = on_board(bench)
    same = "the same bytes" if board["host"] == board["micropython"] else "OTHER BYTES"
    print(f"\n{board['steps']} steps in MicroPython with a pico's heap: {same} as here")
    common.write_json("lifelong", result)
    if board["host"] != board["micropython"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
