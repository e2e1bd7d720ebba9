"""Runs on a cluster from end to end: our commands, a small Argo, pods as processes, a real S3."""

import json
import re
import threading
from pathlib import Path

from dpa_core.interchange.files import load_model
from tests.argo_server.desk import TOYS, number, toy, until
from tests.argo_server.faults import Fault
from tests.argo_server.fixtures import SECRET
from tests.argo_server.server import Trouble
from workflows.backends.argo import transport
from workflows.graph import Node


def test_a_pipeline_from_submission_to_its_model(desk):
    desk.server.trouble += [
        Trouble(503, 2, "GET .*/version"),
        Trouble(0, match="POST .*/workflows/dpaflow$", late=True),
    ]
    said = desk.ok("submit", desk.pretraining(), "--watch")
    assert f"{desk.server.url}/workflows/dpaflow/tiny-001" in said
    assert "3 steps: 3 succeeded" in said
    assert not re.search(f"{SECRET}|{desk.server.token}", json.dumps(desk.server.requests))

    assert "3 steps: 3 succeeded" in desk.ok("status", "tiny")
    assert re.search(r"tiny +Succeeded .* 1 workflow\n", desk.ok("list"))
    log = desk.ok("logs", "tiny", "pretrain-small")
    assert "==> tiny pretrain-small (succeeded)" in log
    assert "batch" in log or "step" in log
    assert "is done" in desk("resume", "tiny")[1]
    report = Path(desk.ok("download", "tiny", "report").strip())
    assert "<h1>" in report.read_text()
    model = Path(desk.ok("download", "tiny", "model", "-o", "mine").strip())
    assert sum(x.numel() for x in load_model(model).parameters()) > 10

    # all of it is still known when the workflow is gone from the server
    desk.server.engine.delete("tiny-001")
    assert "3 steps: 3 succeeded" in desk.ok("status", "tiny")
    report.unlink()
    desk.ok("download", "tiny", "report")


def test_a_wrong_setting_is_not_tried_again(desk):
    path = desk.toys(toy("b", fail="data"), toy("c", "b"), toy("d"))
    code, said = desk("submit", path, "--watch", "--no-preflight")
    assert code == 1
    nodes = desk.nodes("toy-001")
    assert "b(1)" not in nodes
    assert nodes["b(0)"]["message"] == "main: Error (exit code 2): b: energy.npy: NaN in frame 3"
    assert (nodes["c"]["phase"], nodes["d"]["phase"]) == ("Omitted", "Succeeded")
    screen = said[said.index("3 steps: 1 waiting, 1 succeeded, 1 failed") :]
    assert len(screen.splitlines()) < 20
    assert "FAILED b: energy.npy: NaN in frame 3" in screen
    assert "  | --- b: attempt 1" in screen
    assert "dpaflow logs toy b" in screen
    assert "give the pipeline file again" in screen
    assert "energy.npy: NaN" in desk.ok("logs", "toy")  # without a step: of those that failed
    assert "FAILED b" in desk("status", "toy")[1]
    code, said = desk("download", "toy", "b")
    assert (code, "step b of run toy has not succeeded" in said) == (2, True)


def test_what_may_pass_is_tried_again(desk):
    """I/O that fails, too little memory, lost pods, and an answer of the server that is lost."""
    desk.server.trouble.append(Trouble(0, match="POST .*/workflows/dpaflow$", late=True))
    desk.server.cluster.faults += [
        Fault("large(*", "oom", below="12Gi", times=None),
        Fault("lost(0)", "delete"),
        Fault("lost(1)", "evict"),
    ]
    calls = str(desk.folder / "calls")
    path = desk.toys(
        toy("a", fail="once", calls=calls), toy("large", seconds=0.5), toy("lost", seconds=0.5)
    )  # fmt: skip
    desk.ok("submit", path, "--watch", "--no-preflight")
    posts = [r for r in desk.server.requests if r[0] == "POST"]
    assert len(posts) == 2  # the second found the workflow of the first
    assert list(desk.server.engine.workflows) == ["toy-001"]
    nodes = desk.nodes("toy-001")
    assert nodes["a(0)"]["outputs"]["exitCode"] == "75"
    assert nodes["a(0)"]["message"].endswith("a: stale file handle")
    assert nodes["a(1)"]["phase"] == "Succeeded"
    assert number(desk, "toy-001", "a") == 1
    assert nodes["large(0)"]["message"] == "main: OOMKilled (exit code 137)"
    mains = [desk.server.engine.pod(f"large({k})").spec["containers"][0] for k in (0, 1)]
    limits = [main["resources"]["limits"]["memory"] for main in mains]
    assert limits == ["8192Mi", "16384Mi"]
    assert [nodes[f"lost({k})"]["phase"] for k in range(3)] == ["Error", "Failed", "Succeeded"]
    assert re.search(r"a +succeeded .*2 attempts", desk.ok("status", "toy"))


