"""What the namespace allows its pods: quota, limits, security level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workflows.backends.argo.preflight.kube import Kube, ask
from workflows.backends.argo.preflight.nodes import amount, requests
from workflows.backends.argo.scene import Need, Scene
from workflows.doctor import Check
from workflows.graph import levels
from workflows.schema_cluster import Resources

COUNTED = ("pods", "count/pods", "count/workflows.argoproj.io")
"""What a quota counts that a run needs at least one of."""
LEVEL = "pod-security.kubernetes.io/enforce"


def _number(text: str) -> float:
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))


def _plain(resource: str) -> str:
    """Return what a line of a quota counts, "requests.cpu" -> "cpu"."""
    return resource.removeprefix("requests.").removeprefix("limits.")


def check_namespace(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Look for the namespace, and how strict it is."""
    found = ask(kube.core.read_namespace, kube.namespace)
    if found is None:
        advice = f"create it: kubectl create namespace {kube.namespace}; or correct `namespace` of the context file"  # noqa: E501
        yield Check("namespace", "error", f"{kube.namespace} does not exist", advice)
        return
    if found.status is not None and found.status.phase == "Terminating":
        yield Check("namespace", "error", f"{kube.namespace} is being deleted", "use another")
        return
    level = (found.metadata.labels or {}).get(LEVEL)
    known = f"pod security: {level or 'whatever the cluster has as default'}"
    advice = "" if level else f"our pods are fit for {LEVEL}=restricted; label the namespace so"
    yield Check("namespace", "ok", f"{kube.namespace} exists; {known}", advice)


def check_quota(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Compare quotas with the biggest pod, and with all pods that may run at once."""
    quotas = ask(kube.core.list_namespaced_resource_quota, kube.namespace).items
    for quota in quotas:
        yield from _check_quota(scene, quota)
    if not quotas:
        yield Check("quota", "ok", "none in this namespace")


def _check_quota(scene: Scene, quota: Any) -> Iterator[Check]:
    name = f"quota {quota.metadata.name}"
    hard = quota.status.hard or quota.spec.hard or {}
    used = quota.status.used or {}
    together = at_once(scene)
    fine = True
    for key, text in hard.items():
        check = _check_line(scene, key, _number(text), _number(used.get(key, "0")), together)
        if check is not None:
            fine = False
            yield check._replace(name=name)
    if fine:
        yield Check(
            name, "ok", ", ".join(f"{k} {used.get(k, '0')} of {v}" for k, v in hard.items())
        )


def _check_line(
    scene: Scene, key: str, limit: float, used: float, together: Mapping[str, float]
) -> Check | None:
    """Judge one line of a quota; None if it leaves room."""
    what = _plain(key)
    need = max(scene.needs(), key=lambda need: _asked(need.resources, what))
    most = _asked(need.resources, what)
    if not most:
        return None
    here = f"{key}: {amount(what, limit)} allowed, {amount(what, used)} in use"
    if most > limit:
        found = f"{here}; {need} needs {amount(what, most)}"
        advice = f"it would wait for ever: ask for less in cluster.resources.{need.entry}, or for a larger quota"  # noqa: E501
        return Check("", "error", found, advice)
    if most > limit - used:
        found = f"{here}; {need} needs {amount(what, most)}"
        return Check("", "warning", found, "it waits until other pods of the namespace have ended")
    if together.get(what, 0.0) > limit:
        found = f"{here}; up to {amount(what, together[what])} would be asked for at once"
        advice = "fine, the rest waits; a lower cluster.parallelism says so openly"
        return Check("", "warning", found, advice)
    return None


def _asked(resources: Resources, what: str) -> float:
    return 1.0 if what in COUNTED else requests(resources).get(what, 0.0)


def at_once(scene: Scene) -> dict[str, float]:
    """Return the most that steps which may run at the same time ask for together."""
    most: dict[str, float] = {}
    for level in levels(scene.nodes):
        found = [scene.resources(node) for node in level]
        for what in {key for resources in found for key in requests(resources)} | {"pods"}:
            asked = sorted((_asked(resources, what) for resources in found), reverse=True)
            most[what] = max(most.get(what, 0.0), sum(asked[: scene.cluster.parallelism]))
    return most


def check_limits(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Compare the namespace's largest and smallest allowed container with the steps."""
    fine = True
    ranges = ask(kube.core.list_namespaced_limit_range, kube.namespace).items
    for item in ranges:
        for limit in item.spec.limits:
            if limit.type in ("Container", "Pod"):
                for need in scene.needs():
                    for check in _check_limit(item.metadata.name, limit, need):
                        fine = False
                        yield check
    if fine:
        found = ", ".join(item.metadata.name for item in ranges)
        yield Check(
            "limits", "ok", f"steps are within {found}" if found else "none in this namespace"
        )


def _check_limit(name: str, limit: Any, need: Need) -> Iterator[Check]:
    asked = requests(need.resources)
    for what, text in (limit.max or {}).items():
        if asked.get(what, 0.0) > _number(text):
            found = f"{need} asks for {what} {amount(what, asked[what])}, at most {text} is allowed"
            advice = f"ask for less in cluster.resources.{need.entry}, or ask who runs the cluster for more"  # noqa: E501
            yield Check(f"limits {name}", "error", found, advice)
    for what, text in (limit.min or {}).items():
        if what in asked and asked[what] < _number(text):
            found = f"{need} asks for {what} {amount(what, asked[what])}, at least {text} is wanted"
            advice = f"ask for {text} in cluster.resources.{need.entry}"
            yield Check(f"limits {name}", "error", found, advice)


def check_sidecars(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Where a quota wants limits of every container, Argo's own need them by default."""
    quotas = ask(kube.core.list_namespaced_resource_quota, kube.namespace).items
    wanted = {_plain(key) for quota in quotas for key in quota.spec.hard or {}} & {"cpu", "memory"}
    ranges = ask(kube.core.list_namespaced_limit_range, kube.namespace).items
    given = {
        key
        for item in ranges
        for limit in item.spec.limits
        if limit.type == "Container"
        for key in limit.default or {}
    }
    if missing := sorted(wanted - given):
        yield Check(
            "Argo's own containers",
            "warning",
            f"the quota wants limits of {', '.join(missing)} for every container, no LimitRange "
            "gives any by default",
            "pods are refused unless Argo's controller sets them (executor.resources in its "
            "ConfigMap); deploy/kubernetes sets both",
        )
