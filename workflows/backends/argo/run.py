"""A run on Argo: what it is made from, its steps by now, and its name on the server.

A run is a series of workflows, all made the same way: plan the graph, leave out the steps that
are done, render the rest. One iteration of concurrent learning is one workflow; so is what
`dpaflow resume` adds after a failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import yaml

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError
from ops.labelers import ManualLabeler
from workflows.concurrent_learning import Progress, decide_key
from workflows.graph import Node, fingerprints, slug
from workflows.revisions import Revision, revised_pipeline, revised_plan
from workflows.schema import Pipeline, dump_pipeline, parse_pipeline
from workflows.schema_paths import is_seen_by_pods, map_paths

LABEL_RUN = "dpaflow/run"
LABEL_SEQUENCE = "dpaflow/sequence"
ENDED = ("Succeeded", "Failed", "Error")
"""Phases of a workflow, and of a node of it, that has come to its end."""
PIPELINE, STATE = "pipeline", "state"
"""Names of the parameters that a workflow keeps its run in."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 56
"""Kubernetes takes 63; `-001` and more follow."""
ADVANCE = "advance"
"""Name of the last step of an iteration's workflow."""


@dataclass(frozen=True)
class Run:
    """Everything a workflow is rendered from.

    Attributes
    ----------
    pipeline
        What to do; pods must be able to read every path.
    revisions
        Changes of settings since the start.
    progress
        Iterations to plan.
    sequence
        Number of this workflow in the run.
    signatures
        Data behind URLs: URL -> hash of what is there. Other data, other results.
    """

    pipeline: Pipeline
    revisions: tuple[Revision, ...] = ()
    progress: Progress = field(default_factory=Progress)
    sequence: int = 1
    signatures: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Identity of the run on the server.

        Raises
        ------
        ConfigError
            If the pipeline's name cannot be one there.
        """
        found = slug(self.pipeline.name)
        if not NAME.fullmatch(found) or len(found) > MAX_NAME:
            raise ConfigError(
                f"name: {self.pipeline.name!r}; on a cluster a pipeline's name has letters, "
                f"digits, - and _, a letter or digit at both ends, and at most {MAX_NAME} of them"
            )
        return found

    @property
    def workflow(self) -> str:
        """Name of the workflow."""
        return f"{self.name}-{self.sequence:03d}"

    @cached_property
    def settings(self) -> Pipeline:
        """The pipeline as its newest steps see it; made once, since every rule asks for it."""
        return revised_pipeline(self.pipeline, self.revisions)

    @property
    def goes_on(self) -> bool:
        """Whether another workflow follows this one."""
        return self.pipeline.concurrent_learning is not None and not self.progress.finished

    @property
    def decision(self) -> str:
        """Key of the step that decides what follows."""
        return decide_key(self.progress.iterations - 1)

    def parameters(self) -> dict[str, str]:
        """Return the run as parameters of a workflow."""
        state = {
            "revisions": [r.model_dump(mode="json", by_alias=True) for r in self.revisions],
            "progress": self.progress._asdict(),
            "sequence": self.sequence,
            "signatures": dict(sorted(self.signatures.items())),
            "version": version("dpaflow"),
        }
        text = dump_pipeline(self.pipeline)
        if "{{" in text:
            text = script(yaml.safe_load(text), sort=False)
        return {PIPELINE: text, STATE: script(state)}


def script(document: Mapping[str, Any], *, sort: bool = True) -> str:
    """Return JSON in which Argo finds nothing to substitute.

    Two opening braces, which are a variable to Argo, occur in JSON only within a string.
    """
    text = json.dumps(document, ensure_ascii=False, sort_keys=sort)
    return text.replace("{{", "{\\u007b")


def load_run(workflow: Mapping[str, Any]) -> Run:
    """Return the run that a workflow object belongs to.

    Raises
    ------
    ConfigError
        If the workflow is not one of ours.
    """
    name = workflow.get("metadata", {}).get("name", "?")
    listed = workflow.get("spec", {}).get("arguments", {}).get("parameters") or []
    values = {item["name"]: item.get("value", "") for item in listed}
    if PIPELINE not in values or STATE not in values:
        raise ConfigError(f"workflow {name} was not made by dpaflow: it carries no pipeline")
    state = json.loads(values[STATE])
    return Run(
        parse_pipeline(values[PIPELINE], f"workflow {name}"),
        tuple(parse_config(Revision, r, f"workflow {name}") for r in state["revisions"]),
        Progress(**state["progress"]),
        state["sequence"],
        state["signatures"],
    )


def plan_run(run: Run) -> tuple[list[Node], dict[str, str]]:
    """Return the steps of a run by now, and their fingerprints.

    Raises
    ------
    ConfigError
        If settings contradict each other.
    """
    return plan_nodes(run, revised_plan(run.pipeline, run.revisions, run.progress))


def plan_nodes(run: Run, planned: Sequence[Node]) -> tuple[list[Node], dict[str, str]]:
    """Return planned steps as they run in pods, and their fingerprints."""
    settings = run.settings
    _check_reach(settings)
    nodes = [_on_gpus(settings, node) for node in planned]
    return nodes, fingerprints(nodes, run.signatures)


def _check_reach(pipeline: Pipeline) -> None:
    """Raise ConfigError if pods could not read a path, or not keep what they must."""

    def check(path: str) -> str:
        if not is_seen_by_pods(path, pipeline):
            raise ConfigError(
                f"{path} is on your machine, pods cannot read it; give an s3:// path or one on a "
                "volume (cluster.volumes)"
            )
        return path

    map_paths(pipeline, check)
    loop, cluster = pipeline.concurrent_learning, pipeline.cluster
    if loop and isinstance(loop.label.labeler, ManualLabeler) and not cluster.workspace:
        raise ConfigError(
            "concurrent_learning.label.labeler: manual; its inputs and results must outlive the "
            "pod that waits for them: name a volume in cluster.workspace"
        )
    if loop and cluster.artifacts == "delete":
        raise ConfigError(
            "cluster.artifacts: delete; later iterations of concurrent_learning read what earlier "
            "workflows made, which would go with those: leave it at keep"
        )


def _on_gpus(pipeline: Pipeline, node: Node) -> Node:
    """Let a training use all GPUs of its pod, one process each."""
    gpus = pipeline.cluster.resources_for(node.key, node.op).gpu
    if node.op != "train" or gpus < 2:
        return node
    wanted = node.config.get("nproc")
    if wanted not in (None, gpus):
        raise ConfigError(
            f"step {node.key}: nproc is {wanted}, but cluster.resources gives it {gpus} GPUs; "
            "leave nproc out, then every GPU gets one process"
        )
    return node._replace(config={**node.config, "nproc": gpus})
