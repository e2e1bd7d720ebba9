"""The one neighbour search, outside the model and outside autograd.

A frame's neighbours are a dense table with one row per atom and as many columns as the
atom with most neighbours needs. `sel` never pads it; it only truncates (nearest kept).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import vesin
from numpy.typing import NDArray

from dpa_core.errors import DataError
from dpa_core.frames import Frame

# Centres whose distances are computed at once.
_BLOCK = 256
# Three int16 as one item.
_THREE = np.dtype("V6")
_LARGEST_SHIFT = np.iinfo(np.int16).max


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
            # Other types may be those of another thread, which still needs them.
            if isinstance(key, type) and issubclass(key, ctypes.Array):
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
    i, j, shift, distance = _search_half(coord, box, rcut, pbc, distances=True)
    return (
        np.concatenate([i, j]).astype(np.int64),
        np.concatenate([j, i]).astype(np.int64),
        np.concatenate([shift, -shift]).astype(np.int64),
        np.concatenate([distance, distance]),
    )


def _search_half(
    coord: NDArray[np.float64],
    box: NDArray[np.float64] | None,
    reach: float,
    pbc: tuple[bool, bool, bool] | None,
    *,
    distances: bool = False,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int16], NDArray[np.float64]]:
    """i, j, shift and distance of every pair closer than `reach`, in one of its directions.

    Distances only on demand, since vesin takes as long for every array as for a small search.
    """
    if len(coord) == 0:
        none = np.zeros(0, np.int32)
        return none, none, np.zeros((0, 3), np.int16), np.zeros(0)
    if box is None:
        periodic: bool | tuple[bool, bool, bool] = False
        box = np.zeros((3, 3))
    else:
        periodic = pbc if pbc is not None else True
    # One searcher per search: a kept one would hold its memory and serve one thread only.
    searcher = vesin.NeighborList(cutoff=reach, full_list=False)
    try:
        with _no_new_pointer_types():
            pairs, shift, *distance = searcher.compute(
                points=coord, box=box, periodic=periodic, copy=False,
                quantities="PSd" if distances else "PS",
            )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"neighbour search failed for box {box.tolist()}: {error}") from error
    if shift.size and max(shift.max(), -shift.min()) > _LARGEST_SHIFT:
        raise DataError(
            f"an atom lies more than {_LARGEST_SHIFT} cells from another one; wrap the coordinates"
        )
    # The searcher's arrays go with it.
    return (
        pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32), shift.astype(np.int16),
        distance[0].copy() if distances else np.zeros(0),
    )  # fmt: skip


class Pairs(NamedTuple):
    """Ordered pairs of one frame, sorted by centre or, within a centre, by type as well.

    Attributes
    ----------
    groups
        (n, 1) pairs of every centre, or (n, T) of every centre with every type, int64.
    j
        (P,) int32, the neighbours.
    shift
        (P, 3) int16, their lattice translations.
    """

    groups: NDArray[np.int64]
    j: NDArray[np.int32]
    shift: NDArray[np.int16]

    def distances(
        self, coord: NDArray[np.float64], box: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """(P,) |coord[j] + shift @ box - coord[i]|, Å; in blocks that stay in cache."""
        counts = self.groups.sum(axis=1)
        ends = np.concatenate([[0], np.cumsum(counts)])
        out = np.zeros(len(self.j))
        columns = np.ascontiguousarray(coord.T)
        for first in range(0, len(counts), _BLOCK):
            atoms = slice(first, min(first + _BLOCK, len(counts)))
            pairs = slice(ends[atoms.start], ends[atoms.stop])
            j, shift = self.j[pairs], self.shift[pairs].astype(np.float64)
            for k, x in enumerate(columns):
                d = np.take(x, j)
                d -= np.repeat(x[atoms], counts[atoms])
                if box is not None:
                    d += shift @ box[:, k]
                out[pairs] += np.square(d, out=d)
        return np.sqrt(out, out=out)

    def select(self, keep: NDArray[np.bool_]) -> Pairs:
        """Pairs where `keep`, (P,), is true, in the same order."""
        counts = self.groups.ravel()
        starts = (np.cumsum(counts) - counts)[counts > 0]
        groups = np.zeros_like(counts)
        groups[counts > 0] = np.add.reduceat(keep, starts, dtype=np.int64) if len(starts) else 0
        return Pairs(
            groups.reshape(self.groups.shape), *_taken(self.j, self.shift, np.flatnonzero(keep))
        )


def search_pairs(
    frame: Frame, spec: NeighborSpec, reach: float, pbc: tuple[bool, bool, bool] | None = None
) -> Pairs:
    """Pairs closer than `reach`, sorted for `table_of_pairs`.

    Virtual atoms (atype < 0) neither have nor are neighbours. Neighbours are sorted by type
    unless `spec.mixed_types`, else in the order of the search, which depends on the frame only.
    """
    real = np.flatnonzero(frame.atype >= 0).astype(np.int32)
    i, j, shift, _ = _search_half(frame.coord[real], frame.box, reach, pbc)
    if len(real) < len(frame.atype):
        i, j = real[i], real[j]
    i, j = np.concatenate([i, j]), np.concatenate([j, i])
    ntypes = 1 if spec.mixed_types else max(len(spec.sel), int(frame.atype.max(initial=0)) + 1)
    group = i if ntypes == 1 else i * np.int64(ntypes) + frame.atype[j]
    order = _stable_order(group, len(frame.atype) * ntypes)
    groups = np.bincount(group, minlength=len(frame.atype) * ntypes)
    shift = np.concatenate([shift, -shift])
    return Pairs(groups.reshape(-1, ntypes), *_taken(j, shift, order))


def neighbor_table(
    frame: Frame, spec: NeighborSpec, pbc: tuple[bool, bool, bool] | None = None
) -> Neighbors:
    """Neighbour table of one frame; virtual atoms (atype < 0) neither have nor are neighbours.

    Where `sel` binds, the nearest neighbours are kept and the number left out is reported in
    `dropped`.
    """
    return table_of_pairs(search_pairs(frame, spec, spec.rcut, pbc), frame, spec)


def table_of_pairs(pairs: Pairs, frame: Frame, spec: NeighborSpec) -> Neighbors:
    """Arrange pairs, all within rcut, in a table; see `neighbor_table`."""
    found = len(pairs.j)
    pairs = _within_sel(pairs, frame, spec)
    counts = pairs.groups.sum(axis=1)
    n, width = len(counts), int(counts.max(initial=0))
    mask = np.arange(width) < counts[:, None]
    index = np.zeros((n, width), np.int32)
    shift = np.zeros((n, width, 3), np.int16)
    # Pairs are sorted by centre: row by row they fill the slots that the mask names.
    index[mask] = pairs.j
    _packed(shift)[mask] = _packed(pairs.shift)
    return Neighbors(index, shift, mask, found - len(pairs.j))


def _within_sel(pairs: Pairs, frame: Frame, spec: NeighborSpec) -> Pairs:
    """Leave out the pairs that `sel` has no room for.

    As in DeePMD-kit's PyTorch backend, the nearest sum(sel) neighbours of all types are kept
    first (unless `total_first` is off); of these, unless `mixed_types`, the nearest sel[t] of
    each type.
    """
    if not spec.sel:
        return pairs
    total = np.array([sum(spec.sel)])
    if spec.mixed_types or spec.total_first:
        pairs = _nearest(pairs, pairs.groups.sum(axis=1, keepdims=True), total, frame)
    if not spec.mixed_types:
        pairs = _nearest(pairs, pairs.groups, np.array(spec.sel), frame)
    return pairs


def _nearest(
    pairs: Pairs, groups: NDArray[np.int64], room: NDArray[np.int64], frame: Frame
) -> Pairs:
    """Keep the nearest room[g] pairs of groups (n, G); of equal ones those listed first."""
    crowded = groups > room
    if not crowded.any():
        return pairs
    counts = groups[crowded]
    chosen = np.repeat(crowded.ravel(), groups.ravel())
    filled = np.arange(counts.max()) < counts[:, None]
    distance = np.full(filled.shape, np.inf)
    distance[filled] = pairs.distances(frame.coord, frame.box)[chosen]
    rank = np.argsort(np.argsort(distance, axis=1, kind="stable"), axis=1)
    keep = ~chosen
    keep[chosen] = (rank < np.broadcast_to(room, groups.shape)[crowded][:, None])[filled]
    return pairs.select(keep)


def _stable_order(keys: NDArray[np.integer], bound: int) -> NDArray[np.int64]:
    """Permutation that sorts integers in 0 ... bound - 1, equal ones left in their order.

    NumPy sorts 16-bit integers in linear time (radix sort), so wider ones go by digits.
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for digit in range(16, int(bound - 1).bit_length(), 16):
        order = order[np.argsort((keys >> digit).astype(np.uint16)[order], kind="stable")]
    return order


def _packed(shift: NDArray[np.int16]) -> NDArray[np.void]:
    """(..., 3) -> (...): a translation as one item, which NumPy moves much faster than three."""
    return shift.view(_THREE)[..., 0]


def _taken(
    j: NDArray[np.int32], shift: NDArray[np.int16], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """j[rows], shift[rows], a few times faster."""
    return j.take(rows), _packed(shift).take(rows).view(np.int16).reshape(-1, 3)
