"""Small files written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text through a temporary file in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: two processes may write the same file
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def means_full_disk(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, says that the disk or quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # NumPy's tofile and libraries in Rust drop the number
    if re.search(r"No space left|requested and \d+ written", str(error)):
        return True
    led = error.__cause__ or error.__context__
    return led is not None and means_full_disk(led)


def write_json(path: Path, document: Any) -> Path:
    """Write an indented JSON document; non-finite numbers are an error, not `NaN`."""
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


def holds_frames(path: str | Path) -> bool:
    """Tell whether data are to be read there: an empty folder is a data set without frames."""
    path = Path(path)
    return not path.is_dir() or any(path.iterdir())
