"""What a job asks Slurm for, in the terms of dpdispatcher."""

from __future__ import annotations

from typing import Any

from workflows.backends.slurm.ends import JobSpec
from workflows.schema_slurm import SlurmResources

OUTPUT = "job-*.out"
"""What a job printed, in the step's working folder of dflow."""


def dispatcher_resources(spec: JobSpec) -> dict[str, Any]:
    """Return dpdispatcher's `resources` of a job."""
    asked = spec.resources
    kind = f"gpu:{asked.gpu_type}" if asked.gpu_type else "gpu"
    return {
        "number_node": asked.nodes,
        "cpu_per_node": asked.tasks,  # becomes --ntasks-per-node
        "gpu_per_node": asked.gpus,
        "queue_name": asked.partition or "",
        "group_size": 1,
        "custom_flags": [f"#SBATCH {option}" for option in _options(asked)],
        "prepend_script": list(asked.prolog),
        "envs": spec.environment,
        "kwargs": {"custom_gpu_line": f"#SBATCH --gres={kind}:{asked.gpus}"} if asked.gpus else {},
    }


def _options(asked: SlurmResources) -> list[str]:
    named = {
        "account": asked.account,
        "qos": asked.qos,
        "cpus-per-task": asked.cpus,
        "mem": asked.memory,
        "time": None if asked.time is None else slurm_time(asked.time),
        "constraint": asked.constraint and f'"{asked.constraint}"',
        "output": OUTPUT.replace("*", "%j"),
    }
    given = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return [*given, "--open-mode=append", *asked.options]


def slurm_time(seconds: int) -> str:
    """Return a duration as sbatch takes it: days-hours:minutes:seconds, in whole minutes."""
    minutes = max(1, -(-seconds // 60))
    days, minutes = divmod(minutes, 24 * 60)
    return f"{days}-{minutes // 60:02d}:{minutes % 60:02d}:00"
