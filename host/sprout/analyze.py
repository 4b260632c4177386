"""Contribution analysis: what each bias and each part of a layer is worth on the user's samples.

Each candidate learns alone (with the head, as in 'On-Device Training Under 256KB Memory', section
3.2) from a few samples on the integer engine, and its gain is the accuracy on held-out samples
beyond that of the head alone.  With seeds 0 to s-1 the samples are cut into max(s, 3) parts and
seed k holds out part k, so that the held-out samples of the seeds are different ones; a gain is
the mean of the differences to the head alone with the same seed, which starts from the same head
and learns the same samples in the same order.  The loss on the held-out samples is kept beside
it, which tells more of few samples.

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
from .plan import UpdatePlan
from .progress import Reporter
from .replay import Replay, fingerprint, learn, logits
from .schedule import sample_order

FOLDER = Path("build/analysis")
"""Where results are kept if the user names no other place."""

FORMAT = "sprout-analysis-1"

WAIT = 10
"""Seconds that a scheduler has to answer."""


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


def measure(task: Task, texts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Let each plan learn; return for each how many of how many held-out samples were right and
    their mean loss in nats.

    Plans that have the same frozen part share what it makes of the pictures.
    """
    learned, held_out = task.split(seed)
    epochs = task.settings.epochs
    frozen: Replay | None = None
    results = []
    for text in texts:
        blob = task.blob(text, seed)
        inputs = frozen.on(blob) if frozen else None
        if inputs is None:
            inputs = frozen = Replay.of(blob, task.frames)
        engine = Engine(blob.to_bytes())
        order = learned[sample_order(len(learned), epochs, seed)]
        learn(engine, inputs, task.labels, order, task.settings.rate, seed)
        found = logits(engine, inputs, held_out)
        truth = task.labels[held_out]
        results.append(
            {
                "right": int((found.argmax(1) == truth).sum()),
                "of": len(truth),
                "loss": float(np.mean(losses(found, truth))),
            }
        )
    return results


def losses(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
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
    except ImportError:
        raise SproutError(
            "--scheduler needs Dask: pip install -r requirements-dev.txt, which pins it."
        ) from None
    try:
        client = Client(address, timeout=WAIT)
    except (OSError, ValueError) as error:
        raise SproutError(
            f"No Dask scheduler answers at {address} ({str(error).splitlines()[0]}): start one "
            "with 'dask scheduler' and give its address, such as tcp://192.168.0.7:8786."
        ) from None
    with client, joblib.parallel_config(backend="dask", client=client):
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
        count = min(settings.samples, len(samples))
        parts = max(3, settings.seeds)
        if count < 2 * parts:
            raise SproutError(
                f"An analysis with {settings.seeds} seeds needs at least {2 * parts} samples "
                f"and there are {count}: give more."
            )
        some = samples.take(sample_order(len(samples), 1, 0)[:count])
        frames = np.stack(list(some.frames()))
        self.task = Task(graph, classes, max_classes, frames, some.y, settings, input_range)
        self.cache, self.scheduler, self.report = Cache(folder), scheduler, report
        digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes() + some.y.tobytes())
        self.about: dict[str, Any] = {
            "format": FORMAT,
            "model": hashlib.sha256(model).hexdigest(),
            "samples": digest.hexdigest(),
            "classes": classes,
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

    def key(self, text: str, seed: int) -> dict[str, Any]:
        """Return all that the result of a run depends on."""
        return {**self.about, "plan": text, "seed": seed}

    def run(self, texts: Sequence[str], phase: str) -> dict[str, list[dict[str, Any]]]:
        """Measure plans; return the results of ``measure`` by plan, one for each seed.

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
        groups: dict[tuple[int, int], list[str]] = {}
        for text in dict.fromkeys(texts):
            for seed in seeds:
                if (text, seed) not in done:
                    first = first_layer(plans.parse(text, n), n)
                    groups.setdefault((first, seed), []).append(text)
        work = [(self.task, group, seed) for (_, seed), group in groups.items()]
        kept_before = len(done)
        for i, results in spread(work, measure, self.scheduler) if work else ():
            _, group, seed = work[i]
            for text, result in zip(group, results, strict=True):
                self.cache.put(self.key(text, seed), result)
                done[text, seed] = result
            if self.report:
                self.report(phase, len(done) - kept_before, total - kept_before)
        return {text: [done[text, seed] for seed in seeds] for text in texts}


def first_layer(plan: UpdatePlan, n: int) -> int:
    """Return the first convolution of n that learns."""
    return min([n - 1, n - max(plan.biases, 1), *plan.weights])


def accuracies(results: Sequence[dict[str, Any]]) -> np.ndarray:
    """Percent right, by seed."""
    return np.array([100.0 * r["right"] / r["of"] for r in results])


@dataclass
class Gain:
    """What a candidate gained, in points: the mean, its standard error over the seeds, each
    seed; ``loss`` is how much lower the held-out loss was (nats)."""

    mean: float
    error: float
    each: list[float] = field(default_factory=list)
    loss: float = 0.0


@dataclass
class Contributions:
    """The result of an analysis: gains by number of last biases, and by weight.

    ``about`` is what they depend on, ``head`` the accuracy (percent) by seed of the head alone.
    """

    about: dict[str, Any]
    head: list[float]
    biases: dict[int, Gain]
    weights: dict[Key, Gain]

    def to_json(self) -> str:
        """Return the text that ``read`` reads."""
        gains = {f"b{k}": g for k, g in self.biases.items()}
        gains |= {f"{i}:{f}": g for (i, f), g in self.weights.items()}
        rows = [{"plan": text, **dataclasses.asdict(g)} for text, g in gains.items()]
        return json.dumps({"about": self.about, "head": self.head, "gains": rows}, indent=1) + "\n"


def read(path: Path) -> Contributions:
    """Read the file of an analysis.  Raises SproutError."""
    try:
        found = json.loads(path.read_text())
        result = Contributions(found["about"], found["head"], {}, {})
        for row in found["gains"]:
            gain = Gain(row["mean"], row["error"], row["each"], row["loss"])
            plan = plans.parse(row["plan"], 1 << 16)
            if plan.biases:
                result.biases[plan.biases] = gain
            else:
                result.weights[next(iter(plan.weights.items()))] = gain
        if result.about["format"] != FORMAT:
            raise KeyError("format")
    except FileNotFoundError:
        raise SproutError(f"{path} does not exist: make it with 'sprout analyze -o'.") from None
    except (OSError, ValueError, KeyError, TypeError, StopIteration, SproutError):
        raise SproutError(
            f"{path} is not an analysis of this version: make it with 'sprout analyze -o'."
        ) from None
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
    key = {**bench.about, "ram": ram, "rows": rows}
    kept = sizes.get(key)
    if kept is None:
        kept = {"plans": candidates(network, ram, bench.report)}
        sizes.put(key, kept)
    texts: list[str] = kept["plans"]
    results = bench.run(["last", *texts], "analysing")
    head = accuracies(results["last"])
    before = np.array([r["loss"] for r in results["last"]])
    n = len(network.convs)
    found = Contributions(bench.about, head.tolist(), {}, {})
    for text in texts:
        each = accuracies(results[text]) - head
        loss = float(np.mean(before - [r["loss"] for r in results[text]]))
        error = float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
        gain = Gain(float(each.mean()), error, each.tolist(), loss)
        plan = plans.parse(text, n)
        if plan.biases:
            found.biases[plan.biases] = gain
        else:
            found.weights[next(iter(plan.weights.items()))] = gain
    return found
