"""What dflow cannot say about a workflow, one rule each; rules change the rendered object.

`harden` puts it together. The probe of the preflight goes through the same rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ops.pod import RETRIED
from workflows.backends.argo.pods import resources_of
from workflows.backends.argo.run import ADVANCE, LABEL_RUN, LABEL_SEQUENCE
from workflows.graph import Node
from workflows.schema_cluster import quantity

if TYPE_CHECKING:
    from workflows.backends.argo.run import Run

Manifest = dict[str, Any]
Rule = Callable[[Manifest, "Run"], None]

STOP_SECONDS = 120
"""Seconds between SIGTERM and SIGKILL; a training saves its state in less (`STOP_GRACE`)."""
DEADLINE_MARGIN = 300
"""Seconds that Kubernetes waits longer than the step's own time limit: fetching and storing."""
LOST = -1
"""Exit code that Argo gives a pod which ended without one: evicted, preempted, node lost."""
ANNOTATIONS = {"key": "dpaflow/step", "op": "dpaflow/op", "fingerprint": "dpaflow/fingerprint"}
NO_PRIVILEGES = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SECCOMP = {"type": "RuntimeDefault"}
MEBI = 2**20


def harden(
    manifest: Manifest, run: Run, nodes: Mapping[str, Node], prints: Mapping[str, str]
) -> Manifest:
    """Return the workflow with every rule applied, without what dflow leaves empty.

    Parameters
    ----------
    manifest
        As dflow renders it.
    run
        Where it comes from.
    nodes, prints
        Steps by template name, and their fingerprints; further templates are not steps.
    """
    for rule in RULES:
        rule(manifest, run)
    for template in _pods(manifest):
        name = template["name"]
        node = nodes.get(name, Node(name, name, {}))
        _annotate_step(template, node, prints.get(name))
        _take_secrets(template, run, node)
        _limit_time(template, run, node)
        _retry(template, run, node)
        _grow_memory(template, run, node)
    _prune(manifest)
    order = ("apiVersion", "kind", "metadata", "spec")
    return {key: manifest[key] for key in order}


def _pods(manifest: Manifest) -> Iterator[Manifest]:
    for template in manifest["spec"]["templates"]:
        if "script" in template:
            yield template


# --- rules of the workflow


