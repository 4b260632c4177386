"""Packages of Sprout that MicroPython's ``mip`` installs."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import click

from .install import library

from native_modules import build  # isort: skip  # places has put it on the path


def write_mip(folder: Path, arch: str) -> Path:
    """Write ARCH/package.json and its files into ``folder``; return the path of package.json.

    Its URLs are relative, so the folder can lie on any web server or in a repository.
    """
    out = folder / arch
    contents = library(arch)
    for name, content in contents.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    urls = [[name, name] for name in contents]
    about = {"version": metadata.version("sprout"), "urls": urls}
    path = out / "package.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    return path


@click.command("mip", short_help="Write packages for MicroPython's mip.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def command(folder: Path) -> None:
    """Write a package for each architecture into FOLDER, to be put on a web server.

    A board with a network then runs mip.install("http://SERVER/FOLDER/ARCH/").
    """
    for arch in build.ALL_TOOLCHAINS:
        click.echo(write_mip(folder, arch))
