"""The table of a loop, its live view and its pages, from step folders as the steps write them."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from ops.base import Status
from ops.files import write_json
from tests import loop_folders as fake
from workflows import iterations, monitor
from workflows.graph import Node
from workflows.local_run import LocalRun
from workflows.run_folder import RunFolder, StepState, read_states


@pytest.fixture
def run(tmp_path):
    """A run with two finished iterations, and a third that is labelling."""
    folder = RunFolder(tmp_path / "run")
    rows = [fake.row(0, rmse_f_after=0.0604), fake.row(1, verdict="stage converged")]
    fake.iteration(folder.steps, 0, rows[:1])
    fake.iteration(folder.steps, 1, rows)
    decide = folder.steps / "iter-000001-decide/decision.json"
    fake.write(decide, fake.decision(rows, "stage converged", next_stage=1))
    fake.iteration(folder.steps, 2, until="label-g000")
    fake.status(folder.steps / "iter-000002-label-g000", 2500, 0.0, state="running")
    return folder


def plan(folder, extra=()):
    """Write the plan that `read_states` wants."""
    keys = [path.name for path in sorted(folder.steps.iterdir()) if path.is_dir()] + list(extra)
    nodes = [Node(key, "train", {})._asdict() for key in keys]
    prints = dict.fromkeys(keys, "")
    write_json(folder.plan, {"nodes": nodes, "execution": {}, "fingerprints": prints})


def text(renderable, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_rows_are_the_decided_ones_and_the_one_in_progress(run):
    rows = LocalRun(run).rows([])
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert [row["verdict"] for row in rows] == ["continue", "stage converged", None]
    now = rows[2]
    assert (now["stage"], now["stage_name"]) == (1, None)
    assert (now["explored"], now["accurate"], now["lo"]) == (100, 80, 0.05)
    assert (now["labelled"], now["failed_labels"], now["train_frames"]) == (2, 1, 44)
    assert now["phase"] == "label …"


def test_wall_time_counts_parallel_steps_once_and_no_pause(run):
    times = LocalRun(run).rows([])[0]["times"]
    # trainings from 0 to 60 s and from 30 to 90 s; explorations 200-260 s and 300-360 s
    assert times["train"] == 90.0
    assert times["explore"] == 120.0
    assert times["label"] == 60.0


def test_states_overrule_what_lies_in_the_folders(run):
    plan(run)
    states = read_states(run, live=False)  # the labelling was killed
    assert LocalRun(run).rows(states)[-1]["phase"] == "label stopped"


def test_the_stage_has_its_name_before_it_is_decided_about(run):
    config = {"stages": [{"name": "warm"}, {"name": "hot"}]}
    decide = StepState(Node("iter-000002-decide", "decide", config), "waiting", None)
    assert LocalRun(run).rows([decide])[2]["stage_name"] == "hot"


def test_a_decision_being_written_is_no_error(run):
    (run.steps / "iter-000002-select/select.json").write_text("{")
    assert LocalRun(run).rows([])[2].get("accurate") is None


def test_table_fits_a_pod(run):
    lines = text(iterations.iteration_table(LocalRun(run).rows([]))).splitlines()
    assert max(map(len, lines)) <= 100
    first, second, third = (line.split() for line in lines[-3:])
    told = "0 warm 100 80.0 15.0 5.0 2+1 40 61/320 120→60 88 90s 2m 60s"
    assert first == told.split()
    assert second[-2:] == ["stage", "done"]
    assert third[-2:] == ["label", "…"]
    assert third[:2] == ["2", "1"]
    assert not any("\x1b" in line for line in lines)


def test_wide_numbers_still_fit():
    long = fake.row(
        123, stage_name="liquid at 3000 K", explored=123456, labelled=1234, failed_labels=12,
        train_frames=123456, devi_f_mean=1.061, devi_f_max=12.5, rmse_f_new=1.2, rmse_f_after=1.1,
        test={"a": {"rmse_f": 1.234}}, verdict="stage converged",
        times={"train": 86400.0, "explore": 5000.0, "label": 99999.0},
    )  # fmt: skip
    out = text(iterations.iteration_table([long]))
    assert max(map(len, out.splitlines())) <= 100
    for value in ("123456", "1234+12", "1061/12.5k", "1200→1100", "1234", "24.0h", "83m"):
        assert value in out


def test_status_folds_finished_iterations(run):
    plan(run, ["iter-000003-train-m0", "final-train", "report"])
    fake.status(run.steps / "iter-000000-label-g000", 0, 1.0, state="failed", reason="SCF")
    for every, folded in ((False, True), (True, False)):
        console = Console(file=io.StringIO(), width=80)
        iterations.show_status(run, console, every=every)
        out = console.file.getvalue()
        assert ("iter-000001-train-m0" not in out) is folded
        assert ("iter-000003-train-m0" not in out) is folded
        assert "iter-000000-label-g000" in out
        assert "27 steps: " in out
        assert "120→60" in out


def test_current_steps_without_a_loop_are_all():
    states = [StepState(Node(k, "train", {}), "succeeded", None) for k in ("collect-a", "report")]
    assert iterations.current_steps(states) == states


def test_live_view_keeps_within_its_rows(run):
    plan(run, [f"iter-000002-label-g{n:03d}" for n in range(1, 60)])
    states = read_states(run, live=True)
    lines = text(iterations.view(states, LocalRun(run), 20)).splitlines()
    assert len(lines) <= 22
    assert any(line.startswith("iter-000002-label-g000") for line in lines)


def test_watch_ends_with_the_run_and_prints_lines_in_a_pod(run, monkeypatch):
    plan(run)
    looks = iter([True, True, False])
    monkeypatch.setattr(iterations, "is_running", lambda folder: next(looks, False))
    monkeypatch.setattr(iterations, "PAUSE", 0.0)
    console = Console(file=io.StringIO(), width=80)
    states = iterations.watch(run, console)
    out = console.file.getvalue()
    assert {s.state for s in states} == {"succeeded", "interrupted"}
    assert re.search(r"\d\d:\d\d:\d\d  running      iter-000002-label-g000", out)
    assert out.count("it stage") == 2  # the iterations so far, and the last view
    assert out.rstrip().endswith("24 steps: 23 succeeded, 1 interrupted")


def test_a_pause_says_what_to_do(tmp_path):
    def state(key, name, reason):
        status = Status(key, "label", name, reason=reason, kind=name)
        return StepState(Node(key, "label", {}), name, status)

    source = LocalRun(RunFolder(Path("/runs/al")))
    paused = state("iter-000000-label-g000", "paused", "put results into\n/runs/al/inbox")
    out = monitor.failure_report([paused], source)
    assert out == (
        "1 steps: 1 paused\n\nPAUSED iter-000000-label-g000: put results into\n/runs/al/inbox\n\n"
        "when that is done: dpaflow resume /runs/al"
    )
    assert "paused" in text(monitor.table([paused], source))
    failed = state("iter-000000-label-g001", "failed", "disk full")
    both = monitor.failure_report([paused, failed], LocalRun(RunFolder(tmp_path)))
    assert "FAILED iter-000000-label-g001: disk full" in both


def test_pages_are_linked_and_those_taken_back_vanish(run):
    plan(run)
    for number in (0, 1):
        page = run.steps / f"iter-{number:06d}-report/iteration.html"
        page.parent.mkdir()
        page.write_text(f"<body><!--pages-->page {number}</body>")
    stale = run.root / "report/iter-000007.html"
    stale.parent.mkdir()
    stale.write_text("")
    (run.root / "report.html").write_text("<body><!--pages--></body>")
    index = iterations.publish_pages(run)
    assert index == run.root / "report/index.html"
    assert sorted(path.name for path in index.parent.iterdir()) == [
        "index.html", "iter-000000.html", "iter-000001.html",
    ]  # fmt: skip
    for path in (index, index.parent / "iter-000000.html", run.root / "report.html"):
        for link in re.findall(r'href="([^"]+)"', path.read_text()):
            assert (path.parent / link).exists(), (path, link)
    assert 'href="iter-000001.html"' in (index.parent / "iter-000000.html").read_text()
    assert "all criteria" in index.read_text() or "80.0% accurate" in index.read_text()


def test_no_pages_before_the_first_iteration(tmp_path):
    folder = RunFolder(tmp_path)
    folder.steps.mkdir()
    plan(folder, ["init"])
    assert iterations.publish_pages(folder) is None


def test_iterations_that_were_taken_back_are_gone(run):
    """After `--from iter-000000/...` the folders of later iterations may still be there."""
    page = run.steps / "iter-000001-report/iteration.html"
    page.parent.mkdir()
    page.write_text("<body><!--pages--></body>")
    keys = [path.name for path in run.steps.iterdir() if path.name.startswith("iter-000000")]
    nodes = [Node(key, "train", {})._asdict() for key in keys]
    prints = dict.fromkeys(keys, "")
    write_json(run.plan, {"nodes": nodes, "execution": {}, "fingerprints": prints})
    rows = LocalRun(run).rows(read_states(run, live=False))
    assert [row["iteration"] for row in rows] == [0]
    iterations.publish_pages(run)
    assert [path.name for path in (run.root / "report").iterdir()] == ["index.html"]


def test_a_loop_killed_between_two_iterations_is_not_done():
    def states(*keys):
        return [StepState(Node(key, "train", {}), "succeeded", None) for key in keys]

    assert not iterations.is_done(states("iter-000000-decide", "iter-000000-report"))
    assert iterations.is_done(states("iter-000000-decide", "final-train-m0", "report"))
    assert iterations.is_done(states("collect-a", "report"))
    waiting = StepState(Node("report", "report", {}), "waiting", None)
    assert not iterations.is_done([*states("collect-a"), waiting])
