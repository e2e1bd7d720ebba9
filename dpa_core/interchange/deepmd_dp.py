"""`.dp` files: DeePMD-kit's dictionary as HDF5.

The root attribute `json` is the dictionary; in `@variables` a text names the data set that holds
the array.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
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
    text, arrays = _read_apart(path)
    try:
        data = _with_arrays(parse_json(text), arrays)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged, cannot be read: {reason}; {AGAIN}") from error
    return content_of(data, path)


def _read_apart(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Text and data sets, or what is wrong with them, read by a process of its own."""
    script = Path(__file__).with_name("hdf5_child.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(path.absolute())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines and done.returncode == 1 else "HDF5 crashed or hung"
        raise ModelFileError(f"{path}: {reason}; {AGAIN}")
    start = done.stdout.index(b"\n") + 1
    head = json.loads(done.stdout[:start])
    at = start + head["text"]
    sets: dict[str, Any] = head["sets"]
    for name, found in sets.items():
        if not isinstance(found, str):
            kind, shape = np.dtype(found[0]), found[1]
            sets[name] = np.frombuffer(done.stdout, kind, math.prod(shape), at).reshape(shape)
            at += sets[name].nbytes
    return done.stdout[start : start + head["text"]], sets


def _with_arrays(data: Any, arrays: dict[str, Any], inside: bool = False) -> Any:
    """Replace the names of data sets, which stand inside `@variables` only."""
    if isinstance(data, dict):
        return {k: _with_arrays(v, arrays, inside or k == "@variables") for k, v in data.items()}
    if isinstance(data, list):
        return [_with_arrays(v, arrays, inside) for v in data]
    if not inside or data is None:
        return data
    if not isinstance(data, str):
        return np.asarray(data)
    found = arrays.get(data.lstrip("/"), "is missing or lies elsewhere")
    if isinstance(found, str):
        raise ValueError(f"data set {data[:80]!r} {found}")
    return found


def save(model: Potential, path: Path, provenance: dict[str, Any] | None = None) -> Path:
    """Write a `.dp` file that DeePMD-kit 3.2 reads.

    Raises
    ------
    ModelFileError
        If DeePMD-kit has nothing that gives the same numbers.
    """
    from dpa_core.interchange.deepmd_write import file_dictionary

    data = file_dictionary(model, path, provenance)
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
