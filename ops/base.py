"""How an OP runs safely as a step of a pipeline.

An OP is a plain function `function(inputs, config, outdir)` with a class of inputs (a
NamedTuple of paths) and a class of settings (a `Config`); `ops.catalog` is the table of them.
As a step of a pipeline

    step_op.StepOP (dflow)  ->  run_step (here)  ->  python -m ops.run (child process)

the function runs in a process of its own, so that a time limit can end it, a retry starts
clean and a crash of its libraries is a message, not the end of the pipeline. A step's folder
holds, beside the function's own files,

    request.json   what was asked: op, settings, inputs, fingerprint
    status.json    state, reason, exit code, elapsed time, attempts
    step.log       everything the function logged or printed, one attempt after another
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator
from pydantic_core import to_jsonable_python

from dpa_core.config import Config
from ops.catalog import find_op
from ops.files import write_json

log = logging.getLogger(__name__)

REQUEST, STATUS, LOG, OUTCOME = "request.json", "status.json", "step.log", "outcome.json"
OWN_FILES = (REQUEST, STATUS, LOG, OUTCOME)
STOP_GRACE = 60.0
"""Seconds a function gets to save its state after SIGTERM, before SIGKILL."""
TAIL_LINES = 15
"""Lines of the log quoted in a failure message."""

State = Literal["queued", "running", "succeeded", "failed", "interrupted", "paused"]
Kind = Literal["config", "fatal", "transient", "timeout", "killed", "interrupted", "paused"]


class Paused(Exception):
    """A step cannot go on before the user has done something; the text says what.

    The step's state becomes "paused", the run ends with exit code 0 and shows the text;
    `dpaflow resume` runs the step again.
    """


class StepRequest(Config):
    """What a step is asked to do."""

    key: str
    """Name of the step, unique in its pipeline."""
    op: str
    """Name of the OP, see `find_op`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings, validated by the OP's class in the child process; its object will do, too."""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """Fields of the OP's inputs: a path, a list of paths, or a dictionary of those."""
    fingerprint: str = ""
    """Hash of all of the above and of everything upstream; a change empties the folder."""
    timeout: PositiveFloat | None = None
    """Seconds one attempt may take; None for no limit."""
    retries: NonNegativeInt = 0
    """Further attempts after a transient failure (I/O, lost node)."""

    @field_validator("config", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return _document(value) if isinstance(value, Config) else value


def _document(value: Any) -> Any:
    """Return settings as plain data: what was set, and every `type`, which tells classes apart."""
    if isinstance(value, Config):
        named = {name for name in type(value).model_fields if name == "type"}
        return {n: _document(getattr(value, n)) for n in sorted(value.model_fields_set | named)}
    if isinstance(value, Mapping):
        return {name: _document(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_document(item) for item in value]
    return to_jsonable_python(value)


class Status(NamedTuple):
    """The content of status.json.

    `kind` says what sort of failure it was, `reason` says it in words.
    """

    key: str
    op: str
    state: State
    reason: str = ""
    kind: Kind | None = None
    exit_code: int | None = None
    elapsed: float = 0.0
    attempts: int = 0
    started: str = ""
    fingerprint: str = ""
    pid: int | None = None


class StepError(Exception):
    """A step failed; `status` says how, the text is the message for the user."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


def read_status(outdir: Path) -> Status | None:
    """Return the status of a step's folder, None if it has not started."""
    try:
        return Status(**json.loads((outdir / STATUS).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, TypeError):
        return None


def log_tail(outdir: Path, lines: int = TAIL_LINES) -> list[str]:
    """Return the last lines of a step's log."""
    try:
        with (outdir / LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 400 * lines))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def run_step(request: StepRequest, outdir: Path) -> Status:
    """Run a step's function in a child process, with its time limit and retries.

    Parameters
    ----------
    request
        What to run; the paths of its inputs are absolute.
    outdir
        The step's folder. A resumable OP finds what an interrupted run of the same
        request left there.

    Raises
    ------
    StepError
        If the last attempt failed; the message ends with the tail of the log.
    """
    from filelock import FileLock, Timeout

    outdir.mkdir(parents=True, exist_ok=True)
    status = Status(request.key, request.op, "running", fingerprint=request.fingerprint)
    try:
        with FileLock(outdir.parent / f".{outdir.name}.lock", timeout=STOP_GRACE):
            return _attempts(request, outdir, status)
    except Timeout as error:
        reason = f"another process is still at work in {outdir}; wait for it or end it"
        raise StepError(reason, status._replace(state="failed", reason=reason)) from error


