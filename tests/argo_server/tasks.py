"""One task of a workflow: its attempts, and what decides about another one."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tests.argo_server.expressions import ExpressionError, evaluate, substitute
from tests.argo_server.nodes import BAD, Node, hashed, now
from tests.argo_server.pods import Ended, Pod
from tests.argo_server.podspec import pod_spec

if TYPE_CHECKING:
    from tests.argo_server.engine import Controller

LONGEST_BACKOFF = 0.1
"""Seconds; tests have no patience."""
UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DEADLINE = "deadline"
"""How a workflow is shut down that took too long."""


def seconds(text: Any) -> float:
    """Return a duration of Go, such as 1h30m, in seconds; a plain number is seconds."""
    parts = re.findall(r"([\d.]+)(ms|s|m|h|d)?", str(text))
    return sum(float(number) * UNITS[unit or "s"] for number, unit in parts)


class Life:
    """A task from its first pod to its end; runs in a thread of its own."""

    def __init__(self, controller: Controller, task: Node) -> None:
        self.controller, self.task = controller, task
        self.tree, self.lock = controller.tree, controller.changed
        self.name = self.tree.name(task["name"])

    def run(self) -> None:
        """Live."""
        try:
            with self.lock:
                template = self.tree.resolved(self.task)
            if strategy := template.get("retryStrategy") or self.tree.spec.get("retryStrategy"):
                self._attempts(template, strategy)
            else:
                with self.lock:
                    node = self._node(self.name, self.task["name"], "Pod", template)
                    self.tree.hang(node, self.task)
                self._attempt(template, node, {})
        except Exception as error:  # noqa: BLE001  (whatever it is, the task has to end)
            with self.lock:
                node = self.tree.find(self.task["name"])
                if node is None:
                    node = self._node(self.name, self.task["name"], "Skipped", {})
                    self.tree.hang(node, self.task)
                node |= {"phase": "Error", "message": repr(error), "finishedAt": now()}
        with self.lock:
            self.lock.notify_all()

    def _node(self, name: str, shown: str, kind: str, template: Node) -> Node:
        return self.tree.add(name, shown, kind, self.task["template"], template.get("inputs"))

    def _attempts(self, template: Node, strategy: Node) -> None:
        with self.lock:
            parent = self._node(self.name, self.task["name"], "Retry", template)
            self.tree.hang(parent, self.task)
        last = {"exitCode": "0", "status": "", "message": "", "duration": "0"}
        for number in range(1000):
            with self.lock:
                end = f"({number})"
                node = self._node(self.name + end, self.task["name"] + end, "Pod", template)
                node["nodeFlag"] = {"retried": True}
                parent.setdefault("children", []).append(node["id"])
            begin = time.monotonic()
            ended = self._attempt(template, node, _scope(number, last))
            last = {"exitCode": "-1" if ended.exit_code is None else str(ended.exit_code),
                    "status": ended.phase, "message": ended.message,
                    "duration": str(time.monotonic() - begin)}  # fmt: skip
            reason = self._no_more(strategy, _scope(number, last), number + 1, ended)
            if reason is not None:
                with self.lock:
                    parent |= {"phase": ended.phase, "message": reason, "finishedAt": now(),
                               "outputs": copy.deepcopy(node.get("outputs", {}))}  # fmt: skip
                return
            pause = seconds(strategy.get("backoff", {}).get("duration", 0))
            time.sleep(min(LONGEST_BACKOFF, pause))

    def _no_more(
        self, strategy: Node, scope: Mapping[str, str], attempts: int, ended: Ended
    ) -> str | None:
        """Return why a step is not tried again, None if it is."""
        if ended.phase == "Succeeded":
            return ""
        if self.controller.shutdown == DEADLINE:
            return "retry exceeded workflow deadline"
        if self.controller.shutdown:
            return f"Stopped with strategy '{self.controller.shutdown}'"
        expression = strategy.get("expression", "")
        policy = strategy.get("retryPolicy") or ("Always" if expression else "OnFailure")
        wanted = {"Always": BAD, "OnFailure": ("Failed",), "OnError": ("Error",)}.get(policy, ())
        if ended.phase not in wanted:
            return ended.message
        if strategy.get("limit") is not None and attempts > int(strategy["limit"]):
            return "No more retries left"
        if expression and not evaluate(expression, scope):
            return "retryStrategy.expression evaluated to false"
        return None

    def _attempt(self, template: Node, node: Node, scope: Mapping[str, str]) -> Ended:
        controller, workflow = self.controller, self.tree.root
        name = f"{workflow}-{self.task['template']}"[:240] + f"-{hashed(node['name'])}"
        template = substitute(template, {**scope, "pod.name": name})
        if "{{=" in str(template.get("podSpecPatch", "")):
            raise ExpressionError(f"failed to evaluate expression in {template['podSpecPatch']}")
        limit = template.get("activeDeadlineSeconds") or template.get("timeout")
        pod = Pod(
            name=name, shown=node["displayName"], template=template,
            spec=pod_spec(self.tree.workflow, template), key=f"{workflow}/{name}",
            cluster=controller.engine.cluster,
            deadline=None if limit is None else time.monotonic() + seconds(limit),
        )  # fmt: skip
        with self.lock:
            controller.engine.pods[name] = controller.running[name] = pod
            node |= {"phase": "Pending", "startedAt": now()}
            if controller.shutdown:
                pod.stopped.set()
        try:
            ended = pod.run(self._tell(node))
        finally:
            with self.lock:
                del controller.running[name]
        with self.lock:
            self._record(node, pod, ended)
        return ended

    def _tell(self, node: Node) -> Callable[[str], None]:
        def tell(reason: str) -> None:
            with self.lock:
                node.update(phase="Pending" if reason else "Running", message=reason)

        return tell

    def _record(self, node: Node, pod: Pod, ended: Ended) -> None:
        spec, shutdown = self.tree.spec, self.controller.shutdown
        if pod.stopped.is_set() and ended.phase != "Succeeded":
            late = shutdown == DEADLINE
            ended.phase = "Failed"
            ended.message = ("Step exceeded its deadline" if late
                             else f"workflow shutdown with strategy:  {shutdown}")  # fmt: skip
        outputs: Node = {"artifacts": ended.artifacts, "parameters": ended.parameters}
        if ended.exit_code is not None:
            outputs["exitCode"] = str(ended.exit_code)
        if spec.get("archiveLogs") and pod.log.is_file():
            key = f"{pod.key}/main.log"
            pod.cluster.store.put(key, pod.log.read_bytes())
            outputs["artifacts"].append({"name": "main-logs", "s3": {"key": key}})
        node |= {
            "phase": ended.phase, "message": ended.message, "finishedAt": now(), "progress": "1/1",
            "outputs": {k: v for k, v in outputs.items() if v}, "hostNodeName": "stub-node",
        }  # fmt: skip
        collect = spec.get("podGC", {})
        strategy = collect.get("strategy", "")
        good = ended.phase == "Succeeded"
        wanted = strategy == "OnPodCompletion" or (strategy == "OnPodSuccess" and good)
        if wanted and not seconds(collect.get("deleteDelayDuration", 0)):
            pod.clean()


def _scope(number: int, last: Mapping[str, str]) -> dict[str, str]:
    return {"retries": str(number), **{f"lastRetry.{k}": v for k, v in last.items()}}
