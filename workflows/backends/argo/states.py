"""States of the steps of a run, out of all its workflows.

A run is a series of workflows (see `workflows.backends.argo.run`). A step succeeded if any of
them finished it with the settings and inputs of the plan, which its fingerprint stands for;
whatever else is to be said about it, the newest workflow says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ops.base import State, Status
from workflows.backends.argo.harden import ANNOTATIONS
from workflows.backends.argo.reasons import KINDS, exit_code, explain, own_text
from workflows.backends.argo.render import fingerprint_of
from workflows.backends.argo.run import ADVANCE, ENDED, Run
from workflows.concurrent_learning import decide_key
from workflows.graph import Node
from workflows.run_folder import StepState

ATTEMPT = re.compile(r"\((\d+)\)$")
SLOW = 60.0
"""Seconds that a pod may take to start before something is said about it."""
NodeStatus = dict[str, Any]
Workflow = Mapping[str, Any]


class Attempts(NamedTuple):
    """What a workflow says about one step.

    Attributes
    ----------
    node
        The node of the step: of type Retry, or Pod if it is tried once only.
    pods
        Its pods, oldest first.
    workflow
        Where it runs.
    """

    node: NodeStatus
    pods: list[NodeStatus]
    workflow: Workflow

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded, Failed, Error, Skipped or Omitted."""
        return str(self.node.get("phase") or "Pending")

    @property
    def pod(self) -> NodeStatus:
        """The latest pod; the step's node if it has none."""
        return self.pods[-1] if self.pods else self.node

    @property
    def outputs(self) -> NodeStatus:
        """The node that has the outputs: some versions of Argo leave them at the pod."""
        return self.node if (self.node.get("outputs") or {}).get("artifacts") else self.pod


def attempts(workflow: Workflow) -> dict[str, Attempts]:
    """Return what a workflow says about its steps, by key."""
    nodes: dict[str, NodeStatus] = (workflow.get("status") or {}).get("nodes") or {}
    ours = [node for node in nodes.values() if node.get("type") in ("Retry", "Pod")]
    heads = tuple(f"{node['displayName']}(" for node in ours if node["type"] == "Retry")
    found = {}
    for node in ours:
        key = str(node["displayName"])
        if node["type"] == "Retry":  # steps that follow may be children, too
            below = (nodes.get(child, {}) for child in node.get("children") or [])
            pods = [pod for pod in below if str(pod.get("displayName")).startswith(f"{key}(")]
            found[key] = Attempts(node, sorted(pods, key=_number), workflow)
        elif not key.startswith(heads):
            found[key] = Attempts(node, [node], workflow)
    return found


def _number(pod: NodeStatus) -> int:
    match = ATTEMPT.search(str(pod.get("displayName")))
    return int(match[1]) if match else 0


def finished(workflows: Sequence[Workflow]) -> dict[str, str]:
    """Return the fingerprint of every step that succeeded, by key; the newest counts."""
    found = {}
    for workflow in workflows:
        for key, step in attempts(workflow).items():
            fingerprint = fingerprint_of(step.outputs)
            if step.phase == "Succeeded" and fingerprint:
                found[key] = fingerprint
    return found


def decisions(workflows: Sequence[Workflow]) -> dict[str, dict[str, Any]]:
    """Return what every deciding step decided, by key; the newest counts."""
    found = {}
    for workflow in workflows:
        for key, step in attempts(workflow).items():
            if step.phase == "Succeeded" and (result := _result(step)):
                found[key] = result
    return found


def _result(step: Attempts) -> dict[str, Any]:
    for node in (step.node, step.pod):
        for parameter in (node.get("outputs") or {}).get("parameters") or []:
            if parameter.get("name") == "result":
                try:
                    found = json.loads(parameter.get("value") or "{}")
                except ValueError:
                    return {}
                return found if isinstance(found, dict) and "go" in found else {}
    return {}


class Carried(NamedTuple):
    """What a workflow took over from earlier ones of its run, which may be deleted by now.

    Attributes
    ----------
    steps
        Finished steps, key -> fingerprint.
    decisions
        What was decided, by key.
    """

    steps: Mapping[str, str] = {}
    decisions: Mapping[str, dict[str, Any]] = {}


def carried(workflow: Workflow, run: Run, prints: Mapping[str, str]) -> Carried:
    """Return what a workflow took over; nothing if results are deleted with their workflows.

    Parameters
    ----------
    workflow, run
        The workflow, and the run it carries.
    prints
        Steps of that run and their fingerprints; see `plan_run`.
    """
    spec = workflow.get("spec") or {}
    if (spec.get("artifactGC") or {}).get("strategy", "Never") != "Never":
        return Carried()
    own = {template.get("name") for template in spec.get("templates") or []}
    steps = {key: value for key, value in prints.items() if key not in own}
    last, finished_ = run.progress.iterations - 1, run.progress.finished
    found: dict[str, dict[str, Any]] = {decide_key(k): {"go": True} for k in range(last)}
    if finished_:
        found[decide_key(last)] = {"go": False, "labelled": run.progress.labelled}
    return Carried(steps, {key: found[key] for key in found if key in steps})


def decided_by(
    workflows: Sequence[Workflow], before: Carried | None = None
) -> Callable[[str, str], dict[str, Any] | None]:
    """Return a function for `current_plan` that reads the decisions of a run.

    `before`: what the oldest of the workflows took over.
    """
    before = before or Carried()
    found = {**before.decisions, **decisions(workflows)}
    prints = {**before.steps, **finished(workflows)}
    return lambda key, fingerprint: found.get(key) if prints.get(key) == fingerprint else None


