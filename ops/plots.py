"""Figures of tests and reports: matplotlib without a display, one style for all."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpa_core.evaluate import TestResult

INK = "#22303c"
COLORS = ("#2563a6", "#d1603d", "#3a8f5c", "#8a5aa8", "#b8892b", "#4a9aa8", "#a8456b", "#6b7280")
SCATTER_LIMIT = 3000
MIN_SHOWN = 1e-4
LABELS = {"rmse_e": "energy RMSE, meV/atom", "rmse_f": "force RMSE, meV/Å"}
STYLE: Any = {
    "figure.dpi": 130, "savefig.bbox": "tight", "font.size": 9, "axes.titlesize": 9.5,
    "axes.edgecolor": "#9aa5b1", "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6eaee",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


P = ParamSpec("P")
T = TypeVar("T")


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run a drawing function in the house style; pyplot and its global state stay untouched."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return wrapper


def new_figure(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a row of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, k + 1) for k in range(columns)]


@styled
def png(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def three_digits(value: float | None) -> str:
    """Format with three significant digits, no exponent for everyday sizes."""
    return "–" if value is None else f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Return how many decimals show three significant digits."""
    if value == 0 or abs(value) >= 100:
        return 0
    return min(4, max(0, 2 - math.floor(math.log10(abs(value)))))


@styled
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
        draw_parity(ax, panel)
    figure.suptitle(title, fontsize=10, fontweight="bold")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(png(figure))
    return temporary.replace(path)


class Panel(NamedTuple):
    """Labels x and predictions y of one quantity; `refit`: predictions after a bias refit."""

    name: str
    unit: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    refit: NDArray[np.float64] | None = None

    def error(self, values: NDArray[np.float64]) -> str:
        """Return the RMSE of predictions in milli-units, as text."""
        rmse = float(np.sqrt(np.mean((values - self.x) ** 2)))
        return f"{three_digits(1000 * rmse)} m{self.unit}"


def _panels(result: TestResult, shifted: NDArray[np.float64] | None) -> list[Panel]:
    natoms = result.natoms
    virial_atoms = natoms[:, None, None]
    candidates = (
        ("energy", "eV/atom", result.energy_ref / natoms, result.energy_pred / natoms),
        ("force", "eV/Å", result.force_ref, result.force_pred),
        ("virial", "eV/atom", result.virial_ref / virial_atoms, result.virial_pred / virial_atoms),
    )
    panels = []
    for name, unit, reference, predicted in candidates:
        known = np.isfinite(reference)
        if known.any():
            refit = None if name != "energy" or shifted is None else (shifted / natoms)[known]
            panels.append(Panel(name, unit, reference[known], predicted[known], refit))
    return panels


def draw_parity(ax: Axes, panel: Panel) -> None:
    """Draw predictions against labels, as points or as a density where there are many."""
    x, y, refit = panel.x, panel.y, panel.refit
    title = f"{panel.name}: RMSE {panel.error(y)}"
    shown = np.concatenate([x, y] if refit is None else [x, y, refit])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.04 * (high - low) or 0.1
    limits = (low - margin, high + margin)
    if len(x) > SCATTER_LIMIT:
        ax.hexbin(x, y, gridsize=80, bins="log", mincnt=1, extent=(*limits, *limits),
                  cmap="viridis", linewidths=0.1)  # fmt: skip
    else:
        ax.scatter(x, y, s=9, alpha=0.6, color=COLORS[0], linewidths=0, label="as it is")
    if refit is not None:
        ax.scatter(x, refit, s=9, alpha=0.6, color=COLORS[1], linewidths=0, label="bias refitted")
        ax.legend(loc="upper left", fontsize=8, markerscale=1.6, handletextpad=0.2)
        title += f"\nafter bias refit {panel.error(refit)}"
    ax.plot(limits, limits, color="#6b7280", linewidth=0.8, zorder=0.5)
    ax.set(
        xlim=limits,
        ylim=limits,
        aspect="equal",
        title=title,
        xlabel=f"reference {panel.name}, {panel.unit}",
        ylabel=f"predicted {panel.name}, {panel.unit}",
    )


