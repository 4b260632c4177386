"""A training step on the host engine against PyTorch (``make bench-host``).

mcunet-5fps, batch 1: the C core with the 49 KB plan against float32 PyTorch with full
backpropagation (every weight and bias) and, to be fair, with the same sparse plan; whole steps
from the picture to the updated parameters, taken in turns in one process.  Memory is measured in
a process of its own for each.  Needs PyTorch (requirements-train.txt) and ../shared.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import bench_common as common
import numpy as np
import torch
from bench_common import PLAN
from sprout.compile import input_table
from sprout.engine import Engine
from torch_net import FloatNet

CLASSES = ("no_person", "person")
RATE = 0.002
Step = Callable[[], object]


def integer_step(plan: str) -> tuple[Step, Engine]:
    """Return a function that makes one step on the C core."""
    engine = Engine(common.compiled(CLASSES, 0, plan).to_bytes())
    picture = pictures()[0]
    count = iter(range(1 << 30))

    def step() -> None:
        t = next(count)
        engine.step(picture, t % 2, (2048, -20), 0, t)

    return step, engine


def float_step(plan: str) -> Step:
    """Return a function that makes one step in PyTorch, the frozen operators included."""
    net = FloatNet([common.network(CLASSES, 0, plan)])
    table = input_table(net.graph)
    assert table is not None
    picture = pictures()
    rates = torch.full((1, 1), RATE)
    count = iter(range(1 << 30))

    def step() -> None:
        labels = torch.tensor([[next(count) % 2]])
        net.step([x[None] for x in net.prefix(picture, table)], labels, rates, len(CLASSES))

    return step


def pictures() -> np.ndarray:
    """Return one picture, uint8 [1, h, w, 3]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1, common.SIZE, common.SIZE, 3), np.uint8)


SIDES: dict[str, tuple[str, str, int]] = {
    "Sprout's C core, 49 KB plan": ("int", PLAN, 1),
    "PyTorch, everything, 1 thread": ("float", "full", 1),
    "PyTorch, everything, all threads": ("float", "full", os.cpu_count() or 1),
    "PyTorch, 49 KB plan, 1 thread": ("float", PLAN, 1),
}


def make_step(kind: str, plan: str) -> Step:
    """Return the step function of a side."""
    return integer_step(plan)[0] if kind == "int" else float_step(plan)


def times(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return (ms, ms of processor time) per step of every side, taken in turns."""
    steps = {name: make_step(kind, plan) for name, (kind, plan, _) in SIDES.items()}
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


def resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory_child(name: str) -> None:
    """Print, as JSON, how far this process grows while it makes a network and 20 steps."""
    kind, plan, threads = SIDES[name]
    torch.set_num_threads(threads)
    # What only loading and compiling costs is there before, and freed, in both cases.
    common.network(CLASSES, 0, plan)
    blob = common.compiled(CLASSES, 0, plan) if kind == "int" else None
    torch.ones(256, 256) @ torch.ones(256, 256)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again from here
    step = make_step(kind, plan)
    for _ in range(20):
        step()
    result = {"growth": max(resident("VmHWM") - before, 0)}
    if blob is not None:
        result["buffers"] = blob.arena_len + blob.trained_len + blob.scratch_len
        result["blob"] = len(blob.to_bytes())
    print(json.dumps(result))


def memory(name: str) -> dict[str, int]:
    """Return what ``memory_child`` measures in a fresh process."""
    run = subprocess.run(
        [sys.executable, __file__, "--memory", name], check=True, capture_output=True, text=True
    )
    result: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        memory_child(args.memory)
        return
    results: dict[str, dict[str, Any]] = {}
    found = times(args.rounds)
    medians = {
        name: [statistics.median(v) for v in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    ours = next(iter(medians.values()))
    lines = []
    for name, (wall, busy) in medians.items():
        used = memory(name)
        ratios = {"ratio": wall / ours[0], "processor_ratio": busy / ours[1]}
        results[name] = {"ms": wall, "processor_ms": busy, **ratios, **used}
        size = used.get("buffers", 0) + used.get("blob", 0) or used["growth"]
        times_ours = [f"{r:.1f}" for r in ratios.values()]
        sizes = [f"{n / 2**20:.1f}" for n in (size, used["growth"])]
        lines.append([name, f"{wall:.1f}", f"{busy:.1f}", *times_ours, *sizes])
    print(f"\nOne training step of mcunet-5fps, batch 1; medians of {args.rounds}\n")
    header = ["step", "ms", "CPU ms", "x ours", "x ours (CPU)", "memory MiB", "process growth MiB"]
    common.print_table(header, lines)
    ours_used = next(iter(results.values()))
    print(
        f"\nMemory of ours: arena, trained parameters and scratch {ours_used['buffers']:,} B, "
        f"blob {ours_used['blob']:,} B; of PyTorch: growth of its process."
    )
    common.write_json("host", {"plan": PLAN, "rounds": args.rounds, "results": results})


if __name__ == "__main__":
    main()
