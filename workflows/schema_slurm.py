"""The block `execution.slurm` of the pipeline YAML: what every step gets from Slurm."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from dpa_core.config import Config
from workflows.schema_resources import Duration, best_name, lay_over_default

ONE_LINE = r"^[^\n\r\x00]*$"
OPTION = re.compile(r"(#SBATCH\s+)?(--?[A-Za-z][^\n\r\x00]*)")
STOP_EARLY = 150
"""Seconds before its time limit at which a step is asked to save its state and end."""


def _option(value: str) -> str:
    found = OPTION.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no option of sbatch; write e.g. --exclusive")
    return found[2]


Word = Annotated[str, Field(pattern=r"^[^\s'\"\\$`;&|<>]+$")]
Line = Annotated[str, Field(pattern=ONE_LINE)]
Option = Annotated[str, pydantic.AfterValidator(_option)]


class SlurmResources(Config):
    """What the job of one step asks for. What is left out is the site's default."""

    partition: Word | None = None
    """Partition (queue), see `sinfo`; several separated by commas."""
    account: Word | None = None
    """Account the time is charged to."""
    qos: Word | None = None
    """Quality of service."""
    nodes: PositiveInt = 1
    """Nodes; more than one only for commands that use srun or mpirun, not for trainings."""
    tasks: PositiveInt = 1
    """MPI ranks on each node, for commands of labelers and explorers that use srun or mpirun."""
    cpus: PositiveInt = 1
    """CPU cores of each task; also the number of threads."""
    gpus: NonNegativeInt = 0
    """GPUs on each node (generic resource gpu); a training on several runs one process each."""
    gpu_type: Word | None = None
    """Type of the GPUs as the site calls it, e.g. a100."""
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]$")] | None = None
    """Main memory of each node, e.g. 16G."""
    time: Duration | None = None
    """Time limit of the job, e.g. 2h or 1d. A step is asked to save its state a little before."""
    constraint: Line | None = None
    """Features a node must have."""
    options: tuple[Option, ...] = ()
    """Further options of sbatch, e.g. --exclusive."""
    prolog: tuple[Line, ...] = ()
    """Lines of bash before the step: `module load ...`, `source .../activate`. No secrets: they
    are readable in the job script."""

    @pydantic.field_validator("options", "prolog", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SlurmResources:
        if self.gpu_type is not None and not self.gpus:
            raise ValueError(f"gpu_type {self.gpu_type} without gpus: say how many, gpus: 1")
        return self

    def step_seconds(self) -> float | None:
        """Return the time a step has in a job, less what it needs to begin and to save."""
        if self.time is None:
            return None
        return max(self.time - STOP_EARLY, 0.8 * self.time)


class Slurm(Config):
    """How a pipeline runs as jobs of Slurm, one job a step, with `execution.backend: slurm`."""

    resources: dict[str, SlurmResources] = Field(default_factory=dict)
    """By step: an OP (train, explore, label, ...), the beginning of step names (finetune,
    iter-000000), or `default`; what is more special is laid over what is more general."""
    local: tuple[str, ...] = ()
    """Steps that run where dpaflow runs, without a job: names as in `resources`. Good for light
    ones: decide, report, report_iteration."""
    poll: PositiveFloat = 30.0
    """Seconds between two questions about a job."""
    continuations: NonNegativeInt = 0
    """Further jobs for a training, exploration or labelling that reached its time limit; each
    goes on where the one before had to stop."""
    python: Line | None = None
    """Python of the jobs; the one that runs dpaflow when left out."""
    batch: Literal["slurm", "shell"] = "slurm"
    """`shell` runs the same job scripts as processes on this machine, to try them."""

    @pydantic.field_validator("local", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("resources", mode="before")
    @classmethod
    def _lay_over_default(cls, data: Any) -> Any:
        return lay_over_default(data)

    def resources_for(self, key: str, op: str) -> SlurmResources:
        """Return what a step's job asks for, see `schema_resources.best_name`."""
        name = best_name(self.resources, key, op)
        return SlurmResources() if name is None else self.resources[name]

    def is_local(self, key: str, op: str) -> bool:
        """Return whether a step runs where dpaflow runs."""
        return best_name(self.local, key, op) is not None
