"""Figures of tests and reports: matplotlib without a display, one style for all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpa_core.evaluate import TestResult

INK = "#22303c"
COLORS = ("#2563a6", "#d1603d", "#3a8f5c", "#8a5aa8", "#b8892b", "#4a9aa8", "#a8456b", "#6b7280")
SCATTER_LIMIT = 3000
STYLE = {
    "figure.dpi": 130, "savefig.bbox": "tight", "font.size": 9, "axes.titlesize": 9.5,
    "axes.edgecolor": "#9aa5b1", "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6eaee",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


def new_figure(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a row of axes in the house style, without touching pyplot's state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = [figure.add_subplot(1, columns, k + 1) for k in range(columns)]
    return figure, axes


def png(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def parity_figure(
    result: TestResult, shifted: NDArray[np.float64] | None, path: Path, title: str
) -> Path:
    """Draw predictions against labels: energy per atom, force components, virial per atom.

    Parameters
    ----------
    result
        Of `dpa_core.evaluate.test_model`.
    shifted
        (F,) energies after a bias refit, eV; drawn in a second colour. None: not drawn.
    path
        The PNG file.
    title
        Names of model and data set.
    """
    panels = _panels(result, shifted)
    figure, axes = new_figure(len(panels), 3.5 * len(panels), 3.4)
    for ax, panel in zip(axes, panels, strict=True):
        _parity(ax, **panel)
    figure.suptitle(title, fontsize=10, fontweight="bold")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(png(figure))
    return temporary.replace(path)


def _panels(result: TestResult, shifted: NDArray[np.float64] | None) -> list[dict[str, Any]]:
    panels = []
    natoms = result.natoms
    known = np.isfinite(result.energy_ref)
    if known.any():
        panels.append({
            "name": "energy", "unit": "eV/atom", "error_unit": "meV/atom",
            "x": (result.energy_ref / natoms)[known], "y": (result.energy_pred / natoms)[known],
            "second": None if shifted is None else (shifted / natoms)[known],
        })  # fmt: skip
    pairs = {
        "force": ("eV/Å", "meV/Å", result.force_ref, result.force_pred, 1.0),
        "virial": ("eV/atom", "meV/atom", result.virial_ref, result.virial_pred,
                   natoms.reshape(-1, 1, 1)),
    }  # fmt: skip
    for name, (unit, error_unit, x, y, scale) in pairs.items():
        if x is None or y is None or np.size(x) == 0:
            continue
        x, y = np.ravel(x / scale), np.ravel(y / scale)
        known = np.isfinite(x)
        if known.any():
            panels.append({
                "name": name, "unit": unit, "error_unit": error_unit, "x": x[known],
                "y": y[known], "second": None,
            })  # fmt: skip
    return panels


def _parity(
    ax: Axes,
    name: str,
    unit: str,
    error_unit: str,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    second: NDArray[np.float64] | None,
) -> None:
    def error(values: NDArray[np.float64]) -> str:
        return f"{1000 * float(np.sqrt(np.mean((values - x) ** 2))):.3g} {error_unit}"

    title = f"{name}: RMSE {error(y)}"
    shown = [x, y]
    if len(x) > SCATTER_LIMIT:
        ax.hexbin(x, y, gridsize=70, bins="log", mincnt=1, cmap="viridis", linewidths=0.1)
    else:
        ax.scatter(x, y, s=9, alpha=0.6, color=COLORS[0], linewidths=0, label="as it is")
    if second is not None:
        ax.scatter(x, second, s=9, alpha=0.6, color=COLORS[1], linewidths=0, label="bias refitted")
        ax.legend(loc="upper left", fontsize=8, markerscale=1.6, handletextpad=0.2)
        title += f"\nafter bias refit {error(second)}"
        shown.append(second)
    low = min(float(values.min()) for values in shown)
    high = max(float(values.max()) for values in shown)
    margin = 0.04 * (high - low) or 0.1
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="#6b7280", linewidth=0.8, zorder=0.5)
    ax.set(xlim=limits, ylim=limits, aspect="equal", title=title,
           xlabel=f"reference {name}, {unit}", ylabel=f"predicted {name}, {unit}")  # fmt: skip


def learning_figure(curves: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Figure:
    """Draw training curves: RMSE of energy and force against the step, logarithmic.

    Parameters
    ----------
    curves
        Run name -> columns of its `lcurve.csv`. Columns that start with `valid_` or end with
        `_val` are drawn as full lines, training columns thin behind them.
    """
    panels = (("rmse_e", "energy RMSE, eV/atom"), ("rmse_f", "force RMSE, eV/Å"))
    figure, axes = new_figure(2, 9.2, 3.3)
    for ax, (key, label) in zip(axes, panels, strict=True):
        for k, (name, columns) in enumerate(curves.items()):
            color = COLORS[k % len(COLORS)]
            dash = ("-", "--", ":", "-.")[k // len(COLORS) % 4]
            train, valid = _series(columns, key)
            _line(ax, columns["step"], train, color, dash, None if valid is not None else name,
                  faint=valid is not None)  # fmt: skip
            _line(ax, columns["step"], valid, color, dash, name, faint=False)
        ax.set(xscale="log", yscale="log", xlabel="step", ylabel=label)
    if len(curves) <= 12:
        axes[1].legend(fontsize=7.5, loc="best")
    return figure


def _series(
    columns: Mapping[str, NDArray[np.float64]], key: str
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return the training and the validation column of a quantity, where they exist."""
    names = [name for name in columns if key in name]
    valid = [name for name in names if "val" in name]
    train = [name for name in names if "val" not in name]
    return (
        columns[train[0]] if train else None,
        columns[valid[0]] if valid and np.isfinite(columns[valid[0]]).any() else None,
    )


