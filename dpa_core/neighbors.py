"""The one neighbour search, outside the model and outside autograd.

A frame's neighbours are a dense table with one row per atom and as many columns as the
atom with most neighbours needs. `sel` never pads it; it only truncates (nearest kept).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import vesin
from numpy.typing import NDArray

from dpa_core.errors import DataError
from dpa_core.frames import Frame


class NeighborSpec(NamedTuple):
    """What a model needs to know about neighbours.

    Attributes
    ----------
    rcut
        Å.
    sel
        Largest number of neighbours: one number for all types together if `mixed_types`,
        else one per type. Empty means no limit.
    mixed_types
        Whether `sel` counts all types together.
    total_first
        Whether the nearest sum(sel) of all types are chosen before the nearest of each type.
    """

    rcut: float
    sel: tuple[int, ...] = ()
    mixed_types: bool = True
    total_first: bool = True


class Neighbors(NamedTuple):
    """The neighbour table of one frame.

    Attributes
    ----------
    index
        (n, M) int32 atom index; 0 in empty slots.
    shift
        (n, M, 3) int16 lattice translations.
    mask
        (n, M) bool, False in empty slots.
    dropped
        Neighbours within rcut left out because `sel` was full.
    """

    index: NDArray[np.int32]  # type: ignore[assignment]  # hides tuple.index
    shift: NDArray[np.int16]
    mask: NDArray[np.bool_]
    dropped: int = 0

    def overflow(self, spec: NeighborSpec) -> str:
        """Warning for a table that had to leave neighbours out."""
        return (
            f"sel is full: {self.dropped} neighbours within rcut are left out (the nearest are "
            f"kept), so forces are not smooth; the model's descriptor.sel is {list(spec.sel)}"
        )

    @property
    def nbytes(self) -> int:
        """Memory the table takes, bytes."""
        return self.index.nbytes + self.shift.nbytes + self.mask.nbytes


@lru_cache(maxsize=16)
def _searcher(rcut: float) -> vesin.NeighborList:
    return vesin.NeighborList(cutoff=rcut, full_list=True)


@contextmanager
def _no_new_pointer_types() -> Iterator[None]:
    """Drop the ctypes pointer types made inside.

    vesin's NumPy interface makes some for every new number of pairs and ctypes keeps them for
    ever: 20 kB a frame, gigabytes for a large data set.
    """
    cache: dict[object, object] = getattr(ctypes, "_pointer_type_cache", {})
    known = len(cache)
    try:
        yield
    finally:
        for key in list(cache)[known:]:
            cache.pop(key, None)


def neighbor_pairs(
    coord: NDArray[np.float64],
    box: NDArray[np.float64] | None,
    rcut: float,
    pbc: tuple[bool, bool, bool] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Every ordered pair closer than rcut, periodic images of the centre included.

    Parameters
    ----------
    coord
        (n, 3), Å; atoms may lie outside the cell.
    box
        (3, 3) rows are lattice vectors, of either handedness; None for an open system.
    rcut
        Å.
    pbc
        Periodic directions; all three when a box is given and this is None.

    Returns
    -------
    i, j, shift, distance
        (P,), (P,), (P, 3), (P,): r_ij = coord[j] + shift @ box - coord[i].
    """
    if len(coord) == 0:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros((0, 3), np.int64), np.zeros(0)
    if box is None:
        periodic: bool | tuple[bool, bool, bool] = False
        box = np.zeros((3, 3))
    else:
        periodic = pbc if pbc is not None else True
    try:
        with _no_new_pointer_types():
            i, j, shift, distance = _searcher(rcut).compute(
                points=coord, box=box, periodic=periodic, quantities="ijSd"
            )
    except RuntimeError as error:
        raise DataError(f"neighbour search failed for box {box.tolist()}: {error}") from error
    return i.astype(np.int64), j.astype(np.int64), shift.astype(np.int64), distance


def neighbor_table(
    frame: Frame, spec: NeighborSpec, pbc: tuple[bool, bool, bool] | None = None
) -> Neighbors:
    """Neighbour table of one frame; virtual atoms (atype < 0) neither have nor are neighbours.

    Where `sel` binds, the nearest neighbours are kept and the number left out is reported in
    `dropped`.
    """
    real = np.flatnonzero(frame.atype >= 0)
    i, j, shift, distance = neighbor_pairs(frame.coord[real], frame.box, spec.rcut, pbc)
    return table_of_pairs(frame.atype, real[i], real[j], shift, distance, spec)


def table_of_pairs(
    atype: NDArray[np.int64],
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    shift: NDArray[np.int64],
    distance: NDArray[np.float64],
    spec: NeighborSpec,
) -> Neighbors:
    """Arrange the pairs of `neighbor_pairs` in a table; see `neighbor_table`."""
    n = len(atype)
    keep = _within_sel(i, atype[j], distance, spec)
    dropped = len(keep) - int(np.count_nonzero(keep))
    i, j, shift, distance = i[keep], j[keep], shift[keep], distance[keep]
    keys = (distance, i) if spec.mixed_types else (distance, atype[j], i)
    order = np.lexsort(keys)
    i, j, shift = i[order], j[order], shift[order]
    slot = _rank_in_group(i)
    width = int(slot.max(initial=-1)) + 1
    index = np.zeros((n, width), np.int32)
    shifts = np.zeros((n, width, 3), np.int16)
    mask = np.zeros((n, width), bool)
    index[i, slot] = j
    shifts[i, slot] = shift
    mask[i, slot] = True
    return Neighbors(index, shifts, mask, dropped)


def _within_sel(
    i: NDArray[np.int64],
    neighbor_type: NDArray[np.int64],
    distance: NDArray[np.float64],
    spec: NeighborSpec,
) -> NDArray[np.bool_]:
    """Which pairs `sel` has room for.

    As in DeePMD-kit's PyTorch backend, the nearest sum(sel) neighbours of all types are kept
    first (unless `total_first` is off); of these, unless `mixed_types`, the nearest sel[t] of
    each type.
    """
    keep = np.ones(len(i), bool)
    if spec.sel:
        if spec.mixed_types or spec.total_first:
            keep &= _rank_by_distance(i, distance) < sum(spec.sel)
        if not spec.mixed_types:
            group = i * len(spec.sel) + neighbor_type
            keep &= _rank_by_distance(group, distance) < np.asarray(spec.sel)[neighbor_type]
    return keep


def _rank_by_distance(group: NDArray[np.int64], distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 for the nearest pair of each group, 1 for the next, ..."""
    order = np.lexsort((distance, group))
    rank = np.empty(len(group), np.int64)
    rank[order] = _rank_in_group(group[order])
    return rank


def _rank_in_group(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2, ... within each run of equal values."""
    if len(group) == 0:
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    lengths = np.diff(np.r_[starts, len(group)])
    return np.arange(len(group)) - np.repeat(starts, lengths)
