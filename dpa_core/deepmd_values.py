"""Values of DeePMD-kit's keys that we write in another way; used by `deepmd_keys.py`.

Each takes DeePMD's value and returns ours; a ValueError becomes a message at the key.
"""

from __future__ import annotations

import math
from typing import Any


def precision(value: Any) -> Any:
    """Name of a floating-point type; "default" is double precision."""
    return {"default": "float64", "double": "float64", "single": "float32"}.get(value, value)


def number(value: Any) -> Any:
    """Refuse what cannot be calculated with; 1e-3 is text to a reader of YAML."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("must be a number") from None
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError("must be a number")


def sel(value: Any) -> Any:
    """One number for every type."""
    if isinstance(value, str) and value not in ("auto", "auto:1.1"):
        raise ValueError('the automatic margin is 1.1; give "auto" or a number')
    return "auto" if isinstance(value, str) else value


def sel_sum(value: Any) -> Any:
    """One number for all types."""
    return sum(value) if isinstance(value, list) else sel(value)


def mode(value: Any) -> Any:
    """Give the tebd_input_mode of a stripped_type_embedding."""
    return "strip" if value else "concat"


def one_layer(value: Any) -> Any:
    """Width of a type embedding."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    raise ValueError("the type embedding has one layer here, as in DeePMD-kit's PyTorch backend")


def all_trainable(value: Any) -> Any:
    """All or nothing: DeePMD-kit's PyTorch backend does not know more, either."""
    return all(value) if isinstance(value, list) else value


def atom_ener(value: Any) -> Any:
    """Turn an empty list into none."""
    return value or None


def systems(value: Any) -> Any:
    """List of folders."""
    return [value] if isinstance(value, str) else value


def batch_size(value: Any) -> Any:
    """Frames, "auto:N" or "max:N"."""
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError("one size for all systems is needed; batches mix systems")
        value = value[0]
    if isinstance(value, int):
        return value
    rule, _, number = str(value).partition(":")
    if rule == "auto":
        return f"auto:{number or 32}"
    if rule == "mixed" and number.isdigit():  # TensorFlow: frames of any systems
        return int(number)
    if rule in ("max", "mix"):  # "mix" (LMDB): of frames of any size, as all our batches are
        return f"max:{number}"
    raise ValueError('allowed: a number, "auto", "auto:N", "max:N", "mixed:N"; try "auto:N"')
