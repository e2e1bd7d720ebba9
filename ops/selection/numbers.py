"""The numbers of `select.json`: counts, statistics, histogram, selected frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ops.selection.diverse import Choice
    from ops.selection.explored import Explored
    from ops.selection.levels import Levels
    from ops.selection.settings import SelectSettings

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
BINS = 40


def count(
    nframes: int, levels: Levels, rejected: Mapping[str, int], choice: Choice
) -> dict[str, Any]:
    """Return counts and fractions; accurate + candidate + failed + filtered = frames."""
    filtered = sum(rejected.values())
    classes = {
        "accurate": int(levels.accurate.sum()),
        "candidate": int(levels.candidate.sum()),
        "failed": int(levels.failed.sum()),
        "filtered": filtered,
    }
    covered = {"known": int(choice.known.sum()), "similar": int(choice.similar.sum())}
    candidate = classes["candidate"]
    return {
        "frames": nframes,
        **classes,
        "fractions": {name: n / max(1, nframes) for name, n in classes.items()},
        "rejected": dict(sorted(rejected.items())) | {k: n for k, n in covered.items() if n},
        "left": candidate - sum(covered.values()) - len(choice.chosen),
        "selected": len(choice.chosen),
        "new_fraction": (candidate - covered["known"]) / candidate if candidate else None,
    }


def statistics(
    explored: Explored, values: Array, passed: Mask, settings: SelectSettings
) -> dict[str, Any]:
    """Deviation of the frames that passed the filters."""
    values = values[passed & np.isfinite(values)]
    force = explored.deviation["max_devi_f"]
    return {
        "method": settings.method,
        "diversity": settings.diversity,
        "criterion": {"name": settings.criterion, **_summary(values)},
        "deviation": _summary(force[passed & np.isfinite(force)]),
        "histogram": _histogram(values, settings.hi),
    }


def _summary(values: Array) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(("mean", "median", "p95", "max"))
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def _histogram(values: Array, hi: float | None) -> dict[str, list[float]] | None:
    """Count values of the criterion; the last bin also holds all that is larger."""
    if not len(values):
        return None
    top = float(values.max())
    if hi is not None:
        top = min(max(top, 1.25 * hi), 3 * hi)
    counts, edges = np.histogram(np.clip(values, 0, top), BINS, range=(0.0, top or 1.0))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def entry(explored: Explored, k: int, settings: SelectSettings, novelty: float) -> dict[str, Any]:
    """Return what is told about explored frame k, which was selected."""
    columns = ("max_devi_f", settings.criterion)
    values: dict[str, float] = {name: float(explored.deviation[name][k]) for name in columns}
    values["novelty"] = novelty
    return {
        "trajectory": explored.names[k],
        "frame": explored.numbers[k],
        **{name: value if np.isfinite(value) else None for name, value in values.items()},
    }
