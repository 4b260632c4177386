"""An ESP32-class processor in QEMU, with the same methods as those of ``emulator.py``.

Debian's emulator has no ESP32 but dc233c, a core with the same register windows and, except for
the high half of a product, all instructions that the module uses.  ``xtensa/loader.c`` does there
what MicroPython's loader does, led through pipes.  Needs what `make natmod-xtensawin` installs and
builds.

Counted are the instructions from a call of the module to its return, exactly: QEMU gives every
instruction one tick of its clock (-icount), which the loader reads.  In them is what MicroPython
itself would do in between (some hundred for a call: ``get_buffer`` and the like), and the register
windows that go to the stack and back, which are more of them here, with 32 registers, than on an
ESP32 with 64.  A MULSH, which is put together from others here, counts as one.
"""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

from machine import Buffer, Count, Fault, Machine, Raised, whole_pages

from native_modules import build, mpy

HERE = Path(__file__).resolve().parent / "xtensa"
QEMU = "qemu-system-xtensa"
# The processor has four places for translations of pages of 1 MB: one for each of the buffers that
# the core gets, with nothing beside them; the next network takes them over. All else lies in one
# piece, where only writes beside it are seen.
MEMORY, PAGES, N_PAGES = 0x100000, 0x30000000, 4
LARGE, CHECKED = 1 << 20, 1 << 16  # bytes of a page; of it, how much beside a buffer is looked at
GUARDED = ("blob", "arena", "trained", "scratch")
# -icount shift: 2**8 ns for an instruction, of a clock that ticks every 100 ns
SHIFT, TICKS = 8, 2.56
EMULATION = 46  # instructions more that start.S takes for one that dc233c does not have
READ, WRITE, MAP, LOAD, CALL = range(5)
ANSWER = struct.Struct("<4I")
READ_ONLY, WRITABLE = 0, 2  # attributes of a page
BUFFER, FILE, TUPLE = 1, 2, 3  # thing_t
CAUSES = {9: "misaligns", 16: "executes", 24: "reads or writes", 29: "writes the read-only"}
ARGUMENTS = 1024  # bytes for a call: objects, the items of a tuple, the function's name


@functools.cache
def loader() -> Path:
    """Return the loader as a program for the bare processor."""
    out = build.BUILD / "xtensa" / "loader.elf"
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        objects = []
        for source in (HERE / "start.S", HERE / "loader.c", build.NATMOD / "libc.c"):
            objects.append(folder / f"{source.stem}.o")
            build.XTENSA.compile(source, [*build.WARNINGS, "-o", objects[-1]])
        linked = folder / out.name
        options = ["--no-warn-rwx-segments", "-T", HERE / "loader.ld", "-o", linked]
        build.XTENSA.link([*options, *objects])
        linked.replace(out)
    return out


