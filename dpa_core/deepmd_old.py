"""Input files of DeePMD-kit 1, 2 and 3.0 in the layout of 3.2."""

from __future__ import annotations

import math
from typing import Any

from dpa_core.deepmd_values import number

# Version 1: data among the other keys of `training`.
_DATA = (
    "systems", "set_prefix", "batch_size", "auto_prob", "auto_prob_style", "sys_probs",
    "sys_weights",
)  # fmt: skip
# Until 3.1: optimizer and warm-up among the keys of `training`.
_OPTIMIZER = (
    "opt_type", "adam_beta1", "adam_beta2", "weight_decay", "kf_blocksize", "kf_start_pref_e",
    "kf_limit_pref_e", "kf_start_pref_f", "kf_limit_pref_f", "momentum", "muon_momentum",
    "lr_adjust", "lr_adjust_coeff", "muon_2d_only", "min_2d_dim",
)  # fmt: skip
_WARMUP = ("warmup_steps", "warmup_ratio", "warmup_start_factor")

TRAINING = _DATA + _OPTIMIZER + _WARMUP
"""Keys of `training` that version 3.2 has elsewhere."""


def modernize(data: dict[str, Any]) -> dict[str, Any]:
    """Move the keys of older versions to where 3.2 has them.

    Parameters
    ----------
    data
        The parsed file; it is not changed. What is not understood stays as it is, to be
        reported by who reads the result.
    """
    training, rate = data.get("training"), data.get("learning_rate")
    if not isinstance(training, dict):
        return data
    training, moved = dict(training), dict(data)
    if "systems" in training and "training_data" not in training:
        training["training_data"] = _take(training, _DATA)
        if isinstance(rate, dict) and "decay_rate" in rate and "stop_lr" not in rate:
            rate = _without_decay_rate(rate, training.get("stop_batch"))
    optimizer = _take(training, _OPTIMIZER)
    if optimizer:
        if "opt_type" in optimizer:
            optimizer["type"] = optimizer.pop("opt_type")
        moved["optimizer"] = {**(data.get("optimizer") or {}), **optimizer}
    if isinstance(rate, dict):
        warmup = [key for key in _WARMUP if key in training and key not in rate]
        rate = rate | _take(training, warmup)
        moved["learning_rate"] = rate
    return moved | {"training": training}


def _take(section: dict[str, Any], keys: Any) -> dict[str, Any]:
    return {key: section.pop(key) for key in keys if key in section}


def _without_decay_rate(rate: dict[str, Any], steps: Any) -> dict[str, Any]:
    """Version 1 gave the decay, and no final learning rate."""
    given = [steps, *(rate.get(key) for key in ("start_lr", "decay_steps", "decay_rate"))]
    try:
        count, start, every, factor = (number(value) or 0 for value in given)
    except ValueError:
        return rate
    if not (count > 0 and start > 0 and every > 0 and factor > 0):
        return rate
    rest = {key: value for key, value in rate.items() if key != "decay_rate"}
    return rest | {"stop_lr": math.exp(math.log(factor) * (count / every)) * start}
