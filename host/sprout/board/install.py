"""Puts Sprout and blobs onto a board, and fetches files from it.

A file is sent under a temporary name, its SHA-256 is computed on the board, and only then it takes
the old one's place, in one step of the file system: a transfer that is cut anywhere leaves the old
file or the new one.  What belongs together changes together, as long as there is room for all of
it beside the old; where there is not even room for one file, nothing is changed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from .. import blob as blobs
from ..graph import SproutError
from ..places import device_module
from ..progress import Reporter
from . import sim
from .wire import SUFFIX, BoardError, Session, find_port

from native_modules import mpy  # isort: skip  # places has put it on the path

PACKAGE_HEAP = 14 * 1024  # bytes of heap that the package takes at least, on 32-bit words
_PROBE = """
import sys
libs = [p for p in sys.path if p.endswith("lib") and p[:4] not in ("rom", "/rom")]
lib = libs[0] if libs else "/lib"
root = lib[:-4]
fs = os.statvfs(root or "/")
i = sys.implementation
answer = {
    "name": i.name, "version": list(i.version), "mpy": getattr(i, "_mpy", 0),
    "machine": getattr(i, "_machine", sys.platform), "heap": F, "root": root,
    "block": fs[1], "free": fs[0] * fs[3], "total": fs[1] * fs[2],
    "files": files(root),
}
"""


@dataclass
class Probe:
    """What a board says of itself: sizes in bytes, ``heap`` what is free after boot."""

    name: str
    version: list[Any]
    mpy: int
    machine: str
    heap: int
    root: str  # of the file system, without the slash
    block: int
    free: int
    total: int
    files: dict[str, list[list[Any]]]  # (name, bytes) by folder

    @property
    def firmware(self) -> str:
        return "MicroPython " + ".".join(str(part) for part in self.version[:3])

    @property
    def lib(self) -> str:
        return f"{self.root}/lib"

    def sizes(self) -> dict[str, int]:
        """The bytes of each whole file, by path."""
        return {
            f"{folder}/{name}": int(size)
            for folder, files in self.files.items()
            for name, size in files
            if not name.endswith(SUFFIX)
        }

    def room_for(self, size: int) -> int:
        """The bytes of flash that a file takes: whole blocks, with their pointers."""
        return -(-(size + size // 256 + 32) // self.block) * self.block


@contextmanager
def connected(
    port: str | None, via: str = "ampy", baud: int = 115_200
) -> Iterator[tuple[Session, Probe]]:
    """A session with a board, and what it is; raises SproutError where it is none of ours."""
    with Session(find_port(port), via, baud) as session:
        probe = Probe(**session.call(_PROBE))
        if probe.name != "micropython":
            raise SproutError(
                f"The board at {session.port} runs {probe.name}: install MicroPython 1.23 to 1.29."
            )
        yield session, probe


def abi(probe: Probe) -> str:
    """The .mpy version and architecture that a board's firmware takes."""
    arch = {number: name for name, number in mpy.ARCHES.items()}.get(probe.mpy >> 10 & 15)
    return f"{probe.mpy & 255}.{probe.mpy >> 8 & 3} for {arch or 'no native code'}"


def architecture(probe: Probe) -> str:
    """Return the architecture of the native modules that a board takes.

    Raises SproutError with the board's own sentence where there is none for its firmware.
    """

    class Implementation:
        _mpy = probe.mpy

    needed = device_module("trouble").needed(Implementation)
    remedy = re.search(r"copy sprout_core_(\w+)\.mpy to the board as \S+$", needed)
    if not remedy or "install MicroPython" in needed:
        if remedy:
            needed = needed.replace(remedy[0], "run the command again")
        raise SproutError(f"The board has {probe.firmware}, and {needed}.")
    return remedy[1]


def library(arch: str) -> dict[str, bytes]:
    """What goes into lib/ of a board: the package, precompiled, and its native modules."""
    package = sorted((sim.library() / "sprout").iterdir())
    files = {f"sprout/{file.name}": file.read_bytes() for file in package}
    return files | {name: file.read_bytes() for name, file in sim.native_modules(arch).items()}


def heap_needed(blob: blobs.Blob | None, arch: str) -> int:
    """The bytes of heap that Sprout takes at least, with a blob or without."""
    # The unix port and ESP32s keep native code elsewhere.
    in_heap = arch.startswith("arm")
    code = mpy.code_bytes(sim.native_modules(arch)["sprout_core.mpy"]) if in_heap else 0
    if blob is None:
        return code + PACKAGE_HEAP
    buffers = blob.arena_len + blob.trained_len + blob.scratch_len
    return code + PACKAGE_HEAP + buffers + int(blob.info["memory"]["program"])


def check_heap(name: str, blob: blobs.Blob | None, probe: Probe, arch: str) -> None:
    """Raise SproutError where a blob does not fit the board's heap."""
    needed = heap_needed(blob, arch)
    if needed > probe.heap:
        remedy = "compile it with a smaller plan" if blob else "use a board with more RAM"
        raise SproutError(
            f"{name} needs {needed:,} bytes of heap, code included, and the board has "
            f"{probe.heap:,} free: {remedy}."
        )


