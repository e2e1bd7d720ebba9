"""A DeePMD-kit `input.json` -> `TrainConfig`, with DeePMD's own defaults.

Every key of DeePMD-kit 3.2's single-task energy input is listed in `deepmd_keys.py`: taken over,
harmless (accepted and dropped), or honoured only at its neutral value. Anything else is an
error that names the key; nothing is ignored in silence. Keys that start with `_` are comments.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

from dpa_core.config import ModelConfig, TrainConfig, parse_config
from dpa_core.deepmd_keys import (
    ABSENT,
    DATA,
    DESCRIPTORS,
    FITTING,
    FOREIGN,
    LEARNING_RATE,
    LOSS,
    MODEL,
    OPTIMIZER,
    REQUIRED,
    SCHEDULES,
    TOP,
    TRAINING,
    TYPE_EMBEDDING,
    VALIDATING,
    Key,
    Table,
    by_class,
)
from dpa_core.deepmd_old import modernize
from dpa_core.errors import ConfigError


def convert(data: dict[str, Any], source: str = "input.json") -> TrainConfig:
    """Translate a DeePMD-kit `input.json` (PyTorch or TensorFlow backend, 3.x schema).

    Parameters
    ----------
    data
        The parsed file; it is not changed.
    source
        File name quoted in messages.

    Raises
    ------
    ConfigError
        All keys that are unknown (with a suggestion) or ask for something dpaflow does not
        do, or the mistakes that `TrainConfig` finds.
    """
    reader = _Reader()
    top = reader.section(modernize(data), TOP, "")
    training = _training(reader, top)
    converted = {
        "model": _model(reader, top["model"]) if "model" in top else {},
        "loss": _loss(reader, top),
        "learning_rate": _learning_rate(reader, top, training.get("numb_steps")),
        "optimizer": _optimizer(reader, top),
        "training": training,
    }
    reader.check(source)
    return parse_config(TrainConfig, converted, source)


def convert_model(
    section: dict[str, Any], source: str, *, class_defaults: bool = False
) -> ModelConfig:
    """Translate the `model` section of a DeePMD-kit input alone.

    Parameters
    ----------
    section
        The section; it is not changed.
    source
        File name quoted in messages.
    class_defaults
        Fill in what DeePMD-kit's PyTorch classes do, not its input schema: right for the
        `model_params` of a checkpoint, from which the classes are made without the schema.

    Raises
    ------
    ConfigError
        As `convert`.
    """
    reader = _Reader(class_defaults)
    converted = _model(reader, section)
    reader.check(source)
    return parse_config(ModelConfig, converted, source)


def is_deepmd_input(data: Any) -> bool:
    """Tell a DeePMD-kit input from our own settings: by a key or type that only it has.

    Parameters
    ----------
    data
        The parsed file, of any content.
    """
    if not isinstance(data, dict):
        return False
    if any(str(key).startswith("_") or key == "$schema" for key in data):
        return True
    return any(_only_deepmds(_at(data, path), *theirs) for path, theirs in FOREIGN.items())


def _at(data: Any, path: str) -> dict[str, Any]:
    for key in path.split(".") if path else ():
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _only_deepmds(section: dict[str, Any], keys: frozenset[str], kinds: frozenset[str]) -> bool:
    return not keys.isdisjoint(section) or str(section.get("type")) in kinds


class _Reader:
    """Reads sections by their tables and collects what is wrong."""

    def __init__(self, class_defaults: bool = False) -> None:
        self.mistakes: list[str] = []
        self.class_defaults = class_defaults

    def check(self, source: str) -> None:
        """Raise what has been found."""
        if self.mistakes:
            count = len(self.mistakes)
            head = f"{source}: {count} mistake{'s' if count > 1 else ''}"
            raise ConfigError("\n  ".join([head, *self.mistakes]))

    def part(self, data: Any, table: Table, kind: str, path: str) -> dict[str, Any]:
        """Read a descriptor or fitting net, which DeePMD-kit makes from a class."""
        return self.section(data, by_class(table, kind) if self.class_defaults else table, path)

    def section(self, data: Any, table: Table, path: str) -> dict[str, Any]:
        """Our keys and values of one section, defaults filled in."""
        if not isinstance(data, dict):
            self.mistakes.append(f"{path or '(top level)'}: must be a mapping (got {data!r})")
            return {}
        spelling = {alias: name for name, key in table.items() for alias in key.aliases}
        given: dict[str, Any] = {}
        for name, value in data.items():
            if not str(name).startswith("_"):
                given[spelling.get(str(name), str(name))] = value
        prefix = f"{path}." if path else ""
        for name in given:
            if name not in table:
                close = difflib.get_close_matches(name, [*table, *spelling], n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                self.mistakes.append(f"{prefix}{name}: unknown key of a DeePMD input{hint}")
        result: dict[str, Any] = {}
        for name, key in table.items():
            value = given.get(name)
            value = key.default if value is None else value
            if value is REQUIRED:
                self.mistakes.append(f"{prefix}{name}: missing; this key is required")
            elif value is not ABSENT:
                self._take(result, name, key, value, prefix)
        return result

    def _take(self, result: dict[str, Any], name: str, key: Key, value: Any, prefix: str) -> None:
        if key.neutral is not None and value not in key.neutral:
            allowed = " or ".join(repr(v) for v in key.neutral if v is not None) or "leave it out"
            self.mistakes.append(
                f"{prefix}{name}: {value!r} is not supported by dpaflow; allowed: {allowed}; "
                f"{key.why}"
            )
        if key.to == "":
            return
        try:
            result[key.to or name] = key.convert(value) if key.convert else value
        except (ValueError, TypeError) as error:
            self.mistakes.append(f"{prefix}{name}: {error} (got {value!r})")


def _choose(
    reader: _Reader, section: Any, tables: dict[str, Table], default: str | None, path: str
) -> str | None:
    """Return the section's `type` if it names one of the tables; otherwise report it."""
    kind = section.get("type", default) if isinstance(section, dict) else default
    if isinstance(kind, str) and kind in tables:
        return kind
    reader.mistakes.append(
        f"{path}.type: {kind!r} is not supported by dpaflow; allowed: {', '.join(tables)}"
    )
    return None


