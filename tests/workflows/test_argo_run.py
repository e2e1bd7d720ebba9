"""Runs on a cluster from end to end: our commands, a small Argo, pods as processes, a real S3."""

import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from safetensors import safe_open

from dpa_core.interchange.native import load_model
from tests.argo_server.faults import Fault
from tests.argo_server.fixtures import (  # noqa: F401
    ACCESS,
    SECRET,
    certificate,
    s3_server,
    serve,
)
from tests.argo_server.server import Trouble
from workflows import cli
from workflows.backends.argo import transport, watch
from workflows.graph import Node

SMALL = {
    "descriptor": {
        "type": "dpa1", "rcut": 3.0, "rcut_smth": 0.5, "sel": 20, "neuron": [2, 4],
        "axis_neuron": 2, "attn_layer": 0,
    },
    "fitting_net": {"neuron": [4]},
}  # fmt: skip
TRAINING = {"training_data": {"batch_size": 2}, "numb_steps": 3}
TOYS = "tests.workflows.toy_ops"


class Desk:
    """A user at a terminal, and the cluster that their commands talk to."""

    def __init__(self, server, s3, folder, capsys, monkeypatch):
        self.server, self.s3, self.folder = server, s3, folder
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def write(self, **blocks):
        """Write a pipeline with data, and return its path."""
        document = {
            "type_map": ["Cu"],
            "models": {"small": SMALL},
            "execution": {"retries": 2},
            "cluster": {"storage": {"endpoint": self.s3}},
            **blocks,
        }
        path = self.folder / f"{document['name']}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return str(path)

    def data(self, name="cu.extxyz", count=8):
        """Write labelled frames."""
        frames = []
        for seed in range(count):
            atoms = bulk("Cu", cubic=True)
            atoms.rattle(0.1, seed=seed)
            atoms.calc = EMT()
            atoms.get_forces()
            atoms.get_stress()
            frames.append(atoms)
        write(self.folder / name, frames)
        return name

    def pretraining(self, **blocks):
        """A pipeline of four steps."""
        known = {"sources": [{"path": self.data()}], "split": {"test": 0.25}}
        return self.write(**{
            "name": "tiny", "data": {"known": known},
            "pretrain": {"data": "known", "training": TRAINING}, **blocks,
        })  # fmt: skip

    def loop(self, **blocks):
        """A pipeline of two iterations from nothing but a crystal."""
        crystal = {"type": "generate", "lattice": "fcc", "element": "Cu", "cell": "cubic",
                   "rattle": 0.1, "count": 3}  # fmt: skip
        loop = {
            "start": "scratch", "init": {"structures": ["start"]}, "max_iterations": 2,
            "committee": {"size": 2, "kind": "heads"},
            "train": {"strategy": "last", "training": TRAINING},
            "structures": {"start": crystal}, "stages": [{"structures": ["start"]}],
            "explore": {"type": "ase", "steps": 4, "trj_freq": 2, "temperatures": [300]},
            "select": {"lo": 1e-4, "hi": 1000, "max_candidates": 2},
            "label": {"labeler": {"type": "ase", "calculator": "emt"}, "group_size": 4},
        }  # fmt: skip
        return self.write(**{"name": "loop", "concurrent_learning": loop, **blocks})

    def toys(self, nodes):
        """Let pipelines plan cheap steps; and return one. Pods do not know the difference."""
        self.monkeypatch.setattr("workflows.revisions.plan", lambda *_: nodes)
        return self.pretraining(name="toy")

    def __call__(self, *arguments):
        """Give a command; return its exit code and what it said."""
        self.monkeypatch.setattr(sys, "argv", ["dpaflow", *map(str, arguments)])
        self.capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = self.capsys.readouterr()
        return code, said.out + said.err

    def ok(self, *arguments):
        code, text = self(*arguments)
        assert code == 0, text
        return text

    def workflow(self, name):
        return self.server.engine.workflows[name].snapshot()

    def nodes(self, name):
        return {n["displayName"]: n for n in self.workflow(name)["status"]["nodes"].values()}


