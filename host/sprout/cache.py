"""Results kept by what they depend on, so that work that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class Cache:
    """One small JSON file per result in ``folder``, named after a digest of its key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: dict[str, Any]) -> Path:
        """Return the file of a key; a key is all that the result depends on."""
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the result of a key, None if there is none that can be read."""
        try:
            result: dict[str, Any] = json.loads(self.path(key).read_text())["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result

    def put(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Keep a result, whole or not at all."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"key": key, "result": result}, indent=1))
        part.replace(path)
