"""Label structures: prepare inputs for all of them, then run them group by group.

Preparing and running are two steps, so that labelling fans out; a group is what one process
works through, so that a thousand small calculations do not become a thousand pods. A label
is put into the store (`ops.labelers.store`) the moment it is there and never computed again.
"""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from dpa_core.config import Config
from dpa_core.errors import ConfigError, DataError
from ops.base import Paused
from ops.files import holds_frames, read_json, write_json
from ops.labelers import Labeler, check_labeler
from ops.labelers.base import WARNING, BaseLabeler, Context, Structure, Waiting, label_id
from ops.labelers.manual import pause_message
from ops.labelers.runner import Runner, Task

if TYPE_CHECKING:
    from dpa_core.frames import Frame

log = logging.getLogger(__name__)


class PrepareConfig(Config):
    """How the selected structures are labelled."""

    labeler: Labeler
    """Which code, with which settings."""
    groups: PositiveInt = 1
    """Number of groups; late ones may be empty."""
    group_size: PositiveInt = 1000
    """Structures in a group: they are labelled one after another by one process."""


class PrepareInputs(NamedTuple):
    """The structures to label (a folder; an empty one holds none) and data sets by name."""

    selected: Path
    data: Mapping[str, Path] = {}


class LabelConfig(Config):
    """Which group is labelled."""

    labeler: Labeler
    """The settings that the inputs were prepared with."""
    group: NonNegativeInt = 0
    """Number of the group."""


class LabelInputs(NamedTuple):
    """The folder that `prepare_labels` wrote, and data sets by name."""

    prepared: Path
    data: Mapping[str, Path] = {}


def prepare_labels(inputs: PrepareInputs, config: PrepareConfig, outdir: Path) -> dict[str, Any]:
    """Write the inputs of every calculation.

    Parameters
    ----------
    inputs
        Structures; one that occurs twice is labelled once.
    config
        Labeler and groups.
    outdir
        Receives `tasks/000000/` (task.json and the inputs of each attempt) and `tasks.json`.

    Returns
    -------
    dict[str, Any]
        The content of `tasks.json`.

    Raises
    ------
    ConfigError
        The settings are wrong: a template or pseudopotential is missing, for example.
    DataError
        There are more structures than the groups hold.
    """
    mistakes = [line for line in check_labeler(config.labeler) if not line.startswith(WARNING)]
    if mistakes:
        raise ConfigError("\n  ".join([f"label ({config.labeler.type}):", *mistakes]))
    config.labeler.start(Context(inputs.data))
    structures, type_map = _selected(inputs.selected)
    limit = config.groups * config.group_size
    if len(structures) > limit:
        raise DataError(
            f"{len(structures)} structures to label, but {config.groups} groups of "
            f"{config.group_size} hold {limit}; select fewer or raise group_size"
        )
    rows = []
    shutil.rmtree(outdir / "tasks", ignore_errors=True)
    attempts = config.labeler.attempts()
    for number, (structure, source) in enumerate(structures):
        folder = outdir / "tasks" / f"{number:06d}"
        rows.append(
            {
                "name": folder.name,
                "id": _write_task(structure, source, attempts, folder),
                "formula": structure.formula(),
                "natoms": len(structure.elements),
                "group": number // config.group_size,
                "source": source,
            }
        )
    log.info("%d calculations prepared for %s", len(rows), config.labeler.type)
    result = {"version": 1, "type_map": list(type_map), "tasks": rows}
    write_json(outdir / "tasks.json", result)
    return result


def _write_task(
    structure: Structure, source: str, attempts: Sequence[BaseLabeler], folder: Path
) -> str:
    """Write `task.json` and the inputs of each attempt; return the label's id of the first."""
    elements = sorted(set(structure.elements))
    ids = tuple(label_id(structure, a.identity(elements)) for a in attempts)
    for k, settings in enumerate(attempts, start=1):
        (folder / f"inputs-{k}").mkdir(parents=True)
        settings.write(structure, folder / f"inputs-{k}")
    document = {"version": 1, "name": folder.name, "ids": ids, "source": source}
    write_json(folder / "task.json", document | structure.to_json())
    return ids[0]


