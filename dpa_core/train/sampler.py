"""Batches drawn from a data set: seeded, mixing systems and sizes, resumable anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import DataError

AUTO_ATOMS = 32  # DeePMD: "auto" means "auto:32"


class Limits(NamedTuple):
    """When a batch is full.

    Attributes
    ----------
    frames, atoms
        It is closed when it holds so many of either.
    most
        Atoms that no further frame may exceed.
    """

    frames: int
    atoms: float = math.inf
    most: float = math.inf

    def reached(self, frames: int, atoms: int) -> bool:
        """Tell whether a batch of this size takes no other frame."""
        return frames >= self.frames or atoms >= self.atoms

    def exceeded(self, frames: int, atoms: int) -> bool:
        """Tell whether the last frame was one too many; a first one never is."""
        return frames > 1 and atoms > self.most


def batch_limits(batch_size: int | str, nframes: int) -> Limits:
    """Limits of a batch.

    Parameters
    ----------
    batch_size
        Frames, "auto:N" for at least N atoms, or "max:N" for at most N.
    nframes
        Frames of the data set: no batch is larger.
    """
    if isinstance(batch_size, int):
        return Limits(min(batch_size, nframes))
    rule, _, atoms = batch_size.partition(":")
    if rule == "max":
        return Limits(nframes, most=int(atoms))
    return Limits(nframes, atoms=int(atoms or AUTO_ATOMS))


class BatchSampler:
    """An endless stream of frames, cut into batches.

    The stream is one random permutation of the data set after another, the permutation of
    epoch k depending on (seed, k) only; so epoch and position are its whole state. A batch
    may reach into the next epoch, so no batch is a small rest.

    Parameters
    ----------
    natoms
        (nframes,) atoms of every frame.
    batch_size
        Frames, "auto:N" for as many as hold at least N atoms, "max:N" for at most N.
    seed
        Seed of the permutations.

    Raises
    ------
    DataError
        The data set is empty.
    """

    def __init__(self, natoms: NDArray[np.int64], batch_size: int | str, seed: int) -> None:
        if len(natoms) == 0:
            raise DataError("the training data hold no frame; check training_data.systems")
        self.natoms = np.asarray(natoms, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self._limits = batch_limits(batch_size, len(self.natoms))
        self._shuffle()

    def _shuffle(self) -> None:
        """Order of the frames in this epoch, and the atoms before each."""
        random = np.random.default_rng((self.seed, self.epoch))
        self._order = random.permutation(len(self.natoms))
        self._atoms = np.concatenate([[0.0], np.cumsum(self.natoms[self._order])])

    def next(self) -> list[int]:
        """Numbers of the frames of the next batch."""
        stop = self._end()
        if stop == len(self.natoms):
            return self._over_the_end()
        batch: list[int] = self._order[self.position : stop].tolist()
        self.position = stop
        return batch

    def peek(self) -> list[int]:
        """Give what `next` will give."""
        before = (self.epoch, self.position, self._order, self._atoms)
        batch = self.next()
        self.epoch, self.position, self._order, self._atoms = before
        return batch

    def _end(self) -> int:
        """Where in this epoch the next batch ends; its end if that cannot be told from here."""
        atoms, limits = self._atoms, self._limits
        start, before = self.position, atoms[self.position]
        full = np.searchsorted(atoms, before + limits.atoms)
        fitting = np.searchsorted(atoms, before + limits.most, side="right") - 1
        stop = min(start + limits.frames, int(full), max(int(fitting), start + 1))
        return min(stop, len(self.natoms))

    def _over_the_end(self) -> list[int]:
        """Do as `next`, frame by frame, where the batch may reach into the next epoch."""
        limits = self._limits
        batch: list[int] = []
        atoms = 0
        while not limits.reached(len(batch), atoms):
            if self.position == len(self.natoms):
                self.epoch, self.position = self.epoch + 1, 0
                self._shuffle()
            frame = int(self._order[self.position])
            atoms += int(self.natoms[frame])
            if limits.exceeded(len(batch) + 1, atoms):
                break
            batch.append(frame)
            self.position += 1
        return batch

    def steps(self, numb_epoch: float) -> int:
        """Count the steps of `numb_epoch` passes over the data, as the first pass goes."""
        fresh = BatchSampler(self.natoms, self.batch_size, self.seed)
        count = frames = 0
        while frames < len(self.natoms):
            frames += len(fresh.next())
            count += 1
        return max(1, math.ceil(numb_epoch * len(self.natoms) * count / frames))

    def state_dict(self) -> dict[str, int]:
        """State for a checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._shuffle()


def deal(indices: Sequence[int], heads: int, seed: int, step: int) -> dict[int, int]:
    """Deal the frames of a joint batch to the heads of a model: frame -> head.

    Depends on the arguments only, so that it is the same on every process and after a
    restart. The shares of the heads differ by one frame at most; which head gets the larger
    ones is random, so that in time every head sees every frame, also in batches of one.

    Parameters
    ----------
    indices
        Frames of the batch.
    heads
        Number of heads.
    seed, step
        Of the run, and the steps it has taken.
    """
    random = np.random.default_rng((seed, step, heads))
    places = (random.permutation(len(indices)) + random.integers(heads)) % heads
    return dict(zip(indices, places.tolist(), strict=True))


def in_order(natoms: NDArray[np.int64], batch_size: int | str) -> Iterator[list[int]]:
    """Every frame once, in order, in batches of at most the size asked for (validation)."""
    limits = batch_limits(batch_size, len(natoms))
    batch: list[int] = []
    atoms = 0
    for k, size in enumerate(natoms.tolist()):
        if limits.exceeded(len(batch) + 1, atoms + size):
            yield batch
            batch, atoms = [], 0
        batch.append(k)
        atoms += size
        if limits.reached(len(batch), atoms):
            yield batch
            batch, atoms = [], 0
    if batch:
        yield batch
