"""Examines a board: each check is a line, and what fails says what to do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import blob as blobs
from ..engine import Engine
from ..graph import SproutError
from ..schedule import rate_parts
from . import install, romfs
from .install import Probe
from .wire import BoardError, Session

RATE = 0.002
_SHIFT = 37  # bytes that the pattern moves from row to row

# A picture, or int8 values, that needs no file: rows cut out of one pattern.
_FILL = """
import time
n = State.net
h, w, c = n.shape
pattern = memoryview(bytes((i * i * 11 + i * 5) & 255 for i in range(w * c + 128)))
n.reset()
n.seed, n.rate = 0, {rate}
began = time.ticks_us()
for y in range(h):
    row = pattern[({shift} * y & 127):({shift} * y & 127) + w * c]
    if {pixels}:
        n.feed(row)
    else:
        n.input[y * w * c : (y + 1) * w * c] = row
"""
_RUN = _FILL + "n.forward()\n"
_STEP = _FILL + "n.learn(None, 0)\n"
_ANSWER = """us = time.ticks_diff(time.ticks_us(), began)
answer = [us, binascii.hexlify(hashlib.sha256({what}).digest()).decode()]
"""
_IMPORT = """
import sprout
from sprout.native import code_bytes
answer = code_bytes()
"""
_LOAD = """
gc.collect()
State.net = sprout_load({path!r})
gc.collect()
answer = [gc.mem_free(), sum(State.net.memory().values())]
""".replace("sprout_load", "__import__('sprout').load")


_TAKEN = """
State.net = None
gc.collect()
before = gc.mem_free()
State.net = __import__('sprout').load({path!r})
gc.collect()
answer = before - gc.mem_free()
"""
ROM = "/rom/"  # where firmware mounts its ROMFS


@dataclass
class Line:
    """A check: ``good`` is None where there was nothing to check."""

    what: str
    good: bool | None
    text: str


def pattern(shape: tuple[int, int, int]) -> np.ndarray:
    """The picture that the board makes for itself, uint8 of ``shape`` [h, w, c]."""
    h, w, c = shape
    i = np.arange(w * c + 128)
    row = (i * i * 11 + i * 5) & 255
    rows = [row[_SHIFT * y & 127 :][: w * c] for y in range(h)]
    return np.stack(rows).astype(np.uint8).reshape(h, w, c)


def expected(data: bytes) -> tuple[str, str | None]:
    """SHA-256 of the outputs for ``pattern``, and of the trained parameters after a step."""
    engine = Engine(data)
    row = engine.blob.tensors[engine.blob.input]
    x = pattern((row.h, row.w, row.c))
    if not engine.blob.lut_offset:
        x = x.view(np.int8)
    engine.set_input(x)
    inference = hashlib.sha256(engine.forward().tobytes()).hexdigest()
    if not engine.blob.flags & blobs.FLAG_LEARNS:
        return inference, None
    engine.reset()
    engine.step(x, 0, rate_parts(RATE), 0, 0)
    return inference, engine.digest()


def examine(
    session: Session, probe: Probe, name: str | None, data: bytes | None
) -> Iterator[Line]:
    """Yield the checks of a board, and of the blob ``data`` that is there as ``name``, as they
    are made."""
    yield Line("board", True, f"{probe.machine} at {session.port}")
    try:
        arch = install.architecture(probe)
    except SproutError as error:
        yield Line("firmware", False, str(error))
        return
    yield Line("firmware", True, probe.firmware)
    yield Line("ABI", True, f".mpy {install.abi(probe)}, takes sprout_core_{arch}.mpy")
    yield Line("space", True, f"{probe.free:,} of {probe.total:,} bytes of flash are free")
    yield _package(session, probe, arch)
    blob = blobs.read(data, name or "blob") if data is not None else None
    yield _heap(probe, blob, arch)
    try:
        code = session.call(_IMPORT, timeout=10)
    except BoardError as error:
        yield Line("module", False, f"does not load: {_remedy(error)}")
        return
    where = f"loads, {code:,} bytes of code" if code else "is in the firmware"
    yield Line("module", True, where)
    if blob is None or data is None or name is None:
        yield Line("blob", None, "none on the board: give one to 'sprout install'")
        return
    yield from _blob(session, name, data, blob)


def _package(session: Session, probe: Probe, arch: str) -> Line:
    files = {f"{probe.lib}/{name}": data for name, data in install.library(arch).items()}
    sizes = probe.sizes()
    other = [
        name
        for name, data in files.items()
        if sizes.get(name) != len(data)
        or session.sha256(name, len(data)) != hashlib.sha256(data).hexdigest()
    ]
    if other:
        what = "is missing" if not any(name in sizes for name in files) else "differs from this"
        return Line(
            "package", False, f"{what} ({len(other)} of {len(files)} files): run 'sprout install'"
        )
    return Line("package", True, f"{len(files)} files in {probe.lib}, as in this release")


def _heap(probe: Probe, blob: blobs.Blob | None, arch: str) -> Line:
    needed = install.heap_needed(blob, arch)
    text = f"{probe.heap:,} bytes are free after boot, at least {needed:,} are needed"
    if needed > probe.heap:
        text += ": compile the model with a smaller plan"
    return Line("heap", needed <= probe.heap, text)


def _blob(session: Session, name: str, data: bytes, blob: blobs.Blob) -> Iterator[Line]:
    rom = ROM + name.rpartition("/")[2]
    wanted = hashlib.sha256(data).hexdigest()
    found, in_rom = (session.sha256(path, len(data)) for path in (name, rom))
    if in_rom == wanted and not found:
        name = rom
    elif found != wanted:
        what = "differs from yours" if found else "is not on the board"
        yield Line("blob", False, f"{name} {what}: run 'sprout put' with it")
        return
    try:
        free, buffers = session.call(_LOAD.format(path=name), timeout=20)
    except BoardError as error:
        yield Line("blob", False, _remedy(error))
        return
    yield Line("blob", True, f"{name} loads, {buffers:,} bytes; {free:,} of heap are left")
    if in_rom == wanted:
        less = f"{romfs.saved_bytes(blob):,} bytes of heap less than from a file"
        if name != rom:  # both are there: measure
            taken = [session.call(_TAKEN.format(path=p), timeout=20) for p in (name, rom)]
            less = f"{taken[0] - taken[1]:,} bytes of heap less than from {name}, measured"
        yield Line("in place", True, f"{rom} needs {less}")
    inference, training = expected(data)
    pixels = bool(blob.lut_offset)
    for what, program, of, digest in (
        ("inference", _RUN, "n.output", inference),
        ("training", _STEP, "n._memory[3]", training),
    ):
        if digest is None:
            yield Line(what, None, f"{name} learns nothing: compile it with --plan")
            continue
        code = program.format(rate=RATE, shift=_SHIFT, pixels=pixels) + _ANSWER.format(what=of)
        try:
            us, result = session.call(code, timeout=120)
        except BoardError as error:
            yield Line(what, False, _remedy(error))
            continue
        same = "the same bytes as on this computer"
        if result != digest:
            same = "not the bytes of this computer: run 'sprout install', report it if it stays"
        unit = "one picture" if what == "inference" else "one step"
        yield Line(what, result == digest, f"{same}, {us / 1000:,.1f} ms for {unit}")


def _remedy(error: BoardError) -> str:
    """What a board said, without its type."""
    return error.text if error.kind != "MemoryError" else f"{error.text} (heap)"
