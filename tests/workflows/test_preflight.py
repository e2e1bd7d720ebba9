"""Every check of the preflight in both directions, against servers on loopback."""

from __future__ import annotations

import base64
import datetime
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from tests.workflows.kubernetes_api import KubernetesAPI, serving
from workflows import cli
from workflows.backends.argo import preflight as package
from workflows.backends.argo.context import Context
from workflows.backends.argo.preflight import guard, images, preflight
from workflows.backends.argo.preflight.kube import connect
from workflows.backends.argo.preflight.server import seconds_left
from workflows.backends.argo.preflight.steps import check_entries, check_files
from workflows.backends.argo.preflight.storage import check_bucket
from workflows.backends.argo.scene import set_scene
from workflows.doctor import Check
from workflows.schema import Pipeline, load_pipeline
from workflows.schema_cluster import Cluster
from workflows.schema_paths import map_paths

SPACE = "dpaflow"
TOKEN, KUBE_TOKEN, SECRET_DATA = "planted-argo-token", "planted-kube-token", "planted-secret-data"
ME, ADMIN = "system:serviceaccount:dpaflow:dpaflow-user", "admin"
POD, ADVANCE = (f"system:serviceaccount:{SPACE}:dpaflow-{name}" for name in ("workflow", "advance"))
REPOSITORY = {
    "s3": {
        "bucket": "dpaflow",
        "endpoint": "s3.amazonaws.com",
        "accessKeySecret": {"name": "dpaflow-s3", "key": "accessKey"},
        "secretKeySecret": {"name": "dpaflow-s3", "key": "secretKey"},
    }
}


def named(kind: str, name: str, space: bool = True, **rest: Any) -> dict[str, Any]:
    place = {"namespace": SPACE} if space else {}
    group = {"PriorityClass": "scheduling.k8s.io/v1"}.get(kind, "v1")
    return {"apiVersion": group, "kind": kind, "metadata": {"name": name, **place}, **rest}


def node(name: str, labels: dict[str, str] | None = None, gpus: int = 0, **spec: Any) -> dict:
    allocatable = {"cpu": "31850m", "memory": "131000000Ki", "ephemeral-storage": "200Gi",
                   "pods": "110"}  # fmt: skip
    if gpus:
        allocatable["nvidia.com/gpu"] = str(gpus)
    found = named("Node", name, space=False, spec=spec)
    found["metadata"]["labels"] = {"kubernetes.io/hostname": name, **(labels or {})}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    found["status"] = {"allocatable": allocatable, "conditions": [ready], "images": []}
    return found


def claim(name: str, modes: list[str], phase: str = "Bound") -> dict[str, Any]:
    resources = {"requests": {"storage": "100Gi"}}
    return named("PersistentVolumeClaim", name, spec={"accessModes": modes, "resources": resources},
                 status={"phase": phase, "accessModes": modes})  # fmt: skip


GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


@pytest.fixture
def kube() -> KubernetesAPI:
    """A cluster in which everything is as it should be."""
    api = KubernetesAPI(SPACE, {KUBE_TOKEN: ADMIN, TOKEN: ME})
    space = named("Namespace", SPACE, space=False, status={"phase": "Active"})
    space["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.put(space)
    for name in ("dpaflow-workflow", "dpaflow-advance", "dpaflow-artifact-gc"):
        api.put(named("ServiceAccount", name))
    data = {"accessKey": base64.b64encode(SECRET_DATA.encode()).decode(), "secretKey": "c2Vj"}
    for name in ("dpaflow-s3", "dpaflow-workflow.service-account-token"):
        api.put(named("Secret", name, type="Opaque", data=data))
    text = yaml.safe_dump(REPOSITORY)
    api.put(named("ConfigMap", "artifact-repositories", data={"dpaflow": text}))
    api.put(node("cpu-0"))
    api.put(node("gpu-0", {"nvidia.com/gpu.product": "NVIDIA-A100"}, gpus=4, taints=[GPU_TAINT]))
    return api


@pytest.fixture
def context(kube: KubernetesAPI, tmp_path: Path) -> Iterator[Context]:
    with serving(kube.answer) as url:
        path = tmp_path / "kubeconfig"
        entry = {"name": "test", "cluster": {"server": url}}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test", "clusters": [entry],
            "users": [{"name": "test", "user": {"token": KUBE_TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document))
        yield Context(kubeconfig=path, token=SecretStr(TOKEN), server="http://127.0.0.1:9")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("data")
    for name in ("unary", "binary", "ternary"):
        (folder / f"{name}.extxyz").write_text("x" * 1000)
    return load_pipeline(cli.TEMPLATES / "demo.yaml", {"DEMO_DATA": str(folder)})


def with_cluster(pipeline: Pipeline, **cluster: Any) -> Pipeline:
    return pipeline.model_copy(update={"cluster": Cluster.model_validate(cluster)})


@pytest.fixture
def look(context: Context, demo: Pipeline):
    """Run what is asked of Kubernetes, all or some; return the findings by name."""

    def run(*subjects: str, **cluster: Any) -> dict[str, Check]:
        scene = set_scene(context, with_cluster(demo, **cluster))
        api = connect(context)
        checks = [
            c
            for name, f in package.KUBE_CHECKS
            if name in subjects or not subjects
            for c in guard(name, f, scene, api)
        ]
        return {check.name: check for check in checks}

    return run


def problems(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.verdict for name, check in found.items() if check.verdict != "ok"}


def test_all_is_well(look: Any) -> None:
    found = look()
    assert problems(found) == {}
    assert "pod security: restricted" in found["namespace"].found
    assert "bucket dpaflow at AWS" in found["artifact repository"].found
    assert found["nodes"].found == "2 of 2 ready"


# --- Kubernetes: objects


def test_namespace_is_missing(kube: KubernetesAPI, look: Any) -> None:
    kube.drop("Namespace", SPACE)
    check = look("namespace")["namespace"]
    assert check.verdict == "error"
    assert "kubectl create namespace dpaflow" in check.advice


def test_namespace_goes_away_or_has_no_level(kube: KubernetesAPI, look: Any) -> None:
    kube.get("Namespace", SPACE)["status"]["phase"] = "Terminating"
    assert look("namespace")["namespace"].verdict == "error"
    kube.get("Namespace", SPACE)["status"]["phase"] = "Active"
    kube.get("Namespace", SPACE)["metadata"]["labels"] = {}
    check = look("namespace")["namespace"]
    assert check.verdict == "ok"
    assert "enforce=restricted" in check.advice


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("dpaflow-workflow", {}),
        ("my-pods", {"service_account": "my-pods"}),
        ("my-gc", {"artifacts": "delete", "gc_service_account": "my-gc"}),
    ],
)
def test_service_account_is_missing(
    kube: KubernetesAPI, look: Any, name: str, cluster: dict[str, Any]
) -> None:
    if ("serviceaccounts", name) in kube.objects:
        kube.drop("ServiceAccount", name)
    check = look(**cluster)[f"service account {name}"]
    assert check.verdict == "error"
    assert "deploy/kubernetes" in check.advice
    assert "service_account" in check.advice


