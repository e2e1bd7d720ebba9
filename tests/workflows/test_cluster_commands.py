"""dpaflow submit, status, watch, logs, stop, resume, download, list: against a small Argo.

The workflows really run, as processes on this machine; their steps are toys.
"""

import io
import json
import re
import threading
import time

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tests.argo_server.faults import Fault
from tests.argo_server.fixtures import (  # noqa: F401
    ACCESS,
    BUCKET,
    SECRET,
    argo_server,
    certificate,
    s3_server,
    serve,
)
from workflows import cli, cli_cluster, revisions
from workflows.backends.argo import control, inputs, preflight, watch
from workflows.backends.argo.cluster_run import ClusterRun
from workflows.doctor import Check
from workflows.graph import Node

ADD, PAGE = "tests.workflows.toy_ops:ADD", "tests.workflows.toy_ops:PAGE"
PIPELINE = {
    "name": "My_Alloy",
    "type_map": ["Cu"],
    "models": {"a": {"descriptor": {"type": "dpa1", "sel": 8}}},
    "data": {"known": {"sources": [{"path": "s3://bucket/known"}]}},
    "pretrain": {"data": "known", "training": {"numb_steps": 1}},
    "execution": {"retries": 1, "timeout": 60},
    "cluster": {"resources": {"default": {"memory": "2Gi", "cpu": 1}}},
}


class Scene:
    """A server, a pipeline file, and `dpaflow ...` in this process."""

    def __init__(self, server, folder, steps):
        self.server, self.folder, self.steps = server, folder, steps
        self.calls = folder / "calls"
        self.file = folder / "pipeline.yaml"
        self.file.write_text(yaml.safe_dump(PIPELINE))

    def __call__(self, *arguments, code=0):
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        failed = result.exception
        if failed is not None and not isinstance(failed, SystemExit):
            if not hasattr(failed, "exit_code"):
                raise failed
            assert failed.exit_code == code, str(failed)
            return f"error: {failed}"
        assert result.exit_code == code, result.output
        return result.output

    def called(self):
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line.split()[0] for line in lines if "start" in line]

    def wait(self, phase, name="my-alloy-001", patience=20):
        deadline = time.monotonic() + patience
        while self.phase(name) != phase:
            assert time.monotonic() < deadline, self.phase(name)
            time.sleep(0.05)

    def phase(self, name="my-alloy-001"):
        return self.server.engine.workflows[name].snapshot()["status"]["phase"]


