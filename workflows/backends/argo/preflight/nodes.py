"""Whether the cluster has a node for every step: GPUs, cores, memory, labels, taints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from workflows.backends.argo.preflight.kube import Kube, ask
from workflows.backends.argo.scene import Need, Scene
from workflows.doctor import Check
from workflows.schema_cluster import Resources, quantity

GPU_TYPE = "nvidia.com/gpu.product"
POOLS = (
    "cloud.google.com/gke-nodepool",
    "eks.amazonaws.com/nodegroup",
    "karpenter.sh/nodepool",
    "kubernetes.azure.com/agentpool",
)
"""Labels of nodes in pools that may grow."""
GPU_WEIGHT = 3
KEEPS_AWAY = ("NoSchedule", "NoExecute")
SELECTOR_ADVICE = (
    "correct cluster.resources.{entry}.{key} (`kubectl get nodes --show-labels` shows what nodes "
    "have)"
)


def amount(name: str, value: float) -> str:
    """Return an amount of a resource as people write it."""
    if name in ("memory", "ephemeral-storage"):
        return f"{value / 2**30:.3g}Gi"
    return f"{value:g}"


def requests(resources: Resources) -> dict[str, float]:
    """Return what a pod asks of its node."""
    asked = {
        "cpu": quantity(resources.cpu),
        "memory": quantity(resources.memory),
        "ephemeral-storage": quantity(resources.disk),
    }
    if resources.gpu:
        asked[resources.gpu_resource] = float(resources.gpu)
    return asked


def last_memory(resources: Resources) -> float:
    """Return the memory of a pod's last attempt, in bytes."""
    memory = quantity(resources.memory)
    return quantity(resources.max_memory) if resources.max_memory else 2 * memory


