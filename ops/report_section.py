"""The part of the final report that is about concurrent learning."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from dpa_core.config import Config
from ops.decide import DECISION
from ops.files import read_json
from ops.loop_rows import Row, outcome
from ops.report_loop import loop_table
from ops.report_page import image
from ops.report_tables import Kind, Table, title

ITERATION = re.compile(r"iter-(\d+)-")
RIVAL_DATA = re.compile(r"compare-.+-collect$")
COMPARED = (
    (re.compile(r"start-(m\d+)$"), "starting model", "iter-000000-train-{}"),
    (re.compile(r"final-(m\d+)$"), "concurrent learning", "final-train-{}"),
    (re.compile(r"selected-(s\d+)$"), "selected by the loop", "compare-selected-{}-train"),
    (re.compile(r"random-(s\d+)$"), "random selection", "compare-random-{}-train"),
)
"""Name of a model in the test results, its row in tables, the step that trained it."""
Entry = Mapping[str, Any]


class Comparison(Config):
    """One model of the comparison of ways to choose the frames to label."""

    model: str
    """Name of the model in the test results."""
    kind: str
    """How its frames were chosen, e.g. "concurrent learning" or "random"; models of one kind
    and number of frames share a row."""
    frames: PositiveInt | None = None
    """Training frames; left out: those of the training step of this name."""


def hidden_steps(names: Iterable[str]) -> set[str]:
    """Return the steps of iterations, which the tables of final results leave out.

    Without steps called final-* the last iteration takes their place and is not hidden. The
    data of models that are there for comparison only are left out too.
    """
    names = list(names)
    numbers = {name: int(found[1]) for name in names if (found := ITERATION.match(name))}
    last = None if any(name.startswith("final-") for name in names) else max(
        numbers.values(), default=None
    )  # fmt: skip
    compared = {name for name in names if RIVAL_DATA.match(name)}
    return compared | {name for name, number in numbers.items() if number != last}


def read_decision(artifacts: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return the last decision among the steps, None if there is none."""
    files = [
        (int(found[1]), path)
        for name, folder in artifacts.items()
        if (found := ITERATION.match(name)) and (path := folder / DECISION).is_file()
    ]
    decision: dict[str, Any] | None = read_json(max(files)[1]) if files else None
    return decision


def compared_kinds(
    comparison: Sequence[Comparison] | None,
    results: Iterable[Entry],
    artifacts: Mapping[str, Path],
) -> dict[str, Kind]:
    """Return the name and training frames of the rows of the comparison, by model and step.

    Parameters
    ----------
    comparison
        What the settings say; None: the models that are named as in `COMPARED`.
    results
        Entries of the test results.
    artifacts
        Step -> folder; the training steps tell the number of frames.
    """
    if comparison is not None:
        return {c.model: (c.kind, c.frames or _frames(artifacts, c.model)) for c in comparison}
    kinds: dict[str, Kind] = {}
    for entry in results:
        for pattern, kind, step in COMPARED:
            if found := pattern.match(entry["model"]):
                trained = step.format(found[1])
                kinds[entry["model"]] = kinds[trained] = (kind, _frames(artifacts, trained))
    return kinds


def _frames(artifacts: Mapping[str, Path], step: str) -> int | None:
    path = artifacts[step] / "run.json" if step in artifacts else None
    return read_json(path)["train_frames"] if path and path.is_file() else None


def loop_section(
    decision: Mapping[str, Any] | None, tables: Sequence[Table], kinds: Mapping[str, Kind]
) -> dict[str, Any] | None:
    """Return the context of the section, None without a loop.

    Parameters
    ----------
    decision
        The last one.
    tables
        Final results, one table for each test set.
    kinds
        Model -> row and training frames of the comparison.
    """
    if decision is None or not decision["rows"]:
        return None
    from ops.plots_iterations import iterations_figure

    rows = decision["rows"]
    labelled = sum(row.get("labelled") or 0 for row in rows)
    failed = sum(row.get("failed_labels") or 0 for row in rows)
    return {
        "verdict": f"{outcome(decision)} after {len(rows)} "
        f"iteration{'s' if len(rows) > 1 else ''} and {labelled} labels: {decision['message']}",
        "advice": decision["advice"],
        "table": loop_table(rows),
        "figure": image(iterations_figure(rows)),
        "cards": [
            (str(len(rows)), "iterations", decision["verdict"].replace("_", " ")),
            (str(labelled), "labels", f"{failed} failed" if failed else "none failed"),
        ],
        "comparison": [found for table in tables if (found := _compare(table, rows, kinds))],
    }


def _compare(table: Table, rows: Sequence[Row], kinds: Mapping[str, Kind]) -> dict[str, Any] | None:
    """Sentence and figure about the ways of choosing frames, on one test set."""
    from ops.plots_iterations import comparison_figure

    metric = [key for key, *_ in table.columns].index("rmse_f") if _has_forces(table) else None
    wanted = set(kinds.values())
    if metric is None or len({kind for kind, _ in wanted}) < 2:
        return None
    said = []
    points: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for row in table.rows:
        cell = row.cells[metric]
        if (row.label, row.frames) in wanted and cell:
            mean, spread = cell.texts()
            text = mean if spread is None else f"{mean} ± {spread} ({len(row.runs)} runs)"
            said.append(f"{title(row)} {text} meV/Å")
    single = {run: cell for row in table.every or table.rows
              for run in row.runs if (cell := row.cells[metric])}  # fmt: skip
    for model, (kind, frames) in kinds.items():
        if frames and model in single:
            points[kind].setdefault(frames, []).append(single[model].mean / 1000)
    loop = [
        (row["train_frames"], error)
        for row in rows
        if (error := (row.get("test") or {}).get(table.data, {}).get("rmse_f")) is not None
        and row.get("train_frames")
    ]
    if len(said) < 2:
        return None
    picture = image(comparison_figure(loop, points)) if points else None
    return {"data": table.data, "text": "; ".join(said), "image": picture}


def _has_forces(table: Table) -> bool:
    return any(key == "rmse_f" for key, *_ in table.columns)
