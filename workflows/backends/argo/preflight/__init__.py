"""Whether a cluster is fit to run a pipeline, found out before anything is submitted.

One module a subject; every check is a line with a verdict, what was found and what to do.
Nothing is changed, but for a small object that is written to the bucket and deleted, and the
probe's pods.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa_core.errors import ConfigError, DPAError
from workflows.backends.argo.preflight import (
    access,
    images,
    nodes,
    objects,
    quota,
    steps,
    storage,
)
from workflows.backends.argo.preflight.kube import Kube, KubeError, NotAllowed, ask, connect
from workflows.backends.argo.preflight.server import (
    check_server,
    check_token,
    check_workflows,
)
from workflows.backends.argo.probe import WAIT, manifest, run_probe
from workflows.backends.argo.scene import Scene, set_scene
from workflows.backends.argo.transport import ServerError, Transport
from workflows.doctor import Check

if TYPE_CHECKING:
    from workflows.backends.argo.context import Context
    from workflows.schema import Pipeline

log = logging.getLogger(__name__)

KUBE_CHECKS = (
    ("namespace", quota.check_namespace),
    ("rights", access.check_user),
    ("service accounts", objects.check_service_accounts),
    ("rights of the accounts", access.check_accounts),
    ("secrets", objects.check_secrets),
    ("artifact repository", objects.check_repository),
    ("volumes", objects.check_volumes),
    ("priority class", objects.check_priority_class),
    ("quota", quota.check_quota),
    ("limits", quota.check_limits),
    ("Argo's own containers", quota.check_sidecars),
    ("nodes", nodes.check_nodes),
)
"""What Kubernetes itself is asked."""
OLDEST_KUBERNETES = 27
"""Minor version; older ones run no Argo of a supported version."""
SKEW = 5
"""Minor versions between the Python client and Kubernetes that go well."""


def preflight(context: Context, pipeline: Pipeline | None, *, probe: bool) -> list[Check]:
    """Return everything that can be said before a pipeline is submitted.

    Parameters
    ----------
    context
        The Argo server, and who asks.
    pipeline
        What is to run there; without it only the cluster is looked at.
    probe
        Whether pods are started that look at the cluster from inside; minutes instead of
        seconds.
    """
    return [check for group in stages(context, pipeline, probe=probe) for check in group]


def stages(
    context: Context, pipeline: Pipeline | None, *, probe: bool, wait: float = WAIT
) -> Iterator[list[Check]]:
    """Yield the findings of one subject after the other, as soon as they are known.

    Parameters
    ----------
    context, pipeline, probe
        As for `preflight`.
    wait
        Seconds that the probe's pods may take.
    """
    scene = set_scene(context, pipeline)
    failed = False
    yield [*steps.check_entries(scene), *guard("local files", steps.check_files, scene)]
    for group in (_argo(scene), _kubernetes(scene), guard("bucket", storage.check_bucket, scene)):
        failed |= any(check.verdict == "error" for check in group)
        yield group
    if probe and failed:
        yield [Check("probe", "unknown", "not started", "correct the errors above first")]
    elif probe:
        yield guard("probe", run_probe, scene, wait)


def guard(name: str, function: Callable[..., Iterable[Check]], *arguments: Any) -> list[Check]:
    """Run a check; what keeps it from an answer is its finding."""
    found: list[Check] = []
    try:
        found.extend(function(*arguments))
    except NotAllowed as error:
        text = f"not checked: your kubeconfig may not ask ({error})"
        found.append(Check(name, "unknown", text, "ask who runs the cluster to look at this"))
    except (DPAError, KubeError, OSError) as error:
        found.append(Check(name, "error", f"not checked: {error}"))
    except Exception as error:
        # a mistake of ours, or an answer that nobody foresaw: no reason not to submit. Its text
        # may hold anything, so it is not shown
        log.debug("check %s", name, exc_info=True)
        text = f"not checked: {type(error).__name__} in {function.__name__}"
        found.append(Check(name, "unknown", text, "please report it"))
    return found


def _argo(scene: Scene) -> list[Check]:
    try:
        server = Transport(scene.context)
    except ServerError as error:
        return [Check("Argo server", "error", str(error))]
    found: list[Check] = []
    for name, function in (("Argo server", check_server), ("token", check_token)):
        found += guard(name, function, scene, server)
        if any(check.verdict == "error" for check in found):
            return found
    return found + guard("may submit", check_workflows, scene, server, manifest(scene))


def _kubernetes(scene: Scene) -> list[Check]:
    """Ask Kubernetes, if a kubeconfig is at hand; images are asked for in any case."""
    name = "Kubernetes"
    try:
        kube = connect(scene.context)
    except ConfigError as error:
        kube, found = None, [Check(name, "error", str(error))]
    else:
        found = [_without_kubeconfig(scene)] if kube is None else guard(name, _hello, kube)
    if kube is None or any(check.verdict in ("error", "unknown") for check in found):
        return found + guard("images", images.check_images, scene, None)
    for subject, function in KUBE_CHECKS:
        found += guard(subject, function, scene, kube)
    return found + guard("images", images.check_images, scene, kube)


def _without_kubeconfig(scene: Scene) -> Check:
    subjects = ", ".join(subject for subject, _ in KUBE_CHECKS)
    path = scene.context.kubeconfig or Path("~/.kube/config")
    return Check(
        "Kubernetes",
        "unknown",
        f"no kubeconfig at {path}, so these are not checked: {subjects}",
        "the probe (--probe) notices most of it; or get a kubeconfig from who runs the cluster",
    )


def _hello(kube: Kube) -> Iterator[Check]:
    """Ask for the version, and whether this is a cluster with Argo at all."""
    from importlib.metadata import version

    from kubernetes.client import CustomObjectsApi, VersionApi

    found = ask(VersionApi(kube.client).get_code)
    minor = int("".join(c for c in found.minor if c.isdigit()))
    client = int(version("kubernetes").partition(".")[0])
    text = f"{found.git_version} at {kube.host}"
    if minor < OLDEST_KUBERNETES:
        advice = f"1.{OLDEST_KUBERNETES} or later is wanted; ask who runs the cluster"
        yield Check("Kubernetes", "warning", text, advice)
    elif abs(client - minor) > SKEW:
        advice = f"made for 1.{client}: pip install 'kubernetes~={minor}.0' if answers look odd"
        yield Check("Kubernetes", "warning", text, advice)
    else:
        yield Check("Kubernetes", "ok", text)
    resources = ask(CustomObjectsApi(kube.client).get_api_resources, access.GROUP, "v1alpha1")
    if resources is None:
        advice = (
            "name the right cluster in kubeconfig and kube_context of the context file, or "
            "install Argo (deploy/kubernetes)"
        )
        yield Check("Argo in the cluster", "error", f"{kube.host} knows no workflows", advice)
