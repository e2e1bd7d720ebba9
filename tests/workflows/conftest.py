import pytest


@pytest.fixture(autouse=True)
def _toy_ops_importable(monkeypatch, root):
    """Steps run in processes of their own, which have to find tests.workflows.toy_ops."""
    monkeypatch.setenv("PYTHONPATH", str(root))
