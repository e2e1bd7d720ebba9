"""`Dataset`: any number of systems of any format as one lazy sequence of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpa_core.data.arrays import SCAN_ROWS
from dpa_core.data.checks import check_frame
from dpa_core.data.elements import merge_type_maps, type_lookup
from dpa_core.data.system import System
from dpa_core.errors import DataError
from dpa_core.frames import Frame


class SystemInfo(NamedTuple):
    """Where the frames of a data set come from.

    Attributes
    ----------
    name
        The system's path, with the group for HDF5.
    path
        Folder or file.
    first, nframes
        Its frames are first ... first + nframes - 1 (in a subset: if the indices ascended).
    natoms
        Atoms of a frame; the largest number where frames differ.
    """

    name: str
    path: Path
    first: int
    nframes: int
    natoms: int


class Dataset:
    """Frames of several systems under one type map, read when asked for.

    Use `open_dataset`; the constructor takes opened systems.

    Parameters
    ----------
    systems
        At least one.
    type_map
        Names of the types; None: the elements found, by atomic number.

    Raises
    ------
    DataError
        An element that occurs is not in `type_map`.
    """

    def __init__(self, systems: Sequence[System], type_map: Sequence[str] | None = None) -> None:
        if type_map is None:
            type_map = merge_type_maps(s.names[t] for s in systems for t in s.used())
        self.type_map: tuple[str, ...] = tuple(type_map)
        self._systems = list(systems)
        self._lookup = [_lookup(s, self.type_map) for s in systems]
        lengths = [s.nframes for s in systems]
        self._first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._index: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self._first[-1]) if self._index is None else len(self._index)

    def __getitem__(self, k: int) -> Frame:
        """Frame k, its values finite and its shapes checked; types are of `type_map`."""
        s, local = self._locate(k)
        frame = self._systems[s].frame(local)
        frame = frame._replace(atype=self._lookup[s][frame.atype])
        return check_frame(frame, self._systems[s].where(local))

    @cached_property
    def natoms(self) -> NDArray[np.int64]:
        """(len,) real atoms of every frame; coordinates are not read."""
        if self._index is None:
            return np.concatenate([s.natoms() for s in self._systems])
        out = np.empty(len(self), dtype=np.int64)
        for s, places, local in self._groups(None):
            out[places] = self._systems[s].natoms()[local]
        return out

    def counts(self, indices: ArrayLike | None = None) -> NDArray[np.int64]:
        """(n, T) atoms of every type in the given frames (all if None)."""
        out = np.zeros((self._number(indices), len(self.type_map)), dtype=np.int64)
        for s, places, local in self._groups(indices):
            own = self._systems[s].counts(local)
            for t in np.flatnonzero(self._lookup[s] >= 0):
                out[places, self._lookup[s][t]] += own[:, t]
        return out

    def used(self) -> tuple[int, ...]:
        """Types that occur, ascending; no more frames are held in memory than a block."""
        present = np.zeros(len(self.type_map), dtype=bool)
        for start in range(0, len(self), SCAN_ROWS):
            present |= self.counts(np.arange(start, min(start + SCAN_ROWS, len(self)))).any(axis=0)
            if present.all():
                break
        return tuple(np.flatnonzero(present).tolist())

    def energies(self, indices: ArrayLike | None = None) -> NDArray[np.float64]:
        """(n,) energies of the given frames (all if None), eV; NaN where not labelled."""
        out = np.empty(self._number(indices), dtype=np.float64)
        for s, places, local in self._groups(indices):
            out[places] = self._systems[s].energies(local)
        return out

    def name(self, k: int) -> str:
        """Where frame k comes from, e.g. "path/to/system/set.000 frame 3"."""
        s, local = self._locate(k)
        return self._systems[s].where(local)

    @cached_property
    def systems(self) -> tuple[SystemInfo, ...]:
        """The systems that have frames here, in order."""
        shown, first, place, number = np.unique(
            self._system_numbers, return_index=True, return_inverse=True, return_counts=True
        )
        largest = np.zeros(len(shown), dtype=np.int64)
        np.maximum.at(largest, place, self.natoms)
        return tuple(
            SystemInfo(self._systems[s].name, self._systems[s].path, int(k), int(n), int(atoms))
            for s, k, n, atoms in zip(shown, first, number, largest, strict=True)
        )

    @cached_property
    def system_index(self) -> NDArray[np.int64]:
        """(len,) position in `systems` of every frame's system."""
        return np.searchsorted(self._shown, self._system_numbers)

    def system_of(self, k: int) -> int:
        """Position in `systems` of frame k's system."""
        return int(np.searchsorted(self._shown, self._locate(k)[0]))

    def subset(self, indices: ArrayLike) -> Dataset:
        """Return the given frames, in the given order, as a data set; nothing is copied."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"subset: indices must lie in 0..{len(self) - 1}")
        other = object.__new__(Dataset)
        other.type_map = self.type_map
        other._systems, other._lookup, other._first = self._systems, self._lookup, self._first
        other._index = chosen if self._index is None else self._index[chosen]
        return other

    def validate(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read every frame once; the first bad one raises DataError.

        Parameters
        ----------
        progress
            Called as progress(done, total) after every frame.
        """
        for k in range(len(self)):
            self[k]
            if progress is not None:
                progress(k + 1, len(self))

    @cached_property
    def _system_numbers(self) -> NDArray[np.int64]:
        index = np.arange(len(self)) if self._index is None else self._index
        return np.searchsorted(self._first, index, side="right") - 1

    @cached_property
    def _shown(self) -> NDArray[np.int64]:
        return np.unique(self._system_numbers)

    def _number(self, indices: ArrayLike | None) -> int:
        return len(self) if indices is None else np.asarray(indices).size

    def _locate(self, k: int) -> tuple[int, int]:
        """System of frame k and its number there."""
        if not -len(self) <= k < len(self):
            raise IndexError(f"frame {k} of a data set with {len(self)} frames")
        k = int(k) % len(self)
        k = k if self._index is None else int(self._index[k])
        s = int(np.searchsorted(self._first, k, side="right")) - 1
        return s, k - int(self._first[s])

    def _groups(
        self, indices: ArrayLike | None
    ) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(system, places in the answer, frames in the system) of the given frames."""
        index = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}")
        if self._index is not None:
            index = self._index[index]
        number = np.searchsorted(self._first, index, side="right") - 1
        groups = []
        order = np.argsort(number, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
            if len(places):
                s = int(number[places[0]])
                groups.append((s, places, index[places] - self._first[s]))
        return groups


def _lookup(system: System, type_map: tuple[str, ...]) -> NDArray[np.int64]:
    """Own type -> type_map; which types occur is found out only where a name is missing."""
    if set(system.names) <= set(type_map):
        return type_lookup(system.names, None, type_map, system.name)
    return type_lookup(system.names, system.used(), type_map, system.name)


def open_dataset(
    paths: Sequence[str | Path] | str | Path,
    type_map: Sequence[str] | None = None,
    fmt: str | None = None,
) -> Dataset:
    """Open data of any supported format as one `Dataset`.

    Parameters
    ----------
    paths
        Files and folders; a folder is searched for systems. An HDF5 group is written as
        file.hdf5#/group.
    type_map
        Names of the types; None: the elements found, in the order of atomic number.
    fmt
        Format of all paths (see `dpa_core.data.detect.FORMATS`); None: found out from the
        content.

    Raises
    ------
    DataError
        Nothing readable, a broken file, or an element that is not in `type_map`.
    """
    from dpa_core.data.detect import find_systems, open_system

    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise DataError("no data: the list of systems is empty")
    found = [item for path in paths for item in find_systems(path, fmt)]
    return Dataset([s for item in found for s in open_system(*item, type_map)], type_map)
