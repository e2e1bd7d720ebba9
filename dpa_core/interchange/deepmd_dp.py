"""`.dp` files: DeePMD-kit's dictionary as HDF5.

The root attribute `json` is the dictionary; in `@variables` a text names the data set that holds
the array.
"""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from dpa_core.errors import ModelFileError
from dpa_core.interchange.atomic import replaced
from dpa_core.interchange.bounded import parse_json
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
    _check_length(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            data = _Arrays(file, path).into(parse_json(_text(file, path)))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged, cannot be read: {reason}; {AGAIN}") from error
    return content_of(data, path)


def _check_length(path: Path) -> None:
    """Check how long the file says its text `json` is.

    HDF5 asks for that much memory before it looks for the text and finds it shorter. No function
    of HDF5 tells the number, so it is looked up in the attribute's message: version, flags, sizes
    of name, type and space, then these three (padded in version 1), then the length.
    """
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        at = raw.find(b"json\0")
        while at >= 0:
            for version, head in ((1, 8), (2, 8), (3, 9)):
                start = at - head
                if start < 0 or raw[start] != version:
                    continue
                parts = struct.unpack_from("<HHH", raw, start + 2)
                pad = 8 if version == 1 else 1
                data = at + sum(-(-part // pad) * pad for part in parts)
                if int.from_bytes(raw[data : data + 4], "little") > size:
                    raise ModelFileError(f"{path}: damaged: its text is longer than it; {AGAIN}")
            at = raw.find(b"json\0", at + 1)


def _text(file: h5py.File, path: Path) -> str | bytes:
    if "json" not in file.attrs:
        raise ModelFileError(f"{path}: an HDF5 file, but not a model: it has no attribute 'json'")
    attribute = file.attrs.get_id("json")
    # Memory is asked for what an attribute claims, not for what the file has.
    if attribute.shape != () or attribute.dtype.itemsize > path.stat().st_size:
        raise ModelFileError(f"{path}: the attribute 'json' is no text; {AGAIN}")
    text = file.attrs["json"]
    if not isinstance(text, str | bytes):
        raise ModelFileError(f"{path}: the attribute 'json' is no text; {AGAIN}")
    return text


class _Arrays:
    """Puts arrays where the dictionary names their data sets."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self._path = file, path
        self._left = path.stat().st_size

    def into(self, data: Any, inside: bool = False) -> Any:
        """Replace the names, which stand inside `@variables` only."""
        if isinstance(data, dict):
            return {k: self.into(v, inside or k == "@variables") for k, v in data.items()}
        if isinstance(data, list):
            return [self.into(v, inside) for v in data]
        if not inside or data is None:
            return data
        return self._array(data) if isinstance(data, str) else np.asarray(data)

    def _array(self, name: str) -> np.ndarray:
        key = name.lstrip("/")
        if "/" in key or not isinstance(self._file.get(key, getlink=True), h5py.HardLink):
            raise self._error(name, "is missing or lies elsewhere")
        data = self._file[key]
        if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
            raise self._error(name, "is not an array of this file")
        if data.dtype.kind not in "fiub":
            raise self._error(name, f"holds {data.dtype}, not numbers")
        if data.chunks is not None or data.id.get_storage_size() != data.nbytes:
            raise self._error(name, "is compressed, in pieces or not all there")
        # A data set may be named many times, each time it is read anew.
        self._left -= data.nbytes
        if self._left < 0:
            raise self._error(name, f"claims {data.nbytes:,} bytes, which the file does not have")
        return np.asarray(data[()])

    def _error(self, name: str, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: data set {name[:80]!r} {what}; {AGAIN}")


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
