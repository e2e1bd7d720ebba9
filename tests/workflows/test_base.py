"""run_step: one function in a process of its own."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dpa_core.errors import ConfigError
from ops import base, catalog
from ops.files import write_json
from ops.run import classify

ADD = "tests.workflows.toy_ops:ADD"
COUNT = "tests.workflows.toy_ops:COUNT"


def request(op=ADD, fingerprint="f", timeout=None, retries=0, inputs=None, **config):
    return base.StepRequest(key="step", op=op, config=config, fingerprint=fingerprint,
                            timeout=timeout, retries=retries, inputs=inputs or {})  # fmt: skip


def test_success_leaves_result_status_request_and_log(tmp_path):
    (tmp_path / "five").write_text("5")
    inputs = {"parts": [str(tmp_path / "five")], "one": str(tmp_path / "five")}
    status = base.run_step(request(value=1, inputs=inputs), tmp_path / "step")
    assert (tmp_path / "step" / "number").read_text() == "11"
    assert status == base.read_status(tmp_path / "step")
    assert (status.state, status.exit_code, status.attempts, status.pid) == (
        "succeeded",
        0,
        1,
        None,
    )
    assert status.elapsed > 0
    assert json.loads((tmp_path / "step" / "request.json").read_text())["config"] == {"value": 1}
    assert "attempt 1" in (tmp_path / "step" / "step.log").read_text()


@pytest.mark.parametrize(
    ("fail", "kind", "code", "text"),
    [
        ("data", "config", 2, "energy.npy: NaN in frame 3"),
        ("memory", "fatal", 1, "out of memory; use smaller batches"),
        ("bug", "fatal", 1, "KeyError: 'oops'"),
        ("kill", "killed", -9, "most often because memory ran out"),
        ("exit", "interrupted", 1, "resume to continue"),
    ],
)
def test_failures_are_told_apart_and_not_retried(tmp_path, fail, kind, code, text):
    with pytest.raises(base.StepError, match="step: ") as error:
        base.run_step(request(fail=fail, retries=3), tmp_path / "step")
    status = base.read_status(tmp_path / "step")
    assert (status.kind, status.exit_code, status.attempts) == (kind, code, 1)
    assert text in status.reason
    assert text in str(error.value)
    if fail == "bug":
        assert 'raise KeyError("oops")' in str(error.value)  # the tail of the log


def test_misspelt_setting_and_unknown_op(tmp_path):
    with pytest.raises(base.StepError, match="valu: unknown key; did you mean 'value'"):
        base.run_step(request(valu=1), tmp_path / "step")
    with pytest.raises(ConfigError, match="op 'trian' is unknown; allowed: collect, train"):
        catalog.find_op("trian")


def test_transient_failure_is_retried(tmp_path):
    calls = tmp_path / "calls"
    status = base.run_step(request(fail="once", calls=str(calls), retries=1), tmp_path / "step")
    assert (status.state, status.attempts) == ("succeeded", 2)
    assert calls.read_text().count("start") == 2
    log = (tmp_path / "step" / "step.log").read_text()
    assert "attempt 1" in log
    assert "stale file handle" in log
    assert "attempt 2" in log


def test_retries_end(tmp_path):
    with pytest.raises(base.StepError, match="stale file handle"):
        base.run_step(request(fail="always", retries=1), tmp_path / "step")
    assert base.read_status(tmp_path / "step")[2:5] == ("failed", "stale file handle", "transient")
    assert base.read_status(tmp_path / "step").attempts == 2


def test_timeout_kills_the_whole_group(tmp_path):
    begin = time.monotonic()
    with pytest.raises(base.StepError, match=r"still running after 5 s; raise execution.timeout"):
        base.run_step(request(fail="hang", timeout=5.0, retries=2), tmp_path / "step")
    assert time.monotonic() - begin < 40
    status = base.read_status(tmp_path / "step")
    assert (status.kind, status.exit_code, status.attempts) == ("timeout", 124, 1)
    grandchild = int((tmp_path / "step" / "grandchild").read_text())
    assert ended(grandchild)


def ended(pid, patience=30):
    deadline = time.monotonic() + patience
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(pid)


def running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_only_a_resumable_op_with_the_same_fingerprint_finds_its_files(tmp_path):
    def leave(fingerprint):
        folder = tmp_path / "step"
        folder.mkdir(exist_ok=True)
        (folder / "reached").write_text("3")
        write_json(folder / "request.json", {"fingerprint": fingerprint})
        return str(tmp_path / "calls")

    base.run_step(request(COUNT, value=5, calls=leave("f")), tmp_path / "step")
    assert [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()] == ["3", "4"]
    (tmp_path / "calls").unlink()
    base.run_step(request(COUNT, "g", value=1, calls=leave("f")), tmp_path / "step")
    assert (tmp_path / "calls").read_text().split()[1] == "0"
    leave("f")
    base.run_step(request(ADD), tmp_path / "step")
    assert not (tmp_path / "step" / "reached").exists()


RUN = """
import sys
from pathlib import Path
from ops import base, catalog
from ops.files import write_json
request = base.StepRequest(key="step", op="tests.workflows.toy_ops:ADD", config={"fail": "hang"})
import signal
def stop(*_): raise RuntimeError("Got SIGTERM")
signal.signal(signal.SIGTERM, stop)
base.run_step(request, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_survives_the_end_of_its_parent(tmp_path, number):
    parent = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "step")],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 15
    while not (tmp_path / "step" / "grandchild").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child = json.loads((tmp_path / "step" / "status.json").read_text())["pid"]
    assert running(child)
    os.kill(parent.pid, number)
    parent.wait(15)
    assert ended(child)
    assert ended(int((tmp_path / "step" / "grandchild").read_text()))
    if number == signal.SIGTERM:
        assert base.read_status(tmp_path / "step").state == "interrupted"


@pytest.mark.parametrize("module", ["ops.run", "workflows.backends.master"])
def test_a_parent_that_was_gone_before_the_start_is_noticed(tmp_path, module):
    (tmp_path / ".dflow").mkdir()
    plan = {"nodes": [], "execution": {}, "fingerprints": {}, "todo": []}
    (tmp_path / ".dflow" / "plan.json").write_text(json.dumps(plan))
    ask = request(seconds=60).model_dump(mode="json")
    (tmp_path / "request.json").write_text(json.dumps(ask))
    command = [sys.executable, "-m", module, str(tmp_path), "999999999"]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    assert child.wait(20) == -signal.SIGTERM


def test_classify_os_errors():
    assert classify(OSError(errno.EIO, "I/O"))[0] == "transient"
    assert classify(OSError(errno.ENOSPC, "No space"))[0] == "fatal"
    assert "disk is full" in classify(OSError(errno.ENOSPC, "No space"))[1]
    assert classify(FileNotFoundError("x"))[0] == "fatal"
    assert classify(ConnectionResetError("x"))[0] == "transient"


def test_importing_ops_is_light():
    code = "import ops.base, sys; print([m for m in ('torch', 'dflow', 'ase') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
