"""Every path of a pipeline, in one place: what makes them absolute also moves them elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.storage import is_url
from ops.structures import FileSource

if TYPE_CHECKING:
    from workflows.schema import Pipeline
    from workflows.schema_loop import ConcurrentLearning

Change = Callable[[str], str]


def map_paths(pipeline: Pipeline, change: Change) -> Pipeline:
    """Return the pipeline with `change` applied to every path of a file, folder or pattern.

    Parameters
    ----------
    pipeline
        Templates of labelers that are inlined have no path any more.
    change
        Old path -> new path.
    """
    update: dict[str, Any] = {
        "data": {
            name: config.model_copy(
                update={
                    "sources": tuple(
                        s.model_copy(update={"path": change(s.path)}) for s in config.sources
                    )
                }
            )
            for name, config in pipeline.data.items()
        }
    }
    if pipeline.pretrain.given:
        given = {name: change(path) for name, path in pipeline.pretrain.given.items()}
        update["pretrain"] = pipeline.pretrain.model_copy(update={"given": given})
    if pipeline.concurrent_learning is not None:
        update["concurrent_learning"] = _map_loop(pipeline.concurrent_learning, change)
    return pipeline.model_copy(update=update)


def _map_loop(loop: ConcurrentLearning, change: Change) -> ConcurrentLearning:
    structures = {
        name: source.model_copy(update={"path": change(str(source.path))})
        if isinstance(source, FileSource)
        else source
        for name, source in loop.structures.items()
    }
    label = loop.label.model_copy(update={"labeler": loop.label.labeler.mapped(change)})
    stages = []
    for stage in loop.stages:
        files = getattr(stage.explore, "model_files", None)
        if files:
            moved = {"model_files": tuple(change(str(file)) for file in files)}
            explore = stage.explore.model_copy(update=moved)
            stage = stage.model_copy(update={"explore": explore})
        stages.append(stage)
    update = {"structures": structures, "label": label, "stages": tuple(stages)}
    return loop.model_copy(update=update)


def is_seen_by_pods(path: str, pipeline: Pipeline) -> bool:
    """Return whether a path is a URL, or lies on a volume of the pods; it need not exist here."""
    if is_url(path):
        return True
    entries = pipeline.cluster.resources.values()
    volumes = [*pipeline.cluster.volumes, *(v for entry in entries for v in entry.pvc)]
    return any(Path(path).is_relative_to(volume.path) for volume in volumes)
