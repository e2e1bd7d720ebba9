"""Refit the energy bias of a model to a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import NonNegativeInt, PositiveInt

from dpa_core.config import Config
from ops.files import write_json
from ops.split import draw


class BiasConfig(Config):
    """How the bias is refitted."""

    mode: Literal["change", "set"] = "change"
    """change: shift by the least-squares residual of the predictions; set: replace by the
    least-squares fit of the labels to the composition."""
    max_frames: PositiveInt | None = None
    """Use this many frames, drawn at random; all when left out."""
    seed: NonNegativeInt = 1
    """Seed of the draw, the same as that of a training with `draw_seed`."""


class BiasInputs(NamedTuple):
    """A model file and the labelled data to fit."""

    model: Path
    data: Sequence[Path]


class BiasRun(NamedTuple):
    """The new model file and the content of `bias.json`."""

    model: Path
    summary: dict[str, Any]


def run_bias(inputs: BiasInputs, config: BiasConfig, outdir: Path) -> BiasRun:
    """Write a copy of the model whose energy bias fits the data.

    Parameters
    ----------
    inputs
        Model and data.
    config
        Mode and frames.
    outdir
        Receives `model.safetensors` and `bias.json`: mode, frames, bias before and after per
        element (eV), RMSE of the energy per atom before and after (eV/atom; null for `set`),
        and the groups of elements that the compositions cannot tell apart.

    Raises
    ------
    DataError
        The data have no energies, or an element that the model does not know.
    """
    from dpa_core.bias import change_bias
    from dpa_core.data import open_dataset
    from dpa_core.interchange.files import load_model, save_model

    model = load_model(inputs.model)
    dataset = open_dataset(list(inputs.data), type_map=model.type_map)
    indices = None
    if config.max_frames is not None:
        indices = sorted(draw(len(dataset), config.max_frames, config.seed))
    report = change_bias(model, dataset, config.mode, indices)
    outdir.mkdir(parents=True, exist_ok=True)
    frames = len(dataset) if indices is None else len(indices)
    provenance = {**model.provenance, "bias": {"mode": config.mode, "frames": frames}}
    save_model(model, outdir / "model.safetensors", provenance)
    names = model.type_map
    summary = {
        "version": 1,
        "mode": config.mode,
        "frames": frames,
        "before": dict(zip(names, map(float, report.before), strict=True)),
        "after": dict(zip(names, map(float, report.after), strict=True)),
        "rmse_before": report.rmse_before,
        "rmse_after": report.rmse_after,
        "indistinct": [[names[t] for t in group] for group in report.indistinct],
    }
    write_json(outdir / "bias.json", summary)
    return BiasRun(outdir / "model.safetensors", summary)
