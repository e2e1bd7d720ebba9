"""Ground-state electron configurations as input of the type embedding (`use_econf_tebd`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from ase.data import atomic_numbers
from torch import Tensor

from dpa_core.errors import ConfigError

_SUBSHELLS = "1s 2s 2p 3s 3p 3d 4s 4p 4d 4f 5s 5p 5d 5f 6s 6p 6d 7s 7p".split()
_MADELUNG = "1s 2s 2p 3s 3p 4s 3d 4p 5s 4d 5p 6s 4f 5d 6p 7s 5f 6d 7p".split()
_ORBITALS = {"s": 1, "p": 3, "d": 5, "f": 7}
# Where the ground state leaves the Madelung order, as DeePMD-kit's table has it: the NIST
# atomic spectra database up to Cm; Ds and Rg as predicted; Lr with 6d1 (newer work: 7p1).
_EXCEPTIONS = {
    "Cr": {"4s": 1, "3d": 5}, "Cu": {"4s": 1, "3d": 10}, "Nb": {"5s": 1, "4d": 4},
    "Mo": {"5s": 1, "4d": 5}, "Ru": {"5s": 1, "4d": 7}, "Rh": {"5s": 1, "4d": 8},
    "Pd": {"5s": 0, "4d": 10}, "Ag": {"5s": 1, "4d": 10}, "La": {"4f": 0, "5d": 1},
    "Ce": {"4f": 1, "5d": 1}, "Gd": {"4f": 7, "5d": 1}, "Pt": {"6s": 1, "5d": 9},
    "Au": {"6s": 1, "5d": 10}, "Ac": {"5f": 0, "6d": 1}, "Th": {"5f": 0, "6d": 2},
    "Pa": {"5f": 2, "6d": 1}, "U": {"5f": 3, "6d": 1}, "Np": {"5f": 4, "6d": 1},
    "Cm": {"5f": 7, "6d": 1}, "Ds": {"7s": 1, "6d": 9}, "Rg": {"7s": 1, "6d": 10},
}  # fmt: skip


def occupations(element: str) -> dict[str, int]:
    """Electrons of the neutral atom's ground state in every subshell up to 7p."""
    left = atomic_numbers[element]
    filled = dict.fromkeys(_SUBSHELLS, 0)
    for subshell in _MADELUNG:
        filled[subshell] = min(left, 2 * _ORBITALS[subshell[1]])
        left -= filled[subshell]
    return filled | _EXCEPTIONS.get(element, {})


def electron_configurations(type_map: Sequence[str]) -> Tensor:
    """One row of 118 numbers per element, DeePMD's encoding.

    Every spatial orbital gives (1, 1) if doubly, (-1, 1) if singly occupied and (-1, -1) if
    empty, pairs first within a subshell (Hund's rule), all divided by sqrt(118).

    Raises
    ------
    ConfigError
        If a name of the type map is not a chemical element up to Og.
    """
    unknown = [name for name in type_map if not 0 < atomic_numbers.get(name, 0) <= 118]
    if unknown:
        raise ConfigError(
            f"use_econf_tebd needs chemical elements in type_map; {unknown} are not. "
            "Rename them or set descriptor.use_econf_tebd: false"
        )
    rows = [_encode(occupations(name)) for name in type_map]
    return torch.tensor(rows, dtype=torch.float64) / math.sqrt(118)


def _encode(filled: dict[str, int]) -> list[int]:
    row: list[int] = []
    for subshell in _SUBSHELLS:
        orbitals = _ORBITALS[subshell[1]]
        pairs = max(0, filled[subshell] - orbitals)
        single = filled[subshell] - 2 * pairs
        row += [1, 1] * pairs + [-1, 1] * single + [-1, -1] * (orbitals - pairs - single)
    return row
