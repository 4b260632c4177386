"""What a network costs on microcontrollers (``make bench-mcu``).

Runs the native modules on emulated processors and counts: every instruction executed (for Xtensa
tests/qemu.py says what that includes), and for the others cycles of the Cortex-M0+'s model in
tests/emulator.py (loads and stores 2, taken branches 2, others 1; code and data in RAM, no flash
stalls).  A whole inference and a whole training step, operator by operator,
of mlperf_vww_96_int8 and of mcunet-5fps with the 49 KB plan, beside the same without the kernels
made for the processor; and as they are compiled by default, the first layers by rows, which takes
less memory.  For an RP2040 also with two cores that share layers: of each the longer half counts,
without what the cores cost one another on the bus.  Every result is compared with the host
engine's.  Channels that nothing needs are dropped by the compiler and not counted.  Needs
../shared/models, and for Xtensa what `make natmod-xtensawin` installs: without it the others are
measured.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench_common as common
import numpy as np
from sprout.blob import TRAIN, Blob, BlobOp
from sprout.compile import compile_model
from sprout.engine import LEARN, PREDICT, Engine
from sprout.schedule import rate_parts

sys.path.insert(0, str(common.ROOT / "tests"))

from emulator import CPUS, Net, emulate, missing  # noqa: E402
from machine import Count  # noqa: E402

from native_modules import build  # noqa: E402

PROCESSORS = ("cortex-m0", "cortex-m4", "rv32", "xtensa")
NETWORKS = {
    "mlperf_vww_96_int8.tflite": "b12,21:1/2,22:1/4,24:1",
    "mcunet-5fps.pkl": common.PLAN,
}
RATE = rate_parts(0.002)
ARGUMENTS: dict[str, Any] = {"label": 1, "rate": RATE, "seed": 7, "step": 0, "n_classes": 2}
# Measured in emulators with the same model, see DESIGN.md: CMSIS-NN (with DSP on the M4), esp-nn.
# (network, processor) -> whole inference, in cycles on the M0+ and in instructions elsewhere.
OTHERS = {
    ("mlperf_vww_96_int8", "cortex-m0"): ("CMSIS-NN", 118.3e6),
    ("mlperf_vww_96_int8", "cortex-m4"): ("CMSIS-NN", 24.7e6),
    ("mlperf_vww_96_int8", "rv32"): ("esp-nn", 64.1e6),
    ("mcunet-5fps", "cortex-m4"): ("TinyEngine", 65.3e6),
}
OTHER_STEPS = {("mcunet-5fps", "cortex-m4"): ("TinyEngine", 120.1e6)}
GOALS = {
    ("mlperf_vww_96_int8", "cortex-m0", "inference"): 50e6,
    ("mlperf_vww_96_int8", "cortex-m4", "inference"): 16e6,
    ("mlperf_vww_96_int8", "rv32", "inference"): 40e6,
    ("mcunet-5fps", "cortex-m0", "step"): 260e6,
    ("mcunet-5fps", "cortex-m4", "step"): 70e6,
}
STEP_GOALS = {"mcunet-5fps": 1.6}  # inferences


@dataclass
class Part:
    """One kind of operator."""

    macs: int = 0
    count: Count = field(default_factory=Count)


def kind_and_macs(blob: Blob, op: BlobOp) -> tuple[str, int]:
    """Name the kernel of an operator and count its multiply-accumulates, borders included."""
    kind = op.kind
    if kind not in (
        "conv", "depthwise", "conv_input_grad", "depthwise_input_grad",
        "conv_weight_update", "depthwise_weight_update",
    ):  # fmt: skip
        return kind, 0
    taps = (op.p[0] & 255) * (op.p[0] >> 8 & 255)
    a, b = (blob.tensors[t] for t in op.t[:2])
    narrow = "pointwise" if taps == 1 else f"{op.p[0] & 255}x{op.p[0] >> 8 & 255}"
    many, few = (a, b) if kind.endswith(("grad", "update")) else (b, a)
    macs = many.h * many.w * many.c * taps * (1 if kind.startswith("depthwise") else few.c)
    if kind == "depthwise_weight_update" and op.p[7] > 0:
        macs = many.h * many.w * op.p[7] * taps
    if kind == "conv" and a.c <= 4:
        return "first conv", macs
    if kind.startswith("depthwise"):
        return kind, macs
    return f"{narrow} {kind}", macs


def plain_module(arch: str) -> Path:
    """Build the module without kernels of the architecture's own."""
    sources = [*build.core_sources(), build.SHELL / "shell.c"]
    out = common.BUILD / "tests" / f"plain_{arch}.mpy"
    return build.build_module(sources, arch, out, lean=False)