def _model(reader: _Reader, data: Any) -> dict[str, Any]:
    model = reader.section(data, MODEL, "model")
    section = model.pop("descriptor", {})
    kind = _choose(reader, section, DESCRIPTORS, None, "model.descriptor")
    if kind:
        descriptor = reader.part(section, DESCRIPTORS[kind], kind, "model.descriptor")
        descriptor |= _type_embedding(reader, model.pop("type_embedding", None), kind)
        model["descriptor"] = _normal_descriptor(kind, descriptor)
    fitting = model.pop("fitting_net", {})
    model["fitting_net"] = reader.part(fitting, FITTING, "ener", "model.fitting_net")
    model["preset_out_bias"] = _preset(reader, model.get("preset_out_bias"), model.get("type_map"))
    return model


def _normal_descriptor(kind: str, descriptor: dict[str, Any]) -> dict[str, Any]:
    """se_atten and se_atten_v2 are spellings of dpa1, se_a of se_e2_a."""
    if kind in ("se_e2_a", "se_a"):
        return descriptor | {"type": "se_e2_a"}
    if kind == "se_atten_v2":
        descriptor |= {"tebd_input_mode": "strip", "smooth_type_embedding": True}
    return descriptor | {"type": "dpa1"}


def _type_embedding(reader: _Reader, section: Any, kind: str) -> dict[str, Any]:
    """Read the type embedding of the TensorFlow backend, which is beside the descriptor."""
    if section is None:
        return {}
    if kind in ("se_e2_a", "se_a"):
        reader.mistakes.append(
            f"model.type_embedding: {kind} has none in dpaflow; leave it out, or use dpa1 with "
            "attn_layer 0"
        )
        return {}
    return reader.section(section, TYPE_EMBEDDING, "model.type_embedding")


