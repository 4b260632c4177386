"""Power cuts by the thousand, and what saving costs the flash (``make bench-powercut``).

In real MicroPython, with its littlefs and its FAT on a flash that fails on command
(tests/powercut.py): every single write of a checkpoint and of a ring of samples, then 10 000 cuts
at random writes of a net that learns, saves and keeps samples, on each file system.  After every
one the net must load from its blob and hold the last checkpoint that was completed or the one
that was being written; a log outside the flash says which bytes those are.  The first loss ends
the bench.

What a cut leaves of one write: all, nothing, a first part, or random bytes (littlefs: of an erase
too).  On FAT random bytes are part of the single cuts, once the files are made, but not of the
random ones: FAT keeps its table and folders in sectors that it writes over.  The row "garbled"
says how often all is lost where a cut can garble those too.

Wear: a save of models/person.tflite and of mcunet-5fps (if ../shared is there).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_common as common

sys.path.append(str(common.ROOT / "tests"))

from nets import everything_net  # noqa: E402
from sprout import blob as blobs  # noqa: E402
from sprout import frontends  # noqa: E402
from sprout.board import sim  # noqa: E402
from sprout.compile import compile_graph  # noqa: E402
from sprout.frontends.head import replace_head  # noqa: E402

KINDS = {"lfs": "littlefs", "fat": "FAT"}
HEAP = 1 << 25
ENDURANCE = 100_000  # erases of a block of NOR flash
FLASH = 1408 * 1024  # a Pico's file system
EVERY = 100  # steps between two saves
RECORDS = (520, 2_048, 9_216, 16_384)
RING = 128 * 1024
BLOCKS = {"lfs": 360, "fat": 3000}
"""Room for mcunet-5fps; half of it for the others."""


def run(blob: bytes, **config: Any) -> dict[str, Any]:
    """What powercut.py counts."""
    command, environment = sim.command(heap=HEAP)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = (common.ROOT / "tests" / "powercut.py").read_bytes()
        settings = json.dumps(config).encode()
        sim.put(folder, {"net.sprout": blob, "main.py": script, "powercut.json": settings})
        done = subprocess.run(
            [*command, "main.py"], cwd=folder, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit((done.stdout + done.stderr)[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"fell_back": done.stdout.count("is damaged or was cut short")}


def nets() -> dict[str, bytes]:
    """Blobs by name, the smallest first."""
    graph = replace_head(frontends.load(common.ROOT / "models" / "person.tflite"), ["a", "b"])
    found = {
        "small": compile_graph(everything_net(2), "full").to_bytes(),
        "person, b6,20": compile_graph(graph, "b6,20").to_bytes(),
    }
    if common.MODEL.exists():
        blob = common.compiled(common.CLASSES["person"], 0, common.PLAN)
        found["mcunet-5fps, 49 KB plan"] = blob.to_bytes()
    return found


def cut_lines(small: bytes, other: bytes, cuts: int) -> dict[str, dict[str, Any]]:
    """Cut and count; print a line each."""
    what: list[tuple[str, bytes, dict[str, Any]]] = [
        ("every write, save", small, {"what": "save"}),
        ("every write, ring", small, {"what": "ring"}),
        ("every write, save, person", other, {"what": "save", "first": 3}),
        ("random", small, {"what": "random", "n": cuts, "seed": 1}),
        ("random, net.replay()", small, {"what": "replay", "n": cuts // 10, "seed": 4}),
        ("random, person", other, {"what": "random", "n": cuts // 20, "seed": 2}),
    ]
    garbled = {"what": "random", "n": cuts // 10, "seed": 3, "garbled": True}
    results, rows = {}, []
    for kind, system in KINDS.items():
        garbling = [("random, garbled", small, garbled)] if kind == "fat" else []
        for name, blob, config in what + garbling:
            found = run(blob, kind=kind, blocks=BLOCKS[kind] // 2, **config)
            results[f"{system}, {name}"] = found
            columns = ("cuts", "saves", "steps", "records", "older", "losses", "lost")
            counts = [f"{found[c]:,}" if c in found else "" for c in columns]
            rows.append([system, name, *counts, f"{found['seconds']:.0f}"])
            print(*rows[-1], sep="  ", flush=True)
    header = ["cuts", "saves", "steps", "samples", "cut while saving", "losses", "samples lost"]
    print()
    common.print_table(["", "", *header, "s"], rows)
    return results


def wear_lines(blobs_by_name: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Measure and print what saves and samples write."""
    results, saves, rings = {}, [], []
    for kind, system in KINDS.items():
        for name, blob in blobs_by_name.items():
            found = run(blob, kind=kind, what="wear", blocks=BLOCKS[kind])
            results[f"{system}, {name}"] = found
            trained = blobs.read(blob).trained_len
            writes, size, erases = found["save"]
            per_1000 = 1000 / EVERY
            if kind == "lfs":  # takes the free blocks in turn
                free = (FLASH - len(blob) - 3 * trained) // 4096
                lives, moved = free * ENDURANCE / erases, f"{erases:.1f} blocks"
            else:  # the sectors of each slot are written by every second save
                lives, moved = 2 * ENDURANCE, f"{writes:.0f} sectors"
            saves.append(
                [system, name, f"{trained:,}", f"{size:,.0f}", moved, f"{size * per_1000:,.0f}",
                 f"{lives / 1e6:,.1f} M", f"{lives * EVERY / 1e6:,.0f} M"]
            )  # fmt: skip
        for record in RECORDS:
            sizes = {"record": record, "ring": RING, "blocks": BLOCKS[kind]}
            found = run(next(iter(blobs_by_name.values())), kind=kind, what="wear", **sizes)
            results[f"{system}, samples of {record}"] = found
            rings.append(
                [system, f"{record:,}", found["records"], f"{found['allocated']:,}",
                 *(f"{found[what][1] / record:.2f}" for what in ("fill", "replace")),
                 *(f"{found[what][2]:.2f}" for what in ("fill", "replace"))]
            )  # fmt: skip
    print(f"\nA save; the lifetime is that of {FLASH:,} bytes of flash whose blocks bear "
          f"{ENDURANCE:,} erases, saving every {EVERY} steps\n")  # fmt: skip
    common.print_table(
        ["", "", "trained B", "written B", "erased or rewritten", "B in 1,000 steps", "saves",
         "steps"], saves
    )  # fmt: skip
    print(f"\nA ring of {RING:,} bytes\n")
    common.print_table(
        ["", "B a sample", "samples", "allocated B", "written / sample B, filling", "replacing",
         "erases a sample, filling", "replacing"], rings
    )  # fmt: skip
    return results


def main() -> None:
    """Cut, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=10_000, help="at random, on each file system")
    parser.add_argument("--only", choices=("cuts", "wear"))
    options = parser.parse_args()
    found = nets()
    small, other, *_ = found.values()
    results: dict[str, Any] = {"cuts": {}, "wear": {}}
    if options.only != "wear":
        results["cuts"] = cut_lines(small, other, options.cuts)
    if options.only != "cuts":
        results["wear"] = wear_lines(found)
    common.write_json("powercut", results)


if __name__ == "__main__":
    main()
