"""The manifests as `kubectl kustomize` renders them, from the golden files."""

from __future__ import annotations

import shutil
import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {
    "argo": KUBERNETES / "argo",
    "local": KUBERNETES / "overlays" / "local",
    "gpu": KUBERNETES / "overlays" / "gpu",
}
"""What a user applies; `base` is part of the overlays."""
OVERLAYS = ("local", "gpu")
LOOSE = {"loader": KUBERNETES / "overlays" / "gpu" / "loader.yaml"}
"""Manifests that the guides apply one by one."""


def render(name: str) -> str | None:
    """Return a fresh rendering, None without kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return None
    command = [kubectl, "kustomize", str(FOLDERS[name])]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@cache
def _parsed(path: Path) -> list[Object]:
    return [item for item in yaml.safe_load_all(path.read_text(encoding="utf-8")) if item]


def objects(name: str) -> list[Object]:
    """Return the objects of a rendering, new ones every time."""
    return deepcopy(_parsed(LOOSE.get(name, GOLDEN / f"{name}.yaml")))


def label(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def find(items: list[Object], kind: str, name: str | None = None) -> Object:
    """Return the one object of a kind (and name)."""
    wanted = [x for x in items if x["kind"] == kind and name in (None, x["metadata"]["name"])]
    assert len(wanted) == 1, (kind, name, [label(x) for x in items])
    return wanted[0]


def pod_spec(item: Object) -> Object | None:
    """Return the specification of an object's pods, if it has any."""
    if item["kind"] == "Pod":
        return item["spec"]
    if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        return item["spec"]["template"]["spec"]
    return None
