"""Choose among the candidates: no copies, nothing that is covered, as diverse as asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ops.filters import fingerprint
from ops.selection.diverse import Choice, Coverage, choose
from ops.selection.environments import Describe, describe_all, fit_space, thin

if TYPE_CHECKING:
    from dpa_core.data import Dataset
    from ops.selection.settings import SelectSettings

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

CANDIDATE_ATOMS, LABELLED_ATOMS = 200_000, 50_000
"""Largest numbers of environments that the diverse choice compares."""


def choose_frames(
    frames: Dataset,
    deviation: Array,
    labelled: Dataset | None,
    describe: Describe | None,
    settings: SelectSettings,
    rng: np.random.Generator,
) -> Choice:
    """Choose frames worth a label: never a copy, and new environments only.

    Parameters
    ----------
    frames
        The F candidates.
    deviation
        (F,); the larger one decides between equals.
    labelled
        Frames that need no label any more.
    describe
        Gives descriptors, e.g. `Committee.describe`; both data sets have its type map. None:
        only copies are left out, see `needs_descriptors`.
    settings
        method, diversity, max_candidates, min_new and bandwidth.
    rng
        Decides what is random.
    """
    known, similar = _copies(frames, labelled)
    left = np.flatnonzero(~known & ~similar)
    random = settings.method == "random" or settings.diversity == "random"
    order = rng.permutation(left) if random else left[np.argsort(-deviation[left], kind="stable")]
    if not len(left) or describe is None:
        chosen = [int(k) for k in order[: settings.max_candidates]]
        return Choice(chosen, [np.nan] * len(chosen), known, similar)
    if settings.diversity != "top":
        order = rng.permutation(left)
    left = np.sort(thin(frames.natoms, order, CANDIDATE_ATOMS))
    found = _choose_new(frames.subset(left), deviation[left], labelled, describe, settings, rng)
    known[left], similar[left] = found.known, found.similar
    return Choice([int(left[k]) for k in found.chosen], found.novelty, known, similar)


def needs_descriptors(settings: SelectSettings) -> bool:
    """Whether the choice compares environments, beyond leaving out copies."""
    if settings.method == "random":
        return False
    return settings.diversity in ("farthest", "entropy") or settings.min_new > 0


def _choose_new(
    frames: Dataset,
    deviation: Array,
    labelled: Dataset | None,
    describe: Describe,
    settings: SelectSettings,
    rng: np.random.Generator,
) -> Choice:
    if labelled is not None:
        present = np.flatnonzero(frames.counts().any(axis=0))
        counts = labelled.counts()
        # elements that the models do not know stand behind the candidates' type map
        foreign = counts[:, len(frames.type_map) :].any(axis=1)
        shared = np.flatnonzero(counts[:, present].any(axis=1) & ~foreign)
        some = thin(labelled.natoms, rng.permutation(shared), LABELLED_ATOMS)
        labelled = labelled.subset(np.sort(some)) if len(some) else None
    space = fit_space([frames] if labelled is None else [frames, labelled], describe)
    bandwidth = settings.bandwidth if settings.diversity == "entropy" else None
    coverage = Coverage(describe_all(frames, describe, space), bandwidth)
    if labelled is not None:
        old = describe_all(labelled, describe, space)
        coverage.cover(old.x, old.element)
    return choose(
        coverage,
        deviation,
        diversity=settings.diversity,
        limit=settings.max_candidates,
        min_new=settings.min_new,
        rng=rng,
    )


def _copies(frames: Dataset, labelled: Dataset | None) -> tuple[Mask, Mask]:
    """Which frames are copies of labelled ones, and which of earlier frames."""
    old = set(_keys(labelled)) if labelled is not None else set()
    known, similar = (np.zeros(len(frames), dtype=np.bool_) for _ in range(2))
    seen: set[str] = set()
    for k, key in enumerate(_keys(frames)):
        known[k] = key in old
        similar[k] = key not in old and key in seen
        seen.add(key)
    return known, similar


def _keys(data: Dataset) -> list[str]:
    frames = (data[k] for k in range(len(data)))
    return [fingerprint(frame, [data.type_map[t] for t in frame.atype]) for frame in frames]