def compile_network(name: str, save: bool = True) -> Blob:
    classes = ["no_person", "person"] if name.endswith(".pkl") else None
    return compile_model(common.SHARED / "models" / name, NETWORKS[name], classes, save=save)


def some_input(blob: Blob) -> np.ndarray:
    shape = blob.tensors[blob.input].shape
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def measure(name: str, cpu: str, plain: bool, profile: bool) -> dict[str, Any]:
    """Run an inference and a step of one network on one processor, layer by layer.

    With the processor's own kernels also as the network is compiled by default.
    """
    blob = compile_network(name, save=False)
    data = blob.to_bytes()
    processor = emulate(cpu, plain_module(CPUS[cpu].arch) if plain else None)
    net, engine = Net(data, processor), Engine(data)
    x = some_input(blob)
    result: dict[str, Any] = {"network": name.rsplit(".", 1)[0], "processor": cpu}
    result["kernels"] = "plain" if plain else "own"
    result["code_bytes"] = len(net.cpu.code)
    result["stack_bytes"] = 0
    for what, mode, last in (
        ("inference", PREDICT, blob.n_forward), ("step", LEARN, len(blob.ops)),
    ):  # fmt: skip
        for one in (net, engine):
            one.set_input(x)
        parts: dict[str, Part] = {}
        functions: dict[str, Count] = {}
        for i in range(last):
            op = blob.ops[i]
            if op.flags & TRAIN and mode == PREDICT:
                continue
            net.cpu.reset_count()
            net.run_ops(i, i + 1, mode, **ARGUMENTS)
            kind, macs = kind_and_macs(blob, op)
            part = parts.setdefault(kind, Part())
            part.macs += macs
            part.count += net.cpu.count()
            result["stack_bytes"] = max(result["stack_bytes"], net.cpu.stack_used)
            if profile:
                for function, count in net.cpu.profile().items():
                    functions[function] = functions.get(function, Count()) + count
        engine.run_ops(0, last, mode, **ARGUMENTS)
        net.cpu.check_surroundings()
        same = net.digest() == engine.digest()
        if mode == PREDICT:
            same = same and (net.tensor(blob.output) == engine.tensor(blob.output)).all()
        if not same:
            raise SystemExit(f"{name} on {cpu}: {what} differs from the host engine")
        result[what] = summary(parts)
        if profile:
            ranked = sorted(functions.items(), key=lambda item: -item[1].cycles)
            result[what]["functions"] = {k: [v.cycles, v.instructions] for k, v in ranked}
    if not plain:
        small = compile_network(name)
        result["by_rows"] = whole_runs(small, cpu) | {"arena": [small.arena_len, blob.arena_len]}
        if cpu == "cortex-m0":
            result["two_cores"] = whole_runs(blob, cpu, halves=True)
    return result


def whole_runs(blob: Blob, cpu: str, halves: bool = False) -> dict[str, Any]:
    """Cycles and instructions of an inference and of a step.

    With ``halves`` a second core takes its half of each layer, which costs nothing then.
    """
    net = Net(blob.to_bytes(), emulate(cpu, halves=halves))
    result = {}
    for what, mode, last in (
        ("inference", PREDICT, blob.n_forward), ("step", LEARN, len(blob.ops)),
    ):  # fmt: skip
        net.set_input(some_input(blob))
        net.cpu.reset_count()
        with net.saved() if halves else contextlib.nullcontext([]) as saved:
            net.run_ops(0, last, mode, **ARGUMENTS)
        count = net.cpu.count()
        result[what] = {
            "cycles": count.cycles - sum(saved),
            "instructions": count.instructions,
        }
    return result


def summary(parts: dict[str, Part]) -> dict[str, Any]:
    """Return totals and rows by kernel, ready for JSON."""
    rows = {
        kind: {
            "macs": p.macs,
            "instructions": p.count.instructions,
            "cycles": p.count.cycles,
        }
        for kind, p in sorted(parts.items(), key=lambda item: -item[1].count.instructions)
    }
    keys = ("macs", "instructions", "cycles")
    return {key: sum(row[key] for row in rows.values()) for key in keys} | {"kernels": rows}