def read_states(
    nodes: Sequence[Node],
    prints: Mapping[str, str],
    workflows: Sequence[Workflow],
    before: Mapping[str, str] | None = None,
) -> list[StepState]:
    """Return the state of every step of the plan.

    Parameters
    ----------
    nodes, prints
        Steps of the run by now, and their fingerprints; see `plan_run`.
    workflows
        All workflows of the run, oldest first.
    before
        Steps that workflows finished which are gone, key -> fingerprint.

    Returns
    -------
    list[StepState]
        As for a run on this machine; the step that submits the next workflow comes last
        while there is something to say about it.
    """
    tables = [attempts(workflow) for workflow in workflows]
    result = [_state(node, prints.get(node.key, ""), tables) for node in nodes]
    for k, step in enumerate(result):
        print_ = prints.get(step.node.key, "")
        if step.state == "waiting" and print_ and (before or {}).get(step.node.key) == print_:
            done = Status(step.node.key, step.node.op, "succeeded", fingerprint=print_)
            result[k] = StepState(step.node, "succeeded", done)
    advance = tables[-1].get(ADVANCE) if tables else None
    if advance is not None and advance.phase not in ("Succeeded", "Skipped", "Omitted"):
        result.append(_state(Node(ADVANCE, ADVANCE, {}), "", tables[-1:]))
    return result


def _state(node: Node, fingerprint: str, tables: Sequence[Mapping[str, Attempts]]) -> StepState:
    for table in reversed(tables):
        step = table.get(node.key)
        if step is None or step.phase != "Succeeded":
            continue
        if not fingerprint or _fingerprint(step) in (fingerprint, None):
            return StepState(node, "succeeded", _status(node, step, "succeeded", fingerprint))
    step = tables[-1].get(node.key) if tables else None
    if step is None or step.phase in ("Succeeded", "Skipped", "Omitted"):
        return StepState(node, "waiting", None)
    return _unfinished(node, step, fingerprint)


def _fingerprint(step: Attempts) -> str | None:
    """Fingerprint that a step has run with: from its outputs, else from its template."""
    found = fingerprint_of(step.outputs)
    if found:
        return found
    for template in (step.workflow.get("spec") or {}).get("templates") or []:
        if template.get("name") == step.node.get("templateName"):
            notes = (template.get("metadata") or {}).get("annotations") or {}
            value = notes.get(ANNOTATIONS["fingerprint"])
            return None if value is None else str(value)
    return None


def _unfinished(node: Node, step: Attempts, fingerprint: str) -> StepState:
    """State of a step that the newest workflow has begun, and that has not succeeded."""
    ended = (step.workflow.get("status") or {}).get("phase") in ENDED
    if step.phase in ("Failed", "Error"):
        kind, reason = explain(telling(step), step.workflow)
        state: State = "failed"
        if kind in ("paused", "interrupted", "stopped"):
            state = "paused" if kind == "paused" else "interrupted"
        status = _status(node, step, state, fingerprint)
        if state == "paused":  # what to do may take several lines
            reason = own_text(telling(step)) or reason
        status = status._replace(reason=reason, kind=KINDS.get(kind, "fatal"))
        return StepState(node, state, status)
    if ended:
        reason = "the workflow ended before this step did"
        status = _status(node, step, "interrupted", fingerprint)._replace(reason=reason)
        return StepState(node, "interrupted", status)
    status = _status(node, step, "running", fingerprint)
    phase = step.pod.get("phase")
    if phase in ("Failed", "Error"):
        told = f"attempt {len(step.pods) + 1} follows: {explain(step.pod, step.workflow)[1]}"
        return StepState(node, "running", status._replace(reason=told))
    if phase != "Pending":
        return StepState(node, "running", status)
    kind, reason = explain(step.pod, step.workflow)
    if not kind and status.elapsed > SLOW:
        reason = f"its pod is being prepared: {reason or 'no word of it yet'}"
    quiet = not kind and status.elapsed <= SLOW
    told = "" if quiet else reason
    return StepState(
        node, "waiting", status._replace(reason=told, elapsed=0.0 if quiet else status.elapsed)
    )


def telling(step: Attempts) -> NodeStatus:
    """Return the node whose message says why a step failed: that of its last pod, if any."""
    return step.pod if step.pod.get("message") or exit_code(step.pod) is not None else step.node


def _status(node: Node, step: Attempts, state: State, fingerprint: str) -> Status:
    begin, end = _time(step.node.get("startedAt")), _time(step.node.get("finishedAt"))
    elapsed = ((end or datetime.now(UTC)) - begin).total_seconds() if begin else 0.0
    return Status(
        node.key,
        node.op,
        state,
        exit_code=exit_code(step.pod),
        elapsed=max(0.0, elapsed),
        attempts=len(step.pods),
        started=begin.isoformat() if begin else "",
        fingerprint=fingerprint,
    )


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None


def pod_name(step: Attempts) -> str:
    """Return the name of a step's latest pod, as Argo makes it up."""
    pod, meta = step.pod, step.workflow["metadata"]
    notes = meta.get("annotations") or {}
    ident = str(pod.get("id") or "")
    if notes.get("workflows.argoproj.io/pod-name-format") == "v1":
        return ident
    prefix = f"{meta['name']}-{pod.get('templateName') or ''}"[:242]
    return f"{prefix}-{ident.rpartition('-')[2]}"
