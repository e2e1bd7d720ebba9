"""Fixtures every test may use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    """One thread each: the tests are small and run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real data; $DPAFLOW_SHARED or ../shared. Skips where there is none."""
    path = Path(os.environ.get("DPAFLOW_SHARED", ROOT.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no shared data at {path}; set DPAFLOW_SHARED to run this test")
    return path


@pytest.fixture(params=["kernels", "torch", "torch 7 atoms at once"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Way a model is evaluated; use it in tests that must pass on every one."""
    from dpa_core import derivatives
    from dpa_core.kernels.build import library

    if request.param == "kernels":
        if library("float64") is None:
            pytest.skip("no C++ compiler")
    else:
        monkeypatch.setenv("DPAFLOW_KERNELS", "0")
    if "at once" in request.param:
        monkeypatch.setattr(derivatives, "CHUNK", 7)
    return request.param


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """Address of a real S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
