"""Learning with the frozen part of a network run once for each picture.

The operators before the first trained one give the same bytes for a picture every time, so each
picture runs through them once and what lives in the arena at that point is kept: a step then costs
only the rest.  The results are those of whole steps, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .blob import Blob
from .engine import LEARN, Engine
from .latent import Span, boundary, size
from .places import device_module
from .schedule import rate_at, rate_parts

Array = np.ndarray


Reservoir: Any = device_module("reservoir").Reservoir
"""Which samples a replay buffer keeps: the board's own policy."""


@dataclass
class Replay:
    """Pictures after the frozen operators of a blob.

    ``data``: uint8 [n, bytes], what the arena then holds at ``spans``.
    """

    cut: int
    spans: list[Span]
    data: Array

    @staticmethod
    def of(
        blob: Blob,
        frames: Sequence[Array] | Array,
        report: Callable[[int], Any] | None = None,
        point: tuple[int, list[Span]] | None = None,
    ) -> Replay:
        """Run pictures, as ``Engine.set_input`` takes them, through the frozen operators.

        ``report(done)`` is called after each; ``point`` is one of ``latent.points``, None for the
        boundary.
        """
        cut, spans = point or boundary(blob)
        engine = Engine(blob.to_bytes())
        data = np.empty((len(frames), size(spans)), np.uint8)
        for i, frame in enumerate(frames):
            engine.set_input(frame)
            engine.run_ops(0, cut)
            data[i] = np.concatenate([engine.arena[at : at + n] for _, at, n in spans])
            if report:
                report(i + 1)
        return Replay(cut, spans, data)

    def __len__(self) -> int:
        return len(self.data)

    def on(self, blob: Blob) -> Replay | None:
        """The same for another plan of the same network, None if its frozen part differs."""
        cut, spans = boundary(blob)
        names = [name for name, _, _ in spans]
        same = [(name, n) for name, _, n in spans] == [(name, n) for name, _, n in self.spans]
        if not same or len(set(names)) < len(names):
            return None
        return Replay(cut, spans, self.data)

    def put(self, arena: Array, i: int) -> None:
        """Write picture i into an arena."""
        at = 0
        for _, offset, length in self.spans:
            arena[offset : offset + length] = self.data[i, at : at + length]
            at += length


def learn(
    engine: Engine,
    inputs: Replay,
    labels: Array,
    order: Iterable[int],
    rate: float,
    seed: int,
    batch: int = 1,
    after: Callable[[int], Any] | None = None,
    *,
    decay: bool = True,
    step: int = 0,
) -> Array:
    """Learn from pictures in ``order``, the rate falling from ``rate`` to zero; return the loss
    (nats) before each step, float64.

    ``after`` is called with the number of samples seen.  Without ``decay`` the rate stays;
    ``step`` steps were made before these.
    """
    order = list(order)
    mantissa, exponent = rate_parts(rate)
    losses = np.empty(len(order))
    for t, i in enumerate(order):
        inputs.put(engine.arena, i)
        run = engine.run_ops(
            inputs.cut, len(engine.blob.ops), LEARN, label=int(labels[i]),
            rate=(rate_at(mantissa, t, len(order)) if decay else mantissa, exponent), seed=seed,
            step=step + t,
        )  # fmt: skip
        losses[t] = run.loss_q16 / 65536
        if batch > 1 and (t + 1) % batch == 0:
            engine.apply()
        if after:
            after(t + 1)
    return losses


def logits(engine: Engine, inputs: Replay, numbers: Iterable[int] | None = None) -> Array:
    """Return the logits (float64 [n, classes in use]) of some pictures, or of all."""
    about = engine.blob.meta["logits"]
    rows = []
    for i in range(len(inputs)) if numbers is None else numbers:
        inputs.put(engine.arena, i)
        engine.run_ops(inputs.cut, engine.blob.n_forward)
        rows.append(engine.tensor(engine.blob.logits).ravel()[: engine.blob.n_classes].copy())
    return (np.array(rows, float) - about["zero_point"]) * about["scale"]


def fingerprint(blob: Blob) -> str:
    """Return a digest of what the blob computes: losses and logits of 16 steps.

    Code that changes without changing the arithmetic keeps it.
    """
    engine = Engine(blob.to_bytes())
    rng = np.random.default_rng(0)
    shape = blob.tensors[blob.input].shape
    digest = hashlib.sha256()
    for t in range(16):
        picture = rng.integers(0, 256, shape, np.uint8)
        engine.step(picture, t % blob.n_classes, (3000, -20), 1, t)
        engine.set_input(picture)
        found = engine.forward().ravel()[: blob.n_classes]
        digest.update(found.tobytes() + repr(engine.run.loss_q16).encode())
    return digest.hexdigest()[:16]
