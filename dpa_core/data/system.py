"""One system: frames from one place that share a list of type names."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpa_core.frames import Frame


class System(abc.ABC):
    """Base of everything a reader returns; types are indices into `names`.

    Attributes
    ----------
    name
        How reports call the system: its path, with the group for HDF5.
    path
        The folder or file it was read from.
    names
        The system's own type names.
    nframes
        Number of frames, at least 1.
    """

    name: str
    path: Path
    names: tuple[str, ...]
    nframes: int

    @abc.abstractmethod
    def frame(self, k: int) -> Frame:
        """Frame k, unchecked, with own types and without virtual atoms."""

    @abc.abstractmethod
    def types(self, k: int) -> NDArray[np.int64]:
        """(n,) own types of frame k; virtual atoms, if any, are < 0."""

    @abc.abstractmethod
    def used(self) -> tuple[int, ...]:
        """Own types that occur, ascending."""

    @abc.abstractmethod
    def natoms(self) -> NDArray[np.int64]:
        """(nframes,) number of real atoms of every frame."""

    def energies(self, ks: NDArray[np.int64]) -> NDArray[np.float64]:
        """(len(ks),) energies in eV, NaN where not labelled."""
        found = (self.frame(int(k)).energy for k in ks)
        return np.array([np.nan if e is None else e for e in found], dtype=np.float64)

    def counts(self, ks: NDArray[np.int64]) -> NDArray[np.int64]:
        """(len(ks), len(names)) atoms of every own type."""
        table = np.zeros((len(ks), len(self.names)), dtype=np.int64)
        for row, k in enumerate(ks):
            types = self.types(int(k))
            table[row] = np.bincount(types[types >= 0], minlength=len(self.names))
        return table

    def where(self, k: int) -> str:
        """Place of frame k for messages and tables, e.g. "path set.000 frame 3"."""
        return f"{self.name} frame {k}"


class MemorySystem(System):
    """Frames held in memory: the result of a reader that parses whole files."""

    def __init__(self, path: Path, names: Sequence[str], frames: Sequence[Frame]) -> None:
        self.path = path
        self.name = str(path)
        self.names = tuple(names)
        self.nframes = len(frames)
        self._frames = list(frames)

    def frame(self, k: int) -> Frame:
        """Frame k."""
        return self._frames[k]

    def types(self, k: int) -> NDArray[np.int64]:
        """Own types of frame k."""
        return self._frames[k].atype

    def used(self) -> tuple[int, ...]:
        """Own types that occur."""
        return tuple(sorted({int(t) for f in self._frames for t in np.unique(f.atype)}))

    def natoms(self) -> NDArray[np.int64]:
        """Count the atoms of every frame."""
        return np.array([len(f.atype) for f in self._frames], dtype=np.int64)