def test_a_killed_pod_and_going_on(desk):
    desk.server.cluster.faults += [Fault("b(0)", "kill")]
    calls = desk.folder / "calls"
    steps = toy("a", calls=str(calls)), toy("b", "a", seconds=0.5)
    path = desk.toys(*steps, execution={"retries": 0})
    code, said = desk("submit", path, "--watch", "--no-preflight")
    assert code == 1
    assert "FAILED b: " in said
    assert "memory" in said  # the likely reason, and what to do
    said = desk.ok("resume", "toy")
    assert "workflow toy-001" in said
    assert "Argo tries the steps again that did not succeed" in said
    assert "2 steps: 2 succeeded" in desk.ok("watch", "toy")
    assert number(desk, "toy-001", "b") == 2
    assert "all 2 steps are done already" in desk.ok("submit", path, "--no-preflight")
    # with other settings a new workflow does the rest, and finds what is done where it was left
    said = desk.ok("resume", "toy", "--from", "b", "--set", "report.title=Other")
    assert "1 steps, 1 done by earlier workflows are kept" in said
    assert "2 steps: 2 succeeded" in desk.ok("watch", "toy")
    assert set(desk.nodes("toy-002")) == {"toy-002", "b", "b(0)"}
    assert number(desk, "toy-002", "b") == 2
    assert calls.read_text().count("start") == 1


def test_stop_and_go_on(desk):
    calls = desk.folder / "calls"
    count = Node("a", f"{TOYS}:COUNT", {"value": 12, "seconds": 0.2, "calls": str(calls)})
    path = desk.toys(count, cluster={"workspace": "scratch"})
    desk.ok("submit", path, "--no-preflight")
    assert "toy-001 is at work" in desk("submit", path, "--no-preflight")[1]
    until(lambda: calls.exists() and calls.read_text().count("a ") >= 2)
    assert "1 running" in desk.ok("status", "toy")
    assert "toy-001 is being stopped" in desk.ok("stop", "toy")
    code, said = desk("watch", "toy")
    assert (code, "stopped" in said, "dpaflow resume toy" in said) == (130, True, True)
    assert desk.nodes("toy-001")["a(0)"]["message"].startswith("workflow shutdown")
    assert "not at work" in desk("stop", "toy")[1]
    desk.ok("resume", "toy")
    # the server goes away for a while; the run does not
    desk.monkeypatch.setattr(transport, "WAITS", (0.01, 0.01))
    trouble = [Trouble(0, 4, "GET .*labelSelector"), Trouble(503, 4, "GET ")]
    threading.Timer(1.0, desk.server.trouble.extend, [trouble]).start()
    said = desk.ok("watch", "toy")
    assert "the run goes on; asking again" in said
    assert "1 steps: 1 succeeded" in said
    counted = [int(line.split()[1]) for line in calls.read_text().splitlines()]
    assert counted == sorted(counted)  # it went on where it was, on the volume
    assert number(desk, "toy-001", "a") == 12


def test_a_step_that_cannot_start_says_why(desk):
    faults = [Fault("large(0)", "unschedulable"), Fault("other(0)", "image")]
    desk.server.cluster.faults += faults
    resources = {"large": {"gpu": 2}, "other": {"image": "registry.org/cp2k:2026.1"}}
    path = desk.toys(toy("large"), toy("other"), cluster={"resources": resources})
    desk.ok("submit", path, "--no-preflight")
    until(lambda: all(fault.hit for fault in faults))
    said = desk.ok("status", "toy")
    wanted = "no node can take it: 3 Insufficient nvidia.com/gpu; asked for 2 nvidia.com/gpu"
    assert f"WAITING large: {wanted}" in said
    assert "WAITING other: image registry.org/cp2k:2026.1 cannot be pulled" in said
    assert said.count("  -> ") == 2
    desk.server.cluster.faults.clear()  # a node is free, the image has come
    desk.ok("watch", "toy")


def test_an_iteration_submits_the_next(desk):
    """The pod of `advance` plans, renders and submits; all with the rights of its own account."""
    rights, desk.server.allowed["dpaflow-advance"] = {"get", "create"}, {"get"}
    desk.server.cluster.faults.append(Fault("iter-000001-*", "unschedulable", times=None))
    decide = Node("iter-000000-decide", "tests.argo_server.toys:DECIDE", {})
    with desk.monkeypatch.context() as patch:
        patch.setattr("workflows.revisions.plan", lambda *_: [decide])
        code, said = desk("submit", desk.loop(), "--watch", "--no-preflight")
        assert code == 1
        assert "FAILED advance: the service account of `advance` may not create workflow" in said
        desk.server.allowed["dpaflow-advance"] = rights
        assert "workflow loop-001" in desk.ok("resume", "loop")
    until(lambda: desk.workflow("loop-001")["status"]["phase"] == "Succeeded")
    following = desk.workflow("loop-002")
    labels = following["metadata"]["labels"]
    assert (labels["dpaflow/run"], labels["dpaflow/sequence"]) == ("loop", "2")
    (dag,) = (t["dag"] for t in following["spec"]["templates"] if "dag" in t)
    tasks = {task["name"]: task for task in dag["tasks"]}
    assert all(name.startswith("iter-000001-") for name in tasks if name != "advance")
    train = tasks["iter-000001-train-m0"]["arguments"]["artifacts"]
    assert {a["name"] for a in train} == {"init-collect", "iter-000000-collect",
                                          "iter-000000-train-m0"}  # fmt: skip
    assert all("from" not in a and a["s3"]["key"].endswith("/folder.tgz") for a in train)
    assert re.search(r"loop +Running .* 2 workflows", desk.ok("list"))
    assert "loop-002 is being stopped" in desk.ok("stop", "loop")
