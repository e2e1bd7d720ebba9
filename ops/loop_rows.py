"""The table of a loop, one row for each iteration, as texts: the same in a terminal and in HTML.

A row is one of `decision.json`'s rows (see `ops.decide`); `workflows.iterations` adds "times"
(phase -> seconds of wall time) and, for the iteration in progress, "phase".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ops.plots import three_digits

NONE = "–"
VERDICTS = {
    "continue": "", "stage converged": "stage done", "converged": "converged",
    "max_iterations": "limit", "stuck": "stuck",
}  # fmt: skip
OUTCOMES = {
    "continue": "Goes on", "stage converged": "Stage converged", "converged": "Converged",
    "max_iterations": "Not converged", "stuck": "Stuck",
}  # fmt: skip
Row = Mapping[str, Any]


class Column(NamedTuple):
    """One column.

    Attributes
    ----------
    name, unit
        Heading and what stands below it.
    text
        Text of a row's cell; `NONE` where nothing is known.
    wide
        Shown where there is room only.
    """

    name: str
    unit: str
    text: Callable[[Row], str]
    wide: bool = False


def outcome(decision: Row) -> str:
    """Return the verdict of a decision in words."""
    verdict = str(decision.get("verdict") or "")
    return OUTCOMES.get(verdict, verdict)


def test_error(row: Row) -> float | None:
    """Return the force error on the test set of a row, eV/Å; the largest of several sets."""
    errors = [e["rmse_f"] for e in (row.get("test") or {}).values() if e.get("rmse_f") is not None]
    return max(errors, default=None)


def fraction(row: Row, key: str) -> float | None:
    """Return which part of the explored frames is "accurate", "candidate" or "failed"."""
    count, explored = row.get(key), row.get("explored")
    return None if count is None or not explored else count / explored


def milli(value: float | None) -> str:
    """Return a number in thousandths as text: "0.51", "87", "1061", "12.5k"."""
    if value is None:
        return NONE
    if abs(value) >= 10:
        return f"{value:.3g}k"
    return f"{1000 * value:.0f}" if abs(value) >= 0.01 else three_digits(1000 * value)


def short_time(seconds: float | None) -> str:
    """Return seconds as "38s", "17m" or "2.1h"."""
    if seconds is None:
        return NONE
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 5970 else f"{seconds / 3600:.1f}h"


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: NONE if row.get(key) is None else str(row[key])


def _percent(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        part = fraction(row, key)
        if part is None:
            return NONE
        # 99.97 % is not all of them
        return f"{100 * part:.1f}" if part < 1 else "100"

    return text


def _pair(first: str, second: str, sign: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        a, b = row.get(first), row.get(second)
        return NONE if a is b is None else f"{milli(a)}{sign}{milli(b)}"

    return text


def _stage(row: Row) -> str:
    name = row.get("stage_name")
    return _plain("stage")(row) if name is None else str(name)


def _labels(row: Row) -> str:
    failed = row.get("failed_labels")
    return _plain("labelled")(row) + (f"+{failed}" if failed else "")


def _verdict(row: Row) -> str:
    verdict = row.get("verdict")
    return row.get("phase") or "" if verdict is None else VERDICTS.get(verdict, str(verdict))


def _time(phase: str) -> Callable[[Row], str]:
    return lambda row: short_time(row.get("times", {}).get(phase))


COLUMNS = (
    Column("it", "", _plain("iteration")),
    Column("stage", "", _stage),
    Column("seen", "", _plain("explored")),
    Column("good", "%", _percent("accurate")),
    Column("cand", "%", _percent("candidate")),
    Column("bad", "%", _percent("failed")),
    Column("trust levels", "meV/Å", _pair("lo", "hi", "–"), wide=True),
    Column("stopped", "early", _plain("stopped"), wide=True),
    Column("labels", "ok+bad", _labels),
    Column("data", "", _plain("train_frames")),
    Column("deviation", "mean/max", _pair("devi_f_mean", "devi_f_max", "/")),
    Column("new force", "meV/Å", _pair("rmse_f_new", "rmse_f_after", "→")),
    Column("test", "meV/Å", lambda row: milli(test_error(row))),
    Column("train", "time", _time("train")),
    Column("expl", "time", _time("explore")),
    Column("label", "time", _time("label")),
    Column("verdict", "", _verdict),
)  # fmt: skip


def texts(rows: Sequence[Row], *, wide: bool) -> tuple[list[Column], list[list[str]]]:
    """Return the columns that say something, and the texts of every row."""
    table = [
        (column, [column.text(row) for row in rows])
        for column in COLUMNS
        if wide or not column.wide
    ]
    kept = [(column, cells) for column, cells in table if set(cells) - {NONE, ""}]
    return [column for column, _ in kept], [list(x) for x in zip(*(c for _, c in kept))]
