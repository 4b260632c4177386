"""Where the parts lie that are not in this package: C sources and modules, the device package,
models.

In a checkout they lie beside host/, in an installed wheel under kit/ in here (pyproject.toml).
"""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
ROOT = _HERE / "kit" if (_HERE / "kit").is_dir() else _HERE.parents[1]
DEVICE = ROOT / "device" / "sprout"
MODELS = ROOT / "models"

if str(ROOT) not in sys.path:  # for native_modules
    sys.path.append(str(ROOT))


def own_model(path: Path) -> Path:
    """The file of a model; a plain name such as ``person`` is one that came with Sprout."""
    own = MODELS / f"{path}.tflite"
    return own if len(path.parts) == 1 and not path.exists() and own.exists() else path


@functools.cache
def code_digest() -> str:
    """A digest of this package's source: of what results depend on that no key can name."""
    files = (path.read_bytes() for path in sorted(_HERE.rglob("*.py")))
    return hashlib.sha256(b"\0".join(files)).hexdigest()


@functools.cache
def device_module(name: str) -> ModuleType:
    """Return a module of the device package that CPython can run; its ``const`` is plain here."""
    micropython = ModuleType("micropython")
    micropython.__dict__["const"] = lambda value: value
    module = ModuleType(f"device.{name}")
    source = (DEVICE / f"{name}.py").read_text()
    there = sys.modules.get("micropython")
    sys.modules["micropython"] = micropython
    try:
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    finally:
        del sys.modules["micropython"]
        if there:
            sys.modules["micropython"] = there
    return module
