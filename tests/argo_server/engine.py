"""The controller: runs workflows, one thread each, and the verbs with which users interfere."""

from __future__ import annotations

import copy
import json
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from tests.argo_server.nodes import BAD, FULFILLED, Node, Tree, hashed, now
from tests.argo_server.pods import Cluster, Pod
from tests.argo_server.tasks import DEADLINE, Life
from tests.argo_server.validate import depends_of

PHASE, COMPLETED = "workflows.argoproj.io/phase", "workflows.argoproj.io/completed"


class Conflict(Exception):
    """What is asked for does not fit the state of the workflow."""


class Engine:
    """All workflows of a namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.workflows: dict[str, Controller] = {}
        self.archive: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        """Every pod there ever was, by name."""
        self.lock = threading.RLock()

    def create(self, workflow: Mapping[str, Any]) -> Node:
        """Take a workflow that has been checked, and start it."""
        workflow = copy.deepcopy(dict(workflow))
        metadata = workflow["metadata"]
        with self.lock:
            if not metadata.get("name"):
                metadata["name"] = f"{metadata['generateName']}{uuid.uuid4().hex[:5]}"
            if metadata["name"] in self.workflows:
                raise Conflict(f'workflows.argoproj.io "{metadata["name"]}" already exists')
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            metadata.setdefault("namespace", "dpaflow")
            metadata.setdefault("labels", {})["workflows.argoproj.io/creator"] = "stub"
            workflow["status"] = {"phase": "", "nodes": {}}
            controller = Controller(self, workflow)
            self.workflows[metadata["name"]] = controller
            answer = controller.snapshot()
        controller.start()
        return answer

    def delete(self, name: str) -> None:
        """Forget a workflow; finished ones stay in the archive."""
        with self.lock:
            controller = self.workflows.pop(name)
        controller.end("Terminate")
        for pod in self.pods_of(name):
            pod.clean()

    def pods_of(self, name: str) -> list[Pod]:
        """Return the pods of a workflow, oldest first."""
        return [pod for pod in list(self.pods.values()) if pod.key.startswith(f"{name}/")]

    def pod(self, shown: str) -> Pod:
        """Return the newest pod that the dashboard shows as `shown`, such as "train-m0(1)"."""
        return next(pod for pod in reversed(list(self.pods.values())) if pod.shown == shown)

    def close(self) -> None:
        """End everything."""
        for controller in list(self.workflows.values()):
            controller.end("Terminate")
        for controller in list(self.workflows.values()):
            controller.join()


class Controller:
    """One workflow."""

    def __init__(self, engine: Engine, workflow: Node) -> None:
        self.engine, self.workflow = engine, workflow
        self.spec, self.status = workflow["spec"], workflow["status"]
        self.tree = Tree(workflow)
        self.changed = threading.Condition(engine.lock)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.lives: dict[str, threading.Thread] = {}
        self.running: dict[str, Pod] = {}
        self.shutdown = ""
        self.version, self.seen = 1, ""

    def start(self) -> None:
        self.thread.start()

    def join(self) -> None:
        for thread in [*self.lives.values(), self.thread]:
            if thread.is_alive():
                thread.join(60)

    def snapshot(self) -> Node:
        """Return the workflow as it is now; its version tells whether it has changed."""
        with self.changed:
            text = json.dumps(self.workflow)
            if text != self.seen:
                self.version, self.seen = self.version + 1, text
        found: Node = json.loads(text)
        found["metadata"]["resourceVersion"] = str(self.version)
        return found

    def end(self, strategy: str) -> None:
        """Stop or terminate: pods are told to end, nothing new is started."""
        with self.changed:
            if self.status["phase"] in FULFILLED:
                return
            self.shutdown = strategy
            if strategy != DEADLINE:
                self.spec["shutdown"] = strategy
            for pod in self.running.values():
                pod.stopped.set()
            self.changed.notify_all()

    def retry(self) -> None:
        """Do again what failed, and what was left out because of it."""
        with self.changed:
            if self.status["phase"] not in BAD:
                raise Conflict(f"Cannot retry a workflow in phase {self.status['phase']}")
            for name in self.tree.forget_failed():
                self._delete_pod(name)
            root = self.tree.nodes.get(self.tree.root)
            if root is not None:
                root |= {"phase": "Running", "startedAt": now(), "finishedAt": None, "message": ""}
            self.spec.pop("shutdown", None)
            self.shutdown = ""
            self.lives.clear()
            self._mark("Running", "")
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.start()

    def _delete_pod(self, node: str) -> None:
        for pod in self.engine.pods_of(self.tree.root):
            if pod.name.endswith(f"-{hashed(node)}"):
                pod.clean()
                del self.engine.pods[pod.name]

    def _run(self) -> None:
        limit = self.spec.get("activeDeadlineSeconds")
        deadline = None if limit is None else time.monotonic() + float(limit)
        with self.changed:
            self.status.setdefault("startedAt", now())
            self._mark("Running", "")
            if self.tree.is_dag and self.tree.root not in self.tree.nodes:
                self.tree.add(self.tree.root, self.tree.root, "DAG", self.spec["entrypoint"])
            while not self._advance():
                if deadline is not None and time.monotonic() > deadline and not self.shutdown:
                    self.end(DEADLINE)
                self.changed.wait(0.05)
            self._finish()

    def _advance(self) -> bool:
        """Start what may start; return whether all has come to an end."""
        nothing_new = self._nothing_new()
        for task in self.tree.tasks:
            name = task["name"]
            if name in self.lives or self.tree.phase(name) in FULFILLED or nothing_new:
                continue
            depends = depends_of(task)
            phases = {other: self.tree.phase(other) for other in depends.tasks}
            if not all(phase in FULFILLED for phase in phases.values()):
                continue
            if not depends.holds(phases):
                self.tree.omit(task)
                return self._advance()
            if not self._full():
                self.lives[name] = threading.Thread(target=Life(self, task).run, daemon=True)
                self.lives[name].start()
        if any(self.tree.phase(name) not in FULFILLED for name in self.lives):
            return False
        return nothing_new or all(self.tree.phase(t["name"]) in FULFILLED for t in self.tree.tasks)

    def _nothing_new(self) -> bool:
        fast = self.tree.is_dag and self.tree.entry["dag"].get("failFast", True)
        failed = any(self.tree.phase(task["name"]) in BAD for task in self.tree.tasks)
        return bool(self.shutdown) or (fast and failed)

    def _full(self) -> bool:
        busy = sum(self.tree.phase(name) not in FULFILLED for name in self.lives)
        inner = self.tree.entry.get("parallelism") if self.tree.is_dag else None
        return any(n is not None and busy >= n for n in (self.spec.get("parallelism"), inner))

    def _finish(self) -> None:
        phase = "Failed" if self.shutdown else self.tree.result()
        message = ""
        if self.shutdown == DEADLINE:
            message = "Step exceeded its deadline"
        elif self.shutdown:
            message = f"Stopped with strategy '{self.shutdown}'"
        elif not self.tree.is_dag:
            message = self.tree.nodes[self.tree.root].get("message", "")
        if self.tree.is_dag:
            self.tree.nodes[self.tree.root] |= {"phase": phase, "finishedAt": now()}
        self._mark(phase, message)
        strategy = self.spec.get("podGC", {}).get("strategy", "")
        if strategy == "OnWorkflowCompletion" or (strategy, phase) == (
            "OnWorkflowSuccess", "Succeeded"
        ):  # fmt: skip
            for pod in self.engine.pods_of(self.tree.root):
                pod.clean()
        self.engine.archive[self.workflow["metadata"]["uid"]] = self.snapshot()

    def _mark(self, phase: str, message: str) -> None:
        ended = phase in FULFILLED
        self.status |= {"phase": phase, "message": message, "finishedAt": now() if ended else None}
        labels = self.workflow["metadata"]["labels"]
        labels |= {PHASE: phase, COMPLETED: str(ended).lower()}
