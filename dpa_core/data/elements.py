"""Names of types: merging type maps, looking types up, chemical formulas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import DataError


def atomic_number(name: str) -> int:
    """Atomic number of an element symbol; 0 for a name that is no element."""
    from ase.data import atomic_numbers

    return int(atomic_numbers.get(name, 0))


def merge_type_maps(names: Iterable[str]) -> tuple[str, ...]:
    """Union of type names: elements by atomic number, then other names by alphabet."""
    return tuple(sorted(set(names), key=lambda name: (atomic_number(name) or 1000, name)))


def type_lookup(
    names: Sequence[str], used: Iterable[int] | None, type_map: Sequence[str], where: str
) -> NDArray[np.int64]:
    """Table from a system's own type index to the index in `type_map`.

    Parameters
    ----------
    names
        The system's own type names.
    used
        Own types that occur in frames; None means all of them.
    type_map
        The names to map to.
    where
        File the system comes from, for the message.

    Returns
    -------
    (len(names),) int64; -1 for an unused type that `type_map` does not have.

    Raises
    ------
    DataError
        A used type is not in `type_map`.
    """
    position = {name: k for k, name in enumerate(type_map)}
    table = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    needed = range(len(names)) if used is None else used
    missing = [names[t] for t in needed if table[t] < 0]
    if missing:
        noun = "element" if len(missing) == 1 else "elements"
        raise DataError(
            f"{where}: {noun} {', '.join(map(repr, missing))} not in type_map "
            f"{_shorten(type_map)}; add {'it' if len(missing) == 1 else 'them'} to type_map "
            "or leave this system out"
        )
    return table


def _shorten(type_map: Sequence[str]) -> str:
    shown = list(type_map)
    if len(shown) <= 24:
        return str(shown)
    return f"[{', '.join(map(repr, shown[:20]))}, ... {len(shown)} names]"


def formula(atype: NDArray[np.int64], type_map: Sequence[str]) -> str:
    """Chemical formula in the order of `type_map`, e.g. "H2O1"; virtual atoms are left out.

    Parameters
    ----------
    atype
        (natoms,) indices into `type_map`; < 0 marks a virtual atom.
    type_map
        Names of the types.
    """
    types, counts = np.unique(atype[atype >= 0], return_counts=True)
    return "".join(f"{type_map[t]}{n}" for t, n in zip(types, counts, strict=True))
