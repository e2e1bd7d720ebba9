"""Test a model on labelled data: pooled errors per system and overall, arrays for parity."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpa_core.bias import atomic_energies
from dpa_core.derivatives import predict
from dpa_core.errors import DataError, NumericalError
from dpa_core.frames import Batch, Frame
from dpa_core.stats import iterate_batches, require_same_types

if TYPE_CHECKING:
    from dpa_core.data import Dataset
    from dpa_core.model import Potential

FORMAT = "dpaflow-test"
VERSION = 1
_ARRAYS = (
    "energy_ref", "energy_pred", "natoms", "force_ref", "force_pred", "virial_ref", "virial_pred",
    "system",
)  # fmt: skip


class Metrics(NamedTuple):
    """Errors pooled over frames; None where nothing is labelled.

    Attributes
    ----------
    nframes, natoms
        Frames and atoms tested.
    rmse_e, mae_e
        Energy per atom over frames, eV/atom.
    rmse_f, mae_f
        Force components over all atoms, eV/Å.
    rmse_v, mae_v
        Virial components per atom over frames, eV/atom.
    """

    nframes: int
    natoms: int
    rmse_e: float | None = None
    mae_e: float | None = None
    rmse_f: float | None = None
    mae_f: float | None = None
    rmse_v: float | None = None
    mae_v: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary."""
        return self._asdict()


@dataclass(frozen=True)
class TestResult:
    """Errors, and the numbers they were computed from.

    Attributes
    ----------
    overall, systems
        Errors of all frames, and of each system by name.
    energy_ref, energy_pred
        (F,) eV. Reference values are NaN where not labelled, here and below.
    natoms, system
        (F,) atoms of a frame; position of its system in `systems`.
    force_ref, force_pred
        (sum of natoms, 3) eV/Å, frame after frame.
    virial_ref, virial_pred
        (F, 3, 3) eV. Predictions of force and virial are NaN where no label asks for them.
    """

    # Not a test class, although its name begins like one.
    __test__: ClassVar[bool] = False

    overall: Metrics
    systems: dict[str, Metrics]
    energy_ref: NDArray[np.float64]
    energy_pred: NDArray[np.float64]
    natoms: NDArray[np.int64]
    force_ref: NDArray[np.float64]
    force_pred: NDArray[np.float64]
    virial_ref: NDArray[np.float64]
    virial_pred: NDArray[np.float64]
    system: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as a versioned plain dictionary."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "units": {"e": "eV/atom", "f": "eV/Å", "v": "eV/atom"},
            "overall": self.overall.to_json(),
            "systems": {name: metrics.to_json() for name, metrics in self.systems.items()},
        }

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write `path`.npz (arrays) and `path`.json (metrics); return both paths."""
        stem = Path(path)
        stem.parent.mkdir(parents=True, exist_ok=True)
        arrays, metrics = Path(f"{stem}.npz"), Path(f"{stem}.json")
        temporary = Path(f"{stem}.tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **{name: getattr(self, name) for name in _ARRAYS})
        temporary.replace(arrays)
        temporary.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")
        temporary.replace(metrics)
        return arrays, metrics

    @classmethod
    def load(cls, path: str | Path) -> TestResult:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            If a file is missing, damaged or of another version.
        """
        try:
            document = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
            if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
                raise DataError(
                    f"{path}.json: format {document.get('format')!r} version "
                    f"{document.get('version')!r}; expected {FORMAT!r} version {VERSION}"
                )
            with np.load(f"{path}.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
            systems = {name: Metrics(**m) for name, m in document["systems"].items()}
            return cls(overall=Metrics(**document["overall"]), systems=systems, **arrays)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}.npz/.json: not a readable test result: {error}") from error


def test_model(
    model: Potential,
    dataset: Dataset,
    *,
    batch_atoms: int = 512,  # noqa: PT028 - not a test
    progress: Callable[[int, int], None] | None = None,  # noqa: PT028
) -> TestResult:
    """Compare a model (of several heads, the first) with the labels of a data set.

    Parameters
    ----------
    model
        On the device it shall run on.
    dataset
        With the model's type_map.
    batch_atoms
        Atoms evaluated together; bounds the memory.
    progress
        Called as progress(frames done, frames) after every batch.

    Returns
    -------
    TestResult

    Raises
    ------
    ConfigError
        If the type maps differ.
    DataError
        If the data set is empty.
    NumericalError
        If the error of a frame is not finite; names the frame.
    """
    require_same_types(model, dataset)
    if len(dataset) == 0:
        raise DataError("the data set to test on has no frames")
    natoms = np.asarray(dataset.natoms)
    energy, force, virial = _references_and_predictions(model, dataset, batch_atoms, progress)
    system = np.asarray(dataset.system_index)
    names = _unique([info.name for info in dataset.systems])
    of_atom = np.repeat(system, natoms)
    return TestResult(
        overall=_metrics(energy, force, virial, natoms),
        systems={
            name: _metrics(
                energy[:, system == s], force[:, of_atom == s], virial[:, system == s],
                natoms[system == s],
            )
            for s, name in enumerate(names)
        },
        energy_ref=energy[0],
        energy_pred=energy[1],
        natoms=natoms,
        force_ref=force[0],
        force_pred=force[1],
        virial_ref=virial[0],
        virial_pred=virial[1],
        system=system,
    )  # fmt: skip