def test_token_secret_of_the_account(kube: KubernetesAPI, look: Any) -> None:
    name = "secret dpaflow-workflow.service-account-token"
    assert look()[name].verdict == "ok"
    kube.drop("Secret", "dpaflow-workflow.service-account-token")
    check = look()[name]
    assert check.verdict == "error"
    assert "kubernetes.io/service-account.name: dpaflow-workflow" in check.advice
    account = kube.get("ServiceAccount", "dpaflow-workflow")
    account["metadata"]["annotations"] = {
        "workflows.argoproj.io/service-account-token.name": "dpaflow-s3"
    }
    assert problems(look()) == {}


@pytest.mark.parametrize(
    ("name", "key", "cluster"),
    [
        ("dpaflow-s3", "cluster.storage.secret", {}),
        ("registry", "cluster.image_pull_secrets", {"image_pull_secrets": ["registry"]}),
        ("vasp", "cluster.resources.train.env_secrets",
         {"resources": {"train": {"env_secrets": ["vasp"]}}}),
    ],
)  # fmt: skip
def test_secret_is_missing(
    kube: KubernetesAPI, look: Any, name: str, key: str, cluster: dict[str, Any]
) -> None:
    kube.objects.pop(("secrets", name), None)
    check = look("secrets", **cluster)[f"secret {name}"]
    assert check.verdict == "error"
    assert check.found == "does not exist"
    assert key in check.advice
    kube.put(named("Secret", name))
    assert look("secrets", **cluster)[f"secret {name}"].verdict == "ok"


def test_secrets_are_never_read(kube: KubernetesAPI, look: Any) -> None:
    look(image_pull_secrets=["dpaflow-s3"])
    asked = [accept for _, path, accept in kube.requests if "/secrets/" in path]
    assert len(asked) >= 2
    assert all("as=PartialObjectMetadata" in accept for accept in asked)


def test_repository(kube: KubernetesAPI, look: Any) -> None:
    def write(**changes: Any) -> None:
        text = yaml.safe_dump({"s3": {**REPOSITORY["s3"], **changes}})
        kube.put(named("ConfigMap", "artifact-repositories", data={"dpaflow": text}))

    write(bucket="other")
    check = look("artifact repository")["artifact bucket"]
    assert (check.verdict, check.found) == ("error", "other in Argo, dpaflow in the pipeline")
    write(endpoint="minio:9000", insecure=True)
    assert look("artifact repository")["artifact endpoint"].verdict == "error"
    assert problems(look("artifact repository", storage={"endpoint": "http://minio:9000"})) == {}
    assert (
        look("artifact repository", storage={"endpoint": "https://minio:9000"})[
            "artifact endpoint"
        ].verdict
        == "error"
    )
    write(accessKeySecret={"name": "others", "key": "accessKey"})
    assert problems(look("artifact repository")) == {"artifact secret": "warning"}


