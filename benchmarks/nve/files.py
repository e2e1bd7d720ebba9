"""Files of the benchmark in the folder of a system; light, so that the driver starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Series = dict[str, Any]


def model_file(folder: Path) -> Path:
    """Name the trained model."""
    return folder / "model.safetensors"


def start_file(folder: Path) -> Path:
    """Name the positions and velocities that all variants start from."""
    return folder / "start.traj"


def series_file(folder: Path, variant: str, steps: int) -> Path:
    """Name the record of one run."""
    return folder / f"{variant}-{steps}.npz"


def save_series(path: Path, series: Series) -> None:
    """Write a record; it appears under its name only when it is complete."""
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, **series)
    temporary.replace(path)


def load_series(path: Path) -> Series:
    """Read what `save_series` wrote; scalars as Python numbers."""
    with np.load(path) as stored:
        return {k: v.item() if v.ndim == 0 else v for k, v in stored.items()}
