"""A million learning steps in one MicroPython process (``make bench-steps``).

A small net (tests/nets.py, 26 208 multiplications a step) learns in MicroPython with the heap of a
Raspberry Pi Pico.  After every thousand steps, garbage collected, the free memory must be what it
was after the first hundred, and the parameters in the end the host's, bit for bit.  What a step
allocates is counted with the collector off.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import bench_common as common
import numpy as np

sys.path.append(str(common.ROOT / "tests"))
from nets import residual_net  # noqa: E402
from sprout import compile as compiler  # noqa: E402
from sprout.board import sim  # noqa: E402
from sprout.engine import Engine  # noqa: E402
from sprout.frontends.head import replace_head  # noqa: E402
from sprout.schedule import rate_parts  # noqa: E402

CLASSES = ("cup", "pen", "key")
RATE, SEED = 0.002, 5
SAMPLES = 24
BYTES_PER_STEP = 32
"""What learn() allocates on 64-bit words: the loss, a float; with 32-bit words it is 16."""

PROGRAM = """
import gc, json, sprout, time
net = sprout.load("net.sprout")
net.rate, net.seed = RATE, SEED
with open("x.bin", "rb") as f:
    x = [f.read(192) for _ in range(SAMPLES)]
def learn(first, n):
    for t in range(first, first + n):
        net.learn(x[t % SAMPLES], t % 3)
def free():
    gc.collect()
    return gc.mem_free()
def allocated(first, n):
    gc.collect()
    gc.disable()
    before = gc.mem_alloc()
    learn(first, n)
    n = gc.mem_alloc() - before
    gc.enable()
    return n
def main():
    learn(0, 100)
    first = least = most = free()
    one = allocated(100, 1)  # that of the loop is in both
    others = allocated(101, 900) - one
    learn(1001, 999)
    us = began = 0
    for block in range(2, STEPS // 1000):
        began = time.ticks_us()
        learn(1000 * block, 1000)
        us += time.ticks_diff(time.ticks_us(), began)
        last = free()
        least = min(least, last)
        most = max(most, last)
        if block % 10 == 0:
            print(net.step)
    print(json.dumps({
        "steps": net.step, "first": first, "last": last, "least": least, "most": most,
        "bytes": others / 899, "digest": net.digest(), "us": us / (STEPS - 2000),
        "history": list(net.history),
    }))
main()
"""


def blob_and_samples() -> tuple[bytes, np.ndarray]:
    """Return the net, everything of which learns, and its samples, uint8 [24, 8, 8, 3]."""
    blob = compiler.compile_graph(replace_head(residual_net(), CLASSES), "full")
    x = np.random.default_rng(1).integers(0, 256, (SAMPLES, 8, 8, 3), np.uint8)
    x[np.arange(SAMPLES) % 3 == 1] //= 3  # so that there is something to learn
    return blob.to_bytes(), x


def on_board(blob: bytes, x: np.ndarray, steps: int) -> dict[str, Any]:
    """Learn ``steps`` times in MicroPython; return what it measured.

    steps (a multiple of 1000, 3000 or more), first, last, least and most (bytes free after 100
    steps, at the end, ever), bytes (allocated a step), digest, us (a step), history.
    """
    names = {"RATE": RATE, "SEED": SEED, "SAMPLES": SAMPLES, "STEPS": steps}
    program = "".join(f"{name} = {value}\n" for name, value in names.items()) + PROGRAM
    progress = common.Progress("MicroPython", steps)
    with tempfile.TemporaryDirectory(prefix="sprout-") as name:
        folder = pathlib.Path(name)
        sim.put(folder, {"net.sprout": blob, "x.bin": x, "main.py": program.encode()})
        command, environment = sim.command("pico")
        with subprocess.Popen(
            [*command, "main.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            result: dict[str, Any] = {}
            for line in process.stdout:
                if line.startswith("{"):
                    result = json.loads(line)
                else:
                    progress.update(int(line))
    progress.close()
    if process.returncode or not result:
        sys.exit(f"bench_steps.py: MicroPython ended with status {process.returncode}.")
    return result


def on_host(blob: bytes, x: np.ndarray, steps: int) -> str:
    """Learn the same on the host; return the digest."""
    engine, parts = Engine(blob), rate_parts(RATE)
    progress = common.Progress("host", steps)
    for t in range(steps):
        engine.step(x[t % SAMPLES], t % 3, parts, SEED, t)
        if t % 1000 == 0:
            progress.update(t)
    progress.close()
    return engine.digest()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=1_000_000, help="a multiple of 1000, 3000 or more"
    )
    steps = max(3, parser.parse_args().steps // 1000) * 1000
    blob, x = blob_and_samples()
    began = time.monotonic()
    found = on_board(blob, x, steps)
    seconds = time.monotonic() - began
    same = found["digest"] == on_host(blob, x, steps)
    history = found["history"]
    print(f"\n{found['steps']:,} steps in one MicroPython process, Raspberry Pi Pico's heap\n")
    rows = [
        ("free after 100 steps", f"{found['first']:,} bytes"),
        ("after the last", f"{found['last']:,} bytes"),
        ("after each thousand, least and most", f"{found['least']:,} and {found['most']:,} bytes"),
        ("a step allocates", f"{found['bytes']:.2f} bytes (bound {BYTES_PER_STEP})"),
        ("a step takes, reading weights from a file", f"{found['us']:.0f} us"),
        ("points of the history", str(len(history))),
        ("loss, first and last point", f"{history[0][1]:.3f}, {history[-1][1]:.3f}"),
        ("parameters equal the host's", "yes" if same else "NO"),
    ]
    common.print_table(["measured", ""], rows)
    common.write_json("steps", found | {"same_as_host": same, "seconds": seconds})
    if found["first"] != found["last"] or found["bytes"] > BYTES_PER_STEP or not same:
        sys.exit("bench_steps.py: memory or parameters are not what they must be.")


if __name__ == "__main__":
    main()