@pytest.mark.parametrize(
    ("data", "words"),
    [(None, "no ConfigMap"), ({"other": "s3: {}"}, "has no key dpaflow"),
     ({"dpaflow": "s3: [}"}, "no bucket"), ({"dpaflow": "gcs: {bucket: x}"}, "no bucket")],
)  # fmt: skip
def test_repository_is_missing(
    kube: KubernetesAPI, look: Any, data: dict[str, str] | None, words: str
) -> None:
    kube.drop("ConfigMap", "artifact-repositories")
    if data is not None:
        kube.put(named("ConfigMap", "artifact-repositories", data=data))
    check = look("artifact repository")["artifact repository"]
    assert check.verdict == "error"
    assert words in check.found
    assert "deploy/kubernetes" in check.advice


VOLUME = {"pvc": "models", "path": "/models"}


@pytest.mark.parametrize(
    ("made", "cluster", "verdict", "words"),
    [
        (None, {"volumes": [VOLUME]}, "error", "cluster.volumes"),
        (("models", ["ReadOnlyMany"]), {"volumes": [VOLUME]}, "ok", ""),
        (("models", ["ReadWriteOnce"]), {"volumes": [VOLUME]}, "error", "ReadWriteMany"),
        (("models", ["ReadOnlyMany"]), {"volumes": [{**VOLUME, "read_only": False}]}, "error",
         "written"),
        (("models", ["ReadWriteMany"]), {"workspace": "models"}, "ok", ""),
        (("models", ["ReadWriteOnce"]), {"workspace": "models"}, "error", "cluster.workspace"),
        (("models", ["ReadWriteMany"], "Pending"), {"workspace": "models"}, "warning",
         "WaitForFirstConsumer"),
        (("models", ["ReadWriteMany"], "Lost"), {"workspace": "models"}, "error", "anew"),
        (("models", ["ReadOnlyMany"]), {"resources": {"train": {"pvc": VOLUME}}}, "ok", ""),
        (None, {"resources": {"train": {"pvc": VOLUME}}}, "error", "cluster.resources.train.pvc"),
    ],
)  # fmt: skip
def test_volumes(
    kube: KubernetesAPI, look: Any, made: Any, cluster: dict[str, Any], verdict: str, words: str
) -> None:
    if made is not None:
        kube.put(claim(*made))
    check = look("volumes", **cluster)["volume models"]
    assert check.verdict == verdict, check
    assert words in check.advice


def test_one_node_may_share_a_volume_of_its_own(kube: KubernetesAPI, look: Any) -> None:
    kube.drop("Node", "gpu-0")
    kube.put(claim("models", ["ReadWriteOnce"]))
    assert look("volumes", workspace="models")["volume models"].verdict == "ok"


def test_priority_class(kube: KubernetesAPI, look: Any) -> None:
    check = look("priority class", priority_class="urgent")["priority class urgent"]
    assert check.verdict == "error"
    assert "kubectl get priorityclass" in check.advice
    kube.put(named("PriorityClass", "urgent", space=False, value=1000))
    assert look("priority class", priority_class="urgent")["priority class urgent"].verdict == "ok"


# --- Kubernetes: rights


def test_rights_of_the_user(kube: KubernetesAPI, look: Any) -> None:
    kube.denied.add((ADMIN, "create", "workflows"))  # the token's rights count, not these
    assert look("rights")["rights"].verdict == "ok"
    kube.denied |= {(ME, "delete", "workflows"), (ME, "get", "pods/log")}
    check = look("rights")["rights"]
    assert check.verdict == "error"
    assert "may not delete workflows, get pods/log in dpaflow (needed to: clean up, logs)" in (
        check.found
    )


def test_rights_with_a_token_kubernetes_does_not_know(kube: KubernetesAPI, look: Any) -> None:
    del kube.tokens[TOKEN]
    assert look("rights")["rights"].found.startswith("your kubeconfig's user may")
    kube.denied.add((ADMIN, "create", "workflows"))
    assert look("rights")["rights"].verdict == "error"


def test_rights_of_the_pods(kube: KubernetesAPI, look: Any) -> None:
    name = "rights of dpaflow-workflow"
    assert look("rights of the accounts")[name].verdict == "ok"
    kube.denied.add((POD, "patch", "workflowtaskresults"))
    check = look("rights of the accounts")[name]
    assert check.verdict == "error"
    assert "may not patch workflowtaskresults" in check.found
    kube.forbidden.add("localsubjectaccessreviews")
    assert look("rights of the accounts")[name].verdict == "unknown"


def test_rights_of_advance(
    kube: KubernetesAPI, context: Context, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(root / "examples/concurrent_learning/cp2k.yaml")
    name = "rights of dpaflow-advance"

    def run() -> Check:
        scene = set_scene(context, pipeline)
        return {c.name: c for c in package.access.check_accounts(scene, connect(context))}[name]

    assert run().verdict == "ok"
    kube.denied.add((ADVANCE, "create", "workflows"))
    assert "submit the next iteration" in run().found


# --- Kubernetes: nodes, quota


def gpu(**more: Any) -> dict[str, Any]:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"resources": {"train": {"gpu": 1, "tolerations": tolerations, **more}}}


