"""Select what is worth a label: trust levels, filters, then a diverse choice of candidates."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from dpa_core.config import Config
from dpa_core.errors import ConfigError, DataError
from ops.decide import next_stage
from ops.files import read_json, write_json
from ops.selection.choice import choose_frames, needs_descriptors
from ops.selection.diverse import Choice
from ops.selection.explored import Explored, read_explored, read_labelled
from ops.selection.filters import FrameFilter, SelectFilters
from ops.selection.levels import Levels, adaptive_lower, classify, earlier_levels, settled
from ops.selection.numbers import count, entry, statistics
from ops.selection.settings import SelectSettings

if TYPE_CHECKING:
    from dpa_core.committee import Committee

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

SELECT, SELECTED = "select.json", "selected"
logger = logging.getLogger(__name__)


class SelectConfig(Config):
    """Settings of the step."""

    stages: Annotated[tuple[SelectSettings, ...], Field(min_length=1)]
    """Settings of every stage; the decision of the previous iteration says which is on."""
    type_map: tuple[str, ...] | None = None
    """Types of the written data; those of the models (or of the explored data) when null."""
    seed: NonNegativeInt = 1
    """Seed of everything random."""
    iteration: NonNegativeInt = 0
    """Number of the iteration, for the names of frames."""


class SelectInputs(NamedTuple):
    """Folders of explore steps, models, labelled data, and the previous decision."""

    explored: Sequence[Path]
    models: Sequence[Path] = ()
    labelled: Sequence[Path] = ()
    decision: Path | None = None


def run_select(inputs: SelectInputs, config: SelectConfig, outdir: Path) -> dict[str, Any]:
    """Select frames of an exploration for labelling.

    Parameters
    ----------
    inputs
        What was explored, by which models; frames that have labels already.
    config
        Settings.
    outdir
        Receives `selected/` (deepmd/npy/mixed without labels; empty if nothing is selected)
        and `select.json`.

    Returns
    -------
    dict[str, Any]
        The content of `select.json`: accurate + candidate + failed + filtered = frames;
        "rejected" counts filtered frames by filter, and candidates that labelled ("known") or
        chosen ("similar") frames cover.

    Raises
    ------
    ConfigError
        No such stage, or a filter function that cannot be used.
    DataError
        Files that do not fit together, or without the criterion's column.
    """
    stage, settings = _stage(inputs, config)
    committee = _committee(inputs, settings)
    types = config.type_map if committee is None else committee.type_map
    explored = read_explored(inputs.explored, types, config.iteration)
    reasons = _filter(explored, settings.filters)
    passed = np.array([reason is None for reason in reasons], dtype=np.bool_)
    values = _criterion(explored, settings)
    decision = None if inputs.decision is None else read_json(inputs.decision)
    levels, converged = trust(values[passed], settings, earlier_levels(decision, stage))
    candidates = np.flatnonzero(passed)[levels.candidate]
    rng = np.random.default_rng([config.seed, config.iteration])
    choice = _choose(inputs, explored, candidates, values, committee, settings, rng)
    chosen = candidates[np.asarray(choice.chosen, dtype=np.int64)]
    outdir.mkdir(parents=True, exist_ok=True)
    _write_selected(explored, chosen, config.type_map, outdir / SELECTED)
    rejected = Counter(reason for reason in reasons if reason is not None)
    document = {
        "version": 1,
        "stage": stage,
        **count(explored.nframes, levels, rejected, choice),
        **statistics(explored, values, passed, settings),
        "lo": levels.lo if np.isfinite(levels.hi) else None,
        "hi": levels.hi if np.isfinite(levels.hi) else None,
        "converged": converged,
        "frames_selected": [
            entry(explored, int(k), settings, novelty)
            for k, novelty in zip(chosen, choice.novelty, strict=True)
        ],
    }
    write_json(outdir / SELECT, document)
    logger.info("%s", summary_line(document))
    return document


def summary_line(document: Mapping[str, Any]) -> str:
    """Return one line for the log."""
    rejected = ", ".join(f"{name} {n}" for name, n in document["rejected"].items()) or "none"
    return (
        f"{document['frames']} frames: {document['accurate']} accurate, {document['candidate']} "
        f"candidates, {document['failed']} failed; rejected: {rejected}; "
        f"{document['selected']} selected"
    )


def trust(
    values: Array, settings: SelectSettings, earlier: Sequence[float]
) -> tuple[Levels, bool | None]:
    """Classify frames by the settings' trust levels.

    Parameters
    ----------
    values
        (F,) criterion of the frames that passed the filters.
    settings
        Of the stage.
    earlier
        Lower levels of the stage's earlier iterations.

    Returns
    -------
    Levels, bool or None
        The classes, and whether an adaptive lower level has settled.
    """
    if settings.method == "random" or settings.hi is None:
        everything = np.ones(len(values), dtype=np.bool_)
        return Levels(~everything, everything, ~everything, 0.0, np.inf), None
    if settings.adaptive is None:
        return classify(values, settings.lo or 0.0, settings.hi), None
    lo = adaptive_lower(values, settings.hi, settings.adaptive)
    levels = classify(values, lo, settings.hi)
    there = bool(levels.candidate.any())
    return levels, there and settled([*earlier, lo], settings.adaptive)


def _stage(inputs: SelectInputs, config: SelectConfig) -> tuple[int, SelectSettings]:
    """Return the number of the stage that is on, and its settings."""
    stage = next_stage(inputs.decision)
    if stage >= len(config.stages):
        raise ConfigError(
            f"{inputs.decision}: asks for stage {stage}, select.stages has {len(config.stages)}"
        )
    return stage, config.stages[stage]


def _choose(
    inputs: SelectInputs,
    explored: Explored,
    candidates: Indices,
    values: Array,
    committee: Committee | None,
    settings: SelectSettings,
    rng: np.random.Generator,
) -> Choice:
    """Choose among the candidates; nothing where there is none."""
    if explored.data is None or not len(candidates):
        return Choice([], [], *np.zeros((2, len(candidates)), dtype=np.bool_))
    return choose_frames(
        explored.data.subset(candidates),
        values[candidates],
        read_labelled(inputs.labelled, explored.data.type_map),
        None if committee is None else committee.describe,
        settings,
        rng,
    )


def _committee(inputs: SelectInputs, settings: SelectSettings) -> Committee | None:
    """Return the committee that describes environments; None if they are not compared."""
    if not needs_descriptors(settings):
        return None
    from dpa_core.committee import Committee

    if not inputs.models:
        raise DataError(
            "select compares environments by the descriptors of a model and got none; give "
            "models, or set min_new: 0 with diversity: random or top"
        )
    return Committee.load(inputs.models[:1])


def _filter(explored: Explored, settings: SelectFilters) -> list[str | None]:
    """Reason why each frame is left out, None where it passes."""
    check = FrameFilter(settings)
    if explored.data is None:
        return []
    reasons = []
    for k in range(explored.nframes):
        frame = explored.data[k]
        elements = [explored.data.type_map[t] for t in frame.atype]
        reasons.append(check.reason(frame, elements, _where(explored, k)))
    return reasons


def _criterion(explored: Explored, settings: SelectSettings) -> Array:
    values = explored.deviation[settings.criterion]
    if settings.method == "committee" and len(values) and not np.isfinite(values).any():
        raise DataError(
            f"no explored frame has a finite {settings.criterion}; choose another "
            "select.criterion (max_devi_f is always there) or look at the models"
        )
    return values


def _write_selected(
    explored: Explored, chosen: Indices, type_map: Sequence[str] | None, outdir: Path
) -> None:
    from dpa_core.data import write_mixed
    from dpa_core.frames import Frame

    shutil.rmtree(outdir, ignore_errors=True)
    if explored.data is None or not len(chosen):
        outdir.mkdir(parents=True)
        return
    own = explored.data.type_map
    types = tuple(type_map or own)
    lookup = np.array([types.index(e) if e in types else -1 for e in own])
    frames = []
    for k in chosen:
        frame = explored.data[int(k)]
        if lookup[frame.atype].min() < 0:
            missing = sorted({own[t] for t in frame.atype} - set(types))
            raise DataError(f"{_where(explored, int(k))}: {', '.join(missing)} is not in the "
                            f"type_map {list(types)}; add it")  # fmt: skip
        frames.append(Frame(frame.coord, lookup[frame.atype], frame.box))
    write_mixed(frames, types, outdir, source=[_where(explored, int(k)) for k in chosen])


def _where(explored: Explored, k: int) -> str:
    return f"{explored.names[k]} frame {explored.numbers[k]}"