@pytest.fixture
def desk(serve, s3_server, tmp_path, monkeypatch, capsys):  # noqa: F811
    server = serve(s3=s3_server)
    for name in [n for n in os.environ if n.startswith(("ARGO_", "AWS_", "DPAFLOW_", "KUBE"))]:
        monkeypatch.delenv(name)
    environment = {
        "ARGO_SERVER": server.url, "ARGO_TOKEN": server.token,
        "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "DPAFLOW_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(watch, "PAUSE", 0.1)
    monkeypatch.chdir(tmp_path)
    return Desk(server, s3_server, tmp_path, capsys, monkeypatch)


def test_a_pipeline_from_submission_to_its_model(desk):
    desk.server.trouble += [
        Trouble(503, 2, "GET .*/version"),
        Trouble(0, match="POST .*/workflows/dpaflow$", late=True),
    ]
    said = desk.ok("submit", desk.pretraining(), "--watch")
    assert f"{desk.server.url}/workflows/dpaflow/tiny-001" in said
    assert "4 steps: 4 succeeded" in said
    assert not re.search(f"{SECRET}|{desk.server.token}", json.dumps(desk.server.requests))

    assert "4 steps: 4 succeeded" in desk.ok("status", "tiny")
    assert re.search(r"tiny +Succeeded .* 1 workflow\n", desk.ok("list"))
    log = desk.ok("logs", "tiny", "pretrain-small")
    assert "==> tiny pretrain-small (succeeded)" in log
    assert "batch" in log or "step" in log
    assert "is done" in desk("resume", "tiny")[1]
    report = Path(desk.ok("download", "tiny", "report").strip())
    assert "<h1>" in report.read_text()
    model = Path(desk.ok("download", "tiny", "model", "-o", "mine").strip())
    assert load_model(model).type_map == ("Cu",) or load_model(model) is not None

    # the rest of the steps is taken from where the first workflow left it
    said = desk.ok("resume", "tiny", "--from", "report", "--set", "report.title=Other")
    assert "1 steps, 3 done by earlier workflows are kept" in said
    said = desk.ok("watch", "tiny")
    assert set(desk.nodes("tiny-002")) == {"tiny-002", "report", "report(0)"}
    assert "4 steps: 4 succeeded" in said
    report.unlink()
    desk.ok("download", "tiny", "report")
    assert "Other" in report.read_text()
    # so it is after the workflows are gone from the server
    for name in ("tiny-001", "tiny-002"):
        desk.server.engine.delete(name)
    assert "4 steps: 4 succeeded" in desk.ok("status", "tiny")
    assert "tiny  " in desk.ok("list")


def toy(key, *above, **config):
    """A step that adds the numbers of other steps."""
    parts = [f"{name}:number" for name in above]
    return Node(key, f"{TOYS}:ADD", {"value": 1, **config}, {"parts": parts} if parts else {})


def number(desk, name, key):
    """The number that a step came to."""
    artifacts = {a["name"]: a for a in desk.nodes(name)[key]["outputs"]["artifacts"]}
    content = desk.server.cluster.store.get(artifacts["folder"]["s3"]["key"])
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        return int(archive.extractfile("folder/number").read())


def test_a_wrong_setting_is_not_tried_again(desk):
    path = desk.toys([toy("a"), toy("b", "a", fail="data"), toy("c", "b"), toy("d", "a")])
    code, said = desk("submit", path, "--watch", "--no-preflight")
    assert code == 1
    nodes = desk.nodes("toy-001")
    assert "b(1)" not in nodes
    assert nodes["b(0)"]["message"] == "main: Error (exit code 2): b: energy.npy: NaN in frame 3"
    assert (nodes["c"]["phase"], nodes["d"]["phase"]) == ("Omitted", "Succeeded")
    screen = said[said.index("4 steps: 1 waiting, 2 succeeded, 1 failed") :]
    assert len(screen.splitlines()) < 20
    assert "FAILED b: energy.npy: NaN in frame 3" in screen
    assert "  | " in screen
    assert "--- b: attempt 1" in screen
    assert "dpaflow logs toy b" in screen
    assert "dpaflow resume toy" in screen
    assert "energy.npy: NaN" in desk.ok("logs", "toy")  # without a step: of those that failed
    assert "FAILED b" in desk("status", "toy")[1]
    code, said = desk("download", "toy", "b")
    assert (code, "step b of run toy has not succeeded" in said) == (2, True)


def test_what_may_pass_is_tried_again(desk):
    calls = str(desk.folder / "calls")
    path = desk.toys([toy("a", fail="once", calls=calls), toy("b", "a")])
    desk.server.trouble.append(Trouble(0, match="POST .*/workflows/dpaflow$", late=True))
    desk.ok("submit", path, "--watch", "--no-preflight")
    posts = [r for r in desk.server.requests if r[0] == "POST"]
    assert len(posts) == 2  # the first answer was lost, the second request found the workflow
    assert list(desk.server.engine.workflows) == ["toy-001"]
    nodes = desk.nodes("toy-001")
    assert nodes["a(0)"]["outputs"]["exitCode"] == "75"
    assert nodes["a(0)"]["message"].endswith("a: stale file handle")
    assert nodes["a(1)"]["phase"] == "Succeeded"
    assert number(desk, "toy-001", "b") == 2
    assert "2 attempts" in desk.ok("status", "toy")


def test_out_of_memory_then_with_more(desk):
    desk.server.cluster.faults += [Fault("a(*", "oom", below="12Gi", times=None)]
    path = desk.toys([toy("a", seconds=0.5)])
    desk.ok("submit", path, "--watch", "--no-preflight")
    nodes = desk.nodes("toy-001")
    assert nodes["a(0)"]["message"] == "main: OOMKilled (exit code 137)"
    (first, second) = (desk.server.engine.pod(f"a({k})").spec["containers"][0] for k in (0, 1))
    limits = [pod["resources"]["limits"]["memory"] for pod in (first, second)]
    assert limits == ["8192Mi", "16384Mi"]
    assert "a(2)" not in nodes


def test_a_killed_pod_and_going_on(desk):
    desk.server.cluster.faults += [Fault("b(0)", "kill")]
    calls = desk.folder / "calls"
    path = desk.toys([toy("a", calls=str(calls)), toy("b", "a", seconds=0.5), toy("c", "b")])
    text = Path(path).read_text().replace("retries: 2", "retries: 0")
    Path(path).write_text(text)
    code, said = desk("submit", path, "--watch", "--no-preflight")
    assert code == 1
    assert "FAILED b: " in said
    assert "memory" in said  # the likely reason, and what to do
    said = desk.ok("resume", "toy")
    assert "workflow toy-001" in said
    assert "Argo tries the steps again that did not succeed" in said
    assert "3 steps: 3 succeeded" in desk.ok("watch", "toy")
    assert calls.read_text().count("start") == 1
    assert number(desk, "toy-001", "c") == 3


def test_a_lost_pod_is_replaced(desk):
    desk.server.cluster.faults += [Fault("a(0)", "delete"), Fault("a(1)", "evict")]
    desk.ok("submit", desk.toys([toy("a", seconds=0.5)]), "--watch", "--no-preflight")
    nodes = desk.nodes("toy-001")
    assert [nodes[f"a({k})"]["phase"] for k in range(3)] == ["Error", "Failed", "Succeeded"]


def until(condition, patience=60):
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_stop_and_go_on(desk):
    calls = desk.folder / "calls"
    count = Node("a", f"{TOYS}:COUNT", {"value": 8, "seconds": 0.3, "calls": str(calls)})
    path = desk.toys([count, toy("b", "a")])
    text = Path(path).read_text()
    Path(path).write_text(text.replace("cluster:", "cluster:\n  workspace: scratch"))
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
    desk.ok("watch", "toy")
    counted = [int(line.split()[1]) for line in calls.read_text().splitlines()]
    assert counted == sorted(counted)  # it went on where it was, on the volume
    assert number(desk, "toy-001", "b") == 9


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("image", "image dpaflow:0.1.0 cannot be pulled"),
        ("unschedulable", "no node can take it: 3 Insufficient nvidia.com/gpu; asked for 2 "),
    ],
)
def test_a_step_that_cannot_start_says_why(desk, kind, told):
    fault = Fault("b(0)", kind)
    desk.server.cluster.faults.append(fault)
    path = desk.toys([toy("a"), toy("b", "a")])
    document = yaml.safe_load(Path(path).read_text())
    document["cluster"]["resources"] = {"b": {"gpu": 2}}
    Path(path).write_text(yaml.safe_dump(document))
    desk.ok("submit", path, "--no-preflight")
    until(lambda: fault.hit)
    said = desk.ok("status", "toy")
    assert f"WAITING b: {told}" in said
    assert "  -> " in said
    desk.server.cluster.faults.clear()  # the image has come, a node is free
    desk.ok("watch", "toy")


