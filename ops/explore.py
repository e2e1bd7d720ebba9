"""Explore: make new structures with the committee and say where it disagrees.

Trajectories are made one after another in this process. Each lies on disk complete or not at
all, and what decides it (settings, start, seed, models) is hashed into it: a run that was
killed goes on with the first one missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from dpa_core.config import Config
from dpa_core.errors import ConfigError
from ops.explorers import AseExplorer, Explorer, LammpsExplorer, PoolExplorer, lammps
from ops.explorers.common import Task, Trajectory, md_tasks
from ops.explorers.pool import pool_tasks, run_pool
from ops.files import read_json, write_json
from ops.storage import split_part
from ops.structure_sources import StructureSource
from ops.structures import check_elements, derived_seed, make_structures

if TYPE_CHECKING:
    from dpa_core.committee import Committee

TRAJECTORIES, SUMMARY, DEVIATION = "trajectories", "trajectory.json", "model_devi.out"
ENTRY = ("name", "structure", "formula", "natoms", "ensemble", "temperature", "pressure", "steps",
         "frames", "stop", "max_devi_f")  # fmt: skip
"""Keys of a trajectory in explore.json."""
logger = logging.getLogger(__name__)


class ExploreStage(Config):
    """What one stage explores."""

    structures: tuple[str, ...] = ()
    """Names of sources of starting structures; a pool needs none."""
    explorer: Explorer
    """How, chosen by `type`: ase, lammps or pool."""


class ExploreConfig(Config):
    """Everything `explore` needs."""

    sources: dict[str, StructureSource] = Field(default_factory=dict)
    """Starting structures by name."""
    stages: tuple[ExploreStage, ...] = Field(min_length=1)
    """The stages; which one is on is said by the decision of the iteration before."""
    type_map: tuple[str, ...] | None = None
    """Elements of the written frames; left out: those of the models."""
    seed: NonNegativeInt = 1
    """Seed of structures, velocities, noise and draws."""
    iteration: NonNegativeInt = 0
    """Number of the iteration; every one has other structures and velocities."""
    part: NonNegativeInt = 0
    """This step makes the trajectories part, part + parts, part + 2 parts, ..."""
    parts: PositiveInt = 1
    """Steps that share the trajectories."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ExploreConfig:
        if self.part >= self.parts:
            raise ValueError(f"part ({self.part}) must be below parts ({self.parts})")
        for number, stage in enumerate(self.stages):
            if unknown := [name for name in stage.structures if name not in self.sources]:
                raise ValueError(
                    f"stage {number} starts from {', '.join(unknown)}; there are sources "
                    f"{', '.join(self.sources) or '(none)'}"
                )
            if not stage.structures and not isinstance(stage.explorer, PoolExplorer):
                raise ValueError(f"stage {number} names no structures to start from")
        return self


class ExploreInputs(NamedTuple):
    """Model files of the committee, data sets by name, the decision of the iteration before."""

    models: Sequence[Path]
    data: Mapping[str, Path] = {}
    decision: Path | None = None


class _Job(NamedTuple):
    """One trajectory of the grid."""

    name: str
    task: Task
    seed: int
    mark: str


def run_explore(inputs: ExploreInputs, config: ExploreConfig, outdir: Path) -> dict[str, Any]:
    """Make the trajectories of this part of the grid; those that are complete are kept.

    Parameters
    ----------
    inputs
        Models, data, decision.
    config
        Stages, seed, part.
    outdir
        Receives `trajectories/000000/`, ...: a deepmd/npy/mixed folder of the frames in order
        (no system in it if there are no frames), `model_devi.out` (a row for each frame) and
        `trajectory.json`; and `explore.json`.

    Returns
    -------
    dict[str, Any]
        The content of `explore.json`. A trajectory that diverged is no failure: "stop" says
        reason, step and message.

    Raises
    ------
    ConfigError
        Elements that the models do not know, unknown data sets, no LAMMPS or no DeePMD-kit to
        convert models for it, one-atom cells.
    DataError
        Structures that cannot be read.
    ModelFileError
        A model that cannot be read.
    ops.base.Paused
        `lammps` with `write_only`, while results are missing.
    """
    from ops.decide import next_stage

    begin = time.monotonic()
    number = next_stage(inputs.decision)
    stage = config.stages[min(number, len(config.stages) - 1)]
    session = _Session(inputs, config, stage, outdir)
    jobs = session.jobs(number)
    logger.info("stage %d: %d trajectories here", number, len(jobs))
    session.clean(jobs)
    session.prepare(jobs)
    entries = []
    for job in jobs:
        summary = session.finished(job) or session.make(job)
        entries.append({key: summary[key] for key in ENTRY})
    document = {
        "version": 1,
        "iteration": config.iteration,
        "stage": number,
        "trajectories": entries,
        "seconds": round(time.monotonic() - begin, 3),
    }
    write_json(outdir / "explore.json", document)
    return document


