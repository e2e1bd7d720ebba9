"""From an `ase.Atoms` to a `Frame`: which key is which label, in which unit and sign.

Border of the unit system (docs/conventions.md): extxyz and ASE files hold eV, Å, eV/Å and
eV/Å³ unless a key such as `stress_unit=GPa` declares something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import DataError
from dpa_core.frames import Frame

if TYPE_CHECKING:
    from ase import Atoms

MARKS = ("ref", "reference", "dft", "qm", "target", "label")
"""A key REF_energy, dft_energy or energy_ref is taken before a bare `energy`."""

BASES = {
    "energy": ("energy", "total_energy", "etot", "toten", "potential_energy", "free_energy"),
    "force": ("forces", "force"),
    "virial": ("virial", "virials"),
    "stress": ("stress", "stresses"),
    "atom_energy": ("energies", "atom_energies", "atom_energy", "atomic_energies", "local_energy"),
}
"""Label -> its names without mark and case, the preferred one first."""

EV_PER_A3_TO_GPA = 160.21766208
"""GPa in one eV/Å³ (CODATA 2018: 1.602176634e-19 J / 1e-30 m³)."""

UNITS: dict[str, dict[str, float]] = {
    "energy": {"ev": 1.0, "mev": 1e-3, "hartree": 27.211386245988, "ha": 27.211386245988,
               "ry": 13.605693122994, "rydberg": 13.605693122994,
               "kcal/mol": 0.0433641153, "kj/mol": 0.01036426966},
    "force": {"ev/a": 1.0, "ev/ang": 1.0, "ev/angstrom": 1.0, "ev/å": 1.0, "mev/a": 1e-3,
              "hartree/bohr": 51.422067476, "ha/bohr": 51.422067476, "ry/bohr": 25.711033738,
              "kcal/mol/a": 0.0433641153, "kcal/mol/angstrom": 0.0433641153},
    "stress": {"ev/a^3": 1.0, "ev/a3": 1.0, "ev/ang^3": 1.0, "ev/angstrom^3": 1.0,
               "ev/angstrom3": 1.0, "ev/å^3": 1.0, "ev/å³": 1.0, "gpa": 1 / EV_PER_A3_TO_GPA,
               "kbar": 0.1 / EV_PER_A3_TO_GPA, "kb": 0.1 / EV_PER_A3_TO_GPA,
               "mpa": 1e-3 / EV_PER_A3_TO_GPA, "pa": 1e-9 / EV_PER_A3_TO_GPA,
               "bar": 1e-4 / EV_PER_A3_TO_GPA},
}  # fmt: skip
UNITS["virial"] = UNITS["atom_energy"] = UNITS["energy"]

PER_ATOM = ("forces", "energies", "stresses", "charges", "magmoms")
"""Results of an ASE calculator with one row per atom."""

VACUUM = 100.0
"""Å. Empty space added along a direction that is not periodic while others are."""


def frame_from_atoms(atoms: Atoms, names: Sequence[str], where: str) -> Frame:
    """Convert; types are indices into `names`.

    Labels are looked up in the attached results, the per-frame and the per-atom values.
    Constraints are not applied: a fixed atom keeps its force. Stress becomes
    virial = -stress·|volume| (stress is tension positive, as in ASE).

    Parameters
    ----------
    atoms
        Structure with its labels.
    names
        Type names; every symbol of `atoms` is among them.
    where
        File and frame, the head of a message.

    Raises
    ------
    DataError
        A label has the wrong shape or an unknown unit.
    """
    position = {name: t for t, name in enumerate(names)}
    info, arrays = _values(atoms)
    n = len(atoms)
    energy = _label("energy", info, info, where)
    virial = _tensor(_label("virial", info, info, where), where)
    stress = _tensor(_label("stress", info, info, where), where)
    if virial is None and stress is not None and atoms.pbc.any():
        virial = -stress * abs(float(np.linalg.det(atoms.cell.array)))
    atom_energy = _label("atom_energy", arrays, info, where)
    return Frame(
        coord=np.asarray(atoms.positions, dtype=np.float64),
        atype=np.array([position[s] for s in atoms.get_chemical_symbols()], dtype=np.int64),
        box=_box(atoms),
        energy=None if energy is None else _scalar(energy, where),
        force=_label("force", arrays, info, where),
        virial=virial,
        atom_energy=None if atom_energy is None else atom_energy.reshape(n),
    )


def _values(atoms: Atoms) -> tuple[dict[str, Any], dict[str, Any]]:
    """Per-frame and per-atom values by key."""
    info = {str(k): v for k, v in atoms.info.items()}
    arrays = dict(atoms.arrays)
    results = getattr(atoms.calc, "results", None) or {}
    for key, value in results.items():
        if value is None:
            continue
        (arrays if key in PER_ATOM else info)[key] = value
    return info, arrays


def _label(
    label: str, values: Mapping[str, Any], info: Mapping[str, Any], where: str
) -> NDArray[np.float64] | None:
    """Read a label in DeePMD's unit, None if no key names it."""
    key = find_key(label, values)
    if key is None:
        return None
    try:
        value = np.asarray(values[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {key} = {values[key]!r} is not a number") from error
    return value * _unit(label, key, info, where)


def find_key(label: str, keys: Mapping[str, Any]) -> str | None:
    """Choose the key that holds a label: marked keys first, then by the order of `BASES`."""
    ranked = []
    for key in keys:
        words = key.lower().replace("-", "_").split("_")
        marked = words[0] in MARKS or words[-1] in MARKS
        if marked and len(words) > 1:
            words = words[1:] if words[0] in MARKS else words[:-1]
        base = "_".join(words)
        if base in BASES[label]:
            ranked.append((not marked, BASES[label].index(base), key))
    return min(ranked)[2] if ranked else None


def _unit(label: str, key: str, info: Mapping[str, Any], where: str) -> float:
    """Factor from the declared unit, 1 if none is declared."""
    wanted = {f"{name}_{word}" for name in (label, key.lower()) for word in ("unit", "units")}
    for name, declared in info.items():
        if name.lower().replace("-", "_") not in wanted:
            continue
        allowed = UNITS[label]
        text = str(declared).strip().lower().replace(" ", "").replace("**", "^")
        if text not in allowed:
            raise DataError(
                f"{where}: {name}={declared} is an unknown unit; allowed: {', '.join(allowed)}"
            )
        return allowed[text]
    return 1.0


def _scalar(value: NDArray[np.float64], where: str) -> float:
    if value.size != 1:
        raise DataError(f"{where}: energy has shape {value.shape}, expected one number")
    return float(value.reshape(()))


def _tensor(value: NDArray[np.float64] | None, where: str) -> NDArray[np.float64] | None:
    """(3, 3) from 9 numbers or from Voigt's 6 (xx yy zz yz xz xy)."""
    if value is None:
        return None
    if value.size == 9:
        return value.reshape(3, 3)
    if value.size == 6:
        xx, yy, zz, yz, xz, xy = value.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    raise DataError(
        f"{where}: stress or virial of shape {value.shape}; expected 3x3, 9 numbers or 6 in "
        "Voigt's order (xx yy zz yz xz xy)"
    )


def _box(atoms: Atoms) -> NDArray[np.float64] | None:
    """Cell of a `Frame`; open directions of a slab or wire get a vector across vacuum."""
    if not atoms.pbc.any():
        return None
    box = np.array(atoms.cell.array, dtype=np.float64)
    if atoms.pbc.all() or not box[atoms.pbc].any(axis=1).all():
        return box
    from ase.geometry import complete_cell

    box[~atoms.pbc] = 0.0
    box = complete_cell(box)  # unit vectors normal to the periodic ones
    for k in np.flatnonzero(~atoms.pbc):
        along = atoms.positions @ box[k]
        box[k] *= float(np.ptp(along)) + VACUUM
    return box
