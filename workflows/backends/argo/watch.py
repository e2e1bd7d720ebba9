"""Follow a run on a cluster over all its workflows, until it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workflows import iterations, monitor, runner
from workflows.backends.argo.cluster_run import ClusterRun
from workflows.backends.argo.transport import ServerError
from workflows.run_folder import StepState

if TYPE_CHECKING:
    from rich.console import Console

PAUSE = 2.0
"""Seconds between two looks."""
PATIENCE = 600.0
"""Seconds without an answer after which nothing more is expected of the server."""
HANDOVER = 30.0
"""Seconds that the next workflow may take to appear after the one that submitted it."""


def watch(run: ClusterRun, console: Console) -> int:
    """Show a run until it ends, and say how it ended.

    Parameters
    ----------
    run
        The run.
    console
        A terminal gets a live view, anything else a line for each change.

    Returns
    -------
    int
        Exit code: 0 succeeded, or waits for the user; 1 failed; 130 stopped.
    """
    console = iterations.plain_console(console)
    lines = iterations.iteration_lines(run, console)
    states = run.refresh()
    console.print(_head(run), soft_wrap=True, highlight=False)
    with monitor.progress(run, console, iterations.view) as show:
        begin = time.monotonic()
        while True:
            show(states)
            if not console.is_terminal:
                lines(states)
            if run.running:
                begin = time.monotonic()
            elif not _goes_on(run) or time.monotonic() - begin > HANDOVER:
                break
            time.sleep(PAUSE)
            states = _look(run, states, console)
    return show_end(run, states, console)


def _head(run: ClusterRun) -> str:
    name = run.newest["metadata"]["name"]
    return f"{run.name}: workflow {name}, {run.client.context.dashboard(name)}"


def _goes_on(run: ClusterRun) -> bool:
    """Return whether the workflow that has ended submitted another, which is to appear yet."""
    return run.phase == "Succeeded" and run.plan[0].goes_on


def _look(run: ClusterRun, before: list[StepState], console: Console) -> list[StepState]:
    """Return the states, although the server may be away for a while."""
    begin, told = time.monotonic(), False
    while True:
        try:
            return run.refresh()
        except ServerError as error:
            if error.status in (401, 403) or time.monotonic() - begin > PATIENCE:
                raise
            if not told:
                console.print(
                    f"{error}\nthe run goes on; asking again", soft_wrap=True, markup=False
                )
                told = True
        time.sleep(PAUSE)


def show_status(run: ClusterRun, console: Console, *, every: bool = False) -> int:
    """Print iterations, steps, and what is wrong, once; return the exit code of `watch`."""
    states = run.refresh()
    console = iterations.plain_console(console)
    console.print(iterations.view(states, run, every=every))
    if run.running:
        name = run.newest["metadata"]["name"]
        console.print(f"running: {run.client.context.dashboard(name)}", soft_wrap=True)
        for line in [*pending(states, run), *monitor.failed_steps(states, run)]:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        return 0
    return _say_end(run, states, console, summary=False)


def show_end(run: ClusterRun, states: Sequence[StepState], console: Console) -> int:
    """Print the last view of a run that has ended; return its exit code."""
    table = run.phase == "Succeeded" or console.is_terminal
    if table:
        console.print(iterations.view(states, run))
    return _say_end(run, states, console, summary=not table)


def pending(states: Sequence[StepState], run: ClusterRun) -> list[str]:
    """Return lines about steps that cannot start, and what to do."""
    found = []
    for step in states:
        if step.state == "waiting" and step.status is not None and step.status.reason:
            found += ["", f"WAITING {step.node.key}: {step.status.reason}"]
            if advice := run.advice(step):
                found.append(f"  -> {advice}")
    return found


def _say_end(
    run: ClusterRun, states: Sequence[StepState], console: Console, *, summary: bool
) -> int:
    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    bad = [step for step in states if step.state in ("failed", "paused")]
    if run.phase != "Succeeded" or bad:
        report = monitor.failure_report(states, run, stopped=run.stopped)
        say(report if summary else report.partition("\n")[2].lstrip("\n"))  # below a table
        if run.stopped:
            return 130
        return 1 if any(step.state == "failed" for step in bad) or not bad else 0
    if _goes_on(run):
        say(f"the next workflow of the run has not appeared; dpaflow resume {run.name}")
        return 1
    decision = run.decision()
    if decision is not None:
        say(runner.verdict(decision, run.name))
    say(f"report: dpaflow download {run.name} report; models: dpaflow download {run.name} model")
    return 1 if decision is not None and decision["verdict"] == "stuck" else 0
