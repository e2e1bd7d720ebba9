"""Rows of a loop's table for what runs now: phases, wall times, the iteration in progress."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ops.base import Status
from workflows.run_folder import StepState
from workflows.source import Row

STEP = re.compile(r"iter-(\d+)-([a-z]+)")
PHASES = ("train", "explore", "select", "label", "test")


def place(key: str) -> tuple[int, str] | None:
    """Return iteration and phase of a step, None for a step outside the loop."""
    found = STEP.match(key)
    return (int(found[1]), found[2]) if found else None


def by_iteration(states: Sequence[StepState]) -> dict[int, dict[str, Status]]:
    """Return the status of every step that has begun, by iteration."""
    found: dict[int, dict[str, Status]] = {}
    for step in states:
        # a step that waits may have a status of an earlier plan
        if (where := place(step.node.key)) and step.status is not None and step.state != "waiting":
            state: Any = step.state
            found.setdefault(where[0], {})[step.node.key] = step.status._replace(state=state)
    return found


def complete(
    rows: Sequence[Row],
    statuses: Mapping[int, Mapping[str, Status]],
    states: Sequence[StepState],
    current: Row,
) -> list[Row]:
    """Return decided rows, and one for the iteration in progress, with their times.

    Parameters
    ----------
    rows
        Of iterations that were decided.
    statuses
        Of all steps, by iteration.
    states
        The steps of the plan.
    current
        What is known of the latest iteration: "iteration" and, as far as known, the rest.
    """
    known = list(rows)
    now = current.get("iteration")
    if now is not None and (not known or now > known[-1]["iteration"]):
        row = {"verdict": None, "phase": phase(statuses.get(now, {})), **current}
        known.append({**row, "stage_name": stage_name(states, row)})
    return [{**row, "times": times(statuses.get(row["iteration"], {}))} for row in known]


def stage_name(states: Sequence[StepState], row: Row) -> str | None:
    """Return the name of a row's stage, from the settings of the step that will decide."""
    key = f"iter-{row['iteration']:06d}-decide"
    step = next((step for step in states if step.node.key == key), None)
    stages = step.node.config.get("stages", []) if step else []
    stage = row.get("stage")
    return stages[stage]["name"] if stage is not None and stage < len(stages) else None


def phase(statuses: Mapping[str, Status]) -> str:
    """Name what an iteration is at: what failed, pauses or runs, else what came last."""
    for state, text in (("failed", "{} failed"), ("paused", "{} paused"), ("running", "{} …"),
                        ("interrupted", "{} stopped")):  # fmt: skip
        for key, status in statuses.items():
            if status.state == state:
                return text.format((place(key) or (0, ""))[1])
    latest = max(statuses.values(), key=lambda status: status.started, default=None)
    return "" if latest is None else f"{(place(latest.key) or (0, ''))[1]} done"


def times(statuses: Mapping[str, Status]) -> dict[str, float]:
    """Return the wall time of the phases, s.

    Steps side by side count once, pauses between them do not.
    """
    found = {}
    for name in PHASES:
        spans = sorted(_span(statuses[key]) for key in of_phase(statuses, name))
        total, end = 0.0, float("-inf")
        for start, stop in spans:
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        if spans:
            found[name] = round(total, 3)
    return found


def of_phase(statuses: Mapping[str, Status], phase: str) -> list[str]:
    """Return the keys of a phase's steps."""
    return [key for key in sorted(statuses) if (place(key) or (0, ""))[1] == phase]


def last_planned(states: Sequence[StepState]) -> float:
    """Return the last iteration of the plan; infinity if it has none."""
    iterations = [where[0] for step in states if (where := place(step.node.key))]
    return max(iterations, default=float("inf"))


def _span(status: Status) -> tuple[float, float]:
    if not status.started:
        return 0.0, 0.0
    start = datetime.fromisoformat(status.started).timestamp()
    if status.state == "running":
        return start, max(start, datetime.now(UTC).timestamp())
    return start, start + status.elapsed
