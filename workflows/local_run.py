"""A run on this machine: its logs, and the table of its loop from what steps left in folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.base import LOG, Status, log_tail, read_status
from ops.decide import DECISION
from ops.files import read_json
from workflows.backends.local import LOG_MARK
from workflows.iteration_rows import by_iteration, complete, last_planned, of_phase, place
from workflows.run_folder import RunFolder, StepState
from workflows.source import Row, Source

LEAST_SPACE = 1024**2
"""Bytes. With less free space than this a run that failed blames the disk."""


class LocalRun(Source):
    """The run of a folder.

    Parameters
    ----------
    folder
        Where it is.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(str(folder.root))
        self.folder = folder

    def tail(self, key: str, lines: int) -> list[str]:
        """Return the last lines of a step's log."""
        return log_tail(self.folder.steps / key, lines)

    def note(self, step: StepState) -> str:
        """Return the end of a running step's log."""
        tail = [x for x in self.tail(step.node.key, 3) if not x.startswith("---")]
        return tail[-1] if tail else ""

    def log_place(self, key: str) -> str:
        """Return where the whole log of a step is."""
        return str(self.folder.steps / key / LOG)

    def trouble(self, failed: Sequence[StepState]) -> str | None:
        """Say that the disk is full, if it is: then no step can tell why it failed."""
        free = shutil.disk_usage(self.folder.root).free
        if free < LEAST_SPACE:
            root = self.folder.root
            return f"the disk is full ({free // 1024} KiB free in {root}); free some space"
        reasons = (step.status.reason for step in failed if step.status is not None)
        return next((r.splitlines()[0] for r in reasons if r.startswith("the disk is full")), None)

    def leftover(self) -> list[str]:
        """Return what dflow said last."""
        log = self.folder.log
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        tail = text.rpartition(LOG_MARK)[2].strip().splitlines()[-12:]
        told = f"dflow ended before all steps were done; its log: {log}"
        return [told, *(f"  | {line}" for line in tail)]

    def rows(self, states: Sequence[StepState]) -> list[Row]:
        """Return the table of a loop as far as it is known.

        Parameters
        ----------
        states
            The steps, see `workflows.run_folder.read_states`.

        Returns
        -------
        list[dict]
            The rows of the latest decision.json, and one for the iteration in progress; each
            with "times", the wall time of the phases in s, and "phase" where there is no
            verdict yet.
        """
        statuses = self._statuses(states)
        decided = [k for k in statuses if (self.step(k, "decide") / DECISION).is_file()]
        rows = self.json(max(decided), "decide", DECISION).get("rows", []) if decided else []
        now = max((k for k, found in statuses.items() if found), default=None)
        current = {} if now is None else self._row_in_progress(now, statuses[now])
        return complete(rows, statuses, states, current)

    def step(self, iteration: int, name: str) -> Path:
        """Return the folder of an iteration's step."""
        return self.folder.steps / f"iter-{iteration:06d}-{name}"

    def json(self, iteration: int, name: str, file: str) -> Any:
        """Return a document that an iteration's step wrote; {} if it has not yet."""
        return read_or_empty(self.step(iteration, name) / file)

    def _statuses(self, states: Sequence[StepState]) -> dict[int, dict[str, Status]]:
        """Status of every step that has begun, by iteration.

        What the plan lacks is read too, but not of iterations after its last: those were
        taken back.
        """
        found = by_iteration(states)
        known = {step.node.key for step in states}
        for path in sorted(self.folder.steps.glob("iter-*")):
            where = place(path.name)
            if not where or where[0] > last_planned(states) or path.name in known:
                continue
            if status := read_status(path):
                found.setdefault(where[0], {})[path.name] = status
        return found

    def _row_in_progress(self, iteration: int, statuses: Mapping[str, Status]) -> Row:
        select = self.json(iteration, "select", "select.json")

        def documents(phase: str, file: str) -> list[Any]:
            return [read_or_empty(self.folder.steps / k / file) for k in of_phase(statuses, phase)]

        explored = documents("explore", "explore.json")
        trajectories = [t for part in explored for t in part.get("trajectories", [])]
        stopped = sum(t.get("stop") is not None for t in trajectories)
        labels = documents("label", "labels.json")
        tasks = [task["state"] for part in labels for task in part.get("tasks", [])]
        runs = documents("train", "run.json")
        row: Row = {
            "iteration": iteration,
            "stage": self._stage(iteration),
            "explored": sum(t.get("frames", 0) for t in trajectories) or None,
            "stopped": stopped if trajectories else None,
            "train_frames": next((run["train_frames"] for run in runs if run), None),
            "labelled": tasks.count("labelled") if labels else None,
            "failed_labels": tasks.count("failed") if labels else None,
        }
        if select:
            row |= {key: select.get(key) for key in
                    ("accurate", "candidate", "failed", "selected", "lo", "hi")}  # fmt: skip
            deviation = select.get("deviation") or {}
            row |= {"explored": select.get("frames"), "devi_f_mean": deviation.get("mean"),
                    "devi_f_max": deviation.get("max")}  # fmt: skip
        return row

    def _stage(self, iteration: int) -> int:
        before = self.json(iteration - 1, "decide", DECISION) if iteration else {}
        return int(before.get("next_stage", 0))


def read_or_empty(path: Path) -> Any:
    """Read a JSON document; {} where there is none, or a step was emptied just now."""
    try:
        return read_json(path)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
