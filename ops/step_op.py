"""The one dflow OP: unpack artifacts, call `run_step`, pack the step's folder.

Only what builds dflow workflows imports this module (importing dflow takes a second). Every
step of a pipeline is a `StepOP`; what it does is in its `request`. In a workflow of your own,
`step` makes one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dflow import Step
from dflow import config as dflow_config
from dflow.python import (
    OP,
    OPIO,
    Artifact,
    BigParameter,
    FatalError,
    NestedDict,
    OPIOSign,
    PythonOPTemplate,
    TransientError,
)

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError
from ops import base
from ops.storage import is_outside

FOLDER = "folder"
"""Name of the output artifact of a step: all that its function wrote."""
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
        return OPIOSign({FOLDER: Artifact(Path)})

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
        return OPIO({FOLDER: outdir})

    def handle_outputs(self, outputs: dict[str, Any], symlink: bool = False) -> None:
        """Hand the folder over: on one machine a link to it, in a pod a copy."""
        super().handle_outputs(outputs, symlink=symlink or STEPS_FOLDER in os.environ)


def step(
    request: base.StepRequest, artifacts: Mapping[str, Any], executor: Any = None, **template: Any
) -> Step:
    """Make a dflow step that runs an OP.

    Parameters
    ----------
    request
        OP, settings, inputs. A path of the inputs is "NAME:path/in/it", where NAME is one of
        `artifacts`; an absolute path is one of the machine that runs the step.
    artifacts
        By name: another step made by this function (its folder is meant), or any artifact of
        dflow, as an output of an OP of your own or what `upload_artifact` returns.
    executor
        A dflow Executor, e.g. one that makes a job of the step; None to run it here.
    template
        Arguments of `dflow.python.PythonOPTemplate`: image, requests, envs, mounts, ...

    Returns
    -------
    Step
        Its only output is the artifact "folder".

    Raises
    ------
    ConfigError
        An input refers to an artifact that is not given.
    """
    for path in base.iter_paths(request.inputs):
        if not is_outside(path) and path.partition(":")[0] not in artifacts:
            raise ConfigError(
                f"step {request.key!r} reads {str(path)!r}; that is no absolute path, no URL and "
                f"no NAME:PATH with an artifact NAME: {', '.join(artifacts) or '(none)'}"
            )
    bound: dict[str, Any] = {
        name: value.outputs.artifacts[FOLDER] if isinstance(value, Step) else value
        for name, value in artifacts.items()
    }
    options = {"command": python_command(), "upload_dflow": False, **template}
    every: dict[str, Any] = {"artifacts": bound or None}
    return Step(
        request.key,
        PythonOPTemplate(StepOP, **options),
        parameters={"request": request.model_dump(mode="json")},
        artifacts=every,
        key=request.key,
        executor=executor,
    )


def python_command() -> list[str]:
    """Return what starts Python in a step: this very one, or in a pod the one of its image."""
    return [sys.executable if dflow_config["mode"] == "debug" else "python"]


def _resolve(reference: Any, artifacts: Any) -> str:
    """Turn "artifact:sub/path" into a path; absolute paths and URLs stay."""
    if is_outside(reference):
        return str(reference)
    name, _, path = str(reference).partition(":")
    folder = artifacts[name]
    # dflow wraps each member of a dictionary of artifacts in a list
    folder = folder[0] if isinstance(folder, list) else folder
    return str((Path(folder) / path).resolve())
