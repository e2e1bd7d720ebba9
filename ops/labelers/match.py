"""From a code's output to labels of the structure that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import DataError
from ops.labelers.base import LabelFailed, Structure

if TYPE_CHECKING:
    from dpa_core.frames import Frame

POSITION = 1e-3
"""Å. How far an atom of the output may be from where it was asked to be."""
CELL = 2e-3
"""Å. The same for lattice vectors: CP2K prints three decimals of them."""


class WrongStructureError(DataError):
    """An output does not belong to the structure asked for."""


def label_structure(
    asked: Structure, read: Frame, names: Sequence[str], type_map: Sequence[str], where: str
) -> Frame:
    """Attach the labels of an output to the structure that was asked for.

    The cell of the output may be turned (dpdata turns VASP's) or rounded: forces and virial
    are turned back, the virial is that of the volume asked for.

    Parameters
    ----------
    asked
        The structure, atoms in the order of the input file.
    read
        What was read from the output.
    names
        Names of the types of `read`.
    type_map
        Names of the types of the result.
    where
        The output, head of a message.

    Raises
    ------
    WrongStructureError
        Elements, their order, positions or cell are not those asked for.
    LabelFailed
        No energy or forces, or a number is not finite.
    """
    from dpa_core.frames import Frame

    elements = tuple(names[t] for t in read.atype)
    if elements != asked.elements:
        raise WrongStructureError(
            f"{where}: atoms {_short(elements)}, asked for {_short(asked.elements)}; the output "
            "is of another structure or in another order"
        )
    check_labels(read, where)
    turn = _rotation(asked.box, read.box, where)
    _check_positions(asked, read.coord @ turn.T, where)
    if read.energy is None or read.force is None:
        raise LabelFailed(f"{where}: no energy and forces; let the code print both")
    virial = read.virial
    if virial is not None and asked.box is not None and read.box is not None:
        scale = abs(np.linalg.det(asked.box) / np.linalg.det(read.box))
        virial = turn @ virial @ turn.T * scale
    return Frame(
        coord=asked.coord,
        atype=np.array([list(type_map).index(e) for e in elements], dtype=np.int64),
        box=asked.box,
        energy=read.energy,
        force=read.force @ turn.T,
        virial=virial,
    )


def check_labels(frame: Frame, where: str) -> Frame:
    """Return the frame if all its numbers are finite.

    Raises
    ------
    LabelFailed
        One is not.
    """
    from dpa_core.data.checks import check_frame

    try:
        return check_frame(frame, where)
    except DataError as error:
        raise LabelFailed(str(error)) from error


def _rotation(
    asked: NDArray[np.float64] | None, read: NDArray[np.float64] | None, where: str
) -> NDArray[np.float64]:
    """(3, 3) turn that takes row vectors of the structure asked for to those of the output."""
    if asked is None or read is None:
        if asked is not read:
            raise WrongStructureError(f"{where}: only one of input and output has a cell")
        return np.eye(3)
    if np.abs(asked - read).max() < CELL:
        return np.eye(3)
    u, _, v = np.linalg.svd(np.linalg.solve(asked, read))
    turn = u @ v
    if np.linalg.det(turn) < 0 or np.abs(asked @ turn - read).max() > CELL:
        raise WrongStructureError(
            f"{where}: cell {read.round(4).tolist()}, asked for {asked.round(4).tolist()}; the "
            "output is of another structure, or the code changed the cell"
        )
    return turn


def _check_positions(asked: Structure, coord: NDArray[np.float64], where: str) -> None:
    """Compare up to lattice translations, and up to one common shift without a cell."""
    moved = coord - asked.coord
    if asked.box is None:
        moved = moved - moved.mean(axis=0)
    else:
        moved = moved - np.rint(moved @ np.linalg.inv(asked.box)) @ asked.box
    distance = np.linalg.norm(moved, axis=1)
    if distance.max() > POSITION:
        k = int(distance.argmax())
        raise WrongStructureError(
            f"{where}: atom {k} is {distance[k]:.4f} Å from where it was asked to be (allowed "
            f"{POSITION}); the output is of another structure, in another order, or atoms moved"
        )


def _short(elements: Sequence[str]) -> str:
    shown = " ".join(elements[:12])
    return f"{shown} ..." if len(elements) > 12 else shown
