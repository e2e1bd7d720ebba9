"""Label structures: prepare inputs for all of them, then run them group by group.

Preparing and running are two steps, so that labelling fans out; a group is what one process
works through, so that a thousand small calculations do not become a thousand pods. A label
is put into the store (`ops.labelers.store`) the moment it is there and never computed again.
"""

from __future__ import annotations

import csv
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from dpa_core.config import Config
from dpa_core.errors import ConfigError, DataError
from ops.base import Paused
from ops.files import read_json, write_json
from ops.labelers import Labeler, check_labeler
from ops.labelers.base import (
    WARNING,
    BaseLabeler,
    Context,
    Job,
    LabelFailed,
    LabelKilled,
    Structure,
    Waiting,
    label_id,
    text_hash,
)
from ops.labelers.manual import ManualLabeler, hand_out, pause_message
from ops.labelers.store import open_store

if TYPE_CHECKING:
    from dpa_core.frames import Frame

log = logging.getLogger(__name__)

KILLED_LIMIT = 3
"""Times that one calculation may be killed before it counts as failed."""


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


class Task(NamedTuple):
    """One structure to label.

    Attributes
    ----------
    name
        "000000".
    ids
        Names of its label in the store, for the settings of each attempt.
    structure
        What to label.
    source
        Where it comes from.
    folder
        Holds task.json and the inputs of each attempt.
    """

    name: str
    ids: tuple[str, ...]
    structure: Structure
    source: str
    folder: Path


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
        name = f"{number:06d}"
        elements = sorted(set(structure.elements))
        ids = tuple(label_id(structure, a.identity(elements)) for a in attempts)
        folder = outdir / "tasks" / name
        for k, settings in enumerate(attempts, start=1):
            (folder / f"inputs-{k}").mkdir(parents=True)
            settings.write(structure, folder / f"inputs-{k}")
        document = {"version": 1, "name": name, "ids": ids, "source": source}
        write_json(folder / "task.json", document | structure.to_json())
        rows.append(
            {
                "name": name,
                "id": ids[0],
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


def _selected(folder: Path) -> tuple[list[tuple[Structure, str]], tuple[str, ...]]:
    """Structures, each once, with where they come from; and the type map of their data set."""
    if not any(folder.iterdir()):
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
    every = [_read_task(inputs.prepared / "tasks" / row["name"]) for row in document["tasks"]]
    tasks = [
        task
        for task, row in zip(every, document["tasks"], strict=True)
        if row["group"] == config.group
    ]
    outdir.mkdir(parents=True, exist_ok=True)
    if (outdir / "labels.json").exists():  # complete and asked for again: try again what failed
        shutil.rmtree(outdir / "state", ignore_errors=True)
        (outdir / "labels.json").unlink()
    runner = _Runner(config.labeler, inputs.data, outdir, every)
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


class _Runner:
    """Labels tasks with one labeler; knows the store and what failed before."""

    def __init__(
        self, labeler: BaseLabeler, data: Mapping[str, Path], outdir: Path, every: Sequence[Task]
    ) -> None:
        self.store = open_store(outdir)
        self.outdir = outdir
        self.labeler = labeler
        self.origin = text_hash(" ".join(i for task in every for i in task.ids))
        self.handout: Path | None = None
        if isinstance(labeler, ManualLabeler):
            self.handout = self.store.folder / "manual" / self.origin
            self._hand_out(labeler, every, self.handout)
        context = Context(data, self.handout)
        self.attempts = [(settings, settings.start(context)) for settings in labeler.attempts()]
        # whoever still writes there was started by a run that is gone; new folders have new names
        shutil.rmtree(outdir / "work", ignore_errors=True)

    def _hand_out(self, labeler: ManualLabeler, every: Sequence[Task], folder: Path) -> None:
        todo = [t for t in every if self.store.get(t.ids[0], t.structure) is None]
        inputs = {t.name: t.folder / "inputs-1" for t in todo}
        hand_out(labeler.inputs, inputs, {t.name: t.structure for t in todo}, folder)

    def label(self, task: Task) -> tuple[dict[str, Any], Frame | None]:
        """Return the record of labels.json and the frame, None if it failed."""
        if len(task.ids) != len(self.attempts):
            raise DataError(
                f"{task.folder}: prepared for {len(task.ids)} attempts, the settings have "
                f"{len(self.attempts)}; prepare again"
            )
        state = self.outdir / "state" / f"{task.name}.json"
        if state.exists():
            return read_json(state), None
        if (found := self._stored(task)) is not None:
            return found
        work = self.outdir / "work"
        work.mkdir(exist_ok=True)
        begin = time.monotonic()
        reasons: list[str] = []
        folders: list[Path] = []
        for number in range(len(self.attempts)):
            try:
                frame, folder = self._attempt(task, number, folders)
            except LabelFailed as error:
                reasons.append(str(error))
                log.warning("%s: attempt %d failed: %s", task.name, number + 1, error)
                continue
            record = self._record(task, "labelled", number + 1, begin)
            if self.labeler.stored:
                info = record | {"formula": task.structure.formula(), "source": task.source}
                info |= {"origin": self.origin, "failed": list(task.ids[:number])}
                info |= {"settings": self._identity(task, number), "reasons": reasons}
                kept = [
                    p for g in getattr(self.labeler, "keep", ()) for p in sorted(folder.glob(g))
                ]
                self.store.put(task.ids[number], task.structure, frame, info, kept)
            self._clean(folders)
            return record, frame
        record = self._record(task, "failed", len(reasons), begin)
        record["reason"] = "; then ".join(reasons)
        self.store.quarantine(task.ids[0], folders, record | {"source": task.source})
        write_json(state, record)
        self._clean(folders)
        return record, None

    def _stored(self, task: Task) -> tuple[dict[str, Any], Frame] | None:
        """Look into the store; a later attempt counts where the ones before it have failed."""
        for number, name in enumerate(task.ids):
            stored = self.store.get(name, task.structure)
            if stored is None or not set(task.ids[:number]) <= set(stored.info["failed"]):
                continue
            record = {key: stored.info[key] for key in ("attempts", "seconds")}
            record = {"name": task.name, "id": name, "state": "labelled", **record}
            record["reused"] = stored.info["origin"] != self.origin
            return record | {"reason": ""}, stored.frame
        return None

    def _attempt(self, task: Task, number: int, folders: list[Path]) -> tuple[Frame, Path]:
        """Run one attempt, again if it was killed; its last folder is added to `folders`."""
        for turn in range(1, KILLED_LIMIT + 1):
            folder = Path(tempfile.mkdtemp(prefix=f"{task.name}-", dir=self.outdir / "work"))
            shutil.copytree(task.folder / f"inputs-{number + 1}", folder, dirs_exist_ok=True)
            try:
                frame = self.attempts[number][1](Job(task.name, task.structure, folder))
            except LabelKilled as error:
                if turn == KILLED_LIMIT:
                    folders.append(folder)
                    raise
                log.warning("%s: %s; once more", task.name, error)
                shutil.rmtree(folder, ignore_errors=True)
            except LabelFailed:
                folders.append(folder)
                raise
            else:
                folders.append(folder)
                return frame, folder
        raise AssertionError

    def _identity(self, task: Task, number: int) -> dict[str, Any]:
        return self.attempts[number][0].identity(sorted(set(task.structure.elements)))

    def _record(self, task: Task, state: str, attempts: int, begin: float) -> dict[str, Any]:
        name = task.ids[attempts - 1] if state == "labelled" else task.ids[0]
        seconds = round(time.monotonic() - begin, 3)
        record = {"name": task.name, "id": name, "state": state, "attempts": attempts}
        return record | {"seconds": seconds, "reused": False, "reason": ""}

    @staticmethod
    def _clean(folders: Sequence[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _read_task(folder: Path) -> Task:
    data = read_json(folder / "task.json")
    structure = Structure.from_json(data)
    return Task(data["name"], tuple(data["ids"]), structure, data["source"], folder)


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
