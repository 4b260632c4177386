"""What a rehearsal step costs beside a whole one (``make bench-replay``).

For each network and each form of replay: bytes of a kept sample, multiply-accumulates of a step
from it, and its time in MicroPython on this machine, where frozen weights are read from a file as
on a board.  The parameters after rehearsing must be those of whole steps on the host, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import bench_common as common
import numpy as np
from sprout import compile as compiler
from sprout import latent
from sprout.blob import Blob
from sprout.board import sim
from sprout.engine import Engine
from sprout.schedule import rate_parts

NETWORKS = (
    ("mcunet-5fps.pkl", "b20,24:1/4,27:1/2,30:1/2"),
    ("mcunet-5fps.pkl", "b22,21,24,27,30:1,36:1/8,39:1/4"),
    ("mcunet-5fps.pkl", "b23,21,24,27,30,36:1,39:1/2"),
    ("mcunet-5fps.pkl", "last"),
    ("proxyless-w0.3.pkl", "b24,46:1/2,48:1/4,54:1,58:1/2"),
    ("mlperf_vww_96_int8.tflite", "b12,21:1/2,22:1/4,24:1"),
    ("mlperf_resnet8_cifar10_int8.tflite", "b6,6:1/2,7,8:1/4"),
)
FORMS = ("raw", "latent", "compact")
RATE, SEED, STEPS = 0.002, 3, 10

PROGRAM = """
import json, sprout, time
net = sprout.load("net.sprout")
net.rate, net.seed = RATE, SEED
frame = bytearray(net.shape[0] * net.shape[1] * net.shape[2])
with open("x.bin", "rb") as file:
    file.readinto(frame)
found = []
for form in FORMS:
    net.reset()
    kept = net.replay(2 * len(frame) + 50000, form, per_sample=0)
    began = time.ticks_us()
    for _ in range(STEPS):
        net.learn(frame, 0)
    whole = time.ticks_us()
    net.rehearse(STEPS)
    ended = time.ticks_us()
    found.append((kept.record_bytes, time.ticks_diff(whole, began) / STEPS,
                  time.ticks_diff(ended, whole) / STEPS, net.digest()))
print(json.dumps(found))
"""


def on_host(blob: Blob, x: np.ndarray) -> str:
    """Learn the picture as often in whole steps; return the digest."""
    engine = Engine(blob.to_bytes())
    for t in range(2 * STEPS):
        engine.step(x, 0, rate_parts(RATE), SEED, t)
    return engine.digest()


def on_board(blob: Blob, x: np.ndarray) -> list[Any]:
    """Return [bytes, us of a whole step, us of one from the buffer, digest] for each form."""
    names = {"RATE": RATE, "SEED": SEED, "STEPS": STEPS, "FORMS": FORMS}
    program = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + PROGRAM
    with tempfile.TemporaryDirectory(prefix="sprout-") as name:
        folder = pathlib.Path(name)
        files = {"net.sprout": blob.to_bytes(), "x.bin": x.tobytes(), "main.py": program.encode()}
        sim.put(folder, files)
        command, environment = sim.command(heap=2 << 20)
        done = subprocess.run(
            [*command, "main.py"], cwd=folder, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"bench_replay.py: MicroPython says {done.stderr or done.stdout}")
    return json.loads(done.stdout)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows, results = [], []
    for name, plan in NETWORKS:
        classes = ["a", "b"] if name.endswith(".pkl") else None
        blob = compiler.compile_model(common.SHARED / "models" / name, plan, classes)
        shape = blob.tensors[blob.input].shape
        x = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        expected, points = on_host(blob, x), latent.points(blob)
        cuts = {"raw": 0, "latent": points[0][0], "compact": points[-1][0]}
        whole = latent.macs(blob, 0)
        for form, (size, us, rehearsing, digest) in zip(FORMS, on_board(blob, x), strict=True):
            if digest != expected:
                sys.exit(f"bench_replay.py: {name}, {plan}, {form} differs from whole steps.")
            macs = latent.macs(blob, cuts[form])
            rows.append(
                [name.partition(".")[0], plan, form, f"{size:,}", 32768 // (size + 8),
                 f"{macs:,}", f"{macs / whole:.1%}", f"{us / 1000:.1f}",
                 f"{rehearsing / 1000:.1f}"]
            )  # fmt: skip
            results.append(
                {"network": name, "plan": plan, "form": form, "bytes": size, "macs": macs,
                 "macs_whole": whole, "ms": rehearsing / 1000, "ms_whole": us / 1000}
            )  # fmt: skip
    common.print_table(
        ("network", "plan", "kept", "bytes", "in 32 KB", "MACs", "of a step", "step ms", "ms"),
        rows,
    )
    print("All parameters after rehearsing are those of whole steps on the host, bit for bit.")
    common.write_json("replay", {"results": results})


if __name__ == "__main__":
    main()
