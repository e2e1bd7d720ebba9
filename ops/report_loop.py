"""One self-contained HTML page about one iteration of concurrent learning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from dpa_core.config import Config
from ops.decide import DECISION, NEW, PREVIOUS
from ops.files import read_json, write_text
from ops.loop_rows import Row, outcome, texts
from ops.report_page import duration, image, read_lcurve, render

PAGE = "iteration.html"
FOLDED = 16
"""Longer tables are shown on request only."""


class IterationConfig(Config):
    """What the page says and shows."""

    iteration: NonNegativeInt = 0
    """Number of the iteration."""
    title: str = "dpaflow"
    """Name of the pipeline."""
    max_rows: PositiveInt = 200
    """Largest number of trajectories, frames and failed labels listed."""
    max_parity: PositiveInt = 4
    """Largest number of models whose forces are drawn against the new labels."""


class IterationInputs(NamedTuple):
    """Folders of the steps of an iteration, and the decision at its end.

    Attributes
    ----------
    explored, labels
        Folders of the parts of these steps.
    selected, collected, test
        Folders of these steps.
    decision
        Folder of the decision, or its file.
    trained
        Name -> folder of a training of the committee.
    """

    explored: Sequence[Path]
    selected: Path
    labels: Sequence[Path]
    collected: Path | None
    test: Path | None
    decision: Path
    trained: Mapping[str, Path]


def write_iteration(inputs: IterationInputs, config: IterationConfig, outdir: Path) -> Path:
    """Write `iteration.html`: one file, no external resources.

    Parameters
    ----------
    inputs
        What the iteration did. What is missing is left out.
    config
        Title and choices.
    outdir
        Receives `iteration.html`.

    Returns
    -------
    Path
        The page.
    """
    file = inputs.decision if inputs.decision.is_file() else inputs.decision / DECISION
    decision = _read(file) or {"rows": []}
    select = _read(inputs.selected / "select.json") or {}
    explored = _explored(inputs.explored)
    tasks = _tasks(inputs.labels)
    row: Row = next((r for r in decision["rows"] if r["iteration"] == config.iteration), {})
    context = {
        "title": config.title,
        "iteration": config.iteration,
        "stage": row.get("stage_name", decision.get("stage", "")),
        "decision": decision,
        "outcome": outcome(decision),
        "table": loop_table(decision["rows"], current=config.iteration),
        "select": select,
        "deviation": _deviation(select),
        "frames": _frames(select, explored)[: config.max_rows],
        "trajectories": explored[: config.max_rows],
        "trajectories_left": max(0, len(explored) - config.max_rows),
        "stops": Counter(t["reason"] for t in explored),
        "tasks": tasks,
        "failed": [t for t in tasks if t["state"] != "labelled"][: config.max_rows],
        "errors": _errors(inputs.test),
        "parity": _parity(inputs.test, config.max_parity),
        "training": _training(inputs.trained),
        "collect": _read(inputs.collected / "collect.json") if inputs.collected else None,
        "folded": FOLDED,
    }
    # files of other versions may lack a number; the page is there nevertheless
    return write_text(outdir / PAGE, render("report_loop.html", context, strict=False))


def loop_table(
    rows: Sequence[Row],
    current: int | None = None,
    links: Mapping[int, str] | None = None,
) -> dict[str, Any] | None:
    """Return the table of the loop for the template `report_macros.html`.

    Parameters
    ----------
    rows
        See `ops.loop_rows`.
    current
        Iteration whose row is marked.
    links
        Iteration -> address of its page.
    """
    if not rows:
        return None
    columns, cells = texts(rows, wide=True)
    lines = [
        {"cells": line, "current": row["iteration"] == current,
         "link": (links or {}).get(row["iteration"])}
        for row, line in zip(rows, cells)
    ]  # fmt: skip
    return {"columns": columns, "rows": lines}


def index_page(
    title: str,
    rows: Sequence[Row],
    decision: Mapping[str, Any],
    pages: Mapping[int, str],
) -> str:
    """Return the page that lists the iterations of a run.

    Parameters
    ----------
    title
        Name of the run.
    rows
        See `ops.loop_rows`.
    decision
        The latest one; empty before the first.
    pages
        Iteration -> address of its page.
    """
    from ops.plots_iterations import iterations_figure

    context = {
        "title": title,
        "message": decision.get("message"),
        "advice": decision.get("advice"),
        "table": loop_table(rows, links=pages),
        "figure": image(iterations_figure(rows)) if rows else None,
    }
    return render("report_index.html", context)


def _read(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _explored(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """All trajectories in the order of their names, which count over all parts."""
    found = []
    for folder in folders:
        for item in (_read(folder / "explore.json") or {}).get("trajectories", []):
            stop = item.get("stop") or {}
            text = f"step {stop['step']}: {stop.get('message', '')}" if stop else ""
            found.append({**item, "reason": stop.get("reason", "completed"), "text": text})
    return sorted(found, key=lambda item: item["name"])


def _tasks(folders: Sequence[Path]) -> list[dict[str, Any]]:
    found = []
    for folder in folders:
        found += (_read(folder / "labels.json") or {}).get("tasks", [])
    return sorted(found, key=lambda task: task["name"])


def _frames(
    select: Mapping[str, Any], trajectories: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return selected frames, largest deviation first, with what is known of their trajectories."""
    by_name = {t["name"]: t for t in trajectories}
    frames = [
        {**frame, "origin": by_name.get(str(frame["trajectory"]).rstrip("/").split("/")[-1], {})}
        for frame in select.get("frames_selected", [])
    ]
    return sorted(frames, key=lambda frame: -(frame.get("max_devi_f") or 0.0))


