"""Writing small deepmd systems by hand, independently of `write_mixed`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpa_core.errors import DataError


def write_system(
    folder: Path,
    *,
    nframes: int = 3,
    atype: Sequence[int] = (0, 1, 1),
    type_map: Sequence[str] | None = ("O", "H"),
    sets: int = 1,
    seed: int = 0,
    real_atom_types: Any = None,
) -> Path:
    """A deepmd/npy (or mixed) system of random numbers in a 4 Å cell."""
    rng = np.random.default_rng(seed)
    natoms = len(atype)
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("\n".join(map(str, atype)))
    if type_map is not None:
        (folder / "type_map.raw").write_text("\n".join(type_map))
    for s in range(sets):
        data = folder / f"set.{s:03d}"
        data.mkdir()
        np.save(data / "coord.npy", rng.random((nframes, 3 * natoms)) * 4)
        np.save(data / "box.npy", np.tile(4 * np.eye(3).ravel(), (nframes, 1)))
        np.save(data / "energy.npy", rng.random(nframes))
        np.save(data / "force.npy", rng.random((nframes, 3 * natoms)))
        np.save(data / "virial.npy", rng.random((nframes, 9)))
        if real_atom_types is not None:
            np.save(data / "real_atom_types.npy", np.asarray(real_atom_types, dtype=np.int32))
    return folder


def edit(path: Path, place: Any, value: float) -> None:
    """Overwrite one number of a .npy file."""
    array = np.load(path)
    array[place] = value
    np.save(path, array)


def message(error: DataError) -> str:
    """The text, checked to be one line without a traceback."""
    text = str(error)
    assert "Traceback" not in text
    assert "\n" not in text
    return text
