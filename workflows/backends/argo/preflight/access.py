"""Who may do what: the owner of the token, and the accounts of the pods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from workflows.backends.argo.preflight.kube import Kube, NotAllowed, ask
from workflows.backends.argo.preflight.objects import SETUP, accounts
from workflows.backends.argo.scene import Scene
from workflows.doctor import Check

GROUP = "argoproj.io"


class Right(NamedTuple):
    """A verb on a kind of object; `purpose` says in plain words what it is for."""

    verb: str
    resource: str
    purpose: str
    group: str = GROUP

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


USER = (
    Right("create", "workflows", "submit"),
    Right("get", "workflows", "status"),
    Right("list", "workflows", "list and resume"),
    Right("watch", "workflows", "watch"),
    Right("update", "workflows", "resume"),
    Right("patch", "workflows", "stop"),
    Right("delete", "workflows", "clean up"),
    Right("get", "pods/log", "logs", ""),
)
POD = (
    Right("create", "workflowtaskresults", "tell Argo their results"),
    Right("patch", "workflowtaskresults", "tell Argo their results"),
)
ADVANCE = (
    Right("get", "workflows", "submit the next iteration"),
    Right("create", "workflows", "submit the next iteration"),
)
CLEANER = (
    Right("list", "workflowartifactgctasks", "delete results"),
    Right("watch", "workflowartifactgctasks", "delete results"),
    Right("patch", "workflowartifactgctasks/status", "delete results"),
)
RIGHTS = {"service_account": POD, "advance_service_account": ADVANCE, "gc_service_account": CLEANER}


def check_user(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Ask Kubernetes what the owner of the Argo token may do; else the owner of the kubeconfig."""
    who = "your token"
    token = scene.context.bearer()
    try:
        if token is None:
            raise NotAllowed
        missing = _missing_of_self(kube.with_token(token), USER)
    except NotAllowed:
        # the token of a single sign-on is Argo's own: Kubernetes does not know it
        who = "your kubeconfig's user"
        missing = _missing_of_self(kube, USER)
    yield _verdict("rights", who, missing, USER, kube.namespace)


def check_accounts(scene: Scene, kube: Kube) -> Iterator[Check]:
    """Ask Kubernetes what the accounts of the pods may do."""
    for key, name in accounts(scene).items():
        label = f"rights of {name}"
        try:
            missing = _missing_of_account(kube, name, RIGHTS[key])
        except NotAllowed:
            yield Check(
                label, "unknown", "not checked: your kubeconfig may not ask about other accounts",
                "the probe shows it: --probe",
            )  # fmt: skip
            continue
        yield _verdict(label, f"pods of {name}", missing, RIGHTS[key], kube.namespace)


def _verdict(
    label: str, who: str, missing: list[Right], wanted: tuple[Right, ...], namespace: str
) -> Check:
    if not missing:
        return Check(label, "ok", f"{who} may {_listed(wanted)} in {namespace}")
    purposes = ", ".join(dict.fromkeys(right.purpose for right in missing))
    found = f"{who} may not {_listed(missing)} in {namespace} (needed to: {purposes})"
    return Check(label, "error", found, SETUP)


def _listed(rights: Iterable[Right]) -> str:
    return ", ".join(str(right) for right in rights)


def _attributes(right: Right, namespace: str) -> dict[str, str]:
    resource, _, subresource = right.resource.partition("/")
    return {
        "namespace": namespace,
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        **({"subresource": subresource} if subresource else {}),
    }


def _missing_of_self(kube: Kube, rights: tuple[Right, ...]) -> list[Right]:
    call = _api(kube).create_self_subject_access_review
    return [r for r in rights if not _allowed(call, _review("SelfSubject", r, kube.namespace))]


def _missing_of_account(kube: Kube, name: str, rights: tuple[Right, ...]) -> list[Right]:
    subject = {
        "user": f"system:serviceaccount:{kube.namespace}:{name}",
        "groups": [
            "system:serviceaccounts",
            f"system:serviceaccounts:{kube.namespace}",
            "system:authenticated",
        ],
    }
    call = _api(kube).create_namespaced_local_subject_access_review
    return [
        right
        for right in rights
        if not _allowed(
            call, kube.namespace, _review("LocalSubject", right, kube.namespace, subject)
        )
    ]


def _api(kube: Kube) -> Any:
    from kubernetes.client import AuthorizationV1Api

    return AuthorizationV1Api(kube.client)


def _review(
    kind: str, right: Right, namespace: str, subject: dict[str, Any] | None = None
) -> dict[str, Any]:
    spec = {"resourceAttributes": _attributes(right, namespace), **(subject or {})}
    head = {"apiVersion": "authorization.k8s.io/v1", "kind": f"{kind}AccessReview"}
    # a local review must name its namespace
    metadata = {"metadata": {"namespace": namespace}} if kind == "LocalSubject" else {}
    return {**head, **metadata, "spec": spec}


def _allowed(call: Any, *arguments: Any) -> bool:
    review = ask(call, *arguments)
    return review is not None and bool(review.status.allowed)
