"""The decision after an iteration, from rows and files written by hand."""

import json

import pytest

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError
from ops.decide import DecideConfig, DecideInputs, judge, next_stage, run_decide, unmet


def row(**changes):
    base = {
        "iteration": 0, "stage": 0, "stage_name": "a", "explored": 100, "accurate": 50,
        "candidate": 40, "failed": 10, "selected": 20, "labelled": 20, "failed_labels": 0,
        "lo": 0.1, "hi": 0.5, "level_settled": None, "devi_f_mean": 0.2, "devi_f_max": 0.9,
        "stopped": 0, "train_frames": 10, "rmse_f_new": 0.3, "rmse_e_new": 0.01,
        "rmse_f_after": None, "test": {}, "met": False,
    }  # fmt: skip
    return base | changes


def config(*stages, **changes):
    stages = stages or ({"name": "a"},)
    return parse_config(DecideConfig, {"stages": list(stages), **changes}, "test")


def test_a_disagreeing_committee_goes_on():
    found = judge([row()], config(), {})
    assert (found.verdict, found.go, found.next_stage) == ("continue", True, 0)
    assert "50.0% accurate, 95.0% wanted" in found.message


def test_stages_one_after_another_then_converged():
    two = config({"name": "a"}, {"name": "b"})
    found = judge([row(accurate=95)], two, {})
    assert (found.verdict, found.go, found.next_stage) == ("stage converged", True, 1)
    found = judge([row(met=True), row(stage=1, accurate=99)], two, {})
    assert (found.verdict, found.go) == ("converged", False)


def test_trajectories_that_ended_early_are_told():
    found = judge([row(accurate=95)], config(), {})
    assert (found.message, found.advice) == ("stage a: all criteria hold.", "")
    found = judge([row(accurate=95, stopped=3)], config(), {})
    assert (found.verdict, found.go) == ("converged", False)
    assert found.message == "stage a: all criteria hold, but 3 trajectories ended early."
    assert "explore.json" in found.advice


def test_every_given_criterion_counts():
    criteria = {"accurate": 0.5, "deviation": 0.1, "error": 0.2}
    stage = {"name": "a", "converge": criteria}
    parsed = config(stage).stages[0].converge
    assert len(unmet(row(), parsed)) == 2
    assert unmet(row(devi_f_mean=0.1, rmse_f_new=0.2), parsed) == []
    # nothing was selected, so there is no error to be too large; but a lost one is not small
    assert unmet(row(devi_f_mean=0.1, rmse_f_new=None, selected=0), parsed) == []
    assert len(unmet(row(devi_f_mean=0.1, rmse_f_new=None), parsed)) == 1
    assert unmet(row(explored=0), parsed) == ["nothing was explored"]


def test_adaptive_levels_replace_the_fraction():
    stage = config().stages[0].converge
    assert unmet(row(level_settled=True, accurate=0), stage) == []
    assert len(unmet(row(level_settled=False, accurate=100), stage)) == 1


def test_patience_wants_iterations_in_a_row():
    patient = config({"name": "a", "converge": {"patience": 2}})
    assert judge([row(accurate=99)], patient, {}).verdict == "continue"
    rows = [row(met=True), row(accurate=99)]
    assert judge(rows, patient, {}).verdict == "converged"
    rows = [row(met=True), row(met=False), row(accurate=99)]
    assert judge(rows, patient, {}).verdict == "continue"
    # good iterations of an earlier stage do not count for this one
    two = config({"name": "a"}, {"name": "b", "converge": {"patience": 2}})
    assert judge([row(met=True), row(stage=1, accurate=99)], two, {}).verdict == "continue"


def test_limits():
    short = config({"name": "a", "max_iterations": 2}, {"name": "b"})
    assert judge([row(), row()], short, {}).verdict == "max_iterations"
    skipping = config({"name": "a", "max_iterations": 2, "at_max": "next"}, {"name": "b"})
    found = judge([row(), row()], skipping, {})
    assert (found.verdict, found.next_stage) == ("continue", 1)
    assert judge([row(), row()], config(max_iterations=2), {}).verdict == "max_iterations"


def test_the_advice_names_every_limit_that_was_reached():
    stages = ({"name": "a"}, {"name": "b", "max_iterations": 1})
    rows = [row(), row(stage=1)]
    advice = judge(rows, config(*stages), {}).advice
    assert advice == "Raise stages.1.max_iterations to go on."
    advice = judge(rows, config(*stages, max_iterations=2), {}).advice
    assert advice == "Raise max_iterations and stages.1.max_iterations to go on."
    skipping = {"name": "a", "max_iterations": 1, "at_max": "next"}
    advice = judge([row()], config(skipping, {"name": "b"}, max_iterations=1), {}).advice
    assert advice == "Raise max_iterations to go on."


