"""What a person sees of a loop: the table of its iterations, live and as pages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.base import Status, read_status
from ops.decide import DECISION
from ops.files import read_json, write_text
from ops.loop_rows import texts
from ops.report_loop import PAGE, index_page
from ops.report_page import PAGES
from workflows import monitor
from workflows.run_folder import RunFolder, StepState, is_running, read_states

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

STEP = re.compile(r"iter-(\d+)-([a-z]+)")
PHASES = ("train", "explore", "select", "label", "test")
PAUSE = 1.0
"""Seconds between two looks at a run of another process."""
WIDTH = 100
"""Columns of a table that does not go to a terminal."""
Row = dict[str, Any]


def place(key: str) -> tuple[int, str] | None:
    """Return iteration and phase of a step, None for a step outside the loop."""
    found = STEP.match(key)
    return (int(found[1]), found[2]) if found else None


def iteration_rows(folder: RunFolder, states: Sequence[StepState]) -> list[Row]:
    """Return the table of a loop as far as it is known.

    Parameters
    ----------
    folder
        The run's folder.
    states
        Its steps, see `workflows.run_folder.read_states`.

    Returns
    -------
    list[dict]
        The rows of the latest decision.json, and one for the iteration in progress; each with
        "times", the wall time of the phases in s, and "phase" where there is no verdict yet.
    """
    statuses = _statuses(folder, states)
    decided = [k for k in statuses if (_step(folder, k, "decide") / DECISION).is_file()]
    rows: list[Row] = []
    if decided:
        rows = _json(_step(folder, max(decided), "decide") / DECISION).get("rows", [])
    last = rows[-1] if rows else None
    now = max((k for k, found in statuses.items() if found), default=None)
    if now is not None and (last is None or now > last["iteration"]):
        row = _row_in_progress(folder, now, statuses[now])
        rows = [*rows, row | {"stage_name": _stage_name(states, row)}]
    return [{**row, "times": _times(statuses.get(row["iteration"], {}))} for row in rows]


def is_done(states: Sequence[StepState]) -> bool:
    """Return whether nothing is left to do: a loop's last plan ends with the report."""
    keys = [step.node.key for step in states]
    going_on = any(map(place, keys)) and "report" not in keys
    return not going_on and all(step.state == "succeeded" for step in states)


def _statuses(folder: RunFolder, states: Sequence[StepState]) -> dict[int, dict[str, Status]]:
    """Status of every step that has begun, by iteration.

    What the plan lacks is read too, but not of iterations after its last: those were taken back.
    """
    found: dict[int, dict[str, Status]] = {}
    known = {step.node.key for step in states}
    for step in states:
        # a step that waits may have a status of an earlier plan
        if (where := place(step.node.key)) and step.status is not None and step.state != "waiting":
            state: Any = step.state
            found.setdefault(where[0], {})[step.node.key] = step.status._replace(state=state)
    for path in sorted(folder.steps.glob("iter-*")):
        where = place(path.name)
        if not where or where[0] > _last_planned(states) or path.name in known:
            continue
        if status := read_status(path):
            found.setdefault(where[0], {})[path.name] = status
    return found


def _last_planned(states: Sequence[StepState]) -> float:
    """Return the last iteration of the plan; infinity if it has none."""
    iterations = [where[0] for step in states if (where := place(step.node.key))]
    return max(iterations, default=float("inf"))


def _step(folder: RunFolder, iteration: int, name: str) -> Path:
    return folder.steps / f"iter-{iteration:06d}-{name}"


