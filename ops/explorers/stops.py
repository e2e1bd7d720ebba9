"""When a trajectory is ended early: plain functions on one structure, for every explorer."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from dpa_core.config import Config

Reason = Literal["deviation", "distance", "temperature", "volume", "nan", "error"]
AboveOne = Annotated[float, Field(gt=1)]
SPREAD = 6.0
"""Canonical standard deviations that the temperature of a small cell may go beyond the limit."""


class Stops(Config):
    """What ends a trajectory; null switches a check off."""

    max_devi_f: PositiveFloat | None = None
    """eV/Å; a plain number where the explorer's `relative` is set. Largest force deviation of the
    committee beyond which it is pointless to go on. The frame that exceeds it is kept, for all
    other reasons it is not."""
    min_distance: PositiveFloat | None = 0.5
    """Smallest distance of two atoms, as a fraction of the sum of their covalent radii."""
    max_temperature: PositiveFloat | None = None
    """K. Largest temperature of an instant."""
    max_heating: AboveOne | None = 3.0
    """Largest temperature of an instant, as a multiple of the one asked for; widened by six
    standard deviations of its natural fluctuation, which counts in small cells."""
    max_expansion: AboveOne | None = 2.0
    """Largest factor by which the volume may grow or shrink."""


class Stop(NamedTuple):
    """Why and at which step a trajectory ended early."""

    reason: Reason
    step: int
    message: str


class Problem(NamedTuple):
    """What is wrong with a structure."""

    reason: Reason
    message: str


def check_cell(
    coord: NDArray[np.float64], box: NDArray[np.float64] | None, volume: float, stops: Stops
) -> Problem | None:
    """Look for numbers that are not finite and for a cell that explodes or collapses.

    Parameters
    ----------
    coord
        (natoms, 3), Å.
    box
        (3, 3), rows are lattice vectors, Å; None without periodicity.
    volume
        Å³. That of the start.
    stops
        The limits.
    """
    if not np.isfinite(coord).all() or not (box is None or np.isfinite(box).all()):
        return Problem("nan", "a coordinate or the cell is not finite")
    if box is None or stops.max_expansion is None:
        return None
    factor = abs(float(np.linalg.det(box))) / volume
    if 1 / stops.max_expansion <= factor <= stops.max_expansion:
        return None
    return Problem(
        "volume",
        f"the volume is {factor:.3g} times that of the start; max_expansion is "
        f"{stops.max_expansion:g}",
    )


def check_distance(
    coord: NDArray[np.float64],
    box: NDArray[np.float64] | None,
    numbers: NDArray[np.int64],
    stops: Stops,
) -> Problem | None:
    """Look for atoms closer than a fraction of the sum of their covalent radii.

    Parameters
    ----------
    coord, box
        As in `check_cell`; periodic images count.
    numbers
        (natoms,) atomic numbers.
    stops
        The limits.
    """
    from ase.data import chemical_symbols, covalent_radii

    from dpa_core.neighbors import neighbor_pairs

    if stops.min_distance is None:
        return None
    radius = covalent_radii[numbers]
    reach = 2 * stops.min_distance * float(radius.max())
    i, j, _, distance = neighbor_pairs(coord, box, reach)
    if not len(distance):
        return None
    fraction = distance / (radius[i] + radius[j])
    k = int(fraction.argmin())
    if fraction[k] >= stops.min_distance:
        return None
    names = "-".join(sorted(chemical_symbols[numbers[a]] for a in (i[k], j[k])))
    return Problem(
        "distance",
        f"{names} {distance[k]:.3f} Å apart, {fraction[k]:.2f} of the sum of covalent radii; "
        f"min_distance is {stops.min_distance:g}",
    )


def temperature_limit(target: float, natoms: int, stops: Stops) -> float:
    """Largest temperature of an instant, K; infinite if there is no limit.

    The kinetic temperature of Nf degrees of freedom fluctuates by T·sqrt(2/Nf).
    """
    spread = SPREAD * math.sqrt(2 / (3 * max(natoms - 1, 1)))
    relative = math.inf if stops.max_heating is None else target * (stops.max_heating + spread)
    return min(relative, stops.max_temperature or math.inf)


def check_temperature(temperature: float, limit: float) -> Problem | None:
    """Compare the temperature of an instant with `temperature_limit`, both in K."""
    if temperature <= limit:
        return None
    reason: Reason = "temperature" if math.isfinite(temperature) else "nan"
    return Problem(reason, f"the temperature is {temperature:.0f} K; the limit is {limit:.0f} K")


def check_deviation(max_devi_f: float, stops: Stops) -> Problem | None:
    """Compare the committee's largest force deviation, eV/Å, with the hard limit."""
    if not math.isfinite(max_devi_f):
        return Problem("nan", "the deviation of the committee is not finite")
    if stops.max_devi_f is None or max_devi_f <= stops.max_devi_f:
        return None
    return Problem(
        "deviation",
        f"max_devi_f is {max_devi_f:.4g} eV/Å; the limit is {stops.max_devi_f:g} eV/Å",
    )
