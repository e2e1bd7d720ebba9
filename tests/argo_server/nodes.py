"""The status of a workflow: its nodes as the real controller names and connects them.

A task is a node of type Retry above one Pod node for each attempt, or a Pod node if it has no
retry strategy; what depends on it hangs below its last pod.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.argo_server.expressions import substitute
from tests.argo_server.validate import depends_of

FULFILLED = ("Succeeded", "Failed", "Error", "Skipped", "Omitted")
BAD = ("Failed", "Error")
Node = dict[str, Any]


def now() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hashed(text: str) -> int:
    """Return the 32-bit FNV-1a hash, from which Argo makes ids."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


class Tree:
    """The nodes of a workflow whose entrypoint is a DAG, or a single script."""

    def __init__(self, workflow: Node) -> None:
        self.workflow = workflow
        self.spec = workflow["spec"]
        self.root = workflow["metadata"]["name"]
        self.nodes: dict[str, Node] = workflow["status"]["nodes"]
        self.templates = {t["name"]: t for t in self.spec["templates"]}
        self.entry = self.templates[self.spec["entrypoint"]]
        self.is_dag = "dag" in self.entry
        single = [{"name": self.root, "template": self.entry["name"]}]
        self.tasks: list[Node] = self.entry["dag"]["tasks"] if self.is_dag else single

    def name(self, task: str) -> str:
        """Return the full name of a task's node."""
        return f"{self.root}.{task}" if self.is_dag else self.root

    def id(self, name: str) -> str:
        """Return the id of the node with a full name."""
        return self.root if name == self.root else f"{self.root}-{hashed(name)}"

    def find(self, task: str) -> Node | None:
        """Return the node of a task if there is one."""
        return self.nodes.get(self.id(self.name(task)))

    def phase(self, task: str) -> str:
        """Return the phase of a task, "" before it has a node."""
        return str((self.find(task) or {}).get("phase", ""))

    def add(
        self, name: str, shown: str, kind: str, template: str,
        inputs: Mapping[str, Any] | None = None,
    ) -> Node:  # fmt: skip
        """Add a node."""
        node: Node = {
            "id": self.id(name), "name": name, "displayName": shown, "type": kind,
            "templateName": template, "templateScope": f"local/{self.root}",
            "phase": "Pending" if kind == "Pod" else "Running", "startedAt": now(),
            "finishedAt": None,
        }  # fmt: skip
        if name != self.root:
            node["boundaryID"] = self.root
        if inputs:
            node["inputs"] = copy.deepcopy(dict(inputs))
        self.nodes[node["id"]] = node
        return node

    def hang(self, node: Node, task: Node) -> None:
        """Put a task below the last pods of those it depends on, or below the DAG."""
        if not self.is_dag:
            return
        above = [self.find(name) for name in sorted(depends_of(task).tasks)]
        for parent in above or [self.nodes[self.root]]:
            if parent is not None and parent["type"] == "Retry" and parent.get("children"):
                parent = self.nodes[parent["children"][-1]]
            if parent is not None:
                parent.setdefault("children", []).append(node["id"])

    def omit(self, task: Node) -> None:
        """Leave a task out, as what it depends on came to another end."""
        node = self.add(self.name(task["name"]), task["name"], "Skipped", task["template"])
        node |= {"phase": "Omitted", "message": "omitted: depends condition not met",
                 "finishedAt": now()}  # fmt: skip
        self.hang(node, task)

    def result(self) -> str:
        """Return the phase of the DAG: that of the tasks on which no other depends."""
        needed = set().union(*(depends_of(t).tasks for t in self.tasks))
        leaves = [self._branch(t["name"]) for t in self.tasks if t["name"] not in needed]
        return next((phase for phase in leaves if phase in BAD), "Succeeded")

    def _branch(self, task: str) -> str:
        """A task that was left out counts as what it depended on."""
        phase = self.phase(task)
        if phase not in ("Omitted", "Skipped"):
            return phase
        above = depends_of(next(t for t in self.tasks if t["name"] == task)).tasks
        found = [self._branch(name) for name in above]
        return next((p for p in found if p in BAD), "Succeeded")

    def forget_failed(self) -> list[str]:
        """Remove the nodes that a retry does again, and return their full names.

        A failed step on which one depends that succeeded is left as it is.
        """
        again = [n for n in self.nodes.values() if n.get("boundaryID") and self._again(n)]
        for node in again:
            del self.nodes[node["id"]]
        for node in self.nodes.values():
            node["children"] = [c for c in node.get("children", []) if c in self.nodes]
        return [node["name"] for node in again]

    def _again(self, node: Node) -> bool:
        if node["phase"] in ("Omitted", "Skipped"):
            return True
        if node.get("nodeFlag", {}).get("retried"):
            node = next(n for n in self.nodes.values() if node["id"] in n.get("children", []))
        return node["phase"] in BAD and not self._succeeded_below(node)

    def _succeeded_below(self, node: Node) -> bool:
        below = (self.nodes[c] for c in node.get("children", []) if c in self.nodes)
        return any(n["phase"] == "Succeeded" or self._succeeded_below(n) for n in below)

    def resolved(self, task: Node) -> Node:
        """Return a task's template with its arguments and the workflow's in place."""
        template = copy.deepcopy(self.templates[task["template"]])
        scope = self._globals()
        arguments, inputs = task.get("arguments", {}), template.get("inputs", {})
        given = {p["name"]: substitute(str(p.get("value", "")), {**scope, **self._results()})
                 for p in arguments.get("parameters", ())}  # fmt: skip
        for parameter in inputs.get("parameters", ()):
            value = given.get(parameter["name"], parameter.get("value", parameter.get("default")))
            if value is None or re.search(r"\{\{=?tasks", value):
                raise ValueError(f"failed to resolve input parameter {parameter['name']}: {value}")
            parameter["value"] = scope[f"inputs.parameters.{parameter['name']}"] = value
        sources = {a["name"]: a for a in arguments.get("artifacts", ())}
        for number, artifact in enumerate(inputs.get("artifacts", ())):
            inputs["artifacts"][number] = self._sourced(artifact, sources.get(artifact["name"], {}))
            scope[f"inputs.artifacts.{artifact['name']}.path"] = artifact["path"]
        found: Node = substitute(template, scope)
        return found

    def _globals(self) -> dict[str, str]:
        metadata = self.workflow["metadata"]
        arguments = self.spec.get("arguments", {}).get("parameters", ())
        scope = {f"workflow.parameters.{p['name']}": str(p["value"]) for p in arguments}
        for kind in ("labels", "annotations"):
            scope |= {f"workflow.{kind}.{k}": v for k, v in metadata.get(kind, {}).items()}
        return scope | {
            "workflow.name": self.root, "workflow.uid": metadata["uid"],
            "workflow.namespace": metadata.get("namespace", ""),
            "workflow.serviceAccountName": self.spec.get("serviceAccountName", "default"),
            "workflow.creationTimestamp": metadata["creationTimestamp"],
        }  # fmt: skip

    def _results(self) -> dict[str, str]:
        return {
            f"tasks.{node['displayName']}.outputs.parameters.{parameter['name']}": parameter[
                "value"
            ]
            for node in self.nodes.values()
            for parameter in node.get("outputs", {}).get("parameters", ())
        }

    def _sourced(self, artifact: Node, argument: Node) -> Node:
        """Give an input artifact the place of the output it comes from."""
        argument = dict(argument)
        if source := argument.pop("from", None):
            match = re.fullmatch(r"\{\{tasks\.([-\w]+)\.outputs\.artifacts\.([-\w]+)\}\}", source)
            outputs = (self.find(match[1]) or {}).get("outputs", {}) if match else {}
            found = next((a for a in outputs.get("artifacts", ()) if a["name"] == match[2]), None)
            if found is None:
                if artifact.get("optional") or argument.get("optional"):
                    return artifact
                raise ValueError(f"Unable to resolve: {source}")
            argument = {k: v for k, v in found.items() if k not in ("path", "optional", "mode")}
        return {**artifact, **argument, "name": artifact["name"], "path": artifact["path"]}
