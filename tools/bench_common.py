"""What the benches share: data, networks, integer learning with its frozen part run once, output.

Integer learning here is ``sprout.engine.Engine``, the C core that the boards run.  The operators
before the first trained one give the same bytes for an image every time, so each image runs
through them once and what lives in the arena at that point is kept: a step then costs only the
rest.  The results are those of whole steps, bit for bit (``check_replay``).
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
BUILD = ROOT / "build"
sys.path[:0] = [str(ROOT / "host"), str(ROOT)]

from sprout import compile as compiler  # noqa: E402
from sprout import frontends, logmel, passes  # noqa: E402
from sprout import plan as plans  # noqa: E402
from sprout.blob import Blob  # noqa: E402
from sprout.data import fit  # noqa: E402
from sprout.engine import LEARN, Engine, load_library  # noqa: E402
from sprout.frontends.head import replace_head  # noqa: E402
from sprout.graph import Graph  # noqa: E402
from sprout.replay import Replay, boundary, fingerprint  # noqa: E402
from sprout.schedule import rate_at, rate_parts, sample_order  # noqa: E402

Array = np.ndarray
MODEL = SHARED / "models" / "mcunet-5fps.pkl"
PLAN = "b20,24:1/4,27:1/2,30:1/2"
SIZE = 128
FOLDER = "bench-accuracy"
"""Folder of build/ with the finished runs of all benches."""

CIFAR = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CLASSES = {
    "person": ("no_person", "person"),
    "cifar10": CIFAR,
    "digits": tuple(str(digit) for digit in range(10)),
}
TRAIN = {"person": (4000, 3), "cifar10": (10000, 2), "digits": (1000, 8)}
"""Samples and epochs; the samples are the first of the training set."""

TEST_TAKES = 15
"""Of the 50 recordings of each digit by each speaker, the first, which nobody learns: the speakers
of the test are known, their recordings are not."""


# ------------------------------------------------------------------------------------------------
# Data


@dataclasses.dataclass
class Samples:
    """Pictures x uint8 [n, h, w, 3] and labels y int64 [n]."""

    x: Array
    y: Array

    def __getitem__(self, part: slice) -> Samples:
        return Samples(self.x[part], self.y[part])

    def __len__(self) -> int:
        return len(self.y)


def load(name: str, limit: int | None = None) -> tuple[Samples, list[str]]:
    """Return the first ``limit`` pictures of a set of ../shared/data, 128x128, and its classes.

    ``digits_train`` and ``digits_test`` are spoken digits as pictures (``sprout.logmel``).
    """
    path = SHARED / "data" / "load.py"
    if not path.exists():
        sys.exit(f"{path} is missing: this bench measures on the data of ../shared.")
    spec = importlib.util.spec_from_file_location("shared_load", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name.startswith("digits"):
        return digits(name.endswith("test"))[:limit], list(CLASSES["digits"])
    x, y, classes = module.images(name, limit, SIZE)
    return Samples(x, y), classes


def digits(test: bool) -> Samples:
    """Return the spoken digits that are learned or tested, those of a training set shuffled."""
    with np.load(SHARED / "data" / "spoken_digits.npz") as file:
        pcm, ends, y = file["pcm"], file["offsets"], file["y"].astype(np.int64)
        numbers = np.flatnonzero((file["take"] < TEST_TAKES) == test)
    if not test:
        numbers = np.random.default_rng(0).permutation(numbers)
    shape = (SIZE, SIZE, 3)
    x = [fit(logmel.picture(pcm[ends[i] : ends[i + 1]]), shape) for i in numbers]
    return Samples(np.stack(x), y[numbers])


class Dataset:
    """What a network learns, what its rate is chosen on, and what it is tested on.

    Parts: "train", the first ``samples`` of the training set; "held_out", all of it that no run
    learns; "test".  Pictures are read at first use.  ``quick`` keeps 100 pictures of the last two.
    """

    def __init__(self, name: str, samples: int, quick: bool = False) -> None:
        self.name, self.samples = name, samples
        self.limit = 100 if quick else None

    @functools.cached_property
    def _train(self) -> Samples:
        return self._load("train")

    @functools.cached_property
    def test(self) -> Samples:
        return self._load("test")

    @property
    def train(self) -> Samples:
        return self._train[: self.samples]

    @property
    def held_out(self) -> Samples:
        return self._train[TRAIN[self.name][0] :][: self.limit]

    def _load(self, part: str) -> Samples:
        limit = self.limit and self.limit + (TRAIN[self.name][0] if part == "train" else 0)
        samples, classes = load(f"{self.name}_{part}", limit)
        assert tuple(classes) == CLASSES[self.name]
        return samples

    def part(self, name: str) -> Samples:
        """Return the pictures of "train", "held_out" or "test"."""
        part: Samples = getattr(self, name)
        return part

    def tag(self, part: str) -> str:
        """Return the name of a part in the keys of results."""
        return f"{part} {self.limit or 'all'}"


# ------------------------------------------------------------------------------------------------
# Networks


def network(classes: Sequence[str], seed: int, plan: str) -> Graph:
    """Return mcunet-5fps with a fresh head by ``seed``, marked with the plan."""
    graph = passes.run(replace_head(frontends.load(MODEL), list(classes), None, seed=seed))
    plans.apply(plans.parse(plan, len(graph.convs)), graph)
    return graph


@functools.cache
def compiled(
    classes: tuple[str, ...], seed: int, plan: str, fractions: str = "all", gradient_bits: int = 14
) -> Blob:
    """Return the blob of the same; ``fractions`` and ``gradient_bits`` as in ``compile_graph``."""
    graph = replace_head(frontends.load(MODEL), list(classes), None, seed=seed)
    return compiler.compile_graph(graph, plan, fractions=fractions, gradient_bits=gradient_bits)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run of learning: everything that its result depends on besides code and data."""

    dataset: str
    plan: str
    rate: float
    epochs: int
    seed: int
    samples: int
    batch: int = 1
    fractions: str = "none"
    gradient_bits: int = 14


