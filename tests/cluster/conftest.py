"""A real cluster: where it is comes from the environment, as for the commands.

ARGO_SERVER, ARGO_TOKEN, ... or a context file   the Argo server
KUBECONFIG                                       to kill a pod
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...         the bucket, as seen from here
DPAFLOW_TEST_CLUSTER                             YAML file: the pipelines' block `cluster`;
                                                 left out: for deploy/kubernetes/overlays/local
DPAFLOW_TEST_MINUTES                             patience with one run, 60 if left out
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflows.backends.argo.client import ArgoClient
from workflows.backends.argo.context import CONTEXT, DEFAULT, load_context

LOCAL = {
    "storage": {"endpoint": "http://s3.dpaflow.svc.cluster.local:7070", "region": "us-east-1"},
    "resources": {"default": {"cpu": 1, "memory": "3Gi", "disk": "5Gi"}},
    "parallelism": 2,
}  # fmt: skip


class Cluster:
    """Commands given from a folder, and the runs they made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = ArgoClient(load_context())
        self.patience = 60 * float(os.environ.get("DPAFLOW_TEST_MINUTES", "60"))
        self.runs: list[str] = []

    def write(self, document: dict[str, Any]) -> tuple[str, Path]:
        """Write a pipeline under a name of its own; return the id of its run and the file."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        given = os.environ.get("DPAFLOW_TEST_CLUSTER")
        block = yaml.safe_load(Path(given).read_text()) if given else LOCAL
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**document, "name": name, "cluster": block}))
        self.runs.append(name)
        return name, path

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Run `dpaflow` and return its exit code and all it said."""
        done = subprocess.run(
            [sys.executable, "-m", "workflows.cli", *map(str, arguments)],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.folder, timeout=self.patience,
        )  # fmt: skip
        return done.returncode, done.stdout

    def ok(self, *arguments: object) -> str:
        """Run `dpaflow`, which has to succeed."""
        code, said = self(*arguments)
        assert code == 0, said
        return said

    def workflows(self, run: str) -> list[dict[str, Any]]:
        """Return the workflows of a run, oldest first."""
        return self.client.list(run)

    def clean(self) -> None:
        """Delete what the tests made; results stay in the bucket."""
        for run in self.runs:
            for workflow in self.client.summaries(run):
                self.client.delete(workflow["metadata"]["name"])


@pytest.fixture
def cluster(tmp_path):
    named = os.environ.get("ARGO_SERVER") or os.environ.get(CONTEXT)
    if not named and not DEFAULT.expanduser().exists():
        pytest.skip("no cluster: set ARGO_SERVER and ARGO_TOKEN, or write a context file")
    found = Cluster(tmp_path)
    yield found
    found.clean()
