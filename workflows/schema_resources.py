"""What the blocks `cluster.resources` and `execution.slurm.resources` have in common.

Both say by the name of a step what it gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import pydantic

from workflows.schema_runs import merge

DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|min|h|d)?")
SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
DEFAULT = "default"


def seconds(value: float | str) -> int:
    """Return a duration, 90, "90 s", "30 min", "2h" or "7 d", in whole seconds."""
    found = DURATION.fullmatch(str(value).replace(" ", ""))
    if found is None or not float(found[1]):
        raise ValueError(f"{value!r} is no duration; write 90 (seconds), 30min, 2h or 7d")
    return max(1, round(float(found[1]) * SECONDS[found[2] or ""]))


Duration = Annotated[int, pydantic.BeforeValidator(seconds)]


def lay_over_default(data: Any) -> Any:
    """Lay every entry of a block over `default`, so that each is whole, and checked as such."""
    if not isinstance(data, Mapping) or not isinstance(data.get(DEFAULT), Mapping):
        return data
    base = data[DEFAULT]
    return {
        name: merge(base, entry) if isinstance(entry, Mapping) else entry
        for name, entry in data.items()
    }


def best_name(names: Iterable[str], key: str, op: str) -> str | None:
    """Return which of some names means a step.

    Parameters
    ----------
    names
        Beginnings of keys, OPs, or `default`.
    key
        The step's name.
    op
        Its OP.

    Returns
    -------
    str | None
        The longest beginning of `key`, up to a dash; else `op`, else `default`, else None.
    """
    known = set(names)
    begin = [name for name in known if key == name or key.startswith(f"{name}-")]
    for name in (*sorted(begin, key=len, reverse=True), op, DEFAULT):
        if name in known:
            return name
    return None
