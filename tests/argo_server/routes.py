"""What the servers answer; importing this fills the tables of `server`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.argo_server.faults import Fault
from tests.argo_server.nodes import Node
from tests.argo_server.pods import Pod
from tests.argo_server.server import (
    ARCHIVED,
    ARGO,
    CUSTOM,
    KUBERNETES,
    NAME,
    TYPES,
    VERSION,
    WORKFLOWS,
    Answer,
    ArgoServer,
    Request,
    accepted,
    cleaned,
    route,
    selected,
)
from tests.argo_server.validate import check


@route(ARGO, "GET", "/api/v1/version", "get")
def version(server: ArgoServer, request: Request) -> Node:
    return {"version": VERSION, "buildDate": "2026-01-01T00:00:00Z", "platform": "linux/amd64"}


@route(ARGO, "GET", "/api/v1/info", "get")
def info(server: ArgoServer, request: Request) -> Node:
    return {"managedNamespace": server.namespace, "links": [], "columns": []}


@route(ARGO, "GET", "/api/v1/userinfo", "get")
def user_info(server: ArgoServer, request: Request) -> Node:
    return {"issuer": "argo-server", "subject": f"system:serviceaccount:{server.namespace}:user",
            "serviceAccountName": "user", "serviceAccountNamespace": server.namespace}  # fmt: skip


@route(ARGO, "POST", WORKFLOWS, "create")
def create(server: ArgoServer, request: Request, namespace: str) -> Node:
    workflow = request.body.get("workflow")
    if not isinstance(workflow, dict):
        raise Answer(400, "no workflow in the request")
    if request.body.get("serverDryRun"):
        check(workflow)
        return workflow
    return accepted(server, workflow, namespace)


@route(ARGO, "POST", f"{WORKFLOWS}/lint", "create")
def lint(server: ArgoServer, request: Request, namespace: str) -> Node:
    check(request.body["workflow"])
    return request.body["workflow"]


@route(ARGO, "GET", WORKFLOWS, "list")
def listing(server: ArgoServer, request: Request, namespace: str) -> Node:
    items = selected(server, request.query.get("listOptions.labelSelector", ""))
    begin = int(request.query.get("listOptions.continue") or 0)
    limit = int(request.query.get("listOptions.limit") or 0) or len(items)
    rest = len(items) > begin + limit
    metadata = {"resourceVersion": "1", **({"continue": str(begin + limit)} if rest else {})}
    found = {"metadata": metadata, "items": items[begin : begin + limit] or None}
    return cleaned(found, request.query.get("fields", ""))


@route(ARGO, "GET", f"{WORKFLOWS}/{NAME}", "get")
def get(server: ArgoServer, request: Request, namespace: str, name: str) -> Node:
    return cleaned(server.controller(namespace, name).snapshot(), request.query.get("fields", ""))


@route(ARGO, "DELETE", f"{WORKFLOWS}/{NAME}", "delete")
def delete(server: ArgoServer, request: Request, namespace: str, name: str) -> Node:
    server.controller(namespace, name)
    server.engine.delete(name)
    return {}


@route(ARGO, "PUT", f"{WORKFLOWS}/{NAME}/(retry|stop|terminate|resubmit)", "update")
def change(server: ArgoServer, request: Request, namespace: str, name: str, verb: str) -> Node:
    controller = server.controller(namespace, name)
    if verb == "resubmit":
        workflow = controller.snapshot()
        label = {"workflows.argoproj.io/resubmitted-from-workflow": name}
        labels = {k: v for k, v in workflow["metadata"]["labels"].items()
                  if not k.startswith("workflows.argoproj.io/")}  # fmt: skip
        metadata = {"name": f"{name}-{uuid.uuid4().hex[:5]}", "labels": labels | label,
                    "annotations": workflow["metadata"].get("annotations", {})}  # fmt: skip
        spec = {k: v for k, v in workflow["spec"].items() if k != "shutdown"}
        return accepted(server, {**{k: workflow[k] for k in ("apiVersion", "kind")},
                                 "metadata": metadata, "spec": spec}, namespace)  # fmt: skip
    if verb == "retry":
        controller.retry()
    else:
        if controller.status["phase"] in ("Succeeded", "Failed", "Error"):
            raise Answer(400, f'cannot shutdown a completed workflow: workflow: "{name}"')
        controller.end(verb.capitalize())
    return controller.snapshot()


@route(ARGO, "GET", f"{WORKFLOWS}/{NAME}/(?:{NAME}/)?log", "get")
def log(
    server: ArgoServer, request: Request, namespace: str, name: str, pod: str | None
) -> tuple[str, Iterator[bytes]]:
    server.controller(namespace, name)
    wanted = pod or request.query.get("podName")
    tail = int(request.query.get("logOptions.tailLines") or 0)

    def lines() -> Iterator[bytes]:
        for found in server.engine.pods_of(name):
            if wanted not in (None, "", found.name) or found.removed or not found.log.is_file():
                continue
            text = found.log.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in text[-tail:]:
                entry = {"result": {"content": line, "podName": found.name}}
                yield json.dumps(entry).encode() + b"\n"

    return "application/json", lines()


@route(ARGO, "GET", ARCHIVED, "list")
def archived(server: ArgoServer, request: Request) -> Node:
    items = [w for w in server.engine.archive.values()
             if w["metadata"]["name"].startswith(request.query.get("namePrefix", ""))]  # fmt: skip
    keys = ("phase", "startedAt", "finishedAt", "message")
    brief = [{"metadata": w["metadata"], "status": {k: w["status"].get(k) for k in keys}}
             for w in items]  # fmt: skip
    return {"metadata": {}, "items": brief or None}


@route(ARGO, "GET", f"{ARCHIVED}/([-0-9a-f]+)", "get")
def archived_one(server: ArgoServer, request: Request, uid: str) -> Node:
    if uid not in server.engine.archive:
        raise Answer(404, "not found")
    return server.engine.archive[uid]


FILES = f"/artifact-files/{NAME}/(workflows|archived-workflows)/{NAME}/{NAME}/outputs/(.+)"


@route(ARGO, "GET", FILES, "get")
def artifact_file(
    server: ArgoServer, request: Request, namespace: str, kind: str, name: str, node: str, rest: str
) -> tuple[str, bytes]:
    if kind == "workflows":
        workflow = server.controller(namespace, name).snapshot()
    else:
        workflow = archived_one(server, request, name)
    wanted, _, inside = rest.partition("/")
    outputs = workflow["status"]["nodes"].get(node, {}).get("outputs", {})
    found = next((a for a in outputs.get("artifacts", ()) if a["name"] == wanted), None)
    if found is None:
        raise Answer(500, "Artifact server returned internal error")
    key = found["s3"]["key"] + (f"/{inside}" if inside else "")
    content = server.cluster.store.get(key)
    if content is not None:
        return TYPES.get(Path(key).suffix, "application/octet-stream"), content
    names = server.cluster.store.keys(f"{key}/")
    if not names:
        raise Answer(500, "Artifact server returned internal error")
    links = "".join(f'<a href="./{n.removeprefix(f"{key}/")}">{n}</a>' for n in names)
    return TYPES[".html"], f"<html><body>{links}</body></html>".encode()


@route(KUBERNETES, "GET", f"{CUSTOM}/{NAME}", "get")
def custom_get(server: ArgoServer, request: Request, namespace: str, name: str) -> Any:
    return server.controller(namespace, name).snapshot()


PODS = f"/api/v1/namespaces/{NAME}/pods"


def _pod(pod: Pod, node: str) -> Node:
    alive = pod.process is not None and pod.process.poll() is None
    workflow = pod.key.partition("/")[0]
    metadata = {"name": pod.name, "labels": {"workflows.argoproj.io/workflow": workflow},
                "annotations": {"workflows.argoproj.io/node-name": node}}  # fmt: skip
    status = {"phase": "Running" if alive else "Succeeded" if pod.process else "Pending"}
    return {"metadata": metadata, "spec": {"containers": [{"name": "main"}]}, "status": status}


@route(KUBERNETES, "GET", PODS, "list")
def pods(server: ArgoServer, request: Request, namespace: str) -> Node:
    workflow = request.query["labelSelector"].partition("=")[2]
    found = server.engine.pods_of(workflow)
    items = [_pod(pod, f"{workflow}.{pod.shown}") for pod in found if not pod.removed]
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}


@route(KUBERNETES, "DELETE", f"{PODS}/{NAME}", "delete")
def delete_pod(server: ArgoServer, request: Request, namespace: str, name: str) -> Node:
    pod = server.engine.pods.get(name)
    if pod is None:
        raise Answer(404, f'pods "{name}" not found')
    server.cluster.faults.append(Fault(pod.shown, "delete"))
    return _pod(pod, "")


@route(KUBERNETES, "POST", CUSTOM, "create")
def custom_create(server: ArgoServer, request: Request, namespace: str) -> Any:
    return accepted(server, request.body, namespace)
