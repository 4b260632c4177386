"""The command line in this process, and MicroPython without the simulated board around it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sprout import cli
from sprout.board import sim


def sprout(*args: object) -> int:
    """Run the command line; returns the exit status."""
    return cli.main([str(arg) for arg in args])


def complaint(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one sentence that a wrong command prints; the status is 1 and there is no traceback."""
    capsys.readouterr()
    assert sprout(*args) == 1
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert len(lines) == 1, out + err
    assert lines[0].startswith("sprout: ")
    assert "Traceback" not in out + err
    return lines[0].removeprefix("sprout: ")


def micropython(code: str, folder: Path, path: str = "lib:.frozen", *options: str) -> str:
    """Run code with a folder as the flash and a module path; returns what it prints."""
    done = subprocess.run(
        [*sim.micropython(), *options, "-c", code],
        cwd=folder,
        env=dict(os.environ, MICROPYPATH=path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
