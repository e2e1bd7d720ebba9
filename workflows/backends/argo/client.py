"""What dpaflow asks of an Argo server: workflows, logs and artifacts."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workflows.backends.argo.context import Context
from workflows.backends.argo.run import LABEL_RUN, LABEL_SEQUENCE
from workflows.backends.argo.transport import ServerError, Transport

OLDEST = (3, 5)
"""Oldest version of Argo whose answers are understood."""
PROBE = "dpaflow-probe"
"""Label of the preflight's probe, which is no run."""
ALL = f"{LABEL_RUN},{LABEL_RUN}!={PROBE}"
FIELDS = ("metadata,items.metadata,items.status.phase,items.status.startedAt,"
          "items.status.finishedAt,items.status.message")  # fmt: skip
"""Of a list of workflows: not their steps, which may be megabytes."""
CHUNK = 1 << 20
Workflow = dict[str, Any]


class ArgoClient:
    """A typed layer over the Argo server's HTTP interface.

    Parameters
    ----------
    context
        The server, the namespace and who asks.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._http = Transport(context)
        self._seen: dict[str, tuple[Any, Workflow]] = {}

    def version(self) -> str:
        """Return the server's version, e.g. "v3.6.2"."""
        return str(self._http.json("GET", "/api/v1/version").get("version", "unknown"))

    def require_version(self) -> str:
        """Return the server's version.

        Raises
        ------
        ServerError
            If it is too old.
        """
        found = self.version()
        number = re.match(r"v?(\d+)\.(\d+)", found)
        if number and (int(number[1]), int(number[2])) < OLDEST:
            raise ServerError(
                f"{self.context.server} is Argo {found}; dpaflow needs v{OLDEST[0]}.{OLDEST[1]} or "
                "newer. Ask your administrator for an upgrade"
            )
        return found

    def user_info(self) -> dict[str, Any]:
        """Return whom the server takes us for."""
        return self._http.json("GET", "/api/v1/userinfo")

    def create(self, manifest: Mapping[str, Any]) -> Workflow:
        """Create a workflow; one that is there already and is the same counts as created.

        Raises
        ------
        ServerError
            Also if another workflow of this name exists.
        """
        try:
            return self._http.json("POST", self._path(), body={"workflow": manifest})
        except ServerError as error:
            if error.status != 409:
                raise
            name = manifest["metadata"]["name"]
            there = self.get(name)
            if there["spec"].get("arguments") == manifest["spec"].get("arguments"):
                return there  # an answer was lost on its way, and we asked again
            raise ServerError(
                f"workflow {name} exists already: somebody submitted the same run just now; see "
                f"`dpaflow status {there['metadata'].get('labels', {}).get(LABEL_RUN, name)}`", 409,
            ) from error  # fmt: skip

    def get(self, name: str) -> Workflow:
        """Return a workflow with the state of its steps; from the archive if it is gone.

        Raises
        ------
        ServerError
            With status 404 if it is in neither.
        """
        try:
            return unpacked(self._http.json("GET", self._path(name)))
        except ServerError as error:
            if error.status != 404:
                raise
            found = self._archived(name)
            if found is None:
                raise
            return found

    def _archived(self, name: str) -> Workflow | None:
        namespace = self.context.namespace
        query = {
            "namePrefix": name,
            "namespace": namespace,
            "listOptions.fieldSelector": f"metadata.namespace={namespace}",
        }
        try:
            listed = self._http.json("GET", "/api/v1/archived-workflows", query)
            for item in listed.get("items") or []:
                if item["metadata"]["name"] == name:
                    uid = item["metadata"]["uid"]
                    return unpacked(self._http.json("GET", f"/api/v1/archived-workflows/{uid}"))
        except ServerError:
            return None  # no archive, or not for us
        return None

    def summaries(self, run: str | None = None) -> list[Workflow]:
        """Return workflows of one run, or of all, without their steps; oldest first."""
        query = {"listOptions.labelSelector": f"{LABEL_RUN}={run}" if run else ALL,
                 "fields": FIELDS}  # fmt: skip
        found: dict[str, Workflow] = {}
        while True:
            answer = self._http.json("GET", self._path(), query)
            for item in answer.get("items") or []:
                found.setdefault(item["metadata"]["name"], item)
            token = (answer.get("metadata") or {}).get("continue")
            if not token:
                return sorted(found.values(), key=_order)
            query = {**query, "listOptions.continue": token}

    def list(self, run: str | None = None) -> list[Workflow]:
        """Return workflows as `summaries` does, but complete; what has not changed is kept."""
        result = []
        for item in self.summaries(run):
            name, mark = item["metadata"]["name"], _mark(item)
            seen = self._seen.get(name)
            if seen is None or seen[0] != mark or mark is None:
                seen = mark, self.get(name)
                self._seen[name] = seen
            result.append(seen[1])
        return result

    def retry(self, name: str) -> Workflow:
        """Run the steps of a workflow again that did not succeed."""
        return self._http.json("PUT", f"{self._path(name)}/retry", body=self._named(name))

    def stop(self, name: str, message: str = "") -> Workflow:
        """Stop a workflow: its pods are told to end."""
        body = {**self._named(name), "message": message}
        return self._http.json("PUT", f"{self._path(name)}/stop", body=body)

    def terminate(self, name: str) -> Workflow:
        """End a workflow at once."""
        return self._http.json("PUT", f"{self._path(name)}/terminate", body=self._named(name))

    def delete(self, name: str) -> None:
        """Delete a workflow."""
        self._http.json("DELETE", self._path(name))

    def pod_log(self, name: str, pod: str, tail: int | None = None) -> str:
        """Return the last lines of a pod's log, all without `tail`; "" if the pod is gone."""
        query = {"podName": pod, "logOptions.container": "main"}
        if tail:
            query["logOptions.tailLines"] = str(tail)
        response = self._http.stream("GET", f"{self._path(name)}/log", query)
        try:
            data = response.read()
        finally:
            response.release_conn()
        return "".join(f"{line}\n" for line in _contents(data.decode("utf-8", "replace")))

    def artifact(self, workflow: Mapping[str, Any], node: str, artifact: str, target: Path) -> Path:
        """Write an output artifact of a node to a file, as it lies in the bucket.

        Parameters
        ----------
        workflow
            The workflow.
        node, artifact
            Id of the node, name of the artifact.
        target
            Appears when it is complete.

        Raises
        ------
        ServerError
            If the server has no such artifact, or the bucket no such object.
        """
        meta = workflow["metadata"]
        places = [("workflows", meta["name"]), ("archived-workflows", meta.get("uid", ""))]
        for kind, name in places:
            path = f"/artifact-files/{self.context.namespace}/{kind}/{name}/{node}/outputs/"
            try:
                response = self._http.stream("GET", path + artifact)
                break
            except ServerError as error:
                # the server says 500 to whatever it does not find
                if kind == places[-1][0] or error.status not in (404, 500):
                    raise
        return _save(response, target)

    def _path(self, name: str | None = None) -> str:
        path = f"/api/v1/workflows/{self.context.namespace}"
        return path if name is None else f"{path}/{name}"

    def _named(self, name: str) -> dict[str, str]:
        return {"name": name, "namespace": self.context.namespace}


