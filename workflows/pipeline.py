"""Which steps a pipeline has: collect, pretrain, then adapt to every target, test, report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from workflows.concurrent_learning import Loop, Progress
from workflows.graph import Node, check, slug
from workflows.publish import publish_nodes

if TYPE_CHECKING:
    from workflows.schema import Pipeline, RunSettings, Target

MODEL = "model.safetensors"


def plan(pipeline: Pipeline, progress: Progress | None = None) -> list[Node]:
    """Return the steps of a pipeline, every step after those it depends on.

    Parameters
    ----------
    pipeline
        What to do.
    progress
        How many iterations of concurrent learning there are by now; one when left out.

    Raises
    ------
    ConfigError
        If two steps would get the same key.
    """
    nodes = [_collect(pipeline, name) for name in pipeline.data]
    nodes += [_pretrain(pipeline, name) for name in pipeline.trained_models()]
    nodes += _test_pretrained(pipeline)
    for target in pipeline.targets:
        for seed in target.seeds:
            nodes += _target(pipeline, target, seed)
    progress = progress or Progress()
    if pipeline.concurrent_learning is not None:
        nodes += _loop(pipeline).nodes(progress)
    if (
        pipeline.concurrent_learning is None or progress.finished
    ):  # until then the iterations have pages of their own
        nodes.append(_report(pipeline, nodes))
        nodes += publish_nodes(pipeline, nodes)
    check(nodes)
    return nodes


def _loop(pipeline: Pipeline) -> Loop:
    """Return concurrent learning's steps, with the model it starts from."""
    settings = pipeline.concurrent_learning
    if settings is None or settings.start == "scratch":
        return Loop(pipeline)
    model = _pretrained(pipeline, settings.model or next(iter(pipeline.models)))
    return Loop(pipeline, model.path, model.files)


def _collect(pipeline: Pipeline, name: str) -> Node:
    data = pipeline.data[name]
    config = data.model_dump(mode="json", exclude_unset=True)
    if "type_map" not in config and pipeline.type_map is not None:
        config["type_map"] = list(pipeline.type_map)
    # what a target draws later is asked for now: before hours of pretraining
    draws = [
        max(target.frames) + (target.test is None)
        for target in pipeline.targets
        if target.data == name and target.frames
    ]
    if draws:
        config["min_train"] = max(*draws, data.min_train)
    files = tuple(source.path for source in data.sources)
    return Node(f"collect-{slug(name)}", "collect", config, files=files)


def _pretrain(pipeline: Pipeline, name: str) -> Node:
    pretrain = pipeline.pretrain
    inputs: dict[str, Any] = {"train": [f"collect-{slug(d)}:train" for d in pretrain.data]}
    valid = [d for d in pretrain.data if pipeline.data[d].split.valid]
    if valid:
        inputs["valid"] = [f"collect-{slug(d)}:valid" for d in valid]
    config = _training(pretrain.settings(), pipeline.seed)
    config["model"] = _model(pipeline, name)
    return Node(f"pretrain-{slug(name)}", "train", config, inputs)


def _training(settings: RunSettings, seed: int) -> dict[str, Any]:
    """Blocks of a training run; its seed is the given one unless the YAML names one."""
    config = settings.run_config()
    config["training"] = {"seed": seed, **config["training"]}
    return config


def _model(pipeline: Pipeline, name: str) -> dict[str, Any]:
    return pipeline.models[name].model_dump(mode="json", exclude_unset=True)


class _Model(NamedTuple):
    """A pretrained architecture: its name in results, where its file is, outside files."""

    name: str
    architecture: str
    path: str
    files: tuple[str, ...] = ()


def _pretrained(pipeline: Pipeline, name: str) -> _Model:
    given = pipeline.pretrain.given.get(name)
    if given is not None:
        return _Model(f"pretrained-{slug(name)}", name, given, (given,))
    key = f"pretrain-{slug(name)}"
    return _Model(key, name, f"{key}:{MODEL}")


def _test_pretrained(pipeline: Pipeline) -> list[Node]:
    data = [d for d in pipeline.pretrain.data if pipeline.data[d].split.test]
    models = [_pretrained(pipeline, name) for name in pipeline.trained_models()]
    if not data or not models:
        return []
    inputs = {
        "models": {model.name: model.path for model in models},
        "data": {d: [f"collect-{slug(d)}:test"] for d in data},
    }
    return [Node("test-pretrained", "test", pipeline.test_config(), inputs)]