# pytest collects what is called test_*; this one is a tool.
test_model.__test__ = False  # type: ignore[attr-defined]


def _references_and_predictions(
    model: Potential,
    dataset: Dataset,
    batch_atoms: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Energy (2, F), force (2, sum of natoms, 3), virial (2, F, 3, 3): labels, predictions."""
    nframes = len(dataset)
    offsets = np.concatenate([[0], np.cumsum(dataset.natoms)])
    energy, virial = np.full((2, nframes), np.nan), np.full((2, nframes, 3, 3), np.nan)
    force = np.full((2, int(offsets[-1]), 3), np.nan)
    for numbers, frames, batch in iterate_batches(model, dataset, range(nframes), batch_atoms):
        one = slice(numbers[0], numbers[-1] + 1)
        atoms = slice(offsets[one.start], offsets[one.stop])
        energy[1, one], force[1, atoms], virial[1, one] = _predicted(model, frames, batch)
        for k, frame in zip(numbers, frames, strict=True):
            own = slice(offsets[k], offsets[k + 1])
            energy[0, k] = np.nan if frame.energy is None else frame.energy
            if frame.force is not None:
                force[0, own] = frame.force
            if frame.virial is not None:
                virial[0, k] = frame.virial
            pairs = ((frame.energy, energy[:, k]), (frame.force, force[:, own]),
                     (frame.virial, virial[:, k]))  # fmt: skip
            for label, pair in pairs:
                if label is not None:
                    _check_finite(pair, dataset.name(k))
        if progress is not None:
            progress(one.stop, nframes)
    return energy, force, virial


def _predicted(
    model: Potential, frames: list[Frame], batch: Batch
) -> tuple[NDArray[np.float64] | float, ...]:
    """Energy (F,), force (N, 3) and virial (F, 3, 3); NaN for derivatives nobody asks for."""
    if all(f.force is None and f.virial is None for f in frames):
        atomic = atomic_energies(model, batch)
        energy = atomic.new_zeros(batch.nframes).index_add(0, batch.frame, atomic)
        return energy.cpu().numpy(), np.nan, np.nan
    found = predict(model, batch)
    return tuple(x.detach().cpu().numpy() for x in (found.energy, found.force, found.virial))


def _check_finite(pair: NDArray[np.float64], where: str) -> None:
    """Raise NumericalError if the squared error of a frame is not finite.

    Left out of the mean, a frame on which the model fails would flatter it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.square(pair[1] - pair[0])).all():
            return
    raise NumericalError(
        f"{where}: prediction {_largest(pair[1])}, label {_largest(pair[0])} (largest number of "
        "each), the error is not finite; look for overlapping atoms or wrong labels in this "
        "frame, or leave it out; if all frames fail, the model is damaged"
    )


def _largest(values: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(values)))


def _metrics(
    energy: NDArray[np.float64],
    force: NDArray[np.float64],
    virial: NDArray[np.float64],
    natoms: NDArray[np.int64],
) -> Metrics:
    """Errors of arrays (2, ...) = reference, prediction."""
    per_atom = np.maximum(natoms, 1)
    rmse_e, mae_e = _rmse_mae((energy[1] - energy[0]) / per_atom)
    rmse_f, mae_f = _rmse_mae(force[1] - force[0])
    rmse_v, mae_v = _rmse_mae((virial[1] - virial[0]) / per_atom[:, None, None])
    return Metrics(
        len(natoms), int(natoms.sum()), rmse_e, mae_e, rmse_f, mae_f, rmse_v, mae_v
    )  # fmt: skip


def _rmse_mae(error: NDArray[np.float64]) -> tuple[float | None, float | None]:
    known = error[np.isfinite(error)]
    if not known.size:
        return None, None
    return float(np.sqrt(np.mean(known**2))), float(np.mean(np.abs(known)))


def _unique(names: list[str]) -> list[str]:
    """Names, a repeated one with " #2", " #3" behind it."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return result