class _Session:
    """What the trajectories of one call share."""

    def __init__(
        self, inputs: ExploreInputs, config: ExploreConfig, stage: ExploreStage, outdir: Path
    ) -> None:
        self.inputs, self.config, self.stage = inputs, config, stage
        self.folder, self.lammps = outdir / TRAJECTORIES, outdir / "lammps"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model_types = _model_types(inputs.models, config)
        self.type_map = config.type_map or self.model_types
        self._committee: Committee | None = None

    @property
    def committee(self) -> Committee:
        """The members, read when first needed."""
        from dpa_core.committee import Committee

        if self._committee is None:
            self._committee = Committee.load(list(self.inputs.models))
        return self._committee

    def jobs(self, number: int) -> list[_Job]:
        """Lay out the trajectories of this part."""
        config, explorer = self.config, self.stage.explorer
        key = (config.seed, config.iteration, number)
        if isinstance(explorer, PoolExplorer):
            known = tuple(e for e in self.type_map if e in self.model_types)
            tasks = pool_tasks(explorer, self.inputs.data, known, derived_seed(*key, "pool"))
            self.type_map = known
        else:
            structures = make_structures(
                config.sources, self.inputs.data, self.stage.structures, derived_seed(*key)
            )
            for names in (self.type_map, self.model_types):
                check_elements(structures, names)
            tasks = md_tasks(explorer, structures)
        mine = range(config.part, len(tasks), config.parts)
        models = [_digest(path) for path in self.inputs.models]
        jobs = []
        for k in mine:
            seed = derived_seed(*key, k)
            mark = _mark(tasks[k], explorer, [*models, seed, *self.type_map])
            jobs.append(_Job(f"{k:06d}", tasks[k], seed, mark))
        return jobs

    def clean(self, jobs: Sequence[_Job]) -> None:
        """Remove what was left half-done, or made under other settings."""
        kept = {job.name for job in jobs if self.finished(job) is not None}
        for path in sorted(self.folder.iterdir()):
            if path.name not in kept:
                shutil.rmtree(path)

    def prepare(self, jobs: Sequence[_Job]) -> None:
        """Find out early what can go wrong; write LAMMPS's inputs."""
        from ops.base import Paused

        explorer = self.stage.explorer
        if not isinstance(explorer, LammpsExplorer):
            return
        lammps.check_lammps(explorer, self.inputs.models)
        explorer = lammps.with_frozen(explorer, self.inputs.models, self.lammps / "models")
        missing = []
        for job in jobs:
            folder = self.lammps / job.name
            if self.finished(job) is not None:
                continue
            ours = folder / "task.json"
            if not ours.is_file() or read_json(ours)["id"] != job.mark:
                shutil.rmtree(folder, ignore_errors=True)
                lammps.write_inputs(explorer, job.task, self.type_map, job.seed, folder)
                write_json(ours, {"id": job.mark})
            if not (folder / lammps.FINISHED).is_file():
                missing.append(job.name)
        if explorer.write_only and missing:
            raise Paused(
                f"{len(missing)} LAMMPS runs are to be done in {self.lammps}/NNNNNN (first: "
                f"{missing[0]}): run `lmp -in {lammps.INPUT}` in each, with the model files in "
                f"place, until it has written the file {lammps.FINISHED!r}; then resume"
            )

    def finished(self, job: _Job) -> dict[str, Any] | None:
        """Return the summary of a trajectory that is complete, else None."""
        path = self.folder / job.name / SUMMARY
        if not path.is_file():
            return None
        summary: dict[str, Any] = read_json(path)
        return summary if summary["id"] == job.mark else None

    def make(self, job: _Job) -> dict[str, Any]:
        """Make one trajectory and write it."""
        trajectory = self._run(job)
        summary = self._write(job, trajectory)
        told = "" if trajectory.stop is None else f", stopped: {trajectory.stop.message}"
        logger.info("%s %s: %d frames, %d steps%s", job.name, job.task.structure,
                    len(trajectory.frames), trajectory.done, told)  # fmt: skip
        return summary

    def _run(self, job: _Job) -> Trajectory:
        explorer = self.stage.explorer
        if isinstance(explorer, AseExplorer):
            from ops.explorers.ase_md import run_md

            return run_md(explorer, job.task, self.committee, self.type_map, job.seed)
        if isinstance(explorer, PoolExplorer):
            return run_pool(explorer, job.task, self.committee, self.type_map)
        from ops.explorers.lammps_output import read_trajectory

        folder = self.lammps / job.name
        if not explorer.write_only:
            lammps.run_lammps(explorer, folder)
        return read_trajectory(explorer, job.task, self.type_map, folder)

    def _write(self, job: _Job, trajectory: Trajectory) -> dict[str, Any]:
        from dpa_core.committee import write_model_devi
        from dpa_core.data import write_mixed

        staging = self.folder / f".{job.name}"
        if trajectory.frames:
            source = [f"{job.name} step {step}" for step in trajectory.steps]
            write_mixed(trajectory.frames, self.type_map, staging, source=source)
        else:
            staging.mkdir()
        write_model_devi(staging / DEVIATION, trajectory.steps, trajectory.deviation)
        summary = _summary(job, trajectory, self.type_map)
        write_json(staging / SUMMARY, summary)
        staging.replace(self.folder / job.name)
        return summary


