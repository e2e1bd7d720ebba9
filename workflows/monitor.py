"""What a person sees of a run: progress, status table, failure report, logs."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dpa_core.errors import ConfigError
from workflows.run_folder import StepState
from workflows.source import Source

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

STYLES = {
    "waiting": "dim", "queued": "dim cyan", "running": "cyan", "succeeded": "green",
    "failed": "bold red", "interrupted": "yellow", "paused": "bold yellow",
}  # fmt: skip
MAX_ROWS = 30
"""Rows of the live table; finished steps are folded first."""


def duration(seconds: float) -> str:
    """Return seconds as "4.2 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def elapsed(step: StepState) -> str:
    """Return how long a step took, or has been running."""
    status = step.status
    if status is None or not status.started:
        return ""
    if step.state != "running":
        return duration(status.elapsed) if status.elapsed else ""
    return duration((datetime.now(UTC) - datetime.fromisoformat(status.started)).total_seconds())


def note(step: StepState, source: Source) -> str:
    """Return one line about a step: the reason of a failure, else what it does."""
    status = step.status
    if status is not None and status.reason:
        return status.reason.splitlines()[0]
    if step.state == "running":
        return source.note(step)
    if status is not None and status.attempts > 1:
        return f"{status.attempts} attempts"
    return ""


def summary(states: Sequence[StepState]) -> str:
    """Return "12 steps: 3 succeeded, 2 running, 7 waiting"."""
    counts = Counter(step.state for step in states)
    told = ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])
    return f"{len(states)} steps: {told}"


def table(
    states: Sequence[StepState],
    source: Source,
    limit: int | None = None,
    everything: Sequence[StepState] | None = None,
) -> Table:
    """Return the steps as a table; above `limit` rows, finished and waiting ones are folded.

    Below it stands a summary of `states`, or of `everything` if the table is a part of that.
    """
    from rich.table import Table
    from rich.text import Text

    shown = _fold(list(states), limit)
    told = summary(states if everything is None else everything)
    result = Table(box=None, pad_edge=False, caption=told, caption_justify="left", expand=True)
    for name in ("step", "state", "time"):
        result.add_column(name, no_wrap=True)
    result.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)  # only this one shrinks
    for step in shown:
        state = Text(step.state, style=STYLES[step.state])
        result.add_row(step.node.key, state, elapsed(step), Text(note(step, source), style="dim"))
    return result


def _fold(states: list[StepState], limit: int | None) -> list[StepState]:
    for state in ("waiting", "succeeded"):
        excess = len(states) - (limit or len(states))
        if excess > 0:
            dropped = [s for s in states if s.state == state and not _cannot_start(s)]
            dropped = dropped[:excess] if state == "succeeded" else dropped[-excess:]
            states = [step for step in states if step not in dropped]
    return states


AGAIN = (
    "when that is corrected, give the pipeline file again, as at the start; finished steps are kept"
)
View = Callable[..., "RenderableType"]


@contextmanager
def progress(
    source: Source, console: Console, view: View = table
) -> Iterator[Callable[[Sequence[StepState]], None]]:
    """Show a run as it goes: a live `view` on a terminal, a line for each change elsewhere."""
    if not console.is_terminal:
        yield _line_printer(console)
        return
    from rich.live import Live

    limit = max(5, min(MAX_ROWS, console.height - 4))
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda states: live.update(view(states, source, limit))


def _line_printer(console: Console) -> Callable[[Sequence[StepState]], None]:
    before: dict[str, tuple[str, str]] = {}

    def show(states: Sequence[StepState]) -> None:
        first = not before
        for step in states:
            key = step.node.key
            now = step.state, _cannot_start(step)
            news = before.get(key, ("waiting", "")) != now
            if news and not (first and step.state not in ("running", "waiting")):
                line = f"{time.strftime('%H:%M:%S')}  {step.state:<11}  {key}"
                told = now[1] or elapsed(step)
                console.print(f"{line}  {told}".rstrip(), highlight=False, soft_wrap=True,
                              markup=False)  # fmt: skip
            before[key] = now
        if first:
            console.print(summary(states), highlight=False, soft_wrap=True)

    return show


def _cannot_start(step: StepState) -> str:
    """Return why a step that waits cannot start, "" if nothing is known to be wrong."""
    waits = step.state == "waiting" and step.status is not None
    return step.status.reason if waits and step.status is not None else ""


def choose_steps(states: Mapping[str, str], step: str | None) -> list[str]:
    """Return the steps whose logs are wanted: `step`, else all that failed or run.

    Raises
    ------
    ConfigError
        If there is no such step.
    """
    if step is None:
        return [key for key, state in states.items() if state in ("failed", "running")]
    if step not in states:
        close = difflib.get_close_matches(step, states, n=3)
        raise ConfigError(
            f"no step {step!r}; {'did you mean' if close else 'there are'} "
            f"{', '.join(close or states)}"
        )
    return [step]


def failure_report(states: Sequence[StepState], source: Source, *, stopped: bool = False) -> str:
    """Return one screen about why a run did not finish, ending with the command to go on.

    Where steps wait for the user and none failed, it says what they wait for.

    Parameters
    ----------
    states, source
        The run.
    stopped
        Whether someone ended it.
    """
    failed = [step for step in states if step.state == "failed"]
    paused = [step for step in states if step.state == "paused"]
    lines = [summary(states)]
    if paused and not failed:
        for step in paused:
            lines += ["", f"PAUSED {step.node.key}: {step.status.reason if step.status else ''}"]
        return "\n".join([*lines, "", f"when that is done: dpaflow resume {source.name}"])
    if trouble := source.trouble(failed):
        return "\n".join([*lines, trouble, "", f"continue with: dpaflow resume {source.name}"])
    if stopped:
        rest = ("a training goes on from its checkpoint" if source.keeps_state()
                else "others begin anew (cluster.workspace would keep checkpoints)")  # fmt: skip
        lines.append(f"stopped; finished steps are kept, {rest}")
    elif not failed:
        lines += source.leftover()
    lines += [*failed_steps(states, source), ""]
    if failed and all(step.status and step.status.kind == "config" for step in failed):
        lines.append(AGAIN)
    else:
        lines.append(f"continue with: dpaflow resume {source.name}")
    return "\n".join(lines)


def failed_steps(states: Sequence[StepState], source: Source) -> list[str]:
    """Return lines about the steps that failed: why, the end of the log, what to do."""
    failed = [step for step in states if step.state == "failed"]
    lines = []
    for step in failed[:3]:
        lines += ["", *_failed_step(step, source, lines=12 if len(failed) == 1 else 5)]
    if len(failed) > 3:
        lines.append(f"\nand {len(failed) - 3} more failed: `dpaflow status {source.name}`")
    return lines


def _failed_step(step: StepState, source: Source, lines: int) -> list[str]:
    status, key = step.status, step.node.key
    reason = "no reason given" if status is None else status.reason
    attempts = "" if status is None or status.attempts < 2 else f" (attempt {status.attempts})"
    tail = [f"  | {line[:200]}" for line in source.tail(key, lines)]
    advice = source.advice(step)
    told = [f"FAILED {key}{attempts}: {reason}", *tail, f"  log: {source.log_place(key)}"]
    return [*told, f"  -> {advice}"] if advice else told
