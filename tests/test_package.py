"""The wheel passes README's five minutes where nothing of the checkout is, and mip installs."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata as metadata
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import documents
import pytest
from command_line import micropython
from packaging.requirements import Requirement
from sprout import cli
from sprout.board import package
from sprout.compile import compile_model
from sprout.places import DEVICE

from native_modules import build, mpy

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
    assert len(tracked) > 100
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


# --- packages for mip ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder of packages and the address of a web server that serves it."""
    folder = tmp_path_factory.mktemp("mip")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_mip_installs_a_package_that_learns(server, tmp_path, person_model):
    folder, address = server
    package.write_mip(folder, "x64")
    install = f"import mip; mip.install('{address}/x64/', target='lib')"
    assert "Done" in micropython(install, tmp_path)
    blob = compile_model(person_model, plan="last").to_bytes()
    (tmp_path / "net.sprout").write_bytes(blob)
    code = "import sprout; net = sprout.load('net.sprout'); "
    code += "print(net.learn(bytes(96 * 96 * 3), 1) > 0, net.step)"
    assert micropython(code, tmp_path) == "True 1\n"


def test_each_architecture_has_a_package_of_its_own_module(tmp_path):
    status = cli.main(["mip", str(tmp_path)])
    assert status == 0
    for arch in build.ALL_TOOLCHAINS:
        about = json.loads((tmp_path / arch / "package.json").read_text())
        assert about["version"] == metadata.version("sprout")
        names = {target for target, _ in about["urls"]}
        modules = {"sprout_core.mpy", "sprout_frame.mpy"}
        package = {f"sprout/{file.stem}.mpy" for file in DEVICE.glob("*.py")}
        assert names == modules | package | {"sprout/help.txt"}
        for module in modules:
            assert mpy.read_mpy((tmp_path / arch / module).read_bytes()).arch == arch
        for _, url in about["urls"]:
            assert (tmp_path / arch / url).stat().st_size > 0


def test_the_manifest_freezes_the_package():
    """As MicroPython's makemanifest.py reads it."""
    manifest = build.HERE / "usermod" / "manifest.py"
    found = {}
    exec(manifest.read_text(), {"package": lambda name, **options: found.update({name: options})})
    folder = manifest.parent / found["sprout"]["base_path"] / "sprout"
    assert folder.resolve() == DEVICE
