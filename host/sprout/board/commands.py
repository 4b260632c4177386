"""Commands for boards at a serial port: install, put, get, repl, doctor."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..arguments import exists, make_console, read_blob, write
from ..graph import SproutError
from ..progress import Reporter

PORT = (
    click.option(
        "--port",
        envvar="SPROUT_PORT",
        help="The board's serial port; the only one there is if not given.",
    ),
    click.option(
        "--baud",
        metavar="N",
        type=click.IntRange(1200),
        default=115_200,
        show_default=True,
        help="Of a board behind a bridge chip.",
    ),
)
VIA = click.option(
    "--via",
    type=click.Choice(["ampy", "mpremote"]),
    default="ampy",
    show_default=True,
    help="The library that talks to the board.",
)
DELETE = click.option(
    "--delete",
    metavar="NAME",
    multiple=True,
    help="Delete this file on the board first, for more room; more than once if need be.",
)


def _port_options(command: Any) -> Any:
    for option in reversed(PORT):
        command = option(command)
    return command


@click.command("install", short_help="Put Sprout and blobs onto a board.")
@click.argument("blobs", nargs=-1, type=click.Path(path_type=Path))
@_port_options
@VIA
@DELETE
def install_command(
    blobs: tuple[Path, ...], port: str | None, baud: int, via: str, delete: tuple[str, ...]
) -> None:
    """Put the MicroPython package, the board's native module and BLOBS onto the board.

    Only what changed is sent, and each file replaces the old one when all of it is there.
    """
    from .install import abi, connected, install
    from .sim import on_flash

    files = {on_flash(path): read_blob(path) for path in blobs}
    say, reporter = _console()
    with connected(port, via, baud) as (session, probe):
        say(
            f"{probe.machine} at {session.port}: {probe.firmware}, .mpy {abi(probe)}, "
            f"{probe.heap:,} bytes of heap and {probe.free:,} of flash free"
        )
        with reporter as report:
            sent = install(session, probe, files, report, delete)
        session.reset()
    inside = [path for path in sent if path.startswith(probe.lib + "/")]
    parts = [f"{len(inside)} of Sprout's files into {probe.lib}"] if inside else []
    parts += [path for path in sent if path not in inside]
    say(f"Sent {', '.join(parts)}." if sent else "Everything was there already.")
    say("Type next:")
    say(f"  $ sprout repl --port {session.port}")
    say("  >>> import sprout")
    if files:
        say(f"  >>> net = sprout.load({next(iter(files))!r})")
        say("  >>> net")


@click.command("put", short_help="Copy files to a board.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--as", "name", metavar="NAME", help="Its name on the board, for one file.")
@_port_options
@VIA
@DELETE
def put_command(
    files: tuple[Path, ...],
    name: str | None,
    port: str | None,
    baud: int,
    via: str,
    delete: tuple[str, ...],
) -> None:
    """Copy FILES, or what is in folders, to the board, each file whole or not at all."""
    from .install import Transfer, connected, path_on

    if name and len(files) > 1:
        raise SproutError(f"--as is one name and you gave {len(files)} files: give one.")
    contents = {}
    for path in files:
        if path.is_dir():
            folder, inside = name or path.name, sorted(path.rglob("*"))
            named = {
                file: f"{folder}/{file.relative_to(path).as_posix()}"
                for file in inside
                if file.is_file()
            }
        else:
            exists(path, "give the name of a file or folder here")
            named = {path: name or path.name}
        for file, at in named.items():
            data = read_blob(file)[0] if file.suffix == ".sprout" else file.read_bytes()
            contents[at] = data
    say, reporter = _console()
    with connected(port, via, baud) as (session, probe), reporter as report:
        groups = [{path_on(probe, name): data} for name, data in contents.items()]
        sent = Transfer(session, probe, report, delete).run(groups)
    for name, data in contents.items():
        there = "sent" if path_on(probe, name) in sent else "was there already"
        say(f"{path_on(probe, name)}: {len(data):,} bytes {there}")


@click.command("get", short_help="Copy a file or folder from a board, or list its files.")
@click.argument("name", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Its name here.")
@_port_options
@VIA
def get_command(
    name: str | None, output: Path | None, port: str | None, baud: int, via: str
) -> None:
    """Copy NAME from the board, such as a checkpoint or a folder of samples.

    Without NAME list what is there.
    """
    from .install import connected, path_on

    say, reporter = _console()
    target = output or Path(Path(name or "").name)
    if name and not os.access(target.parent, os.W_OK):
        raise SproutError(f"{target} cannot be written: give another place with -o.")
    with connected(port, via, baud) as (session, probe), reporter as report:
        sizes = probe.sizes()
        if name is None:
            for path, size in sorted(sizes.items()):
                say(f"{size:>10,}  {path}")
            say(f"{probe.free:>10,}  bytes free")
            return
        path = path_on(probe, name).rstrip("/")
        inside = [p for p in sorted(sizes) if p.startswith(path + "/")]
        slots = [] if inside else [p for p in _slots(path) if p in sizes]
        if not inside and not slots:
            there = ", ".join(sorted(p for p in sizes if not p.startswith(probe.lib + "/")))
            raise SproutError(f"{path} is not on the board, which has {there or 'no files'}.")
        contents = {}
        for p in inside or slots:
            here = target / p[len(path) + 1 :] if inside else Path(p)
            contents[here] = session.fetch(
                p, sizes[p], functools.partial(_got, report, p, sizes[p])
            )
    if not inside:
        contents = {target: _newest(contents, path)}
    for here, data in contents.items():
        here.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(here, data)
        say(f"{here}: {len(data):,} bytes")


@click.command("repl", short_help="A terminal to a board.")
@_port_options
def repl_command(port: str | None, baud: int) -> int:
    """Open the board's REPL here; Ctrl-] leaves it, Ctrl-C stops the board's program."""
    from .terminal import repl

    return repl(port, baud)


@click.command("doctor", short_help="Examine a board.")
@click.argument("blob", required=False, type=click.Path(path_type=Path))
@_port_options
@VIA
def doctor_command(blob: Path | None, port: str | None, baud: int, via: str) -> int:
    """Check the board, Sprout on it, and that BLOB computes the same bytes there as here.

    Without BLOB the first one on the board is taken.
    """
    from .doctor import examine
    from .install import connected
    from .sim import on_flash

    data = read_blob(blob)[0] if blob else None
    say, reporter = _console()
    failed = 0
    with connected(port, via, baud) as (session, probe):
        name = f"{probe.root}/{on_flash(blob)}" if blob else None
        if blob is None:
            sizes = probe.sizes()
            found = sorted(path for path in sizes if path.endswith(".sprout"))
            if found:
                name = found[0]
                with reporter as report:
                    progress = functools.partial(_got, report, name, sizes[name])
                    data = session.fetch(name, sizes[name], progress)
        for line in examine(session, probe, name, data):
            mark = {True: "ok", False: "FAILED", None: "-"}[line.good]
            say(f"{line.what:10}{mark:8}{line.text}")
            failed += line.good is False
        session.reset()
    if failed:
        raise SproutError(f"{failed} of the checks failed: see what to do in their lines.")
    return 0


@click.command("sim-board", short_help="A simulated board behind a serial port.")
@click.option("--board", default="pico", show_default=True, help="Whose heap and flash it has.")
@click.option("--flash", type=click.Path(path_type=Path), help="The file of its flash.")
def sim_board_command(board: str, flash: Path | None) -> None:
    """Open a serial port with a simulated board behind it, for all commands that take --port.

    It is MicroPython with a board's heap and file system; Ctrl-C takes it away.  What is on its
    flash is there the next time, in build/sim-BOARD.flash if --flash does not say where.
    """
    from .serialsim import SerialBoard

    flash = flash or Path("build", f"sim-{board}.flash")
    flash.parent.mkdir(parents=True, exist_ok=True)
    with SerialBoard(flash, board) as simulated:
        click.echo(simulated.port)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def _slots(path: str) -> list[str]:
    """The files of a board that may be what was saved as ``path``."""
    from .. import checkpoint

    return [slot.as_posix() for slot in checkpoint.slots(Path(path))]


def _newest(contents: dict[Path, bytes], path: str) -> bytes:
    """The newest checkpoint among the slots of ``path``, as one file; or the file as it is."""
    from .. import checkpoint

    if not any(data[:4] == b"SPCK" for data in contents.values()):
        if Path(path) not in contents:
            raise SproutError(f"{path} is not on the board: 'sprout get' alone lists what is.")
        return contents[Path(path)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for slot, data in contents.items():
            file = folder / slot.relative_to("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        saved = folder / Path(path).relative_to("/")
        checkpoint.write(saved, checkpoint.read(saved))
        return saved.read_bytes()


def _got(report: Any, name: str, size: int, done: int) -> None:
    report("getting", done, size, name)


def _console() -> tuple[Callable[[str], None], Reporter]:
    console = make_console()
    return functools.partial(console.print, markup=False, soft_wrap=True), Reporter(console)


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file here that is there whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


COMMANDS = (
    *(install_command, put_command, get_command, repl_command, doctor_command),
    sim_board_command,
)
