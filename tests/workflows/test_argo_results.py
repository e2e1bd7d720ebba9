"""Runs on the small Argo give what runs here give; and the tests for a real cluster, on it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from tests.argo_server.faults import Fault

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "iteration", "killed_pod"])
def test_the_tests_for_a_real_cluster(desk, name):
    """They pass on this one: when they fail on a real one, that is no fault of theirs."""
    block = ONE_CORE | {"storage": {"endpoint": desk.s3}}
    (desk.folder / "cluster.yaml").write_text(yaml.safe_dump(block))
    desk.monkeypatch.setenv("DPAFLOW_TEST_CLUSTER", str(desk.folder / "cluster.yaml"))
    if name == "killed_pod":
        desk.monkeypatch.setenv("KUBECONFIG", str(desk.server.kubeconfig(desk.folder / "kube")))
    command = [sys.executable, "-m", "pytest", "-m", "cluster", "-k", name, "tests/cluster"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
