"""deepmd/hdf5: the deepmd/npy tree inside an HDF5 file, addressed as file.hdf5#/group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpa_core.data.arrays import KNOWN, ArraySet, ArraySystem
from dpa_core.data.npy import check_names
from dpa_core.errors import DataError

if TYPE_CHECKING:
    import h5py


class HDF5Array:
    """A data set of an HDF5 file, opened when first read (so that workers may fork before)."""

    def __init__(self, path: Path, data: h5py.Dataset) -> None:
        self.where = f"{path}#{data.name}"
        self.shape = data.shape
        self._path, self._name = path, data.name
        self._data: h5py.Dataset | None = None
        if data.dtype.kind not in "fiub":
            raise DataError(f"{self.where}: holds {data.dtype}, expected numbers")

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if self._data is None:
            import h5py

            self._data = h5py.File(self._path, "r")[self._name]
        if isinstance(rows, np.ndarray):  # h5py wants ascending rows, each once
            wanted, place = np.unique(rows, return_inverse=True)
            return np.asarray(self._data[wanted])[place]
        return np.asarray(self._data[rows])


def split_group(path: str | Path) -> tuple[Path, str]:
    """File and group of "file.hdf5#/group"; the group is "/" if not given."""
    file, _, group = str(path).partition("#")
    return Path(file), "/" + group.strip("/")


def find_groups(path: str | Path) -> list[str]:
    """Systems of an HDF5 file below the given group, as "file.hdf5#/group"."""
    import h5py

    file, start = split_group(path)
    with _open(file) as root:
        if start not in root:
            raise DataError(f"{file}: has no group {start}; it has {', '.join(root) or 'none'}")
        found: list[str] = []

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Group) and _is_system(item):
                found.append(f"{file}#{item.name}")

        if _is_system(root[start]):
            found.append(f"{file}#{root[start].name}")
        root[start].visititems(visit)
    return sorted(found)


def open_hdf5(path: str | Path, type_map: Sequence[str] | None = None) -> ArraySystem:
    """Open one system of an HDF5 file.

    Parameters
    ----------
    path
        "file.hdf5#/group".
    type_map
        Names of the types if the group has no type_map.raw.
    """
    file, name = split_group(path)
    where = f"{file}#{name}"
    with _open(file) as root:
        group = root[name]
        if "type.raw" not in group:
            raise DataError(f"{where}: type.raw is missing; it holds one type index per atom")
        atype = np.asarray(group["type.raw"][()]).reshape(-1).astype(np.int64)
        names = _type_names(group, type_map, where)
        periodic = "nopbc" not in group
        keys = sorted(key for key in group if key.startswith("set."))
        if not keys:
            raise DataError(f"{where}: no set.* beside type.raw; the system has no frames")
        sets = []
        for key in keys:
            present = {n: group[key][f"{n}.npy"] for n in KNOWN if f"{n}.npy" in group[key]}
            arrays = {n: HDF5Array(file, data) for n, data in present.items()}
            sets.append(ArraySet(f"{where.rstrip('/')}/{key}", arrays, len(atype), periodic))
    return ArraySystem(where, file, names, atype, sets, periodic)


def _open(file: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"{file}: not a readable HDF5 file ({error})") from error


def _is_system(group: h5py.Group) -> bool:
    return "type.raw" in group


def _type_names(group: h5py.Group, type_map: Sequence[str] | None, where: str) -> list[str]:
    if "type_map.raw" in group:
        values = np.asarray(group["type_map.raw"][()]).reshape(-1)
        names = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
        return check_names(names, f"{where}/type_map.raw")
    if type_map is None:
        raise DataError(
            f"{where}: type_map.raw is missing and no type_map was given; name types 0, 1, ..."
        )
    return list(type_map)