def _json(path: Path) -> Any:
    """Read a JSON document; {} where there is none, or a step was emptied just now."""
    try:
        return read_json(path)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _row_in_progress(folder: RunFolder, iteration: int, statuses: Mapping[str, Status]) -> Row:
    select = _json(_step(folder, iteration, "select") / "select.json")
    explored = [_json(folder.steps / key / "explore.json") for key in _of(statuses, "explore")]
    trajectories = [t for part in explored for t in part.get("trajectories", [])]
    labels = [_json(folder.steps / key / "labels.json") for key in _of(statuses, "label")]
    tasks = [task["state"] for part in labels for task in part.get("tasks", [])]
    runs = [_json(folder.steps / key / "run.json") for key in _of(statuses, "train")]
    row: Row = {
        "iteration": iteration,
        "stage": _stage(folder, iteration),
        "explored": sum(t.get("frames", 0) for t in trajectories) or None,
        "stopped": sum(t.get("stop") is not None for t in trajectories) if trajectories else None,
        "train_frames": next((run["train_frames"] for run in runs if run), None),
        "labelled": tasks.count("labelled") if labels else None,
        "failed_labels": tasks.count("failed") if labels else None,
        "verdict": None,
        "phase": _phase(statuses),
    }
    if select:
        row |= {key: select.get(key) for key in
                ("accurate", "candidate", "failed", "selected", "lo", "hi")}  # fmt: skip
        deviation = select.get("deviation") or {}
        row |= {"explored": select.get("frames"), "devi_f_mean": deviation.get("mean"),
                "devi_f_max": deviation.get("max")}  # fmt: skip
    return row


def _of(statuses: Mapping[str, Status], phase: str) -> list[str]:
    return [key for key in sorted(statuses) if (place(key) or (0, ""))[1] == phase]


def _stage(folder: RunFolder, iteration: int) -> int:
    before = _json(_step(folder, iteration - 1, "decide") / DECISION) if iteration else {}
    return int(before.get("next_stage", 0))


def _stage_name(states: Sequence[StepState], row: Row) -> str | None:
    """Name of a row's stage, from the settings of the step that will decide."""
    key = f"iter-{row['iteration']:06d}-decide"
    step = next((step for step in states if step.node.key == key), None)
    stages = step.node.config.get("stages", []) if step else []
    return stages[row["stage"]]["name"] if row["stage"] < len(stages) else None


def _phase(statuses: Mapping[str, Status]) -> str:
    """Name what an iteration is at: what failed, pauses or runs, else what came last."""
    for state, text in (("failed", "{} failed"), ("paused", "{} paused"), ("running", "{} …"),
                        ("interrupted", "{} stopped")):  # fmt: skip
        for key, status in statuses.items():
            if status.state == state:
                return text.format((place(key) or (0, ""))[1])
    latest = max(statuses.values(), key=lambda status: status.started, default=None)
    return "" if latest is None else f"{(place(latest.key) or (0, ''))[1]} done"


def _times(statuses: Mapping[str, Status]) -> dict[str, float]:
    """Wall time of the phases, s: steps side by side count once, pauses between them do not."""
    times = {}
    for phase in PHASES:
        spans = sorted(_span(statuses[key]) for key in _of(statuses, phase))
        total, end = 0.0, float("-inf")
        for start, stop in spans:
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        if spans:
            times[phase] = round(total, 3)
    return times


def _span(status: Status) -> tuple[float, float]:
    if not status.started:
        return 0.0, 0.0
    start = datetime.fromisoformat(status.started).timestamp()
    if status.state == "running":
        return start, max(start, datetime.now(UTC).timestamp())
    return start, start + status.elapsed


