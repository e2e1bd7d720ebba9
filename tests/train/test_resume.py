"""Processes that are killed: the run goes on as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time

import pytest
import safetensors.torch
import torch

from dpa_core.train import train
from dpa_core.train.checkpoint import find_checkpoints, load_checkpoint
from tests.train.small import config, launch, settings, write_random

STEPS = 120
# Checkpoints (7) fall between rows (3) and validations (16).
OPTIONS = {
    "numb_steps": STEPS, "disp_freq": 3, "valid_freq": 16, "save_freq": 7, "enable_ema": True,
    "gradient_max_norm": 100.0,
}  # fmt: skip


@pytest.fixture(scope="module", params=["kernels", "torch"])
def whole(request, tmp_path_factory):
    """An uninterrupted run on one of the ways a model is evaluated; all others take it too."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setenv("DPAFLOW_KERNELS", "0")
        yield _whole(tmp_path_factory)


def _whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    write_random(root / "train", 20, 1)
    write_random(root / "valid", 4, 2)
    process = launch(settings(root / "train", root / "valid", **OPTIONS), root / "whole")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return root


def last_step(path):
    """Step of the last complete row."""
    lines = path.read_text().split("\n")[1:-1] if path.exists() else []
    return int(lines[-1].split(",")[0]) if lines else 0


def interrupt(process, outdir, step, sig):
    """Send a signal once lcurve.csv has reached a step; the exit code."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if last_step(outdir / "lcurve.csv") >= step:
            process.send_signal(sig)
            break
        time.sleep(0.002)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def same_result(root, outdir):
    assert (outdir / "lcurve.csv").read_bytes() == (root / "whole" / "lcurve.csv").read_bytes()
    for name in ("model.safetensors", "model-best.safetensors"):
        ours, theirs = (safetensors.torch.load_file(p / name) for p in (outdir, root / "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_kill_9_at_random_steps_then_resume_bit_for_bit(whole, tmp_path):
    document = settings(whole / "train", whole / "valid", **OPTIONS)
    steps = sorted(random.sample(range(8, STEPS - 10), 2))
    for step in steps:
        code, output = interrupt(
            launch(document, tmp_path / "run"), tmp_path / "run", step, signal.SIGKILL
        )
        assert code == -signal.SIGKILL, (step, output)
        assert not (tmp_path / "run" / "model.safetensors").exists()
    train(config(whole / "train", whole / "valid", **OPTIONS), tmp_path / "run")
    same_result(whole, tmp_path / "run")


def test_sigterm_saves_and_exits_0(whole, tmp_path):
    options = {**OPTIONS, "save_freq": 1000}  # so that only the signal saves
    document = settings(whole / "train", whole / "valid", **options)
    code, output = interrupt(
        launch(document, tmp_path / "run"), tmp_path / "run", 30, signal.SIGTERM
    )
    assert code == 0, output
    assert "stopped by SIGTERM at step" in output
    (checkpoint,) = find_checkpoints(tmp_path / "run")
    assert 30 <= load_checkpoint(checkpoint)["step"] < STEPS
    train(config(whole / "train", whole / "valid", **options), tmp_path / "run")
    same_result(whole, tmp_path / "run")


def test_a_moved_data_folder_may_be_resumed(whole, tmp_path):
    (tmp_path / "elsewhere").symlink_to(whole / "train")
    options = {**OPTIONS, "numb_steps": 10}
    first = train(config(whole / "train", whole / "valid", **options), tmp_path / "run")
    moved = config(tmp_path / "elsewhere", whole / "valid", **options)
    assert train(moved, tmp_path / "run") == first
