"""Systems whose frames are rows of arrays: the common part of deepmd npy and HDF5.

A set is a dictionary from a DeePMD array name (coord, box, energy, ...) to something with
`shape`, `where` and row access; nothing is read until a row is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpa_core.data.checks import check_width
from dpa_core.data.system import System
from dpa_core.errors import DataError
from dpa_core.frames import Frame

KNOWN = (
    "coord", "box", "energy", "force", "virial", "atom_ener", "fparam", "aparam",
    "real_atom_types", "numb_copy",
)  # fmt: skip
"""Arrays of a set that are read; others (hessian, dipole, ...) are ignored."""

SCAN_ROWS = 1 << 16
"""Rows of real_atom_types read at a time when all of them have to be looked at."""


class StoredArray(Protocol):
    """An array on disk."""

    where: str
    shape: tuple[int, ...]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Read rows."""


class ArraySet(Mapping[str, StoredArray]):
    """One set.* of a system, its shapes checked against the number of atoms."""

    def __init__(
        self, where: str, arrays: Mapping[str, StoredArray], natoms: int, periodic: bool
    ) -> None:
        self.where = where
        self._arrays = {name: arrays[name] for name in KNOWN if name in arrays}
        if "coord" not in self._arrays:
            raise DataError(f"{where}: coord.npy is missing; every set needs coordinates")
        shape = self["coord"].shape
        self.nframes = shape[0] if shape else 0
        if self.nframes == 0:
            raise DataError(f"{where}: zero frames (coord has shape {shape}); remove this set")
        if periodic and "box" not in self._arrays:
            raise DataError(
                f"{where}: box.npy is missing; add it, or an empty file nopbc beside type.raw "
                "for a system without periodicity"
            )
        self._check_shapes(natoms)

    def __getitem__(self, name: str) -> StoredArray:
        return self._arrays[name]

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def row(self, name: str, k: int) -> NDArray[np.float64] | None:
        """Row k of an array as float64, None if the set lacks the array."""
        if name not in self._arrays:
            return None
        return np.asarray(self._arrays[name][k], dtype=np.float64)

    def _check_shapes(self, natoms: int) -> None:
        widths = {
            "coord": (3 * natoms, f"nframes x 3·natoms ({natoms} atoms)"),
            "box": (9, "nframes x 9"),
            "energy": (1, "nframes x 1"),
            "force": (3 * natoms, f"nframes x 3·natoms ({natoms} atoms)"),
            "virial": (9, "nframes x 9"),
            "atom_ener": (natoms, f"nframes x natoms ({natoms} atoms)"),
            "real_atom_types": (natoms, f"nframes x natoms ({natoms} atoms)"),
            "numb_copy": (1, "nframes x 1"),
        }
        for name, array in self._arrays.items():
            size = int(np.prod(array.shape[1:], dtype=np.int64))
            width, meaning = widths.get(name, (size, "nframes x number of parameters"))
            if name == "aparam" and size % natoms:
                width, meaning = natoms, "nframes x a multiple of natoms"
            check_width(array.shape, self.nframes, width, array.where, meaning)


