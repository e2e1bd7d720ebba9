"""What a loop survives; the long version is benchmarks/faults/fault_test.py."""

import errno
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dpa_core.errors import DataError
from ops.base import Status
from ops.files import means_full_disk, write_json, write_text
from ops.labelers.ase import AseLabeler
from ops.labelers.base import Context, Job, Structure
from ops.run import classify
from workflows.backends.local import LOG_MARK
from workflows.graph import Node, remaining
from workflows.local_run import LocalRun
from workflows.monitor import failure_report
from workflows.run_folder import RunFolder, StepState


def test_dflow_is_given_only_what_is_left_to_do(tmp_path):
    nodes = [
        Node("a", "train", {}, {"train": ["/data"]}),
        Node("b", "test", {}, {"models": {"m": "a:model"}, "data": {"x": ["/data"]}}),
        Node("c", "report", {}, {"tests": ["b:", "a:"]}),
    ]
    left = remaining(nodes, {"b", "c"}, tmp_path)
    assert [node.key for node in left] == ["b", "c"]
    assert left[0].inputs == {"models": {"m": f"{tmp_path}/a/model"}, "data": {"x": ["/data"]}}
    assert left[1].inputs == {"tests": ["b:", f"{tmp_path}/a"]}
    assert remaining(nodes, {"a", "b", "c"}, tmp_path) == nodes


def _numpy() -> None:
    with Path("/dev/full").open("wb") as stream:
        np.save(stream, np.zeros(10_000))


def _rust() -> None:
    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def _wrapped() -> None:
    try:
        _numpy()
    except OSError as error:
        raise DataError("could not be written") from error


@pytest.mark.parametrize("write", [_numpy, _rust, _wrapped])
def test_every_way_to_say_that_the_disk_is_full_is_understood(write):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        write()
    kind, text = classify(caught.value)
    assert kind == "fatal"
    assert "the disk is full" in text
    assert "free some space" in text
    assert not means_full_disk(OSError(errno.EIO, "I/O"))


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")
    assert not list(tmp_path.iterdir())


class Writing:
    """A calculator whose scratch files do not fit on the disk."""

    def get_property(self, name, atoms):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_verdict_on_a_structure(tmp_path):
    labeler = AseLabeler(type="ase", calculator=f"{__name__}:Writing")
    structure = Structure(("Cu",), np.zeros((1, 3)), np.eye(3))
    with pytest.raises(OSError, match="No space"):
        labeler.start(Context())(Job("000000", structure, tmp_path))


def test_a_run_that_failed_on_a_full_disk_says_so(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4096))
    folder = RunFolder(tmp_path)
    running = StepState(Node("a", "train", {}), "interrupted", None)
    text = failure_report([running], LocalRun(folder))
    assert "the disk is full (4 KiB free" in text
    assert text.endswith(f"continue with: dpaflow resume {tmp_path}")
    monkeypatch.undo()
    reason = "the disk is full ([Errno 28] No space left on device); free some space and resume"
    status = Status("a", "train", "failed", reason=reason)
    failed = StepState(Node("a", "train", {}), "failed", status)
    assert reason in failure_report([failed], LocalRun(folder))
    other = StepState(Node("a", "train", {}), "failed", status._replace(reason="a bug"))
    assert "disk" not in failure_report([other], LocalRun(folder))


def mounted(tmp_path, script):
    """Run a shell script in a namespace where tmp_path/disk is a disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False).returncode
    ):
        pytest.skip("no mount namespaces here")
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk} && "
    return subprocess.run(
        [*unshare, "sh", "-c", mount + script],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip


def test_a_disk_that_is_full_before_the_start(tmp_path, root):
    done = mounted(
        tmp_path,
        f"cp {root}/benchmarks/faults/loop.yaml . && touch hot.extxyz; cat /dev/zero > disk/zeros; "
        f"PYTHONPATH={root}/benchmarks/faults {sys.executable} -m workflows.cli run loop.yaml "
        "--out disk/run",
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: ")
    assert "No space left on device" in said
    assert said.endswith("free some space, then give the same command again")
    assert "Traceback" not in done.stderr


def test_only_what_dflow_said_this_time_is_quoted(tmp_path):
    folder = RunFolder(tmp_path)
    folder.dflow.mkdir()
    folder.log.write_text(f"{LOG_MARK}\nold trouble\n{LOG_MARK}\nnew trouble\n")
    waiting = StepState(Node("a", "train", {}), "waiting", None)
    text = failure_report([waiting], LocalRun(folder))
    assert "  | new trouble" in text
    assert "old trouble" not in text


@pytest.fixture
def compare(monkeypatch, root):
    monkeypatch.syspath_prepend(root / "benchmarks" / "faults")
    return importlib.import_module("compare")


def test_the_comparison_sees_every_difference(tmp_path, compare):
    def make(run: Path, energy: float, weight: float, seconds: float) -> dict[str, str]:
        label, train = run / "labels" / "labels" / "a1", run / "steps" / "iter-000000-train-m0"
        for folder in (label, train, run / "labels" / "labels" / ".new-half"):
            folder.mkdir(parents=True)
        np.savez(label / "label.npz", energy=energy)
        save_file({"w": np.array([weight])}, train / "model.safetensors", {"when": str(seconds)})
        write_json(train / "labels.json", {"tasks": [{"id": "a1", "seconds": seconds}]})
        return compare.results(run)

    first = make(tmp_path / "0", 1.0, 2.0, 3.0)
    assert len(first) == 3
    assert not list(compare.differences(first, make(tmp_path / "1", 1.0, 2.0, 4.0)))
    assert list(compare.differences(first, make(tmp_path / "2", 1.5, 2.0, 3.0))) == [
        "different: label a1"
    ]
    other = compare.differences(first, make(tmp_path / "3", 1.0, 2.5, 3.0))
    assert list(other) == ["different: steps/iter-000000-train-m0/model.safetensors"]
    (tmp_path / "1/labels/labels/a1/label.npz").unlink()
    assert list(compare.differences(first, compare.results(tmp_path / "1"))) == [
        "missing: label a1"
    ]


@pytest.mark.slow
def test_a_loop_survives_kills_and_a_full_disk(tmp_path, root):
    script = root / "benchmarks" / "faults" / "fault_test.py"
    command = [sys.executable, script, tmp_path / "out", "--kills", "6", "--fillings", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
