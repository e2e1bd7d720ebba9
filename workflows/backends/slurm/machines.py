"""dpdispatcher's batch systems, told what they would not know by themselves.

`do_submit` first asks the keeper whether the step has a job already; `check_status` is patient.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dpdispatcher.machines.shell import Shell
from dpdispatcher.machines.slurm import Slurm
from dpdispatcher.utils.job_status import JobStatus

from workflows.backends.slurm.job import MARK
from workflows.backends.slurm.queue import Job


class Keeper(Protocol):
    """Who follows the jobs of a step."""

    def before_submission(self) -> str:
        """Return the number of a live job of the step, empty if one is to be submitted."""

    def submitted(self, number: str) -> None:
        """Take note of the number of the step's job."""

    def waiting(self) -> None:
        """Take note that the job has not begun."""

    def patiently(self, ask: Callable[[], Any]) -> Any:
        """Return what the batch system answers."""

    def find(self) -> Job | None:
        """Return the step's job if it is alive."""


class Followed(Protocol):
    """A batch system with a keeper."""

    keeper: Keeper


class FollowedSlurm(Slurm):
    """Slurm."""

    keeper: Keeper

    def do_submit(self, job: Any) -> str:
        """Return the number of the job, which may be there already."""
        number = self.keeper.before_submission() or str(super().do_submit(job))
        self.keeper.submitted(number)
        return number

    def check_status(self, job: Any) -> JobStatus:
        """Ask squeue; a job is not over before our own look at the queue says so, too."""
        if not job.job_id:
            return JobStatus.unsubmitted
        state = self.keeper.patiently(lambda: super(FollowedSlurm, self).check_status(job))
        # dpdispatcher does not know every state, and squeue may not show it a suspended job
        if state in (JobStatus.unknown, JobStatus.terminated):
            live = self.keeper.patiently(self.keeper.find)
            finished = JobStatus.finished if self.check_finish_tag(job) else JobStatus.terminated
            state = finished if live is None else JobStatus.running
        if state == JobStatus.waiting:
            self.keeper.waiting()
        return state


class FollowedShell(Shell):
    """Processes of this machine, which live on when their submitter is killed, as in Slurm."""

    keeper: Keeper
    process: subprocess.Popen[bytes] | None = None

    def do_submit(self, job: Any) -> str:
        """Start the script as the leader of a session of its own."""
        number = self.keeper.before_submission()
        if not number:
            self.context.write_file(job.script_file_name, self.gen_script(job))
            self.context.write_file(f"{job.script_file_name}.run", self.gen_script_command(job))
            folder = Path(self.context.remote_root)
            number = job.job_task_list[0].task_name
            with (folder / "job-shell.out").open("ab") as output:
                self.process = subprocess.Popen(
                    ["bash", job.script_file_name], cwd=folder, env={**os.environ, MARK: number},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
        self.keeper.submitted(number)
        return number

    def check_status(self, job: Any) -> JobStatus:
        """Look for the process."""
        if not job.job_id:
            return JobStatus.unsubmitted
        if self.process is not None:
            self.process.poll()  # no zombie is to stay
        if self.keeper.find() is not None:
            return JobStatus.running
        return JobStatus.finished if self.check_finish_tag(job) else JobStatus.terminated


MACHINES: Mapping[str, type[FollowedSlurm] | type[FollowedShell]] = {
    "slurm": FollowedSlurm,
    "shell": FollowedShell,
}
