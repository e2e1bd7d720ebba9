"""Atomic environments as points: descriptors reduced to few dimensions, distances in Å."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dpa_core.frames import Frame

Array = NDArray[np.float64]


class Frames(Protocol):
    """Frames by number: a list, or a data set that reads them when asked."""

    def __getitem__(self, k: int, /) -> Frame: ...

    def __len__(self) -> int: ...


Describe = Callable[[list["Frame"]], Sequence[Array]]
"""Frames -> for each of them (natoms, D) descriptors of its atoms."""

SAMPLE = 4000
"""Environments from which the reduced space is found."""
DIMENSIONS = 32
"""Largest number of dimensions kept."""
VARIANCE = 0.9999
"""Fraction of the variance kept, if that takes fewer dimensions."""
BLOCK_ATOMS = 4096
"""Atoms described together; bounds the memory."""
RATTLE = 0.02
"""Å. Displacement by which the sensitivity of descriptors is measured."""
RATTLE_SEED = 0x5E1EC7
NOISE = 1e-3
"""Smallest sensitivity per Å, relative to the length of a descriptor: below is arithmetic."""


class Environments(NamedTuple):
    """Environments of the atoms of F frames, frame after frame.

    Attributes
    ----------
    x
        (N, d) positions in Å: environments are as far apart as a random displacement of all
        atoms by so much (root mean square in every direction) would move them.
    element
        (N,) index of the element; only environments of one element are ever compared.
    start
        (F + 1,) frame f owns rows start[f] to start[f + 1].
    """

    x: Array
    element: NDArray[np.int64]
    start: NDArray[np.int64]

    @property
    def nframes(self) -> int:
        """Number of frames F."""
        return len(self.start) - 1


class Space(NamedTuple):
    """The reduced space: x = descriptor @ axes / unit of the element.

    Attributes
    ----------
    axes
        (D, d) principal axes of the deviation from the element's mean. They are not whitened:
        directions of noise stay small.
    units
        Element -> change of the reduced descriptor per Å of random displacement.
    """

    axes: Array
    units: Mapping[int, float]

    @classmethod
    def fit(cls, descriptors: Array, element: NDArray[np.int64], moved: Array) -> Space:
        """Find the space of a sample.

        Parameters
        ----------
        descriptors
            (N, D).
        element
            (N,) index of the element.
        moved
            (N, D) descriptors after random displacements by RATTLE.
        """
        centred = descriptors.copy()
        for one in np.unique(element):
            centred[element == one] -= descriptors[element == one].mean(axis=0)
        variance, axes = np.linalg.eigh(centred.T @ centred / len(centred))
        variance, axes = np.maximum(variance[::-1], 0.0), axes[:, ::-1]
        kept = int(np.searchsorted(np.cumsum(variance), VARIANCE * variance.sum())) + 1
        axes = np.ascontiguousarray(axes[:, : min(kept, DIMENSIONS)])
        change = np.square((moved - descriptors) @ axes).sum(axis=1) / RATTLE**2
        length = np.square(descriptors).sum(axis=1)
        units = {}
        for one in np.unique(element):
            own = element == one
            smallest = NOISE * np.sqrt(length[own].mean())
            units[int(one)] = float(max(np.sqrt(change[own].mean()), smallest)) or 1.0
        return cls(axes, units)

    def place(self, descriptors: Array, element: NDArray[np.int64]) -> Array:
        """Return positions (N, d); an element the sample lacked has the largest unit."""
        largest = max(self.units.values())
        unit = np.array([self.units.get(int(one), largest) for one in element])
        return (descriptors @ self.axes) / unit[:, None]


def sizes_of(frames: Frames) -> NDArray[np.int64]:
    """(F,) atoms of every frame; a data set knows them without reading coordinates."""
    known = getattr(frames, "natoms", None)
    if known is not None:
        return np.asarray(known, dtype=np.int64)
    return np.array([len(frames[k].atype) for k in range(len(frames))], dtype=np.int64)


def blocks(natoms: NDArray[np.int64], size: int = BLOCK_ATOMS) -> Iterator[NDArray[np.int64]]:
    """Yield runs of frame numbers that hold about `size` atoms together."""
    if len(natoms):
        number = (np.cumsum(natoms) - natoms) // size
        yield from np.split(np.arange(len(natoms)), np.flatnonzero(np.diff(number)) + 1)


def thin(natoms: NDArray[np.int64], order: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the first frames of `order` that hold at most `limit` atoms, at least one frame."""
    total = np.cumsum(natoms[order])
    return order[: max(1, int(np.searchsorted(total, limit, side="right")))]


def describe_all(frames: Frames, describe: Describe, space: Space) -> Environments:
    """Place all environments of `frames` in the space, a block of frames at a time.

    Parameters
    ----------
    frames
        The frames; virtual atoms are left out.
    describe
        Gives descriptors.
    space
        The reduced space.
    """
    points, elements, sizes = [], [], [np.zeros(1, dtype=np.int64)]
    for numbers in blocks(sizes_of(frames)):
        some = [frames[int(k)] for k in numbers]
        found, element = gather(some, describe)
        points.append(space.place(found, element))
        elements.append(element)
        sizes.append(np.array([np.count_nonzero(f.atype >= 0) for f in some], dtype=np.int64))
    if not points:
        empty = np.zeros((0, space.axes.shape[1]))
        return Environments(empty, np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
    start = np.cumsum(np.concatenate(sizes))
    return Environments(np.concatenate(points), np.concatenate(elements), start)


def gather(frames: list[Frame], describe: Describe) -> tuple[Array, NDArray[np.int64]]:
    """Descriptors (N, D) and elements (N,) of all real atoms of some frames."""
    element = np.concatenate([frame.atype for frame in frames])
    found = np.concatenate([np.asarray(d, dtype=np.float64) for d in describe(frames)])
    return found[element >= 0], element[element >= 0]


def fit_space(groups: Sequence[Frames], describe: Describe) -> Space:
    """Find the reduced space from evenly spaced frames of every group (candidates, labelled)."""
    chosen: list[Frame] = []
    for frames in groups:
        if len(frames):
            number = int(SAMPLE / len(groups) / sizes_of(frames).mean())
            number = min(len(frames), max(2, number))
            picked = np.linspace(0, len(frames) - 1, number).round().astype(int)
            chosen += [frames[int(k)] for k in picked]
    # not the seed that rattled the structures: the same displacements again are no random ones
    rng = np.random.default_rng(RATTLE_SEED)
    moved = [f._replace(coord=f.coord + rng.normal(scale=RATTLE, size=f.coord.shape))
             for f in chosen]  # fmt: skip
    return Space.fit(*gather(chosen, describe), gather(moved, describe)[0])
