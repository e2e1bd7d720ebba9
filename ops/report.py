"""One self-contained HTML page about a pipeline: results, curves, figures, data, timings."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from dpa_core.config import Config
from dpa_core.errors import DPAError
from ops.files import read_json, write_text
from ops.plots import three_digits
from ops.report_page import data_uri, duration, image, read_lcurve, render
from ops.report_section import (
    Comparison,
    compared_kinds,
    hidden_steps,
    loop_section,
    read_decision,
)
from ops.report_tables import Kind, Table, best_row, result_tables, title, verdict

MAX_CURVES = 12
Curve = dict[int, list[float]]
logger = logging.getLogger(__name__)


class CurvePoint(Config):
    """One run of a sample-efficiency curve."""

    model: str
    """Name of the model in the test results."""
    kind: str
    """Name of the curve, e.g. "finetuned"."""
    frames: PositiveInt
    """Training frames."""


class ReportConfig(Config):
    """What the page says and shows."""

    title: str = "dpaflow report"
    """Name of the pipeline."""
    verdict: str | None = None
    """A sentence for the head of the page; written from the results when left out."""
    curves: tuple[CurvePoint, ...] | None = None
    """Runs of the sample-efficiency curves; found from the runs when left out."""
    comparison: tuple[Comparison, ...] | None = None
    """Models of a loop and of other ways to choose frames; left out: the tested models called
    start-m*, final-m* and random-s*."""
    embedding: str | None = None
    """Step whose model's type embedding is shown; left out: the training on most elements."""
    max_parity: NonNegativeInt = 12
    """Largest number of parity plots."""
    n_permutations: PositiveInt = 2000
    """Shuffles of the test for periodic order."""


class ReportInputs(NamedTuple):
    """Step name -> its output folder; the files in a folder tell what the step was."""

    artifacts: Mapping[str, Path]


class _Steps(NamedTuple):
    """What was found in the artifacts, by step name."""

    collects: dict[str, Any]
    runs: dict[str, Any]
    curves: dict[str, dict[str, NDArray[np.float64]]]
    biases: dict[str, Any]
    results: list[dict[str, Any]]
    timings: list[dict[str, Any]]


def write_report(inputs: ReportInputs, config: ReportConfig, outdir: Path) -> Path:
    """Write `report.html`: one file, no external resources.

    Parameters
    ----------
    inputs
        Output folders of the steps (collect, train, bias, test, decide). What is missing is left
        out; steps of an iteration (iter-NUMBER-*) are summed up, with a page of their own each.
    config
        Title and choices.
    outdir
        Receives `report.html`.

    Returns
    -------
    Path
        The page.
    """
    steps = _read_steps(inputs.artifacts)
    points = config.curves if config.curves is not None else _find_points(steps)
    kinds: dict[str, Kind] = {name: (name, run["train_frames"]) for name, run in steps.runs.items()}
    kinds |= {name: (name, bias["frames"]) for name, bias in steps.biases.items()}
    kinds |= {point.model: (point.kind, point.frames) for point in points}
    compared = compared_kinds(config.comparison, steps.results, inputs.artifacts)
    kinds |= compared
    tables = result_tables(steps.results, kinds)
    loop = loop_section(read_decision(inputs.artifacts), tables, compared)
    told = [loop["verdict"] if loop else None, verdict(tables)]
    context = {
        "title": config.title,
        "verdict": config.verdict or " ".join(filter(None, told)),
        "cards": [*(loop["cards"] if loop else ()), *_cards(steps, tables)],
        "learnt": loop,
        "tables": tables,
        "efficiency": _efficiency(steps, {point.model: point for point in points}),
        "learning": _learning(steps, kinds),
        "parity": _parity(inputs.artifacts, steps, kinds, config.max_parity),
        "collects": steps.collects,
        "shown_columns": _shown_columns,
        "quiet": [name for name, document in steps.collects.items() if _is_quiet(document)],
        "biases": steps.biases,
        "embedding": _embedding(inputs.artifacts, steps, config),
        "timings": steps.timings,
        "usage": _usage(inputs.artifacts, steps, tables),
    }
    return write_text(outdir / "report.html", render("report.html", context))


