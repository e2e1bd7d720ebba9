"""The stub itself: it does what Argo's documentation says that Argo does."""

import json
import tarfile
import time
from io import BytesIO

import pytest
import yaml

from tests.argo_server.faults import Fault
from tests.argo_server.manifests import script, task, workflow
from tests.argo_server.validate import NotHere, Refused, check

FAILS = "import os, sys; open(os.environ['DPAFLOW_TERMINATION_LOG'], 'w').write('{}'); sys.exit({})"
AGAIN = "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) in [75, 137]"
RETRY = {"limit": "2", "retryPolicy": "Always", "expression": AGAIN}


@pytest.fixture
def run(argo_server):
    """Run a workflow to its end and return it."""

    def run(manifest):
        check(manifest)
        name = argo_server.engine.create(manifest)["metadata"]["name"]
        return end(argo_server, name)

    return run


def end(server, name, patience=30):
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        found = server.engine.workflows[name].snapshot()
        if found["status"]["phase"] in ("Succeeded", "Failed", "Error"):
            return found
        time.sleep(0.02)
    raise TimeoutError(json.dumps(found["status"], indent=1))


def shown(found):
    """Nodes by the name the dashboard shows."""
    return {node["displayName"]: node for node in found["status"]["nodes"].values()}


def artifact(name, path, **more):
    return {"name": name, "path": path, **more}


WRITE = """
import os, pathlib
out = pathlib.Path(os.environ["DPAFLOW_WORK"], "out")
(out / "folder/a").mkdir(parents=True)
(out / "folder/a/b").write_text("x")
(out / "r.json").write_text('{"go": true}\\n')
(out / "p.html").write_text("hi")
"""
READ = """
import os, pathlib
assert pathlib.Path(os.environ["DPAFLOW_IN"], "write/a/b").read_text() == "x"
assert "{{inputs.parameters.got}}" == "True:7"
assert "PYTEST_CURRENT_TEST" not in os.environ
print("read", os.environ["TOKEN"], os.environ["WHERE"])
"""
OUT = "/dpaflow/work/out"
NONE = {"none": {}}
WRITER = script(
    "write", WRITE,
    outputs={
        "artifacts": [
            artifact("folder", f"{OUT}/folder", s3={"key": "k/write/folder.tgz"}),
            artifact("page", f"{OUT}/p.html", archive=NONE, s3={"key": "k/p.html"}),
            artifact("plots", f"{OUT}/folder", archive=NONE, s3={"key": "k/plots"}),
            artifact("none", f"{OUT}/no", optional=True),
        ],
        "parameters": [
            {"name": "result", "valueFrom": {"path": f"{OUT}/r.json", "default": "{}"}},
            {"name": "other", "valueFrom": {"path": f"{OUT}/no", "default": "7"}},
        ],
    },
)  # fmt: skip
KEY = {"secretKeyRef": {"name": "dpaflow-s3", "key": "accessKey"}}
READER = script(
    "read", READ,
    inputs={"artifacts": [artifact("write", "/dpaflow/in/write")], "parameters": [{"name": "got"}]},
    script={"env": [{"name": "TOKEN", "valueFrom": KEY},
                    {"name": "WHERE", "value": "/dpaflow/work"}]},
)  # fmt: skip


def test_results_travel(run, argo_server):
    source = "{{tasks.write.outputs.artifacts.folder}}"
    got = {"name": "got", "value": "True:{{=tasks['write'].outputs.parameters['other']}}"}
    found = run(workflow([WRITER, READER], [
        task("write"),
        task("read", "write", artifacts=[{"name": "write", "from": source}], parameters=[got]),
    ]))  # fmt: skip
    nodes = shown(found)
    assert found["status"]["phase"] == "Succeeded", json.dumps(nodes, indent=1)
    assert nodes["test-001"]["type"] == "DAG"
    assert nodes["write"]["type"] == "Pod"
    assert nodes["test-001"]["children"] == [nodes["write"]["id"]]
    assert nodes["write"]["children"] == [nodes["read"]["id"]]
    outputs = nodes["write"]["outputs"]
    keys = [a["s3"]["key"] for a in outputs["artifacts"]]
    assert keys == ["k/write/folder.tgz", "k/p.html", "k/plots"]
    assert {p["name"]: p["value"] for p in outputs["parameters"]} == {
        "result": '{"go": true}',
        "other": "7",
    }
    store = argo_server.cluster.store
    assert store.keys("k/plots") == ["k/plots/a/b"]
    assert store.get("k/p.html") == b"hi"
    with tarfile.open(fileobj=BytesIO(store.get("k/write/folder.tgz"))) as archive:
        assert archive.getnames() == ["folder", "folder/a", "folder/a/b"]
    log = argo_server.engine.pod("read").log.read_text()
    assert log.startswith("read stub-access ")
    assert not log.rstrip().endswith(" /dpaflow/work")  # it lies where it can be written


