"""The graph of a pipeline: which step runs which OP on whose results.

The graph is plain data (`Node`), written once; `to_dflow` turns it into dflow Steps for any
backend. A node refers to another node's results as "KEY:path/in/its/folder".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpa_core.errors import ConfigError
from ops.base import iter_paths

if TYPE_CHECKING:
    from workflows.schema import Execution, Pipeline, RunSettings, Target

MODEL = "model.safetensors"
FINGERPRINT_VERSION = 1


class Node(NamedTuple):
    """One step.

    Attributes
    ----------
    key
        Unique name: lower case, digits and dashes.
    op
        Name of the OP, see `ops.base.find_op`.
    config
        Settings, plain JSON.
    inputs
        Fields of the OP's inputs; paths are absolute or "KEY:path".
    files
        Files and folders outside the pipeline that the step reads (or patterns with `*`).
    """

    key: str
    op: str
    config: dict[str, Any]
    inputs: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple is immutable, nobody writes here)
    files: tuple[str, ...] = ()


def plan(pipeline: Pipeline) -> list[Node]:
    """Return the steps of a pipeline, every step after those it depends on.

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
    nodes.append(_report(pipeline, nodes))
    check(nodes)
    return nodes


def check(nodes: Sequence[Node]) -> None:
    """Raise ConfigError on a repeated key or a reference to a later or unknown step."""
    seen: set[str] = set()
    for node in nodes:
        if node.key in seen:
            raise ConfigError(
                f"two steps are both called {node.key!r}; rename a data set, model or target"
            )
        if unknown := needs(node) - seen:
            raise ConfigError(f"step {node.key!r} needs {sorted(unknown)}, which come later or not")
        seen.add(node.key)


def needs(node: Node) -> set[str]:
    """Keys of the steps whose results a node reads."""
    paths = [str(path) for path in iter_paths(node.inputs)]
    return {path.partition(":")[0] for path in paths if not Path(path).is_absolute()}


def levels(nodes: Sequence[Node]) -> list[list[Node]]:
    """Group nodes so that those of one level depend on earlier levels only."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.key] = 1 + max((depth[key] for key in needs(node)), default=-1)
    count = 1 + max(depth.values(), default=-1)
    return [[node for node in nodes if depth[node.key] == level] for level in range(count)]


def downstream(nodes: Sequence[Node], keys: Iterable[str]) -> set[str]:
    """Return `keys` and every step that directly or indirectly reads their results."""
    found = set(keys)
    for node in nodes:
        if needs(node) & found:
            found.add(node.key)
    return found


def fingerprints(nodes: Sequence[Node]) -> dict[str, str]:
    """Hash of everything a step's result depends on: op, settings, files, and upstream hashes."""
    result: dict[str, str] = {}
    for node in nodes:
        document = {
            "version": FINGERPRINT_VERSION,
            "op": node.op,
            "config": node.config,
            "inputs": node.inputs,
            "upstream": {key: result[key] for key in sorted(needs(node))},
            "files": [_signature(path) for path in node.files],
        }
        text = json.dumps(document, sort_keys=True)
        result[node.key] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return result


def _signature(pattern: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files behind a path; contents may be terabytes."""
    import glob

    roots = [Path(found) for found in sorted(glob.glob(pattern))]  # noqa: PTH207 (absolute)
    files = [
        path
        for root in roots
        for path in (sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root])
    ]
    stats = [(path, path.stat()) for path in files]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def to_dflow(nodes: Sequence[Node], execution: Execution, prints: dict[str, str]) -> Any:
    """Build the dflow Steps: one list of parallel steps per level, one template per step.

    Steps, not DAG: dflow's DAG drops dependents of failed tasks silently in debug mode.
    """
    import sys

    from dflow import Step, Steps
    from dflow.python import PythonOPTemplate

    from ops.step_op import StepOP

    root = Steps("pipeline")
    done: dict[str, Any] = {}
    for level in levels(nodes):
        steps = []
        for node in level:
            request = {
                "key": node.key,
                "op": node.op,
                "config": node.config,
                "inputs": node.inputs,
                "fingerprint": prints[node.key],
                "timeout": execution.timeout,
                "retries": execution.retries,
            }
            artifacts = {key: done[key].outputs.artifacts["folder"] for key in sorted(needs(node))}
            bound: dict[str, Any] = {"artifacts": artifacts or None}
            step = Step(
                node.key,
                PythonOPTemplate(StepOP, command=[sys.executable], upload_dflow=False),
                parameters={"request": request},
                artifacts=bound,
                key=node.key,
            )
            done[node.key] = step
            steps.append(step)
        root.add(steps)
    return root


def slug(name: str) -> str:
    """Return a name as part of a key: lower case, dashes for underscores."""
    return name.lower().replace("_", "-")


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