def orders(settings: Settings) -> Array:
    """Return the sample numbers in the order of learning: the same for integers and floats."""
    return sample_order(settings.samples, settings.epochs, settings.seed)


def learn(
    blob: Blob,
    settings: Settings,
    train: Replay,
    labels: Array,
    test: Replay,
    truth: Array,
    every_epoch: bool = True,
) -> dict[str, Any]:
    """Learn on the integer engine; return accuracy (percent) after each epoch, and more."""
    accumulate = settings.batch > 1
    engine = Engine(blob.to_bytes(), accumulate=accumulate)
    order = orders(settings)
    mantissa, exponent = rate_parts(settings.rate)
    start, losses, curve = time.perf_counter(), [], []
    for t, i in enumerate(order):
        rate = (rate_at(mantissa, t, len(order)), exponent)
        train.put(engine.arena, i)
        run = engine.run_ops(
            train.cut, len(blob.ops), LEARN,
            label=int(labels[i]), rate=rate, seed=settings.seed, step=t,
        )  # fmt: skip
        losses.append(run.loss_q16)
        if accumulate and (t + 1) % settings.batch == 0:
            engine.apply()
        if t + 1 == len(order) or (every_epoch and (t + 1) % settings.samples == 0):
            curve.append(accuracy(engine, test, truth, blob.n_classes))
    return {
        "accuracy": curve[-1],
        "curve": curve,
        "loss": float(np.mean(losses[-settings.samples :])) / 65536,
        "seconds": time.perf_counter() - start,
        "digest": engine.digest(),
    }


