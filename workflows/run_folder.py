"""The folder of a run: where things are in it, who holds it, how its steps stand."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dpa_core.errors import ConfigError
from ops.base import STOP_GRACE, Status, read_status
from workflows.graph import Node

WORKFLOW = "pipeline"
JOB_NOTE = "job"
"""File in dflow's folder of a step: what its job waits for, in one line."""
LOCK_PATIENCE = 5.0
"""Seconds a new run waits for one that is just ending."""
HEARTBEAT = 15.0
"""Seconds between two signs of life for other machines."""


class RunFolder(NamedTuple):
    """Where things are in the folder of a run."""

    root: Path

    @property
    def steps(self) -> Path:
        """One folder for each step, named by its key."""
        return self.root / "steps"

    @property
    def dflow(self) -> Path:
        """Working directory of dflow."""
        return self.root / ".dflow"

    @property
    def plan(self) -> Path:
        """The graph, execution settings and fingerprints as JSON."""
        return self.root / ".dflow" / "plan.json"

    @property
    def master_lock(self) -> Path:
        """Held by dflow's process and its workers."""
        return self.root / ".dflow" / "master.lock"

    @property
    def owner(self) -> Path:
        """Process and machine that run this folder, touched while they do."""
        return self.root / ".dflow" / "owner"

    @property
    def log(self) -> Path:
        """What dflow printed."""
        return self.root / ".dflow" / "dflow.log"

    @property
    def labels(self) -> Path:
        """Everything that was ever labelled, whatever becomes of the steps."""
        return self.root / "labels"

    @property
    def pipeline(self) -> Path:
        """The pipeline with absolute paths; `resume` reads it."""
        return self.root / "pipeline.yaml"


class StepState(NamedTuple):
    """A step as it is now: "waiting", or the state of its status file."""

    node: Node
    state: str
    status: Status | None


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock, or raise ConfigError."""
    from filelock import FileLock, Timeout

    folder.dflow.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.dflow / "lock", timeout=LOCK_PATIENCE)
    try:
        lock.acquire()
        if _held_elsewhere(folder):
            lock.release()
            raise Timeout(lock.lock_file)
    except Timeout as error:
        raise ConfigError(
            f"{folder.root} is being run by process {read_text(folder.owner) or '?'}; watch it "
            f"with `dpaflow status {folder.root}`, or choose another folder with --out"
        ) from error
    done = threading.Event()
    try:
        folder.owner.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        threading.Thread(target=_beat, args=(folder.owner, done), daemon=True).start()
        yield
    finally:
        done.set()
        folder.owner.unlink(missing_ok=True)
        lock.release()


def _beat(owner: Path, done: threading.Event) -> None:
    """Show other machines that this run is alive."""
    while not done.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(owner)


def _held_elsewhere(folder: RunFolder) -> bool:
    """Return whether a process of another machine runs the folder.

    On many file systems of clusters the lock of one login node is not seen by the next.
    """
    _, on, host = read_text(folder.owner).rpartition(" on ")
    if not on or host == socket.gethostname():
        return False
    clock = folder.dflow / "lock"
    with contextlib.suppress(FileNotFoundError):
        os.utime(clock)  # the file server's time: clocks of machines may differ
        return clock.stat().st_mtime - folder.owner.stat().st_mtime < 4 * HEARTBEAT
    return False


def wait_for_master(folder: RunFolder) -> None:
    """Wait until dflow's processes of a run that was killed have noticed and ended."""
    _wait_for(folder, [folder.master_lock])


def wait_for_steps(folder: RunFolder, but: Container[str] = ()) -> None:
    """Wait until nobody is at work on a step, `but` on some."""
    locks = folder.steps.glob(".*.lock")
    _wait_for(folder, [path for path in locks if path.name[1:].removesuffix(".lock") not in but])


def _wait_for(folder: RunFolder, locks: Iterable[Path]) -> None:
    from filelock import FileLock, Timeout

    for path in locks:
        try:
            with FileLock(path, timeout=STOP_GRACE + LOCK_PATIENCE):
                pass
        except Timeout as error:
            raise ConfigError(
                f"processes of an earlier run are still at work in {folder.root} ({path.name} is "
                "held); end them and try again"
            ) from error


def is_running(folder: RunFolder) -> bool:
    """Return whether a process holds the run's lock."""
    from filelock import FileLock, Timeout

    if not folder.dflow.is_dir():
        return False
    try:
        with FileLock(folder.dflow / "lock", timeout=0):
            return _held_elsewhere(folder)
    except Timeout:
        return True


def read_states(folder: RunFolder, *, live: bool) -> list[StepState]:
    """Return the state of every step of the last plan.

    Parameters
    ----------
    folder
        The run's folder.
    live
        Whether a process is at work; if not, what says "running" was interrupted.

    Raises
    ------
    ConfigError
        If the folder holds no run.
    """
    try:
        plan = json.loads(folder.plan.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder.root} is not the folder of a run (no {folder.plan.name}); "
            "start one with `dpaflow run pipeline.yaml --out FOLDER`"
        ) from error
    states = []
    for item in plan["nodes"]:
        node = Node(**item)
        status = read_status(folder.steps / node.key)
        if status is not None and status.fingerprint != plan["fingerprints"][node.key]:
            status = None
        if status is None:
            status = _failed_start(folder, node)
        state = "waiting" if status is None else str(status.state)
        if state in ("queued", "running") and not live:
            state = "interrupted"
        if status is not None and state == "queued":
            told = read_text(folder.dflow / WORKFLOW / node.key / JOB_NOTE)
            status = status._replace(reason=told or "to be submitted")
        states.append(StepState(node, state, status))
    return states


def _failed_start(folder: RunFolder, node: Node) -> Status | None:
    """Status of a step that dflow gave up before our code could write one."""
    place = folder.dflow / WORKFLOW / node.key
    if read_text(place / "phase") != "Failed":
        return None
    lines = read_text(place / "log.txt").strip().splitlines()
    reason = f"did not start: {lines[-1] if lines else 'no message'} (see {place / 'log.txt'})"
    return Status(node.key, node.op, "failed", reason=reason, kind="fatal")


def read_text(path: Path) -> str:
    """Return the content of a file, an empty string if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
