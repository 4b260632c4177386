"""What all commands share: files that a user names, and the console.

Whatever is wrong with such a file is a SproutError of one sentence.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from . import blob as blobs
from .graph import SproutError


class OutFile(click.Path):
    """A file to write; that it can be is checked before anything is done for it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = Path(value)
        if path.is_dir():
            raise SproutError(f"{path} is a folder: give the name of a file to write.")
        if not path.parent.is_dir():
            raise SproutError(f"{path} cannot be written, there is no folder {path.parent}.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise SproutError(f"{path} cannot be written: you have no permission to.")
        return path


def read_blob(path: Path) -> tuple[bytes, blobs.Blob]:
    """Return a blob file, raw and taken apart."""
    exists(path, f"make a blob with 'sprout compile MODEL -o {path}'")
    raw = path.read_bytes()
    blob = blobs.read(raw, str(path))
    missing = sorted({"name", "classes", "input", "output"} - set(blob.meta))
    if missing:
        raise SproutError(f"{path} does not say its {missing[0]}: compile the model again.")
    return raw, blob


def exists(path: Path, hint: str) -> None:
    """Refuse a file that is not there, with what to do."""
    if not path.exists() or path.is_dir():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SproutError(f"{path} {what}: {hint}.")


def write(path: Path, data: bytes) -> None:
    """Write a file of the user's."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SproutError(
            f"{path} cannot be written ({error.strerror}): make {len(data)} bytes of room, "
            "or give another place."
        ) from None


def make_console() -> Console:
    """A console that is as wide in a pipe as our lines are."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 110)
