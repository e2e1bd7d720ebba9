"""Work through the structures of a group: look into the store, try, retry, put aside."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpa_core.errors import DataError
from ops.files import read_json, write_json
from ops.labelers.base import (
    BaseLabeler,
    Context,
    Job,
    LabelFailed,
    LabelKilled,
    Structure,
    text_hash,
)
from ops.labelers.manual import ManualLabeler, hand_out
from ops.labelers.store import open_store

if TYPE_CHECKING:
    from dpa_core.frames import Frame

log = logging.getLogger(__name__)

KILLED_LIMIT = 3
"""Times that one calculation may be killed before it counts as failed."""


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

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Read a folder that `prepare_labels` wrote."""
        data = read_json(folder / "task.json")
        structure = Structure.from_json(data)
        return cls(data["name"], tuple(data["ids"]), structure, data["source"], folder)


class Runner:
    """Labels tasks with one labeler; knows the store and what failed before.

    Parameters
    ----------
    labeler
        The settings.
    data
        Data sets by name.
    outdir
        Folder of the step: state/ remembers what failed, work/ holds the attempts.
    every
        All tasks that were prepared together, those of other groups as well.
    """

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
