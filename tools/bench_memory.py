"""What a board needs to train three networks, measured in MicroPython (``make bench-memory``).

Each network is compiled with its frames by rows (``--rows``) and with a whole frame in RAM, and
learns from eight samples inside heaps of different sizes: the least one that is enough is found by
halving, to 256 bytes.  That heap holds everything, native code and Python objects included;
beside it stands what ``sprout inspect`` counts (arena, trained parameters, scratch, tables) and
the native code of a Raspberry Pi Pico.  What is left are Python's objects, with 64-bit words twice
as large as a board's, and what the heap loses between blocks.  Needs ../shared.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import Any

import bench_common as common
import numpy as np
from sprout import compile as compiler
from sprout.board import sim
from sprout.footprint import measured
from sprout.graph import SproutError

PLANS = {
    "mcunet-5fps.pkl": common.PLAN,
    "proxyless-w0.3.pkl": "b34,27:1/2,30:1/2,33:1/4,36:1/4,39:1/2,42:1/2,45:1/8,51:1/8,54:1/8",
    "mlperf_vww_96_int8.tflite": "b12,21:1/2,22:1/4,24:1",
}
STEPS, RATE, UNIT = 8, 0.002, 256


def least_heap(file: pathlib.Path, shape: tuple[int, ...], total: int) -> int:
    """Return the bytes of the smallest heap, a multiple of ``UNIT``, in which a blob learns."""
    rng = np.random.default_rng(4)
    x = rng.integers(0, 256, (STEPS, *shape)).astype(np.uint8)
    y, order = np.arange(STEPS) % 2, np.arange(STEPS, dtype=np.uint32)
    low, high = total // UNIT, (total + (128 << 10)) // UNIT  # too little, and enough
    while high - low > 1:
        middle = (low + high) // 2
        try:
            sim.learn_on_board(file, x, y, order, x[:2], y[:2], RATE, heap=middle * UNIT)
        except SproutError:
            low = middle
        else:
            high = middle
    return high * UNIT


def measure(name: str, plan: str) -> list[dict[str, Any]]:
    """Return a row for frames by rows and one for a whole frame."""
    path = common.SHARED / "models" / name
    classes = ["a", "b"] if path.suffix == ".pkl" else None
    rows = []
    for by_rows in (True, False):
        blob = compiler.compile_model(path, plan, classes, rows=by_rows)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "net.sprout")
            file.write_bytes(blob.to_bytes())
            total = measured(blob).ram
            heap = least_heap(file, blob.tensors[blob.input].shape, total)
        native = sim.native_bytes()
        rows.append({
            "model": name, "plan": plan, "by_rows": by_rows, "total": total, "heap": heap,
            "native": native, "rest": heap - total - native,
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and write."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if not common.MODEL.exists():
        raise SystemExit(f"{common.MODEL} is missing: this bench measures models of ../shared.")
    rows = [row for name, plan in PLANS.items() for row in measure(name, plan)]
    lines = [
        [
            f"{pathlib.Path(row['model']).stem}, {'by rows' if row['by_rows'] else 'whole frame'}",
            *(f"{row[key]:,}" for key in ("total", "native", "rest", "heap")),
        ]
        for row in rows
    ]
    header = ["bytes", "arena, trained, scratch, tables", "native code", "the rest", "least heap"]
    common.print_table(header, lines)
    common.write_json("memory", {"rows": rows})


if __name__ == "__main__":
    main()