def _read_steps(artifacts: Mapping[str, Path]) -> _Steps:
    steps = _Steps({}, {}, {}, {}, [], [])
    hidden = hidden_steps(artifacts)
    for name, folder in artifacts.items():
        if (folder / "status.json").exists():
            status = read_json(folder / "status.json")
            steps.timings.append({"step": name, **status})
        if name in hidden:
            continue
        for file, target in (
            ("collect.json", steps.collects),
            ("run.json", steps.runs),
            ("bias.json", steps.biases),
        ):
            if (folder / file).exists():
                target[name] = read_json(folder / file)
        if (folder / "lcurve.csv").exists():
            steps.curves[name] = read_lcurve(folder / "lcurve.csv")
        if (folder / "results.json").exists():
            entries = read_json(folder / "results.json")["results"]
            steps.results.extend({**entry, "step": name} for entry in entries)
    return steps


def _shown_columns(document: Mapping[str, Any]) -> list[str]:
    """Columns of a table of collected frames that are not zero throughout."""
    total = document["table"][-1]
    always = ("files", "found", "kept")
    return [c for c in total if c not in ("source", "path") and (total[c] or c in always)]


def _is_quiet(document: Mapping[str, Any]) -> bool:
    """Tell whether a collection only divided one source, with nothing rejected."""
    total = document["table"][-1]
    return len(document["table"]) == 2 and total["kept"] == total["found"]


def _cards(steps: _Steps, tables: list[Table]) -> list[tuple[str, str, str]]:
    """Key numbers of the head: value, unit, what it is."""
    cards = []
    for table in tables[:3]:
        if best := best_row(table):
            row, (_, metric, unit), value = best
            cards.append((three_digits(value), unit, f"{metric} on {table.data}: {title(row)}"))
    documents = list(steps.collects.values())
    documents = [d for d in documents if not _is_quiet(d)] or documents[:1]
    kept = sum(document["table"][-1]["kept"] for document in documents)
    if kept:
        cards.append((f"{kept:,}".replace(",", " "), "frames", "collected"))
    elements = {e for document in documents for e in document["type_map"]}
    if elements:
        cards.append((str(len(elements)), "elements", _shorten(sorted(elements))))
    seconds = sum(status.get("elapsed") or 0.0 for status in steps.timings)
    if seconds:
        cards.append((*duration(seconds), f"of work in {len(steps.timings)} steps"))
    return cards


def _shorten(names: list[str]) -> str:
    return " ".join(names) if len(names) <= 12 else " ".join(names[:11]) + " …"


def _representatives(names: Iterable[str], kinds: Mapping[str, Kind]) -> list[str]:
    """Leave out runs that differ from an earlier one in their seed only."""
    first: dict[Kind, str] = {}
    for name in names:
        first.setdefault(kinds.get(name, (name, None)), name)
    return list(first.values())


def _learning(steps: _Steps, kinds: Mapping[str, Kind]) -> dict[str, Any] | None:
    from ops.plots import learning_figure

    names = _representatives([n for n, c in steps.curves.items() if "step" in c], kinds)
    if not names:
        return None
    figure = learning_figure({name: steps.curves[name] for name in names[:MAX_CURVES]})
    return {"image": image(figure), "left": len(steps.curves) - len(names[:MAX_CURVES])}


def _efficiency(steps: _Steps, points: Mapping[str, CurvePoint]) -> list[str]:
    """Figures of errors against training frames, one for each test set that has a curve."""
    from ops.plots import efficiency_figure

    images = []
    for data in dict.fromkeys(entry["data"] for entry in steps.results):
        entries = [entry for entry in steps.results if entry["data"] == data]
        panels: dict[str, dict[str, Curve]] = {}
        for key in ("rmse_e", "rmse_f"):
            panels[key] = defaultdict(lambda: defaultdict(list))
            for entry in entries:
                error, point = entry["overall"].get(key), points.get(entry["model"])
                run = steps.runs.get(entry["model"])
                # forces do not change with the bias: such a curve would repeat the zero-shot line
                if error is None or (key == "rmse_f" and entry["model"] in steps.biases):
                    continue
                if point is not None:
                    panels[key][point.kind][point.frames].append(error)
                elif run is None or not run["finetuned"]:
                    panels[key][entry["model"]][0].append(error)
        panels = {key: series for key, series in panels.items() if series}
        if any(len(curve) > 1 for series in panels.values() for curve in series.values()):
            images.append(image(efficiency_figure(panels, data)))
    return images


