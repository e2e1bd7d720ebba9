"""Child process of a step: `python -m ops.run OUTDIR PARENT` does what OUTDIR/request.json asks.

Whatever happens is written to OUTDIR/outcome.json; only `ops.base.run_step` reads it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from dpa_core.config import parse_config
from dpa_core.errors import DPAError
from ops import base, catalog
from ops.files import means_full_disk, write_json
from ops.storage import Unreachable, localize, with_urls

# Trying again does not bring these back.
FATAL_OS_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
PARENT_POLL = 0.5
"""Seconds between two looks at whether the parent is still there."""


def classify(error: BaseException) -> tuple[base.Kind, str]:
    """Return the kind of failure an exception means, and one line to say it."""
    text = with_urls(str(error)) or type(error).__name__
    if isinstance(error, base.Paused):
        return "paused", text
    if means_full_disk(error):
        return "fatal", f"the disk is full ({text}); free some space and resume"
    if isinstance(error, Unreachable):
        return "transient", text
    if isinstance(error, DPAError):
        return ("config" if error.exit_code == 2 else "fatal"), text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "fatal", f"out of memory; use smaller batches or a smaller model ({text})"
    if isinstance(error, OSError):
        return ("fatal" if isinstance(error, FATAL_OS_ERRORS) else "transient"), text
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted"
    return "fatal", f"{type(error).__name__}: {text}"


def watch_parent(parent: int) -> None:
    """Ask this process and all it started to stop once process `parent` is gone.

    The number is given by the parent: asked for here, it might already be gone.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_POLL)
    logging.getLogger(__name__).warning("the pipeline ended, stopping")
    os.killpg(0, signal.SIGTERM)
    time.sleep(base.STOP_GRACE)
    os.killpg(0, signal.SIGKILL)


def execute(outdir: Path) -> None:
    """Run the function that OUTDIR/request.json asks for."""
    data = json.loads((outdir / base.REQUEST).read_text(encoding="utf-8"))
    request = parse_config(base.StepRequest, data, str(outdir / base.REQUEST))
    op = catalog.find_op(request.op)
    config = parse_config(catalog.load_reference(op.config), request.config, request.key)
    paths = base.map_paths(request.inputs, lambda path: Path(localize(path)))
    inputs = catalog.load_reference(op.inputs)(**paths)
    catalog.load_reference(op.function)(inputs, config, outdir)


def main() -> int:
    """Run the step and return the exit code: 0, 1, 2 (settings or data), 75 (try again)."""
    outdir = Path(sys.argv[1])
    threading.Thread(target=watch_parent, args=(int(sys.argv[2]),), daemon=True).start()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where credentials are
    kind: str = "succeeded"
    reason = ""
    try:
        execute(outdir)
    except SystemExit as error:
        kind, reason = "interrupted", "stopped before it was done; resume to continue"
        if error.code not in (None, 0, 128 + signal.SIGTERM):
            kind, reason = "fatal", f"the function called exit({error.code!r})"
    except BaseException as error:  # noqa: BLE001  (the border of the process)
        kind, reason = classify(error)
        if not isinstance(error, DPAError | base.Paused) and not means_full_disk(error):
            traceback.print_exc()
        logging.getLogger(__name__).error(reason)  # noqa: TRY400  (printed above where it helps)
    write_json(outdir / base.OUTCOME, {"kind": kind, "reason": reason})
    return {"succeeded": 0, "config": 2, "transient": 75}.get(kind, 1)


if __name__ == "__main__":
    sys.exit(main())
