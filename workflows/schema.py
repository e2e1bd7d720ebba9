"""The pipeline YAML: labelled frames in, a tested and finetuned potential out.

Blocks that belong to an OP are the OP's own classes; here is only what ties them together.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from dpa_core.config import (
    Config,
    LearningRateConfig,
    LossConfig,
    OptimizerConfig,
    parse_config,
)
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.yaml_file import read_yaml
from ops.collect import CollectConfig
from ops.test import RunTestConfig
from ops.train import ModelSettings, TrainingSettings

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MAX_NAME = 40


class RunSettings(Config):
    """Settings of a training run; the data come from the pipeline."""

    training: TrainingSettings
    """Length, batch size, frequencies."""
    learning_rate: LearningRateConfig = LearningRateConfig()
    """Schedule of the learning rate."""
    loss: LossConfig = LossConfig()
    """Prefactors of the loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Adam or AdamW."""
    nproc: PositiveInt = 1
    """Processes of a data-parallel run."""

    def run_config(self) -> dict[str, Any]:
        """Return the blocks that the training OP takes, as plain JSON."""
        blocks = {"training", "learning_rate", "loss", "optimizer", "nproc"}
        return self.model_dump(mode="json", exclude_unset=True, include=blocks)


class FinetuneRun(RunSettings):
    """Settings of the finetuning runs."""

    bias: Literal["change", "set", "none"] = "change"
    """Energy bias before training: shift by the residual, replace by label statistics, keep."""
    new_fitting: bool = False
    """Start with a fresh fitting net."""

    def start(self) -> dict[str, Any]:
        """Return the finetune block of the training OP."""
        return {"bias": self.bias, "new_fitting": self.new_fitting}


class Pretrain(Config):
    """How every architecture of `models` gets its weights."""

    data: tuple[str, ...] = ()
    """Names of data sets; one name or a list."""
    training: TrainingSettings | None = None
    """Length, batch size, frequencies; required unless all models are given."""
    learning_rate: LearningRateConfig = LearningRateConfig()
    """Schedule of the learning rate."""
    loss: LossConfig = LossConfig()
    """Prefactors of the loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Adam or AdamW."""
    nproc: PositiveInt = 1
    """Processes of a data-parallel run."""
    given: dict[str, str] = Field(default_factory=dict, alias="from")
    """Architecture -> file of an already pretrained model; those are not trained."""

    @pydantic.field_validator("data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def settings(self) -> RunSettings:
        """Return the settings of the runs, with only the keys the YAML has."""
        blocks = {"training", "learning_rate", "loss", "optimizer", "nproc"}
        dump = self.model_dump(mode="json", exclude_unset=True, include=blocks)
        return RunSettings.model_validate(dump)


class Target(Config):
    """A new material: few labelled frames to adapt to, others to test on."""

    name: str
    """Name in keys, tables and figures."""
    data: str
    """Data set to draw frames from (its training part)."""
    test: str | None = None
    """Data set to test on (its test part if its split makes one, else all of it); left out:
    the frames of `data` outside the largest draw, for each seed."""
    frames: tuple[PositiveInt, ...] = ()
    """Numbers of frames to adapt to; of one seed, the smaller draws lie inside the larger."""
    seeds: tuple[NonNegativeInt, ...] = Field((1,), min_length=1)
    """Every seed is one repetition: another draw, other initial weights."""
    zero_shot: bool = True
    """Also test the pretrained model as it is and with its energy bias refitted."""
    from_scratch: bool = False
    """Also train the same architecture on the same frames from random weights."""
    finetune: FinetuneRun | None = None
    """Settings of the finetuning runs; required if `frames` is not empty."""
    scratch: RunSettings | None = None
    """Settings of the runs from scratch; those of `finetune` when left out."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Target:
        if self.frames and self.finetune is None:
            raise ValueError(f"target {self.name!r} has frames, so it needs a finetune block")
        for field in ("frames", "seeds"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names a number twice: {list(values)}")
        if not self.frames and not self.zero_shot:
            raise ValueError(f"target {self.name!r} asks for nothing: no frames, no zero_shot")
        return self


class ReportSettings(Config):
    """The report."""

    title: str | None = None
    """Headline; the pipeline's name when left out."""


class Execution(Config):
    """How steps run. Changing this block never makes a finished step run again."""

    parallel: PositiveInt = 1
    """Steps that run at the same time."""
    threads: PositiveInt = 1
    """CPU threads of every step."""
    timeout: PositiveFloat | None = None
    """Seconds a step may take; no limit when left out."""
    retries: NonNegativeInt = 1
    """Further attempts after a failure that may go away (I/O, lost node)."""


class Pipeline(Config):
    """A pipeline: collect, pretrain, then for every target refit, finetune, test; report."""

    version: Literal[1] = 1
    """Version of this format."""
    name: str
    """Name of the pipeline."""
    seed: NonNegativeInt = 1
    """Seed of the pretraining runs."""
    type_map: tuple[str, ...] | None = None
    """Elements of all models, in order; left out: each run takes those of its data."""
    data: dict[str, CollectConfig] = Field(min_length=1)
    """Named data sets."""
    models: dict[str, ModelSettings] = Field(min_length=1)
    """Named architectures."""
    pretrain: Pretrain
    """How the architectures are pretrained."""
    targets: tuple[Target, ...] = ()
    """New materials to adapt to."""
    test: RunTestConfig = RunTestConfig()
    """What tests measure and draw."""
    report: ReportSettings = ReportSettings()
    """The report."""
    execution: Execution = Execution()
    """How steps run."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _share_type_map(cls, data: Any) -> Any:
        """Models without a type map of their own get the pipeline's."""
        if not isinstance(data, dict) or not isinstance(data.get("models"), dict):
            return data
        if data.get("type_map") is None:
            return data
        models = {
            name: {"type_map": data["type_map"], **model} if isinstance(model, dict) else model
            for name, model in data["models"].items()
        }
        return {**data, "models": models}

    def trained_models(self) -> list[str]:
        """Names of the architectures that this pipeline pretrains."""
        return [name for name in self.models if name not in self.pretrain.given]

    def test_config(self) -> dict[str, Any]:
        """Return the settings of the test OP as plain JSON."""
        return self.test.model_dump(mode="json", exclude_unset=True)


def load_pipeline(path: Path, environment: Mapping[str, str] | None = None) -> Pipeline:
    """Read and check a pipeline file; nothing is run or written.

    Parameters
    ----------
    path
        YAML file. `${VAR}` and `${VAR:-default}` come from the environment; relative paths
        start from the file's folder.
    environment
        Instead of `os.environ`.

    Raises
    ------
    ConfigError
        With one line for every mistake: dotted path, what is wrong, what is allowed.
    """
    source = str(path)
    if not path.exists():
        raise ConfigError(f"{source}: no such file; `dpaflow init` writes an example")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping with name, data, models, ...")
    mistakes: list[str] = []
    data = _expand(data, "", os.environ if environment is None else environment, mistakes)
    if mistakes:
        raise _error(source, mistakes)
    # not resolve(): a linked file belongs to the folder where its link is
    pipeline = _absolute(parse_config(Pipeline, data, source), path.absolute().parent)
    mistakes = list(find_mistakes(pipeline))
    if mistakes:
        raise _error(source, mistakes)
    return pipeline


def _error(source: str, mistakes: list[str]) -> ConfigError:
    head = f"{source}: {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
    return ConfigError("\n".join([head, *(f"  {line}" for line in mistakes)]))


VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any, place: str, environment: Mapping[str, str], mistakes: list[str]) -> Any:
    """Replace ${VAR} and ${VAR:-default} in all strings; unset ones are noted."""
    if isinstance(value, dict):
        return {
            k: _expand(v, f"{place}.{k}".strip("."), environment, mistakes)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_expand(v, f"{place}.{k}", environment, mistakes) for k, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        found = environment.get(match[1], match[2])
        if found is None:
            mistakes.append(
                f"{place}: environment variable {match[1]} is not set (got {value!r}); set it, "
                f"or give a default as ${{{match[1]}:-/some/path}}"
            )
            return match[0]
        return found

    return VARIABLE.sub(replace, value)


def _absolute(pipeline: Pipeline, folder: Path) -> Pipeline:
    """Return the pipeline with every path absolute."""

    def place(path: str) -> str:
        return os.path.normpath(folder / Path(path).expanduser())

    data = {
        name: config.model_copy(
            update={
                "sources": tuple(
                    s.model_copy(update={"path": place(s.path)}) for s in config.sources
                )
            }
        )
        for name, config in pipeline.data.items()
    }
    given = {name: place(path) for name, path in pipeline.pretrain.given.items()}
    update: dict[str, Any] = {"given": given} if given else {}
    return pipeline.model_copy(
        update={"data": data, "pretrain": pipeline.pretrain.model_copy(update=update)}
    )


def find_mistakes(pipeline: Pipeline) -> Iterable[str]:
    """Yield what is wrong between the blocks, and the files that do not exist."""
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


def _names(pipeline: Pipeline) -> Iterable[str]:
    groups: dict[str, Iterable[str]] = {
        "data": pipeline.data,
        "models": pipeline.models,
        "targets": [target.name for target in pipeline.targets],
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
    import glob

    for name, config in pipeline.data.items():
        for number, source in enumerate(config.sources):
            if not glob.glob(source.path):  # noqa: PTH207  (an absolute pattern)
                yield f"data.{name}.sources.{number}.path: no such file or folder: {source.path}"
    for name, path in pipeline.pretrain.given.items():
        if not Path(path).is_file():
            yield f"pretrain.from.{name}: no such file: {path}"
            continue
        from dpa_core.interchange.native import read_header  # brings torch with it

        try:
            read_header(path)
        except ModelFileError as error:
            yield f"pretrain.from.{name}: {error}"


def _pretrain_mistakes(pipeline: Pipeline) -> Iterable[str]:
    pretrain = pipeline.pretrain
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


def dump_pipeline(pipeline: Pipeline) -> str:
    """Return the pipeline as YAML, paths absolute and variables replaced."""
    data = pipeline.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
