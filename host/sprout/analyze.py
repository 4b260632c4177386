"""Contribution analysis: what each bias and each part of a layer is worth on the user's samples.

Each candidate learns from a few samples on the integer engine, and its gain is what it adds to
the accuracy on held-out samples ('On-Device Training Under 256KB Memory', section 3.2): the last K
biases to that of the head alone, a weight to that of the last biases.  Biases take next to no
memory and gain most of what there is to gain, so every good plan has them, and most of what a
weight gains without them it does not gain beside them.  The biases that a weight learns with
(``Contributions.basis``) are the fewest that gain nearly all that biases can (``NEARLY``), or all
from the weight's layer on where those are more.

With seeds 0 to s-1 the samples are cut into max(s, 3) parts and seed k holds out part k, so that
the held-out samples of the seeds are different ones; a gain is the mean of differences between
runs with the same seed, which start from the same head and learn the same samples in the same
order.  The loss on the held-out samples is kept beside it, which tells more of few samples.

Candidates are the last K biases and each convolution's weight at 1/8, 1/4, 1/2 and 1.  Those that
take more RAM than the limit by themselves are left out, because no plan under that limit can
contain them.

Every finished run is kept in a folder under a digest of all that it depends on: model, samples,
settings, plan, seed and what the arithmetic computes.  Runs are spread over this machine's cores
(joblib) or over a Dask cluster, whose workers need this package at the same version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import compile as compiler
from . import plan as plans
from .blob import Blob
from .cache import Cache
from .data import Samples
from .engine import Engine
from .footprint import Footprint, Key
from .frontends.head import replace_head
from .graph import Graph, SproutError
from .places import code_digest
from .plan import UpdatePlan
from .progress import Reporter
from .replay import Replay, Span, boundary, fingerprint, learn, logits
from .schedule import rate_parts, sample_order

FOLDER = Path("build/analysis")
"""Where results are kept if the user names no other place."""

FORMAT = "sprout-analysis-2"

NEARLY = 0.9
"""Share of the greatest gain of biases that the biases have with which weights are measured."""

TOGETHER, FREEZE = 4, 128
"""Plans that a worker measures in one go, and pictures that it runs through the frozen part."""

AT_ONCE = 1 << 28
"""Bytes of pictures after frozen parts that are kept at a time."""

WAIT = 10
"""Seconds that a scheduler has to answer."""


Results = dict[str, list[dict[str, Any]]]
"""What ``measure`` returns for a plan, by plan: one for each seed."""


@dataclass(frozen=True)
class Settings:
    """How the runs learn: from ``samples`` drawn at random (those held out included), with
    ``seeds`` seeds."""

    samples: int = 480
    seeds: int = 3
    epochs: int = 2
    rate: float = 0.004
    fractions: str = "all"


@dataclass
class Task:
    """A network, samples and what to learn from them: all that a worker needs.

    ``classes`` (None: the model keeps its head), ``frames`` uint8 [n, h, w, c], ``labels`` int64.
    """

    graph: Graph
    classes: list[str] | None
    max_classes: int | None
    frames: np.ndarray
    labels: np.ndarray
    settings: Settings
    input_range: tuple[float, float] | None = None

    def network(self, seed: int) -> Graph:
        """Return the network with the head of a seed."""
        if self.classes is None:
            return self.graph
        return replace_head(self.graph, self.classes, self.max_classes, seed=seed)

    def blob(self, plan: str, seed: int) -> Blob:
        """Compile a plan, without what only saves memory: it changes no byte of a result and
        takes time to find."""
        return compiler.compile_graph(
            self.network(seed), plan, fractions=self.settings.fractions,
            input_range=self.input_range, save=False,
        )  # fmt: skip

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the samples that a seed learns and of those it holds out."""
        parts = np.array_split(np.arange(len(self.labels)), max(3, self.settings.seeds))
        learned = [part for k, part in enumerate(parts) if k != seed]
        return np.concatenate(learned), parts[seed]


