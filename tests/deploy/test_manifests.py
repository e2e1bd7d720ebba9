"""Renderings of the overlays: as committed, valid for Kubernetes, within our rules.

REGEN=1 rewrites the golden files (kubectl is needed).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import kubernetes_validate
import pytest
import yaml

from tests.deploy import policies
from tests.deploy.rendered import (
    FOLDERS,
    GOLDEN,
    KUBERNETES,
    LOOSE,
    Object,
    find,
    label,
    objects,
    pod_spec,
    render,
)

KUBERNETES_VERSIONS = ("1.33", "1.35", "1.37")
"""The oldest that Argo 4.1 wants, that of the local overlay, the newest we know of."""
ALL = (*FOLDERS, *LOOSE)


@pytest.mark.parametrize("name", FOLDERS)
def test_rendering_is_the_golden_one(name: str) -> None:
    fresh = render(name)
    if fresh is None:
        pytest.skip("no kubectl: the golden files are checked, but not that they are up to date")
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("REGEN"):
        golden.write_text(fresh, encoding="utf-8")
    assert fresh == golden.read_text(encoding="utf-8"), "REGEN=1 renders the golden files anew"


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    # what the overlays share is looked at once
    unique = {json.dumps(item): item for name in ALL for item in objects(name)}
    for item in unique.values():
        kubernetes_validate.validate(item, version, strict=True)


def test_validation_is_not_blind() -> None:
    item = find(objects("local"), "Deployment")
    item["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRoot"):
        kubernetes_validate.validate(item, KUBERNETES_VERSIONS[0], strict=True)


def test_no_object_twice() -> None:
    for name in ALL:
        labels = [label(item) for item in objects(name)]
        assert len(labels) == len(set(labels))


def test_every_manifest_is_part_of_a_rendering() -> None:
    """Nothing lies about that a kustomization has forgotten."""
    for path in KUBERNETES.rglob("*.yaml"):
        if path.name in ("kustomization.yaml", "kind.yaml", "nvidia.yaml", "loader.yaml"):
            continue
        folder = yaml.safe_load((path.parent / "kustomization.yaml").read_text(encoding="utf-8"))
        patches = [entry["path"] for entry in folder.get("patches", [])]
        assert path.name in [*folder["resources"], *patches], path


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("policy", policies.POLICIES, ids=lambda p: p.__name__)
def test_policy(policy: policies.Policy, name: str) -> None:
    assert not list(policy(objects(name)))


# --- the rules themselves: each mistake is found by its rule

Mistake = Callable[[list[Object]], None]


def _spec(items: list[Object]) -> Object:
    spec = pod_spec(find(items, "Deployment"))
    assert spec is not None
    return spec


def _main(items: list[Object]) -> Object:
    return _spec(items)["containers"][0]


def _security(**changes: object) -> Mistake:
    return lambda items: _main(items)["securityContext"].update(changes)


def _pod_security(**changes: object) -> Mistake:
    return lambda items: _spec(items)["securityContext"].update(changes)


def _rule(**changes: object) -> Mistake:
    return lambda items: find(items, "Role", "dpaflow-user")["rules"][0].update(changes)


def _drop(kind: str, name: str) -> Mistake:
    return lambda items: items.remove(find(items, kind, name))


def _egress(**peer: object) -> Mistake:
    def change(items: list[Object]) -> None:
        find(items, "NetworkPolicy", "steps")["spec"]["egress"][0]["to"] = [dict(peer)]

    return change


def _mistakes() -> Iterator[tuple[policies.Policy, Mistake]]:
    yield policies.no_root, _pod_security(runAsNonRoot=False)
    yield policies.no_root, _pod_security(runAsUser=0)
    yield policies.no_root, _security(runAsUser=0)
    yield policies.no_escalation, _security(allowPrivilegeEscalation=None)
    yield policies.no_escalation, _security(privileged=True)
    yield policies.no_capabilities, _security(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]})
    yield policies.seccomp, _pod_security(seccompProfile={"type": "Unconfined"})
    yield policies.seccomp, _security(seccompProfile={"type": "Unconfined"})
    yield policies.read_only_root, _security(readOnlyRootFilesystem=False)
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        yield policies.nothing_of_the_node, lambda items, key=key: _spec(items).update({key: True})
    yield (
        policies.nothing_of_the_node,
        lambda items: _spec(items)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    )
    yield policies.nothing_of_the_node, lambda items: _main(items)["ports"][0].update(hostPort=80)
    yield policies.volumes_bounded, lambda items: _spec(items)["volumes"][1]["emptyDir"].clear()
    yield policies.resources_set, lambda items: _main(items)["resources"]["limits"].pop("memory")
    yield policies.probes_set, lambda items: _main(items).pop("livenessProbe")
    for image in ("versitygw", "versity/versitygw:latest", "registry:5000/versity/versitygw"):
        yield policies.images_pinned, lambda items, image=image: _main(items).update(image=image)
    yield (
        policies.no_secret_data,
        lambda items: find(items, "Secret").update(data={"token": "eA=="}),
    )
    yield (
        policies.no_secret_data,
        lambda items: _main(items)["env"].append({"name": "ROOT_SECRET_KEY", "value": "x"}),
    )
    yield policies.least_rights, _rule(verbs=["*"])
    yield policies.least_rights, _rule(resources=["*"])
    yield policies.least_rights, _rule(resources=["secrets"])
    yield policies.least_rights, _rule(resources=["pods/exec"])
    yield policies.least_rights, _rule(resources=["pods"])
    yield policies.least_rights, _rule(verbs=["impersonate"])
    yield (
        policies.least_rights,
        lambda items: find(items, "Role", "dpaflow-user").update(kind="ClusterRole"),
    )
    yield policies.accounts_exist, _drop("ServiceAccount", "s3")
    yield policies.accounts_exist, _drop("ServiceAccount", "dpaflow-advance")
    yield policies.accounts_exist, _drop("Role", "dpaflow-user")
    yield (
        policies.tokens_only_where_needed,
        lambda items: _spec(items).pop("automountServiceAccountToken"),
    )
    yield (
        policies.tokens_only_where_needed,
        lambda items: find(items, "ServiceAccount", "default").pop("automountServiceAccountToken"),
    )
    yield policies.namespace_is_ours, lambda items: _namespace(items, "kube-system")
    yield policies.namespace_is_ours, lambda items: _namespace(items, "argo")
    yield (
        policies.not_open_to_the_world,
        lambda items: find(items, "Service")["spec"].update(type="NodePort"),
    )
    yield policies.network_closed, _drop("NetworkPolicy", "deny-all")
    yield policies.network_closed, _egress(ipBlock={"cidr": "0.0.0.0/0"})
    yield policies.network_closed, _egress(namespaceSelector={})
    yield policies.bounded_as_a_whole, _drop("ResourceQuota", "dpaflow")
    yield (
        policies.bounded_as_a_whole,
        lambda items: find(items, "Namespace")["metadata"]["labels"].clear(),
    )


def _namespace(items: list[Object], name: str) -> None:
    find(items, "Deployment")["metadata"]["namespace"] = name


MISTAKES = list(_mistakes())


@pytest.mark.parametrize(("policy", "mistake"), MISTAKES, ids=[p.__name__ for p, _ in MISTAKES])
def test_policy_is_not_blind(policy: policies.Policy, mistake: Mistake) -> None:
    items = objects("local")
    mistake(items)
    assert list(policy(items))


def test_every_policy_has_a_mistake() -> None:
    assert {policy for policy, _ in MISTAKES} == set(policies.POLICIES)
