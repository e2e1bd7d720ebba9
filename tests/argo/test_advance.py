"""The step that submits the next workflow, against a small Kubernetes API."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from ops.pod import EXIT_CODES
from tests.argo import make_golden
from tests.workflows.kubernetes_api import serving
from workflows.backends.argo import advance

DECISION = {"go": True, "verdict": "go on", "rows": [], "labelled": 3}
EXAMPLE = make_golden.ROOT / "examples" / "concurrent_learning" / "emt.yaml"


class Cluster:
    """Workflows by name; `before` and `broken` make trouble."""

    def __init__(self, first: dict[str, Any]) -> None:
        self.workflows = {first["metadata"]["name"]: first}
        self.gets = 0
        self.stopped_at = 0
        self.host = ""

    def __call__(self, request: Any, body: Any) -> tuple[int, dict[str, Any]]:
        name = request.path.rpartition("/")[2]
        if request.command == "POST":
            name = body["metadata"]["name"]
            if name in self.workflows:
                return 409, {}
            self.workflows[name] = body
            return 201, body
        self.gets += 1
        if self.stopped_at == self.gets:
            self.workflows[name]["spec"]["shutdown"] = "Stop"
        found = self.workflows.get(name)
        return (404, {}) if found is None else (200, copy.deepcopy(found))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    first = make_golden.rendered(EXAMPLE, tmp_path)
    found = Cluster(first)
    request = tmp_path / "request"
    request.write_text(json.dumps({"workflow": first["metadata"]["name"], "decision": DECISION}))
    monkeypatch.setattr(sys, "argv", ["advance", str(request)])
    monkeypatch.setenv("DPAFLOW_TERMINATION_LOG", str(tmp_path / "termination"))

    def connect(server: advance.Server) -> None:
        server.namespace = "dpaflow"
        settings = client.Configuration(host=found.host)
        settings.retries = 0
        server.api = client.CustomObjectsApi(client.ApiClient(settings))

    monkeypatch.setattr(advance.Server, "__init__", connect)
    with serving(found) as found.host:
        yield found


def follower(cluster: Cluster) -> str:
    return next(iter(cluster.workflows)).replace("-001", "-002")


def test_labels_of_the_server_are_handed_on(cluster: Cluster) -> None:
    (first,) = cluster.workflows.values()
    given = {"workflows.argoproj.io/controller-instanceid": "blue",
             "workflows.argoproj.io/creator": "ada",
             "workflows.argoproj.io/phase": "Running"}  # fmt: skip
    first["metadata"]["labels"] |= given
    assert advance.main() == 0
    labels = cluster.workflows[follower(cluster)]["metadata"]["labels"]
    assert labels["dpaflow/sequence"] == "2"
    assert {n for n in labels if "argoproj" in n} == set(list(given)[:2])


def test_once_more_is_the_same_and_another_is_not(cluster: Cluster, tmp_path: Path) -> None:
    assert advance.main() == advance.main() == 0
    cluster.workflows[follower(cluster)]["spec"]["arguments"]["parameters"][0]["value"] = "other"
    assert advance.main() == EXIT_CODES["config"]
    assert "is there already, with other settings" in (tmp_path / "termination").read_text()


@pytest.mark.parametrize("get", [1, 2])
def test_nothing_follows_a_workflow_that_is_stopped(cluster: Cluster, get: int) -> None:
    cluster.stopped_at = get
    assert advance.main() == EXIT_CODES["interrupted"]
    assert len(cluster.workflows) == 1


def test_an_api_that_is_away_is_asked_again(cluster: Cluster, tmp_path: Path) -> None:
    cluster.host = "http://127.0.0.1:9"  # nobody is there
    assert advance.main() == EXIT_CODES["transient"]
    assert "cannot read workflow" in (tmp_path / "termination").read_text()
