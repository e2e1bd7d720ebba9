"""The pipeline YAML: labelled frames in, a tested and finetuned potential out.

Blocks that belong to an OP are the OP's own classes; here is only what ties them together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
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
from dpa_core.errors import ConfigError
from dpa_core.yaml_file import read_yaml, to_yaml
from ops.collect import CollectConfig
from ops.storage import is_url
from ops.test import RunTestConfig
from ops.train import ModelSettings, TrainingSettings
from workflows.schema_checks import find_mistakes
from workflows.schema_cluster import Cluster
from workflows.schema_loop import ConcurrentLearning
from workflows.schema_paths import map_paths
from workflows.schema_publish import Publish
from workflows.schema_runs import FinetuneRun, RunSettings
from workflows.schema_slurm import Slurm


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
    """Architecture -> file of an already pretrained model, or the s3:// URL where one was
    published; those are not trained."""

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
    backend: Literal["local", "slurm"] = "local"
    """Where steps run: on this machine, or each as a job of Slurm."""
    slurm: Slurm = Slurm()
    """What the jobs ask for, with `backend: slurm`."""

    def step_timeout(self, key: str, op: str) -> float | None:
        """Return the seconds one attempt at a step may take: a job leaves time to save."""
        if self.backend != "slurm" or self.slurm.is_local(key, op):
            return self.timeout
        limits = (self.timeout, self.slurm.resources_for(key, op).step_seconds())
        return min((limit for limit in limits if limit is not None), default=None)


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
    data: dict[str, CollectConfig] = Field(default_factory=dict)
    """Named data sets; only a loop that labels its own first structures needs none."""
    models: dict[str, ModelSettings] = Field(min_length=1)
    """Named architectures."""
    pretrain: Pretrain = Pretrain()
    """How the architectures are pretrained."""
    targets: tuple[Target, ...] = ()
    """New materials to adapt to."""
    concurrent_learning: ConcurrentLearning | None = None
    """Grow the data of one material by exploring, selecting and labelling."""
    test: RunTestConfig = RunTestConfig()
    """What tests measure and draw."""
    report: ReportSettings = ReportSettings()
    """The report."""
    publish: Publish | None = None
    """Where the final model goes, with its card and the report: s3://bucket/models/NAME."""
    execution: Execution = Execution()
    """How steps run."""
    cluster: Cluster = Cluster()
    """How steps run on Kubernetes, with `dpaflow submit`."""

    @pydantic.field_validator("publish", mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"to": value} if isinstance(value, str) else value

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
        if not self.needs_pretrained():
            return []
        return [name for name in self.models if name not in self.pretrain.given]

    def needs_pretrained(self) -> bool:
        """Whether anything starts from a pretrained model, or is to be pretrained."""
        loop = self.concurrent_learning
        only_loop = loop is not None and loop.start == "scratch" and not self.targets
        return not only_loop or bool(self.pretrain.data)

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
    pipeline = place_paths(parse_config(Pipeline, data, source), path.absolute().parent)
    mistakes = list(find_mistakes(pipeline))
    if mistakes:
        raise _error(source, mistakes)
    return pipeline


def parse_pipeline(text: str, source: str) -> Pipeline:
    """Return the pipeline that `dump_pipeline` wrote; no file it names is looked at.

    Raises
    ------
    ConfigError
        If it is none, as of another version of dpaflow; `source` says where it is from.
    """
    return parse_config(Pipeline, yaml.safe_load(text), source)


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


def place_paths(pipeline: Pipeline, folder: Path) -> Pipeline:
    """Return the pipeline with every path absolute; URLs stay."""

    def place(path: str) -> str:
        return path if is_url(path) else os.path.normpath(folder / Path(path).expanduser())

    return map_paths(pipeline, place)


def inline_templates(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with the labeler's templates as text: a run keeps what it began with."""
    loop = pipeline.concurrent_learning
    if loop is None:
        return pipeline
    label = loop.label.model_copy(update={"labeler": loop.label.labeler.inlined()})
    changed = loop.model_copy(update={"label": label})
    return pipeline.model_copy(update={"concurrent_learning": changed})


def dump_pipeline(pipeline: Pipeline) -> str:
    """Return the pipeline as YAML, paths absolute and variables replaced."""
    data = pipeline.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return to_yaml(data)
