"""The native module for ESP32-class processors: what it alone has beside ``test_emulated.py``.

It needs its own toolchain and emulator (``qemu.py``), and it alone has relocations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from emulator import Net, emulate, missing
from machine import Fault
from nets import residual_net
from qemu import Xtensa, loader
from sprout import compile as compiler
from test_emulated import PLANS, compare

from native_modules import build, mpy

COMMITTED = build.PREBUILT / "sprout_core_xtensawin.mpy"
FRAME = build.PREBUILT / "sprout_frame_xtensawin.mpy"
emulated = pytest.mark.skipif(bool(missing("xtensa")), reason=f"NOT TESTED: {missing('xtensa')}")


@pytest.mark.parametrize(("kind", "path"), [("modules", COMMITTED), ("frames", FRAME)])
def test_the_committed_module_is_current(kind: str, path: Path) -> None:
    entry = json.loads((build.PREBUILT / "manifest.json").read_text())[kind]["xtensawin"]
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert build.manifest(path).items() <= entry.items()
    current = entry["source_digest"] == build.source_digest("xtensawin", kind == "frames")
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
    built = build.build_frame("xtensawin", tmp_path / "frame.mpy")
    assert built.read_bytes() == FRAME.read_bytes(), "run `make natmod-xtensawin` and commit"


@emulated
@pytest.mark.parametrize("offset", [0, 8, 12])
def test_runs_wherever_it_is_loaded(offset: int) -> None:
    processor = Xtensa("xtensa", build.build_natmod("xtensawin"), code_offset=offset)
    compare(compiler.compile_graph(residual_net(3), "full").to_bytes(), processor, 1)


@emulated
@pytest.mark.parametrize("edge", ["start", "end"])
def test_twenty_training_steps_of_the_person_network(person_model: Path, edge: str) -> None:
    blob = compiler.compile_model(person_model, "b12,18:1/2,20:1/4,22:1").to_bytes()
    compare(blob, emulate("xtensa", edge=edge), 20)


@emulated
@pytest.mark.shared
@pytest.mark.parametrize("name", PLANS)
def test_twenty_training_steps_of_the_person_detectors(shared: Path, name: str) -> None:
    blob = compiler.compile_model(shared / "models" / name, PLANS[name]).to_bytes()
    compare(blob, emulate("xtensa"), 20)


@emulated
@pytest.mark.parametrize("part", ["constants", "relocations"])
def test_a_module_without_a_part_fails(part: str, tmp_path: Path) -> None:
    """What the other tests say depends on the loader's handling of all parts."""
    info = mpy.read_mpy(build.build_natmod("xtensawin").read_bytes())
    image = info.image
    if part == "constants":
        image = dataclasses.replace(image, constants=bytes(len(image.constants)))
    else:
        image = dataclasses.replace(image, relocations=())
    module = tmp_path / "module.mpy"
    module.write_bytes(mpy.write_mpy(image, "xtensawin", info.names))
    blob = compiler.compile_graph(residual_net(3), "full").to_bytes()
    with pytest.raises((Fault, AssertionError)):
        compare(blob, Xtensa("xtensa", module, seconds=5), 2)


@emulated
def test_counts_are_exact(tmp_path: Path) -> None:
    """The clock counts what QEMU lists when it stops at every instruction."""
    options = ("-singlestep", "-d", "exec,nochain", "-D", str(tmp_path / "log"))
    net = Net(
        compiler.compile_graph(residual_net(3), "full").to_bytes(),
        Xtensa("xtensa", build.build_natmod("xtensawin"), options=options),
    )
    net.set_input(np.zeros((8, 8, 3), np.int8))
    net.cpu.reset_count()
    net.forward()
    counted = net.cpu.count().instructions
    trace: list[int] = []
    for line in (tmp_path / "log").read_text().splitlines():
        if line.startswith("Trace"):
            trace.append(int(line.split("/")[1], 16))
        elif line.startswith("Stopped"):  # for QEMU to look around; the same comes again
            trace.pop()
    symbols = {s.name: s.address for s in mpy.read_elf(loader().read_bytes()).symbols}
    read_clock = symbols["clock"] + 3
    last, first, *_ = (i for i in reversed(range(len(trace))) if trace[i] == read_clock)
    mulsh = (
        *range(symbols["exception"], symbols["exception"] + 64),
        *range(symbols["illegal"], symbols["other"]),
    )
    assert counted == sum(at not in mulsh for at in trace[first:last])
    assert counted > 10000


@emulated
def test_names_missing_compiler_helpers(tmp_path: Path) -> None:
    source = tmp_path / "case.c"
    head = '#include "mp_runtime.h"\nMP_ENTRY { return (mp_obj_t)(uintptr_t)'
    source.write_text(head + "(1.5f * ((uintptr_t)self + n_args + n_kw + (uintptr_t)args)); }\n")
    with pytest.raises(build.BuildError, match="uses .*__mulsf3, which no C file"):
        build.build_module([source], "xtensawin", tmp_path / "case.mpy")
