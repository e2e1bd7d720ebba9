"""The block `concurrent_learning` of the pipeline YAML: grow the data until the model holds.

init -> [train committee -> explore -> select -> label -> collect -> test -> decide] * n
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from dpa_core.config import Config
from ops.decide import Converge
from ops.explorers import Explorer
from ops.filters import Filters
from ops.labelers import Labeler
from ops.select import SelectSettings
from ops.structures import StructureSource
from workflows.schema_runs import FinetuneRun, RunSettings, merge

STAGE_BLOCKS = ("explore", "select", "converge")


class Committee(Config):
    """The models whose disagreement tells where data are missing."""

    size: Annotated[int, Field(ge=2, le=32)] = 4
    """Number of members."""
    kind: Literal["models", "heads"] = "models"
    """models: trained apart, as parallel steps; heads: fitting nets on one shared descriptor,
    trained at once at nearly the price of one model."""


class Replay(Config):
    """Old frames that are trained on again, against forgetting."""

    data: tuple[str, ...] = Field(min_length=1)
    """Names of data sets to draw from, e.g. those of the pretraining."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Their share of the training frames."""


class LoopTraining(FinetuneRun):
    """How the committee is trained, in the first iteration and in the later ones."""

    strategy: Literal["scratch", "last", "pretrained"] = "last"
    """What later iterations start from: random weights, the last iteration's model, or the
    pretrained one again."""
    later: dict[str, Any] = Field(default_factory=dict)
    """Settings of the later iterations, merged over these: `training.numb_steps` and so on."""
    final: dict[str, Any] = Field(default_factory=dict)
    """Settings of the last training, on all data, merged over those of the later ones."""
    replay: Replay | None = None
    """Frames of earlier data sets mixed in."""

    @pydantic.model_validator(mode="after")
    def _merged_are_valid(self) -> LoopTraining:
        if self.training.seed != 1 or "seed" in self.training.model_fields_set:
            raise ValueError("leave training.seed out: members get theirs from the pipeline's seed")
        self.settings("later")
        self.settings("final")
        return self

    def settings(self, phase: Literal["first", "later", "final"]) -> RunSettings:
        """Return the settings of the first training, the later ones or the final one."""
        changes = {"first": (), "later": (self.later,), "final": (self.later, self.final)}
        return self.changed(*changes[phase])

    def changed(self, *changes: dict[str, Any]) -> RunSettings:
        """Return the settings of the first training with changes merged over them."""
        return RunSettings.model_validate(reduce(merge, changes, self.run_config()))


class Init(Config):
    """The labelled frames to start with; at least one of the two."""

    data: tuple[str, ...] = ()
    """Names of labelled data sets."""
    structures: tuple[str, ...] = ()
    """Names of `structures` to label first."""

    @pydantic.model_validator(mode="after")
    def _something(self) -> Init:
        if not self.data and not self.structures:
            raise ValueError("the loop needs something to start with: data, structures or both")
        return self


class Label(Config):
    """How selected structures get their labels."""

    labeler: Labeler
    """The code that labels, chosen by `type`."""
    group_size: PositiveInt = 50
    """Tasks that one step does one after another; the groups run in parallel."""
    min_success: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The loop goes on while at least this fraction of an iteration's tasks succeeds."""
    filters: Filters = Filters()
    """What a labelled frame must fulfil to be trained on."""


class Stage(Config):
    """One step of difficulty: where to explore, what to select, when it is enough."""

    name: str | None = None
    """Name in tables; stage-0, stage-1, ... when left out."""
    structures: tuple[str, ...] = Field(min_length=1)
    """Names of `structures` to start from."""
    explore: Explorer
    """The exploration; keys given here override `concurrent_learning.explore`."""
    select: SelectSettings
    """The selection; keys given here override `concurrent_learning.select`."""
    converge: Converge = Converge()
    """The criteria; keys given here override `concurrent_learning.converge`."""
    max_iterations: PositiveInt = 10
    """Iterations this stage may take."""
    at_max: Literal["stop", "next"] = "stop"
    """After these: end the loop, or go on to the next stage although this one is not done."""


class Compare(Config):
    """What the finished loop is measured against."""

    random: tuple[NonNegativeInt, ...] = ()
    """Seeds: for each, a model trained on all labels of the loop and one on as many frames
    drawn at random from everything that was explored, otherwise alike."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of these trainings, merged over those of the loop's first one."""


class ConcurrentLearning(Config):
    """Explore, select, label, retrain, until every stage has converged."""

    model: str | None = None
    """Name among `models`; the only one when left out."""
    start: Literal["scratch", "pretrained"] = "scratch"
    """First training: from random weights, or from the model that `pretrain` makes or names."""
    init: Init
    """Labelled frames to start with."""
    committee: Committee = Committee()
    """The models."""
    train: LoopTraining
    """Their training."""
    structures: dict[str, StructureSource] = Field(min_length=1)
    """Named starting structures."""
    explore: dict[str, Any] = Field(default_factory=dict)
    """Defaults of every stage's `explore`."""
    explore_tasks: PositiveInt = 1
    """Steps that share an iteration's trajectories."""
    select: dict[str, Any] = Field(default_factory=dict)
    """Defaults of every stage's `select`."""
    converge: dict[str, Any] = Field(default_factory=dict)
    """Defaults of every stage's `converge`."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The stages, easy ones first."""
    label: Label
    """The labelling."""
    test: tuple[str, ...] = ()
    """Names of labelled data sets that every committee is tested on and never trained on."""
    compare: Compare = Compare()
    """What the finished loop is measured against."""
    max_iterations: PositiveInt = 20
    """Iterations the whole loop may take."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _merge_defaults(cls, data: Any) -> Any:
        """Lay every stage's blocks over the defaults."""
        if not isinstance(data, dict) or not isinstance(data.get("stages"), list | tuple):
            return data
        stages = [
            stage
            if not isinstance(stage, dict)
            else {**stage, **{b: merge(data[b], stage.get(b) or {}) for b in STAGE_BLOCKS
                              if isinstance(data.get(b), dict)}}
            for stage in data["stages"]
        ]  # fmt: skip
        return {**data, "stages": stages}

    @pydantic.model_validator(mode="after")
    def _comparison_is_valid(self) -> ConcurrentLearning:
        self.train.changed(self.compare.train)  # now, not when the loop has ended
        return self

    @property
    def groups(self) -> int:
        """Label steps of an iteration: enough for the largest selection."""
        most = max(stage.select.max_candidates for stage in self.stages)
        return math.ceil(most / self.label.group_size)

    def stage_name(self, number: int) -> str:
        """Return the name of a stage."""
        return self.stages[number].name or f"stage-{number}"