def test_the_server_goes_away_while_a_run_is_watched(desk):
    path = desk.toys([toy("a", seconds=3), toy("b", "a")])
    desk.monkeypatch.setattr(transport, "WAITS", (0.01, 0.01))
    desk.ok("submit", path, "--no-preflight")
    trouble = [Trouble(0, 4, "GET .*labelSelector"), Trouble(503, 4, "GET ")]
    threading.Timer(1.5, desk.server.trouble.extend, [trouble]).start()
    said = desk.ok("watch", "toy")
    assert "the run goes on; asking again" in said
    assert "2 steps: 2 succeeded" in said


def test_an_iteration_submits_the_next(desk):
    """The pod of `advance` plans, renders and submits; all with the rights of its own account."""
    path = desk.loop()
    desk.server.cluster.faults.append(Fault("iter-000001-*", "unschedulable", times=None))
    decide = Node("iter-000000-decide", "tests.argo_server.toys:DECIDE", {})
    with desk.monkeypatch.context() as patch:
        patch.setattr("workflows.revisions.plan", lambda *_: [toy("a"), decide])
        desk.ok("submit", path, "--no-preflight")
    until(lambda: desk.workflow("loop-001")["status"]["phase"] == "Succeeded")
    assert desk.nodes("loop-001")["advance(0)"]["phase"] == "Succeeded"
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


