"""Plain inference for ``sprout run``: here through the C core, or in MicroPython."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import blob as blobs
from .engine import Engine
from .progress import Reporter


def run(
    path: Path, x: np.ndarray, *, on: str, board: str, heap: int | None, report: Reporter
) -> np.ndarray:
    """Return the outputs, int8 [N, h, w, c], of the blob ``path`` for inputs int8 [N, h, w, c]."""
    data = path.read_bytes()
    blob = blobs.read(data, str(path))
    shape = blob.tensors[blob.output].shape
    if on == "micropython":
        from .board.sim import run_on_board

        report("predicting", 0, len(x))
        if blob.takes_rows:
            x = blob.pixels(x)
        y = run_on_board(
            path,
            x,
            board,
            heap,
            on_progress=lambda line: report("predicting", line["samples"], len(x)),
        )
        return y.reshape(-1, *shape)
    engine = Engine(data)
    result = np.empty((len(x), *shape), np.int8)
    for n, sample in enumerate(x):
        engine.set_input(sample)
        result[n] = engine.forward().reshape(shape)
        report("predicting", n + 1, len(x))
    return result
