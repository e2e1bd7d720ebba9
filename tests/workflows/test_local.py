"""The local backend with cheap OPs: every way a run can go wrong, and what is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from dpa_core.errors import ConfigError
from ops import base
from ops.files import write_json
from workflows import monitor, run_folder
from workflows.backends import local
from workflows.graph import Node, fingerprints
from workflows.local_run import LocalRun
from workflows.schema import Execution

ADD = "tests.workflows.toy_ops:ADD"
COUNT = "tests.workflows.toy_ops:COUNT"


@pytest.fixture
def toy(tmp_path):
    """Run folder, and a builder of nodes that note their calls."""
    return Toy(tmp_path)


class Toy:
    def __init__(self, tmp_path):
        self.folder = run_folder.RunFolder(tmp_path / "run")
        self.calls = tmp_path / "calls"

    def node(self, key, inputs=None, op=ADD, **config):
        return Node(key, op, {"calls": str(self.calls), **config}, inputs or {})

    def graph(self, **last):
        """a, b -> c (a + b + b + last)"""
        inputs = {"parts": ["a:number", "b:number"], "one": "b:number"}
        return [
            self.node("a", value=1),
            self.node("b", value=2),
            self.node("c", inputs, **last),
        ]

    def run(self, nodes, **execution):
        if self.calls.exists():
            self.calls.unlink()
        return local.run(nodes, Execution(**{"parallel": 2, **execution}), self.folder)

    def called(self):
        if not self.calls.exists():
            return []
        return sorted(x.split()[0] for x in self.calls.read_text().splitlines() if "start" in x)

    def number(self, key):
        return int((self.folder.steps / key / "number").read_text())


def test_results_then_nothing_then_only_what_changed(toy):
    result = toy.run(toy.graph(value=100))
    assert result.succeeded, monitor.failure_report(result.states, LocalRun(toy.folder))
    assert toy.number("c") == 100 + 1 + 2 + 2
    assert toy.called() == ["a", "b", "c"]

    assert toy.run(toy.graph(value=100)).succeeded
    assert toy.called() == []

    assert toy.run(toy.graph(value=200)).succeeded
    assert toy.called() == ["c"]
    assert toy.number("c") == 205


def test_a_failed_step_is_reported_on_one_screen_and_repaired(toy):
    d = toy.node("d", {"one": "c:number"})
    result = toy.run([toy.node("b", value=2), toy.node("c", value=1, fail="data"), d])
    assert [(s.node.key, s.state) for s in result.states] == [
        ("b", "succeeded"), ("c", "failed"), ("d", "waiting"),
    ]  # fmt: skip
    report = monitor.failure_report(result.states, LocalRun(toy.folder))
    assert "FAILED c: energy.npy: NaN in frame 3" in report
    assert f"log: {toy.folder.steps / 'c' / 'step.log'}" in report
    assert report.endswith("give the pipeline file again, as at the start; finished steps are kept")
    assert "Traceback" not in report
    assert len(report.splitlines()) < 20

    assert toy.run([toy.node("b", value=2), toy.node("c", value=1), d]).succeeded
    assert toy.called() == ["c", "d"]
    assert toy.number("d") == 1


class TestPrune:
    """What is deleted before a run, on folders written by hand."""

    @pytest.fixture
    def nodes(self, toy):
        nodes = [*toy.graph(), toy.node("d", {"one": "c:number"}), toy.node("e")]
        for node in nodes:
            self.write(toy, node.key, "succeeded", fingerprints(nodes)[node.key])
        return nodes

    @staticmethod
    def write(toy, key, state, fingerprint):
        outdir, place = toy.folder.steps / key, toy.folder.dflow / local.WORKFLOW / key
        for folder in (outdir, place):
            folder.mkdir(parents=True, exist_ok=True)
        status = base.Status(key, ADD, state, fingerprint=fingerprint)
        write_json(outdir / base.STATUS, status._asdict())
        (place / "phase").write_text(state.capitalize())

    @staticmethod
    def prune(toy, nodes):
        stale = local.prune(nodes, fingerprints(nodes), toy.folder)
        workflow = toy.folder.dflow / local.WORKFLOW
        kept = {path.name for path in workflow.iterdir() if path.is_dir()}
        assert kept == {node.key for node in nodes} - stale
        return sorted(stale), sorted(path.name for path in toy.folder.steps.iterdir())

    def test_all_done(self, toy, nodes):
        assert self.prune(toy, nodes) == ([], ["a", "b", "c", "d", "e"])

    def test_changed_settings(self, toy, nodes):
        nodes[1] = toy.node("b", value=7)
        assert self.prune(toy, nodes) == (["b", "c", "d"], ["a", "e"])

    def test_deleted_result(self, toy, nodes):
        local._remove(toy.folder.steps / "c")
        assert self.prune(toy, nodes) == (["c", "d"], ["a", "b", "e"])

    def test_unfinished_keeps_its_folder_for_the_checkpoint(self, toy, nodes):
        self.write(toy, "c", "running", fingerprints(nodes)["c"])
        assert self.prune(toy, nodes) == (["c", "d"], ["a", "b", "c", "e"])

    def test_unfinished_with_other_settings_does_not(self, toy, nodes):
        self.write(toy, "c", "interrupted", "other")
        assert self.prune(toy, nodes) == (["c", "d"], ["a", "b", "e"])

    def test_dflow_disagrees(self, toy, nodes):
        (toy.folder.dflow / local.WORKFLOW / "c" / "phase").write_text("Running")
        assert self.prune(toy, nodes)[0] == ["c", "d"]

    def test_step_that_the_pipeline_no_longer_has(self, toy, nodes):
        workflow = toy.folder.dflow / local.WORKFLOW
        self.prune(toy, nodes[:4])
        assert not (workflow / "e").exists()


def test_no_more_than_parallel_steps_at_once(toy):
    toy.run([toy.node(f"s{k}", seconds=0.7) for k in range(3)], parallel=2)
    running = most = 0
    events = [line.split() for line in toy.calls.read_text().splitlines()]
    for _, what, _ in sorted(events, key=lambda event: float(event[2])):
        running += 1 if what == "start" else -1
        most = max(most, running)
    assert most == 2


def test_kill_9_in_the_middle_then_resume(toy, tmp_path):
    nodes = [toy.node("a", value=1), toy.node("b", op=COUNT, value=12, seconds=0.3)]
    nodes.append(toy.node("c", {"parts": ["a:number", "b:number"]}))
    process = start(toy, nodes, tmp_path)
    wait_for(lambda: toy.calls.exists() and "b 2" in toy.calls.read_text())
    process.kill()
    process.wait()
    result = toy.run(nodes)  # waits for what the killed run left behind
    assert result.succeeded, monitor.failure_report(result.states, LocalRun(toy.folder))
    assert toy.number("c") == 13
    assert toy.called() in (["c"], ["a", "c"])  # a had perhaps not quite ended
    counted = [int(x.split()[1]) for x in toy.calls.read_text().splitlines() if x[0] == "b"]
    assert counted[0] >= 2  # went on, did not start over
    assert counted[-1] == 11


def test_sigterm_stops_cleanly_and_is_resumable(toy, tmp_path):
    nodes = [toy.node("a", value=1), toy.node("b", {"one": "a:number"}, seconds=30)]
    process = start(toy, nodes, tmp_path)
    wait_for(lambda: "b" in toy.called())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    states = run_folder.read_states(toy.folder, live=False)
    assert [s.state for s in states] == ["succeeded", "interrupted"]
    assert not run_folder.is_running(toy.folder)


def start(toy, nodes, tmp_path):
    (tmp_path / "nodes.json").write_text(json.dumps([node._asdict() for node in nodes]))
    script = Path(__file__).parent / "run_toy.py"
    return subprocess.Popen([sys.executable, script, toy.folder.root, tmp_path / "nodes.json"])


def wait_for(condition, patience=120):  # a busy machine is slow, not wrong
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_step_that_waits_for_the_user(toy):
    nodes = [toy.node("a", value=1), toy.node("b", {"one": "a:number"}, fail="pause")]
    nodes.append(toy.node("c", {"one": "b:number"}))
    result = toy.run(nodes)
    assert [step.state for step in result.states] == ["succeeded", "paused", "waiting"]
    assert result.paused
    assert not result.succeeded
    told = monitor.failure_report(result.states, LocalRun(toy.folder))
    assert "PAUSED b: put the results there" in told
    assert "FAILED" not in told
    Path(f"{toy.calls}.results").touch()
    result = toy.run(nodes)
    assert result.succeeded
    assert not result.paused
    assert toy.called() == ["b", "c"]


def test_second_run_is_refused(toy, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE", 0)
    toy.folder.dflow.mkdir(parents=True)
    (toy.folder.dflow / "owner").write_text("4711")
    with FileLock(toy.folder.dflow / "lock"):
        assert run_folder.is_running(toy.folder)
        with pytest.raises(ConfigError, match="is being run by process 4711; watch it with"):
            toy.run(toy.graph())
    assert not run_folder.is_running(toy.folder)


def test_a_step_that_dflow_could_not_start_is_failed(toy):
    nodes = [toy.node("a")]
    place = toy.folder.dflow / local.WORKFLOW / "a"
    place.mkdir(parents=True)
    (place / "phase").write_text("Failed")
    (place / "log.txt").write_text("ModuleNotFoundError: No module named 'dflow'\n")
    plan = {"nodes": [n._asdict() for n in nodes], "fingerprints": {"a": "f"}}
    toy.folder.plan.write_text(json.dumps(plan))
    state = run_folder.read_states(toy.folder, live=False)[0]
    assert state.state == "failed"
    assert "did not start: ModuleNotFoundError" in state.status.reason


def test_dflow_settings_of_the_user_do_not_leak_in(toy, monkeypatch):
    monkeypatch.setenv("DFLOW_MODE", "default")
    monkeypatch.setenv("DFLOW_TOKEN", "secret")
    monkeypatch.setenv("DFLOW_DEBUG_COPY_METHOD", "copy")
    environment = local._environment(toy.folder, Execution(threads=3))
    assert environment["DFLOW_MODE"] == "debug"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "secret" not in environment.values()
    assert "DFLOW_DEBUG_COPY_METHOD" not in environment
    assert os.environ["DFLOW_MODE"] == "default"


def test_not_a_run(tmp_path):
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        run_folder.read_states(run_folder.RunFolder(tmp_path), live=False)
