"""dflow's DispatcherExecutor for a step of ours.

Only dflow's own process (`workflows.backends.master`) imports this module.
"""

from __future__ import annotations

import sys
from typing import Any

from dflow.plugins.dispatcher import DispatcherExecutor

from dpa_core.errors import ConfigError
from workflows.backends.slurm.ends import JobSpec
from workflows.backends.slurm.leftovers import job_name
from workflows.graph import Node
from workflows.run_folder import RunFolder
from workflows.schema import Execution

RUN = "submission.run_submission(clean=False)\n"
TEMPLATE_VARIABLE = "resources.envs['ARGO_TEMPLATE'] ="


class JobExecutor(DispatcherExecutor):
    """Runs one step as a job, and has `follow` instead of dpdispatcher see to its end.

    The job works in dflow's folder of the step (LazyLocalContext): dpdispatcher's LocalContext
    is the same with copies there and back.
    """

    def __init__(self, spec: JobSpec, python: str) -> None:
        super().__init__(
            command=[sys.executable, "-P"],
            remote_command=[python, "-P", "-m", "workflows.backends.slurm.job"],
            machine_dict={
                "batch_type": spec.batch.capitalize(),
                "context_type": "LazyLocalContext",
                "remote_profile": {},
            },
            clean=False,
        )
        self.spec = spec

    def render(self, template: Any) -> Any:
        """Return the template whose script submits the job."""
        made = super().render(template)
        follow = (
            "from workflows.backends.slurm.follow import follow\n"
            f"follow(submission, {self.spec.model_dump_json()!r})\n"
        )
        if RUN not in made.script:
            raise ConfigError(
                "this version of dflow makes other scripts for dpdispatcher than ours knows; "
                "install the pydflow that constraints.txt names"
            )
        lines = made.script.replace(RUN, follow).splitlines(keepends=True)
        made.script = "".join(x for x in lines if not x.startswith(TEMPLATE_VARIABLE))
        return made


def on_gpus(node: Node, execution: Execution) -> Node:
    """Let a training use all GPUs of its job, one process each, unless its settings say else."""
    gpus = execution.slurm.resources_for(node.key, node.op).gpus
    here = execution.slurm.is_local(node.key, node.op)
    if node.op != "train" or gpus < 2 or here or "nproc" in node.config:
        return node
    return node._replace(config={**node.config, "nproc": gpus})


def executor_for(
    node: Node, execution: Execution, fingerprint: str, folder: RunFolder
) -> JobExecutor | None:
    """Return what runs a step as a job; None for one that runs here."""
    slurm = execution.slurm
    if execution.backend != "slurm" or slurm.is_local(node.key, node.op):
        return None
    resources = slurm.resources_for(node.key, node.op)
    threads = str(max(1, resources.cpus // max(1, resources.gpus)))  # of each process
    spec = JobSpec(
        key=node.key,
        op=node.op,
        fingerprint=fingerprint,
        name=job_name(node.key, folder),
        batch=slurm.batch,
        resources=resources,
        environment={
            "DPAFLOW_STEPS": str(folder.steps),
            "DPAFLOW_LABELS": str(folder.labels),
            "DPAFLOW_STEP": node.key,
            "DPAFLOW_BATCH": slurm.batch,
            "DFLOW_MODE": "debug",
            "DFLOW_DEBUG_WORKDIR": str(folder.dflow),
            "DFLOW_DETECT_EMPTY_DIR": "false",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
        },
        poll=slurm.poll,
        timeout=execution.timeout,
        retries=execution.retries,
        continuations=slurm.continuations,
    )
    return JobExecutor(spec, slurm.python or sys.executable)