def _order(workflow: Mapping[str, Any]) -> tuple[str, int, str]:
    labels = workflow["metadata"].get("labels") or {}
    sequence = str(labels.get(LABEL_SEQUENCE, ""))
    number = int(sequence) if sequence.isdigit() else 0
    return labels.get(LABEL_RUN, ""), number, workflow["metadata"]["name"]


def _mark(workflow: Mapping[str, Any]) -> Any:
    """Return what changes with every change of a workflow; None if the server does not tell."""
    meta = workflow["metadata"]
    version = meta.get("resourceVersion")
    return None if not version else (meta.get("uid"), version)


def unpacked(workflow: Workflow) -> Workflow:
    """Return a workflow whose steps are readable: Argo compresses those of large ones."""
    status = workflow.get("status") or {}
    packed = status.get("compressedNodes")
    if not packed:
        return workflow
    try:
        nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
    except (binascii.Error, OSError, EOFError, ValueError) as error:
        name = workflow.get("metadata", {}).get("name", "?")
        raise ServerError(f"workflow {name}: its compressed steps cannot be read") from error
    kept = {key: value for key, value in status.items() if key != "compressedNodes"}
    return {**workflow, "status": {**kept, "nodes": nodes}}


def _contents(text: str) -> Iterator[str]:
    """Yield the lines of a log, which come as one JSON object each."""
    for line in text.splitlines():
        try:
            entry = json.loads(line.removeprefix("data: "))
        except ValueError:
            continue
        result = entry.get("result") if isinstance(entry, dict) else None
        if isinstance(result, dict) and "content" in result:
            yield str(result["content"]).rstrip("\n")


def _save(response: Any, target: Path) -> Path:
    import urllib3

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            for chunk in response.stream(CHUNK, decode_content=False):
                file.write(chunk)
        part.replace(target)
    except urllib3.exceptions.HTTPError as error:
        raise ServerError(f"{target.name}: the download broke off; try again ({error})") from error
    finally:
        part.unlink(missing_ok=True)
        response.release_conn()
    return target
