"""States and reasons from the status of workflows, in the words of Argo and Kubernetes."""

import base64
import gzip
import io
import json
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests import loop_folders as fake
from workflows.backends.argo import watch as watch_module
from workflows.backends.argo.client import unpacked
from workflows.backends.argo.cluster_run import ClusterRun
from workflows.backends.argo.context import Context
from workflows.backends.argo.reasons import ADVICE, advise, explain
from workflows.backends.argo.states import (
    attempts,
    decided_by,
    decisions,
    finished,
    pod_name,
    read_states,
)
from workflows.backends.argo.transport import ServerError
from workflows.graph import Node
from workflows.schema_cluster import Cluster, Resources

TEMPLATE = {
    "name": "train-m0",
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
    "activeDeadlineSeconds": 7500,
    "podSpecPatch": '{"containers": [{"name": "main", "resources": {"limits": {"memory": '
                    '"{{=asInt(retries) == 0 ? 8192 : asInt(retries) == 1 ? 16384 : 20000}}Mi"'
                    "}}}]}",
    "script": {"image": "registry/dpaflow:0.1.0", "resources": {"limits": {
        "cpu": "16", "memory": "8Gi", "nvidia.com/gpu": "4", "ephemeral-storage": "20Gi"}}},
}  # fmt: skip


def artifacts(key, fingerprint, name="folder"):
    return [{"name": name, "s3": {"key": f"dpaflow/al/{key}/{fingerprint}/folder.tgz"}}]


def step(key, *phases, fingerprint=None, result=None, message="", code=None, begin=0):
    """Nodes of a step, as Argo 3.6 writes them: a Retry with a pod for each phase."""
    outputs = {}
    if fingerprint:
        outputs["artifacts"] = artifacts(key, fingerprint)
    if result is not None:
        outputs["parameters"] = [{"name": "result", "value": json.dumps(result)}]
    started = f"2026-05-01T10:{begin:02d}:00Z"
    ended = f"2026-05-01T10:{begin + 1:02d}:30Z"
    nodes, ids = {}, []
    for number, phase in enumerate(phases):
        ident = f"al-001-{abs(hash((key, number)))}"
        ids.append(ident)
        last = number == len(phases) - 1
        nodes[ident] = {
            "id": ident, "name": f"al-001.{key}({number})", "displayName": f"{key}({number})",
            "type": "Pod", "templateName": key, "phase": phase, "startedAt": started,
            "message": message if last else "main: Error (exit code 75): stale file handle",
            "outputs": {**(outputs if phase == "Succeeded" else {}),
                        **({"exitCode": str(code)} if code is not None and last else {})},
        }  # fmt: skip
        if phase not in ("Pending", "Running"):
            nodes[ident]["finishedAt"] = ended
    going = phases[-1] in ("Pending", "Running")
    phase = "Running" if going else phases[-1]
    nodes[f"al-001-{key}"] = {
        "id": f"al-001-{key}", "name": f"al-001.{key}", "displayName": key, "type": "Retry",
        "templateName": key, "phase": phase, "startedAt": started, "children": ids,
        "outputs": outputs if phase == "Succeeded" else {},
        "message": "" if going or phase == "Succeeded" else "No more retries left",
    }  # fmt: skip
    if not going:
        nodes[f"al-001-{key}"]["finishedAt"] = ended
    return nodes


def workflow(*steps, phase="Running", number=1, templates=()):
    name = f"al-{number:03d}"
    nodes = {name: {"id": name, "displayName": name, "type": "DAG", "phase": phase}}
    for found in steps:
        nodes |= found
    return {"metadata": {"name": name}, "spec": {"templates": [TEMPLATE, *templates]},
            "status": {"phase": phase, "nodes": nodes}}  # fmt: skip


def plan(*keys):
    return [Node(key, "train", {}) for key in keys], {key: f"{key}-print" for key in keys}


def states(found, *workflows):
    return {s.node.key: s for s in read_states(*found, workflows)}


