"""A real S3 server (moto's, over HTTP) and a proxy before it, for all tests of this folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.storage import client as storage_client
from ops.storage import local
from tests.storage.helpers import Zygote, zygotes
from tests.storage.proxy import Proxy

SECRET = "planted-secret-key-9f3a"
COUNT = itertools.count()


@pytest.fixture(scope="session")
def session_proxy(moto_server: str) -> Iterator[Proxy]:
    proxy = Proxy(moto_server)
    yield proxy
    proxy.stop()


@pytest.fixture
def proxy(session_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Proxy:
    """The proxy as endpoint, credentials, an empty cache; attempts follow each other at once."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": session_proxy.url,
        "AWS_ACCESS_KEY_ID": "planted-key-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/no/config",
        "AWS_SHARED_CREDENTIALS_FILE": "/no/credentials",
        "DPAFLOW_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage_client, "PAUSE", 0.001)
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda **_: 0.001)
    local._copies.clear()
    session_proxy.reset()
    session_proxy.delay = 0.0
    return session_proxy


@pytest.fixture(scope="session")
def s3(moto_server: str) -> Any:
    """A client that goes past the proxy."""
    import boto3

    session = boto3.session.Session("key", "secret", region_name="us-east-1")
    return session.client("s3", endpoint_url=moto_server)


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"bucket-{next(COUNT)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def session_workers() -> Iterator[tuple[Zygote, Zygote]]:
    with zygotes(2) as (one, two):
        yield one, two


@pytest.fixture
def workers(session_workers: tuple[Zygote, Zygote], proxy: Proxy) -> tuple[Zygote, Zygote]:
    """Two processes that run jobs in forks, with this test's environment."""
    for worker in session_workers:
        names = [n for n in os.environ if n.startswith(("AWS_", "DPAFLOW_"))]
        worker.environment = {name: os.environ[name] for name in names}
        worker.constants = {}
    return session_workers
