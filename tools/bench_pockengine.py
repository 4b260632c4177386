"""A training step on this machine against PyTorch's full fine-tuning (``make bench-pockengine``).

mcunet-5fps, batch 1, whole steps from the picture to the updated parameters: the C core with the
49 KB plan of the paper, float32 PyTorch with every weight and bias learning and, to be fair, with
the same sparse plan.  Steps are taken in turns in one process and timed.  Then each side starts in
a process of its own and makes 100 steps: how long until the first is done, how long for all, how
much memory the process has at most, and by how much it grows from where code and libraries are
loaded.  Needs PyTorch (requirements-train.txt) and ../shared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench_common as common
import torch
from bench_common import CLASSES, PLAN
from pockengine_child import Step, float_step, integer_step
from sprout.blob import Blob
from sprout.footprint import measured

SIDES: dict[str, tuple[str, str, int]] = {
    "Sprout's C core, 49 KB plan": ("int", PLAN, 1),
    "PyTorch, everything, 1 thread": ("float", "full", 1),
    "PyTorch, everything, all threads": ("float", "full", os.cpu_count() or 1),
    "PyTorch, 49 KB plan, 1 thread": ("float", PLAN, 1),
}
STEPS = 100
"""Steps of a process that is started for them."""


def times(rounds: int, blob: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (ms, ms of processor time) per step of every side, taken in turns."""
    steps: dict[str, Step] = {}
    for name, (kind, plan, threads) in SIDES.items():
        steps[name] = integer_step(str(blob)) if kind == "int" else float_step(plan, threads)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for turn in range(rounds + 3):
        for name, (_, _, threads) in SIDES.items():
            torch.set_num_threads(threads)
            steps[name]()  # brings code and data back into the caches
            start, busy = time.perf_counter(), time.process_time()
            steps[name]()
            wall, busy = time.perf_counter() - start, time.process_time() - busy
            if turn >= 3:
                found[name].append((wall * 1000, busy * 1000))
    return found


def started(name: str, blob: Path) -> dict[str, float]:
    """Return what a side takes in a process of its own, see ``pockengine_child``."""
    kind, plan, threads = SIDES[name]
    child = Path(__file__).with_name("pockengine_child.py")
    what = str(blob) if kind == "int" else plan
    arguments = [sys.executable, child, kind, what, threads, STEPS, time.time()]
    run = subprocess.run([str(a) for a in arguments], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    path = common.BUILD / "bench-pockengine.sprout"
    blob: Blob = common.compiled(CLASSES["person"], 0, PLAN)
    path.write_bytes(blob.to_bytes())
    results: dict[str, dict[str, Any]] = {}
    for name, rows in times(args.rounds, path).items():
        wall, busy = (statistics.median(values) for values in zip(*rows, strict=True))
        results[name] = {"ms": wall, "processor_ms": busy, **started(name, path)}
    ours, theirs = list(results.values())[:2]
    ours["ram"], ours["flash"] = measured(blob).ram, path.stat().st_size
    lines = []
    for name, r in results.items():
        sizes = [f"{r[key] / 2**20:.1f}" for key in ("growth", "process")]
        ratio = f"{r['ms'] / ours['ms']:.1f}"
        lines.append([
            name, f"{r['ms']:.1f}", f"{r['processor_ms']:.1f}", ratio, f"{r['first']:.2f}",
            f"{r['whole']:.2f}", *sizes,
        ])  # fmt: skip
    print(f"\nmcunet-5fps, batch 1: a step (median of {args.rounds}), and a process of its own\n")
    common.print_table(
        ["", "step, ms", "CPU ms", "x ours", "first step after, s", f"{STEPS} steps, s",
         "grows by, MiB", "process, MiB"],
        lines,
    )  # fmt: skip
    ratios = {
        "a step": theirs["ms"] / ours["ms"],
        f"{STEPS} steps with start-up": theirs["whole"] / ours["whole"],
        "memory: its growth, our arena, trained parameters, scratch and tables":
            theirs["growth"] / ours["ram"],
        "memory: growth of both processes, our frozen weights included":
            theirs["growth"] / max(ours["growth"], 1),
        "memory: whole processes, Python and libraries included":
            theirs["process"] / ours["process"],
        "memory: its whole process, our RAM on a board": theirs["process"] / ours["ram"],
    }  # fmt: skip
    print(f"\nOf ours, {ours['ram']:,} B are RAM on a board and {ours['flash']:,} B flash.")
    print(
        "Times that full fine-tuning with one thread takes (aims: 20 in time, 1,000 in memory)\n"
    )
    for what, ratio in ratios.items():
        print(f"  {ratio:8.1f}  {what}")
    common.write_json(
        "pockengine",
        {"plan": PLAN, "rounds": args.rounds, "results": results, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