def iteration_table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table of at most 100 columns, without colours or lines."""
    from rich.table import Table

    result = Table(box=None, pad_edge=False, collapse_padding=True)
    columns, cells = texts(rows, wide=False)
    for column in columns:
        left = column.name in ("stage", "verdict")
        result.add_column(
            f"{column.name}\n{column.unit}".rstrip(),
            justify="left" if left else "right",
            no_wrap=not left,  # names give way to numbers
        )
    for line in cells:
        result.add_row(*line)
    return result


def view(
    states: Sequence[StepState], folder: RunFolder, limit: int | None = None, *, every: bool = False
) -> RenderableType:
    """Return the table of the iterations and, below it, the steps of the current one.

    Parameters
    ----------
    states, folder
        The run.
    limit
        Rows there is room for.
    every
        Show all steps, those of finished iterations too.
    """
    from rich.console import Group

    shown = list(states) if every else current_steps(states)
    rows = iteration_rows(folder, states)
    if not rows:
        return monitor.table(shown, folder, limit, everything=states)
    if limit is not None:
        rows = rows[-max(3, limit // 2) :]
        limit = max(3, limit - len(rows) - 4)
    steps = monitor.table(shown, folder, limit, everything=states)
    return Group(iteration_table(rows), "", steps)


def current_steps(states: Sequence[StepState]) -> list[StepState]:
    """Return the steps of the current iteration, those outside the loop that are not done,
    and all that failed or run; without a loop every step.
    """  # noqa: D205
    iterations = [place(step.node.key) for step in states]
    if not any(iterations):
        return list(states)
    begun = [where[0] for where, step in zip(iterations, states)
             if where and step.state != "succeeded"]  # fmt: skip
    now = min(begun, default=max(where[0] for where in iterations if where))
    kept = []
    for where, step in zip(iterations, states):
        current = step.state != "succeeded" if where is None else where[0] == now
        if current or step.state in ("failed", "running", "paused"):
            kept.append(step)
    return kept


def plain_console(console: Console) -> Console:
    """Return a console that is wide enough for the table where there is no terminal."""
    from rich.console import Console

    if console.is_terminal or console.width >= WIDTH:
        return console
    return Console(file=console.file, width=WIDTH)


def show_status(folder: RunFolder, console: Console, *, every: bool = False) -> list[StepState]:
    """Print the iterations and steps of a run once; return the steps."""
    states = read_states(folder, live=is_running(folder))
    plain_console(console).print(view(states, folder, every=every))
    return states


def watch(folder: RunFolder, console: Console) -> list[StepState]:
    """Show a run of another process until it ends; return the last state of its steps.

    Parameters
    ----------
    folder
        The run's folder.
    console
        A terminal gets a live view, anything else a line for each change.

    Raises
    ------
    ConfigError
        If the folder holds no run.
    """
    console = plain_console(console)
    lines = _iteration_lines(folder, console)
    with monitor.progress(folder, console, view) as show:
        while is_running(folder):
            states = read_states(folder, live=True)
            show(states)
            if not console.is_terminal:
                lines(states)
            time.sleep(PAUSE)
    return show_status(folder, console)


def _iteration_lines(folder: RunFolder, console: Console) -> Callable[[Sequence[StepState]], None]:
    """Return a function that prints the table whenever an iteration has ended."""
    before = -1

    def show(states: Sequence[StepState]) -> None:
        nonlocal before
        rows = [row for row in iteration_rows(folder, states) if row["verdict"] is not None]
        if len(rows) > max(before, 0):
            console.print(iteration_table(rows))
        before = len(rows)

    return show


def publish_pages(folder: RunFolder) -> Path | None:
    """Copy the pages of the iterations to RUN/report, linked to each other and to an index.

    The links into RUN/report.html are written too, where it exists. Pages of iterations that
    were taken back are removed.

    Returns
    -------
    Path | None
        The index; None if the run has no iteration yet.
    """
    states = read_states(folder, live=is_running(folder))
    rows = iteration_rows(folder, states)
    if not rows:
        return None
    target = folder.root / "report"
    sources = {
        where[0]: path
        for path in sorted(folder.steps.glob(f"iter-*-report/{PAGE}"))
        if (where := place(path.parent.name)) and where[0] <= _last_planned(states)
    }
    names = {number: f"iter-{number:06d}.html" for number in sources}
    for number, path in sources.items():
        page = path.read_text(encoding="utf-8")
        write_text(target / names[number], page.replace(PAGES, _links(names, number)))
    latest = max((k for k in range(len(rows)) if rows[k]["verdict"] is not None), default=None)
    decision = {}
    if latest is not None:
        decision = _json(_step(folder, rows[latest]["iteration"], "decide") / DECISION)
    index = write_text(target / "index.html", index_page(folder.root.name, rows, decision, names))
    for path in target.glob("iter-*.html"):
        if path.name not in names.values():
            path.unlink()
    main = folder.root / "report.html"
    if main.is_file():
        page = main.read_text(encoding="utf-8")
        write_text(main, page.replace(PAGES, _links(names, None, "report/")))
    return index


def _links(names: Mapping[int, str], here: int | None, prefix: str = "") -> str:
    """Return the links of a page: the index, and the pages around it."""
    parts = [f'<a href="{prefix}index.html">all iterations</a>']
    shown: Iterable[tuple[str, int]]
    if here is None:
        shown = [(str(number), number) for number in names]
    else:
        parts.append('<a href="../report.html">report of the run</a>')
        shown = [("← iteration {}", here - 1), ("iteration {} →", here + 1)]
    parts += [
        f'<a href="{prefix}{names[number]}">{text.format(number)}</a>'
        for text, number in shown
        if number in names
    ]
    return f"<nav>{' '.join(parts)}</nav>"