def for_training(found: dict[str, Check], first: str = "pretrain-dpa1") -> Check:
    (check,) = [c for name, c in found.items() if name.startswith(f"node for {first}")]
    return check


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (gpu(gpu=8), "gpu-0: ask for at most 4 in cluster.resources.train.gpu"),
        (gpu(gpu_resource="nvidia.com/mig-1g.5gb"), "device plugin"),
        (gpu(gpu_type="NVIDIA-H100"), "correct cluster.resources.train.gpu_type"),
        (gpu(tolerations=[]), "{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}"),
        (gpu(tolerations=[{"key": "nvidia.com/gpu", "value": "absent"}]), "operator: Exists"),
        (gpu(memory="1Ti"), "ask for at most 125Gi in cluster.resources.train.memory"),
        (gpu(cpu=64), "ask for at most 31.85 in cluster.resources.train.cpu"),
        (gpu(disk="1Ti"), "ask for at most 200Gi in cluster.resources.train.disk"),
        (gpu(node_selector={"pool": "x"}), "correct cluster.resources.train.node_selector"),
        (
            gpu(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["cpu-0"]}]}]}}}),
            "cluster.resources.train.affinity",
        ),
    ],
)  # fmt: skip
def test_no_node_fits(look: Any, cluster: dict[str, Any], words: str) -> None:
    check = for_training(look("nodes", **cluster))
    assert check.verdict == "error"
    assert "none of 2 nodes fits" in check.found
    assert words in check.advice


@pytest.mark.parametrize(
    "cluster",
    [
        gpu(),
        gpu(gpu=4, memory="60Gi", cpu=31, gpu_type="NVIDIA-A100"),
        gpu(tolerations=[{"operator": "Exists"}]),
        gpu(tolerations=[{"key": "nvidia.com/gpu", "value": "present"}]),
        gpu(node_selector={"kubernetes.io/hostname": "gpu-0"}),
        gpu(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [
                {"key": "nvidia.com/gpu.product", "operator": "Exists"},
                {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["cpu-0"]}]}]}}}),
    ],
)  # fmt: skip
def test_a_node_fits(look: Any, cluster: dict[str, Any]) -> None:
    check = for_training(look("nodes", **cluster))
    assert check.verdict == "ok", check
    assert check.found.startswith("1 of 2 nodes fit")


def test_later_attempts_need_more_memory(look: Any) -> None:
    check = for_training(look("nodes", **gpu(memory="100Gi")))
    assert check.verdict == "warning"
    assert "max_memory to at most 124Gi" in check.advice
    assert for_training(look("nodes", **gpu(memory="100Gi", max_memory="120Gi"))).verdict == "ok"


def test_nodes_that_do_not_take_pods(kube: KubernetesAPI, look: Any) -> None:
    kube.get("Node", "gpu-0")["spec"]["unschedulable"] = True
    kube.get("Node", "cpu-0")["status"]["conditions"][0]["status"] = "Unknown"
    found = look("nodes")
    assert found["nodes"].verdict == "error"
    assert "not ready or closed" in for_training(found, "collect").found


def test_node_pools_may_grow(kube: KubernetesAPI, look: Any) -> None:
    kube.get("Node", "cpu-0")["metadata"]["labels"]["cloud.google.com/gke-nodepool"] = "cpu"
    check = for_training(look("nodes", **gpu(gpu_type="NVIDIA-H100")))
    assert check.verdict == "warning"
    assert "on demand" in check.advice


def quota(hard: dict[str, str], used: dict[str, str]) -> dict[str, Any]:
    status = {"hard": hard, "used": used}
    return named("ResourceQuota", "team", spec={"hard": hard}, status=status)


@pytest.mark.parametrize(
    ("key", "hard", "used", "cluster", "verdict", "words"),
    [
        ("requests.cpu", "100", "0", {}, "ok", "100"),
        ("requests.cpu", "1", "0", {}, "error", "needs 2"),
        ("limits.memory", "4Gi", "0", {}, "error", "needs 8Gi"),
        ("requests.memory", "100Gi", "95Gi", {}, "warning", "95Gi in use"),
        ("requests.nvidia.com/gpu", "1", "0", gpu(gpu=2), "error", "pretrain-dpa1"),
        ("requests.nvidia.com/gpu", "2", "0", gpu(gpu=2), "warning", "up to 8 would"),
        ("requests.nvidia.com/gpu", "8", "0", gpu(gpu=2), "ok", ""),
        ("requests.nvidia.com/gpu", "0", "0", {}, "ok", ""),
        ("pods", "0", "0", {}, "error", "needs 1"),
        ("count/workflows.argoproj.io", "5", "5", {}, "warning", "5 in use"),
        ("cpu", "3", "0", {}, "warning", "at once"),
        ("cpu", "3", "0", {"parallelism": 1}, "ok", ""),
    ],
)
def test_quota(
    kube: KubernetesAPI, look: Any, key: str, hard: str, used: str, cluster: Any, verdict: str,
    words: str,
) -> None:  # fmt: skip
    kube.put(quota({key: hard}, {key: used}))
    check = look("quota", **cluster)["quota team"]
    assert check.verdict == verdict, check
    assert words in check.found


