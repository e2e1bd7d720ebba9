"""What every frame must satisfy before anyone computes with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import DataError
from dpa_core.frames import Frame

SMALLEST_VOLUME = 1e-3
"""Å³. A cell below this volume is a mistake: no atom fits in."""


def check_width(shape: Sequence[int], nframes: int, width: int, where: str, meaning: str) -> None:
    """Raise DataError unless an array holds `nframes` rows of `width` numbers.

    Parameters
    ----------
    shape
        The shape found; (nframes, width) in any factorisation of width, e.g. (nframes, n, 3).
    where
        The file.
    meaning
        What the expected shape stands for, e.g. "nframes x 3·natoms".
    """
    found = int(np.prod(shape[1:], dtype=np.int64)) if shape else 0
    if not shape or shape[0] != nframes or found != width:
        raise DataError(
            f"{where}: shape {tuple(shape)}, expected {(nframes, width)} = {meaning}; "
            "check that the file belongs to this system's coord.npy and type.raw"
        )


def check_frame(frame: Frame, where: str) -> Frame:
    """Return `frame` if its values are finite, its shapes agree and its cell has a volume.

    Parameters
    ----------
    frame
        The frame to look at.
    where
        File and frame, the head of the message.

    Raises
    ------
    DataError
        One of the above does not hold.
    """
    natoms = len(frame.atype)
    if natoms == 0:
        raise DataError(f"{where}: no atoms")
    shapes = {
        "coord": (natoms, 3),
        "box": (3, 3),
        "force": (natoms, 3),
        "virial": (3, 3),
        "atom_energy": (natoms,),
    }
    for name, value in frame._asdict().items():
        if value is None or name == "atype":
            continue
        if name in shapes and value.shape != shapes[name]:
            raise DataError(
                f"{where}: {name} has shape {value.shape}, expected {shapes[name]} for "
                f"{natoms} atoms"
            )
        _check_finite(name, value, where)
    if frame.box is not None:
        _check_cell(frame.box, where)
    return frame


def _check_finite(name: str, value: NDArray[np.float64] | float, where: str) -> None:
    finite = np.isfinite(value)
    if finite.all():
        return
    place = tuple(int(x) for x in np.argwhere(~np.atleast_1d(finite))[0])
    seen = np.atleast_1d(value)[place]
    at = "" if np.ndim(value) == 0 else f"[{', '.join(map(str, place))}]"
    raise DataError(
        f"{where}: {name}{at} is {seen}; every number must be finite, remove or relabel this frame"
    )


def _check_cell(box: NDArray[np.float64], where: str) -> None:
    volume = abs(float(np.linalg.det(box)))
    if volume < SMALLEST_VOLUME:
        raise DataError(
            f"{where}: the cell has a volume of {volume:.3g} Å³, box = {box.tolist()}; give three "
            "independent lattice vectors (rows, Å), or mark the system as non-periodic "
            '(an empty file nopbc beside type.raw; pbc="F F F" in extxyz)'
        )