def _preset(reader: _Reader, preset: Any, type_map: Any) -> dict[str, Any]:
    """{"energy": [null, -3.1]} in type order -> {element: eV}."""
    if not preset:
        return {}
    values = preset.get("energy") if isinstance(preset, dict) else None
    names = type_map if isinstance(type_map, list) else []
    if not isinstance(values, list) or len(preset) != 1 or len(values) != len(names):
        reader.mistakes.append(
            'model.preset_out_bias: expected {"energy": [...]} with one entry per element of '
            f"type_map (got {preset!r})"
        )
        return {}
    flat = [v[0] if isinstance(v, list) and v else v for v in values]
    return {name: v for name, v in zip(names, flat) if v is not None}


def _loss(reader: _Reader, top: dict[str, Any]) -> dict[str, Any]:
    loss = reader.section(top.get("loss", {}), LOSS, "loss")
    if loss.pop("use_huber", False):
        if loss.get("loss_func") != "mse":
            reader.mistakes.append('loss.use_huber: needs loss_func "mse"')
        loss["loss_func"] = "huber"
    return loss


def _learning_rate(reader: _Reader, top: dict[str, Any], numb_steps: Any) -> dict[str, Any]:
    section, path = top.get("learning_rate", {}), "learning_rate"
    kind = _choose(reader, section, SCHEDULES, "exp", path)
    rate = reader.section(section, LEARNING_RATE | SCHEDULES.get(kind or "", {}), path)
    rate = {k: v for k, v in rate.items() if v is not None}
    start = rate.get("start_lr")
    ratio = rate.pop("stop_lr_ratio", None)
    if start is None:
        pass  # reported as missing
    elif (ratio is None) == ("stop_lr" not in rate):
        reader.mistakes.append("learning_rate: give exactly one of stop_lr and stop_lr_ratio")
    elif ratio is not None:
        rate["stop_lr"] = start * ratio
    ratio = rate.pop("warmup_ratio", None)
    if ratio is not None and rate.get("warmup_steps"):
        reader.mistakes.append("learning_rate: give only one of warmup_steps and warmup_ratio")
    elif ratio is not None and numb_steps is None:
        reader.mistakes.append("learning_rate.warmup_ratio: needs training.numb_steps")
    elif ratio is not None:
        rate["warmup_steps"] = int(ratio * numb_steps)
    return rate


def _optimizer(reader: _Reader, top: dict[str, Any]) -> dict[str, Any]:
    section = top.get("optimizer", {})
    _choose(reader, section, {"Adam": {}, "AdamW": {}}, "Adam", "optimizer")
    return reader.section(section, OPTIMIZER, "optimizer")


def _training(reader: _Reader, top: dict[str, Any]) -> dict[str, Any]:
    training = reader.section(top.get("training", {}), TRAINING, "training")
    for name in ("training_data", "validation_data"):
        section = training.pop(name, None)
        if section is not None:
            training[name] = reader.section(section, DATA, f"training.{name}")
    validating = reader.section(top.get("validating", {}), VALIDATING, "validating")
    average = validating.get("ema_full_validation") and training.get("enable_ema")
    if validating.get("full_validation") or average:
        training["valid_freq"] = validating["validation_freq"]
    ratio = training.pop("ckpt_keep_ratio", None)
    if ratio is not None:
        training["max_ckpt_keep"] = _checkpoints(reader, training, ratio)
    return training


def _checkpoints(reader: _Reader, training: dict[str, Any], ratio: Any) -> Any:
    """Turn the fraction of all checkpoints of a run into a number."""
    try:
        count = math.ceil(training["numb_steps"] / training["save_freq"])
        return math.ceil(ratio * count)
    except (KeyError, ZeroDivisionError):
        reader.mistakes.append("training.ckpt_keep_ratio: needs numb_steps; give max_ckpt_keep")
        return None
