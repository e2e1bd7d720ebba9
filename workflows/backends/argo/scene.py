"""What the checks look at, and how steps are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from workflows.backends.argo.pods import resources_of
from workflows.backends.argo.run import ADVANCE
from workflows.concurrent_learning import Progress, decide_key
from workflows.graph import Node
from workflows.pipeline import plan
from workflows.schema_cluster import Cluster, Resources

if TYPE_CHECKING:
    from workflows.backends.argo.context import Context
    from workflows.schema import Pipeline


class Need(NamedTuple):
    """Steps that ask for the same.

    Attributes
    ----------
    steps
        Their names.
    entry
        The entry of `cluster.resources` that says so; "default" where there is none.
    """

    steps: tuple[str, ...]
    entry: str
    resources: Resources

    def __str__(self) -> str:
        more = f" and {len(self.steps) - 1} more" if len(self.steps) > 1 else ""
        return f"{self.steps[0]}{more}"


class Scene(NamedTuple):
    """Who submits where, and what.

    Attributes
    ----------
    nodes
        Steps of the whole pipeline, with iterations to come; none without a pipeline.
    """

    context: Context
    pipeline: Pipeline | None
    cluster: Cluster
    nodes: tuple[Node, ...]

    def needs(self) -> list[Need]:
        """Return what steps ask for; without a pipeline what a step asks for by default."""
        if not self.nodes:
            default = self.cluster.resources_for("default", "default")
            return [Need(("a step by default",), "default", default)]
        found: dict[str, tuple[list[str], Resources]] = {}
        for node in self.nodes:
            resources = self.resources(node)
            found.setdefault(resources.model_dump_json(), ([], resources))[0].append(node.key)
        return [Need(tuple(keys), self.entry(r), r) for keys, r in found.values()]

    def resources(self, node: Node) -> Resources:
        """Return what a step asks for."""
        if self.pipeline is None:
            return self.cluster.resources_for(node.key, node.op)
        return resources_of(self.pipeline, node)

    def entry(self, resources: Resources) -> str:
        """Return the name in `cluster.resources` of an entry."""
        names = [name for name, entry in self.cluster.resources.items() if entry == resources]
        return names[0] if names else "default"


def set_scene(context: Context, pipeline: Pipeline | None) -> Scene:
    """Plan a pipeline as far as it can be known before it runs."""
    if pipeline is None:
        return Scene(context, None, Cluster(), ())
    nodes = {node.key: node for node in plan(pipeline)}
    if pipeline.concurrent_learning is not None:
        # names of later iterations and of the final part, for entries of cluster.resources
        ahead = plan(pipeline, Progress(pipeline.concurrent_learning.max_iterations, finished=True))
        nodes = {node.key: node for node in ahead} | nodes
        nodes[ADVANCE] = Node(ADVANCE, ADVANCE, {}, {"decision": f"{decide_key(0)}:"})
    return Scene(context, pipeline, pipeline.cluster, tuple(nodes.values()))