def _model_types(models: Sequence[Path], config: ExploreConfig) -> tuple[str, ...]:
    from dpa_core.interchange.files import read_header

    if models:
        return tuple(read_header(models[0])["type_map"])
    if config.type_map is not None and all(
        isinstance(stage.explorer, LammpsExplorer) for stage in config.stages
    ):
        return config.type_map
    raise ConfigError("explore: no model files are given; name the files of the committee")


def _digest(model: Path) -> str:
    """Hash of a model file, and which of its models is meant."""
    file, part = split_part(model)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() + part


def _mark(task: Task, explorer: Explorer, parts: Sequence[object]) -> str:
    """Hash everything that decides a trajectory."""
    settings = explorer.model_dump(mode="json", exclude={"command", "write_only", "frozen"})
    document = [settings, task.structure, task.temperature, task.pressure, task.indices, *parts]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    if task.atoms is not None:
        for array in (task.atoms.numbers, task.atoms.positions, task.atoms.cell[:]):
            digest.update(np.ascontiguousarray(array).tobytes())
    if task.dataset is not None:
        for k in task.indices:
            frame = task.dataset[k]
            digest.update(frame.coord.tobytes() + frame.atype.tobytes())
    return digest.hexdigest()[:16]


def _summary(job: _Job, trajectory: Trajectory, type_map: Sequence[str]) -> dict[str, Any]:
    """Content of trajectory.json; nothing in it depends on time or place."""
    from dpa_core.data import formula

    task, devi = job.task, trajectory.deviation.max_devi_f
    devi = devi[np.isfinite(devi)]  # a pool may hold frames that no model can judge
    symbols = _symbols(task)
    return {
        "version": 1,
        "id": job.mark,
        "name": job.name,
        "structure": task.structure,
        "formula": formula(np.array([type_map.index(e) for e in symbols]), type_map),
        "natoms": len(symbols),
        "ensemble": task.ensemble,
        "temperature": task.temperature,
        "pressure": task.pressure,
        "seed": job.seed,
        "steps": trajectory.done,
        "frames": len(trajectory.frames),
        "sampled": trajectory.steps,
        "stop": None if trajectory.stop is None else trajectory.stop._asdict(),
        "max_devi_f": float(devi.max()) if len(devi) else None,
    }


def _symbols(task: Task) -> list[str]:
    """Elements of the atoms of every frame."""
    if task.atoms is not None:
        return list(task.atoms.get_chemical_symbols())
    if task.dataset is None or not task.indices:
        return []
    types = task.dataset[task.indices[0]].atype
    return [task.dataset.type_map[t] for t in types if t >= 0]