def test_a_next_iteration_that_may_not_be_submitted(desk):
    desk.server.allowed["dpaflow-advance"] = {"get"}
    decide = Node("iter-000000-decide", "tests.argo_server.toys:DECIDE", {})
    with desk.monkeypatch.context() as patch:
        patch.setattr("workflows.revisions.plan", lambda *_: [toy("a"), decide])
        code, said = desk("submit", desk.loop(), "--watch", "--no-preflight")
    assert code == 1
    assert "FAILED advance: the service account of `advance` may not create workflow" in said


def weights(path):
    """All tensors of a model."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def run_here(path, out):
    """Run a pipeline on this machine, without a cluster."""
    command = [sys.executable, "-m", "workflows.cli", "run", path, "--out", out]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def assert_same_models(ours, theirs):
    found, wanted = weights(ours), weights(theirs)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


ONE_CORE = {"resources": {"default": {"cpu": "1"}}}


@pytest.mark.slow
def test_a_pipeline_gives_the_same_model_as_here(desk):
    storage = {"storage": {"endpoint": desk.s3}}
    path = desk.pretraining(cluster=ONE_CORE | storage)
    desk.ok("submit", path, "--watch")
    desk.ok("download", "tiny", "pretrain-small")
    here = run_here(path, desk.folder / "here")
    model = "pretrain-small/model.safetensors"
    assert_same_models(desk.folder / "tiny" / model, here / "steps" / model)


@pytest.mark.slow
def test_a_loop_with_a_killed_pod_gives_the_same_models_as_here(desk):
    storage = {"storage": {"endpoint": desk.s3}}
    desk.server.cluster.faults += [
        Fault("iter-000000-train-m0(0)", "kill", after=1.0),
        Fault("iter-000001-explore-p0(*", "delete", after=1.0, times=1),
    ]
    path = desk.loop(cluster=ONE_CORE | storage, execution={"retries": 0})
    code, said = desk("submit", path, "--watch")
    assert (code, "FAILED iter-000000-train-m0" in said) == (1, True)
    desk.ok("resume", "loop")
    code, said = desk("watch", "loop")
    assert (code, "FAILED iter-000001-explore-p0" in said) == (1, True)
    desk.ok("resume", "loop")
    said = desk.ok("watch", "loop")
    assert "max_iterations after 2 iterations and 4 labels" in said
    assert "24 steps: 24 succeeded" in said
    assert list(desk.server.engine.workflows) == ["loop-001", "loop-002", "loop-003"]
    desk.ok("download", "loop", "model", "-o", "models")
    here = run_here(path, desk.folder / "here")
    assert_same_models(desk.folder / "models/m0.safetensors", here / "models/m0.safetensors")
    report = Path(desk.ok("download", "loop", "report").strip()).read_text()
    assert "max_iterations" in report or "stage-0" in report
    # more iterations, with changed settings from a step on: one more workflow, the rest is kept
    desk.ok("resume", "loop", "--from", "iter-000001/decide", "--set",
            "concurrent_learning.max_iterations=3")  # fmt: skip
    assert "3 iterations" in desk.ok("watch", "loop")