def _target(pipeline: Pipeline, target: Target, seed: int) -> list[Node]:
    """Return the steps of one target and seed: draw, refit, finetune, train from scratch, test."""
    draw, train, test = _draw(pipeline, target, seed)
    nodes = [] if draw is None else [draw]
    pretrained = [_pretrained(pipeline, name) for name in pipeline.models]
    models = {model.name: model.path for model in pretrained if target.zero_shot}
    for model in pretrained:
        for frames in target.frames:
            runs = _runs(pipeline, target, model, (frames, seed, train))
            nodes += runs
            models |= {node.key: f"{node.key}:{MODEL}" for node in runs}
    if models:
        files = tuple(file for model in pretrained for file in model.files if target.zero_shot)
        inputs = {"models": models, "data": {target.name: [test]}}
        key = f"test-{slug(target.name)}-s{seed:03d}"
        nodes.append(Node(key, "test", pipeline.test_config(), inputs, files))
    return nodes


def _draw(pipeline: Pipeline, target: Target, seed: int) -> tuple[Node | None, str, str]:
    """Step that sets test frames aside, and where training and test frames then are."""
    pool = f"collect-{slug(target.data)}:train"
    if target.test is not None:
        part = "test" if pipeline.data[target.test].split.test else "train"
        return None, pool, f"collect-{slug(target.test)}:{part}"
    key = f"draw-{slug(target.name)}-s{seed:03d}"
    size = max(target.frames, default=0)
    config: dict[str, Any] = {
        "sources": [{"path": pool, "label": "pool"}],
        "split": {"train": size, "test": None, "unit": "frames", "seed": seed},
        "filters": {"require": []},
        "unique": False,
    }
    if pipeline.type_map is not None:
        config["type_map"] = list(pipeline.type_map)
    node = Node(key, "collect", config, {"paths": {"pool": pool}})
    return node, f"{key}:train" if size else pool, f"{key}:test"


def _runs(
    pipeline: Pipeline, target: Target, model: _Model, case: tuple[int, int, str]
) -> list[Node]:
    """Bias refit, finetuning and training from scratch on `frames` frames."""
    frames, seed, train = case
    settings = target.finetune
    if settings is None:  # the schema wants settings for every target with frames
        return []
    label = f"{slug(target.name)}-{slug(model.architecture)}-n{frames:05d}-s{seed:03d}"
    nodes = []
    if target.zero_shot:
        mode = "set" if settings.bias == "set" else "change"
        config: dict[str, Any] = {"max_frames": frames, "seed": seed, "mode": mode}
        inputs: dict[str, Any] = {"model": model.path, "data": [train]}
        nodes.append(Node(f"refit-{label}", "bias", config, inputs, model.files))
    drawn = {"max_frames": frames, "draw_seed": seed}
    config = _training(settings, seed) | drawn
    config["finetune"] = settings.start()
    inputs = {"train": [train], "pretrained": model.path}
    nodes.append(Node(f"finetune-{label}", "train", config, inputs, model.files))
    if target.from_scratch:
        config = _training(target.scratch or settings, seed) | drawn
        config["model"] = _model(pipeline, model.architecture)
        config["training"]["trainable"] = "all"
        nodes.append(Node(f"scratch-{label}", "train", config, {"train": [train]}))
    return nodes


CURVES = {"refit": "bias refit only", "finetune": "finetuned", "scratch": "from scratch"}


def _report(pipeline: Pipeline, nodes: Sequence[Node]) -> Node:
    """Report on everything; the curves are named after kind and architecture."""
    several = len(pipeline.models) > 1
    curves = []
    for target in pipeline.targets:
        for name in pipeline.models:
            for frames in target.frames:
                stem = f"{slug(target.name)}-{slug(name)}-n{frames:05d}-"
                curves += [
                    {"model": node.key, "kind": title + several * f", {name}", "frames": frames}
                    for node in nodes
                    for kind, title in CURVES.items()
                    if node.key.startswith(f"{kind}-{stem}")
                ]
    config = {"title": pipeline.report.title or pipeline.name, "curves": curves}
    return Node("report", "report", config, {"artifacts": {n.key: f"{n.key}:" for n in nodes}})
