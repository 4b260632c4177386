"""The examples, in MicroPython with a Pico's heap: short, and each learns what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from sprout.board import sim

from examples import prepare

LEAST = {"person": (200, 25), "button": (180, 8), "gestures": (400, 4), "digits": (100, 15)}
"""Samples learned, and points of accuracy gained."""
CLIPS = {"train": 100, "test": 60}  # of digits: a second of sound is slow to transform


@pytest.mark.parametrize("name", prepare.EXAMPLES)
def test_is_short(name: str) -> None:
    assert len((prepare.HERE / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", prepare.EXAMPLES)
def test_learns(shared: Path, name: str, tmp_path: Path) -> None:
    prepare.prepare(name, tmp_path)
    if name == "digits":
        for part, clips in CLIPS.items():
            for kind, size in (("bin", 16000), ("labels", 2)):
                path = tmp_path / f"{part}.{kind}"
                path.write_bytes(path.read_bytes()[: clips * size])
    sim.put(tmp_path, {})
    command, environment = sim.command("pico")
    done = subprocess.run(
        [*command, "main.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r": ([\d.]+) % before, ([\d.]+) % after (\d+)", done.stdout)
    assert match, done.stdout
    before, after, n = map(float, match.groups())
    samples, points = LEAST[name]
    assert n >= samples and after - before >= points
    assert (tmp_path / "net.ckpt").stat().st_size > 1000


def test_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(prepare, "DATA", tmp_path / "data")
    monkeypatch.setattr("sys.argv", ["prepare.py", "person"])
    assert prepare.main() == 1
    assert (
        f"recordings for person are not here: put them into {tmp_path}" in capsys.readouterr().err
    )