def _deviation(select: Mapping[str, Any]) -> str | None:
    if not select.get("histogram"):
        return None
    from ops.plots_loop import deviation_figure

    return image(deviation_figure(select))


def _errors(test: Path | None) -> list[dict[str, Any]]:
    """Results of the test step, the new frames first."""
    document = _read(test / "results.json") if test else None
    order = {NEW: 0, PREVIOUS: 1}
    what = {
        NEW: "new frames, before training on them",
        PREVIOUS: "new frames of the iteration before, after training on them",
    }
    entries = sorted((document or {"results": []})["results"],
                     key=lambda e: order.get(e["data"], 2))  # fmt: skip
    return [{**entry, "what": what.get(entry["data"], entry["data"])} for entry in entries]


def _parity(test: Path | None, limit: int) -> str | None:
    from ops.plots_iterations import Pair, force_parity_figure

    panels: dict[str, Pair] = {}
    for entry in _errors(test):
        stem = f"{entry['model']}--{entry['data']}"
        path = test / f"{stem}.npz" if test else None
        if entry["data"] != NEW or path is None or not path.is_file() or len(panels) == limit:
            continue
        with np.load(path, allow_pickle=False) as file:
            reference, predicted = file["force_ref"], file["force_pred"]
        known = np.isfinite(reference) & np.isfinite(predicted)
        if known.any():
            panels[entry["model"]] = (reference[known], predicted[known])
    return image(force_parity_figure(panels)) if panels else None


def _training(trained: Mapping[str, Path]) -> dict[str, Any] | None:
    from ops.plots import learning_figure

    curves = {
        name: read_lcurve(folder / "lcurve.csv")
        for name, folder in trained.items()
        if (folder / "lcurve.csv").is_file()
    }
    curves = {name: curve for name, curve in curves.items() if "step" in curve}
    runs = {n: run for n, f in trained.items() if (run := _read(f / "run.json"))}
    if not curves and not runs:
        return None
    rows = [
        {"name": name, "frames": run["train_frames"], "steps": run["steps"],
         "time": " ".join(duration(run["seconds"]))}
        for name, run in runs.items()
    ]  # fmt: skip
    return {"image": image(learning_figure(curves)) if curves else None, "runs": rows}
