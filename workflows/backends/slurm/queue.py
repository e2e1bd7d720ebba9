"""What is asked of Slurm besides what dpdispatcher asks: which jobs live, how one ended.

`ShellQueue` answers the same for jobs that are processes of this machine.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from dpa_core.errors import DPAError
from ops.base import STOP_GRACE
from workflows.backends.slurm.job import MARK

PATIENCE = 60.0
"""Seconds a command of Slurm may take to answer."""
# A process has no environment for a moment, much shorter than this, while it starts a program.
_EXEC = 0.1
CANCEL_PATIENCE = 180.0
"""Seconds a cancelled job may take to end; Slurm's KillWait is 30 s by default."""
LIVE = frozenset({
    "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "REQUEUED",
    "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT",
    "STAGE_OUT",
})  # fmt: skip
"""States of a job that may still write files; every other one is final."""


class QueueError(DPAError):
    """Slurm does not answer."""


class Job(NamedTuple):
    """A job that waits, runs or is just ending."""

    id: str
    name: str
    state: str
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether it has not begun."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")


class Queue(Protocol):
    """A batch system."""

    def jobs(self) -> list[Job]:
        """Return the live jobs of this user."""

    def cancel(self, ids: Collection[str]) -> None:
        """End jobs; those that are gone already do not matter."""

    def end(self, job: str) -> str:
        """Return the state a job ended in, as Slurm calls it; empty if that is not known."""


class SlurmQueue:
    """Slurm, through its commands."""

    def jobs(self) -> list[Job]:
        """Return the live jobs of this user."""
        mine = [f"--user={getpass.getuser()}", "--states=all"]  # by default some live ones lack
        text = _ask(["squeue", "--noheader", *mine, "--format=%i|%T|%r|%j"])
        rows = [line.strip().split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
        found = [Job(row[0], row[3], row[1], row[2]) for row in rows]
        return [job for job in found if job.state in LIVE]

    def cancel(self, ids: Collection[str]) -> None:
        """Call scancel."""
        if ids:
            _ask(["scancel", "--quiet", *sorted(ids)])

    def end(self, job: str) -> str:
        """Ask the controller, which forgets soon, then the accounting, if there is one."""
        for command, pattern in (
            (["scontrol", "--oneliner", "show", "job", job], r"\bJobState=([A-Z_]+)"),
            (["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}",
              "--format=State"], r"^([A-Z_]+)"),
        ):  # fmt: skip
            with contextlib.suppress(QueueError):
                states = re.findall(pattern, _ask(command), re.MULTILINE)
                if states and states[-1] not in LIVE:
                    return str(states[-1])
        return ""


class ShellQueue:
    """Jobs that are processes of this machine; a job's number is its name."""

    def jobs(self) -> list[Job]:
        """Return the jobs of which a process is left."""
        return [Job(name, name, "RUNNING") for name in sorted(self._processes())]

    def cancel(self, ids: Collection[str]) -> None:
        """Ask all processes of the jobs to end, then make them."""
        import psutil

        found = [process for name, many in self._processes().items() if name in ids
                 for process in many]  # fmt: skip
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(found, STOP_GRACE)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def end(self, job: str) -> str:
        """Return nothing: nobody keeps books."""
        del job
        return ""

    def _processes(self) -> dict[str, list[Any]]:
        """Return the processes that bear our mark, which children inherit."""
        import psutil

        environments = {process: _environment(process) for process in psutil.process_iter()}
        nothing = [process for process, there in environments.items() if not there]
        if nothing:
            time.sleep(_EXEC)
            environments |= {process: _environment(process) for process in nothing}
        found: dict[str, list[Any]] = {}
        for process, environment in environments.items():
            if name := environment.get(MARK):
                found.setdefault(name, []).append(process)
        return found


def _environment(process: Any) -> dict[str, str]:
    """Environment of a process of ours; empty where it has ended."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        found: dict[str, str] = process.environ()
        return {} if process.status() == psutil.STATUS_ZOMBIE else found
    return {}


def queue_of(batch: str) -> Queue:
    """Return the batch system called `batch`."""
    return ShellQueue() if batch == "shell" else SlurmQueue()


def end_jobs(queue: Queue, jobs: Collection[Job]) -> None:
    """Cancel jobs and wait until nothing of them is left.

    Raises
    ------
    QueueError
        If one does not end.
    """
    ids = {job.id for job in jobs}
    deadline = time.monotonic() + CANCEL_PATIENCE
    while ids:
        queue.cancel(ids)
        ids &= {job.id for job in queue.jobs()}
        if ids and time.monotonic() > deadline:
            told = ", ".join(sorted(ids))
            raise QueueError(
                f"job {told} was cancelled but does not end; look with `squeue --jobs={told}`, "
                "ask the administrators of the cluster, then resume"
            )
        if ids:
            time.sleep(1.0)


def _ask(command: Sequence[str]) -> str:
    """Return what a command of Slurm says."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PATIENCE, check=False, env=ours, text=True,
            errors="replace",
        )  # fmt: skip
    except FileNotFoundError as error:
        raise QueueError(
            f"there is no {command[0]} on this machine; run dpaflow on a login node of the "
            "cluster, or set execution.backend: local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise QueueError(f"{command[0]} did not answer within {PATIENCE:g} s") from error
    if done.returncode != 0:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise QueueError(f"{command[0]} failed: {told[-1]}")
    return done.stdout