class ArraySystem(System):
    """A deepmd system: one composition, or any compositions if `real_atom_types` is there.

    Parameters
    ----------
    name, path
        See `System`.
    names
        Own type names.
    atype
        (natoms,) types of every frame; ignored where a set has `real_atom_types`.
    sets
        The sets in order.
    periodic
        False if the system is marked nopbc.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        names: Sequence[str],
        atype: NDArray[np.int64],
        sets: Sequence[ArraySet],
        periodic: bool,
    ) -> None:
        self.name, self.path, self.names = name, path, tuple(names)
        self._atype, self._sets, self._periodic = atype, list(sets), periodic
        self.mixed = any("real_atom_types" in s for s in sets)
        # the sets' frames in order, each repeated as numb_copy says
        self._copies = [_copies(s) for s in sets]
        lengths = [
            s.nframes if c is None else len(c) for s, c in zip(sets, self._copies, strict=True)
        ]
        self._first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.nframes = int(self._first[-1])
        if self.nframes == 0:
            raise DataError(f"{name}: zero frames; numb_copy.npy drops all of them")
        self._natoms: NDArray[np.int64] | None = None
        self._used: tuple[int, ...] | None = None
        if not self.mixed:
            self._check_types(atype, name)

    def _locate(self, k: int) -> tuple[int, int]:
        """Set of frame k and its row there."""
        part = int(np.searchsorted(self._first, k, side="right")) - 1
        row = int(k - self._first[part])
        copies = self._copies[part]
        return part, row if copies is None else int(copies[row])

    def where(self, k: int) -> str:
        """Place of frame k."""
        part, row = self._locate(k)
        return f"{self._sets[part].where} frame {row}"

    def types(self, k: int) -> NDArray[np.int64]:
        """Own types of frame k, virtual atoms included as -1."""
        part, row = self._locate(k)
        if "real_atom_types" not in self._sets[part]:
            return self._atype
        array = self._sets[part]["real_atom_types"]
        types = np.asarray(array[row]).reshape(-1).astype(np.int64)
        self._check_types(types, f"{array.where} frame {row}")
        return types

    def frame(self, k: int) -> Frame:
        """Frame k with own types; virtual atoms are dropped."""
        part, row = self._locate(k)
        data = self._sets[part]
        types = self.types(k)
        n, real = len(types), types >= 0
        energy = data.row("energy", row)

        def per_atom(name: str, *shape: int) -> NDArray[np.float64] | None:
            values = data.row(name, row)
            return None if values is None else values.reshape(n, *shape)[real]

        coord = per_atom("coord", 3)
        if coord is None:
            raise DataError(f"{data.where}: coord.npy is missing")
        box, virial, fparam = (data.row(name, row) for name in ("box", "virial", "fparam"))
        return Frame(
            coord=coord,
            atype=types[real],
            box=None if box is None or not self._periodic else box.reshape(3, 3),
            energy=None if energy is None else float(energy.reshape(())),
            force=per_atom("force", 3),
            virial=None if virial is None else virial.reshape(3, 3),
            atom_energy=per_atom("atom_ener"),
            fparam=None if fparam is None else fparam.reshape(-1),
            aparam=per_atom("aparam", -1),
        )

    def energies(self, ks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Energies of frames ks; only the energy arrays are read."""
        out = np.full(len(ks), np.nan)
        for part, places, rows in self._groups(ks):
            if "energy" in self._sets[part]:
                out[places] = np.asarray(self._sets[part]["energy"][rows]).reshape(-1)
        return out

    def counts(self, ks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Atoms of every own type in frames ks."""
        number = len(self.names)
        out = np.zeros((len(ks), number), dtype=np.int64)
        for part, places, rows in self._groups(ks):
            if "real_atom_types" not in self._sets[part]:
                out[places] = np.bincount(self._atype, minlength=number)
                continue
            array = self._sets[part]["real_atom_types"]
            for start in range(0, len(rows), SCAN_ROWS):
                types = array[rows[start : start + SCAN_ROWS]].reshape(-1, len(self._atype))
                self._check_types(np.unique(types).astype(np.int64), array.where)
                # one bin per (frame, type), the first of a frame for virtual atoms
                bins = types.astype(np.int64) + 1 + (number + 1) * np.arange(len(types))[:, None]
                table = np.bincount(bins.ravel(), minlength=(number + 1) * len(types))
                block = places[start : start + SCAN_ROWS]
                out[block] = table.reshape(len(types), number + 1)[:, 1:]
        return out

    def _groups(
        self, ks: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(set, places in ks, rows in the set) of frames ks."""
        parts = np.searchsorted(self._first, ks, side="right") - 1
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            rows = ks[places] - self._first[part]
            copies = self._copies[part]
            yield int(part), places, rows if copies is None else copies[rows]

    def natoms(self) -> NDArray[np.int64]:
        """Real atoms of every frame; mixed data are scanned once for virtual atoms."""
        if self._natoms is None:
            self._scan()
        if self._natoms is None:
            raise DataError(f"{self.name}: zero frames")
        return self._natoms

    def used(self) -> tuple[int, ...]:
        """Own types that occur; mixed data are scanned once."""
        if self._used is None:
            self._scan()
        return self._used or ()

    def _scan(self) -> None:
        """Count atoms and collect types block by block, so that memory stays small."""
        if not self.mixed:
            self._natoms = np.full(self.nframes, len(self._atype), dtype=np.int64)
            self._used = tuple(int(t) for t in np.unique(self._atype))
            return
        numbers: list[NDArray[np.int64]] = []
        seen: set[int] = set()
        for data, copies in zip(self._sets, self._copies, strict=True):
            if "real_atom_types" not in data:
                number = np.full(data.nframes, len(self._atype), dtype=np.int64)
                seen.update(int(t) for t in np.unique(self._atype))
            else:
                number = self._scan_set(data["real_atom_types"], data.nframes, seen)
            numbers.append(number if copies is None else number[copies])
        self._natoms = np.concatenate(numbers)
        self._used = tuple(sorted(seen))

    def _scan_set(self, array: StoredArray, nframes: int, seen: set[int]) -> NDArray[np.int64]:
        number = np.empty(nframes, dtype=np.int64)
        for start in range(0, nframes, SCAN_ROWS):
            rows = np.asarray(array[start : start + SCAN_ROWS]).reshape(-1, len(self._atype))
            found = np.unique(rows)
            self._check_types(found.astype(np.int64), array.where)
            seen.update(int(t) for t in found if t >= 0)
            number[start : start + len(rows)] = (rows >= 0).sum(axis=1)
        return number

    def _check_types(self, types: NDArray[np.int64], where: str) -> None:
        low, high = int(types.min()), int(types.max())
        if high >= len(self.names) or low < (-1 if self.mixed else 0):
            seen = high if high >= len(self.names) else low
            raise DataError(
                f"{where}: type {seen} is outside the type map of this system, which has "
                f"{len(self.names)} names (0 to {len(self.names) - 1}): "
                f"{' '.join(self.names[:20])}; add the name to type_map.raw"
            )


def _copies(data: ArraySet) -> NDArray[np.int64] | None:
    """Rows of a set in the order they are used, None for each row once."""
    if "numb_copy" not in data:
        return None
    array = data["numb_copy"]
    copies = np.asarray(array[:]).reshape(-1).astype(np.int64)
    if copies.min() < 0:
        raise DataError(f"{array.where}: a negative number of copies ({copies.min()})")
    return np.repeat(np.arange(data.nframes, dtype=np.int64), copies)