def check_replay(blob: Blob, train: Replay, data: Samples) -> None:
    """Check that a few steps from kept inputs give the bytes of whole steps."""
    whole, part = Engine(blob.to_bytes()), Engine(blob.to_bytes())
    for t in range(4):
        common = {"label": int(data.y[t]), "rate": (3000, -20), "seed": 1, "step": t}
        whole.set_input(data.x[t])
        whole.run_ops(0, len(blob.ops), LEARN, **common)
        train.put(part.arena, t)
        part.run_ops(train.cut, len(blob.ops), LEARN, **common)
    if whole.digest() != part.digest():
        raise AssertionError(f"{blob.info['plan']}: replayed steps differ from whole ones")


def accuracy(engine: Engine, test: Replay, truth: Array, n_classes: int) -> float:
    """Return the percentage of ``truth`` that the engine's logits find."""
    right = 0
    for i, label in enumerate(truth):
        test.put(engine.arena, i)
        engine.run_ops(test.cut, engine.blob.n_forward)
        logits = engine.tensor(engine.blob.logits).ravel()[:n_classes]
        right += int(logits.argmax()) == label
    return 100.0 * right / len(truth)


# ------------------------------------------------------------------------------------------------
# Many runs at a time

Task = tuple[Settings, str]
"""A run, and "test" or "held_out": what its accuracy is measured on."""

inherited: dict[Any, Any] = {}
"""What processes of a pool are born with: nothing of it is copied."""


def pool(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """Return a pool of processes that are born with ``inherited``."""
    context = multiprocessing.get_context("fork")
    return concurrent.futures.ProcessPoolExecutor(jobs, context)


def _prepare(task: Task, on: str) -> tuple[dict[str, Any], Blob]:
    """Return the key of a task's result, measured on a part named ``on``, and its blob."""
    run = task[0]
    classes = CLASSES[run.dataset]
    blob = compiled(classes, run.seed, run.plan, run.fractions, run.gradient_bits)
    return run_key("int", on, fingerprint(blob), run), blob


def _frozen_part(what: tuple[Any, slice]) -> Array:
    key, part = what
    blob, x = inherited[key]
    return Replay.of(blob, x[part]).data


def _make(number: int) -> dict[str, Any]:
    (run, on), key, blob, replays, data = inherited["tasks"][number]
    train, test = replays["train"], replays[on]
    check_replay(blob, train, data.train)
    truth = data.part(on).y
    result = learn(blob, run, train, data.train.y, test, truth, every_epoch=on == "test")
    keep(FOLDER, key, result)
    return result


def learn_all(
    tasks: Sequence[Task], data: Mapping[str, Dataset], jobs: int, kept: bool = False
) -> list[dict[str, Any] | None]:
    """Return the results of integer runs: those kept, and the others made, ``jobs`` at a time.

    With ``kept`` nothing is made, and the others are None.
    """
    load_library()  # built once
    tags = [data[run.dataset].tag(on) for run, on in tasks]
    with pool(jobs) as workers:
        prepared = list(workers.map(_prepare, tasks, tags))
    todo = {i for i, (key, _) in enumerate(prepared) if not cache_path(FOLDER, key).exists()}
    if kept:
        return [None if i in todo else cached(FOLDER, key) for i, (key, _) in enumerate(prepared)]
    replays: dict[Any, Replay] = {}
    wanted = []
    for i in sorted(todo):
        (run, on), (key, blob) = tasks[i], prepared[i]
        found = {}
        for part in ("train", on):
            cut, spans = boundary(blob)
            which = (run.dataset, part, run.plan, cut, tuple(spans))
            if which not in replays:
                x = data[run.dataset].part(part).x
                replays[which] = Replay(cut, spans, frozen_all(blob, x, jobs))
            found[part] = replays[which]
        wanted.append((tasks[i], key, blob, found, data[run.dataset]))
    inherited["tasks"] = wanted
    with pool(jobs) as workers:
        futures = {workers.submit(_make, n): n for n in range(len(wanted))}
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            (run, on), result = wanted[futures[future]][0], future.result()
            note = f"{on} {result['accuracy']:.2f} %, {result['seconds']:.0f} s"
            text = f"{done}/{len(wanted)} {describe('int', run)}: {note}"
            print(text, file=sys.stderr, flush=True)
    inherited.clear()
    return [cached(FOLDER, key) for key, _ in prepared]


def frozen_all(blob: Blob, x: Array, jobs: int) -> Array:
    """Return the data of a Replay of many pictures, worked out by ``jobs`` processes."""
    inherited["frozen"] = blob, x
    parts = [slice(i, i + 256) for i in range(0, len(x), 256)]
    with pool(jobs) as workers:
        return np.concatenate(list(workers.map(_frozen_part, [("frozen", p) for p in parts])))


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add --jobs to a bench's command line."""
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="integer runs at a time (all processors)"
    )


