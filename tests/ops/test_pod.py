"""`python -m ops.pod` as a pod runs it: a request in, artifacts and an exit code out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADD = "tests.workflows.toy_ops:ADD"
COUNT = "tests.workflows.toy_ops:COUNT"


class Pod:
    """A pod's folders on this machine."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "DPAFLOW_IN": str(place / "in"),
            "DPAFLOW_WORK": str(place / "work"),
            "DPAFLOW_TERMINATION_LOG": str(place / "message"),
        }
        (place / "work").mkdir(parents=True)

    def start(self, request: dict) -> subprocess.Popen:
        source = self.place / "script"
        source.write_text(json.dumps(request))
        return subprocess.Popen(
            [sys.executable, "-m", "ops.pod", str(source)],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, **request: object) -> tuple[int, str]:
        process = self.start({"key": "step", "op": ADD, **request})
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    @property
    def out(self) -> Path:
        return self.place / "work" / "out"

    @property
    def message(self) -> str:
        path = self.place / "message"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_success(pod: Pod) -> None:
    for key, number in (("first", 3), ("second", 4)):
        folder = pod.place / "in" / key / "part"
        folder.mkdir(parents=True)
        (folder / "number").write_text(str(number))
    inputs = {"parts": ["first:part/number"], "one": "second:part/number"}
    code, output = pod.run(config={"value": 10}, inputs=inputs)
    assert code == 0
    assert (pod.out / "folder" / "number").read_text() == "17"
    assert json.loads((pod.out / "folder" / "status.json").read_text())["state"] == "succeeded"
    summary = {path.name for path in (pod.out / "summary").iterdir()}
    assert {"report.html", "status.json"} <= summary
    assert "number" not in summary
    assert json.loads((pod.out / "result.json").read_text()) == {}
    assert "step: attempt 1" in output  # the log is where the cluster looks for it
    assert pod.message == ""


@pytest.mark.parametrize(
    ("fail", "code", "message"),
    [
        ("data", 2, "step: energy.npy: NaN in frame 3"),
        ("bug", 1, "step: KeyError: 'oops'"),
        ("memory", 1, "step: out of memory"),
        ("always", 75, "step: stale file handle"),
        ("pause", 76, "step: put the results there"),
        ("kill", 137, "step: killed (SIGKILL), most often because memory ran out"),
    ],
)
def test_failures(pod: Pod, fail: str, code: int, message: str) -> None:
    found, output = pod.run(config={"fail": fail, "calls": str(pod.place / "calls")})
    assert found == code
    assert pod.message.startswith(message)
    assert message.removeprefix("step: ") in output
    assert not (pod.out / "folder").exists()  # nothing that could be taken for a result


def test_time_limit(pod: Pod) -> None:
    code, _ = pod.run(config={"seconds": 30}, timeout=1)
    assert code == 124
    assert "still running after 1 s" in pod.message


def test_wrong_request(pod: Pod) -> None:
    assert pod.run(op="nothing", config={})[0] == 1 or "unknown" in pod.message
    code, _ = pod.run(config={"values": 3})
    assert code == 2
    assert "values" in pod.message


def test_image_of_another_version(pod: Pod) -> None:
    pod.environment["DPAFLOW_VERSION"] = "0.0.9"
    code, _ = pod.run()
    assert code == 2
    assert "made by dpaflow 0.0.9, the image of this step holds" in pod.message


def test_told_to_stop_it_saves_and_another_pod_goes_on(pod: Pod, tmp_path: Path) -> None:
    """Preemption: with a workspace the next attempt finds what this one had reached."""
    calls = tmp_path / "calls"
    pod.environment["DPAFLOW_STEPS"] = str(tmp_path / "workspace")
    request = {"key": "step", "op": COUNT, "fingerprint": "f",
               "config": {"value": 6, "seconds": 0.4, "calls": str(calls)}}  # fmt: skip
    process = pod.start(request)
    while not calls.exists() or len(calls.read_text().splitlines()) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert "told to stop" in pod.message
    again = Pod(tmp_path / "again")
    again.environment["DPAFLOW_STEPS"] = pod.environment["DPAFLOW_STEPS"]
    process = again.start(request)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (again.out / "folder" / "number").read_text() == "6"
    numbers = [line.split()[1] for line in calls.read_text().splitlines()]
    assert numbers.count("0") == 1  # it did not begin anew


def test_no_manifest_of_dflow_is_imported(pod: Pod) -> None:
    """A pod needs neither dflow nor a client of the cluster."""
    code = "import sys, ops.pod; print(sorted({'dflow', 'argo', 'kubernetes'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