def limits(**values: dict[str, str]) -> dict[str, Any]:
    return named("LimitRange", "team", spec={"limits": [{"type": "Container", **values}]})


def test_limits(kube: KubernetesAPI, look: Any) -> None:
    kube.put(limits(max={"memory": "16Gi"}, min={"cpu": "100m"}))
    assert look("limits")["limits"].verdict == "ok"
    kube.put(limits(max={"memory": "4Gi"}))
    check = look("limits")["limits team"]
    assert check.verdict == "error"
    assert "8Gi, at most 4Gi is allowed" in check.found
    kube.put(limits(min={"cpu": "4"}))
    assert "at least 4 is wanted" in look("limits")["limits team"].found


def test_quota_wants_limits_of_argos_containers(kube: KubernetesAPI, look: Any) -> None:
    kube.put(quota({"limits.memory": "1Ti"}, {}))
    assert look("Argo's own containers")["Argo's own containers"].verdict == "warning"
    kube.put(limits(default={"memory": "1Gi", "cpu": "1"}))
    assert "Argo's own containers" not in look("Argo's own containers")


def test_what_may_not_be_asked_is_said(kube: KubernetesAPI, look: Any) -> None:
    kube.forbidden |= {
        "nodes", "secrets", "namespaces", "resourcequotas", "limitranges", "serviceaccounts",
        "configmaps", "persistentvolumeclaims", "priorityclasses",
    }  # fmt: skip
    found = look(priority_class="urgent", workspace="models")
    assert "error" not in problems(found).values()
    unknown = {name for name, verdict in problems(found).items() if verdict == "unknown"}
    assert {"nodes", "secret dpaflow-s3", "namespace", "quota", "limits", "volume models",
            "artifact repository", "priority class urgent"} <= unknown  # fmt: skip


def test_without_kubeconfig(
    context: Context, demo: Pipeline, tmp_path: Path, monkeypatch: Any
) -> None:
    missing = str(tmp_path / "none")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", missing)
    scene = set_scene(context.model_copy(update={"kubeconfig": None}), demo)
    check = package._kubernetes(scene)[0]
    assert check.verdict == "unknown"
    assert "not checked: namespace, rights" in check.found
    scene = set_scene(context.model_copy(update={"kubeconfig": Path(missing)}), demo)
    check = package._kubernetes(scene)[0]
    assert check.verdict == "error"
    assert "context file" in check.found


def test_which_cluster(kube: KubernetesAPI, context: Context) -> None:
    def run() -> dict[str, Check]:
        return {check.name: check for check in package._hello(connect(context))}

    assert run()["Kubernetes"].found.startswith("v1.34.2 at http://127.0.0.1")
    kube.version |= {"minor": "22+", "gitVersion": "v1.22.1"}
    assert run()["Kubernetes"].verdict == "warning"
    kube.version |= {"minor": "49", "gitVersion": "v1.49.0"}
    assert "pip install" in run()["Kubernetes"].advice
    kube.argo = False
    assert "kube_context" in run()["Argo in the cluster"].advice


def test_kubernetes_does_not_answer(context: Context, demo: Pipeline) -> None:
    text = context.kubeconfig.read_text()
    port = text.partition("127.0.0.1:")[2].split()[0]
    context.kubeconfig.write_text(text.replace(port, "9"))
    checks = package._kubernetes(set_scene(context, demo))
    assert checks[0].verdict == "error"
    assert "refused" in checks[0].found
    assert {check.name for check in checks[1:]} == {"image dpaflow:0.1.0"}


# --- the Argo server


class ArgoServer:
    """The few answers of an Argo server that the checks look at."""

    def __init__(self) -> None:
        self.version, self.denied = "v3.6.10", set()
        self.user = {"issuer": "argo-server", "subject": ME, "serviceAccountName": "dpaflow-user"}
        self.tokens: set[str] | None = {TOKEN}
        self.asked: list[tuple[str, str, Any]] = []

    def answer(self, request: Any, body: Any) -> tuple[int, dict[str, Any]]:
        path = request.path.partition("?")[0].removeprefix("/api/v1/")
        self.asked.append((request.command, path, body))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            return 401, {"code": 16, "message": "token not valid"}
        if path == "version":
            return 200, {"version": self.version}
        if path == "userinfo":
            return 200, dict(self.user)
        verb = {"GET": "get" if path.count("/") > 1 else "list", "POST": "create"}[request.command]
        if path.split("/")[1] != SPACE:
            return 404, {"code": 5, "message": f'namespaces "{path.split("/")[1]}" not found'}
        if verb in self.denied:
            return 403, {"code": 7, "message": f'User "{ME}" cannot {verb} resource "workflows"'}
        if verb == "get":
            return 404, {"code": 5, "message": "workflows.argoproj.io not found"}
        return 200, {"items": []} if verb == "list" else body["workflow"]


@pytest.fixture
def argo() -> ArgoServer:
    return ArgoServer()


def ask_argo(argo: ArgoServer, tls: Any = None, **settings: Any) -> dict[str, Check]:
    with serving(argo.answer, tls) as url:
        values = {"server": url, "token": SecretStr(TOKEN), **settings}
        scene = set_scene(Context(**values), None)
        return {check.name: check for check in package._argo(scene)}


