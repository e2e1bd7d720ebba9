"""A look at the cluster from inside: one pod for every image and kind of GPU a pipeline uses.

The pods are made and hardened as those of steps, run `ops.probe`, and are deleted afterwards.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dpa_core.errors import DPAError
from ops.pod import DEFAULTS, IN, WORK
from ops.probe import ProbeRequest
from workflows.backends.argo.client import PROBE, ArgoClient
from workflows.backends.argo.harden import harden
from workflows.backends.argo.pods import pod_options
from workflows.backends.argo.reasons import advise, explain
from workflows.backends.argo.render import ENTRYPOINT, offline, script
from workflows.backends.argo.run import ENDED, Run
from workflows.backends.argo.scene import Need, Scene
from workflows.doctor import Check
from workflows.graph import Node
from workflows.schema import Pipeline
from workflows.schema_cluster import Cluster, Resources, quantity, seconds

NAME = PROBE
WAIT = 300.0
"""Seconds that the pods may take, pulling images included."""
POLL = 2.0
PATIENCE = 45.0
"""Seconds after which an image that cannot be pulled will not be pulled any more."""
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
    del rendered["spec"]["archiveLogs"]  # nothing of it is to stay
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
        reads = None if source is None else name
        inputs = {"mark": InputArtifact(path=f"{DEFAULTS[IN]}/{name}")}
        template = ScriptOPTemplate(
            name=name,
            inputs=Inputs(artifacts=inputs if reads else {}),
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
        yield _check_download(client, scene, done)
    finally:
        yield from _delete(client, name)


def _await(client: ArgoClient, name: str, wait: float) -> dict[str, Any]:
    """Return the workflow once it has ended, its time is over, or its images do not come."""
    end = time.monotonic() + wait
    hopeless: float | None = None
    while True:
        workflow = client.get(name)
        now = time.monotonic()
        if (workflow.get("status") or {}).get("phase") in ENDED or now > end:
            return workflow
        hopeless = (hopeless or now) if _no_images(workflow) else None
        if hopeless is not None and now > hopeless + PATIENCE:
            return workflow
        time.sleep(POLL)


def _nodes(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return (workflow.get("status") or {}).get("nodes") or {}


def _no_images(workflow: Mapping[str, Any]) -> bool:
    """Return whether all pods that have not ended wait for images that cannot be pulled."""
    open_pods = [
        node
        for node in _nodes(workflow).values()
        if node.get("type") == "Pod" and node.get("phase") not in ENDED
    ]
    return bool(open_pods) and all(explain(n, workflow)[0] == "image" for n in open_pods)


def _delete(client: ArgoClient, name: str) -> Iterator[Check]:
    try:
        client.delete(name)
    except DPAError as error:
        yield Check("may delete", "error", str(error))
    else:
        yield Check("may delete", "ok", "the probe's workflow is gone")


def _judge(scene: Scene, pod: Pod, workflow: Mapping[str, Any], wait: float) -> Iterator[Check]:
    """Yield what a pod has found, or why it has not."""
    label = _label(scene, pod)
    node = _last_attempt(workflow, pod.name)
    if node is None:
        yield Check(label, "unknown", "was not started, as another pod did not succeed")
        return
    if node.get("phase") != "Succeeded":
        kind, line = explain(node, workflow)
        advice = advise(kind, pod.need.steps[0], pod.need.entry)
        if node.get("phase") not in ENDED:
            line = f"not done after {wait:g} s: {line or 'still starting or running'}"
            advice = f"{advice}; or wait longer: --wait 1800".removeprefix("; or ")
        yield Check(label, "error", line, advice)
        return
    parameters = (node.get("outputs") or {}).get("parameters") or []
    values = {item["name"]: item.get("value", "[]") for item in parameters}
    for finding in json.loads(values.get("result", "[]")):
        check = Check(**finding)
        yield check._replace(name=f"{label}: {check.name}")


def _label(scene: Scene, pod: Pod) -> str:
    given = pod.need.resources
    if pod.name == READ_BACK:
        return "next pod"
    gpus = f" {given.gpu} GPU" if given.gpu else ""
    return f"pod {given.image or scene.cluster.image}{gpus}"


def _last_attempt(workflow: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return the node of a pod: what Argo tries again has a node above those of its pods."""
    nodes = _nodes(workflow)
    found = next((n for n in nodes.values() if n.get("displayName") == name), None)
    if found is None or found.get("type") in ("Skipped", "Omitted"):
        return None
    children = [nodes[key] for key in found.get("children") or [] if key in nodes]
    pods_only = [node for node in children if str(node["displayName"]).startswith(f"{name}(")]
    return pods_only[-1] if pods_only else found


def _check_download(client: ArgoClient, scene: Scene, workflow: Mapping[str, Any]) -> Check:
    """Fetch what the last pod has left through the Argo server, as `dpaflow download` does."""
    node = _last_attempt(workflow, READ_BACK)
    name = "download"
    if node is None or node.get("phase") != "Succeeded":
        return Check(name, "unknown", "not tried: there is nothing to fetch")
    with TemporaryDirectory() as folder:
        try:
            client.artifact(workflow, node["id"], "folder", Path(folder) / "folder.tgz")
        except DPAError as error:
            advice = (
                "the Argo server reads the bucket as the owner of the token, who needs `get` on "
                f"the secret {scene.cluster.storage.secret}; see deploy/kubernetes"
            )
            return Check(name, "error", str(error), advice)
    return Check(name, "ok", "results come back through the Argo server")
