"""What the pod of a step gets: image, processors, memory, volumes, environment."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ops.pod import DEFAULTS, WORK
from workflows.backends.argo.run import ADVANCE, Run
from workflows.graph import Node
from workflows.schema_cluster import Resources, Volume, quantity

if TYPE_CHECKING:
    from workflows.schema import Pipeline

FOLDER, SUMMARY, REPORT, PLOTS = "folder", "summary", "report", "plots"
"""Output artifacts of a step."""
WORKSPACE = "/dpaflow/workspace"
SCRATCH, TEMPORARY, SHARED_MEMORY = "scratch", "temporary", "shared-memory"
ACCESS_KEYS = {"AWS_ACCESS_KEY_ID": "accessKey", "AWS_SECRET_ACCESS_KEY": "secretKey"}
"""Environment variable -> key in the Secret of the bucket."""
MAX_LABEL = 63
"""Characters of a volume's name, which has no dots; a claim's may be longer and have some."""
ADVANCE_RESOURCES = Resources(cpu="1", memory="2Gi", disk="2Gi")
"""The step that submits the next workflow does nothing else."""


def resources_of(pipeline: Pipeline, node: Node) -> Resources:
    """Return what the pipeline gives a step."""
    if node.op == ADVANCE and ADVANCE not in pipeline.cluster.resources:
        return ADVANCE_RESOURCES
    return pipeline.cluster.resources_for(node.key, node.op)


def pod_options(run: Run, node: Node) -> dict[str, Any]:
    """Return the arguments of dflow's template that say what a pod is given."""
    pipeline = run.settings
    cluster = pipeline.cluster
    given = resources_of(pipeline, node)
    volumes, mounts = _volumes(run, given)
    return {
        "image": given.image or cluster.image,
        "image_pull_policy": cluster.image_pull_policy,
        "requests": _limits(given),
        "limits": _limits(given),
        "node_selector": _node_selector(given),
        "tolerations": list(given.tolerations),
        "affinity": given.affinity,
        "volumes": volumes,
        "mounts": mounts,
        "envs": _environment(run, node, given),
    }


def _limits(given: Resources) -> dict[str, str]:
    """Return requests and limits, the same: a pod that may take more is killed first."""
    limits = {"cpu": given.cpu, "memory": given.memory, "ephemeral-storage": given.disk}
    if given.gpu:
        limits[given.gpu_resource] = str(given.gpu)
    return limits


def _node_selector(given: Resources) -> dict[str, str]:
    gpu = {"nvidia.com/gpu.product": given.gpu_type} if given.gpu_type else {}
    return {**given.node_selector, **gpu}


def _volumes(run: Run, given: Resources) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return volumes and where they are mounted; the root of a pod is read-only."""
    cluster = run.settings.cluster
    volumes: list[dict[str, Any]] = [
        {"name": SCRATCH, "emptyDir": {"sizeLimit": given.disk}},
        {"name": TEMPORARY, "emptyDir": {"sizeLimit": given.disk}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": SCRATCH, "mountPath": DEFAULTS[WORK]},
        {"name": TEMPORARY, "mountPath": "/tmp"},
    ]
    if given.shm:
        memory = {"medium": "Memory", "sizeLimit": given.shm}
        volumes.append({"name": SHARED_MEMORY, "emptyDir": memory})
        mounts.append({"name": SHARED_MEMORY, "mountPath": "/dev/shm"})
    claimed = [*cluster.volumes, *given.pvc]
    if cluster.workspace:
        claimed.append(Volume(pvc=cluster.workspace, path=WORKSPACE, read_only=False))
    claims = dict.fromkeys(volume.pvc for volume in claimed)
    names = {
        claim: f"pvc-{claim}" if "." not in claim and len(claim) < MAX_LABEL - 4 else f"claim-{k}"
        for k, claim in enumerate(claims)
    }
    for claim, name in names.items():
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
    for volume in claimed:
        mount: dict[str, Any] = {"name": names[volume.pvc], "mountPath": volume.path}
        if volume.sub_path:
            mount["subPath"] = volume.sub_path
        if volume.read_only:
            mount["readOnly"] = True
        mounts.append(mount)
    return volumes, mounts


def _environment(run: Run, node: Node, given: Resources) -> dict[str, Any]:
    threads = str(max(1, int(quantity(given.cpu))))
    found: dict[str, Any] = {
        "HOME": "/tmp",
        "OMP_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
        "DPAFLOW_VERSION": version("dpaflow"),
        "DPAFLOW_CACHE": f"{DEFAULTS[WORK]}/cache",
    }
    if run.settings.cluster.workspace:
        place = f"{WORKSPACE}/{run.name}"
        found |= {
            "DPAFLOW_STEPS": f"{place}/steps",
            "DPAFLOW_LABELS": f"{place}/labels",
            "DPAFLOW_CACHE": f"{WORKSPACE}/cache",
        }
    if reads_bucket(node):
        found |= bucket_environment(run.settings)
    return {**found, **given.env}


def reads_bucket(node: Node) -> bool:
    """Return whether a step reads or writes s3:// paths itself."""
    return "s3://" in json.dumps([node.config, node.inputs])


def bucket_environment(pipeline: Pipeline) -> dict[str, Any]:
    """Return the environment in which the bucket can be reached; the keys stay in a Secret."""
    from dflow.op_template import Secret

    storage = pipeline.cluster.storage
    found: dict[str, Any] = {}
    if storage.endpoint:
        found["AWS_ENDPOINT_URL"] = storage.endpoint
    if storage.region:
        found["AWS_REGION"] = storage.region
    if storage.secret:
        found |= {name: Secret(name=storage.secret, key=key) for name, key in ACCESS_KEYS.items()}
    return found
