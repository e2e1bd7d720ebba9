"""The probe: what pods find, for real on this machine, and what is said of those that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ops import probe as inside
from ops.probe import Finding, ProbeRequest, core_limit, look, memory_limit
from tests.argo_server.faults import Fault
from tests.argo_server.fixtures import certificate, s3_server, serve  # noqa: F401
from tests.argo_server.server import ArgoServer
from tests.argo_server.validate import check as check_manifest
from workflows import cli
from workflows.backends.argo import probe
from workflows.backends.argo.context import Context
from workflows.backends.argo.preflight import preflight
from workflows.backends.argo.scene import Scene, set_scene
from workflows.doctor import Check
from workflows.schema import Pipeline, load_pipeline
from workflows.schema_cluster import Cluster

GIB = 2**30


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("data")
    for name in ("unary", "binary", "ternary"):
        (folder / f"{name}.extxyz").write_text("x")
    return load_pipeline(cli.TEMPLATES / "demo.yaml", {"DEMO_DATA": str(folder)})


def with_cluster(pipeline: Pipeline, **cluster: Any) -> Pipeline:
    return pipeline.model_copy(update={"cluster": Cluster.model_validate(cluster)})


# --- in the pod


def request(**changes: Any) -> ProbeRequest:
    values = {"mark": "m", "version": version("dpaflow"), "cpu": 2, "memory": 8 * GIB,
              "disk": 1000.0, **changes}  # fmt: skip
    return ProbeRequest.model_validate(values)


def container(root: Path, memory: str = str(8 * GIB), cpu: str = "200000 100000") -> Path:
    """A file system with the limits of a container."""
    folder = root / inside.CGROUP
    folder.mkdir(parents=True, exist_ok=True)
    (root / "dev" / "shm").mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{memory}\n")
    (folder / "cpu.max").write_text(f"{cpu}\n")
    return root


def found(tmp_path: Path, root: Path, **changes: Any) -> dict[str, Finding]:
    return {f.name: f for f in look(request(**changes), tmp_path / "work", root)}


def test_a_good_pod(tmp_path: Path) -> None:
    result = found(tmp_path, container(tmp_path / "root"))
    result.pop("user")  # whoever runs the tests
    assert {f.verdict for f in result.values()} == {"ok"}
    assert set(result) == {"dpaflow", "torch", "memory", "cpu", "/dev/shm", "scratch"}
    assert "matrix product right to" in result["torch"].found
    assert result["memory"].found == "8 GiB allowed"
    assert result["cpu"].found == "2 cores allowed"


@pytest.mark.parametrize(
    ("changes", "limits", "name", "verdict", "words"),
    [
        ({"version": "9.9"}, {}, "dpaflow", "error", "submitted with 9.9"),
        ({"gpu": 2}, {}, "GPU", "error", "torch sees 0 GPUs, asked for 2"),
        ({"memory": 9.0 * GIB}, {}, "memory", "error", "8 GiB allowed, asked for 9 GiB"),
        ({}, {"memory": "max"}, "memory", "warning", "no limit"),
        ({"cpu": 4}, {}, "cpu", "error", "2 cores allowed, asked for 4"),
        ({}, {"cpu": "max 100000"}, "cpu", "warning", "no limit"),
        ({"shm": 1e18}, {}, "/dev/shm", "error", "asked for"),
        ({"disk": 1e18}, {}, "scratch", "warning", "asked for"),
        ({"reads": "nobody"}, {}, "results", "error", "nothing came"),
    ],
)
def test_what_is_wrong_in_a_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any],
    limits: dict[str, str], name: str, verdict: str, words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("DPAFLOW_IN", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    finding = found(tmp_path, container(tmp_path / "root", **limits), **changes)[name]
    assert finding.verdict == verdict
    assert words in finding.found
    assert finding.advice


def test_limits_of_old_kernels(tmp_path: Path) -> None:
    for name in ("memory", "cpu"):
        (tmp_path / name).mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert (memory_limit(tmp_path), core_limit(tmp_path)) == (GIB, 1.5)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert (memory_limit(tmp_path), core_limit(tmp_path)) == (None, None)


def test_a_device_that_computes_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    right = torch.Tensor.__matmul__

    def wrong(a: Any, b: Any) -> Any:
        return right(a, b) * (1.1 if a.dtype == torch.float32 else 1)

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    finding = found(tmp_path, container(tmp_path / "root"))["torch"]
    assert finding.verdict == "error"
    assert "computes wrongly" in finding.advice


def test_as_a_process(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pod starts; the second one finds what the first has left."""
    source = tmp_path / "script"
    first, second = tmp_path / "first", tmp_path / "second"

    def start(work: Path, into: Path, **changes: Any) -> list[dict[str, Any]]:
        source.write_text(request(**changes).model_dump_json())
        environment = {**os.environ, "DPAFLOW_WORK": str(work), "DPAFLOW_IN": str(into)}
        subprocess.run([sys.executable, "-m", "ops.probe", str(source)], cwd=root, check=True,
                       env=environment, capture_output=True)  # fmt: skip
        return json.loads((work / "out" / "result.json").read_text())

    names = {item["name"] for item in start(first, tmp_path / "none", mark="abc")}
    assert {"dpaflow", "memory", "scratch"} <= names
    (finding,) = start(second, first / "out", mark="abc", reads="folder")
    assert (finding["name"], finding["verdict"]) == ("results", "ok")
    monkeypatch.setenv("DPAFLOW_IN", str(first / "out"))
    (other,) = look(request(mark="other", reads="folder"), second)
    assert (other.verdict, other.found) == ("error", "something else came")