def test_steps_of_one_workflow():
    made = workflow(
        step("a", "Succeeded", fingerprint="a-print"),
        step("b", "Failed", "Failed", code=2, message="Error (exit code 2): b: no such file x"),
        step("c", "Failed", code=76, message="main: Error (exit code 76): put results\n  into x"),
        step("d", "Failed", "Running"), step("e", "Failed"), step("g", "Error", code=143,
             message="workflow shutdown with strategy:  Stop"),
        phase="Running",
    )  # fmt: skip
    retry = made["status"]["nodes"]["al-001-e"]
    retry |= {"phase": "Running", "message": ""}
    omitted = {"displayName": "h", "type": "Skipped", "phase": "Omitted", "templateName": "h"}
    made["status"]["nodes"]["al-001-9"] = omitted
    found = states(plan("a", "b", "c", "d", "e", "f", "g", "h"), made)
    assert {key: s.state for key, s in found.items()} == {
        "a": "succeeded", "b": "failed", "c": "paused", "d": "running", "e": "running",
        "f": "waiting", "g": "interrupted", "h": "waiting",
    }  # fmt: skip
    b = found["b"].status
    assert (b.attempts, b.exit_code, b.kind) == (2, 2, "config")
    assert b.reason == "no such file x"
    assert b.elapsed == 90.0
    assert found["c"].status.reason == "put results\n  into x"
    assert found["e"].status.reason.startswith("attempt 2 follows: ")
    made["status"]["phase"] = "Failed"
    assert states(plan("d"), made)["d"].state == "interrupted"


def test_a_step_counts_if_any_workflow_finished_it_with_the_right_settings():
    first = workflow(
        step("a", "Succeeded", fingerprint="a-print"),
        step("b", "Succeeded", fingerprint="old"),
        step("c", "Failed", code=1, message="Error (exit code 1): bug"), phase="Failed",
    )  # fmt: skip
    second = workflow(step("b", "Running"), number=2)
    found = states(plan("a", "b", "c"), first, second)
    assert [found[k].state for k in "abc"] == ["succeeded", "running", "waiting"]
    assert finished([first, second]) == {"a": "a-print", "b": "old"}
    third = workflow(step("b", "Succeeded", fingerprint="b-print"), number=3)
    assert finished([first, second, third]) == {"a": "a-print", "b": "b-print"}


def test_steps_without_retries_are_pods():
    made = workflow(step("a", "Failed", code=1, message="Error (exit code 1): bug"))
    nodes = made["status"]["nodes"]
    del nodes["al-001-a"]
    pod = next(node for node in nodes.values() if node["type"] == "Pod")
    pod["displayName"] = "a"
    assert states(plan("a"), made)["a"].status.reason == "bug"


def test_decisions_and_the_step_that_goes_on():
    go = {"go": True, "verdict": "continue", "rows": []}
    key = "iter-000000-decide"
    made = workflow(step(key, "Succeeded", fingerprint="f", result=go), step("advance", "Failed",
                    code=75, message="Error (exit code 75): 503"), phase="Failed")  # fmt: skip
    assert decisions([made]) == {key: go}
    assert decided_by([made])(key, "f") == go
    assert decided_by([made])(key, "other") is None
    assert states(plan(), made)["advance"].state == "failed"
    made = workflow(step(key, "Succeeded", fingerprint="f", result={}))
    assert decisions([made]) == {}


class LoopClient:
    """Answers what the server has at each look; an error is raised."""

    def __init__(self, *looks):
        self.looks, self.context = list(looks), Context(server="https://argo")

    def list(self, run):
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, Exception):
            raise found
        return found

    def pod_log(self, name, pod, tail):
        return "one\ntwo\n"


def decided(number, *rows, go=True):
    verdict = "continue" if go else "stuck"
    result = {"go": go, "verdict": verdict, "message": "m.", "advice": "try.", "next_stage": 1,
              "labelled": 5 * (number + 1), "rows": list(rows)}  # fmt: skip
    key = f"iter-{number:06d}-decide"
    return step(key, "Succeeded", fingerprint=f"{key}-print", result=result, begin=3)


def loop(*workflows, monkeypatch):
    """A run of two iterations on a server that answers `workflows` one after another."""
    keys = [f"iter-{k:06d}-{name}" for k in (0, 1) for name in ("train-m0", "explore", "decide")]
    run = ClusterRun(LoopClient(*workflows), "al")
    goes_on = SimpleNamespace(goes_on=True)
    monkeypatch.setattr(ClusterRun, "plan", property(lambda self: (goes_on, *plan(*keys))))
    monkeypatch.setattr(watch_module, "PAUSE", 0.0)
    monkeypatch.setattr(watch_module, "HANDOVER", 0.0)
    return run


