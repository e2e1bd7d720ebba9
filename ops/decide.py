"""Decide after an iteration of concurrent learning: go on, next stage, done, or give up.

Everything the decision rests on is in the files of the iteration's steps; everything that the
next iteration needs to know is in `decision.json`, whose rows are the table of the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from dpa_core.config import Config
from ops.files import read_json, write_json

DECISION = "decision.json"
NEW, PREVIOUS = "new", "previous"
"""Names, in the results of an iteration's test, of the frames labelled in it and before it."""
ENDED_EARLY = (
    "See why trajectories ended early in explore.json: the frames before the end count, those "
    "that would have followed do not. If the model was the reason, it does not yet hold for runs "
    "as long as these."
)
PROGRESS = 0.01
"""Gain of the accurate fraction, and relative fall of the deviation, that count as progress."""

Fraction = Annotated[float, Field(gt=0, le=1)]
Row = dict[str, Any]
logger = logging.getLogger(__name__)


class Converge(Config):
    """When a stage is done: every criterion that is given holds."""

    accurate: Fraction | None = 0.95
    """Smallest fraction of explored frames that the committee agrees on. With adaptive trust
    levels the lower level must have stopped moving instead."""
    deviation: PositiveFloat | None = None
    """eV/Å. Largest mean, over the explored frames, of the largest force deviation."""
    error: PositiveFloat | None = None
    """eV/Å. Largest force RMSE on the newly labelled frames before they are trained on."""
    patience: PositiveInt = 1
    """Iterations in a row for which the criteria must hold."""
    stagnation: PositiveInt = 4
    """Give up after this many iterations in a row without progress (neither the accurate
    fraction nor the mean deviation gets better)."""

    @pydantic.model_validator(mode="after")
    def _something(self) -> Converge:
        if (self.accurate, self.deviation, self.error) == (None, None, None):
            raise ValueError("give at least one criterion: accurate, deviation or error")
        return self


class DecideStage(Config):
    """What decides about one stage."""

    name: str
    """Name in tables."""
    converge: Converge = Converge()
    """The criteria."""
    max_iterations: PositiveInt = 10
    """Iterations this stage may take."""
    at_max: Literal["stop", "next"] = "stop"
    """After these: end the loop, or go on to the next stage although this one is not done."""


class DecideConfig(Config):
    """Settings of the decision."""

    stages: tuple[DecideStage, ...] = Field(min_length=1)
    """The stages in order."""
    iteration: NonNegativeInt = 0
    """Number of this iteration."""
    max_iterations: PositiveInt = 20
    """Iterations the whole loop may take."""
    min_success: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Smallest fraction of labelling tasks that must succeed."""


class DecideInputs(NamedTuple):
    """Folders of the iteration's steps, and the decision of the iteration before."""

    explored: Sequence[Path]
    selected: Path
    labels: Sequence[Path] = ()
    trained: Path | None = None
    test: Path | None = None
    previous: Path | None = None


class Verdict(NamedTuple):
    """A decision.

    Attributes
    ----------
    verdict
        "continue", "stage converged", "converged", "max_iterations" or "stuck".
    message, advice
        What was found, and what to do about it.
    next_stage
        Stage of the next iteration.
    """

    verdict: str
    message: str
    next_stage: int
    advice: str = ""

    @property
    def go(self) -> bool:
        """Whether there is a next iteration."""
        return self.verdict in ("continue", "stage converged")


def brief(outdir: Path) -> dict[str, Any]:
    """Return what a dashboard shows of a decision: the verdict and the table's last two rows.

    The last but one is there because only this iteration knows its error after training.
    """
    decision = read_json(outdir / DECISION)
    kept = ("go", "verdict", "message", "advice", "next_stage")
    labelled = sum(row["labelled"] for row in decision["rows"])
    rows = decision["rows"][-2:]
    return {**{key: decision[key] for key in kept}, "labelled": labelled, "rows": rows}


def next_stage(decision: Path | None) -> int:
    """Return the stage that a decision asks for; 0 before the first one."""
    return 0 if decision is None else int(read_json(decision)["next_stage"])


