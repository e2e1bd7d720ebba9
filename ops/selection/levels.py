"""Trust levels: which frames the committee agrees on, which are worth a label, which are lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from dpa_core.config import Config

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class AdaptiveLevel(Config):
    """The lower level follows the data (DP-GEN2's "adaptive lower").

    It is set so that the frames with the largest deviation below `hi` are the candidates, as
    many as the larger of `fraction` and `count` asks for.
    """

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Candidates as a fraction of the frames below hi."""
    count: NonNegativeInt = 0
    """Candidates as a number."""
    tolerance: NonNegativeFloat = 0.05
    """Largest relative change of the lower level for which it counts as settled."""
    checked: Annotated[int, Field(ge=2)] = 2
    """Iterations of one stage, the present one included, whose levels are compared."""


class Levels(NamedTuple):
    """Classes of F frames; a frame is in one of the three.

    Attributes
    ----------
    accurate, candidate, failed
        (F,) bool: value < lo, lo <= value < hi, value >= hi or not finite.
    lo, hi
        The levels, in the unit of the criterion.
    """

    accurate: Mask
    candidate: Mask
    failed: Mask
    lo: float
    hi: float


def classify(values: Array, lo: float, hi: float) -> Levels:
    """Divide frames by fixed trust levels.

    Parameters
    ----------
    values
        (F,) deviation of every frame.
    lo, hi
        Trust levels in the same unit.
    """
    sane = np.isfinite(values) & (values < hi)
    return Levels(sane & (values < lo), sane & (values >= lo), ~sane, lo, hi)


def adaptive_lower(values: Array, hi: float, settings: AdaptiveLevel) -> float:
    """Return the lower level that makes the wanted number of frames candidates.

    The level is the smallest deviation among the n largest below `hi`, n = max(count,
    floor(fraction · frames below hi)) but not more than there are; `hi` if n is 0.
    """
    below = np.sort(values[np.isfinite(values) & (values < hi)])
    # 0.29 * 100 is 28.999...: a product that is whole but for rounding is whole
    wanted = int(np.floor(settings.fraction * len(below) + 1e-9))
    number = min(max(settings.count, wanted), len(below))
    return float(below[-number]) if number else hi


def earlier_levels(decision: Mapping[str, Any] | None, stage: int) -> list[float]:
    """Return the lower levels of a stage's iterations so far, from the decision's rows."""
    rows: Sequence[Mapping[str, Any]] = [] if decision is None else decision["rows"]
    return [row["lo"] for row in rows if row["stage"] == stage and row["lo"] is not None]


def settled(levels: Sequence[float], settings: AdaptiveLevel) -> bool:
    """Whether the last `checked` levels each moved at most `tolerance` of the larger one."""
    last = np.asarray(levels[-settings.checked :], dtype=np.float64)
    if len(last) < settings.checked:
        return False
    larger = np.maximum(np.abs(last[1:]), np.abs(last[:-1]))
    return bool((np.abs(np.diff(last)) <= settings.tolerance * larger).all())
