"""Frames -> one ragged batch: atoms of all frames on one axis, no padding frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dpa_core.frames import Batch, Frame, Labels
from dpa_core.neighbors import Neighbors, NeighborSpec, neighbor_table

log = logging.getLogger(__name__)


class FrameSource(Protocol):
    """Anything frames can be taken from by number."""

    def __getitem__(self, k: int) -> Frame: ...


def make_batch(
    frames: Sequence[Frame], spec: NeighborSpec, tables: Sequence[Neighbors] | None = None
) -> Batch:
    """Concatenate frames of any size and composition.

    Parameters
    ----------
    frames
        At least one frame.
    spec
        The model's `spec`.
    tables
        Neighbour tables of the frames, if known already.

    Returns
    -------
    Batch
        M is the largest real neighbour count in the batch.
    """
    tables = tables if tables is not None else [neighbor_table(f, spec) for f in frames]
    sizes = np.array([len(f.atype) for f in frames])
    offsets = np.r_[0, np.cumsum(sizes)[:-1]]
    total, width = int(sizes.sum()), max(t.index.shape[1] for t in tables)
    index = np.empty((total, width), np.int64)
    shift = np.zeros((total, width, 3))
    mask = np.zeros((total, width), bool)
    for offset, size, table in zip(offsets, sizes, tables, strict=True):
        rows, columns = slice(offset, offset + size), slice(0, table.index.shape[1])
        index[rows] = offset
        index[rows, columns] += table.index
        shift[rows, columns] = table.shift
        mask[rows, columns] = table.mask
    return Batch(
        coord=torch.from_numpy(np.concatenate([f.coord for f in frames]).astype(np.float64)),
        atype=torch.from_numpy(np.concatenate([f.atype for f in frames]).astype(np.int64)),
        box=torch.from_numpy(
            np.stack([np.zeros((3, 3)) if f.box is None else f.box for f in frames])
        ).double(),
        frame=torch.from_numpy(np.repeat(np.arange(len(frames)), sizes)),
        natoms=torch.tensor([int(np.count_nonzero(f.atype >= 0)) for f in frames]),
        index=torch.from_numpy(index),
        shift=torch.from_numpy(shift),
        mask=torch.from_numpy(mask),
        fparam=_optional([f.fparam for f in frames], np.stack),
        aparam=_optional([f.aparam for f in frames], np.concatenate),
    )


def make_labels(frames: Sequence[Frame]) -> Labels:
    """Labels of the frames in the layout of `make_batch`; missing ones are zero and flagged."""
    nframes, total = len(frames), sum(len(f.atype) for f in frames)
    energy, virial = np.zeros(nframes), np.zeros((nframes, 3, 3))
    force, atom_energy = np.zeros((total, 3)), np.zeros(total)
    has = np.zeros((4, nframes), bool)
    start = 0
    for k, frame in enumerate(frames):
        atoms = slice(start, start + len(frame.atype))
        start = atoms.stop
        targets: list[tuple[NDArray, Any]]
        targets = [(energy, k), (force, atoms), (virial, k), (atom_energy, atoms)]
        labels = (frame.energy, frame.force, frame.virial, frame.atom_energy)
        for row, ((array, where), value) in enumerate(zip(targets, labels, strict=True)):
            if value is not None:
                array[where] = value
                has[row, k] = True
    values = (torch.from_numpy(x) for x in (energy, force, virial, atom_energy))
    return Labels(*values, *(torch.from_numpy(flag) for flag in has))


def _optional(values: list[NDArray | None], join: object) -> torch.Tensor | None:
    if any(v is None for v in values):
        return None
    return torch.from_numpy(np.asarray(join(values), dtype=np.float64))  # type: ignore[operator]


class NeighborCache:
    """Neighbour tables of a static data set, searched once and kept up to a memory bound.

    Parameters
    ----------
    spec
        The model's `spec`.
    max_bytes
        When full, further tables are searched anew each time; a search takes about a hundredth
        of a training step.
    """

    def __init__(self, spec: NeighborSpec, max_bytes: int = 512 << 20) -> None:
        self.spec = spec
        self.max_bytes = max_bytes
        self.dropped = 0
        self._tables: dict[int, Neighbors] = {}
        self._bytes = 0

    def table(self, k: int, frame: Frame) -> Neighbors:
        """Neighbour table of frame number k."""
        table = self._tables.get(k)
        if table is None:
            table = neighbor_table(frame, self.spec)
            if table.dropped and not self.dropped:
                log.warning("frame %d: %s", k, table.overflow(self.spec))
            self.dropped += table.dropped
            if self._bytes + table.nbytes <= self.max_bytes:
                self._tables[k] = table
                self._bytes += table.nbytes
        return table

    def batch(self, source: FrameSource, indices: Sequence[int]) -> tuple[Batch, Labels]:
        """Batch and labels of the frames with these numbers."""
        frames = [source[k] for k in indices]
        tables = [self.table(k, f) for k, f in zip(indices, frames, strict=True)]
        return make_batch(frames, self.spec, tables), make_labels(frames)
