"""Run a graph on this machine through dflow's debug mode, without its wrong-result bugs.

What is known to go wrong there, and why it cannot happen here:

- A failed step restarts with its old script and parameters: folders of steps that did not
  succeed, or whose fingerprint changed, are deleted with everything downstream (`prune`).
- Two masters on one folder: the run folder is locked, and so is every step's.
- Retries and time limits are ignored: `ops.base.run_step` does them.
- DAG and continue_on_* drop steps silently: the graph is Steps of parallel steps, without them.
- The status says Succeeded or stays Running: only the steps' own status files are believed.
- Equal keys or output names mix results: keys are checked, a step has one output folder.

dflow itself runs in a process of its own (`workflows.backends.master`), whose chatter goes to
a log file.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from ops.base import STOP_GRACE, read_status
from ops.files import write_json
from workflows.backends.slurm import leftovers
from workflows.graph import Node, downstream, fingerprints
from workflows.run_folder import (
    WORKFLOW,
    RunFolder,
    StepState,
    locked,
    read_states,
    read_text,
    wait_for_master,
    wait_for_steps,
)
from workflows.schema import Execution

POLL = 0.25
LOG_MARK = "--- start of dflow"
"""Line in dflow's log before what a new process adds."""


class Result(NamedTuple):
    """How a run ended; `stopped` is True after Ctrl-C or SIGTERM."""

    states: list[StepState]
    stopped: bool

    @property
    def succeeded(self) -> bool:
        """True if every step did, and nobody wanted it to end before more are planned."""
        return not self.stopped and all(step.state == "succeeded" for step in self.states)

    @property
    def paused(self) -> bool:
        """True if nothing failed, but a step waits for the user."""
        states = {step.state for step in self.states}
        return not self.stopped and "paused" in states and "failed" not in states


def run(
    nodes: Sequence[Node],
    execution: Execution,
    folder: RunFolder,
    watch: Callable[[list[StepState]], None] | None = None,
) -> Result:
    """Run all steps that are not yet done; returns when nothing runs any more.

    Parameters
    ----------
    nodes
        The graph, see `workflows.pipeline.plan`.
    execution
        Parallelism, threads, time limit, retries.
    folder
        The run's folder; what earlier runs finished there is kept if still valid.
    watch
        Called several times a second with the state of every step.

    Raises
    ------
    ConfigError
        If another process runs this folder.
    """
    with locked(folder):
        return run_locked(nodes, execution, folder, watch)


def run_locked(
    nodes: Sequence[Node],
    execution: Execution,
    folder: RunFolder,
    watch: Callable[[list[StepState]], None] | None = None,
) -> Result:
    """Do what `run` does, for a caller that holds the lock."""
    leftovers.require(execution)
    prints = fingerprints(nodes)
    wait_for_master(folder)
    followed = leftovers.find_again(nodes, prints, folder, execution)
    wait_for_steps(folder, followed)
    todo = prune(nodes, prints, folder, followed)
    folder.steps.mkdir(parents=True, exist_ok=True)
    plan = {
        "nodes": [node._asdict() for node in nodes],
        "execution": execution.model_dump(mode="json"),
        "fingerprints": prints,
        "todo": sorted(todo),
    }
    write_json(folder.plan, plan)
    done = Result(read_states(folder, live=True), stopped=False)
    if done.succeeded:
        return done
    with _stop_flag() as flag:
        return _supervise(folder, execution, flag, watch or (lambda _: None))


def publish_report(folder: RunFolder) -> Path:
    """Copy the report to the head of the run's folder and return its path."""
    target = folder.root / "report.html"
    shutil.copyfile(folder.steps / "report" / "report.html", target)
    return target


