"""Which format a file or folder has, found out from its content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpa_core.data.npy import is_npy_system, open_npy
from dpa_core.data.system import System
from dpa_core.errors import DataError

FORMATS = ("deepmd/npy", "deepmd/npy/mixed")


def find_systems(path: str | Path, fmt: str | None = None) -> list[tuple[str, str]]:
    """Systems at a path as (path, format)."""
    root = Path(path)
    if not root.exists():
        raise DataError(f"{path}: no such file or folder")
    if is_npy_system(root):
        return [(str(path), "deepmd/npy")]
    found = sorted({p.parent for p in root.rglob("type.raw")})
    if not found:
        raise DataError(f"{path}: no data in a supported format")
    return [(str(p), "deepmd/npy") for p in found]


def open_system(path: str, fmt: str, type_map: Sequence[str] | None = None) -> list[System]:
    """Open one system."""
    return [open_npy(Path(path), type_map)]
