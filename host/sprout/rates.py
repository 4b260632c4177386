"""The learning rate that a blob carries, found on the user's samples: ``sprout compile --data``.

A board learns from each sample once, as it comes, at one rate, and never knows whether it was the
last; samples of a class often come one after another.  So a rate is tried on what a seed does not
hold out, at that rate throughout: in a first pass in random order, then in further passes, at
least one and until ``STEPS`` steps are done, in bursts of ``BURST`` samples of one class.  Its
score is the share in percent of the held-out samples that are wrong, at the end of the first pass
and at ``LOOKS`` points of the others, each right after a burst: a rate that learns fast and then
forgets, or runs away, loses there.  (Losses would not do: a few hundred samples learned again and
again make a net too sure of itself, which no board's stream does.)  The smallest rate of ``GRID``
wins whose score is within a standard error, or a point, of the best one: a few hundred answers
resolve no more.

Samples, seeds and parts held out are those of ``analyze``; results are kept beside the analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .analyze import Bench, Task, spread, standard_error
from .engine import Engine
from .replay import Replay, learn, logits
from .schedule import sample_order

Array = np.ndarray

GRID = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
BURST = 8
LOOKS = 4
STEPS = 1000
POINT = 1.0


POWERS, LEAST_POWER, MOST_POWER = (-2, -1, 0, 1), -7, 4
"""Of two, times a first guess of a rate: those that ``climb`` tries first, and its bounds."""


def climb(
    score: Callable[[Sequence[int]], Sequence[float]], powers: Sequence[int] = POWERS
) -> tuple[int, float]:
    """Return the power of two with the greatest score, and the score: of ``powers``, and of those
    beside the best one as long as that makes it better.  The smaller one wins a tie.

    ``score`` gets several powers at a time.
    """
    found: dict[int, float] = {}
    todo = list(powers)
    while todo:
        found |= zip(todo, score(todo), strict=True)
        best = max(sorted(found), key=lambda power: found[power])
        beside = (best - 1, best + 1)
        todo = [p for p in beside if p not in found and LEAST_POWER <= p <= MOST_POWER]
    return best, found[best]


@dataclass
class Found:
    """``rate`` and what it was chosen by: scores [rates of the grid, seeds]."""

    rate: float
    scores: Array

    def __str__(self) -> str:
        mean = self.scores.mean(1)
        line = ", ".join(f"{r:g}: {s:.1f}" for r, s in zip(GRID, mean, strict=True))
        return f"learning rate {self.rate:g}, by the % of held-out samples that are wrong ({line})"


def find(bench: Bench, plan: str) -> Found:
    """Return the rate for a plan.  Raises SproutError for a plan that cannot learn."""
    seeds = range(bench.task.settings.seeds)
    keys = [
        {**bench.key(plan, seed), "rates": GRID, "protocol": ["wrong", BURST, LOOKS, STEPS]}
        for seed in seeds
    ]
    found = {seed: bench.cache.get(key) for seed, key in zip(seeds, keys, strict=True)}
    work = [(bench.task, plan, seed) for seed in seeds if found[seed] is None]
    for done, (i, scores) in enumerate(spread(work, measure, bench.scheduler) if work else (), 1):
        seed = work[i][2]
        result = found[seed] = {"scores": scores}
        bench.cache.put(keys[seed], result)
        if bench.report:
            bench.report("rates", done, len(work))
    return choose(np.array([(found[seed] or {})["scores"] for seed in seeds]).T)


def choose(scores: Array) -> Found:
    """Return the rate for scores [rates of the grid, seeds].

    The standard error is that of the differences to the best rate, seed by seed.
    """
    best = int(scores.mean(1).argmin())
    for rate, row in zip(GRID, scores, strict=True):
        apart = row - scores[best]
        if apart.mean() <= max(standard_error(apart) or 0.0, POINT):
            return Found(rate, scores)
    raise AssertionError("the best is within its own error")


def measure(task: Task, plan: str, seed: int) -> list[float]:
    """Return the score of each rate of the grid."""
    blob = task.blob(plan, seed)
    inputs = Replay.of(blob, task.frames)
    learned, held_out = task.split(seed)
    first = learned[sample_order(len(learned), 1, seed)]
    passes = max(1, -(-STEPS // len(first)) - 1)
    others = [bursts(task.labels, first, seed, turn) for turn in range(passes)]
    looks = np.array_split(np.concatenate(others), LOOKS)
    scores = []
    for rate in GRID:
        engine, step, seen = Engine(blob.to_bytes()), 0, []
        for part in (first, *looks):
            learn(engine, inputs, task.labels, part, rate, seed, decay=False, step=step)
            step += len(part)
            found = logits(engine, inputs, held_out).argmax(1)
            seen.append(100.0 * np.mean(found != task.labels[held_out]))
        scores.append(float(np.mean(seen)))
    return scores


def bursts(labels: Array, order: Sequence[int] | Array, seed: int, turn: int = 0) -> Array:
    """Return the samples of ``order`` by bursts of one class, which come in an order of the seed
    and the pass."""
    order = np.asarray(order)
    of = labels[order]
    parts = [
        some[i : i + BURST]
        for some in (order[of == label] for label in np.unique(of))
        for i in range(0, len(some), BURST)
    ]
    mixed = np.random.default_rng([seed, turn]).permutation(len(parts))
    return np.concatenate([parts[i] for i in mixed])
