"""Go through a data set instead of running dynamics: settings, tasks and deviations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from dpa_core.config import Config
from dpa_core.errors import ConfigError
from ops.explorers.common import Task, Trajectory

if TYPE_CHECKING:
    from dpa_core.committee import Committee
    from dpa_core.frames import Frame


class PoolExplorer(Config):
    """The deviation of a data set's frames; frames of one composition are a trajectory."""

    type: Literal["pool"] = "pool"
    data: str
    """Name of the data set; its labels are not looked at."""
    max_frames: PositiveInt | None = None
    """Frames drawn at random, others in every iteration; left out: all."""
    relative: PositiveFloat | None = None
    """eV/Å. Relative force deviation |std F|/(|mean F| + relative) instead of the absolute."""


def pool_tasks(
    config: PoolExplorer, data: Mapping[str, Path], type_map: Sequence[str], seed: int
) -> list[Task]:
    """Group the frames drawn by composition.

    Raises
    ------
    ConfigError
        The data set is not among those given.
    DataError
        It cannot be read, or holds an element outside `type_map`.
    """
    from dpa_core.data import open_dataset

    if config.data not in data:
        raise ConfigError(
            f"explorer.data is {config.data!r}, which is not among the data sets given: "
            f"{', '.join(data) or 'none'}"
        )
    dataset = open_dataset(data[config.data], type_map)
    chosen = np.arange(len(dataset))
    if config.max_frames is not None:
        drawn = np.random.default_rng(seed).permutation(len(dataset))[: config.max_frames]
        chosen = np.sort(drawn)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for k in chosen:
        groups[_kind(dataset[int(k)])].append(int(k))
    return [
        Task(f"{config.data}-{number:04d}", "pool", dataset=dataset, indices=tuple(members))
        for number, members in enumerate(groups.values())
    ]


def run_pool(
    config: PoolExplorer, task: Task, committee: Committee, type_map: Sequence[str]
) -> Trajectory:
    """Return the frames of a task without labels, and their deviation.

    Raises
    ------
    ConfigError
        The task has no data set.
    """
    if task.dataset is None:
        raise ConfigError(f"task {task.structure}: the pool explorer needs a data set")
    frames = [_bare(task.dataset[k]) for k in task.indices]
    to_model = np.array([committee.type_map.index(e) if e in committee.type_map else -1
                         for e in type_map])  # fmt: skip
    asked = [f._replace(atype=to_model[f.atype]) for f in frames]
    deviation = committee.deviation(asked, relative=config.relative)
    return Trajectory(frames, list(task.indices), deviation, len(frames))


def _kind(frame: Frame) -> tuple[object, ...]:
    """Composition, and what else must agree for frames to fit into one system."""
    real = frame.atype[frame.atype >= 0]
    given = (value is None for value in (frame.box, frame.fparam, frame.aparam))
    return (np.sort(real).tobytes(), *given)


def _bare(frame: Frame) -> Frame:
    """Return the frame without labels and virtual atoms."""
    from dpa_core.frames import Frame

    real = frame.atype >= 0
    return Frame(
        coord=frame.coord[real],
        atype=frame.atype[real],
        box=frame.box,
        fparam=frame.fparam,
        aparam=None if frame.aparam is None else frame.aparam[real],
    )
