"""Fixtures for all tests; `host/` and the checkout itself are on the path (pyproject.toml)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models and data that are not part of the project; skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip(f"NOT TESTED: {folder} is absent, which holds the models and data for this")
    return folder


@pytest.fixture(scope="session")
def load(shared) -> ModuleType:
    """The module that reads the shared data."""
    spec = importlib.util.spec_from_file_location("shared_load", shared / "data" / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def person_model() -> Path:
    """The project's own pretrained network: int8 96x96x3 to no_person, person."""
    return ROOT / "models" / "person.tflite"
