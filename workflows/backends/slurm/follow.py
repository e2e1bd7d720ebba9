"""In the process of a step: submit its job through dpdispatcher, wait, say how it ended.

Called by the script that dflow's DispatcherExecutor makes, in place of `run_submission`, because
dpdispatcher by itself

- submits a job again whatever its fault was, also a wrong setting;
- takes for lost a job whose files the login node does not see yet;
- gives up when Slurm does not answer for three minutes;
- knows nothing of a job it submitted just before it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpdispatcher import Resources, Submission, Task
from dpdispatcher.utils.record import record

from dpa_core.config import parse_config
from dpa_core.errors import DPAError
from ops.base import LOG, STATUS, Status, read_status
from ops.files import write_json, write_text
from workflows.backends.slurm.ends import JobSpec, again, is_final, refused, verdict
from workflows.backends.slurm.job import claim_file, read_claim
from workflows.backends.slurm.machines import MACHINES, Followed, Keeper
from workflows.backends.slurm.queue import Job, QueueError, queue_of
from workflows.backends.slurm.script import OUTPUT, dispatcher_resources
from workflows.run_folder import JOB_NOTE

SETTLE = 20.0
"""Seconds a shared file system may take to show the login node what a job wrote last."""
OUTAGE = 3600.0
"""Seconds Slurm may give no answer before a step gives up."""
LEFT = ("*_job_id", "*_flag_if_job_task_fail", "*_tag_finished", "*_last_err_file", OUTPUT)
"""Files of dpdispatcher in a step's working folder that say something about an earlier job."""


