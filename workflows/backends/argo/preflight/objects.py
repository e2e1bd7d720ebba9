"""What must exist in the namespace: accounts, secrets, volumes, the artifact repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

from workflows.backends.argo.preflight.kube import Kube, NotAllowed, ask
from workflows.backends.argo.scene import Scene
from workflows.doctor import Check
from workflows.schema_cluster import Storage

SETUP = (
    "set up the namespace with deploy/kubernetes (kubectl apply -k), or ask who runs the cluster"
)
TOKEN_NAME = "workflows.argoproj.io/service-account-token.name"
"""Annotation of an account that names the Secret with its token."""
SHARED = {"ReadWriteMany", "ReadOnlyMany"}


class Wanted(NamedTuple):
    """An object that pods refer to by name."""

    kind: str
    name: str
    advice: str


def look_up(wanted: Wanted, call: Callable[..., Any], *where: str) -> tuple[Check, Any]:
    """Return whether an object exists, and the object."""
    name = f"{wanted.kind} {wanted.name}"
    try:
        found = ask(call, wanted.name, *where)
    except NotAllowed:
        text = f"not checked: your kubeconfig may not read a {wanted.kind}"
        return Check(name, "unknown", text, "the probe shows it: --probe"), None
    if found is None:
        return Check(name, "error", "does not exist", wanted.advice), None
    return Check(name, "ok", "exists"), found


def check_service_accounts(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Look for the accounts that pods of the workflow run as."""
    for key, name in accounts(scene).items():
        advice = f"cluster.{key} of the pipeline names it; correct the name, or {SETUP}"
        call = kube.core.read_namespaced_service_account
        check, account = look_up(Wanted("service account", name, advice), call, kube.namespace)
        yield check
        if account is not None and key == "service_account":
            yield _check_token_secret(kube, account)


def _check_token_secret(kube: Kube, account: Any) -> Check:
    """Look for the account's token as a Secret: Argo's helper beside every step takes it there.

    Since Kubernetes 1.24 nobody makes it on his own.
    """
    name = (account.metadata.annotations or {}).get(TOKEN_NAME)
    if name is None and account.secrets:
        name = account.secrets[0].name
    name = name or f"{account.metadata.name}.service-account-token"
    advice = (
        f"Argo cannot start a pod without it: make a Secret of this name, type "
        f"kubernetes.io/service-account-token, with the annotation "
        f"kubernetes.io/service-account.name: {account.metadata.name}; deploy/kubernetes does"
    )
    wanted = Wanted("secret", name, advice)
    return look_up(wanted, kube.metadata().read_namespaced_secret, kube.namespace)[0]


def accounts(scene: Scene) -> dict[str, str]:
    """Return the accounts that this pipeline needs, by their key in `cluster`."""
    cluster = scene.cluster
    found = {"service_account": cluster.service_account}
    if scene.pipeline is None or scene.pipeline.concurrent_learning is not None:
        found["advance_service_account"] = cluster.advance_service_account
    if cluster.artifacts == "delete":
        found["gc_service_account"] = cluster.gc_service_account
    return found


