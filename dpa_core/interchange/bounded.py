"""Bounds on what a file may unfold to: a few bytes of JSON or pickle can stand for gigabytes."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 60
# Values in the largest description of a model; the numbers themselves do not count.
MOST_VALUES = 1_000_000


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that describes a model.

    Raises
    ------
    ValueError
        If it is no JSON, names a key twice, is nested too deeply or too large.
    """
    if isinstance(text, bytes):
        text = text.decode()
    if text.count(",") > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    check_plain(data)
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in result if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} occurs twice in one mapping")
    return result


def check_plain(data: Any) -> None:
    """Check that data is a tree of reasonable depth and size, of nothing but plain values.

    What contains itself is too deep; what refers to a large part many times is too large.

    Raises
    ------
    ValueError
        If it is not.
    """
    left = MOST_VALUES
    stack = [(data, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if isinstance(value, dict):
            left -= len(value)
            if not all(isinstance(key, str | int) for key in value):
                raise ValueError("a key is neither text nor a number")
            stack += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, list | tuple):
            left -= len(value)
            stack += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            left -= len(value) // 100
        elif value is not None and not isinstance(value, int | float):
            raise ValueError(f"holds a {type(value).__name__}")
        if left < 0:
            raise ValueError(f"more than {MOST_VALUES:,} values")
