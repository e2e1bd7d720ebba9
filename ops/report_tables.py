"""The tables of results in the report: runs that differ in their seed only share a row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ops.plots import decimals, three_digits

METRICS = (
    ("rmse_e", "energy RMSE", "meV/atom"),
    ("refit_rmse_e", "after bias refit", "meV/atom"),
    ("mae_e", "energy MAE", "meV/atom"),
    ("rmse_f", "force RMSE", "meV/Å"),
    ("mae_f", "force MAE", "meV/Å"),
    ("rmse_v", "virial RMSE", "meV/atom"),
)
MAX_FORMULAS = 60
MAX_MODELS = 8


class Cell(NamedTuple):
    """An error in meV: mean over the runs of a row, and their standard deviation."""

    mean: float
    spread: float | None
    best: bool = False

    def texts(self) -> tuple[str, str | None]:
        """Mean with three significant digits, spread with the same decimals."""
        if self.spread is None:
            return three_digits(self.mean), None
        return three_digits(self.mean), f"{self.spread:.{decimals(self.mean)}f}"


class Row(NamedTuple):
    """A line of a table: what was trained on how many frames, and the runs behind it."""

    label: str
    frames: int | None
    runs: list[str]
    cells: list[Cell | None]


class Table(NamedTuple):
    """Results on one test set.

    Attributes
    ----------
    data, nframes
        Name and size of the test set.
    columns
        (key, name, unit) of the metrics that occur.
    rows
        Runs that differ in their seed only, together.
    every
        The single runs; empty if every row is one run.
    formulas
        Errors by composition, or None.
    """

    data: str
    nframes: int
    columns: list[tuple[str, str, str]]
    rows: list[Row]
    every: list[Row]
    formulas: dict[str, Any] | None


Kind = tuple[str, int | None]


def result_tables(results: Iterable[dict[str, Any]], kinds: Mapping[str, Kind]) -> list[Table]:
    """Return one table for each test set, best of each column marked.

    Parameters
    ----------
    results
        Entries of `results.json`.
    kinds
        Model -> name of its row and training frames; a model left out is its own row.
    """
    by_data: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in results:
        by_data[entry["data"]].append(entry)
    return [_table(data, entries, kinds) for data, entries in by_data.items()]


def _table(data: str, entries: list[dict[str, Any]], kinds: Mapping[str, Kind]) -> Table:
    groups: dict[Kind, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[kinds.get(entry["model"], (entry["model"], None))].append(entry)
    # rows of one name stay together, the fewest frames first
    names = list(dict.fromkeys(name for name, _ in groups))
    order = sorted(groups, key=lambda kind: (names.index(kind[0]), kind[1] or 0))
    columns = [m for m in METRICS if any(_value(entry, m[0]) is not None for entry in entries)]
    rows = [_row(*kind, groups[kind], columns) for kind in order]
    every = []
    if len(rows) < len(entries):
        every = [
            _row(e["model"], kinds.get(e["model"], ("", None))[1], [e], columns) for e in entries
        ]
    nframes = entries[0]["overall"]["nframes"]
    return Table(data, nframes, columns, _mark_best(rows), every, _formulas(entries))


def _row(
    label: str,
    frames: int | None,
    entries: list[dict[str, Any]],
    columns: Sequence[tuple[str, ...]],
) -> Row:
    cells: list[Cell | None] = []
    for key, *_ in columns:
        values = [1000 * v for e in entries if (v := _value(e, key)) is not None]
        mean = sum(values) / len(values) if values else 0.0
        spread = None
        if len(values) > 1:
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        cells.append(Cell(mean, spread) if values else None)
    return Row(label, frames, list(dict.fromkeys(e["model"] for e in entries)), cells)


def _value(entry: Mapping[str, Any], key: str) -> float | None:
    if key == "refit_rmse_e":
        return entry["refit"]["rmse_e"] if entry["refit"] else None
    return entry["overall"].get(key)


def _mark_best(rows: list[Row]) -> list[Row]:
    if len(rows) < 2:
        return rows
    columns = list(zip(*(row.cells for row in rows), strict=True))
    best = [min((cell.mean for cell in column if cell), default=None) for column in columns]
    return [
        row._replace(cells=[
            cell and cell._replace(best=cell.mean == least)
            for cell, least in zip(row.cells, best, strict=True)
        ])
        for row in rows
    ]  # fmt: skip


def _formulas(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Errors by composition, of the first few models."""
    names = list(entries[0]["formulas"])
    if len(names) < 2:
        return None
    shown = list({entry["model"]: entry for entry in entries}.values())[:MAX_MODELS]
    rows = []
    for name in names[:MAX_FORMULAS]:
        metrics = [entry["formulas"].get(name, {}) for entry in shown]
        cells = [[_milli(m.get("rmse_e")), _milli(m.get("rmse_f"))] for m in metrics]
        rows.append({"name": name, "nframes": metrics[0].get("nframes"), "cells": cells})
    left = len(names) - len(rows)
    return {"models": [entry["model"] for entry in shown], "rows": rows, "left": left}


def _milli(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def best_row(table: Table) -> tuple[Row, tuple[str, str, str], float] | None:
    """Return row, metric and value of the smallest force error (energy error without forces)."""
    keys = [column[0] for column in table.columns]
    for key in ("rmse_f", "rmse_e"):
        if key in keys:
            k = keys.index(key)
            known = [(cell.mean, row) for row in table.rows if (cell := row.cells[k])]
            value, row = min(known, key=lambda pair: pair[0])
            return row, table.columns[k], value
    return None


def verdict(tables: Sequence[Table]) -> str | None:
    """Say in words which model is best on every test set; None with a single model."""
    sentences = []
    for table in tables:
        best = best_row(table)
        if best is None or len(table.rows) < 2:
            continue
        row, (key, metric, unit), value = best
        k = [column[0] for column in table.columns].index(key)
        rivals = [
            f"{rival.label} {three_digits(cell.mean)}"
            for rival in table.rows
            if rival.frames == row.frames and rival is not row and (cell := rival.cells[k])
        ]
        sentences.append(
            f"On {table.data} ({table.nframes} frames), {title(row)} has the smallest {metric} of "
            f"{len(table.rows)}: {three_digits(value)} {unit}"
            + (f" (as many frames, {', '.join(rivals)})." if row.frames and rivals else ".")
        )
    return " ".join(sentences) or None


def title(row: Row) -> str:
    """Name a row with its training frames."""
    if row.frames is None:
        return row.label
    return f"{row.label} ({row.frames} training frame{'s' if row.frames > 1 else ''})"
