"""A look at the cluster from inside: one pod for every image and kind of GPU a pipeline uses.

The pods are made and hardened as those of steps, run `ops.probe`, and are deleted afterwards.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from dpa_core.errors import DPAError
from ops.pod import DEFAULTS, IN, WORK
from ops.probe import ProbeRequest
from workflows.backends.argo.client import ENDED, ArgoClient
from workflows.backends.argo.harden import harden
from workflows.backends.argo.pods import pod_options
from workflows.backends.argo.render import ENTRYPOINT, offline, script
from workflows.backends.argo.run import Run
from workflows.backends.argo.scene import Need, Scene
from workflows.doctor import Check
from workflows.graph import Node
from workflows.schema import Pipeline
from workflows.schema_cluster import Cluster, Resources, quantity, seconds

NAME = "dpaflow-probe"
WAIT = 300.0
"""Seconds that the pods may take, pulling images included."""
POLL = 2.0
READ_BACK = "read-back"
BACK = Resources(cpu="1", memory="1Gi", disk="1Gi")
"""For the pod that reads what the first one has written."""


class Pod(NamedTuple):
    """A pod of the probe: it gets what the steps of `need` get."""

    name: str
    need: Need


def pods(scene: Scene) -> list[Pod]:
    """Return one pod for every image and kind of GPU, that of the largest request."""
    found: dict[Any, Need] = {}
    for need in sorted(scene.needs(), key=lambda need: -quantity(need.resources.memory)):
        given = need.resources
        kind = (given.image, given.gpu, given.gpu_resource, given.gpu_type)
        found.setdefault(kind, need)
    return [Pod(f"probe-{k}", need) for k, need in enumerate(found.values())]


def back(scene: Scene) -> Pod:
    """Return the pod that reads what the first one has written."""
    image = pods(scene)[0].need.resources.image
    return Pod(READ_BACK, Need((READ_BACK,), READ_BACK, BACK.model_copy(update={"image": image})))


def manifest(scene: Scene) -> dict[str, Any]:
    """Return the probe's workflow, made offline as those of pipelines are."""
    mark = secrets.token_hex(4)
    run = Run(_pipeline(scene))
    chosen = pods(scene)
    nodes = {pod.name: _node(pod.name, run) for pod in chosen}
    nodes[READ_BACK] = _node(READ_BACK, run)
    with offline(run):
        rendered = _to_argo(run, chosen, nodes, mark)
    rendered = harden(rendered, run, nodes, {})
    rendered["metadata"]["name"] = f"{NAME}-{mark}"
    return rendered


def _pipeline(scene: Scene) -> Pipeline:
    """Return a pipeline whose steps are the probe's pods; none of them is tried twice."""
    chosen = {pod.name: pod.need.resources for pod in [*pods(scene), back(scene)]}
    once = {"retries": 0, "timeout": None}
    cluster = scene.cluster.model_copy(
        update={
            "resources": {name: r.model_copy(update=once) for name, r in chosen.items()},
            "artifacts": "keep",
            "keep": seconds("1h"),
            "deadline": seconds("1h"),
        }
    )
    return Pipeline.model_construct(name=NAME, models={}, cluster=cluster)


def _place(cluster: Cluster, mark: str) -> str:
    return f"{cluster.storage.prefix}/{NAME}/{mark}"


def _node(name: str, run: Run) -> Node:
    """Return the pod as a step; one that names a URL of the bucket gets its credentials."""
    storage = run.settings.cluster.storage
    return Node(name, name, {"bucket": f"s3://{storage.bucket}"} if storage.secret else {})


def _request(name: str, run: Run, mark: str, reads: str | None) -> dict[str, Any]:
    cluster = run.settings.cluster
    given = cluster.resources_for(name, name)
    bucket = f"s3://{cluster.storage.bucket}/{_place(cluster, mark)}"
    return ProbeRequest(
        mark=mark,
        version=version("dpaflow"),
        gpu=given.gpu,
        cpu=quantity(given.cpu),
        memory=quantity(given.memory),
        shm=None if given.shm is None else quantity(given.shm),
        disk=quantity(given.disk),
        bucket=bucket if cluster.storage.secret else None,
        reads=reads,
    ).model_dump(mode="json", exclude_defaults=True)


