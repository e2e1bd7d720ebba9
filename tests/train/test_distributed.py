"""Two gloo processes compute what one process computes with the joint batch."""

from __future__ import annotations

import csv

import pytest
import safetensors.torch
import torch

from dpa_core.config import TrainConfig, parse_config
from dpa_core.train import train
from tests.train.small import launch, settings, write_random

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def table(outdir):
    with (outdir / "lcurve.csv").open() as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def test_two_processes_equal_one(tmp_path):
    data, valid = write_random(tmp_path / "train", 20, 1), write_random(tmp_path / "valid", 5, 2)
    options = {
        # Frames have 3 to 6 atoms: batches of two frames, and of one, which leaves one of the
        # two processes without work.
        "training_data": {"systems": [str(data)], "batch_size": "auto:5"},
        "numb_steps": 30, "disp_freq": 1, "gradient_max_norm": 50.0, "enable_ema": True,
    }  # fmt: skip
    document = settings(data, valid, **options)
    # Every frame goes to one of two heads, whichever process it is on.
    document["model"]["heads"] = 2
    process = launch(document, tmp_path / "two", *TORCHRUN)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "2 process(es)" in output
    assert output.count("done: 30 steps") == 1  # the second process is silent
    train(parse_config(TrainConfig, document, "test"), tmp_path / "one")
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert len(one) == len(two) == 30
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-9), (a["step"], name)
    ours, theirs = (
        safetensors.torch.load_file(tmp_path / d / "model.safetensors") for d in ("one", "two")
    )
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-9, atol=1e-10)