def _find_points(steps: _Steps) -> list[CurvePoint]:
    """Finetuned runs, and runs from scratch on as few frames as one of those."""
    sizes = {run["train_frames"] for run in steps.runs.values() if run["finetuned"]}
    several = len({run.get("architecture") for run in steps.runs.values()}) > 1
    points = []
    for name, run in steps.runs.items():
        if run["train_frames"] not in sizes:
            continue
        kind = "finetuned" if run["finetuned"] else "from scratch"
        if several:
            kind += f", {run.get('architecture')}"
        points.append(CurvePoint(model=name, kind=kind, frames=run["train_frames"]))
    return points


def _parity(
    artifacts: Mapping[str, Path], steps: _Steps, kinds: Mapping[str, Kind], limit: int
) -> dict[str, Any]:
    models = _representatives(dict.fromkeys(entry["model"] for entry in steps.results), kinds)
    # forces are those of the model before the refit, and its energies are drawn there as well
    models = [name for name in models if name not in steps.biases]
    most = {label: max(n or 0 for name, n in kinds.values() if name == label)
            for label, _ in kinds.values()}  # fmt: skip

    def rank(entry: Mapping[str, Any]) -> bool:
        """Sort the largest number of frames of every kind to the front."""
        label, frames = kinds.get(entry["model"], ("", 0))
        return (frames or 0) < most.get(label, 0)

    images: dict[str, str] = {}
    for entry in sorted(steps.results, key=rank):
        name = f"{entry['model']}--{entry['data']}"
        path = artifacts[entry["step"]] / f"parity-{name}.png"
        if entry["model"] in models and path.exists() and len(images) < limit:
            images.setdefault(name.replace("--", " on "), data_uri(path.read_bytes()))
    return {"images": images, "left": len(steps.results) - len(images)}


def _embedding(
    artifacts: Mapping[str, Path], steps: _Steps, config: ReportConfig
) -> dict[str, Any] | None:
    from ops.embedding import embedding_pca, periodic_order_test, place_in_table
    from ops.plots import embedding_figure

    name = config.embedding or max(
        steps.runs,
        key=lambda n: (len(steps.runs[n]["type_map"]), not steps.runs[n]["finetuned"]),
        default=None,
    )
    if name is None or (path := _model_file(artifacts, steps, name)) is None:
        return None
    from dpa_core.interchange.files import load_model

    try:
        model = load_model(path)
    except DPAError as error:
        logger.warning("no type embedding in the report: %s", error)
        return None
    elements = steps.runs.get(name, {}).get("elements")
    pca = embedding_pca(model, elements)
    if pca is None:
        return None
    places = [place_in_table(element) for element in pca.elements]
    figure = embedding_figure(pca.points, pca.elements, places, pca.explained)
    order = periodic_order_test(model, config.n_permutations, 0, elements)
    return {"step": name, "image": image(figure), "order": order}


def _model_file(artifacts: Mapping[str, Path], steps: _Steps, name: str) -> Path | None:
    """Return the best model of a training, or the model of another step."""
    if name not in artifacts:
        return None
    best = steps.runs.get(name, {}).get("best")
    candidates = [*([best] if best else []), "model-best.safetensors", "model.safetensors"]
    paths = [artifacts[name] / file for file in candidates]
    return next((path for path in paths if path.exists()), None)


def _usage(
    artifacts: Mapping[str, Path], steps: _Steps, tables: list[Table]
) -> dict[str, Any] | None:
    """Model file and elements for the code example: the best one of the last test."""
    # the members of a final committee are alike
    names = [name for name in steps.runs if name.startswith("final-")][:1]
    names += [best[0].runs[0] for table in reversed(tables) if (best := best_row(table))]
    names += list(steps.runs)
    for name in names:
        if path := _model_file(artifacts, steps, name):
            elements = steps.runs.get(name, {}).get("type_map", [])
            return {"model": name, "path": f"{artifacts[name].name}/{path.name}",
                    "elements": elements}  # fmt: skip
    return None