def _attempts(request: StepRequest, outdir: Path, status: Status) -> Status:
    _empty(outdir, request)
    write_json(outdir / REQUEST, request.model_dump(mode="json"))
    begin = time.monotonic()
    status = status._replace(started=datetime.now(UTC).isoformat(timespec="seconds"))
    for attempt in range(1, request.retries + 2):
        if attempt > 1:
            time.sleep(min(30.0, 2.0 ** (attempt - 2)))
            _empty(outdir, request)
        status = _attempt(request, outdir, status._replace(attempts=attempt))
        status = status._replace(elapsed=round(time.monotonic() - begin, 3))
        if status.kind != "transient":
            break
        log.warning("%s: attempt %d: %s", request.key, attempt, status.reason)
    write_json(outdir / STATUS, status._asdict())
    if status.state != "succeeded":
        tail = "\n".join(f"  | {line}" for line in log_tail(outdir))
        raise StepError(f"{request.key}: {status.reason}\n{tail}", status)
    return status


def _empty(outdir: Path, request: StepRequest) -> None:
    """Remove what an earlier run left, unless this very request can continue from it."""
    try:
        before = json.loads((outdir / REQUEST).read_text(encoding="utf-8"))["fingerprint"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        before = None
    same = before == request.fingerprint
    if same and find_op(request.op).resumable:
        (outdir / OUTCOME).unlink(missing_ok=True)
        return
    keep = {LOG, REQUEST} if same else set()
    for path in outdir.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _attempt(request: StepRequest, outdir: Path, status: Status) -> Status:
    with (outdir / LOG).open("ab") as output:
        output.write(f"--- {request.key}: attempt {status.attempts}\n".encode())
        output.flush()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "ops.run", str(outdir), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    write_json(outdir / STATUS, status._replace(state="running", pid=child.pid)._asdict())
    timed_out = False
    try:
        child.wait(request.timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        _stop(child)
    except BaseException:  # SIGTERM or Ctrl-C: whatever ends us ends the child, gently
        _stop(child)
        stopped = status._replace(state="interrupted", kind="interrupted", reason="interrupted")
        write_json(outdir / STATUS, stopped._replace(elapsed=_since(status.started))._asdict())
        raise
    _end_group(child.pid)  # a child that was killed may have left processes of its own
    if timed_out:
        return status._replace(
            state="failed",
            kind="timeout",
            exit_code=124,
            reason=f"still running after {request.timeout:g} s; raise execution.timeout",
        )
    return _verdict(status, outdir, child.returncode)


def _since(moment: str) -> float:
    return round((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 3)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and all it started: SIGTERM to the function, SIGKILL to what is left."""
    child.terminate()
    try:
        child.wait(STOP_GRACE)
    except subprocess.TimeoutExpired:
        log.warning("process %d ignored SIGTERM for %g s", child.pid, STOP_GRACE)
    _end_group(child.pid)
    child.wait()


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _verdict(status: Status, outdir: Path, code: int) -> Status:
    """Judge an attempt by the outcome the child wrote, else by its exit code."""
    try:
        outcome = json.loads((outdir / OUTCOME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        outcome = {"kind": None, "reason": ""}
    (outdir / OUTCOME).unlink(missing_ok=True)
    if outcome["kind"] == "succeeded" and code == 0:
        return status._replace(state="succeeded", kind=None, reason="", exit_code=0)
    kind, reason = outcome["kind"], outcome["reason"]
    if kind in (None, "succeeded"):
        kind, reason = explain_exit(code)
    state: State = kind if kind in ("interrupted", "paused") else "failed"
    return status._replace(state=state, kind=kind, reason=reason, exit_code=code)


def explain_exit(code: int) -> tuple[Kind, str]:
    """Say what an exit code without further message means."""
    if code in (0, -signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGINT):
        return "interrupted", "stopped before it was done; resume to continue"
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed", (
            "killed (SIGKILL), most often because memory ran out; use smaller batches, a "
            "smaller model or a lower execution.parallel"
        )
    if code < 0:
        return "fatal", f"ended by {signal.Signals(-code).name}"
    return "fatal", f"ended with exit code {code} and no message; see the log"


def map_paths(value: Any, function: Callable[[str], Any]) -> Any:
    """Apply `function` to every path of a (nested) input value."""
    if isinstance(value, Mapping):
        return {name: map_paths(item, function) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_paths(item, function) for item in value]
    return function(value)


def iter_paths(value: Any) -> Iterator[str]:
    """Yield every path of a (nested) input value."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from iter_paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from iter_paths(item)
    else:
        yield value