def test_a_step_that_fails(run):
    found = run(workflow(
        [script("a", FAILS.format("no such file", 2), retryStrategy=RETRY),
         *map(script, "bcd")],
        [task("a"), task("b", "a"), task("c", "a.Failed"), task("d", "b && c")],
    ))  # fmt: skip
    nodes = shown(found)
    assert {name: node["phase"] for name, node in nodes.items()} == {
        "test-001": "Failed", "a": "Failed", "a(0)": "Failed", "b": "Omitted", "c": "Succeeded",
        "d": "Omitted",
    }  # fmt: skip
    assert nodes["a(0)"]["message"] == "main: Error (exit code 2): no such file"
    assert nodes["a"]["message"] == "retryStrategy.expression evaluated to false"
    assert nodes["a"]["outputs"] == {"exitCode": "2"}
    assert nodes["a"]["type"] == "Retry"


def test_more_memory_after_running_out_of_it(run, argo_server):
    argo_server.cluster.faults.append(Fault("a(*", "oom", below="4Gi", times=None))
    patch = {"memory": "{{=asInt(retries) == 0 ? 1024 : asInt(retries) == 1 ? 2048 : 4096}}Mi"}
    template = script(
        "a", "import time; time.sleep(0.3)", retryStrategy=RETRY,
        script={"resources": {"limits": {"memory": "1Gi", "cpu": "1"}}},
        podSpecPatch=json.dumps({"containers": [{"name": "main", "resources": {"limits": patch}}]}),
    )  # fmt: skip
    found = run(workflow([template], [task("a")]))
    nodes = shown(found)
    assert [nodes[f"a({k})"]["message"] for k in range(3)] == [
        "main: OOMKilled (exit code 137)", "main: OOMKilled (exit code 137)", ""
    ]  # fmt: skip
    assert nodes["a"]["phase"] == found["status"]["phase"] == "Succeeded"
    main = argo_server.engine.pod("a(2)").spec["containers"][0]
    assert main["resources"]["limits"] == {"memory": "4096Mi", "cpu": "1"}


def test_no_more_retries(run, argo_server):
    argo_server.cluster.faults.append(Fault("a(0)", "delete"))
    template = script("a", FAILS.format("", 75), retryStrategy={**RETRY, "limit": "1"})
    nodes = shown(run(workflow([template], [task("a")])))
    assert nodes["a(0)"]["message"] == "pod deleted"
    assert (nodes["a(0)"]["phase"], nodes["a(1)"]["phase"]) == ("Error", "Failed")
    assert "exitCode" not in nodes["a(0)"]["outputs"] if "outputs" in nodes["a(0)"] else True
    assert nodes["a"]["message"] == "No more retries left"


@pytest.mark.parametrize(
    ("kind", "text"),
    [("image", 'ImagePullBackOff: Back-off pulling image "python:3.11"'),
     ("unschedulable", "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu. "
      "preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.")],
)  # fmt: skip
def test_a_pod_that_does_not_start_stays_pending(argo_server, kind, text):
    argo_server.cluster.faults.append(Fault("a", kind))
    limits = {"nvidia.com/gpu": "1"}
    manifest = workflow([script("a", script={"resources": {"limits": limits}})], [task("a")])
    argo_server.engine.create(manifest)
    controller = argo_server.engine.workflows["test-001"]
    limit = time.monotonic() + 10
    while shown(controller.snapshot()).get("a", {}).get("message") != text:
        assert time.monotonic() < limit, controller.snapshot()
        time.sleep(0.01)
    assert shown(controller.snapshot())["a"]["phase"] == "Pending"
    controller.end("Stop")
    found = end(argo_server, "test-001")
    assert found["status"]["message"] == "Stopped with strategy 'Stop'"
    assert shown(found)["a"]["message"] == "workflow shutdown with strategy:  Stop"


def test_deadlines(run):
    slow = "import time; time.sleep(60)"
    template = script("a", slow, activeDeadlineSeconds=1)
    found = run(workflow([template], [task("a")]))
    text = "Pod was active on the node longer than the specified deadline"
    assert shown(found)["a"]["message"] == text
    manifest = workflow([script("a", slow)], [task("a")], activeDeadlineSeconds=1)
    manifest["metadata"]["name"] = "test-002"
    found = run(manifest)
    assert shown(found)["a"]["message"] == "Step exceeded its deadline"


