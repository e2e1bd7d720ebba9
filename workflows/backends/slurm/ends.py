"""What the end of a job means for its step: the one place where that is decided."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat

from dpa_core.config import Config
from dpa_core.errors import DPAError
from ops.base import Kind, Status
from ops.catalog import find_op
from workflows.schema_slurm import SlurmResources

LOST = frozenset({"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "LAUNCH_FAILED", "RECONFIG_FAIL",
                  "REVOKED"})  # fmt: skip
"""States in which a job ends without a fault of its own."""


class JobSpec(Config):
    """Everything that follows one step's job needs to know; no secrets, it is written down."""

    key: str
    """The step."""
    op: str
    """Its OP."""
    fingerprint: str
    """That of the step, as in its status file."""
    name: str
    """Name of the job, unique among those of the user."""
    batch: str
    """See `Slurm.batch`."""
    resources: SlurmResources
    """What the job asks for."""
    environment: dict[str, Any]
    """Variables the job sets."""
    poll: PositiveFloat
    """See `Slurm.poll`."""
    timeout: PositiveFloat | None = None
    """`execution.timeout`."""
    retries: NonNegativeInt = 0
    """Further jobs after a lost node, preemption, or a job that vanished."""
    continuations: NonNegativeInt = 0
    """Further jobs after the time limit."""


def is_final(status: Status | None, fingerprint: str) -> bool:
    """Return whether a status file tells how the step ended."""
    return (
        status is not None
        and status.fingerprint == fingerprint
        and status.state in ("succeeded", "failed", "paused")
    )


def verdict(spec: JobSpec, status: Status | None, job: str, state: str, tail: str) -> Status:
    """Return how a step ended whose job is no more.

    Parameters
    ----------
    spec
        The step.
    status
        Content of its status file.
    job
        Number of the job.
    state
        State the job ended in, as Slurm calls it; empty if that is not known.
    tail
        Last line the job printed.
    """
    base = Status(spec.key, spec.op, "failed", fingerprint=spec.fingerprint)
    if status is not None and status.fingerprint == spec.fingerprint:
        base = status
    if is_final(status, spec.fingerprint):
        if base.kind == "timeout" and _stopped_early(spec):
            return base._replace(reason=_time_reason(spec, job))
        if base.kind == "killed" and state == "OUT_OF_MEMORY":
            return base._replace(reason=_explain(spec, job, state, tail)[1])
        return base
    begun = base.state in ("running", "interrupted")
    kind, reason = _explain(spec, job, state, tail, begun=begun)
    return base._replace(state="failed", kind=kind, reason=reason)


def again(spec: JobSpec, found: Status | None, end: Status) -> Literal["lost", "limit", ""]:
    """Return why another job may help.

    Parameters
    ----------
    spec
        The step.
    found
        Its status file when the job had ended.
    end
        The verdict about it.
    """
    own = is_final(found, spec.fingerprint)
    if end.kind == "transient" and not own:  # its own I/O errors the step has tried again
        return "lost"
    by_job = not own or _stopped_early(spec)
    if end.kind == "timeout" and by_job and find_op(spec.op).resumable:
        return "limit"
    return ""


def refused(spec: JobSpec, error: Exception) -> Status:
    """Return the status of a step whose job could not be submitted."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    told = [line for line in lines if line.startswith("sbatch:")]
    reason = told[-1] if told else next(line for line in lines if line)
    base = Status(spec.key, spec.op, "failed", fingerprint=spec.fingerprint)
    if "Unable to contact" in reason or "Socket timed out" in reason:
        return base._replace(kind="transient", reason=f"Slurm does not answer ({reason})")
    if isinstance(error, DPAError):
        return base._replace(kind="fatal", reason=str(error))
    return base._replace(
        kind="config",
        reason=f"the job was not submitted ({reason}); correct the settings of this step in "
        "execution.slurm.resources",
    )


def _stopped_early(spec: JobSpec) -> bool:
    """Whether it was the job's limit, not `execution.timeout`, that ended the step."""
    inside = spec.resources.step_seconds()
    return inside is not None and (spec.timeout is None or inside < spec.timeout)


def _time_reason(spec: JobSpec, job: str) -> str:
    limit = spec.resources.time
    told = "of the partition" if limit is None else f"of {limit / 60:g} min"
    advice = f"raise execution.slurm.resources.{spec.op}.time"
    if find_op(spec.op).resumable:
        advice += ", or let further jobs go on where it stopped: execution.slurm.continuations"
    return f"job {job} reached its time limit {told}; {advice}"


def _explain(
    spec: JobSpec, job: str, state: str, tail: str, begun: bool = True
) -> tuple[Kind, str]:
    """Say what the end of a job means whose step could not say it."""
    place = f"execution.slurm.resources.{spec.op}"
    if state in ("TIMEOUT", "DEADLINE"):
        return "timeout", _time_reason(spec, job)
    if state == "OUT_OF_MEMORY":
        has = f" ({spec.resources.memory})" if spec.resources.memory else ""
        return "killed", (
            f"job {job} needed more memory than it asked for{has}; raise {place}.memory, or use "
            "smaller batches or a smaller model"
        )
    if state in LOST:
        return "transient", f"job {job} lost its node ({state}); resume to try again"
    if state == "CANCELLED":
        return "interrupted", f"job {job} was cancelled (scancel); resume to submit it again"
    printed = f"; the last it printed: {tail}" if tail else ""
    if state == "COMPLETED":
        return "fatal", (
            f"job {job} ended and left no result; is the run's folder on a file system that "
            f"login and compute nodes share?{printed}"
        )
    if state and begun:
        return "fatal", f"job {job} ended ({state}) and the step could not say why{printed}"
    if state:
        return "fatal", (
            f"job {job} ended ({state}) before the step could begin; check {place}.prolog and "
            f"that execution.slurm.python works on a compute node{printed}"
        )
    return "transient", (
        f"job {job} vanished and Slurm does not know why; most often its time limit, its node or "
        f"its memory{printed}"
    )