def check_nodes(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Look for a node for every group of steps that ask for the same."""
    nodes = ask(kube.core.list_node).items
    if not nodes:
        yield Check("nodes", "error", "the cluster has none", "ask who runs the cluster")
        return
    ready = [node for node in nodes if is_ready(node)]
    found = f"{len(ready)} of {len(nodes)} ready"
    advice = "" if ready else "`kubectl get nodes` says more; ask who runs the cluster"
    yield Check("nodes", "ok" if ready else "error", found, advice)
    for need in scene.needs():
        yield _check_need(need, nodes)


def is_ready(node: Any) -> bool:
    """Return whether a node takes pods."""
    conditions = {item.type: item.status for item in node.status.conditions or ()}
    return conditions.get("Ready") == "True" and not node.spec.unschedulable


def _check_need(need: Need, nodes: list[Any]) -> Check:
    name = f"node for {need}"
    lacks = [(node, list(lacking(need.resources, node))) for node in nodes]
    asked = requests(need.resources)
    words = ", ".join(f"{key} {amount(key, value)}" for key, value in asked.items())
    fitting = [node for node, missing in lacks if not missing]
    if fitting:
        found = f"{len(fitting)} of {len(nodes)} nodes fit {words} when they are free"
        check = Check(name, "ok", found)
        return _check_retry(check, need, fitting)
    reasons = Counter(reason for _, missing in lacks for reason, _ in missing[:1])
    count = "; ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    nearest, missing = min(lacks, key=lambda pair: _distance(need.resources, *pair))
    advice = f"nearest is {nearest.metadata.name}: {_advice(missing, need.entry)}"
    if grows(nodes):
        advice += "; fine if a node pool that starts nodes on demand has such nodes"
        return Check(name, "warning", f"no node now for {words}: {count}", advice)
    return Check(name, "error", f"none of {len(nodes)} nodes fits {words}: {count}", advice)


def _distance(resources: Resources, node: Any, missing: list[tuple[str, str]]) -> int:
    """Count what is in the way; a label is more easily changed than a GPU put in."""
    no_gpu = bool(resources.gpu) and not capacity(node, resources.gpu_resource)
    return len(missing) + (GPU_WEIGHT if no_gpu else 0)


def _check_retry(check: Check, need: Need, fitting: list[Any]) -> Check:
    """Warn where an attempt with more memory, after one that ran out of it, fits no node."""
    more = last_memory(need.resources)
    most = max(capacity(node, "memory") for node in fitting)
    if more <= most:
        return check
    advice = (
        f"set cluster.resources.{need.entry}.max_memory to at most {int(most / 2**30)}Gi: an "
        "attempt after one that ran out of memory gets more, and would wait for ever"
    )
    found = f"{check.found}, but none has {amount('memory', more)} for a later attempt"
    return check._replace(verdict="warning", found=found, advice=advice)


def _advice(missing: list[tuple[str, str]], entry: str) -> str:
    return "; ".join(dict.fromkeys(text.format(entry=entry) for _, text in missing))


def grows(nodes: list[Any]) -> bool:
    """Return whether nodes belong to pools that may start more."""
    return any(label in (node.metadata.labels or {}) for node in nodes for label in POOLS)


def capacity(node: Any, resource: str) -> float:
    """Return what pods together may have of a node."""
    from kubernetes.utils import parse_quantity

    return float(parse_quantity((node.status.allocatable or {}).get(resource, "0")))


def lacking(resources: Resources, node: Any) -> Iterator[tuple[str, str]]:
    """Yield why a pod cannot run on a node: (reason, advice); nothing if it can."""
    labels = node.metadata.labels or {}
    if not is_ready(node):
        yield "not ready or closed for new pods", "`kubectl describe node` says why"
    for resource, asked in requests(resources).items():
        there = capacity(node, resource)
        if there < asked:
            yield _short(resource, asked, there)
    for key, value in resources.node_selector.items():
        if labels.get(key) != value:
            yield f"without label {key}={value}", SELECTOR_ADVICE.replace("{key}", "node_selector")
    if resources.gpu_type is not None and labels.get(GPU_TYPE) != resources.gpu_type:
        has = labels.get(GPU_TYPE, "no such label")
        yield (
            f"without a {resources.gpu_type} ({has})",
            SELECTOR_ADVICE.replace("{key}", "gpu_type"),
        )
    if not _affine(resources.affinity, labels):
        yield "not what affinity asks for", SELECTOR_ADVICE.replace("{key}", "affinity")
    for taint in node.spec.taints or ():
        if taint.effect in KEEPS_AWAY and not _tolerated(taint, resources):
            yield _tainted(taint)


def _short(resource: str, asked: float, there: float) -> tuple[str, str]:
    wants, has = amount(resource, asked), amount(resource, there)
    key = {"cpu": "cpu", "memory": "memory", "ephemeral-storage": "disk"}.get(resource, "gpu")
    if key == "gpu" and not there:
        advice = (
            "nodes with a GPU show it once the device plugin of its maker runs (see the gpu guide "
            "of deploy/kubernetes); or set cluster.resources.{entry}.gpu: 0"
        )
        return f"without {resource}", advice
    advice = f"ask for at most {has} in cluster.resources.{{entry}}.{key}, instead of {wants}"
    return f"with too little {resource} ({has})", advice


def _tainted(taint: Any) -> tuple[str, str]:
    value = f"={taint.value}" if taint.value else ""
    advice = (
        f"if pods may run there, add to cluster.resources.{{entry}}.tolerations: "
        f"{{{{key: {taint.key}, operator: Exists, effect: {taint.effect}}}}}"
    )
    return f"with the taint {taint.key}{value}:{taint.effect}", advice


def _tolerated(taint: Any, resources: Resources) -> bool:
    return any(_tolerates(toleration, taint) for toleration in resources.tolerations)


def _tolerates(toleration: dict[str, Any], taint: Any) -> bool:
    """Match as the scheduler does; a key or effect that is left out matches all."""
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    exists = toleration.get("operator", "Equal") == "Exists"
    if not toleration.get("key"):
        return exists
    same = toleration["key"] == taint.key
    return same and (exists or toleration.get("value", "") == (taint.value or ""))


def _affine(affinity: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Match the required node affinity; of its terms one must hold, of a term all lines."""
    node = (affinity or {}).get("nodeAffinity") or {}
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(
        all(_holds(line, labels) for line in term.get("matchExpressions") or ())
        for term in required["nodeSelectorTerms"]
    )


def _holds(line: dict[str, Any], labels: dict[str, str]) -> bool:
    value, values = labels.get(line["key"]), line.get("values") or []
    match line["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
        case _:
            return value is not None and int(value) < int(values[0])
