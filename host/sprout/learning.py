"""Learns from labelled pictures: here through the C core, or in MicroPython inside a board's heap.

Both take the same samples in the same order at the same rates and seed, so that the trained
parameters, and with them ``digest``, come out equal to the bit.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from . import blob as blobs
from . import checkpoint as checkpoints
from .board.sim import learn_on_board, native_bytes
from .data import Samples
from .engine import LEARN, Engine
from .graph import SproutError
from .progress import Reporter
from .schedule import rate_at, rate_parts, sample_order

DEFAULT_RATE = 0.002
CURVE_POINTS = 50


@dataclass
class Recipe:
    """What a run does; ``order`` (uint32) are the numbers of the samples, one step each."""

    order: np.ndarray
    rate: float
    batch: int
    seed: int
    test_every: int = 0

    @property
    def window(self) -> int:
        """Samples between two points of the curve."""
        return max(1, len(self.order) // CURVE_POINTS)


@dataclass
class Curve:
    """The learning curve, from a prediction of each sample before it is learned.

    ``points`` are [samples seen, mean loss in nats, accuracy], both over the samples since the
    point before; ``tests`` are [samples seen, accuracy on the test samples].
    """

    total: int
    report: Reporter
    points: list[list[float]] = field(default_factory=list)
    tests: list[list[float]] = field(default_factory=list)

    def add(self, seen: int, loss: float, accuracy: float, tested: float | None = None) -> None:
        """Take in the next point, and show it."""
        self.points.append([seen, loss, accuracy])
        if tested is not None:
            self.tests.append([seen, tested])
        self.report.point(seen, loss, accuracy, tested)
        self.step(seen)

    def step(self, seen: int) -> None:
        """Show how far it is."""
        text = ""
        if self.points:
            text = f"loss {self.points[-1][1]:.3f}, right {self.points[-1][2]:.0%}"
        self.report("learning", seen, self.total, text)


def learn(
    path: Path,
    train: Samples,
    test: Samples,
    *,
    samples: int | None = None,
    epochs: int = 1,
    rate: float | None = None,
    batch: int = 1,
    seed: int = 0,
    on: str = "host",
    board: str = "pico",
    heap: int | None = None,
    save: Path | None = None,
    test_every: int = 0,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Let the blob ``path`` learn from ``samples`` of ``train`` (drawn by ``seed``; None: all).

    Returns what ``sprout learn --json`` writes.  ``curve`` is as ``Curve.points``; accuracies are
    fractions, sizes bytes, ``seconds`` those of learning alone; ``heap_limit`` and ``heap_peak``
    are None on the host.  ``tests`` are [samples seen, accuracy on ``test``] where ``test_every``
    samples were learned.  Raises SproutError, which also says how many bytes a heap lacks.
    """
    blob = blobs.read(path.read_bytes(), str(path))
    if not blob.flags & blobs.FLAG_LEARNS:
        raise SproutError(f"{path} learns nothing: compile it with --plan last or a larger plan.")
    rate = blob.meta.get("rate", DEFAULT_RATE) if rate is None else rate
    rate_parts(rate)  # complains
    if samples is not None:
        if samples > len(train):
            raise SproutError(
                f"--samples asks for {samples} and the training file has {len(train)}: "
                "ask for fewer."
            )
        train = train.take(sample_order(len(train), 1, seed)[:samples])
    recipe = Recipe(sample_order(len(train), epochs, seed), rate, batch, seed, test_every)
    run = learn_on_host if on == "host" else functools.partial(learn_in_micropython, board, heap)
    with report or Reporter(Console(quiet=True)) as report:
        result = run(path, train, test, recipe, report, save)
    return {
        "on": on,
        "board": None if on == "host" else board,
        "samples": len(train),
        "epochs": epochs,
        "rate": rate,
        "batch": batch,
        "seed": seed,
        **result,
        "arena_bytes": blob.arena_len,
        "trained_bytes": blob.trained_len,
        "scratch_bytes": blob.scratch_len,
        "accum_bytes": blob.accum_len if batch > 1 else 0,
        "program_bytes": blob.info["memory"]["program"],
        "native_bytes": native_bytes(board),
        "saved_activation_bytes": blob.info["memory"]["saved_activations"],
        "macs_forward": blob.info["macs"]["forward"],
        "macs_backward": blob.info["macs"]["backward"],
    }


