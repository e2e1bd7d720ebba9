"""The guides: what they name exists, fits the manifests and our defaults, and runs where it can."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.deploy import policies
from tests.deploy.rendered import DEPLOY, KUBERNETES, OVERLAYS, ROOT, find, objects, pod_spec
from workflows.backends.argo.context import Context
from workflows.schema_cluster import Cluster, Resources, quantity

GUIDES = {name: KUBERNETES / "overlays" / name / "README.md" for name in OVERLAYS}
PAGES = {"deploy": DEPLOY / "README.md", **GUIDES}
PAGE = 110
"""Lines of a guide: one page."""


def text(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), flags=re.M | re.S)


def commands(name: str) -> list[str]:
    """Return the lines of the shell blocks, without what is between YAML markers."""
    whole = "".join(blocks(name, "bash"))
    return re.sub(r"<<'YAML'\n.*?^YAML$", "", whole, flags=re.M | re.S).splitlines()


def yamls(name: str) -> Iterator[dict]:
    """Return the YAML of a page, also that which a command writes."""
    written = [
        re.findall(r"<<'YAML'\n(.*?)^YAML$", b, flags=re.M | re.S) for b in blocks(name, "bash")
    ]
    for part in [*blocks(name, "yaml"), *(part for found in written for part in found)]:
        yield yaml.safe_load(part)


# --- the guides themselves


@pytest.mark.parametrize("name", GUIDES)
def test_guide_is_one_page(name: str) -> None:
    assert len(text(name).splitlines()) <= PAGE


@pytest.mark.parametrize("name", PAGES)
def test_files_exist(name: str) -> None:
    for path in re.findall(r"\b(?:deploy|examples)/[\w./-]*\w", text(name)):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text(name)):
        assert (PAGES[name].parent / path).exists(), path


@pytest.mark.parametrize("name", PAGES)
def test_shell_can_read_every_command(name: str) -> None:
    for block in blocks(name, "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_argo_is_installed_alike_and_pinned() -> None:
    found = {
        "\n".join(line for line in commands(name) if re.search(r"kubectl( -n argo| .*argo$)", line))
        for name in PAGES
    }
    assert len({part.split("kubectl -n argo port-forward")[0].rstrip() for part in found}) == 1
    versions = re.findall(r"argo-workflows/releases/download/(\S+?)/", "".join(map(text, PAGES)))
    assert len(versions) == len(PAGES)
    assert set(versions) == set(re.findall(r"Argo Workflows (v4\.[\d.]+\d)", text("deploy")))


def test_versions_of_the_overview_are_those_of_the_manifests() -> None:
    overview = text("deploy")
    images = {
        container["image"].rpartition(":")[2]
        for item in objects("local")
        for container in (pod_spec(item) or {}).get("containers", [])
    }
    assert images == set(re.findall(r"Versity S3 Gateway (v[\d.]+\d)", overview))
    plugin, operator = re.findall(r"--version (\S+)", text("gpu"))
    assert f"device plugin {plugin} or GPU operator {operator}" in overview
    kind = yaml.safe_load((GUIDES["local"].parent / "kind.yaml").read_text(encoding="utf-8"))
    node = kind["nodes"][0]["image"].rpartition(":")[2]
    assert f"--kubernetes-version={node}" in text("local")


@pytest.mark.parametrize("name", PAGES)
def test_no_command_shows_a_secret(name: str) -> None:
    for line in commands(name):
        assert not re.search(r"--from-literal=(secretKey|password|token)", line)
        assert not re.search(r"--docker-password|--token[= ]", line)


@pytest.mark.parametrize("name", GUIDES)
def test_settings_are_valid(name: str) -> None:
    """Both the context file and the block of a pipeline, by our own schemas."""
    found = list(yamls(name))
    contexts = [data for data in found if "server" in data]
    clusters = [data["cluster"] for data in found if "cluster" in data]
    assert len(contexts) == len(clusters) == 1
    assert Context.model_validate(contexts[0]).namespace == Context().namespace
    cluster = Cluster.model_validate(clusters[0])
    items = objects(name)
    claims = [x["metadata"]["name"] for x in items if x["kind"] == "PersistentVolumeClaim"]
    used = [volume.pvc for volume in cluster.volumes] + [cluster.workspace or claims[0]]
    assert set(used) <= set(claims)
    if cluster.priority_class:
        find(items, "PriorityClass", cluster.priority_class)
    if cluster.storage.endpoint:
        host, _, port = cluster.storage.endpoint.removeprefix("http://").partition(":")
        service = find(items, "Service")
        assert host == f"{service['metadata']['name']}.dpaflow.svc.cluster.local"
        assert int(port) == service["spec"]["ports"][0]["port"]
        repository = find(items, "ConfigMap")["data"]["dpaflow"]
        assert yaml.safe_load(repository)["s3"]["endpoint"] == f"{host}:{port}"


def test_secret_of_the_local_s3_server(tmp_path: Path) -> None:
    """The documented command makes the keys that the manifests ask for, a new one each time."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    (line,) = [x for x in commands("local") if "create secret generic dpaflow-s3" in x]
    shell = ["bash", "-c", f"{line} --dry-run=client -o yaml"]
    path = f"{Path(kubectl).parent}:/usr/bin:/bin"
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    made = [run(shell, env={"PATH": path, "HOME": str(tmp_path)}).stdout for _ in range(2)]
    secret = yaml.safe_load(made[0])
    assert made[0] != made[1]
    assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == (
        "dpaflow-s3",
        "dpaflow",
    )
    assert set(secret["data"]) == {"accessKey", "secretKey"}
    container = (pod_spec(find(objects("local"), "Deployment")) or {})["containers"][0]
    wanted = [x["valueFrom"]["secretKeyRef"] for x in container["env"] if "valueFrom" in x]
    assert {x["key"] for x in wanted} == set(secret["data"])
    assert {x["name"] for x in wanted} == {"dpaflow-s3"}


