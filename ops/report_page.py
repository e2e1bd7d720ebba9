"""What all pages have in common: rendering, pictures inside the page, versions, durations."""

from __future__ import annotations

import base64
import csv
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ops.plots import three_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("dpaflow", "torch", "numpy", "ase", "dpdata", "pydflow", "matplotlib")
PAGES = "<!--pages-->"
"""Where a page gets its links to others, once it lies beside them."""


def render(template: str, context: Mapping[str, Any], *, strict: bool = True) -> str:
    """Fill a template of this package; date and versions are added to the context.

    What the context lacks is an error, or empty if not `strict`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = three_digits
    environment.filters["milli"] = lambda v: three_digits(1000 * v if _known(v) else None)
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(
        {"date": date, "versions": versions(), **context}
    )


def _known(value: object) -> bool:
    return isinstance(value, int | float)


def image(figure: Figure) -> str:
    """Return a figure as a data URI."""
    from ops.plots import png

    return data_uri(png(figure))


def data_uri(content: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def duration(seconds: float) -> tuple[str, str]:
    """Return a length of time as number and unit."""
    if seconds < 120:
        return f"{seconds:.0f}", "s"
    if seconds < 7200:
        return f"{seconds / 60:.1f}", "min"
    return f"{seconds / 3600:.1f}", "h"


def read_lcurve(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read `lcurve.csv` as columns; empty cells are NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() if rows else []
    return {name: np.array([_float(row[name]) for row in rows]) for name in names}


def _float(text: str | None) -> float:
    return float(text) if text else math.nan


def versions() -> list[tuple[str, str]]:
    """Return names and versions of Python and of the packages that matter."""
    from importlib.metadata import PackageNotFoundError, version

    found = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