def _selected(folder: Path) -> tuple[list[tuple[Structure, str]], tuple[str, ...]]:
    """Structures, each once, with where they come from; and the type map of their data set."""
    if not holds_frames(folder):
        return [], ()
    from dpa_core.data import open_dataset

    dataset = open_dataset(folder)
    sources = [row for system in dataset.systems for row in _sources(system.path, system.nframes)]
    found: dict[str, tuple[Structure, str]] = {}
    for k in range(len(dataset)):
        structure = Structure.of(dataset[k], dataset.type_map)
        found.setdefault(structure.digest(), (structure, sources[k]))
    if len(found) < len(dataset):
        log.warning("%d structures occur twice, labelled once", len(dataset) - len(found))
    return list(found.values()), dataset.type_map


def _sources(system: Path, nframes: int) -> list[str]:
    """Column `source` of a system's frames.csv, or the number of the frame."""
    try:
        with (system / "frames.csv").open(newline="", encoding="utf-8") as stream:
            named = [row["source"] for row in csv.DictReader(stream)]
    except (FileNotFoundError, NotADirectoryError, KeyError):
        named = []
    if len(named) != nframes or not all(named):
        return [f"{system.name} frame {k}" for k in range(nframes)]
    return named


def run_labels(inputs: LabelInputs, config: LabelConfig, outdir: Path) -> dict[str, Any]:
    """Label the structures of one group, one after another.

    What is in the store is taken from there; a calculation that fails with all settings is
    put aside there with its log, and the others go on. An interrupted run continues: only
    the calculation it was at is started anew.

    Parameters
    ----------
    inputs
        What `prepare_labels` wrote.
    config
        Labeler and group.
    outdir
        Receives `labels.json` and `labelled/` (deepmd/npy/mixed, in the order of the tasks; an
        empty folder if nothing was labelled).

    Returns
    -------
    dict[str, Any]
        The content of `labels.json`.

    Raises
    ------
    Paused
        Labels must come from outside (manual).
    DataError
        An output belongs to another structure, or the tasks were prepared with other settings.
    ConfigError
        The command does not exist.
    """
    document = read_json(inputs.prepared / "tasks.json")
    rows = document["tasks"]
    every = [Task.read(inputs.prepared / "tasks" / row["name"]) for row in rows]
    tasks = [task for task, row in zip(every, rows, strict=True) if row["group"] == config.group]
    outdir.mkdir(parents=True, exist_ok=True)
    if (outdir / "labels.json").exists():  # complete and asked for again: try again what failed
        shutil.rmtree(outdir / "state", ignore_errors=True)
        (outdir / "labels.json").unlink()
    runner = Runner(config.labeler, inputs.data, outdir, every)
    log.info("group %d: %d structures for %s", config.group, len(tasks), config.labeler.type)
    records, frames, waiting = [], [], []
    for task in tasks:
        try:
            record, frame = runner.label(task)
        except Waiting as error:
            waiting.append(str(error))
            continue
        records.append(record)
        log.info("%s", _progress(records, len(tasks), task))
        if frame is not None:
            frames.append((task, frame))
    if waiting and runner.handout is not None:
        raise Paused(pause_message(runner.handout, waiting, len(tasks)))
    _write_labelled(frames, document["type_map"], outdir / "labelled")
    shutil.rmtree(outdir / "work", ignore_errors=True)
    result = {"version": 1, "tasks": records}
    write_json(outdir / "labels.json", result)
    return result


def _progress(records: Sequence[Mapping[str, Any]], total: int, task: Task) -> str:
    """Line of the log: which, how far, how long, how much longer."""
    last = records[-1]
    known = [r["seconds"] for r in records if not r["reused"]]
    left = (total - len(records)) * sum(known) / max(1, len(known))
    what = "in the store" if last["reused"] else f"{last['state']}, {last['seconds']:.1f} s"
    text = f"{len(records)}/{total} {task.name} {task.structure.formula()}: {what}"
    return text + (f"; {left / 60:.1f} min left" if len(records) < total else "")


def _write_labelled(
    frames: Sequence[tuple[Task, Frame]], type_map: Sequence[str], folder: Path
) -> None:
    from dpa_core.data import write_mixed

    shutil.rmtree(folder, ignore_errors=True)
    if not frames:
        folder.mkdir(parents=True)
        return

    def typed() -> Iterator[Frame]:
        for task, frame in frames:
            types = [list(type_map).index(e) for e in task.structure.elements]
            yield frame._replace(atype=np.array(types, dtype=np.int64))

    source = [f"{task.source} label {task.ids[0]}" for task, _ in frames]
    write_mixed(typed(), type_map, folder, source=source)
