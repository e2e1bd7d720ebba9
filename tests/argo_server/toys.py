"""Cheap OPs of a loop, for pods."""

from pathlib import Path
from typing import Any

from tests.workflows.toy_ops import ADD


def go_on(_outdir: Path) -> dict[str, Any]:
    """Say what a deciding step says that wants another iteration."""
    return {"go": True, "verdict": "continue", "message": "", "advice": "", "next_stage": 0,
            "labelled": 2, "rows": []}  # fmt: skip


DECIDE = ADD._replace(result="tests.argo_server.toys:go_on")