@styled
def learning_figure(curves: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Figure:
    """Draw training curves: RMSE of energy and force against the step, logarithmic.

    Parameters
    ----------
    curves
        Run name -> columns of its `lcurve.csv`. Columns that start with `valid_` or end with
        `_val` are drawn as full lines, training columns thin behind them.
    """
    figure, axes = new_figure(2, 9.6, 3.3)
    for ax, (key, label) in zip(axes, LABELS.items(), strict=True):
        for k, (name, columns) in enumerate(curves.items()):
            color = COLORS[k % len(COLORS)]
            dash = ("-", "--", ":", "-.")[k // len(COLORS) % 4]
            train, valid = _series(columns, key)
            _line(ax, columns["step"], train, color, dash, None if valid is not None else name,
                  faint=valid is not None)  # fmt: skip
            _line(ax, columns["step"], valid, color, dash, name, faint=False)
        ax.set(xscale="log", xlabel="step", ylabel=label)
        log_axis(ax)
    _legend_right(axes)
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
        ax.plot(step[shown], 1000 * values[shown], color=color, linestyle=dash, label=name,
                linewidth=0.7 if faint else 1.5, alpha=0.35 if faint else 1.0)  # fmt: skip


@styled
def efficiency_figure(
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], title: str
) -> Figure:
    """Draw errors against the number of training frames, mean and spread over seeds.

    Parameters
    ----------
    panels
        "rmse_e" and "rmse_f" -> kind of run ("finetuned", "from scratch", ...) -> training
        frames -> errors of the seeds, eV/atom and eV/Å. A kind with the single number of
        frames 0 is a horizontal line: a model that saw none of them.
    title
        Name of the test set.
    """
    figure, axes = new_figure(len(panels), 4.6 * len(panels), 3.4)
    kinds = list(dict.fromkeys(kind for series in panels.values() for kind in series))
    # horizontal lines take greys, so that the curves keep the first colours
    curves = [kind for kind in kinds if any(set(s.get(kind, {})) - {0} for s in panels.values())]
    for ax, (key, series) in zip(axes, panels.items(), strict=True):
        for kind in (kind for kind in kinds if kind in series):
            if kind in curves:
                _curve(ax, series[kind], COLORS[curves.index(kind) % len(COLORS)], kind)
            else:
                dash = ("--", ":", "-.")[(kinds.index(kind)) % 3]
                value = 1000 * float(np.mean(series[kind][0]))
                ax.axhline(value, color="#6b7280", linestyle=dash, linewidth=1.1, label=kind)
        ticks = sorted({n for kind in curves for n in series.get(kind, {})})
        ax.set(xscale="log", xlabel="training frames", ylabel=LABELS[key])
        log_axis(ax)
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
        ax.tick_params(axis="x", which="minor", bottom=False)
        ax.set_title(title)
    _legend_right(axes)
    return figure


def _curve(ax: Axes, points: Mapping[int, Sequence[float]], color: str, kind: str) -> None:
    frames = sorted(points)
    values = [1000 * np.asarray(points[n], dtype=float) for n in frames]
    low, high = [v.min() for v in values], [v.max() for v in values]
    ax.fill_between(frames, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(frames, [v.mean() for v in values], "o-", color=color, markersize=4, label=kind)


def log_axis(ax: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at enough ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    ax.set_yscale("log")
    bottom, top = ax.dataLim.y0, ax.dataLim.y1
    if 0 < bottom < top:
        ax.set_ylim(max(bottom, MIN_SHOWN * top) * 0.9, top * 1.1)
    else:
        ax.set_ylim(low, high)
    low, high = ax.get_ylim()
    subs = (1, 1.5, 2, 3, 4, 6, 8) if high < 5 * low else (1, 2, 5) if high < 300 * low else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _legend_right(axes: Sequence[Axes]) -> None:
    """One legend for all panels, right of the last."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        axes[-1].get_figure(root=True).legend(  # type: ignore[union-attr]
            list(entries.values()), list(entries), loc="outside right upper", fontsize=8
        )


@styled
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
    from matplotlib.ticker import MaxNLocator

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
        bar = figure.colorbar(drawn, ax=ax, label=what + note, shrink=0.8)
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
        ax.margins(0.12)
        ax.set(xlabel=f"PC 1 ({100 * explained[0]:.0f} %)",
               ylabel=f"PC 2 ({100 * explained[1]:.0f} %)", title=f"by {what}")  # fmt: skip
    return figure
