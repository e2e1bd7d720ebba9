"""The last step of a pipeline with `publish`: which models, and what their card is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpa_core.errors import ConfigError
from workflows.graph import Node, needs, slug

if TYPE_CHECKING:
    from workflows.schema import Pipeline

NO_RESULT = {"execution", "cluster", "publish", "report"}
"""Blocks of the YAML that change no model."""


def publish_nodes(pipeline: Pipeline, nodes: Sequence[Node]) -> list[Node]:
    """Return the step that publishes, if the pipeline asks for it.

    Parameters
    ----------
    pipeline
        The pipeline.
    nodes
        All other steps.

    Raises
    ------
    ConfigError
        The pipeline makes no model, or `publish.models` names a step that makes none.
    """
    settings = pipeline.publish
    if settings is None:
        return []
    by_key = {node.key: node for node in nodes}
    chosen = settings.models or _final_models(pipeline, by_key)
    for name, key in chosen.items():
        if key not in by_key or by_key[key].op not in ("train", "bias"):
            known = [node.key for node in nodes if node.op in ("train", "bias")]
            raise ConfigError(f"publish.models.{name}: no step {key!r} makes a model; there are "
                              f"{', '.join(known) or 'none'}")  # fmt: skip
    if not chosen:
        raise ConfigError("publish: the pipeline trains no model; name one in publish.models")
    models = [_model(name, by_key[key], nodes) for name, key in chosen.items()]
    collects = {path.partition(":")[0] for model in models for path in model["data"]}
    inputs = {
        "models": {key: f"{key}:" for key in dict.fromkeys(chosen.values())},
        "report": "report:",
        "tests": {key: f"{key}:" for key in dict.fromkeys(t for m in models for t in m["tests"])},
        "data": {n.key: f"{n.key}:" for n in nodes if n.key in collects and n.op == "collect"},
    }
    config = {
        "to": settings.to,
        "name": pipeline.name,
        "models": models,
        "pipeline_hash": pipeline_hash(pipeline),
    }
    return [Node("publish", "publish", config, inputs)]


def pipeline_hash(pipeline: Pipeline) -> str:
    """Return a hash of all settings that decide the results."""
    from workflows.schema import inline_templates

    document = inline_templates(pipeline).model_dump(
        mode="json", exclude_unset=True, by_alias=True, exclude=NO_RESULT
    )
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _final_models(pipeline: Pipeline, nodes: Mapping[str, Node]) -> dict[str, str]:
    """File name -> step of the models that a pipeline is run for."""
    if pipeline.concurrent_learning is not None:
        keys = [key for key in nodes if key.startswith("final-train-m")]
        return {key.removeprefix("final-train-"): key for key in keys}
    keys = [
        f"finetune-{slug(target.name)}-{slug(name)}-n{max(target.frames):05d}"
        f"-s{target.seeds[0]:03d}"
        for target in pipeline.targets
        if target.frames
        for name in pipeline.models
    ]
    if keys:
        return {key.removeprefix("finetune-"): key for key in keys}
    return {slug(name): f"pretrain-{slug(name)}" for name in pipeline.trained_models()}


def _model(name: str, node: Node, nodes: Sequence[Node]) -> dict[str, Any]:
    """Return the settings of one published model: its tests, data and origin."""
    tests = {
        test.key: alias
        for test in nodes
        if test.op == "test"
        for alias, path in test.inputs["models"].items()
        if path.partition(":")[0] == node.key
    }
    start = node.inputs.get("pretrained") or node.inputs.get("model")
    if start is not None and start.partition(":")[0] in needs(node):
        start = start.partition(":")[0]
    data = node.inputs.get("train") or node.inputs.get("data") or []
    return {
        "name": name,
        "step": node.key,
        "tests": tests,
        "data": [path for path in data if path.partition(":")[0] in needs(node)],
        "started_from": start,
    }