@pytest.mark.parametrize(
    ("changes", "select", "advice"),
    [
        ({"explored": 0}, {}, "every trajectory stopped at once"),
        ({"selected": 0, "candidate": 30}, {"rejected": {"known": 30}}, "cover already"),
        ({"selected": 0, "candidate": 0, "failed": 60, "accurate": 40}, {}, "raise hi"),
        ({"selected": 0, "candidate": 0, "failed": 0}, {"rejected": {"skew": 9}}, "skew 9"),
        ({"selected": 0, "candidate": 0, "failed": 0}, {}, "widen the trust levels"),
    ],
)
def test_what_cannot_converge_stops_with_advice(changes, select, advice):
    found = judge([row(**changes)], config(), select)
    assert (found.verdict, found.go) == ("stuck", False)
    assert advice in found.advice


def test_the_same_region_again_and_again():
    settings = config({"name": "a", "converge": {"stagnation": 3}})
    rows = [row(iteration=k) for k in range(3)]
    assert judge(rows, settings, {}).verdict == "continue"
    rows.append(row(iteration=3))
    found = judge(rows, settings, {})
    assert found.verdict == "stuck"
    assert "same region" in found.advice
    better = [*rows[:-1], row(iteration=3, accurate=60)]
    assert judge(better, settings, {}).verdict == "continue"
    surer = [*rows[:-1], row(iteration=3, devi_f_mean=0.15)]
    assert judge(surer, settings, {}).verdict == "continue"


def test_failing_labels_end_the_loop_below_the_wanted_ratio():
    settings = config(min_success=0.5)
    assert judge([row(labelled=10, failed_labels=10)], settings, {}).verdict == "continue"
    found = judge([row(labelled=9, failed_labels=11)], settings, {})
    assert (found.verdict, found.message) == ("stuck", "only 9 of 20 labels succeeded.")
    assert judge([row(labelled=0, selected=0, accurate=99)], settings, {}).verdict == "converged"


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path.parent


def iteration(folder, *, accurate, results):
    select = {
        "frames": 10, "accurate": accurate, "candidate": 10 - accurate, "failed": 0, "lo": 0.1,
        "hi": 0.5, "selected": 2, "converged": None, "deviation": {"mean": 0.2, "max": 0.4},
    }  # fmt: skip
    trajectory = {"name": "000000", "stop": {"reason": "deviation", "step": 5, "message": "m"}}
    entries = [{"model": model, "data": data, "overall": {"rmse_f": f, "rmse_e": e}}
               for model, data, f, e in results]  # fmt: skip
    tasks = [{"state": "labelled"}, {"state": "failed"}]
    return DecideInputs(
        explored=[write(folder / "explore/explore.json", {"trajectories": [trajectory]})],
        selected=write(folder / "select/select.json", select),
        labels=[write(folder / "label/labels.json", {"tasks": tasks})],
        trained=write(folder / "train/run.json", {"train_frames": 7}),
        test=write(folder / "test/results.json", {"results": entries}),
    )


def test_rows_come_from_the_files_and_the_past_is_completed(tmp_path):
    results = [("m0", "new", 0.2, 0.01), ("m1", "new", 0.4, 0.03), ("m0", "hot", 0.5, 0.02)]
    first = iteration(tmp_path / "0", accurate=5, results=results)
    run_decide(first, config(), tmp_path / "0")
    document = json.loads((tmp_path / "0/decision.json").read_text())
    only = document["rows"][0]
    assert (document["go"], document["next_stage"], next_stage(None)) == (True, 0, 0)
    assert (only["labelled"], only["failed_labels"], only["train_frames"]) == (1, 1, 7)
    assert only["stopped"] == 1
    assert only["rmse_f_new"] == pytest.approx(0.3)
    assert only["test"] == {"hot": {"rmse_f": 0.5, "rmse_e": 0.02}}
    second = iteration(tmp_path / "1", accurate=10, results=[("m0", "previous", 0.05, 0.0)])
    second = second._replace(previous=tmp_path / "0/decision.json")
    run_decide(second, config(iteration=1), tmp_path / "1")
    document = json.loads((tmp_path / "1/decision.json").read_text())
    assert document["verdict"] == "converged"
    assert document["rows"][0]["rmse_f_after"] == 0.05
    assert [r["verdict"] for r in document["rows"]] == ["continue", "converged"]


def test_a_stage_without_criterion_is_refused():
    with pytest.raises(ConfigError, match="at least one criterion"):
        config({"name": "a", "converge": {"accurate": None}})
