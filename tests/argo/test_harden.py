"""One test for each rule that dflow cannot express, on every example."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dpa_core.yaml_file import to_yaml
from ops.pod import EXIT_CODES
from tests.argo import make_golden
from tests.argo.test_render import EXAMPLES, steps
from workflows.backends.argo.inputs import externalise
from workflows.backends.argo.render import render
from workflows.backends.argo.run import ADVANCE, Run


@pytest.fixture(scope="module", params=EXAMPLES)
def manifest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return make_golden.rendered(EXAMPLES[request.param], tmp_path_factory.mktemp("data"))


def test_no_root(manifest: dict) -> None:
    pod = manifest["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == 1000
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for template in steps(manifest).values():
        container = template["script"]["securityContext"]
        assert container["runAsNonRoot"] is True
        assert container["allowPrivilegeEscalation"] is False
        assert container["readOnlyRootFilesystem"] is True
        assert container["capabilities"] == {"drop": ["ALL"]}


def test_helpers_of_argo_have_no_privileges(manifest: dict) -> None:
    patch = json.loads(manifest["spec"]["podSpecPatch"])
    for container in (*patch["initContainers"], *patch["containers"]):
        assert container["name"] in ("init", "wait")
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_what_is_written_lies_on_a_volume(manifest: dict) -> None:
    for template in steps(manifest).values():
        mounts = [m["mountPath"] for m in template["script"]["volumeMounts"]]
        assert "/tmp" in mounts
        for artifact in template.get("outputs", {}).get("artifacts", []):
            assert any(artifact["path"].startswith(f"{mount}/") for mount in mounts)
        for artifact in template.get("inputs", {}).get("artifacts", []):
            assert not any(artifact["path"].startswith(f"{mount}/") for mount in mounts)


def test_volumes_have_limits_and_are_not_of_the_host(manifest: dict) -> None:
    for template in steps(manifest).values():
        for volume in template["volumes"]:
            kind = set(volume) - {"name"}
            assert kind <= {"emptyDir", "persistentVolumeClaim"}
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
        mounted = {m["name"] for m in template["script"]["volumeMounts"]}
        assert mounted == {v["name"] for v in template["volumes"]}


def test_limits_are_set(manifest: dict) -> None:
    for template in steps(manifest).values():
        resources = template["script"]["resources"]
        assert resources["limits"] == resources["requests"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["limits"])


def test_only_advance_has_a_token(manifest: dict) -> None:
    spec = manifest["spec"]
    assert spec["serviceAccountName"] == spec["executor"]["serviceAccountName"]
    assert spec["serviceAccountName"] == "dpaflow-workflow"
    assert spec["automountServiceAccountToken"] is False
    for key, template in steps(manifest).items():
        assert template.get("automountServiceAccountToken", False) is (key == ADVANCE)
        account = template.get("serviceAccountName", "dpaflow-workflow")
        assert account == ("dpaflow-advance" if key == ADVANCE else "dpaflow-workflow")


def test_nothing_stays_for_ever(manifest: dict) -> None:
    spec = manifest["spec"]
    assert spec["activeDeadlineSeconds"] == 7 * 86400
    assert spec["ttlStrategy"] == {"secondsAfterCompletion": 30 * 86400}
    assert spec["podGC"]["strategy"] == "OnPodSuccess"  # what failed can be looked at
    assert spec["archiveLogs"] is True
    assert spec["artifactGC"] == {"strategy": "Never"}
    grace = json.loads(spec["podSpecPatch"])["terminationGracePeriodSeconds"]
    assert grace > 60  # a training has that long to save its state


def retried(expression: str, status: str, code: int, message: str = "") -> bool:
    """Evaluate a retry expression by hand: Argo's operators are nearly Python's."""
    text = expression.replace("&&", " and ").replace("||", " or ").replace("!(", " not (")
    text = re.sub(r"lastRetry\.message matches ('[^']*')", r"bool(re.search(\1, message))", text)
    text = text.replace("lastRetry.status", "status")
    text = text.replace("asInt(lastRetry.exitCode)", "code")
    return bool(eval(text, {"re": re}, {"status": status, "code": code, "message": message}))


DEADLINE = "Pod was active on the node longer than the specified deadline"


@pytest.mark.parametrize(
    ("status", "code", "message", "again"),
    [
        ("Error", -1, "pod deleted", True),
        ("Failed", -1, "The node was low on resource: memory", True),
        ("Failed", EXIT_CODES["transient"], "Error (exit code 75)", True),
        ("Failed", 137, "OOMKilled (exit code 137)", True),
        ("Failed", 143, "Error (exit code 143)", True),
        ("Failed", EXIT_CODES["config"], "Error (exit code 2)", False),
        ("Failed", EXIT_CODES["fatal"], "Error (exit code 1)", False),
        ("Failed", EXIT_CODES["paused"], "Error (exit code 76)", False),
        ("Failed", EXIT_CODES["timeout"], "Error (exit code 124)", False),
        ("Failed", -1, DEADLINE, False),
        ("Failed", 127, "Error (exit code 127)", False),
    ],
)
def test_retry_what_is_nobodys_fault(
    manifest: dict, status: str, code: int, message: str, *, again: bool
) -> None:
    for template in steps(manifest).values():
        strategy = template["retryStrategy"]
        assert strategy["retryPolicy"] == "Always"  # the expression alone decides
        assert retried(strategy["expression"], status, code, message) is again
        # Argo's maxDuration counts from the first attempt's start: trainings take hours
        assert strategy["backoff"] == {"duration": "30s", "factor": "2"}


def test_labels_and_annotations(manifest: dict) -> None:
    meta = manifest["metadata"]
    run = meta["labels"]["dpaflow/run"]
    assert meta["name"] == f"{run}-001"
    assert meta["labels"]["app.kubernetes.io/managed-by"] == "dpaflow"
    assert manifest["spec"]["podMetadata"]["labels"]["dpaflow/run"] == run
    assert meta["annotations"]["dpaflow/version"] == "0.1.0"
    assert re.fullmatch("[0-9a-f]{16}", meta["annotations"]["dpaflow/content-hash"])


def test_images_are_ours(manifest: dict) -> None:
    """No helper image of dflow (python:3.8 and the like) sneaks in."""
    images = set(re.findall(r"image: (\S+)", to_yaml(manifest)))
    assert all("dpaflow" in image and ":0.1.0" in image for image in images)


def test_settings_of_the_cluster(tmp_path: Path) -> None:
    pipeline, _ = externalise(make_golden.load(EXAMPLES["demo"], tmp_path))
    cluster = {
        "image": "registry.example.com/dpaflow:0.1.0", "image_pull_secrets": ["registry"],
        "priority_class": "low", "parallelism": 3, "artifacts": "delete", "user": 2000,
        "service_account": "mine", "deadline": "2h", "keep": "1d", "labels": {"team": "a"},
        "storage": {"repository": "my-repositories/here"},
    }  # fmt: skip
    changed = pipeline.model_validate(
        pipeline.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"cluster": cluster}
    )
    manifest = render(Run(changed))
    spec = manifest["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["podPriorityClassName"] == "low"
    assert spec["parallelism"] == 3
    assert spec["artifactGC"] == {
        "strategy": "OnWorkflowDeletion", "serviceAccountName": "dpaflow-artifact-gc",
        "podSpecPatch": '{"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}',
    }  # fmt: skip
    assert spec["securityContext"]["runAsUser"] == 2000
    assert spec["serviceAccountName"] == "mine"
    assert spec["activeDeadlineSeconds"] == 7200
    assert spec["ttlStrategy"] == {"secondsAfterCompletion": 86400}
    assert manifest["metadata"]["labels"]["team"] == "a"
    assert spec["artifactRepositoryRef"] == {"configMap": "my-repositories", "key": "here"}


SECRETS = {
    "ARGO_TOKEN": "planted-argo-token",
    "AWS_ACCESS_KEY_ID": "planted-access-key",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "DFLOW_TOKEN": "planted-dflow-token",
    "DFLOW_S3_ACCESS_KEY": "planted-dflow-access",
    "DFLOW_S3_SECRET_KEY": "planted-dflow-secret",
    "DFLOW_HTTP_HEADERS": "authorization:planted-header",
    "KUBECONFIG": "/planted/kubeconfig",
    "HF_TOKEN": "planted-hub-token",
}


def test_planted_secrets(manifest: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Secrets in the environment and in dflow's settings reach no byte of a manifest."""
    from dflow import config, s3_config

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(config, "token", "planted-config-token")
    monkeypatch.setitem(config, "http_headers", {"authorization": "planted-config-header"})
    monkeypatch.setitem(s3_config, "access_key", "planted-config-access")
    monkeypatch.setitem(s3_config, "secret_key", "planted-config-secret")
    monkeypatch.setitem(s3_config, "endpoint", "planted-endpoint:9000")
    name = manifest["metadata"]["annotations"]["dpaflow/pipeline"]
    for example, path in EXAMPLES.items():
        again = make_golden.rendered(path, tmp_path / example)
        if again["metadata"]["annotations"]["dpaflow/pipeline"] == name:
            text = to_yaml(again) + json.dumps(again)
            assert "planted" not in text
            assert "password" not in text
