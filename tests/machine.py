"""What every emulated processor is to the tests and benches: ``emulator.py`` says which there are.

Every buffer lies alone between unmapped pages, and its unused bytes are held against a pattern:
an access outside the buffers that a call was given raises ``Fault``.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native_modules import mpy

PAGE = 4096
PATTERN = 0xA5
TABLE_ENTRIES = 96  # of MicroPython's table of functions


class Fault(Exception):
    """The machine code did what it must not: the message says where."""


class Raised(Exception):
    """The module raised a MicroPython exception."""


@dataclass(eq=False)
class Buffer:
    """Memory between guard pages; to the module, an object with a buffer."""

    name: str
    address: int
    size: int
    writable: bool
    first_page: int
    pages_end: int


@dataclass(eq=False)
class File:
    """An open file, read through a stream."""

    data: bytes
    position: int = 0


@dataclass
class Count:
    """What some calls took. ``taken`` counts branches that went elsewhere."""

    instructions: int = 0
    memory: int = 0
    taken: int = 0
    cycles: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.instructions + other.instructions,
            self.memory + other.memory,
            self.taken + other.taken,
            self.cycles + other.cycles,
        )


class Machine(abc.ABC):
    """A processor with one native module imported, the file ``module``.

    ``edge`` says which end of a buffer touches its guard page; ``code`` is the module's machine
    code, at ``code_address``; ``stack_used`` the most bytes of stack that a call took since
    ``reset_count``.  Raises Fault and Raised from calls.
    """

    module: Path
    code: bytes
    code_address: int
    stack_used: int
    align = 8  # of buffers

    def __init__(self, name: str, edge: str) -> None:
        self.name, self.edge = name, edge
        self.halves = False  # whether nets believe in a second core
        self._buffers: list[Buffer] = []

    @abc.abstractmethod
    def _map(self, name: str, size: int, writable: bool) -> tuple[int, int]:
        """Map memory for ``size`` bytes, with nothing beside it; return its start and length."""

    @abc.abstractmethod
    def peek(self, address: int, size: int) -> bytes:
        """Return bytes of the memory."""

    @abc.abstractmethod
    def poke(self, address: int, data: bytes) -> None:
        """Change bytes of the memory, read-only ones too."""

    @abc.abstractmethod
    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the module with Python objects, Buffer and File among them."""

    @abc.abstractmethod
    def reset_count(self) -> None:
        """Start counting, and measuring the stack, from nothing."""

    @abc.abstractmethod
    def count(self) -> Count:
        """Return what the calls since ``reset_count`` took."""

    def profile(self) -> dict[str, Count]:
        """Return the same by function of the C code, the dearest first, where that is known."""
        return {}

    @property
    def symbols(self) -> list[tuple[str, int, int]]:
        """Names of C functions, where in the code they start and end; none if that is unknown."""
        program = self.module.with_suffix(".elf")
        return _symbols(program) if program.exists() else []

    def function_at(self, at: int) -> str:
        """Return the C function that an offset in the code belongs to."""
        if not 0 <= at < len(self.code):
            return "outside"
        for symbol, start, end in self.symbols:
            if start <= at < end:
                return symbol
        return f"{at:#x}"

    def place(self, name: str, data: bytes | int, writable: bool = True) -> Buffer:
        """Give ``data``, or so many zero bytes, memory of its own between guard pages."""
        content = bytes(data)
        start, room = self._map(name, len(content), writable)
        at = start if self.edge == "start" else (start + room - len(content)) & -self.align
        self.poke(start, bytes([PATTERN]) * room)
        self.poke(at, content)
        buffer = Buffer(name, at, len(content), writable, start, start + room)
        self._buffers.append(buffer)
        return buffer

    def read(self, buffer: Buffer) -> bytes:
        return self.peek(buffer.address, buffer.size)

    def write(self, buffer: Buffer, data: bytes, at: int = 0) -> None:
        assert at + len(data) <= buffer.size
        self.poke(buffer.address + at, data)

    def check_surroundings(self) -> None:
        """Raise Fault where bytes beside a buffer changed."""
        for b in self._buffers:
            content = self.peek(b.first_page, b.pages_end - b.first_page)
            start = b.address - b.first_page
            around = content[:start] + content[start + b.size :]
            if around.strip(bytes([PATTERN])):
                raise Fault(f"{self.name}: bytes beside {b.name} were written")

    def near(self, address: int) -> str:
        """Say where an address lies, by the buffer next to it."""

        def distance(b: Buffer) -> int:
            return max(b.address - address, address - b.address - b.size)

        b = min(self._buffers, key=distance)
        return f"{address - b.address} from the start of {b.name} ({b.size} bytes)"


def whole_pages(size: int) -> int:
    """Return the length of the pages, one at least, that hold so many bytes."""
    return max(1, -(-size // PAGE)) * PAGE


@functools.cache
def _symbols(program: Path) -> list[tuple[str, int, int]]:
    elf = mpy.read_elf(program.read_bytes())
    base = next(section.address for section in elf.sections if section.name == ".image")
    return [
        (symbol.name, (symbol.address & ~1) - base, (symbol.address & ~1) - base + symbol.size)
        for symbol in elf.symbols
        if symbol.size
    ]
