"""Which frames are worth keeping, and which of them are the same."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np
import pydantic
from pydantic import PositiveFloat, PositiveInt

from dpa_core.config import Config

if TYPE_CHECKING:
    from dpa_core.frames import Frame

COORDINATE_GRID = 1e-4


class Filters(Config):
    """What a frame must fulfil; the first unmet filter, in this order, is counted."""

    require: tuple[Literal["energy", "force", "virial"], ...] = ("energy", "force")
    """Labels that every frame must carry."""
    elements: tuple[str, ...] | None = None
    """Only frames made of these elements."""
    max_atoms: PositiveInt | None = None
    """Largest number of atoms."""
    energy_per_atom: tuple[float, float] | None = None
    """eV. Smallest and largest energy per atom."""
    max_force: PositiveFloat | None = None
    """eV/Å. Largest length of a force."""
    min_distance: PositiveFloat | None = None
    """Å. Smallest distance between two atoms."""
    min_distance_covalent: PositiveFloat | None = None
    """Smallest distance as a fraction of the sum of the two covalent radii."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Filters:
        window = self.energy_per_atom
        if window is not None and window[0] >= window[1]:
            raise ValueError(f"energy_per_atom must be [smallest, largest], got {list(window)}")
        return self


# The order is that of the fields of Filters: cheap and telling ones first.
FILTERS = ("labels", "elements", "max_atoms", "energy_per_atom", "max_force", "min_distance")


def first_failed(frame: Frame, elements: list[str], filters: Filters) -> str | None:
    """Name of the first filter (of `FILTERS`) that the frame does not pass, or None."""
    checks = {
        "labels": any(getattr(frame, name) is None for name in filters.require),
        "elements": filters.elements is not None and not set(elements) <= set(filters.elements),
        "max_atoms": filters.max_atoms is not None and len(elements) > filters.max_atoms,
        "energy_per_atom": _outside(frame.energy, len(elements), filters.energy_per_atom),
        "max_force": filters.max_force is not None
        and frame.force is not None
        and float(np.linalg.norm(frame.force, axis=1).max()) > filters.max_force,
    }
    failed = next((name for name, value in checks.items() if value), None)
    if failed is None and _too_close(frame, elements, filters):
        return "min_distance"
    return failed


def _outside(energy: float | None, natoms: int, window: tuple[float, float] | None) -> bool:
    if energy is None or window is None:
        return False
    return not window[0] <= energy / natoms <= window[1]


def _too_close(frame: Frame, elements: list[str], filters: Filters) -> bool:
    from ase.data import atomic_numbers, covalent_radii

    from dpa_core.neighbors import neighbor_pairs

    fraction = filters.min_distance_covalent or 0.0
    radius = fraction * np.array([covalent_radii[atomic_numbers[e]] for e in elements])
    longest = max(filters.min_distance or 0.0, 2 * float(radius.max()))
    if longest == 0.0:
        return False
    i, j, _, distance = neighbor_pairs(frame.coord, frame.box, longest)
    limit = np.maximum(filters.min_distance or 0.0, radius[i] + radius[j])
    return bool((distance < limit).any())


def fingerprint(frame: Frame, elements: list[str]) -> str:
    """Hash a structure so that equal ones share the hash.

    Equal: same cell, elements and positions modulo the lattice, in any order of the atoms,
    within about 1e-4 Å. Rotated or shifted copies differ.
    """
    coord, cells = frame.coord, np.zeros(0, dtype=np.int64)
    if frame.box is None:
        grid = _cell_index(coord / COORDINATE_GRID)
    else:
        divisions = np.maximum(
            1, np.round(np.linalg.norm(frame.box, axis=1) / COORDINATE_GRID)
        ).astype(np.int64)
        fractional = np.linalg.solve(frame.box.T, coord.T).T % 1.0
        grid = _cell_index(fractional * divisions) % divisions
        cells = _cell_index(frame.box / COORDINATE_GRID).ravel()
    rows = sorted(zip(elements, map(tuple, grid.tolist()), strict=True))
    return hashlib.sha256(repr((cells.tolist(), rows)).encode()).hexdigest()


def _cell_index(values: np.ndarray) -> np.ndarray:
    # The odd offset keeps symmetric positions (1/2, 1/64, ...) away from the cell borders,
    # where the last bits of two readers would decide.
    return np.floor(values + 0.3679).astype(np.int64)


def reduced_formula(elements: list[str]) -> str:
    """Divide the formula by its common factor; alphabetical: ["Ni", "Al", "Ni", "Al"] -> "AlNi"."""
    counts = Counter(elements)
    factor = int(np.gcd.reduce(list(counts.values())))
    return "".join(
        name + (str(n // factor) if n > factor else "") for name, n in sorted(counts.items())
    )
