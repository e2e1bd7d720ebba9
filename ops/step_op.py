"""The one dflow OP: unpack artifacts, call `run_step`, pack the step's folder.

Only the pipeline builder and dflow's own scripts import this module (importing dflow takes a
second). Every step of a pipeline is a `StepOP`; what it does is in its `request`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dflow.python import (
    OP,
    OPIO,
    Artifact,
    BigParameter,
    FatalError,
    NestedDict,
    OPIOSign,
    TransientError,
)

from dpa_core.config import parse_config
from ops import base

STEPS_FOLDER = "DPAFLOW_STEPS"
"""Environment variable: the folder whose sub-folder KEY is where step KEY works.

Set on one machine, so that an interrupted training finds its checkpoint again; unset in a
pod, where the step works in its own scratch directory.
"""


class StepOP(OP):
    """Run one step of a pipeline; see `ops.base`."""

    @classmethod
    def get_input_sign(cls) -> OPIOSign:
        """Artifacts by name, and the request whose inputs refer to them as "name:path"."""
        return OPIOSign(
            {
                "artifacts": Artifact(NestedDict[Path], optional=True),
                "request": BigParameter(dict),
            }
        )

    @classmethod
    def get_output_sign(cls) -> OPIOSign:
        """Return the step's folder."""
        return OPIOSign({"folder": Artifact(Path)})

    @OP.exec_sign_check
    def execute(self, op_in: OPIO) -> OPIO:
        """Run the step; a failure that may go away raises TransientError, any other FatalError."""
        request = parse_config(base.StepRequest, op_in["request"], "request")
        artifacts = op_in["artifacts"] or {}
        inputs = base.map_paths(request.inputs, lambda ref: _resolve(ref, artifacts))
        root = os.environ.get(STEPS_FOLDER)
        outdir = (Path(root) if root else Path.cwd() / "steps") / request.key
        try:
            base.run_step(request.model_copy(update={"inputs": inputs}), outdir)
        except base.StepError as error:
            transient = error.status.kind in ("transient", "interrupted")
            raise (TransientError if transient else FatalError)(str(error)) from error
        return OPIO({"folder": outdir})

    def handle_outputs(self, outputs: dict[str, Any], symlink: bool = False) -> None:
        """Hand the folder over: on one machine a link to it, in a pod a copy."""
        super().handle_outputs(outputs, symlink=symlink or STEPS_FOLDER in os.environ)


def _resolve(reference: Any, artifacts: Any) -> str:
    """Turn "artifact:sub/path" into a path; absolute paths stay."""
    if Path(reference).is_absolute():
        return str(reference)
    name, _, path = str(reference).partition(":")
    folder = artifacts[name]
    # dflow wraps each member of a dictionary of artifacts in a list
    folder = folder[0] if isinstance(folder, list) else folder
    return str((Path(folder) / path).resolve())