def _line(
    ax: Axes,
    step: NDArray[np.float64],
    values: NDArray[np.float64] | None,
    color: str,
    dash: str,
    name: str | None,
    *,
    faint: bool,
) -> None:
    if values is None:
        return
    shown = np.isfinite(values) & (values > 0) & (step > 0)
    if shown.any():
        ax.plot(step[shown], values[shown], color=color, linestyle=dash, label=name,
                linewidth=0.7 if faint else 1.5, alpha=0.35 if faint else 1.0)  # fmt: skip


def efficiency_figure(
    series: Mapping[str, Mapping[int, Sequence[float]]], baseline: float | None, title: str
) -> Figure:
    """Draw force RMSE against the number of training frames, mean and spread over seeds.

    Parameters
    ----------
    series
        Kind of run ("finetuned", "from scratch") -> frames -> RMSEs of the seeds, eV/Å.
    baseline
        RMSE of the pretrained model as it is, eV/Å; None if not tested.
    title
        Name of the test set.
    """
    figure, (ax,) = new_figure(1, 4.6, 3.4)
    for k, (kind, points) in enumerate(series.items()):
        frames = np.array(sorted(points))
        values = [np.asarray(points[n], dtype=float) for n in frames]
        mean = np.array([v.mean() for v in values])
        ax.fill_between(frames, [v.min() for v in values], [v.max() for v in values],
                        color=COLORS[k], alpha=0.15, linewidth=0)  # fmt: skip
        ax.plot(frames, mean, "o-", color=COLORS[k], markersize=4, label=kind)
    if baseline is not None:
        ax.axhline(baseline, color="#6b7280", linestyle="--", linewidth=1, label="zero-shot")
    ax.set(xscale="log", yscale="log", xlabel="training frames", ylabel="force RMSE, eV/Å")
    ticks = sorted({n for points in series.values() for n in points})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set_title(title)
    ax.legend(fontsize=8)
    return figure


def embedding_figure(
    points: NDArray[np.float64],
    elements: Sequence[str],
    places: Sequence[tuple[int, int]],
    explained: NDArray[np.float64],
) -> Figure:
    """Draw the first two principal components of the type embedding.

    Parameters
    ----------
    points
        (T, 2) components.
    elements
        T names.
    places
        (period, group) of every element; group 0 is the f block.
    explained
        (2,) fractions of the variance.
    """
    figure, axes = new_figure(2, 9.2, 4.1)
    values = {"group": [group for _, group in places], "period": [period for period, _ in places]}
    crowded = len(elements) > 40
    for ax, (what, numbers) in zip(axes, values.items(), strict=True):
        drawn = ax.scatter(points[:, 0], points[:, 1], c=numbers, s=70 if crowded else 190,
                           cmap="turbo" if what == "group" else "viridis", alpha=0.45,
                           linewidths=0)  # fmt: skip
        for (x, y), name in zip(points, elements, strict=True):
            ax.annotate(name, (x, y), ha="center", va="center", fontsize=6 if crowded else 8.5)
        note = " (0: f block)" if what == "group" and 0 in numbers else ""
        figure.colorbar(drawn, ax=ax, label=what + note, shrink=0.8)
        ax.margins(0.12)
        ax.set(xlabel=f"PC 1 ({100 * explained[0]:.0f} %)",
               ylabel=f"PC 2 ({100 * explained[1]:.0f} %)", title=f"by {what}")  # fmt: skip
    return figure
