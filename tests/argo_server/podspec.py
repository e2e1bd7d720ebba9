"""The spec of a pod, as Argo makes it from a template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

MERGE = {"containers": "name", "initContainers": "name", "volumes": "name", "env": "name",
         "volumeMounts": "mountPath", "imagePullSecrets": "name"}  # fmt: skip


def main_of(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(c for c in spec["containers"] if c["name"] == "main")


def pod_spec(workflow: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a template's pod, patches of the workflow and the template applied."""
    spec = workflow["spec"]
    script = {k: v for k, v in template["script"].items() if k != "source"}
    pod: dict[str, Any] = {
        "containers": [{**script, "name": "main"}, {"name": "wait"}],
        "volumes": [*spec.get("volumes", ()), *template.get("volumes", ())],
    }
    for name in ("nodeSelector", "tolerations", "affinity", "securityContext",
                 "serviceAccountName", "automountServiceAccountToken"):  # fmt: skip
        if (value := template.get(name, spec.get(name))) is not None:
            pod[name] = value
    for text in (spec.get("podSpecPatch"), template.get("podSpecPatch")):
        if text:
            pod = merged(
                pod, json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
            )
    return pod


def merged(base: Any, patch: Any, name: str = "") -> Any:
    """Merge as Kubernetes does: lists with a merge key by item, other lists as a whole."""
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        whole = {**base, **{k: merged(base.get(k), v, k) for k, v in patch.items()}}
        return {k: v for k, v in whole.items() if v is not None}
    if isinstance(base, list) and isinstance(patch, list) and name in MERGE:
        key = MERGE[name]
        changes = {item[key]: item for item in patch}
        kept = [merged(item, changes.pop(item[key], {})) for item in base]
        return kept + list(changes.values())
    return patch