def test_server_is_fine(argo: ArgoServer) -> None:
    found = ask_argo(argo)
    assert problems(found) == {}
    assert found["token"].found == "that of service account dpaflow-user"
    assert found["Argo version"].found == "v3.6.10"
    (tried,) = [body for method, _, body in argo.asked if method == "POST"]
    assert tried["serverDryRun"] is True
    assert tried["workflow"]["spec"]["serviceAccountName"] == "dpaflow-workflow"


def test_nobody_answers(context: Context) -> None:
    (check,) = package._argo(set_scene(context, None))
    assert check.verdict == "error"
    assert "kubectl -n argo port-forward svc/argo-server 2746:2746" in check.found


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("v3.4.17", "error"), ("v3.5.0", "ok"), ("v4.1.4", "ok"), ("v9.1.0", "warning"),
     ("untagged", "warning")],
)  # fmt: skip
def test_server_version(argo: ArgoServer, version: str, verdict: str) -> None:
    argo.version = version
    assert ask_argo(argo)["Argo version"].verdict == verdict


def test_token(argo: ArgoServer) -> None:
    argo.tokens = {"another"}
    check = ask_argo(argo)["token"]
    assert check.verdict == "error"
    assert "is not accepted" in check.found
    assert "create token" in check.found
    assert "is missing" in ask_argo(argo, token=None)["token"].found
    argo.tokens = None
    assert ask_argo(argo, token=None)["token"].verdict == "warning"


def jwt(seconds: float) -> str:
    claims = json.dumps({"exp": time.time() + seconds, "sub": "planted-subject"}).encode()
    return f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


def test_token_that_ends(argo: ArgoServer) -> None:
    argo.tokens = None
    check = ask_argo(argo, token=SecretStr(jwt(610)))["token"]
    assert check.verdict == "warning"
    assert "ends in 10 min" in check.found
    assert "--duration" in check.advice
    assert "ends in 24 h" in ask_argo(argo, token=SecretStr(jwt(86400)))["token"].found
    assert seconds_left("no.jwt.here") is None


@pytest.mark.parametrize(
    ("verb", "name"), [("list", "may list"), ("get", "may read"), ("create", "may submit")]
)
def test_rights_on_the_server(argo: ArgoServer, verb: str, name: str) -> None:
    argo.denied = {verb}
    found = ask_argo(argo)
    assert problems(found) == {name: "error"}
    assert "deploy/kubernetes" in found[name].advice


def test_namespace_the_server_does_not_know(argo: ArgoServer) -> None:
    found = ask_argo(argo, namespace="other")
    assert found["may submit"].verdict == "error"
    assert "namespace other" in found["may submit"].found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate that signs itself, for 127.0.0.1."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                          serialization.NoEncryption())
    )  # fmt: skip
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings.load_cert_chain(folder / "ca.crt", folder / "key")
    return folder / "ca.crt", settings


def test_tls(argo: ArgoServer, certificate: tuple[Path, ssl.SSLContext]) -> None:
    path, tls = certificate
    check = ask_argo(argo, tls)["Argo server"]
    assert check.verdict == "error"
    assert "ca_file" in check.found
    assert ask_argo(argo, tls, ca_file=path)["Argo server"].verdict == "ok"
    check = ask_argo(argo, tls, verify=False)["Argo server"]
    assert check.verdict == "ok"  # on this machine
    assert "not checked" in check.found


@pytest.mark.parametrize(
    ("server", "verify", "verdict"),
    [("http://argo.example.org", True, "warning"), ("https://argo.example.org", False, "warning"),
     ("https://argo.example.org", True, "ok"), ("http://localhost:2746", True, "ok")],
)  # fmt: skip
def test_encryption(server: str, verify: bool, verdict: str) -> None:
    from workflows.backends.argo.preflight.server import _encryption

    scene = set_scene(Context(server=server, verify=verify), None)
    assert _encryption(scene).verdict == verdict


# --- bucket, images, the pipeline alone


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "planted-aws-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


@pytest.mark.usefixtures("credentials")
def test_bucket(s3_server: str, context: Context, demo: Pipeline) -> None:
    import boto3

    def run(**storage: Any) -> Check:
        pipeline = with_cluster(demo, storage={"endpoint": s3_server, **storage})
        (check,) = guard("bucket", check_bucket, set_scene(context, pipeline))
        return check

    check = run(bucket="missing")
    assert check.verdict == "error"
    assert "no such bucket" in check.found
    client = boto3.client("s3", endpoint_url=s3_server)
    assert run() == Check("bucket dpaflow", "ok", f"{s3_server}: written, read back, deleted")
    assert "Contents" not in client.list_objects_v2(Bucket="dpaflow")
    assert run(endpoint="http://127.0.0.1:9").verdict == "error"
    check = run(endpoint="http://minio.storage.svc:9000")
    assert check.verdict == "error"  # the demo has files to copy
    assert "kubectl -n storage port-forward svc/minio 9000:9000" in check.advice