def code_digest(thing: object) -> str:
    """Return a digest of the module that defines ``thing``, blind to comments and imports."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(thing)))  # type: ignore[arg-type]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:]
    imports = (ast.Import, ast.ImportFrom)
    tree.body = [node for node in tree.body if not isinstance(node, imports)]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def parameters_digest(graph: Graph) -> str:
    """Return a digest of a network's parameters and of what learns; spare classes do not count."""
    digest = hashlib.sha256()
    for op in graph.convs:
        rows = len(graph.classes) if op is graph.convs[-1] else None
        for name in ("weight", "bias", "weight_scales"):
            digest.update(np.ascontiguousarray(op.params[name][:rows]).tobytes())
        channels = op.attrs["train_channels"]
        marks = (op.attrs["train_bias"], op.attrs["train_weight"], channels is not None)
        digest.update(repr(marks).encode() + (b"" if channels is None else channels.tobytes()))
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------
# Results


def cached(folder: str, key: dict[str, Any]) -> dict[str, Any]:
    """Return the result kept under ``key`` in build/folder."""
    result: dict[str, Any] = json.loads(cache_path(folder, key).read_text())["result"]
    return result


def run_key(side: str, on: str, code: str, run: Settings) -> dict[str, Any]:
    """Return all that a run's result depends on: "int" or "float", test set, code, settings."""
    return {"side": side, "on": on, "code": code, **dataclasses.asdict(run)}


def cache_path(folder: str, key: dict[str, Any]) -> pathlib.Path:
    """Return the file of ``key`` in build/folder."""
    text = json.dumps(key, sort_keys=True)
    return BUILD / folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def keep(folder: str, key: dict[str, Any], result: dict[str, Any]) -> None:
    """Keep a result, whole or not at all."""
    path = cache_path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"key": key, "result": result}, indent=1))
    part.replace(path)


def write_json(name: str, data: dict[str, Any]) -> None:
    """Write build/bench-NAME.json."""
    BUILD.mkdir(exist_ok=True)
    path = BUILD / f"bench-{name}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"\n{path.relative_to(ROOT)} written")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a markdown table, the first column to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    print(line(cells[0]))
    rules = ["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]
    print("|" + "|".join(rules) + "|")
    for row in cells[1:]:
        print(line(row))


def describe(side: str, s: Settings) -> str:
    """Return a short name of a run."""
    side += "" if side == "float" else f" (fractions {s.fractions})"
    return f"{side} {s.dataset} {s.plan} rate {s.rate:g} batch {s.batch} seed {s.seed}"


class Progress:
    """A line on stderr with the time left; on no terminal, one line at the end."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.start = self.last = time.monotonic()
        self.done, self.note = 0, ""

    def update(self, done: int, note: str = "") -> None:
        self.done, self.note = done, note
        now = time.monotonic()
        if now - self.last < 0.5 or not sys.stderr.isatty():
            return
        self.last = now
        left = (now - self.start) / max(done, 1) * (self.total - done)
        text = f"{self.what}: {done}/{self.total} {note} {left:.0f} s left"
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        seconds = time.monotonic() - self.start
        print(f"{clear}{self.what}: {self.note} {seconds:.0f} s", file=sys.stderr, flush=True)