class Xtensa(Machine):
    """dc233c in a QEMU of its own, which ends with this object.

    ``code_offset``: how far the code starts behind a multiple of 16.  ``seconds``: what a call may
    take.  ``options``: more of QEMU's.
    """

    def __init__(
        self,
        name: str,
        module: Path,
        edge: str = "end",
        code_offset: int = 4,
        seconds: float = 300,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(name, edge)
        self._next, self._n_pages = MEMORY, 0
        self._qemu = subprocess.Popen(
            [
                *(QEMU, "-cpu", "dc233c", "-M", "sim", "-m", "128M", "-nographic"),
                *("-monitor", "none", "-serial", "none", "-icount", f"shift={SHIFT},sleep=off"),
                *("-semihosting", "-kernel", str(loader()), *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._seconds = seconds
        self._end = weakref.finalize(self, _end, self._qemu)
        data = module.read_bytes()
        image = mpy.read_mpy(data).image
        self.module, self.code = module, image.code
        self.reset_count()
        file = self.place("module", data, writable=False)
        room = self.place("code", len(image.code) + 32)
        self.code_address = (room.address + 15 & -16) + code_offset
        constants = self.place("constants", len(image.constants), writable=False)
        self._arguments = self.place("arguments", ARGUMENTS)
        self._things: dict[int, tuple[Any, Buffer, Buffer]] = {}
        self._command(LOAD, file.address, self.code_address, constants.address)
        self._none = struct.unpack("<I", self._result(4))[0]

    @staticmethod
    def missing() -> str:
        """Say in one sentence what there must be first; "" where all is there."""
        if not shutil.which(QEMU):
            return f"{QEMU} is missing: run `make natmod-xtensawin` (Debian 12)"
        return build.XTENSA.missing

    # The pipes

    def _command(self, what: int, a: int, b: int, c: int = 0, data: bytes = b"") -> None:
        assert self._qemu.stdin
        try:
            self._qemu.stdin.write(ANSWER.pack(what, a, b, c) + data)
            self._qemu.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _answer(self, size: int) -> bytes:
        assert self._qemu.stdout
        data = self._qemu.stdout.read(size)
        if len(data) < size:
            self._fail()
        return data

    def _result(self, size: int) -> bytes:
        """Return the answer to a command that runs code of the module, which may never end."""
        timer = threading.Timer(self._seconds, self._qemu.kill)
        timer.start()
        try:
            return self._answer(size)
        finally:
            timer.cancel()

    def _fail(self) -> None:
        """Raise what the loader said before it ended."""
        text = self._qemu.communicate()[1].decode(errors="replace").strip()
        kind, *words = text.split() or ["nothing"]
        if kind == "raised:":
            raise Raised(text)
        if kind != "exception":
            raise Fault(f"{self.name}: {text or 'no answer'}")
        cause, address, at = (int(word, 16) for word in words)
        raise Fault(
            f"{self.name} {CAUSES.get(cause, f'has exception {cause}')} at {address:#x}, "
            f"{self.near(address)}, in {self.function_at(at)}"
        )

    def _map(self, name: str, size: int, writable: bool) -> tuple[int, int]:
        if name not in GUARDED or size > LARGE:
            start, room = self._next, whole_pages(size + 1)
            self._next += room
            return start, room
        start = PAGES + 3 * LARGE * (
            self._n_pages % N_PAGES
        )  # neither neighbours nor in one place
        self._n_pages += 1
        self._buffers = [b for b in self._buffers if not start <= b.first_page < start + LARGE]
        self._command(MAP, start, WRITABLE if writable else READ_ONLY)
        room = min(LARGE, whole_pages(size) + CHECKED)
        return start + (LARGE - room if self.edge == "end" else 0), room

    def peek(self, address: int, size: int) -> bytes:
        self._command(READ, address, size)
        return self._answer(size)

    def poke(self, address: int, data: bytes) -> None:
        self._command(WRITE, address, len(data), data=data)

    # Calls

    def call(self, name: str, *args: Any) -> Any:
        at = self._arguments.address
        items: list[int] = []
        objects = [self._object(value, items) for value in args]
        self.poke(at, struct.pack(f"<{len(objects)}I", *objects))
        self.poke(at + ARGUMENTS // 4, struct.pack(f"<{len(items)}I", *items))
        self.poke(at + ARGUMENTS // 2, name.encode() + b"\0")
        self._command(CALL, at + ARGUMENTS // 2, len(objects), at)
        result, ticks, emulated, stack = ANSWER.unpack(self._result(ANSWER.size))
        self._instructions += round(ticks / TICKS) - emulated * EMULATION
        self.stack_used = max(self.stack_used, stack)
        assert result & 1, "the functions of the module return numbers"
        return (result if result < 1 << 31 else result - (1 << 32)) >> 1

    def _object(self, value: Any, items: list[int]) -> int:
        """Return a value as MicroPython's object; the one tuple of a call puts its ``items``."""
        if value is None:
            return self._none
        if isinstance(value, int):
            return (value << 1 | 1) & 0xFFFFFFFF
        if isinstance(value, tuple):
            items += [self._object(item, items) for item in value]
            at = self._arguments.address
            thing = struct.pack("<4I", TUPLE, at + ARGUMENTS // 4, len(items), 0)
            self.poke(at + ARGUMENTS * 3 // 4, thing)
            return at + ARGUMENTS * 3 // 4
        if id(value) not in self._things:  # kept, for its number to stay its own
            data = value if isinstance(value, Buffer) else self.place("file", value.data, False)
            self._things[id(value)] = value, data, self.place("object", 16)
        _, data, thing = self._things[id(value)]
        kind = BUFFER if data is value else FILE
        self.write(thing, struct.pack("<4I", kind, data.address, data.size, 0))
        return thing.address

    # Counting

    def reset_count(self) -> None:
        self._instructions = self.stack_used = 0

    def count(self) -> Count:
        return Count(self._instructions)


def _end(qemu: subprocess.Popen[bytes]) -> None:
    qemu.kill()
    qemu.wait()
    for pipe in (qemu.stdin, qemu.stdout, qemu.stderr):
        if pipe:
            pipe.close()