def iteration(number, *names):
    prints = {name: f"iter-{number:06d}-{name}-print" for name in names}
    return [step(f"iter-{number:06d}-{name}", "Succeeded", fingerprint=prints[name], begin=k)
            for k, name in enumerate(names)]  # fmt: skip


def test_table_of_a_loop_over_two_workflows(monkeypatch):
    row = fake.row(0, rmse_f_after=None)
    first = workflow(*iteration(0, "train-m0", "explore"), decided(0, row), phase="Succeeded")
    second = workflow(*iteration(1, "train-m0"), step("iter-000001-explore", "Running"), number=2)
    run = loop([first, second], monkeypatch=monkeypatch)
    now = run.rows(run.refresh())
    assert [r["iteration"] for r in now] == [0, 1]
    assert (now[1]["verdict"], now[1]["phase"], now[1]["stage"]) == (None, "explore …", 1)
    assert now[0]["times"]["train"] == 90.0
    # only iteration 1 knows the error of iteration 0 after training
    rows = [fake.row(0, rmse_f_after=0.06), fake.row(1, verdict="stuck")]
    second = workflow(*iteration(1, "train-m0", "explore"), decided(1, *rows, go=False), number=2)
    run = loop([first, second], monkeypatch=monkeypatch)
    later = run.rows(run.refresh())
    assert [r["rmse_f_after"] for r in later] == [0.06, rows[1]["rmse_f_after"]]
    assert [r["verdict"] for r in later] == ["continue", "stuck"]


def test_watch_goes_on_over_workflows_and_trouble_of_the_server(monkeypatch):
    row, last = fake.row(0), fake.row(1, verdict="stuck")
    begun = workflow(*iteration(0, "train-m0"))
    first = workflow(*iteration(0, "train-m0", "explore"), decided(0, row), phase="Succeeded")
    second = workflow(*iteration(1, "train-m0", "explore"), decided(1, row, last, go=False),
                      phase="Succeeded", number=2)  # fmt: skip
    away = ServerError("503", 503)
    run = loop([begun], away, away, [first], [first, second], monkeypatch=monkeypatch)
    monkeypatch.setattr(watch_module, "HANDOVER", 60.0)
    ends = property(lambda self: len(self.workflows) == 1)
    monkeypatch.setattr(watch_module, "_goes_on", lambda r: ends.fget(r))
    console = Console(file=io.StringIO(), width=100)
    assert watch_module.watch(run, console) == 1  # stuck
    out = console.file.getvalue()
    assert out.count("the run goes on; asking again") == 1
    assert re.search(r"succeeded +iter-000001-decide", out)
    assert "stuck after 2 iterations and 10 labels: m.\ntry." in out
    assert "dpaflow resume al --from iter-000001/STEP" in out


def test_watch_gives_up_where_asking_again_cannot_help(monkeypatch):
    run = loop([workflow()], ServerError("token", 401), monkeypatch=monkeypatch)
    with pytest.raises(ServerError, match="token"):
        watch_module.watch(run, Console(file=io.StringIO()))


def test_a_workflow_that_ended_without_a_failed_step_says_why(monkeypatch):
    ended = workflow(*iteration(0, "train-m0"), phase="Failed")
    ended["status"]["message"] = "Max duration limit exceeded"
    run = loop([ended], monkeypatch=monkeypatch)
    console = Console(file=io.StringIO(), width=100)
    assert watch_module.watch(run, console) == 1
    assert "al-001 ended (Failed) before all steps were done: Max duration limit exceeded" in (
        console.file.getvalue()
    )


def test_compressed_status():
    plain = workflow(step("a", "Succeeded", fingerprint="a-print"))
    nodes = json.dumps(plain["status"]["nodes"]).encode()
    packed = {
        "phase": "Running",
        "compressedNodes": base64.b64encode(gzip.compress(nodes)).decode(),
    }
    assert finished([unpacked({**plain, "status": packed})]) == {"a": "a-print"}


