import pytest

from tests.argo_server.desk import desk  # noqa: F401
from tests.argo_server.fixtures import certificate, s3_server, serve  # noqa: F401


@pytest.fixture(autouse=True)
def _toy_ops_importable(monkeypatch, root):
    """Steps run in processes of their own, which have to find tests.workflows.toy_ops."""
    monkeypatch.setenv("PYTHONPATH", str(root))