def freeze(task: Task, text: str) -> np.ndarray:
    """Return what the frozen part of a plan makes of the task's pictures, see ``Replay.data``."""
    return Replay.of(task.blob(text, 0), task.frames).data


def measure(task: Task, texts: Sequence[str], seed: int, frozen: Replay) -> list[dict[str, Any]]:
    """Let each plan learn; return for each how many of how many held-out samples were right and
    their mean loss in nats.

    ``frozen``: the pictures after the frozen part that all of the plans have.
    """
    learned, held_out = task.split(seed)
    epochs = task.settings.epochs
    results = []
    for text in texts:
        blob = task.blob(text, seed)
        inputs = frozen.on(blob) or Replay.of(blob, task.frames)
        engine = Engine(blob.to_bytes())
        order = learned[sample_order(len(learned), epochs, seed)]
        learn(engine, inputs, task.labels, order, task.settings.rate, seed)
        found = logits(engine, inputs, held_out)
        truth = task.labels[held_out]
        results.append(
            {
                "right": int((found.argmax(1) == truth).sum()),
                "of": len(truth),
                "loss": float(np.mean(_losses(found, truth))),
            }
        )
    return results


def _losses(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Cross entropy in nats of logits [n, classes]."""
    top = found.max(1)
    total = np.log(np.exp(found - top[:, None]).sum(1)) + top
    return np.asarray(total - found[np.arange(len(truth)), truth])


def spread(
    work: Sequence[tuple[Any, ...]], job: Callable[..., Any], scheduler: str | None = None
) -> Iterator[tuple[int, Any]]:
    """Call ``job(*arguments)`` for each of ``work`` on all cores, or on the Dask cluster at the
    address ``scheduler``; yield (number, result) as they come.

    A worker that dies costs what it was working on, which another one begins again.
    """
    import joblib

    with contextlib.ExitStack() as stack:
        if scheduler is not None:
            stack.enter_context(_cluster(scheduler))
        pool = joblib.Parallel(n_jobs=-1, return_as="generator_unordered", batch_size=1)
        yield from pool(joblib.delayed(_numbered)(i, job, args) for i, args in enumerate(work))


def _numbered(i: int, job: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[int, Any]:
    return i, job(*arguments)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Let joblib work on the Dask cluster at an address."""
    import joblib

    try:
        from distributed import Client
        from distributed.exceptions import WorkerStartTimeoutError
    except ImportError:
        raise SproutError(
            "--scheduler needs Dask: pip install distributed, at the version that runs there."
        ) from None
    try:
        client = Client(address, timeout=WAIT)
    except (OSError, ValueError) as error:
        raise SproutError(
            f"No Dask scheduler answers at {address} ({str(error).splitlines()[0]}): start one "
            "with 'dask scheduler' and give its address, such as tcp://192.168.0.7:8786."
        ) from None
    with client, joblib.parallel_config(backend="dask", client=client):
        try:
            client.wait_for_workers(1, timeout=WAIT)
        except WorkerStartTimeoutError:
            raise SproutError(
                f"The Dask scheduler at {address} has no workers: start some with 'dask worker "
                f"{address}'."
            ) from None
        yield


class Bench:
    """Measures plans of one network on the user's samples; what was measured before is not
    measured again.

    ``model`` is the bytes of the model file, for the digest.
    """

    def __init__(
        self,
        graph: Graph,
        model: bytes,
        samples: Samples,
        classes: list[str] | None,
        max_classes: int | None = None,
        settings: Settings | None = None,
        folder: Path = FOLDER,
        scheduler: str | None = None,
        report: Reporter | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> None:
        settings = settings or Settings()
        self._with = functools.partial(
            Bench, graph, model, samples, classes, max_classes, folder=folder, scheduler=scheduler,
            report=report, input_range=input_range,
        )  # fmt: skip
        rate_parts(settings.rate)  # complains
        self.all_samples = len(samples)
        count = min(settings.samples, len(samples))
        if count < (least := least_samples(settings.seeds)):
            raise SproutError(
                f"An analysis with {settings.seeds} seeds needs at least {least} samples "
                f"and there are {count}: give more."
            )
        some = samples.take(sample_order(len(samples), 1, 0)[:count])
        frames = np.stack(list(some.frames()))
        self.task = Task(graph, classes, max_classes, frames, some.y, settings, input_range)
        self.cache, self.scheduler, self.report = Cache(folder), scheduler, report
        digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes() + some.y.tobytes())
        self.about: dict[str, Any] = {
            "format": FORMAT,
            **subject(model, classes),
            "samples": digest.hexdigest(),
            "max_classes": max_classes,
            "settings": dataclasses.asdict(settings),
            "arithmetic": self._arithmetic(),
        }

    def _arithmetic(self) -> str:
        """A digest of what the engine computes for this network, learning as much as it can."""
        try:
            return fingerprint(self.task.blob("full", 0))
        except SproutError:  # not all of it has a gradient
            return fingerprint(self.task.blob("last", 0))

    def having(self, **changes: Any) -> Bench:
        """Return the same bench with some of its settings changed."""
        return self._with(settings=dataclasses.replace(self.task.settings, **changes))

    def key(self, text: str, seed: int) -> dict[str, Any]:
        """Return all that the result of a run depends on."""
        return {**self.about, "plan": text, "seed": seed}

    def run(self, texts: Sequence[str], phase: str) -> Results:
        """Measure plans.

        Plans that stand behind one another and share their first trained layer are measured
        together.
        """
        seeds = range(self.task.settings.seeds)
        done: dict[tuple[str, int], dict[str, Any]] = {}
        for text in texts:
            for seed in seeds:
                kept = self.cache.get(self.key(text, seed))
                if kept is not None:
                    done[text, seed] = kept
        total = len(set(texts)) * len(seeds)
        n = len(self.task.network(0).convs)
        groups: dict[int, dict[int, list[str]]] = {}
        for text in dict.fromkeys(texts):
            for seed in seeds:
                if (text, seed) not in done:
                    by_seed = groups.setdefault(first_layer(plans.parse(text, n), n), {})
                    by_seed.setdefault(seed, []).append(text)
        kept_before = len(done)
        examples = {first: next(iter(some.values()))[0] for first, some in groups.items()}
        for frozen in self._frozen(examples):
            work = [
                (self.task, group[i : i + TOGETHER], seed, inputs)
                for first, inputs in frozen.items()
                for seed, group in groups[first].items()
                for i in range(0, len(group), TOGETHER)
            ]
            for i, results in spread(work, measure, self.scheduler):
                _, learned, seed, _ = work[i]
                for text, result in zip(learned, results, strict=True):
                    self.cache.put(self.key(text, seed), result)
                    done[text, seed] = result
                if self.report:
                    self.report(phase, len(done) - kept_before, total - kept_before)
        return {text: [done[text, seed] for seed in seeds] for text in texts}

    def _frozen(self, texts: dict[int, str]) -> Iterator[dict[int, Replay]]:
        """Yield the samples after the frozen part of each plan, as many plans at a time as
        ``AT_ONCE`` allows."""
        count = len(self.task.labels)
        parts = [
            dataclasses.replace(self.task, frames=self.task.frames[i : i + FREEZE])
            for i in range(0, count, FREEZE)
        ]
        todo = {first: boundary(self.task.blob(text, 0)) for first, text in texts.items()}
        while todo:
            some: dict[int, tuple[int, list[Span]]] = {}
            frozen: dict[int, Replay] = {}
            size = 0
            for first, (cut, spans) in todo.items():
                size += count * sum(length for _, _, length in spans)
                if some and size > AT_ONCE:
                    break
                some[first] = cut, spans
            work = [(part, texts[first]) for first in some for part in parts]
            done: dict[int, np.ndarray] = {}
            for i, array in spread(work, freeze, self.scheduler):
                done[i] = array
                if self.report:
                    self.report("running frozen parts", len(done), len(work))
            data = [done[i] for i in range(len(work))]
            for number, (first, (cut, spans)) in enumerate(some.items()):
                del todo[first]
                mine = data[number * len(parts) :][: len(parts)]
                frozen[first] = Replay(cut, spans, np.concatenate(mine))
            yield frozen


def least_samples(seeds: int) -> int:
    """Return how many samples it takes for each of so many seeds to hold out two."""
    return 2 * max(3, seeds)


def subject(model: bytes, classes: list[str] | None) -> dict[str, Any]:
    """Return what an analysis is of: the digest of a model file, and the classes."""
    return {"model": hashlib.sha256(model).hexdigest(), "classes": classes}


def first_layer(plan: UpdatePlan, n: int) -> int:
    """Return the first convolution of n that learns."""
    return min([n - 1, n - max(plan.biases, 1), *plan.weights])


def accuracies(results: Sequence[dict[str, Any]]) -> np.ndarray:
    """Percent right, by seed."""
    return np.array([100.0 * r["right"] / r["of"] for r in results])


def mean_loss(results: Sequence[dict[str, Any]]) -> float:
    """Held-out loss in nats, mean of the seeds."""
    return float(np.mean([r["loss"] for r in results]))


def standard_error(each: np.ndarray) -> float | None:
    """Of the mean of seeds; None with one seed."""
    return float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else None


def close_to_least(results: Sequence[Sequence[dict[str, Any]]]) -> list[int]:
    """Return the numbers of the results, with the same seeds, whose held-out loss is within a
    standard error of the least, that of the differences seed by seed."""
    losses = [np.array([r["loss"] for r in some]) for some in results]
    best = min(losses, key=lambda loss: float(loss.mean()))
    worse = [loss - best for loss in losses]
    return [i for i, w in enumerate(worse) if w.mean() <= (standard_error(w) or 0.0)]


@dataclass
class Gain:
    """What a candidate gained, in points: the mean, its standard error over the seeds (None with
    one seed), each seed; ``loss`` is how much lower the held-out loss was (nats)."""

    mean: float
    error: float | None
    each: list[float] = field(default_factory=list)
    loss: float = 0.0


@dataclass
class Contributions:
    """The result of an analysis: gains by number of last biases, and by weight.

    ``about`` is what they depend on, and how many bytes of RAM a candidate may take, ``head`` the
    accuracy (percent) by seed of the head alone, ``basis`` the number of last biases that weights
    were measured with, at least.
    """

    about: dict[str, Any]
    head: list[float]
    basis: int
    biases: dict[int, Gain]
    weights: dict[Key, Gain]

    def to_json(self) -> str:
        """Return the text that ``read`` reads."""
        gains = {f"b{k}": g for k, g in self.biases.items()}
        gains |= {f"{i}:{f}": g for (i, f), g in self.weights.items()}
        rows = [{"plan": text, **dataclasses.asdict(g)} for text, g in gains.items()]
        result = {"about": self.about, "head": self.head, "basis": self.basis, "gains": rows}
        return json.dumps(result, indent=1) + "\n"


def read(path: Path, of: dict[str, Any] | None = None) -> Contributions:
    """Read the file of an analysis, which has to be ``of`` this ``subject``.  Raises
    SproutError."""
    try:
        found = json.loads(path.read_text())
        head = [float(percent) for percent in found["head"]]
        result = Contributions(found["about"], head, int(found["basis"]), {}, {})
        for row in found["gains"]:
            each = [float(points) for points in row["each"]]
            error = None if row["error"] is None else float(row["error"])
            gain = Gain(float(row["mean"]), error, each, float(row["loss"]))
            plan = plans.parse(row["plan"], 1 << 16)
            if plan.biases:
                result.biases[plan.biases] = gain
            else:
                result.weights[next(iter(plan.weights.items()))] = gain
        if result.about["format"] != FORMAT or not head:
            raise KeyError("format")
    except FileNotFoundError:
        raise SproutError(f"{path} does not exist: make it with 'sprout analyze -o'.") from None
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, SproutError
    ):  # fmt: skip
        raise SproutError(
            f"{path} is not an analysis of this version: make it with 'sprout analyze -o'."
        ) from None
    if any(result.about.get(key) != value for key, value in (of or {}).items()):
        raise SproutError(
            f"{path} is of another model or other classes: make one of these with 'sprout "
            "analyze -o'."
        )
    return result


