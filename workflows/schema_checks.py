"""Mistakes of a pipeline that no block alone can see: names, files, elements."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dpa_core.config import ModelConfig, parse_config, require_uncompressed
from dpa_core.errors import ConfigError, ModelFileError
from ops.explorers import LammpsExplorer
from ops.explorers.lammps import cannot_freeze
from ops.labelers import PoolLabeler, check_labeler
from ops.labelers.base import WARNING
from ops.storage import split_part
from ops.structures import DataSource, FileSource
from workflows.schema_paths import is_seen_by_pods

if TYPE_CHECKING:
    from workflows.schema import Pipeline
    from workflows.schema_loop import ConcurrentLearning

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MAX_NAME = 40
ADDRESS = re.compile(r"/((?:https?|s3|gs|ftp|file):/.*)")


def find_mistakes(pipeline: Pipeline) -> Iterable[str]:
    """Yield what is wrong between the blocks, and the files that do not exist."""
    if not pipeline.data and pipeline.needs_pretrained():
        yield "data: missing; name the labelled frames to train on"
    yield from _names(pipeline)
    yield from _files(pipeline)
    yield from _pretrain_mistakes(pipeline)
    for number, target in enumerate(pipeline.targets):
        place = f"targets.{number}"
        yield from _known(f"{place}.data", target.data, pipeline.data, "data sets")
        if target.test is not None:
            yield from _known(f"{place}.test", target.test, pipeline.data, "data sets")
            if target.test == target.data and not pipeline.data[target.data].split.test:
                yield (
                    f"{place}.test: {target.test!r} is also the data to draw from and has no test "
                    f"part; set data.{target.test}.split.test, or leave test out"
                )
    yield from _elements(pipeline)
    if pipeline.concurrent_learning is not None:
        yield from _loop(pipeline, pipeline.concurrent_learning)


def _names(pipeline: Pipeline) -> Iterable[str]:
    groups: dict[str, Iterable[str]] = {
        "data": pipeline.data,
        "models": pipeline.models,
        "targets": [target.name for target in pipeline.targets],
        "concurrent_learning.structures": (
            pipeline.concurrent_learning.structures if pipeline.concurrent_learning else ()
        ),
    }
    for group, names in groups.items():
        seen: dict[str, str] = {}
        for name in names:
            if not NAME.fullmatch(name) or len(name) > MAX_NAME:
                yield (
                    f"{group}: name {name!r}; allowed are letters, digits, - and _, a letter "
                    f"first, at most {MAX_NAME}"
                )
            same = name.lower().replace("_", "-")
            if same in seen:
                yield f"{group}: {name!r} and {seen[same]!r} differ only in case or in - and _"
            seen[same] = name


def _files(pipeline: Pipeline) -> Iterable[str]:
    for name, config in pipeline.data.items():
        for number, source in enumerate(config.sources):
            yield from _exists(f"data.{name}.sources.{number}.path", source.path, pipeline)
    for name, path in pipeline.pretrain.given.items():
        file, part = split_part(path)
        if is_seen_by_pods(path, pipeline) and not Path(file).exists():
            continue
        if not Path(file).is_file():
            yield f"pretrain.from.{name}: no such file: {path}"
            continue
        from dpa_core.interchange.files import read_content, read_header  # brings torch with it

        try:
            stored = read_content(path).config if part else read_header(path)["config"]
            require_uncompressed(parse_config(ModelConfig, stored, path), "finetuning")
        except (ConfigError, ModelFileError) as error:
            yield f"pretrain.from.{name}: {error}"


def _pretrain_mistakes(pipeline: Pipeline) -> Iterable[str]:
    pretrain = pipeline.pretrain
    if not pipeline.needs_pretrained():
        return
    for name in pretrain.data:
        yield from _known("pretrain.data", name, pipeline.data, "data sets")
    for name in pretrain.given:
        yield from _known(f"pretrain.from.{name}", name, pipeline.models, "models")
    trained = pipeline.trained_models()
    if trained and not pretrain.data:
        yield f"pretrain.data: missing; {', '.join(trained)} must be trained on something"
    if trained and pretrain.training is None:
        yield f"pretrain.training: missing; needed to train {', '.join(trained)}"


def _known(place: str, name: str, allowed: Iterable[str], what: str) -> Iterable[str]:
    names = list(allowed)
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(names)}"
    yield f"{place}: no such name among the {what}: {name!r}; {hint}"


def _elements(pipeline: Pipeline) -> Iterable[str]:
    """Elements that a block names and the type map does not have, or that do not exist."""
    from ase.data import chemical_symbols

    if pipeline.type_map is None:
        return
    for element in pipeline.type_map:
        if element not in chemical_symbols[1:]:
            yield from _known("type_map", element, chemical_symbols[1:], "chemical elements")
    if len(set(pipeline.type_map)) != len(pipeline.type_map):
        yield f"type_map: an element is named twice: {list(pipeline.type_map)}"
    for name, config in pipeline.data.items():
        for element in (*(config.type_map or ()), *(config.filters.elements or ())):
            if element not in pipeline.type_map:
                yield f"data.{name}: element {element!r} is not in type_map"


def _loop(pipeline: Pipeline, loop: ConcurrentLearning) -> Iterator[str]:
    """Names that concurrent learning uses, and whether its labels can be had."""
    place = "concurrent_learning"
    if loop.model is not None:
        yield from _known(f"{place}.model", loop.model, pipeline.models, "models")
    elif len(pipeline.models) > 1:
        yield f"{place}.model: missing; name one of {', '.join(pipeline.models)}"
    for key, names in (
        ("init.data", loop.init.data),
        ("test", loop.test),
        ("train.replay.data", loop.train.replay.data if loop.train.replay else ()),
    ):
        for name in names:
            yield from _known(f"{place}.{key}", name, pipeline.data, "data sets")
    yield from _loop_training(pipeline, loop)
    yield from _loop_structures(pipeline, loop)
    yield from _loop_labels(pipeline, loop)
    # elsewhere DeePMD-kit may be in the image of the step
    here = pipeline.execution.backend == "local" and "cluster" not in pipeline.model_fields_set
    for number, stage in enumerate(loop.stages):
        own = isinstance(stage.explore, LammpsExplorer) and not stage.explore.model_files
        if own and here and (problem := cannot_freeze()):
            yield f"{place}.stages.{number}.explore.model_files: {problem}"
        pool = getattr(stage.explore, "data", None)
        if pool is not None:
            yield from _known(f"{place}.stages.{number}.explore.data", pool, pipeline.data,
                              "data sets")  # fmt: skip


def _loop_training(pipeline: Pipeline, loop: ConcurrentLearning) -> Iterator[str]:
    """Test data that are trained on, and settings that would have no effect."""
    place = "concurrent_learning"
    trained = {*loop.init.data, *(loop.train.replay.data if loop.train.replay else ())}
    if isinstance(loop.label.labeler, PoolLabeler):
        trained.add(loop.label.labeler.data)
    for name in sorted(trained & set(loop.test) & set(pipeline.data)):
        if not pipeline.data[name].split.test:
            yield (
                f"{place}.test: {name!r} is also trained on and has no test part; set "
                f"data.{name}.split.test, or name another data set"
            )
    if loop.compare.random and not loop.test:
        yield f"{place}.compare.random: there are no test data to compare on; name some in test"
    if loop.start == "scratch" and loop.train.strategy == "pretrained":
        yield f"{place}.train.strategy: pretrained; that needs start: pretrained"
    if pipeline.pretrain.given and not pipeline.needs_pretrained():
        yield f"pretrain.from: nothing starts from it; set {place}.start: pretrained, or delete it"


def _loop_labels(pipeline: Pipeline, loop: ConcurrentLearning) -> Iterator[str]:
    place = "concurrent_learning"
    if isinstance(loop.label.labeler, PoolLabeler):
        name = loop.label.labeler.data
        yield from _known(f"{place}.label.labeler.data", name, pipeline.data, "data sets")
    elsewhere: list[str] = []

    def note(path: str) -> str:
        if is_seen_by_pods(path, pipeline):
            elsewhere.append(path)
        return path

    loop.label.labeler.mapped(note)
    for line in check_labeler(loop.label.labeler):
        if not line.startswith(WARNING) and not any(path in line for path in elsewhere):
            yield f"{place}.label.labeler: {line}"


def _loop_structures(pipeline: Pipeline, loop: ConcurrentLearning) -> Iterator[str]:
    place = "concurrent_learning"
    for name, source in loop.structures.items():
        if isinstance(source, DataSource):
            yield from _known(f"{place}.structures.{name}.data", source.data, pipeline.data,
                              "data sets")  # fmt: skip
        if isinstance(source, FileSource):
            yield from _exists(f"{place}.structures.{name}.path", str(source.path), pipeline)
    for name in loop.init.structures:
        yield from _known(f"{place}.init.structures", name, loop.structures, "structures")
        if name in loop.structures and loop.structures[name].count is None:
            yield f"{place}.structures.{name}.count: missing; init has to know how many to label"
    for number, stage in enumerate(loop.stages):
        for name in stage.structures:
            yield from _known(f"{place}.stages.{number}.structures", name, loop.structures,
                              "structures")  # fmt: skip


def _exists(place: str, pattern: str, pipeline: Pipeline) -> Iterator[str]:
    import glob

    if is_seen_by_pods(pattern, pipeline):
        return
    if not glob.glob(pattern):  # noqa: PTH207  (an absolute pattern)
        # an address was taken for a path: place_paths made it absolute
        address = ADDRESS.search(pattern)
        hint = (
            f"; of addresses only s3://bucket/key can be read (got {address[1]})" if address else ""
        )
        yield f"{place}: no such file or folder: {pattern}{hint}"
