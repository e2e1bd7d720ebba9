"""The process in which dflow runs: `python -m workflows.backends.master RUN PARENT`.

Started by `workflows.backends.local` with dflow's settings in the environment; its exit code
means nothing, the steps' status files tell how they ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflows.backends.local import POLL
from workflows.graph import Node, remaining, to_dflow
from workflows.run_folder import WORKFLOW, RunFolder
from workflows.schema import Execution


def watch_parent(parent: int) -> None:
    """End this process group once the supervising process is gone (perhaps already is)."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os.killpg(0, signal.SIGTERM)


def hold(lock: Path) -> None:
    """Lock a file until this process and the workers it forks are gone.

    Forked workers share the lock because the descriptor stays open; filelock would close it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def main() -> None:
    """Build the dflow Steps of the plan and run them."""
    threading.Thread(target=watch_parent, args=(int(sys.argv[2]),), daemon=True).start()
    folder = RunFolder(Path(sys.argv[1]))
    hold(folder.master_lock)
    plan = json.loads(folder.plan.read_text(encoding="utf-8"))
    from dflow import Workflow

    execution = Execution.model_validate(plan["execution"])
    prints = plan["fingerprints"]
    nodes = remaining([Node(**item) for item in plan["nodes"]], set(plan["todo"]), folder.steps)
    steps = _steps(nodes, execution, prints, folder)
    Workflow(WORKFLOW, steps=steps, id=WORKFLOW).submit()


def _steps(
    nodes: Sequence[Node], execution: Execution, prints: Mapping[str, str], folder: RunFolder
) -> Any:
    if execution.backend == "local":
        return to_dflow(nodes, execution, prints)
    from workflows.backends.slurm.executor import executor_for, on_gpus

    nodes = [on_gpus(node, execution) for node in nodes]
    return to_dflow(
        nodes, execution, prints, lambda x: executor_for(x, execution, prints[x.key], folder)
    )


if __name__ == "__main__":
    main()