def _to_argo(run: Run, chosen: list[Pod], nodes: Mapping[str, Node], mark: str) -> dict[str, Any]:
    from dflow import DAG, InputArtifact, Inputs, Task, Workflow
    from dflow.op_template import ScriptOPTemplate

    dag = DAG(ENTRYPOINT)

    def add(name: str, source: Any = None) -> Any:
        reads = None if source is None else f"{DEFAULTS[IN]}/{name}"
        template = ScriptOPTemplate(
            name=name,
            inputs=Inputs(artifacts={"mark": InputArtifact(path=reads)} if reads else {}),
            outputs=_outputs(f"{_place(run.settings.cluster, mark)}/{name}.tgz"),
            command=["python", "-m", "ops.probe"],
            script=script(_request(name, run, mark, reads)),
            **pod_options(run, nodes[name]),
        )
        task = Task(name, template, artifacts={} if source is None else {"mark": source})
        dag.add(task)
        return task

    tasks = [add(pod.name) for pod in chosen]
    add(READ_BACK, tasks[0].outputs.artifacts["folder"])
    found: dict[str, Any] = Workflow(NAME, dag=dag, id=run.workflow).to_dict()
    return found


def _outputs(key: str) -> Any:
    from dflow import OutputArtifact, OutputParameter, Outputs, S3Artifact

    out = f"{DEFAULTS[WORK]}/out"
    folder = OutputArtifact(path=f"{out}/folder", save=[S3Artifact(key=key)], archive="tar")
    result = OutputParameter(value_from_path=f"{out}/result.json", default="[]")
    return Outputs(parameters={"result": result}, artifacts={"folder": folder})


def run_probe(scene: Scene, wait: float = WAIT) -> Iterator[Check]:
    """Run the probe, yield what it finds, delete it.

    Parameters
    ----------
    scene
        Where, and for what pipeline.
    wait
        Seconds that the pods may take.
    """
    client = ArgoClient(scene.context)
    workflow = manifest(scene)
    name = workflow["metadata"]["name"]
    client.create(workflow)
    try:
        done = _await(client, name, wait)
        for pod in [*pods(scene), back(scene)]:
            yield from _judge(scene, pod, done, wait)
    finally:
        yield from _delete(client, name)


def _await(client: ArgoClient, name: str, wait: float) -> dict[str, Any]:
    """Return the workflow once it has ended, or its time is over."""
    end = time.monotonic() + wait
    while True:
        workflow = client.get(name)
        if (workflow.get("status") or {}).get("phase") in ENDED or time.monotonic() > end:
            return workflow
        time.sleep(POLL)


def _delete(client: ArgoClient, name: str) -> Iterator[Check]:
    try:
        client.delete(name)
    except DPAError as error:
        yield Check("may delete", "error", str(error))
    else:
        yield Check("may delete", "ok", "the probe is gone")


def _judge(scene: Scene, pod: Pod, workflow: Mapping[str, Any], wait: float) -> Iterator[Check]:
    given = pod.need.resources
    image = given.image or scene.cluster.image
    gpus = f", {given.gpu} {given.gpu_resource}" if given.gpu else ""
    label = "read back" if pod.name == READ_BACK else f"pod {image}{gpus}"
    nodes = (workflow.get("status") or {}).get("nodes") or {}
    found = [node for node in nodes.values() if node.get("displayName") == pod.name]
    if not found:
        yield Check(label, "unknown", "was not started")
        return
    if found[0].get("phase") != "Succeeded":
        yield _unfinished(label, found[0], workflow, wait)
        return
    parameters = (found[0].get("outputs") or {}).get("parameters") or []
    values = {item["name"]: item.get("value", "[]") for item in parameters}
    for finding in json.loads(values.get("result", "[]")):
        check = Check(**finding)
        yield check._replace(name=f"{label}: {check.name}")


def _unfinished(
    label: str, node: Mapping[str, Any], workflow: Mapping[str, Any], wait: float
) -> Check:
    children = node.get("children") or []
    pods = [
        workflow["status"]["nodes"][key] for key in children if key in workflow["status"]["nodes"]
    ]
    last = pods[-1] if pods else node
    reason = last.get("message") or node.get("message") or "no reason given"
    if node.get("phase") in ENDED:
        return Check(label, "error", f"failed: {reason}")
    advice = "if nodes are just busy or the image is large, wait longer: --wait 1800"
    return Check(label, "error", f"not done after {wait:g} s: {reason}", advice)
