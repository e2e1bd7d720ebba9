"""Figures of a concurrent learning loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.plots import COLORS, INK, new_figure, styled, three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES = {"accurate": COLORS[2], "candidate": COLORS[4], "failed": COLORS[1]}
NAMES = {
    "max_devi_f": "largest force deviation, meV/Å",
    "avg_devi_f": "mean force deviation, meV/Å",
    "max_devi_v": "largest virial deviation, meV/atom",
    "avg_devi_v": "mean virial deviation, meV/atom",
    "devi_e": "energy deviation, meV/atom",
}


@styled
def deviation_figure(select: Mapping[str, Any]) -> Figure:
    """Draw the histogram of the committee's deviation with the trust levels.

    Parameters
    ----------
    select
        The content of `select.json`. Without frames an empty figure says so.
    """
    figure, (ax,) = new_figure(1, 6.4, 2.9)
    histogram = select.get("histogram")
    name = (select.get("criterion") or {}).get("name", "max_devi_f")
    ax.set(xlabel=NAMES.get(name, name), ylabel="frames")
    if not histogram or not histogram["counts"]:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no frames", ha="center", va="center", transform=ax.transAxes)
        return figure
    edges = 1000 * np.asarray(histogram["edges"], dtype=float)
    counts = np.asarray(histogram["counts"], dtype=float)
    levels = [None if select[key] is None else 1000 * select[key] for key in ("lo", "hi")]
    if None in levels:
        ax.stairs(counts, edges, fill=True, color=COLORS[0], alpha=0.75)
    else:
        _classes(ax, counts, edges, np.array(levels, dtype=float), select)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(0, 1.15 * max(1.0, counts.max()))
    return figure


def _classes(
    ax: Axes, counts: np.ndarray, edges: np.ndarray, levels: np.ndarray, select: Mapping[str, Any]
) -> None:
    """Draw the bars in the colours of the classes; a bar across a level is cut there."""
    inside = levels[(levels > edges[0]) & (levels < edges[-1])]
    cuts = np.union1d(edges, inside)
    middle = (cuts[:-1] + cuts[1:]) / 2
    height = counts[np.clip(np.searchsorted(edges, middle) - 1, 0, len(counts) - 1)]
    kind = np.searchsorted(levels, middle)
    for k, (name, color) in enumerate(CLASSES.items()):
        ax.bar(cuts[:-1], np.where(kind == k, height, 0.0), np.diff(cuts), align="edge",
               color=color, alpha=0.8, linewidth=0, label=f"{name} {select[name]}")  # fmt: skip
    for name, value in zip(("lo", "hi"), levels, strict=True):
        if value <= edges[-1]:
            ax.axvline(value, color=INK, linewidth=0.9, linestyle="--")
            ax.annotate(f"{name} {three_digits(value)}", (value, 1.0), rotation=90, fontsize=7.5,
                        xycoords=("data", "axes fraction"), xytext=(-2, -3), ha="right",
                        va="top", textcoords="offset points")  # fmt: skip
    ax.legend(loc="upper right", fontsize=8)