@pytest.fixture
def scene(argo_server, tmp_path, monkeypatch):  # noqa: F811
    """Run my-alloy: steps a and c, then report if wanted; `steps` has settings of each."""
    steps = {"a": {}, "c": {}}

    def plan(pipeline, progress):
        del progress

        def node(key, inputs=None, op=ADD):
            config = {"calls": str(tmp_path / "calls"), **steps[key]}
            return Node(key, op, config, inputs or {})

        nodes = [node("a"), node("c", {"one": "a:number"})]
        return [*nodes, node("report", {"one": "c:number"}, PAGE)] if "report" in steps else nodes

    monkeypatch.setattr(revisions, "plan", plan)
    monkeypatch.setattr(watch, "PAUSE", 0.05)
    monkeypatch.setattr(control, "signatures", lambda *_: {})
    monkeypatch.setenv("ARGO_SERVER", argo_server.url)
    monkeypatch.setenv("ARGO_TOKEN", f"Bearer {argo_server.token}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("DPAFLOW_CONTEXT", "ARGO_NAMESPACE", "ARGO_INSECURE_SKIP_VERIFY"):
        monkeypatch.delenv(name, raising=False)
    return Scene(argo_server, tmp_path, steps)


SUBMIT = ("submit", "pipeline.yaml", "--no-preflight")


def test_from_submit_to_download(scene):
    scene.steps["report"] = {}
    scene.steps["a"] = {"value": 7}
    out = scene(*SUBMIT, "--watch")
    assert "run my-alloy: 3 steps" in out
    assert f"workflow my-alloy-001: {scene.server.url}/workflows/dpaflow/my-alloy-001" in out
    assert "next: dpaflow watch my-alloy" in out
    for key in ("a", "c", "report"):
        assert re.search(rf"\d\d:\d\d:\d\d  running +{key}\b", out)
        assert re.search(rf"\d\d:\d\d:\d\d  succeeded +{key}\b", out)
    assert "3 steps: 3 succeeded" in scene("status", "my-alloy")
    assert re.search(r"my-alloy +Succeeded .* 1 workflow\n", scene("list"))
    assert "--- c: attempt 1" in scene("logs", "my-alloy", "c")
    assert "did you mean report" in scene("logs", "my-alloy", "reprot", code=2)
    assert scene("download", "my-alloy", "report") == "my-alloy/report.html\n"
    assert (scene.folder / "my-alloy/report.html").read_text() == "<html></html>"
    scene("download", "my-alloy", "c", "-o", "there")
    assert (scene.folder / "there/number").read_text() == "7"
    assert "there exists" in scene("download", "my-alloy", "c", "-o", "there", code=2)
    assert "nothing is left to resume" in scene("resume", "my-alloy", code=2)
    assert "all 3 steps are done already" in scene(*SUBMIT)
    assert "is not at work" in scene("stop", "my-alloy", code=2)
    for command in ("status", "stop", "logs", "watch"):
        assert "did you mean my-alloy?" in scene(command, "my-aloy", code=2)
    for command in ("status", "watch"):  # the name as the pipeline's file has it
        assert "3 steps: 3 succeeded" in scene(command, "My_Alloy")
    assert "run my-alloy is not at work" in scene("stop", "My_Alloy", code=2)


def test_a_mistake_is_one_screen_and_resume_keeps_what_is_done(scene):
    scene.steps["c"] = {"fail": "data"}
    out = scene(*SUBMIT, "--watch", code=1)
    screen = out[out.index("2 steps: 1 succeeded, 1 failed\n") :]
    assert len(screen.splitlines()) < 24
    assert "FAILED c: energy.npy: NaN in frame 3\n" in screen
    assert "  | --- c: attempt 1\n" in screen
    assert "  log: dpaflow logs my-alloy c\n" in screen
    assert screen.endswith(
        "give the pipeline file again, as at the start; finished steps are kept\n"
    )
    assert screen.partition("\n\n")[2] in scene("status", "my-alloy")
    assert "NaN in frame 3" in scene("logs", "my-alloy")
    assert "has not succeeded" in scene("download", "my-alloy", "c", code=2)
    scene.steps["c"] = {}
    assert "a new workflow" in scene("resume", "my-alloy")
    assert "2 steps: 2 succeeded" in scene("watch", "my-alloy")
    assert scene.called() == ["a", "c", "c"]
    assert list(scene.server.engine.workflows) == ["my-alloy-001", "my-alloy-002"]


def test_a_step_that_waits_for_the_user_goes_on_with_argos_retry(scene):
    scene.steps["c"] = {"fail": "pause"}
    out = scene(*SUBMIT, "--watch")
    assert "PAUSED c: put the results there\n\nwhen that is done: dpaflow resume my-alloy" in out
    assert re.search(r"c +paused .* put the results there", scene("status", "my-alloy"))
    (scene.folder / "calls.results").touch()
    assert "Argo tries the steps again" in scene("resume", "my-alloy")
    assert "2 steps: 2 succeeded" in scene("watch", "my-alloy")
    assert scene.called() == ["a", "c", "c"]


def test_a_pod_that_cannot_start_is_reported_while_it_waits(scene):
    scene.server.cluster.faults.append(Fault("a(0)", "unschedulable", times=None))
    scene(*SUBMIT)
    deadline = time.monotonic() + 20
    while "WAITING" not in (out := scene("status", "my-alloy")):
        assert time.monotonic() < deadline, out
    assert "WAITING a: no node can take it: " in out
    assert "asked for 1 cpu, 2Gi memory\n" in out
    assert "-> it starts by itself once a node is free" in out
    assert "workflow my-alloy-001 is at work; follow it" in scene(*SUBMIT, code=2)
    assert "is at work" in scene("resume", "my-alloy", code=2)
    assert "my-alloy-001 is being stopped" in scene("stop", "my-alloy", "--now")
    scene.wait("Failed")
    told = scene("watch", "my-alloy", code=130)
    assert "stopped; finished steps are kept, others begin anew (cluster.workspace" in told


def test_changed_settings_from_a_step_on(scene):
    scene.steps["a"] = {"fail": "data"}
    scene(*SUBMIT, "--watch", code=1)
    assert "no such step; there are a, c" in scene("resume", "my-alloy", "--from", "d", code=2)
    change = ("--set", "execution.retries=2")
    assert "--set needs --from" in scene("resume", "my-alloy", *change, code=2)
    out = scene("resume", "my-alloy", "--from", "c", *change)
    assert "run my-alloy: 2 steps; a new workflow: settings changed" in out
    spec = scene.server.engine.workflows["my-alloy-002"].snapshot()["spec"]
    limits = {t["name"]: t["retryStrategy"]["limit"] for t in spec["templates"] if "script" in t}
    assert limits == {"a": "2", "c": "2"}


def test_nothing_is_submitted_where_it_could_not_run(scene, monkeypatch):
    found = [Check("GPU", "error", "no node has one", "ask for gpu: 0"), Check("quota", "ok", "")]
    monkeypatch.setattr(preflight, "preflight", lambda *_, probe: found)
    out = scene("submit", "pipeline.yaml", code=1)
    assert "FAIL  GPU  no node has one  -> ask for gpu: 0" in out
    assert "quota" not in out
    assert "nothing was submitted" in out
    assert scene.server.engine.workflows == {}
    found[0] = found[0]._replace(verdict="warning")
    assert "run my-alloy: 2 steps" in scene("submit", "pipeline.yaml")
    scene("stop", "my-alloy", "--now")


def test_a_terminal_gets_a_live_view(scene):
    scene.server.cluster.faults.append(Fault("a(0)", "image", times=None))
    scene(*SUBMIT)
    run = ClusterRun(cli_cluster.connect(None), "my-alloy")
    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True)
    threading.Timer(0.5, control.stop, (run.client, "my-alloy"), {"now": True}).start()
    assert watch.watch(run, console) == 130
    assert "cannot be pulled" in console.file.getvalue()