def candidates(network: Footprint, ram: int, report: Reporter | None = None) -> list[str]:
    """Return the plans of one candidate each that take at most ``ram`` bytes, those that share
    their first trained layer behind one another, the last layers first."""
    n = len(network.convs)
    found = []
    for i in range(n - 1, -1, -1):
        texts = [f"b{n - i}"]
        texts += [f"{w.key[0]}:{w.key[1]}" for w in network.weights[i] if i < n - 1]
        for text in texts:
            try:
                fits = network.cost(plans.parse(text, n)).ram <= ram
            except SproutError:  # no gradient gets there
                fits = False
            if fits and text != "b1":  # which is the head's, and learns anyway
                found.append(text)
        if report:
            report("sizing", n - i, n)
    return found


def analyze(bench: Bench, ram: int, rows: bool = False) -> Contributions:
    """Measure every candidate that fits ``ram`` bytes; see above."""
    network = Footprint(bench.task.network(0), bench.task.settings.fractions, rows)
    sizes = Cache(bench.cache.folder / "candidates")  # a minute's work for a large network
    key = {**bench.about, "ram": ram, "rows": rows, "code": code_digest()}
    kept = sizes.get(key)
    if kept is None:
        kept = {"plans": candidates(network, ram, bench.report)}
        sizes.put(key, kept)
    texts: list[str] = kept["plans"]
    n = len(network.convs)
    single = {text: plans.parse(text, n) for text in texts}
    biases = {plan.biases: text for text, plan in single.items() if plan.biases}
    results = bench.run(["last", *biases.values()], "analysing biases")
    found = Contributions(
        {**bench.about, "ram": ram}, accuracies(results["last"]).tolist(), 0,
        {k: _gain(results[text], results["last"]) for k, text in sorted(biases.items())}, {},
    )  # fmt: skip
    found.basis = basis(found.biases)
    pairs = {}
    for text, plan in single.items():
        for i, f in plan.weights.items():
            below = f"b{max(found.basis, n - i)}"
            reached = _reaches(network, below)
            pairs[i, f] = (f"{below},{text}", below) if reached else (text, "last")
    results |= bench.run([text for pair in pairs.values() for text in pair], "analysing weights")
    for weight, (text, below) in pairs.items():
        found.weights[weight] = _gain(results[text], results[below])
    return found


def _reaches(network: Footprint, text: str) -> bool:
    """Whether a plan's layers all have a gradient."""
    try:
        network.case(plans.parse(text, len(network.convs)))
    except SproutError:
        return False
    return True


def basis(biases: dict[int, Gain]) -> int:
    """Return the least number of last biases that gain nearly what biases can, by the loss; 0
    where biases gain nothing."""
    best, number = max(((g.loss, k) for k, g in biases.items()), default=(0.0, 0))
    if best <= 0:
        return 0
    return min((k for k, g in biases.items() if g.loss >= NEARLY * best), default=number)


def _gain(results: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> Gain:
    """What a plan gains over another with the same seeds."""
    each = accuracies(results) - accuracies(before)
    loss = float(np.mean([b["loss"] - r["loss"] for r, b in zip(results, before, strict=True)]))
    return Gain(float(each.mean()), standard_error(each), each.tolist(), loss)
