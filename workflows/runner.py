"""Run a pipeline to its end on this machine: plan, run, and plan on while a loop goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ops.decide import DECISION
from ops.files import read_json, write_text
from workflows.backends import local
from workflows.backends.local import Result
from workflows.concurrent_learning import Progress, decide_key
from workflows.graph import Node
from workflows.pipeline import MODEL
from workflows.revisions import (
    Revision,
    current_plan,
    folder_decisions,
    read_revisions,
    require_start,
    revised_pipeline,
    write_revisions,
)
from workflows.run_folder import RunFolder, StepState
from workflows.schema import Pipeline, dump_pipeline, inline_templates

MODELS = "models"
"""Folder at the head of a run that receives the final models of a loop."""


class Outcome(NamedTuple):
    """How a run ended.

    Attributes
    ----------
    result
        States of the steps of the last plan.
    decision
        The loop's last decision, None without a loop or before the first one.
    """

    result: Result
    decision: dict[str, Any] | None = None

    @property
    def stuck(self) -> bool:
        """Whether the loop gave up."""
        return self.decision is not None and self.decision["verdict"] == "stuck"


def start(pipeline: Pipeline, source: Path, folder: RunFolder) -> None:
    """Make `folder` the place of a run; what an earlier run finished there may be used again."""
    with local.locked(folder):
        resolved = dump_pipeline(inline_templates(pipeline))
        text = f"# resolved from {source.resolve()}\n{resolved}"
        write_text(folder.pipeline, text)
        write_revisions(folder, [])


def revise(pipeline: Pipeline, folder: RunFolder, revision: Revision) -> None:
    """Change a run's settings from a step on.

    Raises
    ------
    ConfigError
        If the run has no such step or the settings are wrong; nothing is changed then.
    """
    with local.locked(folder):
        revisions = read_revisions(folder)
        nodes, _ = current_plan(pipeline, revisions, folder_decisions(folder))
        require_start(revision, nodes)
        revisions.append(revision)
        current_plan(pipeline, revisions, folder_decisions(folder))
        write_revisions(folder, revisions)


def drive(
    pipeline: Pipeline,
    folder: RunFolder,
    watch: Callable[[Sequence[StepState]], None],
    finished: Callable[[RunFolder], None] = lambda _: None,
) -> Outcome:
    """Run all steps, iteration after iteration.

    Parameters
    ----------
    pipeline
        What the run was started with.
    folder
        The run's folder.
    watch
        Called several times a second with the state of every step.
    finished
        Called with the folder whenever a batch of steps has ended.

    Raises
    ------
    ConfigError
        If another process runs this folder.
    """
    with local.locked(folder):
        revisions = read_revisions(folder)
        execution = revised_pipeline(pipeline, revisions).execution
        nodes, progress = current_plan(pipeline, revisions, folder_decisions(folder))
        while True:
            result = local.run_locked(nodes, execution, folder, watch)
            finished(folder)
            after, progress = current_plan(pipeline, revisions, folder_decisions(folder))
            grown = {node.key for node in after} != {node.key for node in nodes}
            if not result.succeeded or not grown:
                break
            nodes = after
        if result.succeeded and progress.finished:
            _publish_models(folder, nodes)
        return Outcome(result, _last_decision(folder, progress))


def _last_decision(folder: RunFolder, progress: Progress) -> dict[str, Any] | None:
    for k in range(progress.iterations - 1, -1, -1):
        path = folder.steps / decide_key(k) / DECISION
        if path.exists():
            found: dict[str, Any] = read_json(path)
            return found
    return None


def _publish_models(folder: RunFolder, nodes: Sequence[Node]) -> None:
    """Copy the final models to the head of the run's folder; those of a larger committee go."""
    import shutil

    target = folder.root / MODELS
    target.mkdir(exist_ok=True)
    keys = [node.key for node in nodes if node.key.startswith("final-train-m")]
    names = {f"{key.removeprefix('final-train-')}.safetensors": key for key in keys}
    for name, key in names.items():
        part = target / f".{name}.part"
        shutil.copyfile(folder.steps / key / MODEL, part)
        part.replace(target / name)
    for path in target.glob("m*.safetensors"):
        if path.name not in names:
            path.unlink()


def publish(folder: RunFolder) -> None:
    """Bring the report and the pages of the iterations to the head of the run's folder."""
    from workflows.iterations import publish_pages

    if (folder.steps / "report" / "report.html").exists():
        local.publish_report(folder)
    publish_pages(folder)


def verdict(decision: dict[str, Any], name: str) -> str:
    """Say how a loop ended, and how to go on where it did not converge."""
    rows = decision["rows"]
    count = rows[-1]["iteration"] + 1
    labelled = decision.get("labelled", sum(row["labelled"] for row in rows))
    lines = [
        f"{decision['verdict']} after {count} iterations and {labelled} labels: "
        f"{decision['message']}"
    ]
    if decision["advice"]:
        lines.append(decision["advice"])
    command = f"dpaflow resume {name} --from iter-{rows[-1]['iteration']:06d}"
    if decision["verdict"] == "max_iterations":
        keys = re.findall(r"\S*max_iterations", decision["advice"]) or ["max_iterations"]
        lines.append(
            f"for more iterations: {command}/decide{' --set {}=N' * len(keys)}".format(*keys)
        )
    if decision["verdict"] != "converged":
        lines.append(
            f"go on with changed settings: {command}/STEP --set KEY=VALUE, where STEP is the "
            "first one that the setting is for: train, explore, select, prepare or decide"
        )
    return "\n".join(lines)
