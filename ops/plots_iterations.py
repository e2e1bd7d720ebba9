"""Figures about the iterations of concurrent learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ops.loop_rows import fraction, test_error
from ops.plots import COLORS, Panel, draw_parity, log_axis, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@styled
def force_parity_figure(panels: Mapping[str, Pair]) -> Figure:
    """Draw predicted force components against labels, one panel for each model.

    Parameters
    ----------
    panels
        Model -> labels and predictions, eV/Å, finite, of equal shape.
    """
    figure, axes = new_figure(len(panels), 3.0 * len(panels), 3.2)
    for ax, (name, (reference, predicted)) in zip(axes, panels.items(), strict=True):
        draw_parity(ax, Panel("force", "eV/Å", np.ravel(reference), np.ravel(predicted)))
        ax.set_title(f"{name}\n{ax.get_title()}")
    return figure


@styled
def iterations_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the course of a loop: kinds of frames, force errors, labels.

    Parameters
    ----------
    rows
        See `ops.loop_rows`.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(3, 10.4, 3.3)
    numbers = [row["iteration"] for row in rows]
    _fractions(axes[0], numbers, rows)
    _force_errors(axes[1], numbers, rows)
    labels = np.cumsum([row.get("labelled") or 0 for row in rows])
    axes[2].bar(numbers, labels, color=COLORS[0], alpha=0.75)
    axes[2].set(title="labels so far", ylabel="frames")
    axes[2].yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for ax in axes:
        ax.set(xlabel="iteration", xlim=(numbers[0] - 0.5, numbers[-1] + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _fractions(ax: Axes, numbers: list[int], rows: Sequence[Mapping[str, Any]]) -> None:
    kinds = (("accurate", COLORS[2]), ("candidate", COLORS[4]), ("failed", COLORS[1]))
    bottom = np.zeros(len(rows))
    for name, color in kinds:
        height = np.array([100 * (fraction(row, name) or 0.0) for row in rows])
        ax.bar(numbers, height, bottom=bottom, color=color, alpha=0.75, label=name)
        bottom += height
    ax.set(title="explored frames", ylabel="%", ylim=(0, 100))
    ax.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")


def _force_errors(ax: Axes, numbers: list[int], rows: Sequence[Mapping[str, Any]]) -> None:
    for label, values, color, mark in (
        ("new frames, before", [row.get("rmse_f_new") for row in rows], COLORS[1], "o--"),
        ("new frames, after", [row.get("rmse_f_after") for row in rows], COLORS[0], "o--"),
        ("test set", [test_error(row) for row in rows], COLORS[2], "s-"),
    ):
        shown = [(n, 1000 * v) for n, v in zip(numbers, values, strict=True) if v]
        if shown:
            ax.plot(*zip(*shown, strict=True), mark, color=color, label=label, markersize=4)
    ax.set(title="force error", ylabel="force RMSE, meV/Å")
    if ax.lines:
        log_axis(ax)
        ax.legend(fontsize=8)


@styled
def comparison_figure(
    loop: Sequence[tuple[int, float]], others: Mapping[str, Mapping[int, Sequence[float]]]
) -> Figure:
    """Draw the force error on the test set against the number of training frames.

    Parameters
    ----------
    loop
        (training frames, force RMSE in eV/Å) of each iteration.
    others
        Kind of selection -> training frames -> force RMSE of each run, eV/Å.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (ax,) = new_figure(1, 5.6, 3.5)
    if loop:
        x, y = zip(*loop, strict=True)
        ax.plot(x, 1000 * np.array(y), "-", color="#9aa5b1", label="during the loop", marker=".")
    for k, (kind, points) in enumerate(others.items()):
        for n, (frames, errors) in enumerate(sorted(points.items())):
            values = 1000 * np.asarray(errors, dtype=float)
            mean = float(values.mean())
            ax.errorbar([frames], [mean], yerr=[[mean - values.min()], [values.max() - mean]],
                        fmt="o", capsize=4, color=COLORS[k % len(COLORS)],
                        label=None if n else kind)  # fmt: skip
    ax.set(xlabel="training frames", ylabel="force RMSE, meV/Å")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    log_axis(ax)
    ax.legend(fontsize=8)
    return figure
