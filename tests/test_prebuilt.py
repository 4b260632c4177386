"""The committed native modules: made of these sources, and every build gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from native_modules import build, mpy

MANIFEST = build.PREBUILT / "manifest.json"
MOST_CODE = {"armv6m": 24 * 1024}  # it lives in the heap of a board with stock firmware


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    """The manifest's entries by architecture."""
    assert MANIFEST.exists(), "run `make natmods`"
    content: dict[str, Any] = json.loads(MANIFEST.read_text())
    return content["modules"]


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_is_current(modules: dict[str, Any], arch: str) -> None:
    current = modules[arch]["source_digest"] == build.source_digest(arch)
    assert current, f"sources or flags for {arch} changed: run `make natmods` and commit"


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_is_what_the_manifest_says(modules: dict[str, Any], arch: str) -> None:
    path = build.PREBUILT / modules[arch]["file"]
    data = path.read_bytes()
    info = mpy.read_mpy(data)
    assert (info.version, info.sub_version, info.arch) == (6, 3, arch)
    assert hashlib.sha256(data).hexdigest() == modules[arch]["sha256"]
    assert build.manifest(path).items() <= modules[arch].items()
    assert info.code_bytes <= MOST_CODE.get(arch, 64 * 1024)


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_a_fresh_build_gives_the_same_bytes(
    modules: dict[str, Any], arch: str, tmp_path: Path
) -> None:
    built = build.build_natmod(arch, tmp_path / "module.mpy").read_bytes()
    committed = (build.PREBUILT / modules[arch]["file"]).read_bytes()
    assert built == committed, "run `make natmods` and commit"


def test_nothing_else_lies_there(modules: dict[str, Any]) -> None:
    files = {entry["file"] for entry in modules.values()}
    assert {path.name for path in build.PREBUILT.glob("*.mpy")} == files
