"""Lifelong learning, measured as the field does: tasks one after another, each sample seen once.

A stream is T tasks.  ``R[i][j]`` is the accuracy in percent on the test samples of task j once
task i has been learned; in a class-incremental stream a class counts from its first task on, so
that R has only j <= i, elsewhere it has all j.  Then, with T = len(R):

- average accuracy: mean of R[T-1][j] over all j (Lopez-Paz and Ranzato, "Gradient Episodic Memory
  for Continual Learning", 2017, section 2);
- backward transfer: mean over j < T-1 of R[T-1][j] - R[j][j] (the same); negative where what comes
  later harms;
- forgetting: mean over j < T-1 of max over i < T-1 of R[i][j], less R[T-1][j] (Chaudhry et al.,
  "Riemannian Walk for Incremental Learning", 2018, section 3.1).

The arithmetic is the board's, and so is what is kept and rehearsed: ``learn`` gives the bytes of
``net.learn`` with ``net.replay``, and ``learn_on_board`` shows it in MicroPython.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .blob import Blob
from .board import sim
from .engine import LEARN, Engine
from .replay import Replay, Reservoir
from .schedule import rate_parts

Array = np.ndarray
Matrix = Sequence[Sequence[float]]

BESIDE = 8
"""Bytes of RAM or flash that a kept sample takes beside its record: device/sprout/replay.py."""


@dataclass
class Stream:
    """``tasks``: for each the numbers of its samples, in the order they come.  ``tests``: numbers
    of its test samples.  ``labels``: class of every sample, int [n].  ``classes``: how many are in
    use from the beginning of each task on."""

    tasks: list[Array]
    tests: list[Array]
    labels: Array
    classes: list[int]

    @property
    def incremental(self) -> bool:
        """Whether classes are added on the way."""
        return self.classes[0] < self.classes[-1]

    def __len__(self) -> int:
        return sum(map(len, self.tasks))


@dataclass(frozen=True)
class Method:
    """How a board learns: at one ``rate``, with ``rehearse`` kept samples after each new one, from
    a replay buffer of ``slots`` samples.

    New samples are learned at ``new`` times the rate: kept ones are soon known by heart, have
    small gradients, and lose against new ones at the same rate.  On the board that is
    ``net.replay(size, per_sample=0)`` and then, for each sample, ``net.learn(x, label, rate=new *
    net.rate)`` and ``net.rehearse(rehearse)``.
    """

    rate: float
    rehearse: int = 0
    slots: int = 0
    new: float = 1.0


def average_accuracy(matrix: Matrix) -> float:
    """Percent; see above, as for the other two."""
    return float(np.mean(matrix[-1]))


def backward_transfer(matrix: Matrix) -> float:
    """Points; 0 for a single task."""
    last = matrix[-1]
    return _mean(last[j] - row[j] for j, row in enumerate(matrix[:-1]))


def forgetting(matrix: Matrix) -> float:
    """Points; 0 for a single task."""
    last, before = matrix[-1], matrix[:-1]
    best = [max(row[j] for row in before if j < len(row)) for j in range(len(before))]
    return _mean(top - last[j] for j, top in enumerate(best))


def _mean(values: Iterable[float]) -> float:
    some = list(values)
    return sum(some) / len(some) if some else 0.0


def slots(size: int, record: int) -> int:
    """Samples of ``record`` bytes that a replay buffer of ``size`` bytes holds."""
    return size // (record + BESIDE)


class Learner:
    """A net and its steps."""

    def __init__(self, blob: Blob, inputs: Replay, labels: Array, rate: float, seed: int) -> None:
        self.engine, self.inputs, self.labels = Engine(blob.to_bytes()), inputs, labels
        self.rate, self.seed, self.steps = rate_parts(rate), seed, 0
        self.classes = blob.n_classes

    def step(self, i: int, rate: tuple[int, int] | None = None) -> None:
        """Learn from sample i, at the parts of a rate of its own or at the usual one."""
        self.inputs.put(self.engine.arena, i)
        self.engine.run_ops(
            self.inputs.cut, len(self.engine.blob.ops), LEARN, label=int(self.labels[i]),
            rate=rate or self.rate, seed=self.seed, step=self.steps, n_classes=self.classes,
        )  # fmt: skip
        self.steps += 1

    def accuracy(self, numbers: Array) -> float:
        """Percent of these samples that are recognised among the classes in use."""
        engine, right = self.engine, 0
        for i in numbers:
            self.inputs.put(engine.arena, i)
            engine.run_ops(self.inputs.cut, engine.blob.n_forward)
            logits = engine.tensor(engine.blob.logits).ravel()[: self.classes]
            right += int(logits.argmax()) == self.labels[i]
        return 100.0 * right / len(numbers)

    def result(self, matrix: Matrix) -> dict[str, Any]:
        """What ``learn`` and ``joint`` return."""
        return {"matrix": matrix, "steps": self.steps, "digest": self.engine.digest()}


def learn(
    blob: Blob, inputs: Replay, stream: Stream, method: Method, seed: int, test: bool = True
) -> dict[str, Any]:
    """Learn a stream, each sample once; return ``matrix`` (R), ``steps``, ``digest`` of the
    trained parameters and ``kept`` samples of each class at the end.

    ``inputs`` are all samples after the frozen operators, ``seed`` that of the rounding and
    of what is kept.  Without ``test`` the matrix is empty.
    """
    net = Learner(blob, inputs, stream.labels, method.rate, seed)
    new = rate_parts(method.rate * method.new)
    reservoir = Reservoir(method.slots, seed)
    held = np.zeros(method.slots, np.int64)
    matrix: list[list[float]] = []
    for t, numbers in enumerate(stream.tasks):
        net.classes = stream.classes[t]
        introduce(reservoir, net.classes)
        for i in numbers:
            slot = reservoir.offer(int(stream.labels[i]))
            if slot is not None:
                held[slot] = i
            net.step(i, new)
            for _ in range(method.rehearse if reservoir.used else 0):
                net.step(held[reservoir.pick()])
        if test:
            known = stream.tests[: t + 1] if stream.incremental else stream.tests
            matrix.append([net.accuracy(part) for part in known])
    return net.result(matrix) | {"kept": list(reservoir.kept)}


def introduce(reservoir: Any, classes: int) -> None:
    """Have the reservoir know so many classes, as the board does when one is added."""
    state = reservoir.state()
    state.extend(array("i", [0] * (1 + classes - len(state))))
    reservoir.restore(array("h", reservoir.labels), state)


def joint(
    blob: Blob, inputs: Replay, stream: Stream, rate: float, steps: int, seed: int
) -> dict[str, Any]:
    """Learn the samples of all tasks mixed, pass after pass, with all classes in use from the
    beginning, for ``steps`` steps; return the same, with one row of accuracies by task."""
    net = Learner(blob, inputs, stream.labels, rate, seed)
    net.classes = stream.classes[-1]
    everything = np.concatenate(stream.tasks)
    rng = np.random.default_rng([seed, 2])
    while net.steps < steps:
        for i in rng.permutation(everything)[: steps - net.steps]:
            net.step(i)
    return net.result([[net.accuracy(part) for part in stream.tests]])


def learn_on_board(
    blob: Path,
    frames: Iterable[Array],
    stream: Stream,
    method: Method,
    seed: int,
    *,
    size: int,
    form: str = "latent",
    board: str = "pico",
    heap: int | None = None,
) -> dict[str, Any]:
    """Do inside MicroPython what ``learn`` does; return ``digest``, ``steps``, ``kept`` and
    ``slots``.

    ``frames``: uint8 pixels of the stream's samples, in its order.  ``size`` bytes of replay in
    ``form`` take the place of ``method.slots``.  The blob's first classes are in use at first.
    """
    order = np.concatenate(stream.tasks)
    config = {
        "blob": sim.on_flash(blob),
        "rate": method.rate,
        "new_rate": method.rate * method.new,
        "seed": seed,
        "size": size,
        "form": form,
        "rehearse": method.rehearse,
        "tasks": [len(task) for task in stream.tasks],
        "classes": stream.classes,
    }
    with tempfile.TemporaryDirectory(prefix="sprout-") as name:
        sim.put(Path(name), {
            sim.on_flash(blob): blob,
            "x.bin": frames,
            "y.bin": stream.labels[order].astype("<u2").tobytes(),
        })  # fmt: skip
        return sim.run_script("lifelong", Path(name), config, board, heap)[-1]
