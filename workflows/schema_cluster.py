"""The block `cluster` of the pipeline YAML: what every step gets on Kubernetes.

Where the Argo server is, and who submits, is no matter of a pipeline: see
`workflows.backends.argo.context`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from dpa_core.config import Config
from workflows.schema_resources import Duration, best_name, lay_over_default, seconds

QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?")
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "m": 1e-3}  # fmt: skip
DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|API_KEY)$", re.IGNORECASE)
IMAGE = re.compile(r"[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?")
TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")
AFFINITY = ("nodeAffinity", "podAffinity", "podAntiAffinity")
TAKEN = ("/dpaflow/", "/tmp/", "/dev/shm/")
"""Folders of every pod; no volume can be there."""


def quantity(value: str) -> float:
    """Return a Kubernetes quantity, "16Gi" or "500m", as a number."""
    found = QUANTITY.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no quantity; write 4, 500m, 16Gi, 100G")
    return float(found[1]) * UNITS[found[2] or ""]


def _text(value: Any) -> Any:
    """Return a number as text, as YAML reads `cpu: 4`."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if plain else value


def _cores(value: str) -> str:
    found = QUANTITY.fullmatch(value)
    if found is None or found[2] not in (None, "m") or not quantity(value):
        raise ValueError(f"{value!r} is no quantity of CPU cores; write 4, or 500m for half a core")
    return value


def _bytes(value: str) -> str:
    if not QUANTITY.fullmatch(value):
        raise ValueError(f"{value!r} is no quantity of bytes; write 16Gi or 512Mi, without a space")
    if quantity(value) < UNITS["Mi"]:
        raise ValueError(f"{value!r} is {quantity(value):g} bytes; write the unit: 16Gi or 512Mi")
    return value


def _dns_name(value: str) -> str:
    if not DNS_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name of a Kubernetes object: a-z, 0-9, - and .")
    return value


def _label(value: str) -> str:
    if not LABEL.fullmatch(value):
        raise ValueError(f"{value!r} cannot be the value of a label in Kubernetes: letters, "
                         "digits, -, _ and . without spaces, at most 63")  # fmt: skip
    return value


def _variable(name: str) -> str:
    if not VARIABLE.fullmatch(name):
        raise ValueError(f"{name!r} cannot be an environment variable: letters, digits and _")
    if SECRET.search(name):
        raise ValueError(f"the variable {name} looks like a secret, and all who see the workflow "
                         "could read it; put it into a Secret, named in env_secrets")  # fmt: skip
    return name


def _image(value: str) -> str:
    """Refuse an image that may be another one tomorrow: without tag, or latest."""
    name, at, _ = value.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not IMAGE.fullmatch(name.removesuffix(f":{tag}")):
        raise ValueError(f"{value!r} is no image: lower case, digits, . _ - and /, no spaces")
    if not at and tag in ("", "latest"):
        raise ValueError(f"{value!r}: name a tag other than latest, or a digest; what it means "
                         "today must be what it means when a pod is tried again")  # fmt: skip
    return value


Cores = Annotated[str, pydantic.BeforeValidator(_text), pydantic.AfterValidator(_cores)]
Bytes = Annotated[str, pydantic.BeforeValidator(_text), pydantic.AfterValidator(_bytes)]
Label = Annotated[str, pydantic.AfterValidator(_label)]
Variable = Annotated[str, pydantic.AfterValidator(_variable)]
DnsName = Annotated[str, pydantic.AfterValidator(_dns_name)]
Image = Annotated[str, pydantic.AfterValidator(_image)]
MountPath = Annotated[str, Field(pattern=r"^/[^:]+$", examples=["/data"])]