def identity(manifest: Manifest, run: Run) -> None:
    """Kind, name, labels to find it by, annotations that tell what it is."""
    cluster = run.settings.cluster
    manifest.pop("status", None)
    manifest |= {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow"}
    labels = {
        "app.kubernetes.io/name": "dpaflow",
        "app.kubernetes.io/managed-by": "dpaflow",
        LABEL_RUN: run.name,
        LABEL_SEQUENCE: str(run.sequence),
    }
    labels |= {name: value for name, value in cluster.labels.items() if name not in labels}
    digest = hashlib.sha256(json.dumps(manifest["spec"], sort_keys=True).encode()).hexdigest()
    manifest["metadata"] = {
        "name": run.workflow,
        "labels": labels,
        "annotations": {
            "dpaflow/pipeline": run.pipeline.name,
            "dpaflow/version": version("dpaflow"),
            "dpaflow/content-hash": digest[:16],
        },
    }
    manifest["spec"]["podMetadata"] = {"labels": dict(labels)}


def accounts(manifest: Manifest, run: Run) -> None:
    """No pod sees a token of the cluster, except Argo's own container and `advance`."""
    cluster = run.settings.cluster
    spec = manifest["spec"]
    spec["serviceAccountName"] = cluster.service_account
    spec["automountServiceAccountToken"] = False
    spec["executor"] = {"serviceAccountName": cluster.service_account}
    for template in _pods(manifest):
        if template["name"] == ADVANCE:
            template["serviceAccountName"] = cluster.advance_service_account
            template["automountServiceAccountToken"] = True


def unprivileged(manifest: Manifest, run: Run) -> None:
    """No root, no new privileges, no capabilities, a root file system that is read-only."""
    user = run.settings.cluster.user
    manifest["spec"]["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": dict(SECCOMP),
    }
    for template in _pods(manifest):
        template["script"]["securityContext"] = {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            **NO_PRIVILEGES,
        }


def helpers(manifest: Manifest, _run: Run) -> None:
    """Give Argo's own containers no privileges either, and a step time to save its state.

    A namespace that is `restricted` refuses the whole pod otherwise.
    """
    manifest["spec"]["podSpecPatch"] = json.dumps({
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "initContainers": [{"name": "init", "securityContext": NO_PRIVILEGES}],
        "containers": [{"name": "wait", "securityContext": NO_PRIVILEGES}],
    })  # fmt: skip


def ends(manifest: Manifest, run: Run) -> None:
    """Nothing runs or stays for ever; what failed stays long enough to be looked at."""
    cluster = run.settings.cluster
    spec = manifest["spec"]
    spec["activeDeadlineSeconds"] = cluster.deadline
    spec["ttlStrategy"] = {"secondsAfterCompletion": cluster.keep}
    spec["podGC"] = {"strategy": "OnPodSuccess", "deleteDelayDuration": "600s"}
    spec["archiveLogs"] = True


def artifacts(manifest: Manifest, run: Run) -> None:
    """Where artifacts are, and whether they go with the workflow."""
    cluster = run.settings.cluster
    config_map, _, key = cluster.storage.repository.partition("/")
    spec = manifest["spec"]
    spec["artifactRepositoryRef"] = {"configMap": config_map, "key": key}
    spec["artifactGC"] = {"strategy": "Never"}
    if cluster.artifacts == "delete":
        spec["artifactGC"] = {
            "strategy": "OnWorkflowDeletion",
            "serviceAccountName": cluster.gc_service_account,
            # older versions of Argo leave it out, and a `restricted` namespace refuses the pod
            "podSpecPatch": json.dumps({"securityContext": {"seccompProfile": SECCOMP}}),
        }


def scheduling(manifest: Manifest, run: Run) -> None:
    """Registry credentials, priority, and that one failure does not stop independent steps."""
    cluster = run.settings.cluster
    spec = manifest["spec"]
    spec["imagePullSecrets"] = [{"name": name} for name in cluster.image_pull_secrets]
    if cluster.priority_class:
        spec["podPriorityClassName"] = cluster.priority_class
    for template in spec["templates"]:
        if "dag" in template:
            template["dag"]["failFast"] = False
            template["parallelism"] = cluster.parallelism


def plain_tasks(manifest: Manifest, _run: Run) -> None:
    """Drop what dflow repeats in every task: the path of an artifact is the template's matter."""
    for template in manifest["spec"]["templates"]:
        for task in template.get("dag", {}).get("tasks", []):
            for artifact in task.get("arguments", {}).get("artifacts", []):
                artifact.pop("path", None)


RULES: tuple[Rule, ...] = (
    identity, accounts, unprivileged, helpers, ends, artifacts, scheduling, plain_tasks,
)  # fmt: skip


# --- rules of a step's pod


def _annotate_step(template: Manifest, node: Node, fingerprint: str | None) -> None:
    values = {"key": node.key, "op": node.op, "fingerprint": fingerprint}
    found = {name: values[key] for key, name in ANNOTATIONS.items() if values[key]}
    template["metadata"] = {"annotations": found}


def _take_secrets(template: Manifest, run: Run, node: Node) -> None:
    """Whole Secrets as environment variables; the manifest holds their names only."""
    names = resources_of(run.settings, node).env_secrets
    template["script"]["envFrom"] = [{"secretRef": {"name": name}} for name in names]


def _limit_time(template: Manifest, run: Run, node: Node) -> None:
    """Let Kubernetes end what does not end itself."""
    limit = resources_of(run.settings, node).timeout or run.settings.execution.timeout
    if limit is not None:
        template["activeDeadlineSeconds"] = int(limit) + DEADLINE_MARGIN


def _retry(template: Manifest, run: Run, node: Node) -> None:
    """Try again after what is nobody's fault, not after a mistake, a bug or the time limit."""
    given = resources_of(run.settings, node)
    limit = run.settings.execution.retries if given.retries is None else given.retries
    codes = ", ".join(map(str, (LOST, *RETRIED)))
    template["retryStrategy"] = {
        "limit": str(limit),
        "retryPolicy": "Always",
        "expression": (
            f"(lastRetry.status == 'Error' || asInt(lastRetry.exitCode) in [{codes}])"
            " && !(lastRetry.message matches 'longer than the specified deadline')"
        ),
        # no maxDuration: it counts from the first attempt's start, and would neither let a long
        # training be tried again nor let the next attempt run longer than what is left of it
        "backoff": {"duration": "30s", "factor": "2"},
    }


def _grow_memory(template: Manifest, run: Run, node: Node) -> None:
    """Give every further attempt twice the memory, up to the limit.

    Argo cannot tell an attempt why the one before ended, so lost pods grow, too.
    """
    if template["retryStrategy"]["limit"] == "0":
        return
    given = resources_of(run.settings, node)
    sizes = [quantity(given.memory)]
    most = quantity(given.max_memory) if given.max_memory else 2 * sizes[0]
    while sizes[-1] < most:
        sizes.append(min(most, 2 * sizes[-1]))
    if len(sizes) == 1:
        return
    whole = [round(size / MEBI) for size in sizes]
    choice = str(whole[-1])
    for attempt in range(len(whole) - 2, -1, -1):
        choice = f"asInt(retries) == {attempt} ? {whole[attempt]} : {choice}"
    memory = {"memory": f"{{{{={choice}}}}}Mi"}
    main = {"name": "main", "resources": {"requests": memory, "limits": memory}}
    template["podSpecPatch"] = json.dumps({"containers": [main]})


MEANS_SOMETHING = ("emptyDir", "none", "value", "default")
"""Keys whose empty value says something."""


def _prune(value: Any) -> Any:
    """Drop empty entries, in place; return the value."""
    if isinstance(value, dict):
        for key in list(value):
            item = _prune(value[key])
            if key not in MEANS_SOMETHING and item in ("", None, [], {}):
                del value[key]
        if value.get("optional") is False:
            del value["optional"]
    elif isinstance(value, list):
        for item in value:
            _prune(item)
    return value
