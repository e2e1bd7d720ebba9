"""Whether a workflow fits into what Kubernetes and Argo take, before anyone tries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dpa_core.errors import ConfigError

if TYPE_CHECKING:
    from workflows.backends.argo.run import Run

MAX_OBJECT = 1_000_000
"""Bytes. etcd takes 1.5 MiB; Argo packs the status of a workflow above 1 MB."""
MAX_TEMPLATE = 128 * 1024
"""Bytes. A pod gets its template, and a script its text, in one environment variable."""
PLACE_BYTES, REPOSITORY_BYTES, ESCAPE_BYTES = 220, 1000, 5
"""What Argo adds there: where an input is, where the bucket is, and for each of < > &."""
MAX_DEPTH = 100
"""Templates that may call each other in a row."""
NODE_BYTES, ARTIFACT_BYTES, NODES_PER_POD, PACKED = 900, 250, 2, 0.2
"""Of the status: of a node, of an artifact in it, nodes of a step, what packing leaves."""


class Size(NamedTuple):
    """How large a workflow is.

    Attributes
    ----------
    pods
        Steps.
    spec
        Bytes of what is submitted.
    status
        Bytes that Argo will add while it runs, packed; an estimate.
    template
        Bytes of the largest template.
    depth
        Templates that call each other in a row.
    """

    pods: int
    spec: int
    status: int
    template: int
    depth: int

    @property
    def total(self) -> int:
        """Bytes of the object at the end."""
        return self.spec + self.status


def measure(manifest: Mapping[str, Any]) -> Size:
    """Return how large a workflow is and will become."""
    templates = manifest["spec"]["templates"]
    pods = [template for template in templates if "dag" not in template]
    status = 0
    for template in pods:
        artifacts = sum(
            len(template.get(side, {}).get("artifacts", [])) for side in ("inputs", "outputs")
        )
        status += NODES_PER_POD * (NODE_BYTES + ARTIFACT_BYTES * artifacts)
    return Size(
        len(pods), _bytes(manifest), round(PACKED * status),
        max(map(_in_pod, templates)), _depth(manifest),
    )  # fmt: skip


def check_pods(number: int, run: Run) -> None:
    """Raise ConfigError if a workflow would have more pods than the pipeline allows."""
    most = run.settings.cluster.max_pods
    if number > most:
        raise ConfigError(
            f"{run.workflow} would have {number} pods, cluster.max_pods allows {most}; {ADVICE}"
        )


def check_size(manifest: Mapping[str, Any], run: Run) -> Size:
    """Return the size of a workflow.

    Raises
    ------
    ConfigError
        If it is larger than Argo takes.
    """
    size = measure(manifest)
    if size.total > MAX_OBJECT:
        raise ConfigError(
            f"{run.workflow} would be an object of {size.total / 1e6:.2f} MB ({size.pods} pods), "
            f"Kubernetes takes {MAX_OBJECT / 1e6:g} MB; {ADVICE}"
        )
    large = [t for t in manifest["spec"]["templates"] if _in_pod(t) > MAX_TEMPLATE]
    for template in (t for t in large if "dag" not in t):
        raise ConfigError(
            f"step {template['name']} of {run.workflow} would be {_in_pod(template) // 1024} KiB, "
            f"a pod takes {MAX_TEMPLATE // 1024} KiB; shorten what is written out in its settings "
            "(templates, lists)"
        )
    if size.depth > MAX_DEPTH:
        raise ConfigError(f"{run.workflow} is {size.depth} templates deep, Argo takes {MAX_DEPTH}")
    return size


ADVICE = (
    "make fewer, larger steps (label.group_size, explore_tasks, committee.kind: heads), name fewer "
    "targets, seeds or numbers of frames, or split the pipeline"
)


def _bytes(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _in_pod(template: Mapping[str, Any]) -> int:
    """Return the size of a template as Argo hands it to its pod."""
    text = json.dumps(template, separators=(",", ":"), ensure_ascii=False)
    places = PLACE_BYTES * len(template.get("inputs", {}).get("artifacts", []))
    escaped = ESCAPE_BYTES * sum(map(text.count, "<>&"))
    return len(text.encode()) + places + escaped + REPOSITORY_BYTES


def _depth(manifest: Mapping[str, Any]) -> int:
    templates = {template["name"]: template for template in manifest["spec"]["templates"]}

    def depth(name: str, above: tuple[str, ...]) -> int:
        if name in above:  # a template that calls itself has no end
            return MAX_DEPTH + 1
        tasks = templates[name].get("dag", {}).get("tasks", [])
        return 1 + max((depth(task["template"], (*above, name)) for task in tasks), default=0)

    return depth(manifest["spec"]["entrypoint"], ())