def test_names_of_pods():
    """As Argo 3.4 and later make them; from the documentation's example of both formats."""
    made = workflow(step("a", "Running"))
    found = attempts(made)["a"]
    found.pod["id"] = "al-001-1233547145"
    assert pod_name(found) == "al-001-a-1233547145"
    made["metadata"]["annotations"] = {"workflows.argoproj.io/pod-name-format": "v1"}
    assert pod_name(found) == "al-001-1233547145"


TOLD = [
    # message, exit code, phase, kind, what the line says
    ("main: Error (exit code 2): train-m0: data.known: no frames", 2, "Failed", "config",
     "data.known: no frames"),
    ("Error (exit code 1)", 1, "Failed", "fatal", "exit code 1 and no message"),
    ("Error (exit code 124): train-m0: still running after 7200 s", 124, "Failed", "timeout",
     "still running after 7200 s"),
    ("OOMKilled (exit code 137)", 137, "Failed", "oom", "out of memory: the limit was 16Gi"),
    ("main: OOMKilled (exit code 137): train-m0: killed", 137, "Failed", "oom", "16Gi"),
    ("Error (exit code 137)", 137, "Failed", "killed", "memory"),
    ("Pod was active on the node longer than the specified deadline", None, "Failed", "deadline",
     "(7500 s)"),
    ("Step exceeded its deadline", None, "Failed", "deadline", "longer than allowed"),
    ("The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi.", None,
     "Failed", "evicted", "low on resource: memory"),
    ("Pod ephemeral local storage usage exceeds the total limit of containers 20Gi.", None,
     "Failed", "evicted", "20Gi"),
    ("Preempted in order to admit critical pod", None, "Failed", "evicted", "Preempted"),
    ("pod deleted", None, "Error", "lost", "went away"),
    ("Pod was terminated in response to imminent node shutdown.", None, "Failed", "lost", "node"),
    ("init: Error (exit code 64): failed to get artifact folder: The specified key does not "
     "exist.", 64, "Error", "artifact", "key does not exist"),
    ("wait: Error (exit code 64): failed to put file: AccessDenied", 64, "Error", "artifact",
     "AccessDenied"),
    ("artifact collect-known failed to load: NoSuchBucket", None, "Error", "artifact",
     "NoSuchBucket"),
    ('ImagePullBackOff: Back-off pulling image "registry/dpaflow:0.1.0"', None, "Pending", "image",
     "image registry/dpaflow:0.1.0 cannot be pulled"),
    ("ErrImagePull: rpc error: code = NotFound desc = not found", None, "Pending", "image",
     "image registry/dpaflow:0.1.0 cannot be pulled: rpc error"),
    ("Unschedulable: 0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 "
     "Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 No victims found.",
     None, "Pending", "unschedulable", "no node can take it: 1 node(s) had untolerated taint "
     "{gpu: yes}, 2 Insufficient nvidia.com/gpu; asked for 4 nvidia.com/gpu, 16 cpu, 8Gi memory, "
     "nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB"),
    ('pods "al-001-train" is forbidden: exceeded quota: gpus, requested: 4, used: 8, limited: 8',
     None, "Pending", "quota", "exceeded quota: gpus"),
    ('CreateContainerConfigError: secret "dpaflow-s3" not found', None, "Pending", "container",
     'secret "dpaflow-s3" not found'),
    ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', None, "Error", "forbidden",
     "violates PodSecurity"),
    ("workflow shutdown with strategy:  Terminate", None, "Failed", "stopped", "stopped"),
    ("ContainerCreating", None, "Pending", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("message", "code", "phase", "kind", "told"), TOLD)
def test_reasons(message, code, phase, kind, told):
    node = {"displayName": "train-m0(1)", "templateName": "train-m0", "phase": phase,
            "message": message,
            "outputs": {} if code is None else {"exitCode": str(code)}}  # fmt: skip
    found, line = explain(node, workflow())
    assert found == kind
    assert told in line
    assert "\n" not in line
    if kind not in ("", "config", "fatal", "stopped", "paused"):
        assert advise(found, "train-m0", "train")
        assert "{" not in advise(found, "train-m0", "train")


def test_every_advice_is_about_settings_that_exist():
    """Names of settings in the advice are those of the schema."""
    text = " ".join(ADVICE.values())
    for name in re.findall(r"cluster\.(\w+)", text):
        assert name in Cluster.model_fields
    for name in re.findall(r"cluster\.resources\.\{op\}\.(\w+)", text):
        assert name in Resources.model_fields
