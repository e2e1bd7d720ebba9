"""Test models on labelled data: errors per system and overall, before and after a bias refit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from dpa_core.config import Config
from dpa_core.errors import DataError
from ops.files import holds_frames, write_json
from ops.filters import reduced_formula

if TYPE_CHECKING:
    from dpa_core.data import Dataset
    from dpa_core.evaluate import TestResult
    from dpa_core.model import Potential

logger = logging.getLogger(__name__)


class RunTestConfig(Config):
    """What is measured and drawn."""

    batch_atoms: PositiveInt = 512
    """Atoms evaluated together; bounds the memory."""
    refit: bool = True
    """Also give energy errors after a least-squares refit of the bias to the test data."""
    plots: bool = True
    """Draw parity plots."""


class TestInputs(NamedTuple):
    """Model files and data folders, each under the name it has in the results."""

    models: Mapping[str, Path]
    data: Mapping[str, Sequence[Path]]


def run_test(inputs: TestInputs, config: RunTestConfig, outdir: Path) -> dict[str, Any]:
    """Test every model on every data set.

    Parameters
    ----------
    inputs
        Models and data.
    config
        Settings.
    outdir
        Receives `results.json`, `MODEL--DATA.npz` (labels and predictions) and
        `parity-MODEL--DATA.png`.

    Returns
    -------
    dict[str, Any]
        The content of `results.json`: "results" is a list with one entry for each pair: model,
        data, overall (metrics, see `dpa_core.evaluate.Metrics`), systems and formulas (name ->
        metrics), refit (null, or rmse_e, mae_e in eV/atom and the shift per element in eV).

    Raises
    ------
    DataError
        No model or data, data without any label, or data that hold an element which a model
        does not know.
    """
    from dpa_core.data import open_dataset
    from dpa_core.interchange.files import load_model

    if not inputs.models or not inputs.data:
        raise DataError(f"test needs models and data; got {len(inputs.models)} models, "
                        f"{len(inputs.data)} data sets")  # fmt: skip
    outdir.mkdir(parents=True, exist_ok=True)
    results = []
    for model_name, model_path in inputs.models.items():
        model = load_model(model_path)
        for data_name, paths in inputs.data.items():
            paths = [path for path in paths if holds_frames(path)]
            if not paths:
                logger.info("%s holds no frames: not tested", data_name)
                continue
            dataset = open_dataset(list(paths), type_map=model.type_map)
            entry = {"model": model_name, "data": data_name}
            entry |= _test_pair(model, dataset, config, outdir, f"{model_name}--{data_name}")
            results.append(entry)
            logger.info("%s", summary_line(entry))
    document = {"version": 1, "units": _UNITS, "results": results}
    write_json(outdir / "results.json", document)
    return document


_UNITS = {"rmse_e": "eV/atom", "rmse_f": "eV/Å", "rmse_v": "eV/atom"}


def summary_line(entry: Mapping[str, Any]) -> str:
    """Return one line for the log: names, frames and errors in meV."""
    overall = entry["overall"]
    parts = [f"{entry['model']} on {entry['data']} ({overall['nframes']} frames)"]
    for key, unit in (("rmse_e", "meV/atom"), ("rmse_f", "meV/Å"), ("rmse_v", "meV/atom")):
        if overall.get(key) is not None:
            parts.append(f"{key} {1000 * overall[key]:.1f} {unit}")
    if entry["refit"] is not None:
        parts.append(f"rmse_e after refit {1000 * entry['refit']['rmse_e']:.1f} meV/atom")
    return ", ".join(parts)


def _test_pair(
    model: Potential, dataset: Dataset, config: RunTestConfig, outdir: Path, stem: str
) -> dict[str, Any]:
    from dpa_core.evaluate import test_model

    result = test_model(model, dataset, batch_atoms=config.batch_atoms)
    overall = result.overall
    if (overall.rmse_e, overall.rmse_f, overall.rmse_v) == (None, None, None):
        raise DataError(
            f"{dataset.name(0)} and the other {len(dataset) - 1} frames to test on have no label; "
            "give data with energy, force or virial"
        )
    shift, shifted = None, None
    if config.refit:
        shift, shifted = refit_energy(dataset.counts(), result.energy_ref, result.energy_pred)
    result.save(outdir / stem)
    if config.plots:
        from ops.plots import parity_figure

        parity_figure(result, shifted, outdir / f"parity-{stem}.png", stem.replace("--", " on "))
    refit = None
    if shift is not None and shifted is not None:
        refit = _energy_errors(result, shifted)
        refit["shift"] = dict(zip(model.type_map, map(float, shift), strict=True))
    return {
        "overall": overall.to_json(),
        "systems": {name: metrics.to_json() for name, metrics in result.systems.items()},
        "formulas": formula_errors(result, dataset.counts(), model.type_map),
        "refit": refit,
    }


def formula_errors(
    result: TestResult, counts: NDArray[np.int64], type_map: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Pool errors over frames of one reduced formula.

    Returns
    -------
    dict
        Formula -> nframes, rmse_e (eV/atom), rmse_f (eV/Å), rmse_v (eV/atom).
    """
    formulas = np.array([_formula(row, type_map) for row in counts])
    of_atom = np.repeat(formulas, result.natoms)
    energy = (result.energy_pred - result.energy_ref) / result.natoms
    force = result.force_pred - result.force_ref
    virial = (result.virial_pred - result.virial_ref) / result.natoms[:, None, None]
    return {
        str(name): {
            "nframes": int((formulas == name).sum()),
            "rmse_e": _rmse(energy[formulas == name]),
            "rmse_f": _rmse(force[of_atom == name]),
            "rmse_v": _rmse(virial[formulas == name]),
        }
        for name in np.unique(formulas)
    }


def _formula(counts: NDArray[np.int64], type_map: Sequence[str]) -> str:
    return reduced_formula(
        [name for name, n in zip(type_map, counts, strict=True) for _ in range(n)]
    )


def _rmse(error: NDArray[np.float64]) -> float | None:
    known = error[np.isfinite(error)]
    return float(np.sqrt(np.mean(known**2))) if known.size else None


def refit_energy(
    counts: NDArray[np.int64], reference: NDArray[np.float64], predicted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | tuple[None, None]:
    """Shift predictions by a bias per element, fitted to the residual by least squares.

    It shows the error that is left once the zero of energy of every element is that of the
    test data; few frames with many elements flatter the model.

    Parameters
    ----------
    counts
        (F, T) atoms of every element.
    reference, predicted
        (F,) eV; NaN where a frame has no label.

    Returns
    -------
    tuple
        Shift per element (T,) and shifted predictions (F,), eV; None, None without labels.
    """
    from dpa_core.bias import solve_bias

    known = np.isfinite(reference)
    if not known.any():
        return None, None
    fit = solve_bias(counts[known], (reference - predicted)[known])
    return fit.bias, predicted + counts @ fit.bias


def _energy_errors(result: TestResult, predicted: NDArray[np.float64]) -> dict[str, Any]:
    known = np.isfinite(result.energy_ref)
    error = (predicted - result.energy_ref)[known] / result.natoms[known]
    return {
        "rmse_e": float(np.sqrt(np.mean(error**2))),
        "mae_e": float(np.mean(np.abs(error))),
    }
