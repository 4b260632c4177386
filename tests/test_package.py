"""The wheel: installed where nothing of the checkout is, it passes README's five minutes."""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import documents
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SECTION = "Five minutes without a board"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    done = subprocess.run([*command, ROOT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def distributions(name: str, seen: dict[str, metadata.Distribution]) -> None:
    """Add a distribution and all that it requires here to `seen`."""
    if name in seen:
        return
    seen[name] = metadata.distribution(name)
    for text in seen[name].requires or ():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            distributions(wanted.name.lower().replace("_", "-"), seen)


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh virtual environment with the wheel and what it requires, and no more.

    What it requires is linked from here: pip would take minutes to copy it.
    """
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    needed: dict[str, metadata.Distribution] = {}
    for text in metadata.PathDistribution(next(site.glob("sprout-*.dist-info"))).requires or ():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            distributions(wanted.name.lower().replace("_", "-"), needed)
    for found in needed.values():
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin"


def test_the_wheel_holds_what_a_board_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "host/sprout", "device", "models", "native_modules"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    for file in tracked:
        inside = file.removeprefix("host/") if file.startswith("host/") else f"sprout/kit/{file}"
        assert inside in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_a_clean_environment_passes_the_five_minutes(programs, tmp_path):
    story = [block for block in documents.blocks(README) if block.section == SECTION]
    ran = list(documents.run(story, tmp_path, programs))
    assert {block.language for block in ran} >= {"sh", "python", "text"}
    commands = " ".join(block.text for block in ran if block.language == "sh")
    for command in ("compile", "inspect", "learn", "sim"):
        assert f"sprout {command}" in commands


def test_it_is_the_wheel_that_runs(programs, tmp_path):
    code = "from sprout import places; from native_modules import build; "
    code += "print(places.ROOT, build.BUILD)"
    done = subprocess.run(
        [programs / "python", "-c", code],
        cwd=tmp_path,
        env={"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(programs)},
        capture_output=True,
        text=True,
        check=True,
    )
    root, build = map(Path, done.stdout.split())
    assert root == next((programs.parent / "lib").glob("python*")) / "site-packages/sprout/kit"
    assert build == tmp_path / "cache" / "sprout"
