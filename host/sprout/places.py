"""Where the parts lie that are not in this package: C sources and modules, the device package,
models.

In a checkout they lie beside host/, in an installed wheel under kit/ in here (pyproject.toml).
"""

from __future__ import annotations

import sys
from pathlib import Path

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