def learn_on_host(
    path: Path, train: Samples, test: Samples, recipe: Recipe, report: Reporter, save: Path | None
) -> dict[str, Any]:
    """Run ``recipe`` on the C core in this process."""
    data = path.read_bytes()
    engine = Engine(data, accumulate=recipe.batch > 1)
    before = accuracy(engine, test, report, "before")
    mantissa, exponent = rate_parts(recipe.rate)
    backward = engine.blob.n_forward, len(engine.blob.ops)
    total = len(recipe.order)
    curve = Curve(total, report)
    loss, hits, since, seconds = 0.0, 0, 0, 0.0
    for t, i in enumerate(recipe.order):
        seen, label = t + 1, int(train.y[i])
        frame = train.frame(i)
        start = time.perf_counter()
        hits += classify(engine, frame, learn=True) == label
        rate = rate_at(mantissa, t, total), exponent
        run = engine.run_ops(*backward, LEARN, label=label, rate=rate, seed=recipe.seed, step=t)
        if recipe.batch > 1 and (seen % recipe.batch == 0 or seen == total):
            engine.apply()
        seconds += time.perf_counter() - start
        loss += run.loss_q16 / 65536
        since += 1
        tested = None
        if recipe.test_every and seen % recipe.test_every == 0 and seen < total:
            tested = accuracy(engine, test)
        if since == recipe.window or seen == total or tested is not None:
            curve.add(seen, loss / since, hits / since, tested)
            loss, hits, since = 0.0, 0, 0
        else:
            curve.step(seen)
    after = accuracy(engine, test, report, "after")
    if save:
        learned = checkpoints.of(data, engine.trained.tobytes(), total, recipe.seed)
        checkpoints.write(save, learned)
    return {
        "accuracy_before": before,
        "accuracy_after": after,
        "curve": curve.points,
        "tests": curve.tests,
        "seconds": seconds,
        "heap_limit": None,
        "heap_peak": None,
        "digest": engine.digest(),
    }


def learn_in_micropython(
    board: str,
    heap: int | None,
    path: Path,
    train: Samples,
    test: Samples,
    recipe: Recipe,
    report: Reporter,
    save: Path | None,
) -> dict[str, Any]:
    """Run ``recipe`` on the simulated board."""
    total = len(recipe.order)
    curve = Curve(total, report)

    def on_progress(line: dict[str, Any]) -> None:
        if line["kind"] == "before":
            report("before", len(test), len(test), f"right {line['accuracy']:.1%}")
            report("learning", 0, total)
        elif line["kind"] == "progress":
            curve.add(line["step"], line["loss"], line["accuracy"], line.get("test_accuracy"))
            if line["step"] == total:
                report("after", 0, len(test))
        elif line["kind"] == "result":
            report("after", len(test), len(test), f"right {line['accuracy_after']:.1%}")

    report("before", 0, len(test))
    found = learn_on_board(
        path,
        train.frames(),
        train.y,
        recipe.order,
        test.frames(),
        test.y,
        recipe.rate,
        batch=recipe.batch,
        seed=recipe.seed,
        board=board,
        heap=heap,
        every=recipe.window,
        test_every=recipe.test_every,
        save=save,
        on_progress=on_progress,
    )
    wanted = ("accuracy_before", "accuracy_after", "seconds", "heap_limit", "heap_peak", "digest")
    return {key: found[key] for key in wanted} | {"curve": curve.points, "tests": curve.tests}


def classify(engine: Engine, frame: np.ndarray, learn: bool = False) -> int:
    """The class with the largest logit, among those in use."""
    engine.set_input(frame)
    engine.forward(learn)
    return int(np.argmax(engine.tensor(engine.blob.logits).ravel()[: engine.blob.n_classes]))


def accuracy(
    engine: Engine, samples: Samples, report: Reporter | None = None, phase: str = ""
) -> float:
    """The fraction of samples that are classified as their label says."""
    hits = 0
    for n, (frame, label) in enumerate(samples, 1):
        hits += classify(engine, frame) == label
        if report:
            report(phase, n, len(samples), f"right {hits / n:.1%}")
    return hits / len(samples)


def summary(result: dict[str, Any]) -> str:
    """The results in two lines."""
    seen = result["samples"] * result["epochs"]
    ms = result["seconds"] / seen * 1000
    lines = [
        f"accuracy {result['accuracy_before']:.1%} -> {result['accuracy_after']:.1%} "
        f"after {seen:,} samples in {result['seconds']:.1f} s ({ms:.1f} ms each)",
        f"RAM: arena {result['arena_bytes']:,} B, trained {result['trained_bytes']:,} B, "
        f"scratch {result['scratch_bytes']:,} B",
    ]
    if result["heap_limit"]:
        lines[1] += f"; heap {result['heap_peak']:,} B of {result['heap_limit']:,} B at its peak"
    return "\n".join(lines)
