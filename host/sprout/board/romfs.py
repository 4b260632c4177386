"""ROMFS images: files that firmware with a ROMFS partition reads where they lie in flash.

Weights and bytecode need no heap there.  The layout is that of MicroPython's extmod/vfs_rom.c and
of ``mpremote romfs``, whose writer this uses; padding puts each blob at a multiple of ALIGNMENT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import click
from mpremote.romfs import VfsRomWriter

from .. import blob as blobs
from ..arguments import read_blob, write
from ..graph import SproutError
from . import table
from .install import library

ALIGNMENT = 16  # the core needs 4; a partition begins at a sector of flash
_SHORTEST_PADDING = 2  # bytes: a record without content


class _Writer(VfsRomWriter):
    """mpremote's, with files whose content is aligned if the image's header has ``head`` bytes."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self._head = head

    def mkaligned(self, name: str, content: bytes) -> None:
        """Add a file to the root whose content begins at a multiple of ALIGNMENT."""
        ((_, written),) = self._dir_stack
        alone = VfsRomWriter()
        alone.mkfile(name, content)
        before = len(alone._dir_stack[0][1]) - len(content)
        gap = -(self._head + len(written) + before) % ALIGNMENT
        if gap:
            gap += ALIGNMENT if gap < _SHORTEST_PADDING else 0
            self._pad(gap)
        self.mkfile(name, content)

    def end(self) -> int:
        """Make the image's length even, so that its header needs no byte more; return the bytes
        without header."""
        ((_, written),) = self._dir_stack
        if (self._head + len(written)) % 2:
            self._pad(3)
        return len(written)

    def _pad(self, n: int) -> None:
        self._extend(self._pack(self.ROMFS_RECORD_KIND_PADDING, bytes(n - _SHORTEST_PADDING)))


def image(aligned: Mapping[str, bytes], library: Mapping[str, bytes]) -> bytes:
    """Return a ROMFS with these files in its root, aligned, and a library in lib/.

    ``library``: names with at most one folder, those of a folder together.
    """
    # The header's length depends on that of the rest; it is 3 bytes and up to 5 of a number.
    for head in range(4, 9):
        writer = _Writer(head)
        for name, content in aligned.items():
            writer.mkaligned(name, content)
        writer.opendir("lib")
        for folder, names in groupby(library, lambda name: name.rpartition("/")[0]):
            if folder:
                writer.opendir(folder)
            for name in names:
                writer.mkfile(name.rpartition("/")[2], library[name])
            if folder:
                writer.closedir()
        writer.closedir()
        length = writer.end()
        out = bytes(writer.finalise())
        if len(out) - length == head:
            return out
    raise SproutError("The ROMFS would be too large: leave out a blob.")


def saved_bytes(blob: blobs.Blob) -> int:
    """Return the bytes of heap that a net saves where its blob lies in a ROMFS: header and tables
    are used in place.  Frozen weights take no heap anyway, but need no copying then."""
    return blob.program_len


@click.command("romfs", short_help="Build a ROMFS image, whose weights are used in place.")
@click.argument(
    "paths", metavar="BLOB...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--board", "name", default="pico", show_default=True, metavar="NAME")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="BOARD.romfs if not given.")
def command(paths: Sequence[Path], name: str, output: Path | None) -> None:
    """Build a ROMFS image with the blobs, the device package and the native module for a board.

    'mpremote romfs deploy FILE' writes it to firmware that has a ROMFS partition.
    """
    board = table.find(name)
    output = output or Path(f"{board.name}.romfs")
    contents: dict[str, bytes] = {}
    saved = 0
    for path in paths:
        raw, blob = read_blob(path)
        if path.name in contents:
            raise SproutError(f"Two blobs are called {path.name}: rename one.")
        contents[path.name] = raw
        saved += saved_bytes(blob)
    raw = image(contents, library(board.arch))
    write(output, raw)
    click.echo(f"{output}: {len(raw):,} bytes, {', '.join(contents)} for {board.title}")
    click.echo(f"saves {saved:,} bytes of heap and the copying of weights")
    click.echo(f"Next: mpremote romfs deploy {output}")