def follow(submission: Submission, document: str) -> None:
    """Bring a step to its end; SystemExit with the reason if it failed.

    Parameters
    ----------
    submission
        What DispatcherExecutor made: machine and task.
    document
        `JobSpec` as JSON.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whether jobs are cancelled, others decide
    spec = parse_config(JobSpec, json.loads(document), "job")
    record.record_directory = Path.cwd()  # not in the user's home
    Follower(submission, spec).to_the_end()


class Follower(Keeper):
    """Follows the jobs of one step."""

    def __init__(self, submission: Submission, spec: JobSpec) -> None:
        self.spec = spec
        self.queue = queue_of(spec.batch)
        self.steps = Path(os.environ["DPAFLOW_STEPS"])
        self.outdir = self.steps / spec.key
        self.number = ""
        self._template = submission

    def to_the_end(self) -> None:
        """Submit, wait, and submit again where that helps."""
        retries, continuations = self.spec.retries, self.spec.continuations
        if self._succeeded(read_status(self.outdir)):
            return  # while nobody looked
        while True:
            status, reason = self._one_job()
            if self._succeeded(status):
                return
            if reason == "lost" and retries:
                retries -= 1
            elif reason == "limit" and continuations:
                continuations -= 1
            else:
                sys.exit(status.reason)
            time.sleep(min(self.spec.poll, SETTLE))

    def before_submission(self) -> str:
        """Return the number of a live job of this step, empty after making way for a new one."""
        jobs: list[Job] = self.patiently(self.queue.jobs)
        if mine := [job.id for job in jobs if job.name == self.spec.name]:
            return mine[0]
        holder = read_claim(claim := claim_file(self.steps, self.spec.key))
        if holder in {job.id for job in jobs}:
            raise QueueError(
                f"job {holder} is at work in {self.outdir} and was not submitted by this run; "
                f"wait for it or end it (scancel {holder}), then resume"
            )
        claim.unlink(missing_ok=True)
        for pattern in LEFT:
            for path in Path.cwd().glob(pattern):
                path.unlink()
        status = Status(self.spec.key, self.spec.op, "queued", fingerprint=self.spec.fingerprint)
        self.outdir.mkdir(parents=True, exist_ok=True)
        write_json(self.outdir / STATUS, status._asdict())
        return ""

    def find(self) -> Job | None:
        """Return the step's job if it is alive."""
        return next((job for job in self.queue.jobs() if job.id == self.number), None)

    def submitted(self, number: str) -> None:
        """Note the number of the job."""
        self.number = number
        told = f"job {number} is in the queue" if number else (
            "Slurm takes no more jobs of yours for now, or the job is beyond the limits of the "
            "account or QOS; asked again"
        )  # fmt: skip
        self._note(told)

    def waiting(self) -> None:
        """Note why the job does not begin yet."""
        with contextlib.suppress(QueueError):
            if (job := self.find()) and job.waits:
                self._note(f"job {job.id} is {job.state.lower()} ({job.reason or 'no reason'})")

    def patiently(self, ask: Callable[[], Any]) -> Any:
        """Return what Slurm answers; it may be away for a while."""
        deadline = time.monotonic() + OUTAGE
        while True:
            try:
                return ask()
            except (QueueError, RuntimeError):  # RuntimeError is dpdispatcher's
                if time.monotonic() > deadline:
                    raise
                time.sleep(self.spec.poll)

    def _one_job(self) -> tuple[Status, str]:
        """Follow one job; return how the step stands, and why another job may help."""
        self.number = ""
        problem: Exception | None = None
        try:
            self._submission().run_submission(clean=False, check_interval=self.spec.poll)
        except (RuntimeError, DPAError) as error:
            problem = error
        if problem is not None and not self.number:
            status = refused(self.spec, problem)
            self._write_end(status, [])
            return status, again(self.spec, None, status)
        found = self._settled()
        if found is not None and self._succeeded(found):
            return found, ""
        state = self.queue.end(self.number)
        lines = self._printed()
        status = verdict(self.spec, found, self.number, state, lines[-1] if lines else "")
        final = is_final(found, self.spec.fingerprint)
        self._write_end(status, [] if final else lines)
        return status, again(self.spec, found, status)

    def _submission(self) -> Submission:
        """Return a new submission of one job that knows nothing of earlier ones."""
        for path in Path.cwd().glob("*.json"):
            path.unlink()
        machine: Followed = MACHINES[self.spec.batch](
            context=self._template.machine.context, retry_count=0
        )
        machine.keeper = self
        before = self._template.belonging_tasks[0]
        task = Task(**{**before.serialize(), "task_name": self.spec.name})
        resources = Resources.load_from_dict(dispatcher_resources(self.spec))
        return Submission(work_base=".", machine=machine, resources=resources, task_list=[task])

    def _succeeded(self, status: Status | None) -> bool:
        final = is_final(status, self.spec.fingerprint)
        return final and status is not None and status.state == "succeeded"

    def _settled(self) -> Status | None:
        """Return the step's status once its last writes must have arrived."""
        deadline = time.monotonic() + min(SETTLE, 2 * self.spec.poll)
        while True:
            os.listdir(self.outdir)  # noqa: PTH208  (opening a folder makes NFS look again)
            status = read_status(self.outdir)
            if is_final(status, self.spec.fingerprint) or time.monotonic() > deadline:
                return status
            time.sleep(min(1.0, self.spec.poll))

    def _printed(self) -> list[str]:
        """Return the last lines the job printed, outside of the step's own log."""
        for pattern in (OUTPUT, "log"):
            for path in sorted(Path.cwd().glob(pattern), reverse=True):
                text = path.read_text(encoding="utf-8", errors="replace")
                if lines := [line.rstrip() for line in text.splitlines() if line.strip()]:
                    return lines[-5:]
        return []

    def _write_end(self, status: Status, printed: list[str]) -> None:
        """Write down how the step ended, where everybody looks."""
        write_json(self.outdir / STATUS, status._asdict())
        if printed:
            with (self.outdir / LOG).open("a", encoding="utf-8") as log:
                log.write("\n".join([f"--- job {self.number}: {status.reason}", *printed, ""]))

    def _note(self, text: str) -> None:
        write_text(Path.cwd().parent / JOB_NOTE, text)
