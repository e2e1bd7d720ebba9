"""Jobs that outlived the `dpaflow run` that submitted them: found again, or cancelled.

They are found by their names, in which the run's folder has a part.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence

import pydantic

from dpa_core.errors import ConfigError
from ops.base import read_status
from workflows.backends.slurm.ends import is_final
from workflows.backends.slurm.queue import Job, end_jobs, queue_of
from workflows.graph import Node, needs
from workflows.run_folder import WORKFLOW, RunFolder, read_text
from workflows.schema import Execution

COMMANDS = ("sbatch", "squeue", "scancel")


def job_name(key: str, folder: RunFolder) -> str:
    """Return the name of a step's job, unique among those of the user."""
    return f"{key}.{hashlib.sha256(str(folder.root).encode()).hexdigest()[:8]}"


def require(execution: Execution) -> None:
    """Raise ConfigError if steps could not become jobs on this machine."""
    if execution.backend != "slurm":
        return
    if importlib.util.find_spec("dpdispatcher") is None:
        raise ConfigError(
            "execution.backend: slurm needs dpdispatcher; install it: pip install 'dpaflow[slurm]'"
        )
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if execution.slurm.batch == "slurm" and missing:
        raise ConfigError(
            f"execution.backend: slurm, but this machine has no {', '.join(missing)}; run dpaflow "
            "on a login node of the cluster, or set execution.backend: local"
        )


def find_again(
    nodes: Sequence[Node], prints: Mapping[str, str], folder: RunFolder, execution: Execution
) -> set[str]:
    """Return the steps whose jobs of an earlier run are to be followed on; cancel all others.

    A job is followed on if it does just what is wanted now: it has the step's fingerprint, and
    what it reads is not to be made anew. A step whose job succeeded meanwhile counts, too.
    """
    before = _last_execution(folder)
    if before is None or before.backend != "slurm":
        return set()
    queue = queue_of(before.slurm.batch)
    jobs = _jobs_of(folder, before)
    same = execution.backend == "slurm" and execution.slurm.batch == before.slurm.batch
    followed = {key for key in _candidates(nodes, prints, folder, jobs) if same}
    end_jobs(queue, [job for key, job in jobs.items() if key not in followed])
    return followed


def cancel_all(folder: RunFolder, execution: Execution) -> None:
    """Cancel the jobs of a run that is to stop, and wait until they are gone."""
    if execution.backend == "slurm":
        end_jobs(queue_of(execution.slurm.batch), list(_jobs_of(folder, execution).values()))


def _jobs_of(folder: RunFolder, execution: Execution) -> dict[str, Job]:
    """Return the live jobs of a run by the key of their step."""
    found = {}
    for job in queue_of(execution.slurm.batch).jobs():
        key = job.name.rpartition(".")[0]
        if key and job.name == job_name(key, folder):
            found[key] = job
    return found


def _candidates(
    nodes: Sequence[Node], prints: Mapping[str, str], folder: RunFolder, jobs: Mapping[str, Job]
) -> set[str]:
    """Return the steps that a job does, or did, as they are wanted now."""
    place = folder.dflow / WORKFLOW
    good: set[str] = set()
    found: set[str] = set()
    for node in nodes:  # in the order of their needs
        status = read_status(folder.steps / node.key)
        if status is None or status.fingerprint != prints[node.key] or not needs(node) <= good:
            continue
        done = is_final(status, prints[node.key]) and status.state == "succeeded"
        phase = read_text(place / node.key / "phase")
        if done and phase == "Succeeded":
            good.add(node.key)
        elif phase == "Running" and (done or node.key in jobs):
            found.add(node.key)
    return found


def _last_execution(folder: RunFolder) -> Execution | None:
    """Return the settings of the run before this one."""
    try:
        document = json.loads(folder.plan.read_text(encoding="utf-8"))
        return Execution.model_validate(document["execution"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError, pydantic.ValidationError):
        return None
