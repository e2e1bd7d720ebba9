"""Checkpoints: complete, written atomically, and bound to one configuration and data."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load(weights_only=True) raises
from typing import Any

import torch

from dpa_core.errors import ConfigError, ModelFileError

FORMAT_VERSION = 1

# Keys that may differ when a run is continued: they change no number. Paths may differ
# because a run folder can move; the data themselves are compared by fingerprint.
FREE_KEYS = (
    "training.training_data.systems",
    "training.validation_data.systems",
    "training.save_freq",
    "training.max_ckpt_keep",
    "training.tensorboard",
    "finetune.model",
)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old or the new one, even after a power cut."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_checkpoint(outdir: Path, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoint-STEP.pt and remove all but the newest `keep`.

    Parameters
    ----------
    outdir
        Folder of the run.
    state
        Tensors, numbers, strings, lists and dictionaries; "step" names the file.
    keep
        Checkpoints kept.
    """
    path = outdir / f"checkpoint-{state['step']}.pt"
    # by way of memory: writing to a full disk itself, torch hides the system's error
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
    write_atomic(path, buffer.getvalue())
    for old in find_checkpoints(outdir)[:-keep]:
        old.unlink()
    return path


def find_checkpoints(outdir: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first."""
    found = [p for p in outdir.glob("checkpoint-*.pt") if p.stem.split("-")[1].isdigit()]
    return sorted(found, key=lambda p: int(p.stem.split("-")[1]))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises
    ------
    ModelFileError
        Truncated, not a checkpoint, or of an unknown version.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is truncated or of another kind")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, UnpicklingError) as error:
        raise ModelFileError(
            f"{path}: not a readable checkpoint ({error}); delete it to continue from the one "
            "before, or train again without resume"
        ) from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: checkpoint format version {version}, this program reads {FORMAT_VERSION}; "
            "train again without resume"
        )
    return dict(state)


def check_same_run(now: Mapping[str, Any], then: Mapping[str, Any], outdir: Path) -> None:
    """Raise unless two runs (configuration and fingerprints of the data) are the same.

    Raises
    ------
    ConfigError
        Names every key that differs, with both values.
    """
    new, old = _flat(now), _flat(then)
    lines = [
        f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(new.keys() | old.keys())
        if key not in FREE_KEYS and new.get(key) != old.get(key) and not _new_switch(key, new, old)
    ]
    if lines:
        raise ConfigError(
            f"{outdir} holds a run with another configuration, so it cannot be resumed:\n"
            + "\n".join(lines)
            + "\nChoose a new folder, or restore the configuration, or start over with "
            "resume=False. To train further than numb_steps (the learning rate depends on "
            "it), start a new run with finetune.model set to this run's model.safetensors."
        )


def _new_switch(key: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Tell a switch that is off and that the version which began the run did not have."""
    return key not in old and new[key] is False


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> {"a.b.c": value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