def millions(value: float) -> str:
    return f"{value / 1e6:.1f}" if value else ""


def print_result(result: dict[str, Any], plain: dict[str, Any] | None) -> None:
    """Print one processor's tables: the counts, then the same of the plain kernels if measured."""
    network, cpu = result["network"], result["processor"]
    size = f"code {result['code_bytes']} B, stack {result['stack_bytes']} B"
    size += f"; plain: code {plain['code_bytes']} B" if plain else ""
    print(f"\n{network} on {cpu}: {size}")
    head = ["M MACs", "M instr.", "M cycles", "i/MAC", "c/MAC"]
    head += ["plain:", "M instr.", "M cycles"] if plain else []
    print(f"  {'':28}" + "".join(f"{title:>9}" for title in head))
    for what, others in (("inference", OTHERS), ("step", OTHER_STEPS)):
        whole = result[what]
        for kind, row in [(f"whole {what}", whole), *whole["kernels"].items()]:
            both = (row["instructions"], row["cycles"])
            line = [f"{row['macs'] / 1e6:.2f}", *map(millions, both)]
            line += [f"{n / row['macs']:.2f}" if n and row["macs"] else "" for n in both]
            if plain:
                other = plain[what]["kernels"].get(kind, plain[what])
                line += ["", *(millions(other[key]) for key in ("instructions", "cycles"))]
            print(f"  {kind:28}" + "".join(f"{cell:>9}" for cell in line))
        unit = "cycles" if cpu == "cortex-m0" else "instructions"
        if "by_rows" in result:
            small, large = result["by_rows"]["arena"]
            print(
                f"  {'':28}by rows: {millions(result['by_rows'][what][unit])} M {unit}, with "
                f"{small:,} bytes of arena for {large:,}"
            )
        if "two_cores" in result:
            cycles = result["two_cores"][what]["cycles"]
            print(
                f"  {'':28}two cores (RP2040): {millions(cycles)} M cycles, "
                f"{whole['cycles'] / cycles:.2f} times as fast (no waiting for the bus)"
            )
        if what == "step":
            ratio = whole[unit] / result["inference"][unit]
            goal = f"; goal: {STEP_GOALS[network]}" if network in STEP_GOALS else ""
            print(f"  {'':28}{ratio:.2f} times an inference{goal}")
        if (network, cpu) in others:
            name, n = others[network, cpu]
            print(f"  {'':28}{name}: {millions(n)} M {unit}")
        if (network, cpu, what) in GOALS:
            print(f"  {'':28}goal: {millions(GOALS[network, cpu, what])} M {unit}")
        for function, (cycles, instructions) in list(whole.get("functions", {}).items())[:12]:
            print(f"    {function:35}{millions(instructions):>9}{millions(cycles):>9}")


def main() -> None:
    """Measure, print the tables, write build/bench-mcu.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="append", choices=CPUS)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--profile", action="store_true", help="cycles by C function too")
    parser.add_argument("--own", action="store_true", help="leave out the plain kernels")
    options = parser.parse_args()
    if not (common.SHARED / "models").is_dir():
        sys.exit(f"{common.SHARED / 'models'} is missing: this bench measures its networks.")
    kernels = (False,) if options.own else (False, True)
    cpus = []
    for cpu in options.cpu or PROCESSORS:
        if lack := missing(cpu):
            print(f"{cpu} is not measured: {lack}")
        else:
            cpus.append(cpu)
    if not cpus:
        sys.exit(1)
    cases = [
        (name, cpu, plain, options.profile)
        for cpu in cpus
        for name in options.network or NETWORKS
        for plain in kernels
    ]
    with concurrent.futures.ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        results = list(pool.map(measure, *zip(*cases, strict=True)))
    for i in range(0, len(results), len(kernels)):
        print_result(results[i], None if options.own else results[i + 1])
    path = common.BUILD / "bench-mcu.json"
    path.write_text(json.dumps(results, indent=1))
    print(f"\n{path.relative_to(common.ROOT)} has all of this")


if __name__ == "__main__":
    main()
