"""`.dp` files: DeePMD-kit's dictionary as HDF5.

The root attribute `json` is the dictionary; in `@variables` a text names the data set that holds
the array.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from dpa_core.errors import ModelFileError
from dpa_core.interchange.atomic import replaced
from dpa_core.interchange.content import AGAIN, Content

if TYPE_CHECKING:
    from dpa_core.model import Potential


def read(path: Path, name: str | None = None) -> Content:
    """Read a `.dp` file.

    Raises
    ------
    ModelFileError
        If the file is damaged or holds what cannot be represented exactly.
    """
    from dpa_core.interchange.deepmd_dict import content_of, refuse_name

    refuse_name(path, name)
    try:
        with h5py.File(path, "r") as file:
            data = json.loads(_text(file, path))
            data = _with_arrays(data, file, path, path.stat().st_size, inside=False)
    except ModelFileError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged, cannot be read: {error}; {AGAIN}") from error
    return content_of(data, path)


def _text(file: h5py.File, path: Path) -> str:
    if "json" not in file.attrs:
        raise ModelFileError(f"{path}: an HDF5 file, but not a model: it has no attribute 'json'")
    text = file.attrs["json"]
    if not isinstance(text, str | bytes):
        raise ModelFileError(f"{path}: the attribute 'json' is no text; {AGAIN}")
    return text if isinstance(text, str) else text.decode()


def _with_arrays(data: Any, file: h5py.File, path: Path, size: int, *, inside: bool) -> Any:
    """Replace names of data sets by what they hold."""
    if isinstance(data, dict):
        return {
            k: _with_arrays(v, file, path, size, inside=inside or k == "@variables")
            for k, v in data.items()
        }
    if isinstance(data, list):
        return [_with_arrays(v, file, path, size, inside=inside) for v in data]
    if not inside or data is None:
        return data
    if not isinstance(data, str):
        return np.asarray(data)
    return _array(file, data, path, size)


def _array(file: h5py.File, name: str, path: Path, size: int) -> np.ndarray:
    key = name.lstrip("/")
    if "/" in key or not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise ModelFileError(f"{path}: data set {name!r} is missing or lies elsewhere; {AGAIN}")
    data = file[key]
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise ModelFileError(f"{path}: {name!r} is not an array of this file; {AGAIN}")
    if data.nbytes > size:
        raise ModelFileError(
            f"{path}: data set {name!r} claims {data.nbytes:,} bytes, the file has {size:,}; "
            f"{AGAIN}"
        )
    if data.dtype.kind not in "fiub":
        raise ModelFileError(f"{path}: data set {name!r} holds {data.dtype}, not numbers; {AGAIN}")
    return np.asarray(data[()])


def save(model: Potential, path: Path, provenance: dict[str, Any] | None = None) -> Path:
    """Write a `.dp` file that DeePMD-kit 3.2 reads.

    Raises
    ------
    ModelFileError
        If DeePMD-kit has nothing that gives the same numbers.
    """
    from dpa_core.interchange.deepmd_write import file_dictionary

    data = file_dictionary(model, path, model.provenance if provenance is None else provenance)
    with replaced(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        number = 0

        def store(part: Any, inside: bool = False) -> Any:
            nonlocal number
            if isinstance(part, dict):
                return {k: store(v, inside or k == "@variables") for k, v in part.items()}
            if isinstance(part, list):
                return [store(v, inside) for v in part]
            if not inside or part is None:
                return part
            file.create_dataset(f"variable_{number:04d}", data=part, track_times=False)
            number += 1
            return f"/variable_{number - 1:04d}"

        file.attrs["json"] = json.dumps(store(data), separators=(",", ":"))
    return path
