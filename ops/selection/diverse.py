"""The diverse choice: candidates that are new to what is labelled and to each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ops.selection.environments import Environments

Array = NDArray[np.float64]
Rows = TypeVar("Rows", Array, NDArray[np.int64])
Diversity = Literal["farthest", "entropy", "random", "top"]

TILE = 512
"""Rows and columns of a distance matrix at a time: they fit into a processor's cache."""
EQUAL = 1e-4
"""Å. Distances below are those of equal environments, but for rounding."""
DIGITS = 9
"""Scores that agree to so many decimals are equal, so that rounding decides nothing."""


class Choice(NamedTuple):
    """What was chosen of F candidates.

    Attributes
    ----------
    chosen
        Numbers of the chosen candidates, in the order of choice.
    novelty
        For each, its largest distance to what was covered before; inf if nothing was.
    known, similar
        (F,) bool: all environments are covered by labelled frames; or by those and the
        chosen frames. The chosen are neither.
    """

    chosen: list[int]
    novelty: list[float]
    known: NDArray[np.bool_]
    similar: NDArray[np.bool_]


class Coverage:
    """How far every environment of the candidates is from those that are covered.

    Parameters
    ----------
    candidates
        Environments of F frames, each with at least one atom.
    bandwidth
        Width of the Gaussian kernel of `entropy`, Å; None: not needed.
    """

    def __init__(self, candidates: Environments, bandwidth: float | None = None) -> None:
        self._candidates = candidates
        self._first = candidates.start[:-1]
        self._rows = _by_element(candidates.element)
        self._squared = np.full(len(candidates.x), np.inf)
        self._bandwidth = bandwidth
        self._density = np.zeros(len(candidates.x))
        self._own = np.zeros(0) if bandwidth is None else self._own_density(bandwidth)

    def cover(self, x: Array, element: NDArray[np.int64]) -> None:
        """Add environments (N, d) of elements (N,) to those that are covered."""
        for one, rows in _by_element(element).items():
            if one in self._rows:
                self._cover(self._rows[one], x[rows])

    def cover_frame(self, k: int) -> None:
        """Add the environments of candidate k."""
        own = slice(self._candidates.start[k], self._candidates.start[k + 1])
        self.cover(self._candidates.x[own], self._candidates.element[own])

    def novelty(self) -> Array:
        """(F,) largest, over a frame's atoms, distance to the nearest covered environment."""
        return np.sqrt(np.maximum.reduceat(self._squared, self._first))

    def entropy(self) -> Array:
        """(F,) mean differential entropy of a frame's environments; at most 0.

        δH_i = -log Σ_j exp(-|x_i - x_j|² / 2h²) over the covered environments and the frame's
        own, i included. It is that of QUESTS (Schwalbe-Koda et al., Nat. Commun. 16 (2025),
        doi:10.1038/s41467-025-59232-0), with the frame's own environments added, so that
        repetition within a frame counts as well.
        """
        score = -np.log(self._own + self._density)
        return np.add.reduceat(score, self._first) / np.diff(self._candidates.start)

    def _cover(self, rows: NDArray[np.int64], y: Array) -> None:
        for some in _tiles(rows):
            x = self._candidates.x[some]
            for other in _tiles(y):
                squared = squared_distances(x, other)
                self._squared[some] = np.minimum(self._squared[some], squared.min(axis=1))
                if self._bandwidth is not None:
                    self._density[some] += _kernel(squared, self._bandwidth)

    def _own_density(self, bandwidth: float) -> Array:
        x, element, start = self._candidates
        density = np.zeros(len(x))
        for begin, end in itertools.pairwise(start):
            for rows in _by_element(element[begin:end]).values():
                own = x[begin + rows]
                density[begin + rows] = _kernel(squared_distances(own, own), bandwidth)
        # an atom meets itself at distance 0, whatever rounding says
        return np.maximum(density, 1.0)


def _tiles(values: Rows) -> Iterator[Rows]:
    for begin in range(0, len(values), TILE):
        yield values[begin : begin + TILE]


def squared_distances(x: Array, y: Array) -> Array:
    """(N, M) squared distances of points (N, d) and (M, d)."""
    # centred, so that the difference of large squares does not swallow small distances
    middle = y.mean(axis=0)
    x, y = x - middle, y - middle
    # |x|² - 2 x·y + |y|² as one matrix product: no further pass over the large array
    left = np.column_stack([x, np.square(x).sum(axis=1), np.ones(len(x))])
    right = np.column_stack([-2.0 * y, np.ones(len(y)), np.square(y).sum(axis=1)])
    squared = left @ right.T
    return np.maximum(squared, 0.0, out=squared)


def _kernel(squared: Array, bandwidth: float) -> Array:
    """Row sums of the Gaussian kernel; overwrites the squared distances."""
    squared *= -0.5 / bandwidth**2
    return np.exp(squared, out=squared).sum(axis=1)


def _by_element(element: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    return {int(one): np.flatnonzero(element == one) for one in np.unique(element)}


def choose(
    coverage: Coverage,
    deviation: Array,
    *,
    diversity: Diversity,
    limit: int,
    min_new: float,
    rng: np.random.Generator,
) -> Choice:
    """Choose candidates one by one, each one new to all that is covered.

    Parameters
    ----------
    coverage
        Of the candidates; labelled environments are covered already.
    deviation
        (F,) deviation of the candidates; the larger one decides between equals.
    diversity
        What comes next: the frame with the environment farthest from all that is covered
        (farthest), the frame with the largest differential entropy (entropy), the largest
        deviation (top), or any (random).
    limit
        Largest number of chosen frames.
    min_new
        A frame whose novelty is at most this is covered already.
    rng
        Decides for `random`.
    """
    shuffled = rng.permutation(len(deviation)).astype(np.float64)
    scores: dict[str, Callable[[], Array]] = {
        "farthest": coverage.novelty,
        "entropy": coverage.entropy,
        "top": lambda: deviation,
        "random": lambda: shuffled,
    }
    threshold = max(min_new, EQUAL)
    known = coverage.novelty() <= threshold
    left = ~known
    chosen: list[int] = []
    novelty: list[float] = []
    while len(chosen) < limit and left.any():
        pool = np.flatnonzero(left)
        score = np.round(scores[diversity]()[pool], DIGITS)
        # lexsort is stable: the first of equals
        best = int(pool[np.lexsort((-deviation[pool], -score))[0]])
        chosen.append(best)
        novelty.append(float(coverage.novelty()[best]))
        coverage.cover_frame(best)
        left[best] = False
        left &= coverage.novelty() > threshold
    similar = ~known & (coverage.novelty() <= threshold)
    similar[chosen] = False
    return Choice(chosen, novelty, known, similar)