def prune(
    nodes: Sequence[Node],
    prints: dict[str, str],
    folder: RunFolder,
    followed: Container[str] = (),
) -> set[str]:
    """Delete what may not be used again; return the keys of the steps to run.

    A step is kept if it succeeded with the very same fingerprint, according to its own status
    file and to dflow, and if everything it reads is kept. The folder of an unfinished step of
    the same fingerprint stays: a training continues from its checkpoint. Nothing is deleted of
    steps in `followed`: a job is, or was, at work on them.
    """
    workflow = folder.dflow / WORKFLOW
    stale = {node.key for node in nodes if not _done(node.key, prints, folder)}
    stale = downstream(nodes, stale)
    keep = {node.key for node in nodes} - stale
    for path in workflow.iterdir() if workflow.is_dir() else ():
        if path.name not in keep and path.name not in followed:
            _remove(path)
    if not followed:  # their inputs are links to there
        _remove(folder.dflow / "upload")
    for node in nodes:
        outdir = folder.steps / node.key
        status = read_status(outdir)
        unfinished = status is not None and status.state != "succeeded"
        if node.key in followed:
            continue
        if node.key in stale and not (unfinished and _same(outdir, prints[node.key])):
            _remove(outdir)
    if workflow.is_dir():
        # dflow refuses a folder whose recorded master looks alive; process 0 never does
        (workflow / "pid").write_text("0", encoding="utf-8")
        (workflow / "status").write_text("Stopped", encoding="utf-8")
    return stale


def _done(key: str, prints: dict[str, str], folder: RunFolder) -> bool:
    status = read_status(folder.steps / key)
    if status is None or status.state != "succeeded" or status.fingerprint != prints[key]:
        return False
    return read_text(folder.dflow / WORKFLOW / key / "phase") == "Succeeded"


def _same(outdir: Path, fingerprint: str) -> bool:
    status = read_status(outdir)
    return status is not None and status.fingerprint == fingerprint


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Flag:
    """Set by SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.stop = False

    def raise_it(self, _signum: int, _frame: FrameType | None) -> None:
        self.stop = True


@contextmanager
def _stop_flag() -> Iterator[_Flag]:
    flag = _Flag()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, flag.raise_it) for number in signals]
    try:
        yield flag
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _environment(folder: RunFolder, execution: Execution) -> dict[str, str]:
    """Environment of the master: dflow reads its settings when it is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DFLOW_")}
    threads = str(execution.threads)
    return {
        **kept,
        "DFLOW_MODE": "debug",
        "DFLOW_DEBUG_WORKDIR": str(folder.dflow),
        "DFLOW_DEBUG_POOL_WORKERS": str(execution.parallel),
        "DFLOW_DETECT_EMPTY_DIR": "false",
        "DPAFLOW_STEPS": str(folder.steps),
        "DPAFLOW_LABELS": str(folder.labels),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
    }


def _supervise(
    folder: RunFolder,
    execution: Execution,
    flag: _Flag,
    watch: Callable[[list[StepState]], None],
) -> Result:
    command = [sys.executable, "-P", "-m", "workflows.backends.master"]
    with folder.log.open("ab") as log:
        log.write(f"{LOG_MARK}\n".encode())
        log.flush()
        master = subprocess.Popen(
            [*command, str(folder.root), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(folder, execution),
            start_new_session=True,
        )
    try:
        while master.poll() is None and not flag.stop:
            watch(read_states(folder, live=True))
            time.sleep(POLL)
    finally:
        _end_group(master)
        if flag.stop:
            leftovers.cancel_all(folder, execution)
    states = read_states(folder, live=False)
    watch(states)
    return Result(states, stopped=flag.stop)


def _end_group(master: subprocess.Popen[Any]) -> None:
    """End the master and its workers; steps get time to save their state."""
    deadline = time.monotonic() + STOP_GRACE + 5
    _signal_group(master.pid, signal.SIGTERM)
    while time.monotonic() < deadline:
        master.poll()
        if not _signal_group(master.pid, 0):
            return
        time.sleep(0.1)
    _signal_group(master.pid, signal.SIGKILL)
    master.wait()


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False if it has no member left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