def test_retry_does_only_again_what_failed(run, argo_server):
    argo_server.cluster.faults.append(Fault("b", "kill"))
    found = run(workflow([script("a"), script("b", "import time; time.sleep(0.3)"), script("c")],
                         [task("a"), task("b", "a"), task("c", "b")]))  # fmt: skip
    before = shown(found)
    assert before["b"]["message"] == "main: Error (exit code 137)"
    controller = argo_server.engine.workflows["test-001"]
    controller.retry()
    after = shown(end(argo_server, "test-001"))
    assert {node["phase"] for node in after.values()} == {"Succeeded"}
    assert after["a"] == {**before["a"], "children": after["a"]["children"]}
    assert list(after["a"]["children"]) == [after["b"]["id"]]


FOLDER = "{{tasks.a.outputs.artifacts.folder}}"
SMALL = {"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}
FROM = "spec.templates.0.dag.tasks.1.arguments.artifacts.0.from"


def changed(place, value):
    """A workflow with something else at a place such as "spec.templates.1.name"."""
    manifest = workflow(
        [script("a", outputs={"artifacts": [artifact("folder", "/o")]}),
         script("b", inputs={"artifacts": [artifact("a", "/i")]})],
        [task("a"), task("b", "a", artifacts=[{"name": "a", "from": FOLDER}])],
        volumes=[{"name": "v", "emptyDir": {}}],
    )  # fmt: skip
    item, *names = manifest, *place.split(".")
    for name in names[:-1]:
        item = item[int(name)] if isinstance(item, list) else item.setdefault(name, {})
    if isinstance(item, list):
        item[int(names[-1])] = value
    else:
        item[names[-1]] = value
    return manifest


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        ("metadata.name", "Big", "Invalid value"),
        ("metadata.name", "a" * 64, "63 characters"),
        ("metadata.labels", {"dpaflow/run": "a b"}, "Invalid value"),
        ("spec.entrypoint", "other", "not found"),
        ("spec.colour", "red", "unknown fields"),
        ("spec.templates.1.script.env", [{"name": "X", "value": 1}], "cannot unmarshal"),
        ("spec.templates.1.name", "b", "not unique"),
        ("spec.templates.1.script.resources", {"limits": {"memory": "8 GB"}}, "quantities"),
        ("spec.templates.1.script.resources", SMALL, "less than"),
        ("spec.templates.1.script.volumeMounts", [{"name": "w", "mountPath": "/x"}], "Not found"),
        ("spec.templates.2.script.volumeMounts", [{"name": "v", "mountPath": "/i/"}], "unique"),
        ("spec.templates.1.retryStrategy", {"limit": "1", "expression": "asInt("}, "expression"),
        ("spec.templates.1.script.source", "{{inputs.parameters.x}}", "failed to resolve"),
        ("spec.templates.1.script.source", "{{workflow.parameters.x}}", "failed to resolve"),
        ("spec.templates.0.dag.tasks.0.depends", "b", "cycle"),
        ("spec.templates.0.dag.tasks.1.depends", "x", "depends"),
        ("spec.templates.0.dag.tasks.1.depends", "", "no ancestor"),
        ("spec.templates.0.dag.tasks.1.arguments", {}, "not supplied"),
        (FROM, "{{tasks.a.outputs.artifacts.x}}", "failed to resolve"),
        ("spec.templates.0.dag.tasks.0.arguments", {"parameters": [{"name": "x", "value":
            "{{=tasks['b'].outputs.parameters['y']}}"}]}, "no ancestor"),
        ("spec.templates.0.dag.tasks.0.name", "1a", "digit"),
        ("spec.templates.1.script.source", "x" * 1024**2, "too large"),
    ],
)  # fmt: skip
def test_what_is_refused(place, value, text):
    with pytest.raises(Refused, match=text):
        check(changed(place, value))


def test_what_is_not_in_the_stub_is_not_ignored():
    check(changed("metadata.name", "fine"))
    with pytest.raises(NotHere, match="when"):
        check(changed("spec.templates.0.dag.tasks.1.when", "1 == 1"))


def test_what_is_rendered_of_the_examples_is_taken(root):
    golden = sorted((root / "tests" / "argo" / "golden").glob("*.yaml"))
    assert len(golden) > 4
    for path in golden:
        check(yaml.safe_load(path.read_text()))