# --- the workflow


def scene_of(server: ArgoServer, pipeline: Pipeline) -> Scene:
    context = Context(server=server.url, token=SecretStr(server.token))
    return set_scene(context, pipeline)


GPU = {"gpu": 1, "image": "gpu-image:1.0", "gpu_type": "NVIDIA-A100", "shm": "1Gi",
       "env_secrets": ["vasp"]}  # fmt: skip


def test_one_pod_for_every_image_and_gpu(demo: Pipeline) -> None:
    pipeline = with_cluster(
        demo, resources={"train": {**GPU, "memory": "64Gi"}, "test": GPU, "report": {"cpu": 1}}
    )
    scene = set_scene(Context(), pipeline)
    kinds = [(p.need.resources.image, p.need.resources.memory) for p in probe.pods(scene)]
    assert kinds == [("gpu-image:1.0", "64Gi"), (None, "8Gi")]
    manifest = probe.manifest(scene)
    check_manifest(manifest)
    templates = {t["name"]: t for t in manifest["spec"]["templates"] if "script" in t}
    assert set(templates) == {"probe-0", "probe-1", "read-back"}
    first = templates["probe-0"]
    assert first["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100"}
    assert first["script"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert first["script"]["envFrom"] == [{"secretRef": {"name": "vasp"}}]
    assert first["script"]["securityContext"]["readOnlyRootFilesystem"] is True
    assert templates["read-back"]["script"]["image"] == "gpu-image:1.0"
    assert manifest["metadata"]["labels"]["dpaflow/run"] == "dpaflow-probe"
    sent = ProbeRequest.model_validate_json(first["script"]["source"])
    assert (sent.gpu, sent.memory, sent.shm) == (1, 64 * GIB, GIB)


def test_names_differ(demo: Pipeline) -> None:
    scene = set_scene(Context(), demo)
    assert probe.manifest(scene)["metadata"]["name"] != probe.manifest(scene)["metadata"]["name"]


def test_it_is_run_and_deleted(
    serve: Any, s3_server: str, demo: Pipeline, root: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """Pods are processes here, the bucket is a real S3 server."""
    server = serve(s3=s3_server)
    monkeypatch.setenv("PYTHONPATH", str(root))
    pipeline = with_cluster(demo, storage={"endpoint": s3_server, "region": "us-east-1"})
    checks = {c.name: c for c in probe.run_probe(scene_of(server, pipeline))}
    pod = "pod dpaflow:0.1.0"
    assert checks[f"{pod}: dpaflow"].verdict == "ok"
    assert checks[f"{pod}: torch"].verdict == "ok"
    assert "written, read back, deleted" in checks[f"{pod}: bucket"].found
    assert checks["next pod: results"].verdict == "ok"
    assert checks["next pod: bucket"].verdict == "ok"
    assert checks["download"] == Check(
        "download", "ok", "results come back through the Argo server"
    )
    assert checks["may delete"].verdict == "ok"
    assert server.engine.workflows == {}
    left = server.cluster.store.keys("")
    assert [key.rpartition("/")[2] for key in left] == ["read-back.tgz"]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "POLL", 0.05)
    monkeypatch.setattr(probe, "PATIENCE", 0.2)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("kind", "wait", "words"),
    [("image", 60.0, "image dpaflow:0.1.0 cannot be pulled"),
     ("unschedulable", 0.5, "not done after 0.5 s: no node can take it: 3 Insufficient memory")],
)  # fmt: skip
def test_pods_that_do_not_start(
    serve: Any, demo: Pipeline, kind: str, wait: float, words: str  # noqa: F811
) -> None:  # fmt: skip
    server = serve()
    server.cluster.faults.append(Fault("probe-0(0)", kind, times=None))
    checks = {c.name: c for c in probe.run_probe(scene_of(server, demo), wait)}
    check = checks["pod dpaflow:0.1.0"]
    assert check.verdict == "error"
    assert words in check.found
    assert "--wait 1800" in check.advice
    assert checks["next pod"].verdict == "unknown"
    assert checks["may delete"].verdict == "ok"
    assert server.engine.workflows == {}


@pytest.mark.usefixtures("hasty")
def test_a_secret_is_missing(serve: Any, demo: Pipeline) -> None:  # noqa: F811
    server = serve()
    server.cluster.secrets.clear()
    checks = {c.name: c for c in probe.run_probe(scene_of(server, demo), 0.5)}
    assert 'secret "dpaflow-s3" not found' in checks["pod dpaflow:0.1.0"].found


@pytest.mark.usefixtures("hasty")
def test_who_may_not_delete(serve: Any, demo: Pipeline) -> None:  # noqa: F811
    server = serve()
    server.allowed["user"].discard("delete")
    server.cluster.faults.append(Fault("probe-0(0)", "image", times=None))
    checks = {c.name: c for c in probe.run_probe(scene_of(server, demo))}
    assert checks["may delete"].verdict == "error"


def test_not_started_after_an_error(serve: Any, demo: Pipeline, tmp_path: Path) -> None:  # noqa: F811
    server = serve()
    context = Context(server=server.url, token=SecretStr("wrong"), kubeconfig=tmp_path / "none")
    assert preflight(context, demo, probe=True)[-1].found == "not started"
    assert not any(method == "POST" for method, _, _ in server.requests)
