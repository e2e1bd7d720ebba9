"""What a person sees of a loop: the table of its iterations, live and as pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ops.decide import DECISION
from ops.files import write_text
from ops.loop_rows import texts
from ops.report_loop import PAGE, index_page
from ops.report_page import PAGES
from workflows import monitor
from workflows.iteration_rows import last_planned, place
from workflows.local_run import LocalRun
from workflows.run_folder import RunFolder, StepState, is_running, read_states
from workflows.source import Row, Source

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

PAUSE = 1.0
"""Seconds between two looks at a run of another process."""
WIDTH = 100
"""Columns of a table that does not go to a terminal."""


def is_done(states: Sequence[StepState]) -> bool:
    """Return whether nothing is left to do: a loop's last plan ends with the report."""
    keys = [step.node.key for step in states]
    going_on = any(map(place, keys)) and "report" not in keys
    return not going_on and all(step.state == "succeeded" for step in states)


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
    states: Sequence[StepState], source: Source, limit: int | None = None, *, every: bool = False
) -> RenderableType:
    """Return the table of the iterations and, below it, the steps of the current one.

    Parameters
    ----------
    states, source
        The run.
    limit
        Rows there is room for.
    every
        Show all steps, those of finished iterations too.
    """
    from rich.console import Group

    shown = list(states) if every else current_steps(states)
    rows = source.rows(states)
    if not rows:
        return monitor.table(shown, source, limit, everything=states)
    if limit is not None:
        rows = rows[-max(3, limit // 2) :]
        limit = max(3, limit - len(rows) - 4)
    steps = monitor.table(shown, source, limit, everything=states)
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
    plain_console(console).print(view(states, LocalRun(folder), every=every))
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
    source = LocalRun(folder)
    lines = iteration_lines(source, console)
    with monitor.progress(source, console, view) as show:
        while is_running(folder):
            states = read_states(folder, live=True)
            show(states)
            if not console.is_terminal:
                lines(states)
            time.sleep(PAUSE)
    return show_status(folder, console)


def iteration_lines(source: Source, console: Console) -> Callable[[Sequence[StepState]], None]:
    """Return a function that prints the table whenever an iteration has ended."""
    before = -1

    def show(states: Sequence[StepState]) -> None:
        nonlocal before
        rows = [row for row in source.rows(states) if row["verdict"] is not None]
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
    source = LocalRun(folder)
    rows = source.rows(states)
    if not rows:
        return None
    target = folder.root / "report"
    sources = {
        where[0]: path
        for path in sorted(folder.steps.glob(f"iter-*-report/{PAGE}"))
        if (where := place(path.parent.name)) and where[0] <= last_planned(states)
    }
    names = {number: f"iter-{number:06d}.html" for number in sources}
    for number, path in sources.items():
        page = path.read_text(encoding="utf-8")
        write_text(target / names[number], page.replace(PAGES, _links(names, number)))
    latest = max((k for k in range(len(rows)) if rows[k]["verdict"] is not None), default=None)
    decision = {}
    if latest is not None:
        decision = source.json(rows[latest]["iteration"], "decide", DECISION)
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
