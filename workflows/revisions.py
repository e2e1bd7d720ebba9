"""What a run's steps are by now: iterations that were decided, settings changed on the way.

A run keeps its pipeline.yaml as it was started; `dpaflow resume --from STEP --set KEY=VALUE`
adds a revision. Steps before STEP stay what they are, STEP and all behind it are planned anew
with the changed settings and run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from dpa_core.config import Config, parse_config
from dpa_core.errors import ConfigError
from ops.base import read_status
from ops.decide import DECISION
from ops.files import read_json, write_json
from workflows.concurrent_learning import Progress, decide_key
from workflows.graph import Node, check, fingerprints
from workflows.pipeline import plan
from workflows.run_folder import RunFolder
from workflows.schema import Pipeline, dump_pipeline, place_paths
from workflows.schema_checks import find_mistakes
from workflows.schema_loop import STAGE_BLOCKS, ConcurrentLearning

REVISIONS = "revisions.json"


class Revision(Config):
    """A change of settings in the course of a run."""

    start: str = Field(alias="from")
    """Key of the first step it holds for, or the beginning of several keys."""
    changes: dict[str, Any] = Field(default_factory=dict, alias="set")
    """Dotted path -> value."""
    folder: str = "."
    """Where relative paths among the values start."""


def read_revisions(folder: RunFolder) -> list[Revision]:
    """Return the revisions of a run, oldest first."""
    path = folder.root / REVISIONS
    if not path.exists():
        return []
    return [parse_config(Revision, item, str(path)) for item in read_json(path)]


def write_revisions(folder: RunFolder, revisions: Sequence[Revision]) -> None:
    """Keep the revisions of a run."""
    document = [revision.model_dump(mode="json", by_alias=True) for revision in revisions]
    write_json(folder.root / REVISIONS, document)


def parse_revision(start: str, settings: Sequence[str]) -> Revision:
    """Read what `--from` and `--set` say.

    Raises
    ------
    ConfigError
        If a setting is not KEY=VALUE.
    """
    changes = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, e.g. select.lo=0.08")
        try:
            changes[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting}: {value!r} is not a YAML value") from error
    begin = start.strip("/").replace("/", "-")
    return Revision.model_validate({"from": begin, "set": changes, "folder": str(Path.cwd())})


def current_plan(
    pipeline: Pipeline,
    revisions: Sequence[Revision],
    decided: Callable[[str, str], dict[str, Any] | None],
    prints: Callable[[Sequence[Node]], dict[str, str]] = fingerprints,
) -> tuple[list[Node], Progress]:
    """Return the steps of a run and how far its loop has come.

    Parameters
    ----------
    pipeline, revisions
        What the run was started with, and what was changed since.
    decided
        Returns what the deciding step of a key decided, None if it has not yet done so with
        the very settings and inputs of the plan, which a fingerprint stands for; called with
        both. See `folder_decisions`.
    prints
        Returns the fingerprints of steps.
    """
    progress = Progress()
    nodes = revised_plan(pipeline, revisions, progress)
    if pipeline.concurrent_learning is None:
        return nodes, progress
    while not progress.finished:
        last = decide_key(progress.iterations - 1)
        decision = decided(last, prints(nodes)[last])
        if decision is None:
            break
        progress = advanced(progress, decision)
        nodes = revised_plan(pipeline, revisions, progress)
    return nodes, progress


def advanced(progress: Progress, decision: Mapping[str, Any]) -> Progress:
    """Return how far a loop has come after the decision of its last iteration."""
    if decision["go"]:
        return progress._replace(iterations=progress.iterations + 1)
    labelled = decision.get("labelled")
    if labelled is None:
        labelled = sum(row["labelled"] for row in decision["rows"])
    return progress._replace(finished=True, labelled=labelled)


def folder_decisions(folder: RunFolder) -> Callable[[str, str], dict[str, Any] | None]:
    """Return a function for `current_plan` that reads the decisions of a run on this machine."""

    def decided(key: str, fingerprint: str) -> dict[str, Any] | None:
        status = read_status(folder.steps / key)
        if status is None or (status.state, status.fingerprint) != ("succeeded", fingerprint):
            return None
        try:
            found: dict[str, Any] = read_json(folder.steps / key / DECISION)
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return found

    return decided


def revised_plan(
    pipeline: Pipeline, revisions: Sequence[Revision], progress: Progress
) -> list[Node]:
    """Return the steps, those from each revision on with its settings.

    Raises
    ------
    ConfigError
        If a setting is wrong, or steps do not fit together any more.
    """
    nodes = plan(pipeline, progress)
    for number, revision in enumerate(revisions, start=1):
        pipeline = apply_changes(pipeline, revision)
        after = plan(pipeline, progress)
        begin, cut = _first(nodes, revision.start), _first(after, revision.start)
        if begin is None or cut is None:
            continue  # an iteration that has not begun yet
        salted = [
            node._replace(salt=number) if _matches(node, revision.start) else node
            for node in after[cut:]
        ]
        nodes = [*nodes[:begin], *salted]
        _check_groups(nodes, revision)
    check(nodes)
    return nodes


def _check_groups(nodes: Sequence[Node], revision: Revision) -> None:
    """Raise ConfigError if what was prepared in groups would have fewer label steps than those."""
    for node in nodes:
        prefix = node.key.removesuffix("-prepare")
        steps = sum(other.key.startswith(f"{prefix}-label-g") for other in nodes)
        if node.op == "prepare" and steps < node.config["groups"]:
            raise ConfigError(
                f"--from {revision.start}: {node.key} has made {node.config['groups']} groups, the "
                f"changed settings label {steps} of them; begin with --from {node.key}"
            )


def revised_pipeline(pipeline: Pipeline, revisions: Sequence[Revision]) -> Pipeline:
    """Return the pipeline with all changes, as its newest steps see it."""
    for revision in revisions:
        pipeline = apply_changes(pipeline, revision)
    return pipeline


def _matches(node: Node, start: str) -> bool:
    return node.key == start or node.key.startswith(f"{start}-")


def _first(nodes: Sequence[Node], start: str) -> int | None:
    return next((k for k, node in enumerate(nodes) if _matches(node, start)), None)


def require_start(revision: Revision, nodes: Sequence[Node]) -> None:
    """Raise ConfigError if a run has no step that a revision could begin with."""
    if _first(nodes, revision.start) is None:
        keys = [node.key for node in nodes if node.key.startswith(("iter-", "final-"))]
        keys = keys or [node.key for node in nodes]
        raise ConfigError(
            f"--from {revision.start}: this run has no such step; there are {', '.join(keys[-12:])}"
        )


def apply_changes(pipeline: Pipeline, revision: Revision) -> Pipeline:
    """Return the pipeline with a revision's settings.

    `select.lo` means the selection of every stage, `stages.1.select.lo` that of one; keys of
    `concurrent_learning` need no prefix, others are written in full.

    Raises
    ------
    ConfigError
        If a key does not exist, or a value is not allowed.
    """
    source = f"--from {revision.start} --set"
    data = yaml.safe_load(dump_pipeline(pipeline))
    loop = data.get("concurrent_learning")
    for key, value in revision.changes.items():
        path = key.split(".")
        if loop and path[0] == "concurrent_learning" and len(path) > 1:
            path = path[1:]
        if loop and path[0] in ConcurrentLearning.model_fields:
            _put(loop, path, value, source)
            for stage in loop.get("stages", []) if path[0] in STAGE_BLOCKS else ():
                _put(stage, path, value, source)
        else:
            _put(data, path, value, source)
    changed = place_paths(parse_config(Pipeline, data, source), Path(revision.folder))
    if mistakes := list(find_mistakes(changed)):
        raise ConfigError("\n  ".join([f"{source}:", *mistakes]))
    return changed


def _put(data: Any, path: Sequence[str], value: Any, source: str) -> None:
    for name in path[:-1]:
        if isinstance(data, list):
            data = data[_index(name, data, path, source)]
        elif isinstance(data.get(name), dict | list):
            data = data[name]
        else:
            data[name] = {}
            data = data[name]
    if isinstance(data, list):
        data[_index(path[-1], data, path, source)] = value
    else:
        data[path[-1]] = value


def _index(name: str, data: Sequence[Any], path: Sequence[str], source: str) -> int:
    if not name.isdigit() or int(name) >= len(data):
        raise ConfigError(
            f"{source} {'.'.join(path)}: {name!r} is not one of the numbers 0 to {len(data) - 1}"
        )
    return int(name)
