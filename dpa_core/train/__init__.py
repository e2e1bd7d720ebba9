"""Training: the loop, its batches, schedule, checkpoints and display."""

from __future__ import annotations

from dpa_core.train.loop import TrainSummary, train

__all__ = ["TrainSummary", "train"]
