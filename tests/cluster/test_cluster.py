"""What can only be seen on a real cluster; see conftest.py for what they need.

ARGO_SERVER=... ARGO_TOKEN=... python -m pytest tests/cluster -m cluster
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dpa_core.interchange.files import load_model

pytestmark = pytest.mark.cluster
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def small(block, steps):
    """Shorten all trainings in a part of a pipeline."""
    if isinstance(block, dict):
        short = {"numb_steps": steps} if "numb_steps" in block else {}
        return {key: small(value, steps) for key, value in {**block, **short}.items()}
    return [small(item, steps) for item in block] if isinstance(block, list) else block


def example(path, steps):
    return small(yaml.safe_load((EXAMPLES / path).read_text()), steps)


@pytest.fixture
def demo(cluster, monkeypatch):
    """The demo with short trainings on few data."""
    make = [sys.executable, EXAMPLES / "demo" / "make_data.py", "data", "--scale", "0.1"]
    subprocess.run(make, check=True, cwd=cluster.folder, capture_output=True)
    document = example("demo/pipeline.yaml", 40)
    monkeypatch.setenv("DEMO_DATA", str(cluster.folder / "data"))
    return document


def test_the_demo_from_submission_to_its_report(cluster, demo):
    run, path = cluster.write(demo)
    said = cluster.ok("submit", path, "--watch")
    assert "succeeded" in said
    report = cluster.folder / "report.html"
    cluster.ok("download", run, "report", "-o", report)
    assert "<h1>" in report.read_text()
    cluster.ok("download", run, "model", "-o", cluster.folder / "models")
    models = list((cluster.folder / "models").glob("*.safetensors"))
    assert models
    load_model(models[0])
    assert cluster.ok("logs", run, "pretrain-dpa1").count("\n") > 3
    # the same again costs nothing
    assert "done already" in cluster.ok("submit", path)


def test_an_iteration_of_concurrent_learning(cluster, monkeypatch):
    make = [sys.executable, EXAMPLES / "concurrent_learning" / "make_test.py", "test.extxyz"]
    subprocess.run(make, check=True, cwd=cluster.folder, capture_output=True)
    monkeypatch.setenv("EMT_TEST", str(cluster.folder / "test.extxyz"))
    document = example("concurrent_learning/emt.yaml", 40)
    loop = document["concurrent_learning"]
    loop |= {"committee": {"size": 2, "kind": "models"}, "max_iterations": 1}
    del loop["compare"]
    loop["explore"] |= {"steps": 40}
    run, path = cluster.write(document)
    said = cluster.ok("submit", path, "--watch")
    assert "max_iterations after 1 iterations" in said
    first, second = cluster.workflows(run)  # the first submitted the second by itself
    assert [w["status"]["phase"] for w in (first, second)] == ["Succeeded", "Succeeded"]
    cluster.ok("download", run, "model", "-o", cluster.folder / "models")
    assert len(list((cluster.folder / "models").glob("m*.safetensors"))) == 2


def running_pod(core, namespace, workflow, step):
    """The pod of a step that is at work, as Kubernetes knows it."""
    selector = f"workflows.argoproj.io/workflow={workflow}"
    for pod in core.list_namespaced_pod(namespace, label_selector=selector).items:
        name = (pod.metadata.annotations or {}).get("workflows.argoproj.io/node-name", "")
        if name.startswith(f"{workflow}.{step}") and pod.status.phase == "Running":
            return pod.metadata.name
    return None


def test_a_killed_pod_and_going_on(cluster, demo):
    if not os.environ.get("KUBECONFIG") and not Path("~/.kube/config").expanduser().exists():
        pytest.skip("no kubeconfig: nobody to ask for the death of a pod; set KUBECONFIG")
    from kubernetes import client, config

    config.load_kube_config()
    core, namespace = client.CoreV1Api(), cluster.client.context.namespace
    demo["execution"] = {"retries": 0}
    demo["pretrain"]["training"] |= {"numb_steps": 400}
    demo["targets"] = []
    run, path = cluster.write(demo)
    cluster.ok("submit", path, "--no-preflight")
    limit = time.monotonic() + cluster.patience
    while (pod := running_pod(core, namespace, f"{run}-001", "pretrain-dpa1")) is None:
        assert time.monotonic() < limit, cluster("status", run)[1]
        time.sleep(0.5)
    core.delete_namespaced_pod(pod, namespace, grace_period_seconds=0)
    code, said = cluster("watch", run)
    assert (code, "FAILED pretrain-dpa1" in said) == (1, True), said
    (before,) = cluster.workflows(run)
    cluster.ok("resume", run)
    said = cluster.ok("watch", run)
    assert "failed" not in said.rpartition("steps:")[2]
    # what had finished was not done again

    def begun(workflow):
        return {n["displayName"]: n["startedAt"] for n in workflow["status"]["nodes"].values()}

    after = cluster.workflows(run)
    assert len(after) == 1
    collect = "collect-alloys(0)"
    assert begun(after[0])[collect] == begun(before)[collect]
