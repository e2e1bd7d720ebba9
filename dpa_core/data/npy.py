"""deepmd/npy and deepmd/npy/mixed folders, read lazily.

    system/  type.raw  type_map.raw  [nopbc]  set.000/{coord,box,energy,force,...}.npy  ...

Opening reads headers only; arrays are memory-mapped when a frame is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpa_core.data.arrays import KNOWN, ArraySet, ArraySystem
from dpa_core.errors import DataError

MAPS = 16_384
"""Files mapped at a time, the last ones used; Linux allows a process 65,530 maps."""

_LONGEST_HEADER = 1 << 16


class NpyArray:
    """A .npy file whose header has been read and whose length fits the header."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            with path.open("rb") as stream:
                # magic (6 bytes), version (2), length of what follows (2 bytes, later 4)
                start = stream.read(12)
                wide = start[6:7] != b"\x01"
                length = int.from_bytes(start[8 : 12 if wide else 10], "little")
                offset = (12 if wide else 10) + length
                header = start + stream.read(min(length, _LONGEST_HEADER))
            self.shape, fortran, dtype = _header(header[:offset])
        except (ValueError, OSError) as error:
            raise DataError(
                f"{path}: not a readable .npy file ({error}); write it again"
            ) from error
        if dtype.kind not in "fiub":
            raise DataError(f"{path}: holds {dtype}, expected numbers")
        status = path.stat()
        size = status.st_size
        expected = offset + dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        if size < expected:
            raise DataError(
                f"{path}: truncated, {size} bytes on disk, {expected} needed for shape "
                f"{self.shape} of {dtype}; copy or write it again"
            )
        order: Literal["F", "C"] = "F" if fortran else "C"
        # a file written anew under the same name is another one
        version = (status.st_ino, status.st_mtime_ns)
        self._key = (self.where, dtype, self.shape, offset, order, version)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return _mapped(*self._key)[rows]


@lru_cache(maxsize=MAPS)
def _mapped(
    path: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    order: Literal["F", "C"],
    version: tuple[int, int],
) -> NDArray[Any]:
    del version  # part of the cache's key only
    # a plain view of the map: rows of an np.memmap are slow to make
    return np.memmap(path, dtype, "r", offset, shape, order).view(np.ndarray)


@lru_cache(maxsize=1024)
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of a header; systems of one shape share it."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return read(stream)


def is_npy_system(folder: Path) -> bool:
    """Whether a folder looks like a deepmd/npy or deepmd/npy/mixed system."""
    return (folder / "type.raw").is_file() or any(
        (s / "coord.npy").is_file() for s in folder.glob("set.*")
    )


def read_types(text: str, where: str) -> NDArray[np.int64]:
    """Numbers of a type.raw."""
    try:
        types = np.array(text.split(), dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{where}: must hold one integer per atom ({error})") from error
    if len(types) == 0:
        raise DataError(f"{where}: empty; it must hold one integer per atom")
    return types


def open_npy(folder: Path, type_map: Sequence[str] | None = None) -> ArraySystem:
    """Open a deepmd/npy or deepmd/npy/mixed folder; only headers and types are read.

    Parameters
    ----------
    folder
        The folder that holds type.raw and set.*.
    type_map
        Names of the types if the folder has no type_map.raw.

    Raises
    ------
    DataError
        A file is missing, truncated or of the wrong shape; a set has no frames.
    """
    folders = sorted(s for s in folder.glob("set.*") if s.is_dir())
    if not folders:
        raise DataError(f"{folder}: no set.* folder beside type.raw; the system has no frames")
    arrays = []
    for s in folders:
        there = {path.name for path in s.iterdir()}
        names = [name for name in KNOWN if f"{name}.npy" in there]
        arrays.append({name: NpyArray(s / f"{name}.npy") for name in names})
    mixed = any("real_atom_types" in a for a in arrays)
    type_raw = folder / "type.raw"
    if type_raw.is_file():
        atype = read_types(type_raw.read_text(), str(type_raw))
    elif mixed:
        first = next(a["real_atom_types"] for a in arrays if "real_atom_types" in a)
        atype = np.zeros(first.shape[-1], dtype=np.int64)
    else:
        raise DataError(f"{folder}: type.raw is missing; it holds one type index per atom")
    names = _type_names(folder, type_map, mixed)
    periodic = not (folder / "nopbc").exists()
    sets = [ArraySet(str(s), a, len(atype), periodic) for s, a in zip(folders, arrays, strict=True)]
    return ArraySystem(str(folder), folder, names, atype, sets, periodic)


def _type_names(folder: Path, type_map: Sequence[str] | None, mixed: bool) -> list[str]:
    path = folder / "type_map.raw"
    if path.is_file():
        return check_names(path.read_text().split(), str(path))
    if mixed:
        raise DataError(f"{folder}: type_map.raw is missing; deepmd/npy/mixed needs it")
    if type_map is None:
        raise DataError(
            f"{folder}: type_map.raw is missing and no type_map was given; write the names of "
            "types 0, 1, ... into it, one a line"
        )
    return list(type_map)


def check_names(names: list[str], where: str) -> list[str]:
    """Raise DataError if a type map is empty or names a type twice."""
    if not names:
        raise DataError(f"{where}: empty; it must name every type")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{where}: names {', '.join(twice)} twice; every type once")
    return names