def check_secrets(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Look for the Secrets that pods refer to, by name: their data are never asked for."""
    call = kube.metadata().read_namespaced_secret
    for name, purpose in _secrets(scene).items():
        create = f"kubectl -n {kube.namespace} create secret {_secret_type(purpose)} {name} ..."
        advice = f"{purpose} of the pipeline names it; correct the name, or create it: {create}"
        yield look_up(Wanted("secret", name, advice), call, kube.namespace)[0]


def _secrets(scene: Scene) -> dict[str, str]:
    cluster = scene.cluster
    found = dict.fromkeys(cluster.image_pull_secrets, "cluster.image_pull_secrets")
    for need in scene.needs():
        purpose = f"cluster.resources.{need.entry}.env_secrets"
        found |= dict.fromkeys(need.resources.env_secrets, purpose)
    if cluster.storage.secret is not None:
        found[cluster.storage.secret] = "cluster.storage.secret"
    return found


def _secret_type(purpose: str) -> str:
    return "docker-registry" if purpose.endswith("pull_secrets") else "generic"


def check_priority_class(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Look for the PriorityClass."""
    from kubernetes.client import SchedulingV1Api

    name = scene.cluster.priority_class
    if name is not None:
        advice = (
            "cluster.priority_class of the pipeline names it; leave it out, or choose one of "
            "those that `kubectl get priorityclass` lists"
        )
        call = SchedulingV1Api(kube.client).read_priority_class
        yield look_up(Wanted("priority class", name, advice), call)[0]


def check_volumes(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Look at the volumes: there, bound, and open to pods on several nodes."""
    many = several_nodes(kube)
    for name, (key, writes) in _volumes(scene).items():
        advice = f"{key} of the pipeline names it; `kubectl -n {kube.namespace} get pvc` lists them"
        wanted = Wanted("volume", name, advice)
        call = kube.core.read_namespaced_persistent_volume_claim
        check, claim = look_up(wanted, call, kube.namespace)
        yield check if claim is None else _judge_volume(check, claim, key, writes, many)


def several_nodes(kube: Kube) -> bool:
    """Return whether pods may run on more than one node; yes if that cannot be asked."""
    try:
        return len(ask(kube.core.list_node, limit=2).items) > 1
    except NotAllowed:
        return True


def _volumes(scene: Scene) -> dict[str, tuple[str, bool]]:
    """Return claim -> key of the pipeline, whether pods write there."""
    cluster = scene.cluster
    mounts = [("cluster.volumes", volume) for volume in cluster.volumes]
    for need in scene.needs():
        mounts += [(f"cluster.resources.{need.entry}.pvc", v) for v in need.resources.pvc]
    found: dict[str, tuple[str, bool]] = {}
    for key, volume in mounts:
        writes = not volume.read_only or found.get(volume.pvc, ("", False))[1]
        found[volume.pvc] = (key, writes)
    if cluster.workspace is not None:
        found[cluster.workspace] = ("cluster.workspace", True)
    return found


def _judge_volume(check: Check, claim: Any, key: str, writes: bool, many: bool) -> Check:
    modes = set(claim.spec.access_modes or ())
    found = f"{claim.status.phase}, {', '.join(sorted(modes))}"
    if claim.status.phase == "Lost":
        advice = "its storage is gone; make the claim anew and fill it"
        return check._replace(verdict="error", found=found, advice=advice)
    if writes and not modes - {"ReadOnlyMany"}:
        advice = f"{key} is written to; it needs the access mode ReadWriteMany"
        return check._replace(verdict="error", found=found, advice=advice)
    if many and not modes & ({"ReadWriteMany"} if writes else SHARED):
        advice = (
            f"{key} is used by pods on several nodes, which this claim lets only one node do: "
            "others would wait for ever; make a claim with accessModes: [ReadWriteMany] (NFS, "
            "CephFS, a cloud's file store)"
        )
        return check._replace(verdict="error", found=found, advice=advice)
    if claim.status.phase != "Bound":
        advice = "fine if it says WaitForFirstConsumer in `kubectl describe pvc`; else no storage"
        return check._replace(verdict="warning", found=found, advice=advice)
    return check._replace(found=found)


def check_repository(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Compare Argo's artifact repository with `cluster.storage`."""
    storage = scene.cluster.storage
    name, _, key = storage.repository.partition("/")
    wanted = Wanted("artifact repository", storage.repository, f"ConfigMap {name}: {SETUP}")
    try:
        found = ask(kube.core.read_namespaced_config_map, name, kube.namespace)
    except NotAllowed:
        yield Check(
            "artifact repository",
            "unknown",
            "not checked: your kubeconfig may not read a ConfigMap",
            "the probe shows whether results can be written: --probe",
        )
        return
    text = None if found is None else (found.data or {}).get(key)
    if text is None:
        what = f"no ConfigMap {name}" if found is None else f"ConfigMap {name} has no key {key}"
        yield Check("artifact repository", "error", what, wanted.advice)
        return
    yield from _judge_repository(storage, text)


def _judge_repository(storage: Storage, text: str) -> Iterator[Check]:
    """Compare what is written in the ConfigMap with what the pipeline says."""
    try:
        s3 = (yaml.safe_load(text) or {})["s3"]
        there = {"bucket": s3["bucket"], "endpoint": _endpoint(s3)}
        secret = (s3.get("accessKeySecret") or {}).get("name")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        yield Check(
            "artifact repository", "error", f"{storage.repository}: no bucket below s3",
            "write it as deploy/kubernetes/base does",
        )  # fmt: skip
        return
    here = {"bucket": storage.bucket, "endpoint": storage.endpoint and storage.endpoint.rstrip("/")}
    wrong = [key for key in here if here[key] != there[key]]
    for key in wrong:
        yield Check(
            f"artifact {key}", "error", f"{there[key]} in Argo, {here[key]} in the pipeline",
            f"set cluster.storage.{key} to what {storage.repository} has, or change that",
        )  # fmt: skip
    if secret and storage.secret and secret != storage.secret:
        yield Check(
            "artifact secret", "warning", f"{secret} in Argo, {storage.secret} in the pipeline",
            "fine if both may read and write the bucket",
        )  # fmt: skip
    if not wrong:
        where = there["endpoint"] or "AWS"
        yield Check("artifact repository", "ok", f"bucket {there['bucket']} at {where}")


def _endpoint(s3: dict[str, Any]) -> str | None:
    """Return the address; that of AWS is None, as in the pipeline."""
    host = s3.get("endpoint")
    if not host or host.endswith("amazonaws.com"):
        return None
    return f"{'http' if s3.get('insecure') else 'https'}://{host}"
