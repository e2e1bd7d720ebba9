"""Small files written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text through a temporary file in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: two processes may write the same file
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def write_json(path: Path, document: Any) -> Path:
    """Write an indented JSON document; non-finite numbers are an error, not `NaN`."""
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))
