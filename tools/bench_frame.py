"""What bringing a camera's frame, or a second of sound, to a network takes (``make bench-frame``).

The kernel of sprout.Frame runs on emulated processors, which count instructions, and for the
Cortex-M0+ cycles of the model in tests/emulator.py; every picture is compared with Pillow's.  The
time of logmel.picture() is that of MicroPython on this machine: a board's interpreter is slower by
what its processor is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import bench_common as common

sys.path.insert(0, str(common.ROOT / "tests"))

import test_frame as frames  # noqa: E402
from emulator import CPUS, emulate, missing  # noqa: E402
from test_device import run  # noqa: E402

from native_modules import build, mpy  # noqa: E402

PROCESSORS = ("cortex-m0", "cortex-m4", "rv32", "xtensa")
CASES = (
    ((160, 120), "rgb565", (96, 96, 3)),
    ((160, 120), "grey", (96, 96, 1)),
    ((320, 240), "rgb565", (96, 96, 3)),
    ((320, 240), "rgb565", (96, 96, 1)),
    ((96, 96), "rgb565", (96, 96, 3)),
)
SOUND = """
import gc, time
from sprout import logmel
pcm = bytearray(16000)
for i in range(len(pcm)):
    pcm[i] = i * 7919 >> 3 & 255
logmel.picture(pcm)
gc.collect()
gc.disable()
before = gc.mem_alloc()
logmel.picture(pcm)
taken = gc.mem_alloc() - before
gc.enable()
start = time.ticks_us()
for _ in range(20):
    logmel.picture(pcm)
print(time.ticks_diff(time.ticks_us(), start) // 20, taken)
"""
PLAN = """
import sprout
class Net:
    shape, input, name = {shape}, None, "net"
print(bytes(sprout.Frame({size[0]}, {size[1]}, {format!r}, Net)._plan).hex())
"""


def main() -> None:
    """Measure, print, write."""
    processors = [cpu for cpu in PROCESSORS if not missing(cpu)]
    code = {cpu: mpy.code_bytes(build.build_frame(CPUS[cpu].arch)) for cpu in processors}
    results = []
    with tempfile.TemporaryDirectory(prefix="sprout-") as folder:
        for size, format, shape in CASES:
            made = run(Path(folder), PLAN.format(size=size, format=format, shape=shape))
            plan, frame = bytes.fromhex(made[0]), frames.a_frame(size, format)
            picture = frames.with_pillow(frames.pixels_of(frame, size, format), shape)
            counts = {}
            for cpu in processors:
                machine = emulate(cpu, build.build_frame(CPUS[cpu].arch))
                machine.reset_count()
                assert frames.fill(machine, plan, frame, picture.size) == (0, picture.tobytes())
                count = machine.count()
                counts[cpu] = count.cycles if cpu == "cortex-m0" else count.instructions
            name = f"{size[0]}x{size[1]} {format} to {shape[1]}x{shape[0]}x{shape[2]}"
            results.append({"frame": name, "plan_bytes": len(plan), "counts": counts})
        microseconds, taken = map(int, run(Path(folder), SOUND, 64 << 20)[0].split())
    print("\nMillions: of cycles on the M0+, of instructions elsewhere; RAM: what a Frame keeps\n")
    rows = [
        [r["frame"], *[f"{n / 1e6:.2f}" for n in r["counts"].values()], f"{r['plan_bytes']:,}"]
        for r in results
    ]
    rows.append(["machine code, bytes", *[f"{n:,}" for n in code.values()], ""])
    common.print_table(["", *processors, "RAM, bytes"], rows)
    print(f"\nlogmel.picture(): {microseconds / 1000:.1f} ms for a second of sound, here; "
          f"{taken / 1024:,.0f} KB of floats for the garbage collector")  # fmt: skip
    sound = {"microseconds": microseconds, "allocated_bytes": taken}
    common.write_json("frame", {"frames": results, "code_bytes": code, "sound": sound})


if __name__ == "__main__":
    main()
