"""The C core on this machine itself, between guard pages: see ``machine.py``.

An access outside a buffer kills the process, as it would anywhere. So tests let a process of its
own do their cases (``run``) and hear of it if that one dies.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import mmap
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from machine import PAGE, Buffer, Count, Fault, File, Machine, whole_pages
from sprout.engine import _READ, Run, _Memory, load_library

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
NOTHING, READ_ONLY = 0, 1  # of mprotect


class Host(Machine):
    """This machine with a shared library of the core, whose functions it calls as a board does."""

    align = 4

    def __init__(self, library: Path, edge: str) -> None:
        super().__init__(library.name, edge)
        self._library = load_library(library)
        self._maps: list[mmap.mmap] = []
        self.reset_count()

    def _map(self, name: str, size: int, writable: bool) -> tuple[int, int]:
        room = whole_pages(size)
        memory = mmap.mmap(-1, room + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + PAGE
        for page in (start - PAGE, start + room):
            assert _libc.mprotect(page, PAGE, NOTHING) == 0
        self._maps.append(memory)
        return start, room

    def peek(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def poke(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def place(self, name: str, data: bytes | int, writable: bool = True) -> Buffer:
        buffer = super().place(name, data, writable)
        if not writable:
            room = buffer.pages_end - buffer.first_page
            assert _libc.mprotect(buffer.first_page, room, READ_ONLY) == 0
        return buffer

    def call(self, name: str, *args: Any) -> Any:
        memory = _Memory()
        names = ("blob", "program", "arena", "trained", "scratch", "accum")
        for field, buffer in zip(names, args[0], strict=True):
            if isinstance(buffer, Buffer):
                setattr(memory, field, buffer.address)
                setattr(memory, field + "_len", buffer.size)
            elif isinstance(buffer, File):
                memory.read = _READ(functools.partial(_read, buffer.data))
        if name == "run":
            run = ctypes.cast(args[1].address, ctypes.POINTER(Run))
            return self._library.sprout_run(memory, run)
        assert name == "check"
        return self._library.sprout_check(memory)

    def reset_count(self) -> None:
        self.stack_used = 0  # a board's is short, this machine's is not

    def count(self) -> Count:
        return Count()


def _read(data: bytes, _: Any, offset: int, to: int, length: int) -> int:
    if offset + length > len(data):
        return -1
    ctypes.memmove(to, data[offset : offset + length], length)
    return 0


@functools.cache
def _pool() -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, context)


def _case(case: Callable[..., None], library: Path, edge: str, args: tuple[Any, ...]) -> None:
    case(Host(library, edge), *args)


def run(case: Callable[..., None], library: Path, edge: str, *args: Any) -> None:
    """Call ``case`` with a Host and the arguments in another process; raise what it raises.

    Raises Fault if the process dies.
    """
    try:
        _pool().submit(_case, case, library, edge, args).result()
    except BrokenProcessPool:
        _pool.cache_clear()
        raise Fault(f"{library.name} touched memory outside its buffers, and died") from None