def test_profile_that_is_not_there(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    (check,) = check_bucket(set_scene(context, None))
    assert (check.verdict, check.found) == ("error", "S3 cannot be set up (ProfileNotFound)")


def test_bucket_without_credentials(
    context: Context, demo: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    (check,) = check_bucket(set_scene(context, None))
    assert check.verdict == "unknown"
    assert "the probe checks it from inside" in check.advice
    (check,) = check_bucket(set_scene(context, demo))
    assert check.verdict == "error"
    assert "local files are to be copied to the bucket (3 paths)" in check.found
    there = map_paths(demo, lambda _: "s3://alloys/there")
    (check,) = check_bucket(set_scene(context, there))
    assert check.verdict == "error"
    assert "submit has to look at s3://alloys/there" in check.found


DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("dpaflow:0.1.0", "docker.io/library/dpaflow:0.1.0"),
        ("me/dpaflow:0.1.0", "docker.io/me/dpaflow:0.1.0"),
        ("docker.io/dpaflow:0.1.0", "docker.io/library/dpaflow:0.1.0"),
        ("ghcr.io/me/dpaflow:0.1.0", "ghcr.io/me/dpaflow:0.1.0"),
        ("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1"),
        (f"quay.io/me/x@{DIGEST}", f"quay.io/me/x@{DIGEST}"),
        ("Me/dpaflow:0.1.0", None),
        ("ghcr.io/me/dpaflow", None),
        ("ghcr.io//dpaflow:1", None),
        ("https://ghcr.io/me/dpaflow:1", None),
    ],
)
def test_names_of_images(text: str, full: str | None) -> None:
    image = images.parse_image(text)
    assert (None if image is None else image.full) == full


def check_image(context: Context, demo: Pipeline, api: Any = None, **cluster: Any) -> Check:
    (check,) = images.check_images(set_scene(context, with_cluster(demo, **cluster)), api)
    return check


def test_image_without_registry(kube: KubernetesAPI, context: Context, demo: Pipeline) -> None:
    check = check_image(context, demo, connect(context))
    assert check.verdict == "warning"
    assert "seen on 0 of 2 nodes" in check.found
    assert "kind load docker-image dpaflow:0.1.0" in check.advice
    for name in ("cpu-0", "gpu-0"):
        item = {"names": ["docker.io/library/dpaflow:0.1.0"], "sizeBytes": 1}
        kube.get("Node", name)["status"]["images"] = [item]
    assert check_image(context, demo, connect(context)).verdict == "ok"
    assert check_image(context, demo, image_pull_policy="Always").verdict == "error"
    assert "kind load" in check_image(context, demo, image="localhost/dpaflow:0.1.0").advice


def test_image_by_wrong_name(context: Context, demo: Pipeline) -> None:
    cluster = Cluster().model_copy(update={"image": "ghcr.io/Me/x:1"})
    scene = set_scene(context, demo.model_copy(update={"cluster": cluster}))
    (check,) = images.check_images(scene, None)
    assert check.verdict == "error"
    cluster = Cluster().model_copy(update={"image": "ghcr.io/me/x:latest"})
    scene = set_scene(context, demo.model_copy(update={"cluster": cluster}))
    assert "latest" in next(images.check_images(scene, None)).found


def test_registry(context: Context, demo: Pipeline) -> None:
    """A registry with a token for everybody, a private repository and a missing tag."""
    asked = []

    def answer(request: Any, _: Any) -> tuple[int, dict[str, Any]]:
        path, _, _query = request.path.partition("?")
        asked.append((request.command, path, request.headers.get("Authorization")))
        if path == "/token":
            return 200, {"token": "planted-anonymous"}
        if "private" in path or request.headers.get("Authorization") is None:
            realm = f"http://127.0.0.1:{request.server.server_address[1]}/token"
            challenge = f'Bearer realm="{realm}",service="test",scope="repository:x:pull"'
            return 401, {"_headers": {"WWW-Authenticate": challenge}}
        return (200 if path.endswith("/manifests/v1") else 404), {}

    with serving(answer) as url:
        host = url.removeprefix("http://")
        check = check_image(context, demo, image=f"{host}/me/dpaflow:v1")
        assert (check.verdict, check.found) == ("ok", f"can be pulled by everybody ({host})")
        assert asked[-1] == ("HEAD", "/v2/me/dpaflow/manifests/v1", "Bearer planted-anonymous")
        assert check_image(context, demo, image=f"{host}/me/dpaflow:v2").verdict == "error"
        private = f"{host}/me/private:v1"
        check = check_image(context, demo, image=private)
        assert check.verdict == "warning"
        assert "cluster.image_pull_secrets" in check.advice
        check = check_image(context, demo, image=private, image_pull_secrets=["registry"])
        assert check.verdict == "unknown"
    check = check_image(context, demo, image=f"{host}/me/dpaflow:v1")
    assert check.verdict == "unknown"
    assert "cannot be asked from here" in check.found


