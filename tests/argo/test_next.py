"""What the next workflow of a run takes over: from workflows that are gone, elsewhere, unclear."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpa_core.errors import ConfigError, DataError
from tests.argo import make_golden
from workflows.backends.argo import control
from workflows.backends.argo.advance import following
from workflows.backends.argo.cluster_run import ClusterRun
from workflows.backends.argo.control import plan_next, resume, stop
from workflows.backends.argo.inputs import externalise
from workflows.backends.argo.render import render
from workflows.backends.argo.run import ADVANCE, Run, load_run, plan_run
from workflows.backends.argo.transport import ServerError

EXAMPLE = make_golden.ROOT / "examples" / "concurrent_learning" / "emt.yaml"
GO = {"go": True, "verdict": "go on", "rows": [], "labelled": 3}
Workflow = dict[str, Any]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    pipeline, _ = externalise(make_golden.load(EXAMPLE, tmp_path_factory.mktemp("data")))
    return Run(pipeline, signatures={"s3://bucket/own": "old"})


def ran(manifest: Workflow, *failed: str, phase: str = "Succeeded") -> Workflow:
    """Return a workflow after it ran, as Argo shows it."""
    workflow = copy.deepcopy(manifest)
    nodes = {}
    for template in workflow["spec"]["templates"]:
        key, bad = template["name"], template["name"] in failed
        if "script" not in template:
            continue
        outputs = {"artifacts": template.get("outputs", {}).get("artifacts", [])}
        if key.endswith("-decide"):
            outputs["parameters"] = [{"name": "result", "value": json.dumps(GO)}]
        nodes[key] = {"type": "Pod", "displayName": key, "templateName": key, "id": key,
                      "phase": "Failed" if bad else "Succeeded",
                      "outputs": {} if bad else outputs}  # fmt: skip
    return workflow | {"status": {"phase": phase, "nodes": nodes}}


def series(first: Run, *failed: str) -> tuple[Workflow, Workflow]:
    """Return the workflows of two iterations; steps of the second failed."""
    one = render(first)
    two = following(load_run(one), GO)
    return ran(one), ran(two, *failed, phase="Failed")


def keys(nodes: Any) -> set[str]:
    return {node.key for node in nodes}


class Client:
    """Workflows in memory."""

    def __init__(self, *workflows: Workflow) -> None:
        self.workflows, self.created, self.retried = list(workflows), [], 0
        self.answer: Callable[[], None] = lambda: None
        self.stopped: list[str] = []

    def list(self, _name: str) -> list[Workflow]:
        return self.workflows

    summaries = list

    def create(self, manifest: Workflow) -> None:
        self.created.append(manifest)

    def retry(self, _name: str) -> None:
        self.retried += 1
        self.answer()

    def stop(self, name: str, _message: str) -> Workflow:
        self.stopped.append(name)
        self.answer()
        return next(w for w in self.workflows if w["metadata"]["name"] == name)


def test_iterations_are_not_done_again_when_their_workflows_are_deleted(first: Run) -> None:
    last = "iter-000001-decide"
    one, two = series(first, last)
    for there in ([one, two], [two]):  # with the time Kubernetes deletes the older ones
        planned = plan_next(load_run(two), there)
        assert planned.run.progress.iterations == 2
        assert planned.run.sequence == 3
        assert keys(planned.todo) == {last}
        run = ClusterRun(Client(*there), first.name)  # type: ignore[arg-type]
        waiting = [s.node.key for s in run.refresh() if s.state == "waiting"]
        assert not [key for key in waiting if not key.startswith("iter-000001")]


@pytest.mark.parametrize(("artifacts", "kept"), [("keep", True), ("delete", False)])
def test_results_that_are_deleted_with_their_workflow_are_not_counted_on(
    artifacts: str, *, kept: bool, tmp_path: Path
) -> None:
    """Workflow 001 is gone; 002 took over what it had collected."""
    example = EXAMPLE.parents[1] / "demo" / "pipeline.yaml"
    pipeline, _ = externalise(make_golden.load(example, tmp_path))
    cluster = pipeline.cluster.model_copy(update={"artifacts": artifacts})
    run = Run(pipeline.model_copy(update={"cluster": cluster}), sequence=2)
    two = ran(render(run, {"collect-alloys": plan_run(run)[1]["collect-alloys"]}), "report")
    todo = keys(plan_next(load_run(two), [two]).todo)
    assert ("collect-alloys" in todo) is not kept
    assert "report" in todo


@pytest.mark.parametrize("change", [{"prefix": "elsewhere"}, {"bucket": "another"},
                                    {"repository": "maps/other"}])  # fmt: skip
def test_results_in_another_place_are_not_taken(first: Run, change: dict) -> None:
    one = ran(render(first))
    assert plan_next(first, [one]).done
    cluster = first.pipeline.cluster
    cluster = cluster.model_copy(update={"storage": cluster.storage.model_copy(update=change)})
    moved = replace(first, pipeline=first.pipeline.model_copy(update={"cluster": cluster}))
    planned = plan_next(moved, [one])
    assert planned.done == {}
    assert planned.run.progress.iterations == 1
    assert planned.run.sequence == 2


def test_a_decision_that_cannot_be_read_is_made_again(first: Run) -> None:
    one = ran(render(first))
    one["status"]["nodes"]["iter-000000-decide"]["outputs"].pop("parameters")
    planned = plan_next(first, [one])
    assert "iter-000000-decide" in keys(planned.todo)
    render(planned.run, planned.done)


def test_a_lost_answer_to_a_retry_starts_no_second_workflow(first: Run) -> None:
    one = ran(render(first), ADVANCE, phase="Failed")
    client = Client(one)

    def lost() -> None:
        one["status"]["phase"] = "Running"
        raise ServerError("the connection broke")

    client.answer = lost
    done = resume(ClusterRun(client, first.name))  # type: ignore[arg-type]
    assert (client.retried, client.created, done.workflow) == (1, [], one["metadata"]["name"])


@pytest.mark.parametrize("now", ["old", "new", None])
def test_data_that_changed_since_submission_are_noticed(
    first: Run, now: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ran(render(first), ADVANCE, phase="Failed")
    client = Client(one)

    def look(_pipeline: object, known: list) -> dict[str, str]:
        assert "s3://bucket/own" not in {upload.url for upload in known}
        if now is None:
            raise DataError("no credentials")
        return {"s3://bucket/own": now}

    monkeypatch.setattr(control, "signatures", look)
    resume(ClusterRun(client, first.name))  # type: ignore[arg-type]
    if now != "new":
        assert (client.retried, client.created) == (1, [])
        return
    assert client.retried == 0
    (made,) = client.created
    assert load_run(made).signatures == {"s3://bucket/own": "new"}


def test_stop_meets_a_workflow_that_was_just_being_submitted(
    first: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "SETTLE", 0.0)
    one, two = series(first)
    one["status"]["phase"] = two["status"]["phase"] = "Running"
    client = Client(one)
    client.answer = lambda: client.workflows.__setitem__(slice(1, None), [two])
    assert stop(client, first.name) == two["metadata"]["name"]  # type: ignore[arg-type]
    assert client.stopped == [one["metadata"]["name"], two["metadata"]["name"]]
    for workflow in (one, two):
        workflow["status"]["phase"] = "Failed"
    with pytest.raises(ConfigError, match="not at work"):
        stop(client, first.name)  # type: ignore[arg-type]