def _known_keys(entry: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in entry:
        if name not in known:
            raise ValueError(f"{name!r} is no key of {what}; there are {', '.join(known)}")


class Volume(Config):
    """A persistent volume claim, seen by pods as a folder."""

    pvc: DnsName
    """Name of the claim, in the namespace of the workflow."""
    path: MountPath
    """Where pods see it; paths of the pipeline below this one are taken from the volume."""
    sub_path: str | None = None
    """Folder in the volume; all of it when left out."""
    read_only: bool = True
    """Whether pods may only read."""


class Resources(Config):
    """What one step gets. A pod is never given less than it asks for, and never more."""

    cpu: Cores = "2"
    """CPU cores."""
    memory: Bytes = "8Gi"
    """Main memory."""
    max_memory: Bytes | None = None
    """Memory of later attempts: each has twice that of the one before, up to this; twice
    `memory` when left out."""
    gpu: NonNegativeInt = 0
    """GPUs, all in one pod; a training on several runs one process each through torchrun."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the resource, e.g. that of a MIG slice."""
    gpu_type: Label | None = None
    """Only on nodes with this GPU (label nvidia.com/gpu.product), e.g. NVIDIA-A100-SXM4-80GB."""
    shm: Bytes | None = None
    """Size of /dev/shm, in memory, within `memory`; several processes exchange batches there."""
    disk: Bytes = "20Gi"
    """Scratch space for the step's inputs and results."""
    node_selector: dict[str, Label] = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints a node may have, as Kubernetes writes them."""
    affinity: dict[str, Any] | None = None
    """As Kubernetes writes it."""
    image: Image | None = None
    """Image of this step, e.g. one with a DFT code; `cluster.image` when left out."""
    timeout: Duration | None = None
    """Longest time of one attempt, e.g. 2h; `execution.timeout` when left out."""
    retries: NonNegativeInt | None = None
    """Further attempts after a lost node, preemption, failing I/O or lack of memory;
    `execution.retries` when left out."""
    pvc: tuple[Volume, ...] = ()
    """Volumes beside those of `cluster.volumes`."""
    env: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables. No secrets: they are readable in the workflow."""
    env_secrets: tuple[DnsName, ...] = ()
    """Names of Secrets whose keys become environment variables."""

    @pydantic.field_validator("pvc", "tolerations", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @pydantic.field_validator("tolerations")
    @classmethod
    def _known_tolerations(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for entry in value:
            _known_keys(entry, TOLERATION, "a toleration")
        return value

    @pydantic.field_validator("affinity")
    @classmethod
    def _known_affinity(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        _known_keys(value or {}, AFFINITY, "an affinity")
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Resources:
        memory = quantity(self.memory)
        if self.max_memory is not None and quantity(self.max_memory) < memory:
            raise ValueError(f"max_memory {self.max_memory} is less than memory {self.memory}")
        if self.shm is not None and quantity(self.shm) >= memory:
            raise ValueError(f"shm {self.shm} is taken out of memory, which is {self.memory}")
        if self.gpu_type is not None and not self.gpu:
            raise ValueError(f"gpu_type {self.gpu_type} without gpu: say how many, gpu: 1")
        return self


class Storage(Config):
    """Where results of steps, and copies of your local files, are kept: an S3 bucket."""

    bucket: str = Field(
        "dpaflow", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", examples=["my-bucket"]
    )
    """Bucket of the artifact repository."""
    prefix: str = Field(
        "dpaflow", pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$", examples=["group/runs"]
    )
    """Beginning of all keys."""
    endpoint: str | None = Field(
        None, pattern=r"^https?://[^/@]+$", examples=["https://s3.example.org"]
    )
    """Address of the S3 server as pods see it; that of AWS when left out."""
    region: str | None = None
    """Region, if the server wants one."""
    secret: DnsName | None = "dpaflow-s3"
    """Secret with the keys accessKey and secretKey, for pods that read or write s3:// paths;
    null where the pods' service account has the right (IRSA, workload identity)."""
    repository: str = Field(
        "artifact-repositories/dpaflow",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        examples=["artifact-repositories/dpaflow"],
    )
    """ConfigMap and key of Argo's artifact repository."""


class Cluster(Config):
    """How a pipeline runs on Kubernetes; every default fits what deploy/kubernetes sets up."""

    image: Image = "dpaflow:0.1.0"
    """Image with this version of dpaflow."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When to pull."""
    image_pull_secrets: tuple[DnsName, ...] = ()
    """Secrets with the registry's credentials."""
    storage: Storage = Storage()
    """The S3 bucket."""
    resources: dict[str, Resources] = Field(default_factory=dict)
    """By step: an OP (train, explore, label, ...), the beginning of step names (finetune,
    iter-000000), or `default`; what is more special is laid over what is more general."""
    volumes: tuple[Volume, ...] = ()
    """Volumes that every step sees, e.g. with models and data."""
    workspace: DnsName | None = None
    """Claim of a volume that can be written from all nodes: interrupted trainings then go on
    from their checkpoint on another node, and labels outlive everything."""
    parallelism: PositiveInt = 50
    """Pods that run at the same time."""
    max_pods: PositiveInt = 500
    """Pods that one workflow may have; more are refused before they are submitted."""
    deadline: Duration = seconds("7d")
    """Longest time of a workflow; one iteration of concurrent learning is one workflow."""
    keep: Duration = seconds("30d")
    """How long a finished workflow stays on the server."""
    artifacts: Literal["keep", "delete"] = "keep"
    """Whether results in the bucket are deleted with the workflow. Kept ones are used again by
    later runs of the same pipeline."""
    service_account: DnsName = "dpaflow-workflow"
    """Account of the pods."""
    advance_service_account: DnsName = "dpaflow-advance"
    """Account of the one step that submits the next iteration."""
    gc_service_account: DnsName = "dpaflow-artifact-gc"
    """Account that deletes results, with `artifacts: delete`."""
    priority_class: DnsName | None = None
    """PriorityClass of the pods."""
    user: PositiveInt = 1000
    """Numerical user and group of the pods; never root."""
    labels: dict[str, Label] = Field(default_factory=dict)
    """Labels of the workflow and its pods, e.g. for accounting."""

    @pydantic.field_validator("resources", mode="before")
    @classmethod
    def _lay_over_default(cls, data: Any) -> Any:
        return lay_over_default(data)

    @pydantic.model_validator(mode="after")
    def _one_volume_a_folder(self) -> Cluster:
        for name, entry in {"default": Resources(), **self.resources}.items():
            seen: set[str] = set()
            for volume in (*self.volumes, *entry.pvc):
                path = volume.path.rstrip("/")
                if path in seen:
                    raise ValueError(f"two volumes have the path {path} (resources.{name})")
                if f"{path}/".startswith(TAKEN):
                    raise ValueError(f"a volume cannot have the path {path}: pods need that folder "
                                     "for themselves; take another, e.g. /data")  # fmt: skip
                seen.add(path)
        return self

    def resources_for(self, key: str, op: str) -> Resources:
        """Return what a step gets.

        Parameters
        ----------
        key
            The step's name.
        op
            Its OP.

        Returns
        -------
        Resources
            The entry whose name is the longest beginning of `key`; else that of `op`, else
            `default`.
        """
        name = best_name(self.resources, key, op)
        return Resources() if name is None else self.resources[name]
