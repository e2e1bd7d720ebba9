"""The tables of results in the report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

METRICS = (
    ("rmse_e", "energy RMSE", "meV/atom"),
    ("refit_rmse_e", "after bias refit", "meV/atom"),
    ("mae_e", "energy MAE", "meV/atom"),
    ("rmse_f", "force RMSE", "meV/Å"),
    ("mae_f", "force MAE", "meV/Å"),
    ("rmse_v", "virial RMSE", "meV/atom"),
)


def result_tables(
    results: Iterable[dict[str, Any]], runs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return one table for each test set: models as rows, errors in meV, best of each column."""
    by_data: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in results:
        by_data[entry["data"]].append(entry)
    return [_result_table(data, entries, runs) for data, entries in by_data.items()]


def _result_table(
    data: str, entries: list[dict[str, Any]], runs: Mapping[str, Any]
) -> dict[str, Any]:
    rows = []
    for entry in entries:
        refit = entry["refit"] or {}
        values = {**entry["overall"], "refit_rmse_e": refit.get("rmse_e")}
        run = runs.get(entry["model"], {})
        rows.append({
            "model": entry["model"],
            "frames": run.get("train_frames"),
            "values": [_milli(values.get(key)) for key, _, _ in METRICS],
        })  # fmt: skip
    columns = [k for k in range(len(METRICS)) if any(r["values"][k] is not None for r in rows)]
    for row in rows:
        row["values"] = [row["values"][k] for k in columns]
    best = []
    for k in range(len(columns)):
        known = [row["values"][k] for row in rows if row["values"][k] is not None]
        best.append(min(known) if len(rows) > 1 else None)
    return {
        "data": data,
        "nframes": entries[0]["overall"]["nframes"],
        "columns": [METRICS[k] for k in columns],
        "rows": rows,
        "best": best,
        "formulas": _formula_table(entries),
    }


def _formula_table(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    names = list(entries[0]["formulas"])
    if len(names) < 2:
        return None
    shown = entries[:8]
    rows = []
    for name in names[:60]:
        metrics = [entry["formulas"].get(name, {}) for entry in shown]
        cells = [(_milli(m.get("rmse_e")), _milli(m.get("rmse_f"))) for m in metrics]
        rows.append({"name": name, "nframes": metrics[0].get("nframes"), "cells": cells})
    return {"models": [entry["model"] for entry in shown], "rows": rows, "left": len(names) - 60}


def _milli(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def three_digits(value: float | None) -> str:
    """Format with three significant digits, no exponent for everyday sizes."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 100:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 6)}f}"
    return f"{value:.0f}"


def best_row(
    table: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[str, str, str], float] | None:
    """Return row, metric and value of the smallest force error (energy error without forces)."""
    keys = [column[0] for column in table["columns"]]
    for key in ("rmse_f", "rmse_e"):
        if key in keys:
            k = keys.index(key)
            known = [row for row in table["rows"] if row["values"][k] is not None]
            row = min(known, key=lambda r: r["values"][k])
            return row, table["columns"][k], row["values"][k]
    return None


def verdict(tables: list[dict[str, Any]]) -> str | None:
    """Say in words which model is best on every test set; None with a single model."""
    sentences = []
    for table in tables:
        best = best_row(table)
        if best is None or len(table["rows"]) < 2:
            continue
        row, (_, metric, unit), value = best
        sentences.append(
            f"On {table['data']} ({table['nframes']} frames) {row['model']} has the smallest "
            f"{metric} of {len(table['rows'])} models: {three_digits(value)} {unit}."
        )
    return " ".join(sentences) or None