# --- what the renderer takes for granted, and what base provides


@pytest.mark.parametrize("name", OVERLAYS)
def test_defaults_of_a_pipeline_fit(name: str) -> None:
    cluster, items = Cluster(), objects(name)
    assert find(items, "Namespace")["metadata"]["name"] == Context().namespace
    for account in (
        cluster.service_account,
        cluster.advance_service_account,
        cluster.gc_service_account,
    ):
        find(items, "RoleBinding", account)
    config_map, _, key = cluster.storage.repository.partition("/")
    repository = yaml.safe_load(find(items, "ConfigMap", config_map)["data"][key])
    s3 = repository["s3"]
    assert repository["archiveLogs"] is True
    assert s3["bucket"] == cluster.storage.bucket
    assert s3["keyFormat"].startswith(f"{cluster.storage.prefix}/")
    assert s3["accessKeySecret"] == {"name": cluster.storage.secret, "key": "accessKey"}
    assert s3["secretKeySecret"] == {"name": cluster.storage.secret, "key": "secretKey"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_token_of_argos_helper(name: str) -> None:
    """Argo looks for it by this name, as no account lists its tokens any more."""
    account = Cluster().service_account
    secret = find(objects(name), "Secret")
    assert secret["metadata"]["name"] == f"{account}.service-account-token"
    assert secret["metadata"]["annotations"] == {"kubernetes.io/service-account.name": account}
    assert not find(objects(name), "ServiceAccount", account)["automountServiceAccountToken"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_quota_has_room_for_the_default_parallelism(name: str) -> None:
    hard = find(objects(name), "ResourceQuota")["spec"]["hard"]
    pods, step = Cluster().parallelism, Resources()
    assert int(hard["pods"]) >= pods
    assert quantity(hard["requests.cpu"]) >= pods * quantity(step.cpu)
    # the second attempt of a step has twice the memory
    assert quantity(hard["limits.memory"]) >= 2 * pods * quantity(step.memory)


def test_gpu_overlay_has_gpus() -> None:
    hard = find(objects("gpu"), "ResourceQuota")["spec"]["hard"]
    assert int(hard[f"requests.{Resources().gpu_resource}"]) > 0


def test_default_image_is_the_one_the_guides_build() -> None:
    assert Cluster().image == f"dpaflow:{version('dpaflow')}"
    for name in ("deploy", "local"):
        assert f"docker build -f deploy/docker/Dockerfile -t {Cluster().image} ." in commands(name)


def test_pods_of_the_overlays_have_the_same_user() -> None:
    for name in (*OVERLAYS, "loader"):
        for item in objects(name):
            spec = pod_spec(item)
            if spec is not None:
                assert spec["securityContext"]["runAsUser"] == Cluster().user


def test_values_of_the_device_plugin_are_its_own_format() -> None:
    path = KUBERNETES / "overlays" / "gpu" / "nvidia.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values["gfd"]["enabled"], "gpu_type needs the labels of the nodes"
    configs = {key: yaml.safe_load(value) for key, value in values["config"]["map"].items()}
    assert values["config"]["default"] in configs
    assert "sharing" not in configs[values["config"]["default"]], "no trainings on a shared GPU"
    (shared,) = configs["shared"]["sharing"]["timeSlicing"]["resources"]
    assert shared["name"] == Resources().gpu_resource
    assert text("gpu").count("device-plugin.config=shared") == 1


def test_argos_helper_may_run_in_a_restricted_namespace() -> None:
    """Argo gives it no security context by itself, and Kubernetes would refuse the pod."""
    settings = find(objects("argo"), "ConfigMap")["data"]
    helper = yaml.safe_load(settings["executor"])
    pod = yaml.safe_load(settings["workflowDefaults"])["spec"]["securityContext"]
    container = {"name": "wait", "image": "argoexec:v4", **helper}
    wrapped = {
        "kind": "Pod",
        "metadata": {"name": "step"},
        "spec": {"securityContext": pod, "containers": [container]},
    }
    for policy in (policies.no_root, policies.no_escalation, policies.no_capabilities,
                   policies.seccomp, policies.resources_set):  # fmt: skip
        assert not list(policy([wrapped]))
    assert "runAsUser" not in helper["securityContext"], "it reads files that the step's user wrote"