def run_decide(inputs: DecideInputs, config: DecideConfig, outdir: Path) -> Verdict:
    """Write `decision.json`.

    Parameters
    ----------
    inputs
        What the iteration did.
    config
        Criteria and limits.
    outdir
        Receives `decision.json`.

    Returns
    -------
    Verdict
        The decision.
    """
    stage = next_stage(inputs.previous)
    rows = [] if inputs.previous is None else read_json(inputs.previous)["rows"]
    results = _results(inputs.test)
    if rows:
        rows[-1]["rmse_f_after"] = results.get(PREVIOUS, {}).get("rmse_f")
    select = read_json(inputs.selected / "select.json")
    rows.append(_row(inputs, config, stage, select, results))
    found = judge(rows, config, select)
    rows[-1]["verdict"] = found.verdict
    outdir.mkdir(parents=True, exist_ok=True)
    document = {"version": 1, "iteration": config.iteration, "stage": stage, **found._asdict(),
                "go": found.go, "rows": rows}  # fmt: skip
    write_json(outdir / DECISION, document)
    logger.info("%s: %s %s", found.verdict, found.message, found.advice)
    return found


def judge(rows: Sequence[Row], config: DecideConfig, select: Mapping[str, Any]) -> Verdict:
    """Decide from the table of the loop; its last row is this iteration.

    Parameters
    ----------
    rows
        The table so far.
    config
        Criteria and limits.
    select
        Content of this iteration's `select.json`.
    """
    row = rows[-1]
    number = row["stage"]
    stage = config.stages[number]
    same = [r for r in rows if r["stage"] == number]
    row["met"] = not unmet(row, stage.converge)
    tried = row["labelled"] + row["failed_labels"]
    if tried and row["labelled"] < config.min_success * tried:
        return Verdict(
            "stuck", f"only {row['labelled']} of {tried} labels succeeded.", number,
            "See the quarantined tasks' logs; correct the label settings (template, command, "
            "retry), or raise hi less far above lo so that saner structures are labelled.",
        )  # fmt: skip
    if all(r["met"] for r in same[-stage.converge.patience :]) and (
        len(same) >= stage.converge.patience
    ):
        last = number + 1 == len(config.stages)
        return Verdict(
            "converged" if last else "stage converged",
            f"stage {stage.name}: all criteria hold{_although(row)}.",
            number if last else number + 1,
            ENDED_EARLY if row["stopped"] else "",
        )
    open_points = "; ".join(unmet(row, stage.converge)) or "criteria hold, not yet long enough"
    if not row["met"] and (advice := dead_end(same, stage.converge, select)):
        return Verdict("stuck", f"stage {stage.name}: {open_points}.", number, advice)
    left = len(same) >= stage.max_iterations
    follows = stage.at_max == "next" and number + 1 < len(config.stages)
    limits = ["max_iterations"] * (len(rows) >= config.max_iterations)
    limits += [f"stages.{number}.max_iterations"] * (left and not follows)
    if limits:
        return Verdict("max_iterations", f"stage {stage.name}: {open_points}.", number,
                       f"Raise {' and '.join(limits)} to go on.")  # fmt: skip
    if left:
        return Verdict("continue", f"stage {stage.name} left unconverged: {open_points}.",
                       number + 1)  # fmt: skip
    return Verdict("continue", f"stage {stage.name}: {open_points}.", number)


def _although(row: Row) -> str:
    """Tell what the criteria, which look at frames, do not see."""
    number = row["stopped"]
    return f", but {number} trajector{'ies' if number > 1 else 'y'} ended early" if number else ""


def unmet(row: Row, converge: Converge) -> list[str]:
    """Return the criteria that an iteration does not fulfil, in words."""
    points = []
    if not row["explored"]:
        return ["nothing was explored"]
    if row["level_settled"] is not None:
        if not row["level_settled"]:
            points.append(f"the adaptive lower level still moves (now {row['lo']:.3g})")
    elif converge.accurate is not None:
        fraction = row["accurate"] / row["explored"]
        if fraction < converge.accurate:
            points.append(f"{fraction:.1%} accurate, {converge.accurate:.1%} wanted")
    for key, limit, what in (
        ("devi_f_mean", converge.deviation, "mean deviation"),
        ("rmse_f_new", converge.error, "force error on new frames"),
    ):
        # without a new frame there is no error to be too large
        missing = row[key] is None and (key == "devi_f_mean" or row["selected"])
        if limit is not None and (missing or (row[key] or 0.0) > limit):
            points.append(f"{what} {_number(row[key])} eV/Å, {limit:g} wanted")
    return points