def test_resources_that_no_step_uses(context: Context, demo: Pipeline) -> None:
    fine = with_cluster(demo, resources={"train": {"cpu": 4}, "finetune": {}, "default": {}})
    (check,) = check_entries(set_scene(context, fine))
    assert check.verdict == "ok"
    typo = with_cluster(demo, resources={"trian": {"gpu": 1}, "train": {}})
    (check,) = check_entries(set_scene(context, typo))
    assert check.verdict == "error"
    assert check.found == "cluster.resources.trian belongs to no step"
    assert "did you mean train" in check.advice


def test_entries_for_later_steps_of_a_loop(context: Context, root: Path) -> None:
    pipeline = load_pipeline(root / "examples/concurrent_learning/cp2k.yaml")
    known = ("final", "iter-000001-train", "advance", "select", "report")
    loop = with_cluster(pipeline, resources={name: {} for name in known})
    assert [check.verdict for check in check_entries(set_scene(context, loop))] == ["ok"]
    loop = with_cluster(pipeline, resources={"iter-000999": {}})
    assert [check.verdict for check in check_entries(set_scene(context, loop))] == ["error"]


def test_local_files(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("unary", "binary", "ternary"):
        (tmp_path / f"{name}.extxyz").write_text("x" * 500_000)
    pipeline = load_pipeline(cli.TEMPLATES / "demo.yaml", {"DEMO_DATA": str(tmp_path)})
    (check,) = check_files(set_scene(context, pipeline))
    assert check == Check(
        "local files", "ok", "3 files, 1.5 MB, are copied to the bucket by submit"
    )
    there = map_paths(pipeline, lambda path: f"/data/{Path(path).name}")
    there = with_cluster(there, volumes=[{"pvc": "data", "path": "/data"}])
    assert next(check_files(set_scene(context, there))).found == "none to copy"
    (tmp_path / "unary.extxyz").unlink()
    (check,) = check_files(set_scene(context, pipeline))
    assert check.verdict == "error"
    assert "unary.extxyz cannot be read" in check.found


# --- all together


def test_nothing_secret_is_printed(
    kube: KubernetesAPI, argo: ArgoServer, context: Context, demo: Pipeline, s3_server: str,
    credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    """All checks, in good and bad states, through the command; planted texts nowhere."""
    path = tmp_path / "pipeline.yaml"
    path.write_text((cli.TEMPLATES / "demo.yaml").read_text())
    data = Path(demo.data["ternary"].sources[0].path).parent
    values = {"ARGO_TOKEN": TOKEN, "DPAFLOW_CONTEXT": tmp_path / "context.yaml", "DEMO_DATA": data,
              "AWS_ENDPOINT_URL": s3_server}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("sys.argv", ["dpaflow", "doctor", "--cluster", str(path), "--no-probe"])
    text = ""
    with serving(argo.answer) as url:
        settings = {"server": url, "kubeconfig": str(context.kubeconfig)}
        (tmp_path / "context.yaml").write_text(yaml.safe_dump(settings))
        for spoil, code in (("nothing", 0), ("argo", 1), ("kubernetes", 0), ("s3", 1)):
            tokens = dict(kube.tokens)
            if spoil == "argo":
                argo.tokens = {"other"}
            if spoil == "kubernetes":
                kube.tokens.clear()
            if spoil == "s3":
                monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            with pytest.raises(SystemExit) as caught:
                cli.main()
            out, err = capsys.readouterr()
            assert caught.value.code == code, out
            text += out + err
            argo.tokens, kube.tokens = {TOKEN}, tokens
    assert "may submit" in text
    assert "FAIL  token" in text
    assert SPACE in text
    encoded = base64.b64encode(SECRET_DATA.encode()).decode()
    assert "planted" not in text
    assert encoded not in text


def test_a_check_that_breaks_is_no_reason_not_to_submit() -> None:
    def broken() -> Iterator[Check]:
        yield Check("first", "ok", "")
        raise KeyError(TOKEN)

    first, second = guard("name", broken)
    assert (first.name, second.verdict) == ("first", "unknown")
    assert "KeyError in broken" in second.found
    assert TOKEN not in second.found


def test_kubeconfig_that_has_expired(kube: KubernetesAPI, context: Context, demo: Pipeline) -> None:
    kube.tokens.clear()
    names = [(check.name, check.verdict) for check in package._kubernetes(set_scene(context, demo))]
    assert names == [("Kubernetes", "unknown"), ("image dpaflow:0.1.0", "warning")]


def test_pipeline_without_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("name: x")
    monkeypatch.setattr("sys.argv", ["dpaflow", "doctor", str(path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert f"dpaflow doctor --cluster {path}" in capsys.readouterr().err


def test_kubeconfig_that_is_not_there(argo: ArgoServer, tmp_path: Path) -> None:
    """The list that `submit` looks at."""
    with serving(argo.answer) as url:
        context = Context(server=url, token=SecretStr(TOKEN), kubeconfig=tmp_path / "none")
        found = {check.name: check.verdict for check in preflight(context, None, probe=True)}
    assert found["Argo server"] == "ok"
    assert found["Kubernetes"] == "error"  # the kubeconfig that was named is not there
    assert found["probe"] == "unknown"  # not started after an error
