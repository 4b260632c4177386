"""The native module for ESP32-class processors: its machine code, run by QEMU.

Debian's emulator has no ESP32 but dc233c, a core with the same register windows and, except for
the high half of a product, all instructions that the module uses.  ``xtensa/loader.c`` does there
what MicroPython's loader does.  Needs qemu-system-xtensa and what `make natmod-xtensawin` builds.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import everything_net, residual_net
from sprout import blob as blobs
from sprout import compile as compiler
from sprout.engine import LEARN, PREDICT, Engine, Run
from sprout.graph import Graph
from sprout.schedule import rate_parts

from native_modules import build, mpy

HERE = Path(__file__).resolve().parent / "xtensa"
COMMITTED = build.PREBUILT / "sprout_core_xtensawin.mpy"
RATE, SEED, STACK = rate_parts(0.01), 7, 2048
APPLY = -1
QEMU = "qemu-system-xtensa"
CLOCK_HZ, NS_PER_INSTRUCTION = 10_000_000, 64  # of dc233c; -icount shift=6
EMULATION = 46  # instructions more that start.S takes for one that dc233c does not have

emulated = pytest.mark.skipif(
    not shutil.which(QEMU) or build.XTENSA.missing,
    reason=f"NOT TESTED: xtensawin needs {QEMU} and `make natmod-xtensawin` (Debian 12)",
)


class Fault(Exception):
    """The program on the emulated processor ended with an error: what it said."""


@dataclass(frozen=True)
class Result:
    """What one call of sprout_core.run left: ``stack`` in bytes, ``instructions`` about."""

    run: Run
    stack: int
    instructions: int
    arena: np.ndarray
    trained: np.ndarray


@functools.cache
def loader() -> Path:
    """The loader as a program for the bare processor."""
    folder = build.BUILD / "xtensa" / "loader"
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in (HERE / "start.S", HERE / "loader.c", build.NATMOD / "libc.c"):
        objects.append(folder / f"{source.stem}.o")
        build.XTENSA.compile(source, [*build.WARNINGS, "-o", objects[-1]])
    build.XTENSA.link(
        ["--no-warn-rwx-segments", "-T", HERE / "loader.ld", "-o", folder / "loader.elf", *objects]
    )
    return folder / "loader.elf"


def run_on_xtensa(
    blob: bytes,
    samples: Sequence[tuple[Run, np.ndarray]],
    *,
    module: bytes | None = None,
    in_place: bool = True,
    accumulate: bool = False,
    code_offset: int = 4,
) -> list[Result]:
    """Call sprout_core.run with the arguments and the input of each sample; see loader.c.

    ``code_offset``: how far the code starts behind a multiple of 16.
    """
    b = blobs.read(blob, "blob")
    row = b.tensors[b.input]
    module = module or build.build_natmod("xtensawin").read_bytes()
    job = struct.pack(
        "<15I",
        *(len(module), len(blob), b.program_len, blob.rindex(b.initial), len(b.initial)),
        *(b.arena_len, b.trained_len, b.scratch_len, b.accum_len if accumulate else 0),
        *(row.offset, row.nbytes, samples[0][1].dtype == np.uint8),
        *(not in_place, code_offset, len(samples)),
    )
    inputs = b"".join(bytes(run) + x.tobytes() for run, x in samples)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job").write_bytes(job + module + blob + inputs)
        command = [
            *(QEMU, "-cpu", "dc233c", "-M", "sim", "-m", "128M", "-nographic"),
            *("-monitor", "none", "-serial", "none", "-icount", "shift=6,sleep=off"),
            *("-semihosting", "-kernel", str(loader())),
        ]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise Fault(done.stdout + done.stderr)
        raw = (folder / "results").read_bytes()
    head = struct.Struct(f"<i{ctypes.sizeof(Run)}sIII")
    size = head.size + b.arena_len + b.trained_len
    assert len(raw) == size * len(samples)
    results = []
    for at in range(0, len(raw), size):
        status, run, stack, ticks, emulated = head.unpack_from(raw, at)
        assert status == 0, f"the core returns {status}"
        memory = np.frombuffer(raw, np.uint8, size - head.size, at + head.size)
        instructions = ticks * (10**9 // CLOCK_HZ) // NS_PER_INSTRUCTION - emulated * EMULATION
        arena, trained = np.split(memory, [b.arena_len])
        results.append(Result(Run.from_buffer_copy(run), stack, instructions, arena, trained))
    return results


def compare(blob: bytes, steps: int, accumulate: bool = False, **options: Any) -> list[Result]:
    """A forward pass, training steps and a forward pass, there and here: the same bytes."""
    engine = Engine(blob, accumulate=accumulate)
    b = engine.blob
    kind = np.uint8 if b.lut_offset else np.int8
    low = np.iinfo(kind).min
    rng = np.random.default_rng(SEED)
    forward = Run(0, b.n_forward, PREDICT, 0, b.n_classes, 1)
    runs = [forward]
    for t in range(steps):
        runs.append(Run(0, len(b.ops), LEARN, t % b.n_classes, b.n_classes, *RATE, SEED, t))
        if accumulate and t % 4 == 3:
            runs.append(Run(APPLY))
    runs.append(forward)
    shape = b.tensors[b.input].shape
    samples = [(run, rng.integers(low, low + 256, shape).astype(kind)) for run in runs]
    results = run_on_xtensa(blob, samples, accumulate=accumulate, **options)
    for i, ((run, x), result) in enumerate(zip(samples, results, strict=True)):
        engine.set_input(x)
        if run.first_op == APPLY:
            engine.apply()
        else:
            engine.run_ops(
                run.first_op,
                run.last_op,
                run.mode,
                label=run.label,
                rate=(run.rate_mantissa, run.rate_exponent),
                seed=run.seed,
                step=run.step,
            )
            assert bytes(engine.run) == bytes(result.run), f"run {i}"
        assert (engine.trained == result.trained).all(), f"run {i}"
        assert (engine.arena == result.arena).all(), f"run {i}"
        assert result.stack <= STACK
    fresh = Engine(blob)
    assert steps == 0 or (results[-1].trained != fresh.trained).any(), "nothing was learned"
    return results


def test_the_committed_module_is_current() -> None:
    entry = json.loads((build.PREBUILT / "manifest.json").read_text())["modules"]["xtensawin"]
    data = COMMITTED.read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert build.manifest(COMMITTED).items() <= entry.items()
    current = entry["source_digest"] == build.source_digest("xtensawin")
    assert current, "sources or flags changed: run `make natmod-xtensawin` and commit"


def test_relocations_are_read_back() -> None:
    relocations = (mpy.Relocation(0, 5, 0), mpy.Relocation(0, 300, 1), mpy.Relocation(1, 0, 1))
    image = mpy.Image(bytes(range(200)) * 8, b"constants", relocations)
    data = mpy.write_mpy(image, "xtensawin", ["one"])
    assert mpy.read_mpy(data).image == image
    with pytest.raises(mpy.MpyError, match="ends early"):
        mpy.read_mpy(data[:-1])


@emulated
def test_a_fresh_build_gives_the_committed_bytes(tmp_path: Path) -> None:
    built = build.build_natmod("xtensawin", tmp_path / "module.mpy")
    assert built.read_bytes() == COMMITTED.read_bytes(), "run `make natmod-xtensawin` and commit"


@emulated
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("net", [residual_net, everything_net])
def test_every_operator(net: Callable[[int], Graph], in_place: bool) -> None:
    compare(compiler.compile_graph(net(3), "full").to_bytes(), 4, in_place=in_place)


@emulated
def test_accumulators() -> None:
    compare(compiler.compile_graph(everything_net(4), "full").to_bytes(), 8, accumulate=True)


@emulated
@pytest.mark.parametrize("offset", [0, 8, 12])
def test_runs_wherever_it_is_loaded(offset: int) -> None:
    compare(compiler.compile_graph(residual_net(3), "full").to_bytes(), 1, code_offset=offset)


@emulated
def test_twenty_training_steps_of_the_person_network(person_model: Path) -> None:
    compare(compiler.compile_model(person_model, "b12,18:1/2,20:1/4,22:1").to_bytes(), 20)


@emulated
@pytest.mark.shared
def test_twenty_training_steps_of_mcunet(shared: Path) -> None:
    path = shared / "models" / "mcunet-5fps.pkl"
    compare(compiler.compile_model(path, "b20,24:1/4,27:1/2,30:1/2").to_bytes(), 20)


@emulated
@pytest.mark.parametrize("part", ["constants", "relocations"])
def test_a_module_without_a_part_fails(part: str) -> None:
    """What the other tests say depends on the loader's handling of all parts."""
    info = mpy.read_mpy(build.build_natmod("xtensawin").read_bytes())
    image = info.image
    if part == "constants":
        image = dataclasses.replace(image, constants=bytes(len(image.constants)))
    else:
        image = dataclasses.replace(image, relocations=())
    blob = compiler.compile_graph(residual_net(3), "full").to_bytes()
    with pytest.raises((Fault, AssertionError)):
        compare(blob, 2, module=mpy.write_mpy(image, "xtensawin", info.names))


@emulated
def test_names_missing_compiler_helpers(tmp_path: Path) -> None:
    source = tmp_path / "case.c"
    head = '#include "mp_runtime.h"\nMP_ENTRY { return (mp_obj_t)(uintptr_t)'
    source.write_text(head + "(1.5f * ((uintptr_t)self + n_args + n_kw + (uintptr_t)args)); }\n")
    with pytest.raises(build.BuildError, match="uses .*__mulsf3, which no C file"):
        build.build_module([source], "xtensawin", tmp_path / "case.mpy")