def dead_end(rows: Sequence[Row], converge: Converge, select: Mapping[str, Any]) -> str:
    """Return advice if more iterations of this stage would not help, else an empty string."""
    row = rows[-1]
    if not row["explored"]:
        return (
            "No frame was explored: every trajectory stopped at once (see explore.json). Lower "
            "the temperature or rattle, raise the hard limit max_devi_f, or add initial data."
        )
    if not row["selected"]:
        return _nothing_selected(row, select)
    window = rows[-(converge.stagnation + 1) :]
    if len(window) <= converge.stagnation:
        return ""
    before, since = window[0], window[1:]
    fraction = max(r["accurate"] / r["explored"] if r["explored"] else 0.0 for r in since)
    first = before["accurate"] / before["explored"] if before["explored"] else 0.0
    deviations = [r["devi_f_mean"] for r in since if r["devi_f_mean"] is not None]
    old = before["devi_f_mean"]
    falls = old is not None and deviations and min(deviations) < old * (1 - PROGRESS)
    if fraction > first + PROGRESS or falls:
        return ""
    return (
        f"{converge.stagnation} iterations brought neither more accurate frames nor a smaller "
        "deviation: the same region again and again. Train longer or use a larger model (compare "
        "rmse_f on new frames after training), raise lo, or lower the stage's temperature."
    )


def _nothing_selected(row: Row, select: Mapping[str, Any]) -> str:
    rejected = select.get("rejected", {})
    known = sum(rejected.get(name, 0) for name in ("known", "similar"))
    if row["candidate"] and known:
        return (
            f"All {row['candidate']} candidates are structures that the labelled data cover "
            "already, yet the committee disagrees on them: train longer or use a larger model, "
            "raise lo, or lower select.min_new."
        )
    if row["failed"] > row["accurate"]:
        return (
            f"{row['failed']} of {row['explored']} frames are beyond hi = {_number(row['hi'])} "
            "and none is a candidate: raise hi, explore more gently (lower temperature, shorter "
            "runs), or add initial data."
        )
    if rejected:
        counts = ", ".join(f"{name} {count}" for name, count in rejected.items() if count)
        return f"The filters left no candidate ({counts}): loosen select.filters."
    return (
        "No frame lies between lo and hi: widen the trust levels or set the criteria to what "
        "this exploration can reach."
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _results(test: Path | None) -> dict[str, dict[str, float | None]]:
    """Errors by data set: the mean over the members of the committee."""
    if test is None or not (test / "results.json").exists():
        return {}
    by_data: dict[str, list[Mapping[str, Any]]] = {}
    for entry in read_json(test / "results.json")["results"]:
        by_data.setdefault(entry["data"], []).append(entry["overall"])
    return {
        data: {key: _mean([o.get(key) for o in found]) for key in ("rmse_f", "rmse_e")}
        for data, found in by_data.items()
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _row(
    inputs: DecideInputs,
    config: DecideConfig,
    stage: int,
    select: Mapping[str, Any],
    results: Mapping[str, Mapping[str, float | None]],
) -> Row:
    tasks = [t for folder in inputs.labels for t in read_json(folder / "labels.json")["tasks"]]
    explored = [read_json(folder / "explore.json") for folder in inputs.explored]
    stopped = [t for e in explored for t in e["trajectories"] if t["stop"] is not None]
    labelled = sum(task["state"] == "labelled" for task in tasks)
    new = results.get(NEW, {})
    trained = None if inputs.trained is None else read_json(inputs.trained / "run.json")
    return {
        "iteration": config.iteration,
        "stage": stage,
        "stage_name": config.stages[stage].name,
        "explored": select["frames"],
        **{name: select[name] for name in ("accurate", "candidate", "failed", "selected")},
        "labelled": labelled,
        "failed_labels": len(tasks) - labelled,
        "lo": select["lo"],
        "hi": select["hi"],
        "level_settled": select.get("converged"),
        "devi_f_mean": select["deviation"]["mean"],
        "devi_f_max": select["deviation"]["max"],
        "stopped": len(stopped),
        "train_frames": None if trained is None else trained["train_frames"],
        "rmse_f_new": new.get("rmse_f"),
        "rmse_e_new": new.get("rmse_e"),
        "rmse_f_after": None,
        "test": {name: dict(r) for name, r in results.items() if name not in (NEW, PREVIOUS)},
    }
