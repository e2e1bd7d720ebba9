"""Label with any ASE calculator, in this process."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from dpa_core.errors import ConfigError
from ops.files import means_full_disk
from ops.labelers.base import Context, Job, Label, LabelFailed, RetryingLabeler
from ops.labelers.match import check_labels

if TYPE_CHECKING:
    from dpa_core.frames import Frame


class AseLabeler(RetryingLabeler):
    """An ASE calculator by name; a new one for every structure, so that order does not matter."""

    type: Literal["ase"]
    """Which labeler this is."""
    calculator: str
    """Short name (emt, lj, ...), or an import path such as ase.calculators.emt:EMT."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the calculator."""

    def check(self) -> list[str]:
        """Return a mistake for each calculator that cannot be made."""
        found = []
        for settings in self.attempts():
            try:
                settings.make()
            except ConfigError as error:
                found.append(str(error))
        return found

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return calculator and arguments."""
        return {"type": "ase", "calculator": self.calculator, "arguments": self.arguments}

    def make(self) -> Any:
        """Return a new calculator.

        Raises
        ------
        ConfigError
            It cannot be imported, or does not take these arguments.
        """
        found = calculator_class(self.calculator)
        try:
            return found(**self.arguments)
        except Exception as error:  # calculators raise anything
            raise ConfigError(
                f"calculator {self.calculator} does not take the arguments {self.arguments}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def start(self, context: Context) -> Label:
        """Return the function that computes energy, forces and, where implemented, stress."""
        return self._label

    def _label(self, job: Job) -> Frame:
        from dpa_core.frames import Frame

        structure = job.structure
        atoms = structure.atoms()
        # calculators that run a program write into the present folder
        with contextlib.chdir(job.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calculator = self.make()
            try:
                energy = calculator.get_property("energy", atoms)
                force = np.array(calculator.get_property("forces", atoms), dtype=np.float64)
                # with smeared occupations "energy" is extrapolated to 0 K: its derivative is
                # not the force, that of "free_energy" is
                consistent = getattr(calculator, "results", {}).get("free_energy")
                energy = float(energy if consistent is None else consistent)
                virial = None
                if structure.box is not None and _has_stress(calculator):
                    stress = calculator.get_property("stress", atoms)
                    virial = -_tensor(stress) * abs(np.linalg.det(structure.box))
            except Exception as error:  # calculators raise anything
                if means_full_disk(error):  # no verdict on the structure
                    raise
                raise LabelFailed(f"{type(error).__name__}: {error}") from error
        names = sorted(set(structure.elements))
        types = np.array([names.index(e) for e in structure.elements], dtype=np.int64)
        frame = Frame(structure.coord, types, structure.box, energy, force, virial)
        return check_labels(frame, self.calculator)


def calculator_class(name: str) -> Any:
    """Return what makes a calculator.

    Raises
    ------
    ConfigError
        Nothing can be imported by that name.
    """
    from ase.calculators.calculator import get_calculator_class

    from ops.catalog import load_reference

    if ":" in name:
        return load_reference(name)
    try:
        return get_calculator_class(name.lower())
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"calculator {name!r} is unknown to ASE ({error}); give a name such as emt or lj, or "
            "an import path such as ase.calculators.emt:EMT"
        ) from error


def _has_stress(calculator: Any) -> bool:
    return "stress" in getattr(calculator, "implemented_properties", ())


def _tensor(stress: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    from ase.stress import voigt_6_to_full_3x3_stress

    value = np.asarray(stress, dtype=np.float64)
    return voigt_6_to_full_3x3_stress(value) if value.shape == (6,) else value.reshape(3, 3)
