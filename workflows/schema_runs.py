"""Blocks of the pipeline YAML that describe one training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import PositiveInt

from dpa_core.config import Config, LearningRateConfig, LossConfig, OptimizerConfig
from ops.train import TrainingSettings


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


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested dictionary over another.

    A block whose `type` changes, or that gives the length of a run in the other unit, is not
    mixed with the old one: its keys would not belong together.
    """
    if "type" in over and over["type"] != base.get("type"):
        return dict(over)
    merged = dict(base)
    for pair in (("numb_steps", "numb_epoch"), ("numb_epoch", "numb_steps")):
        if pair[0] in over:
            merged.pop(pair[1], None)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