def test_render_needs_no_server(scene, monkeypatch):
    monkeypatch.setenv("ARGO_SERVER", "https://127.0.0.1:1")
    data = scene.folder / "frames.xyz"
    data.write_text("1")
    pipeline = yaml.safe_load(scene.file.read_text())
    pipeline["data"]["known"]["sources"] = [{"path": "frames.xyz"}]
    scene.file.write_text(yaml.safe_dump(pipeline))
    out = scene("render", "pipeline.yaml", "-o", "workflow.yaml")
    assert re.search(r"my-alloy-001: 2 pods, \d+ KiB, written to workflow.yaml", out)
    assert re.search(rf"{data} -> s3://dpaflow/dpaflow/inputs/[0-9a-f]{{16}}/frames.xyz", out)
    assert yaml.safe_load((scene.folder / "workflow.yaml").read_text())["kind"] == "Workflow"
    assert "connection refused" in scene("status", "my-alloy", code=1)


def test_local_files_are_copied_to_the_bucket(scene, monkeypatch, s3_server):  # noqa: F811
    import boto3

    monkeypatch.setattr(control, "signatures", inputs.signatures)
    for name, value in (("AWS_ACCESS_KEY_ID", ACCESS), ("AWS_SECRET_ACCESS_KEY", SECRET),
                        ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    data = [scene.folder / "known.xyz", scene.folder / "other.xyz"]
    for path in data:
        path.write_text(path.name)
    pipeline = {**PIPELINE, "data": {"known": {"sources": [{"path": "known.xyz"}]}}}
    pipeline["cluster"] = {"storage": {"bucket": BUCKET, "endpoint": s3_server}}
    scene.file.write_text(yaml.safe_dump(pipeline))
    scene.steps["c"] = {"fail": "data"}
    scene(*SUBMIT, "--watch", code=1)
    change = ("--set", "data.known.sources.0.path=other.xyz")
    scene("resume", "my-alloy", "--from", "c", *change)
    bucket = boto3.resource("s3", endpoint_url=s3_server).Bucket(BUCKET)
    objects = bucket.objects.filter(Prefix="dpaflow/inputs")
    there = {item.key: item.get()["Body"].read() for item in objects}
    kept = {key.rpartition("/")[2]: value for key, value in there.items()}
    assert kept == {"known.xyz": b"known.xyz", "other.xyz": b"other.xyz"}
    workflow = json.dumps(scene.server.engine.workflows["my-alloy-002"].snapshot()["spec"])
    for key in there:
        assert f"s3://{BUCKET}/{key}" in workflow
    assert str(data[1]) not in workflow
    assert SECRET not in workflow
    assert scene.server.token not in workflow