@dataclass
class Transfer:
    """Files on their way to a board, in groups that belong together; names are absolute."""

    session: Session
    probe: Probe
    report: Reporter
    delete: tuple[str, ...] = ()
    stale: list[str] = field(default_factory=list)

    def run(self, groups: Iterable[Mapping[str, bytes]]) -> list[str]:
        """Send what changed; return the names."""
        changed = [group for group in map(self._changed, groups) if group]
        self.session.call(f"clean({self.probe.root!r})", timeout=10)
        self._delete()
        changed = self._fitting(changed)
        sent: list[str] = []
        done, total = 0, sum(len(data) for group in changed for data in group.values())
        try:
            for group in changed:
                for name, data in group.items():
                    self.session.stage(name, data, self._progress(name, done, total))
                    done += len(data)
                self.session.swap(list(group))
                sent += group
            stale = [name for name in self.stale if name in self.probe.sizes()]
            if stale:
                self.session.swap([], stale)
        except BoardError as error:
            self._clean()
            if error.kind == "OSError" and error.number == 28:
                raise SproutError(self._full({**group}, self.probe.free)) from None
            raise
        except (SproutError, KeyboardInterrupt):
            self._clean()
            raise
        return sent

    def _progress(self, name: str, before: int, total: int) -> Callable[[int], None]:
        return lambda done: self.report("sending", before + done, total, name)

    def _clean(self) -> None:
        """Leave nothing half done, if the board can still be reached."""
        with suppress(SproutError):
            self.session.call(f"clean({self.probe.root!r})", timeout=10, attempts=2)

    def _changed(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Those of ``files`` that are not on the board already."""
        sizes = self.probe.sizes()
        changed = {}
        for name, data in files.items():
            if sizes.get(name) == len(data):
                digest = self.session.sha256(name, len(data))
                if digest == hashlib.sha256(data).hexdigest():
                    continue
            changed[name] = data
        return changed

    def _delete(self) -> None:
        """Delete what the user gave up for more room."""
        sizes = self.probe.sizes()
        names = [f"{self.probe.root}/{name.lstrip('/')}" for name in self.delete]
        for name in names:
            if name not in sizes:
                there = ", ".join(sorted(sizes)) or "nothing"
                raise SproutError(f"{name} is not on the board, which has {there}.")
        if names:
            self.session.swap([], names)
            for folder, files in self.probe.files.items():
                files[:] = [file for file in files if f"{folder}/{file[0]}" not in names]
        freed = self.session.call(
            f"s = os.statvfs({self.probe.root or '/'!r})\nanswer = s[0] * s[3]"
        )
        self.probe.free = int(freed)

    def _fitting(self, groups: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
        """The groups as one if there is room for all, else as they are; says what is missing."""
        whole = {name: data for group in groups for name, data in group.items()}
        if self._room(whole) <= self.probe.free:
            return [whole] if whole else []
        free, sizes = self.probe.free, self.probe.sizes()
        for group in groups:
            if self._room(group) > free:
                raise SproutError(self._full(group, free))
            old = sum(self.probe.room_for(sizes[name]) for name in group if name in sizes)
            free += old - self._room(group)
        return groups

    def _room(self, files: Mapping[str, bytes]) -> int:
        """Bytes of flash for new files, and two blocks for folders."""
        if not files:
            return 0
        blocks = sum(self.probe.room_for(len(data)) for data in files.values())
        return blocks + 2 * self.probe.block

    def _full(self, group: Mapping[str, bytes], free: int) -> str:
        """Say how much room is missing, and what could be deleted."""
        missing = self._room(group) - free
        sizes = {
            name: size
            for name, size in self.probe.sizes().items()
            if not name.startswith(self.probe.lib + "/") and size >= self.probe.block
        }
        largest = sorted(sizes, key=lambda name: -sizes[name])[:4]
        offer = ", ".join(f"{name} ({sizes[name]:,} bytes)" for name in largest)
        names = ", ".join(name for name in group if not name.startswith(self.probe.lib + "/"))
        remedy = f"delete with --delete NAME what you can do without: {offer}"
        if not offer:
            remedy = "use a smaller model or a board with more flash"
        return (
            f"The board has {free:,} bytes of room and {names or 'Sprout'} needs "
            f"{max(missing, self.probe.block):,} more, beside the old file until the new one is "
            f"whole: {remedy}."
        )


def install(
    session: Session,
    probe: Probe,
    files: Mapping[str, tuple[bytes, blobs.Blob]],
    report: Reporter,
    delete: tuple[str, ...] = (),
) -> list[str]:
    """Put the package, its native modules and blobs (by name) onto a board; return what was sent.

    Checks firmware and heap before anything is changed.
    """
    arch = architecture(probe)
    for name, (_, blob) in files.items():
        check_heap(name, blob, probe, arch)
    if not files:
        check_heap("Sprout", None, probe, arch)
    lib = {f"{probe.lib}/{name}": data for name, data in library(arch).items()}
    folder = f"{probe.lib}/sprout"
    stale = [
        f"{folder}/{name}"
        for name, _ in probe.files.get(folder, [])
        if f"{folder}/{name}" not in lib and name.endswith((".py", ".mpy"))
    ]
    groups = [lib] + [{f"{probe.root}/{name}": data} for name, (data, _) in files.items()]
    return Transfer(session, probe, report, delete, stale).run(groups)


def path_on(probe: Probe, name: str) -> str:
    """The absolute path of a file that a user named."""
    if name.endswith(SUFFIX):
        raise SproutError(f"{name} is a name for files on their way: choose another.")
    return name if name.startswith("/") else f"{probe.root}/{name}"
