"""`.yaml` files: DeePMD-kit's dictionary as text, arrays as nested lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dpa_core.errors import ModelFileError
from dpa_core.interchange.atomic import replaced
from dpa_core.interchange.content import AGAIN, Content

if TYPE_CHECKING:
    from dpa_core.model import Potential

# Anchors and aliases make small files large when they are followed; model files have none.
_ALIAS = re.compile(rb"(?m)(?:^|[\s\[{,:-])[&*][A-Za-z0-9_]")
_DEEPEST = 60
_DTYPES = ("float64", "float32", "int64", "int32")


def read(path: Path, name: str | None = None) -> Content:
    """Read a `.yaml` file.

    Raises
    ------
    ModelFileError
        If the file is damaged or holds what cannot be represented exactly.
    """
    from dpa_core.interchange.deepmd_dict import content_of, refuse_name

    refuse_name(path, name)
    raw = path.read_bytes()
    if b"@variables" not in raw:
        raise ModelFileError(f"{path}: not a model file: a text without '@variables'")
    if _ALIAS.search(raw):
        raise ModelFileError(f"{path}: anchors and aliases (& and *) are not allowed in a model")
    try:
        data = yaml.load(raw, _Loader)  # a SafeLoader
        data = _with_arrays(data, 0)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged, cannot be read: {reason}; {AGAIN}") from error
    return content_of(data, path)


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _with_arrays(data: Any, depth: int) -> Any:
    """Replace descriptions of arrays by arrays."""
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(data, dict):
        if data.get("@is_variable"):
            if data.get("dtype") not in _DTYPES:
                raise ValueError(f"an array of {data.get('dtype')!r}; allowed: {_DTYPES}")
            return np.array(data["value"], dtype=data["dtype"])
        return {k: _with_arrays(v, depth + 1) for k, v in data.items()}
    if isinstance(data, list):
        return [_with_arrays(v, depth + 1) for v in data]
    return data


def save(model: Potential, path: Path, provenance: dict[str, Any] | None = None) -> Path:
    """Write a `.yaml` file that DeePMD-kit 3.2 reads; numbers keep all their digits.

    Raises
    ------
    ModelFileError
        If DeePMD-kit has nothing that gives the same numbers.
    """
    from dpa_core.interchange.deepmd_write import file_dictionary

    data = file_dictionary(model, path, model.provenance if provenance is None else provenance)
    with replaced(path) as temporary:
        text = yaml.dump(_plain(data), Dumper=_Dumper, sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
    return path


def _plain(data: Any) -> Any:
    if isinstance(data, np.ndarray):
        return {
            "@class": "np.ndarray",
            "@is_variable": True,
            "@version": 1,
            "dtype": data.dtype.name,
            "value": data.tolist(),
        }
    if isinstance(data, dict):
        return {k: _plain(v) for k, v in data.items()}
    if isinstance(data, list):
        return [_plain(v) for v in data]
    return data
