"""Tables for people."""

import io

from rich.console import Console

from ops.base import Status
from workflows import monitor
from workflows.graph import Node
from workflows.local_run import LocalRun
from workflows.run_folder import RunFolder, StepState


def test_a_long_reason_leaves_step_and_state_readable(tmp_path):
    node = Node("finetune-ternary-dpa1-n00064-s001", "train", {})
    status = Status(node.key, "train", "failed", reason="very wrong " * 30, elapsed=65.0,
                    started="2026-01-01T00:00:00+00:00")  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    console.print(monitor.table([StepState(node, "failed", status)], LocalRun(RunFolder(tmp_path))))
    row = console.file.getvalue().splitlines()[1]
    assert row.startswith("finetune-ternary-dpa1-n00064-s001  failed  1 min 05 s  very wrong")
