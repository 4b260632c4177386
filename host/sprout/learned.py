"""What a board learned or kept, back on this computer: shown, and baked into a new blob."""

from __future__ import annotations

import collections
import hashlib
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import checkpoint as checkpoints
from .arguments import OutFile, exists, read_blob, write


def holds(path: Path) -> bool:
    """Whether a path is a checkpoint, or a folder of samples."""
    if path.is_dir():
        return (path / "head").is_file()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"SPCK"


def describe(path: Path) -> dict[str, Any]:
    """What is in a checkpoint or a folder of samples; sizes in bytes.

    Raises SproutError if it is damaged.
    """
    if path.is_dir():
        ring = checkpoints.read_ring(path)
        count = collections.Counter(int(label) for label in ring.labels)
        return {
            "samples": len(ring.labels),
            "sample_bytes": int(ring.samples.shape[1]),
            "labels": {str(label): count[label] for label in sorted(count)},
            "damaged": ring.dropped,
        }
    one = checkpoints.read(path)
    return {
        "name": one.name,
        "classes": one.classes,
        "steps": one.step,
        "seed": one.seed,
        "trained_bytes": len(one.trained),
        "digest": hashlib.sha256(one.trained).hexdigest(),
        "blob": one.blob.hex(),
    }


def show(path: Path, as_json: bool, console: Console) -> None:
    """Print ``describe``."""
    found = describe(path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{label}: {n}" for label, n in value.items())
        text = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(key.replace("_", " "), escape(text))
    what = "samples that a board kept" if path.is_dir() else "a checkpoint"
    console.print(f"{path}: {what}", markup=False, soft_wrap=True)
    console.print(table)


@click.command("bake", short_help="Make a blob that starts with what a board learned.")
@click.argument("blob", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The blob.")
def command(blob: Path, checkpoint: Path, output: Path) -> None:
    """Make a blob of BLOB that starts with the parameters and classes of CHECKPOINT.

    The checkpoint may be any board's, of whatever architecture, that learned with BLOB.
    """
    output = OutFile().convert(output, None, None)
    raw, _ = read_blob(blob)
    exists(checkpoint, "fetch one with 'sprout get'")
    found = checkpoints.read(checkpoint)
    write(output, checkpoints.bake(raw, found))
    digest = hashlib.sha256(found.trained).hexdigest()
    click.echo(f"{output}: {', '.join(found.classes)}; {found.step} steps, digest {digest}")
