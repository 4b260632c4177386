"""The committed native modules: made of these sources, and every build gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from native_modules import build, mpy

MANIFEST = build.PREBUILT / "manifest.json"
# It lives in the heap of a board with stock firmware.
MOST_CODE = {("modules", "armv6m"): 24 * 1024, ("frames", "armv6m"): 1024}
BUILDERS = {"modules": build.build_natmod, "frames": build.build_frame}


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict[str, Any]]:
    """The manifest: entries by kind and architecture."""
    assert MANIFEST.exists(), "run `make natmods`"
    content: dict[str, Any] = json.loads(MANIFEST.read_text())
    return content


@pytest.fixture(params=BUILDERS)
def kind(request: pytest.FixtureRequest) -> str:
    """The core (modules) or the kernel of sprout.Frame (frames)."""
    return str(request.param)


@pytest.fixture
def modules(manifest: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    """The entries of a kind by architecture."""
    return manifest[kind]


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_is_current(modules: dict[str, Any], kind: str, arch: str) -> None:
    current = modules[arch]["source_digest"] == build.source_digest(arch, kind == "frames")
    assert current, f"sources or flags for {arch} changed: run `make natmods` and commit"


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_is_what_the_manifest_says(modules: dict[str, Any], kind: str, arch: str) -> None:
    path = build.PREBUILT / modules[arch]["file"]
    data = path.read_bytes()
    info = mpy.read_mpy(data)
    assert (info.version, info.sub_version, info.arch) == (6, 3, arch)
    assert hashlib.sha256(data).hexdigest() == modules[arch]["sha256"]
    assert build.manifest(path).items() <= modules[arch].items()
    assert info.code_bytes <= MOST_CODE.get((kind, arch), 64 * 1024)


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_a_fresh_build_gives_the_same_bytes(
    modules: dict[str, Any], kind: str, arch: str, tmp_path: Path
) -> None:
    built = BUILDERS[kind](arch, tmp_path / "module.mpy").read_bytes()
    committed = (build.PREBUILT / modules[arch]["file"]).read_bytes()
    assert built == committed, "run `make natmods` and commit"


def test_nothing_else_lies_there(manifest: dict[str, dict[str, Any]]) -> None:
    files = {entry["file"] for kind in BUILDERS for entry in manifest[kind].values()}
    assert {path.name for path in build.PREBUILT.glob("*.mpy")} == files
