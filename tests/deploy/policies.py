"""What no manifest of ours may do: one function a rule, which returns what breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tests.deploy.rendered import Object, label, pod_spec

Policy = Callable[[list[Object]], Iterator[str]]

NAMESPACES = ("dpaflow", "argo")
CLUSTER_WIDE = ("Namespace", "PriorityClass")
WORKING_KINDS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "Pod")
READABLE_SECRET = "dpaflow-s3"
"""The one Secret that people may read: the Argo server shows reports from the bucket with it."""
METADATA_SERVICES = ("169.254.169.254/32", "fd00:ec2::254/128")
STEP = [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}]


def _pods(items: list[Object]) -> Iterator[tuple[str, Object]]:
    for item in items:
        spec = pod_spec(item)
        if spec is not None:
            yield label(item), spec


def _containers(items: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    for name, spec in _pods(items):
        for kind in ("initContainers", "containers", "ephemeralContainers"):
            for container in spec.get(kind, []):
                yield f"{name}/{container['name']}", container, spec


def _of_kind(items: list[Object], *kinds: str) -> Iterator[Object]:
    return (item for item in items if item["kind"] in kinds)


# --- pods


def no_root(items: list[Object]) -> Iterator[str]:
    for name, spec in _pods(items):
        context = spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{name}: may be root"
    for name, container, _ in _containers(items):
        context = container.get("securityContext", {})
        if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
            yield f"{name}: is root"


def no_escalation(items: list[Object]) -> Iterator[str]:
    for name, container, _ in _containers(items):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{name}: may gain privileges"


def no_capabilities(items: list[Object]) -> Iterator[str]:
    for name, container, _ in _containers(items):
        found = container.get("securityContext", {}).get("capabilities", {})
        if found != {"drop": ["ALL"]}:
            yield f"{name}: capabilities {found}"


def seccomp(items: list[Object]) -> Iterator[str]:
    for name, spec in _pods(items):
        if spec.get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name}: all system calls are open"
    for name, container, _ in _containers(items):
        if "seccompProfile" in container.get("securityContext", {}):
            yield f"{name}: a seccomp profile of its own"


def read_only_root(items: list[Object]) -> Iterator[str]:
    for name, container, _ in _containers(items):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{name}: can write to its image"


def nothing_of_the_node(items: list[Object]) -> Iterator[str]:
    for name, spec in _pods(items):
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{name}: {key}"
        for volume in spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{name}: files of the node"
    for name, container, _ in _containers(items):
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name}: a port of the node"


def volumes_bounded(items: list[Object]) -> Iterator[str]:
    for name, spec in _pods(items):
        for volume in spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{name}: {volume['name']} may fill the node's disk"
    for item in _of_kind(items, "PersistentVolumeClaim"):
        if "storage" not in item["spec"].get("resources", {}).get("requests", {}):
            yield f"{label(item)}: no size"


def resources_set(items: list[Object]) -> Iterator[str]:
    for name, container, _ in _containers(items):
        given = container.get("resources", {})
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(given.get(kind, {})):
                yield f"{name}: no {kind} of cpu and memory"


def probes_set(items: list[Object]) -> Iterator[str]:
    for item in _of_kind(items, "Deployment", "StatefulSet", "DaemonSet"):
        for container in (pod_spec(item) or {})["containers"]:
            for probe in ("readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{label(item)}/{container['name']}: no {probe}"


def images_pinned(items: list[Object]) -> Iterator[str]:
    for name, container, _ in _containers(items):
        last = container["image"].rpartition("/")[2]
        tag = last.partition("@")[0].partition(":")[2]
        if "@sha256:" not in last and not re.search(r"\d", tag):
            yield f"{name}: {container['image']} may be another image tomorrow"


# --- secrets and rights


def no_secret_data(items: list[Object]) -> Iterator[str]:
    for item in _of_kind(items, "Secret"):
        if item.get("data") or item.get("stringData"):
            yield f"{label(item)}: contents"
    for name, container, _ in _containers(items):
        for variable in container.get("env", []):
            secret = re.search(r"KEY|SECRET|TOKEN|PASSWORD", variable["name"])
            if secret and "value" in variable:
                yield f"{name}: {variable['name']} in plain sight"


def least_rights(items: list[Object]) -> Iterator[str]:
    for item in _of_kind(items, "ClusterRole", "ClusterRoleBinding"):
        yield f"{label(item)}: rights in the whole cluster"
    for item in _of_kind(items, "Role"):
        for rule in item["rules"]:
            yield from (f"{label(item)}: {reason}" for reason in _too_much(rule))


def _too_much(rule: Object) -> Iterator[str]:
    resources, verbs = set(rule["resources"]), set(rule["verbs"])
    if "*" in resources | verbs | set(rule["apiGroups"]):
        yield "everything (*)"
    if verbs & {"escalate", "bind", "impersonate", "deletecollection"}:
        yield f"may {sorted(verbs)}"
    dangerous = {
        "pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "nodes",
        "serviceaccounts/token", "roles", "rolebindings", "clusterroles",
    }  # fmt: skip
    if resources & dangerous:
        yield f"{sorted(resources & dangerous)}"
    if "secrets" in resources and (
        rule.get("resourceNames") != [READABLE_SECRET] or verbs != {"get"}
    ):
        yield "secrets"
    if "pods" in resources and verbs & {"create", "update", "patch"}:
        yield "makes pods past Argo"


def accounts_exist(items: list[Object]) -> Iterator[str]:
    accounts = {x["metadata"]["name"] for x in _of_kind(items, "ServiceAccount")}
    roles = {x["metadata"]["name"] for x in _of_kind(items, "Role")}
    for name, spec in _pods(items):
        account = spec.get("serviceAccountName")
        if account is not None and account not in accounts:
            yield f"{name}: account {account} is nowhere made"
    for item in _of_kind(items, "RoleBinding"):
        if item["roleRef"]["kind"] != "Role" or item["roleRef"]["name"] not in roles:
            yield f"{label(item)}: role {item['roleRef']['name']} is nowhere made"
        for subject in item["subjects"]:
            if subject["kind"] != "ServiceAccount" or subject["name"] not in accounts:
                yield f"{label(item)}: {subject['name']} is nowhere made"
            if subject.get("namespace") != "dpaflow":
                yield f"{label(item)}: rights for another namespace"
    for item in _of_kind(items, "Secret"):
        owner = item["metadata"].get("annotations", {}).get("kubernetes.io/service-account.name")
        if item["type"] == "kubernetes.io/service-account-token" and owner not in accounts:
            yield f"{label(item)}: a token of nobody"


def tokens_only_where_needed(items: list[Object]) -> Iterator[str]:
    bound = {s["name"] for x in _of_kind(items, "RoleBinding") for s in x["subjects"]}
    for item in _of_kind(items, "ServiceAccount"):
        mounts = item.get("automountServiceAccountToken")
        if mounts is None or (mounts and item["metadata"]["name"] not in bound):
            yield f"{label(item)}: a token in every pod"
    for name, spec in _pods(items):
        needs = spec.get("serviceAccountName") in bound
        if not needs and spec.get("automountServiceAccountToken") is not False:
            yield f"{name}: a token it has no use for"


# --- the namespace


def namespace_is_ours(items: list[Object]) -> Iterator[str]:
    for item in items:
        namespace = item["metadata"].get("namespace")
        if item["kind"] in CLUSTER_WIDE:
            continue
        if namespace not in NAMESPACES:
            yield f"{label(item)}: namespace {namespace}"
        if namespace == "argo" and item["kind"] != "ConfigMap":
            yield f"{label(item)}: more than settings in Argo's namespace"


def not_open_to_the_world(items: list[Object]) -> Iterator[str]:
    for item in _of_kind(items, "Service"):
        if item["spec"].get("type", "ClusterIP") != "ClusterIP" or "externalIPs" in item["spec"]:
            yield f"{label(item)}: reachable from outside the cluster"
    for item in _of_kind(items, "Ingress", "Gateway", "HTTPRoute"):
        yield f"{label(item)}: reachable from outside the cluster"


def network_closed(items: list[Object]) -> Iterator[str]:
    policies = [x["spec"] for x in _of_kind(items, "NetworkPolicy")]
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if any(True for _ in _of_kind(items, "Namespace")) and deny not in policies:
        yield "no policy that denies everything first"
    for item in _of_kind(items, "NetworkPolicy"):
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in item["spec"].get(direction, []):
                if not rule.get(peers) or not rule.get("ports"):
                    yield f"{label(item)}: {direction} open to all"
                for peer in rule.get(peers, []):
                    yield from (f"{label(item)}: {reason}" for reason in _too_open(peer))


def _too_open(peer: Object) -> Iterator[str]:
    block = peer.get("ipBlock", {})
    if block.get("cidr") in ("0.0.0.0/0", "::/0") and not (
        set(block.get("except", [])) & set(METADATA_SERVICES)
    ):
        yield "the credentials of the node are within reach"
    if {} in (peer.get("podSelector"), peer.get("namespaceSelector")):
        yield "everybody in the cluster"


def bounded_as_a_whole(items: list[Object]) -> Iterator[str]:
    for item in _of_kind(items, "Namespace"):
        labels = item["metadata"].get("labels", {})
        for mode in ("enforce", "audit", "warn"):
            if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                yield f"{label(item)}: pod security {mode} is not restricted"
        kinds = {x["kind"] for x in items}
        for kind in ("ResourceQuota", "LimitRange"):
            if kind not in kinds:
                yield f"{label(item)}: no {kind}"


POLICIES: tuple[Policy, ...] = (
    no_root, no_escalation, no_capabilities, seccomp, read_only_root, nothing_of_the_node,
    volumes_bounded, resources_set, probes_set, images_pinned, no_secret_data, least_rights,
    accounts_exist, tokens_only_where_needed, namespace_is_ours, not_open_to_the_world,
    network_closed, bounded_as_a_whole,
)  # fmt: skip
