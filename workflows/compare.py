"""Was the selection worth it? The loop's labels against as many random ones, trained alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workflows.graph import Node

if TYPE_CHECKING:
    from workflows.concurrent_learning import Loop, Progress

MODEL = "model.safetensors"


def compare_nodes(loop: Loop, progress: Progress) -> dict[str, list[Node]]:
    """Return the steps behind every model of the comparison; the last one trains it.

    For each seed there is a model trained on all frames the loop had labelled and one on as
    many drawn at random from everything that was explored. Both start alike and are trained
    with the same settings and seed: they differ in their frames only.
    """
    if not progress.labelled:
        return {}
    found = {}
    for seed in loop.settings.compare.random:
        name = f"s{seed:03d}"
        prefix = f"compare-random-{name}"
        drawn = [*loop.data(0), f"{prefix}-collect:train"]
        labels = _random_labels(loop, prefix, seed, progress)
        found[f"random-{name}"] = [*labels, _train(loop, prefix, seed, drawn)]
        prefix = f"compare-selected-{name}"
        found[f"selected-{name}"] = [_train(loop, prefix, seed, loop.data(progress.iterations))]
    return found


def _random_labels(loop: Loop, prefix: str, seed: int, progress: Progress) -> list[Node]:
    from workflows.concurrent_learning import dump

    n = progress.iterations
    explored = [f"iter-{k:06d}-explore-p{part}:"
                for k in range(n) for part in range(loop.settings.explore_tasks)]  # fmt: skip
    filters = dump(loop.settings.stages[-1].select).get("filters", {})
    drawn = {"method": "random", "max_candidates": progress.labelled, "filters": filters}
    select = Node(
        f"{prefix}-select",
        "select",
        {"stages": [drawn], **loop.common(n), "seed": seed},
        {
            "explored": explored,
            "models": [f"iter-{n - 1:06d}-train-m0:{MODEL}"],
            "labelled": loop.data(0),
        },
    )
    groups = math.ceil(progress.labelled / loop.settings.label.group_size)
    return [select, *loop.label(prefix, select.key, groups)]


def _train(loop: Loop, prefix: str, seed: int, data: list[str]) -> Node:
    train = loop.settings.train
    # as the final model: with this strategy it owes nothing to the pretrained one
    origin = None if train.strategy == "scratch" else loop.pretrained
    settings = train.changed(loop.settings.compare.train)
    return loop.training(f"{prefix}-train", settings, seed, {"train": data}, origin)
