"""Whole runs of a small model in this process."""

from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pytest
import torch

from dpa_core import load_model
from dpa_core.config import TrainConfig, parse_config
from dpa_core.data import open_dataset, write_mixed
from dpa_core.errors import ConfigError, DataError, ModelFileError, NumericalError
from dpa_core.train import train
from dpa_core.train.checkpoint import find_checkpoints, load_checkpoint
from tests.train.small import TYPE_MAP, config, settings, write_emt, write_random


def rows(outdir):
    with (outdir / "lcurve.csv").open() as stream:
        return list(csv.DictReader(stream))


def errors(model, dataset):
    """RMSE of energy per atom and of force, through the public API only."""
    de, df = [], []
    for k in range(len(dataset)):
        f = dataset[k]
        e = model.evaluate(f.coord[None], f.box[None], f.atype)
        de.append((e.energy[0] - f.energy) / len(f.atype))
        df.append((e.force[0] - f.force).ravel())
    return np.sqrt(np.mean(np.square(de))), np.sqrt(np.mean(np.square(np.concatenate(df))))


@pytest.fixture(scope="module")
def emt_run(tmp_path_factory):
    """300 steps on EMT energies and forces, with validation and moving average."""
    root = tmp_path_factory.mktemp("emt")
    train_set, valid_set = write_emt(root / "train", 32, 1), write_emt(root / "valid", 8, 2)
    training = {"numb_steps": 300, "valid_freq": 50, "enable_ema": True, "ema_decay": 0.9}
    options = config(train_set, valid_set, **training)
    return root, options, train(options, root / "run")


def test_it_learns(emt_run):
    root, _, summary = emt_run
    valid = open_dataset([root / "valid"], TYPE_MAP)
    model = load_model(summary.model)
    force = np.concatenate([valid[k].force.ravel() for k in range(len(valid))])
    rmse_e, rmse_f = errors(model, valid)
    assert rmse_f < 0.5 * np.sqrt(np.mean(force**2))
    assert summary.metrics["rmse_e_val"] == pytest.approx(rmse_e, rel=1e-6)
    assert summary.metrics["rmse_f_val"] == pytest.approx(rmse_f, rel=1e-6)


def test_what_a_run_leaves(emt_run):
    root, _, summary = emt_run
    outdir = root / "run"
    assert summary.steps == 300
    assert summary.seconds > 0
    assert len(find_checkpoints(outdir)) == 2
    table = rows(outdir)
    assert [int(r["step"]) for r in table] == [1, *range(5, 301, 5)]
    validated = [r for r in table if r["loss_val"]]
    assert [int(r["step"]) for r in validated] == list(range(50, 301, 50))
    assert float(table[-1]["rmse_f"]) < 0.5 * float(table[0]["rmse_f"])
    resolved = json.loads((outdir / "config.json").read_text())
    assert isinstance(resolved["model"]["descriptor"]["sel"], int)
    log = (outdir / "train.log").read_text()
    assert "ms/step" in log
    assert "32 frames, 128 atoms" in log
    provenance = load_model(summary.model).provenance
    assert provenance["steps"] == 300
    assert provenance["data"]["training"][0]["frames"] == 32
    assert provenance["train_config"] == resolved
    assert provenance["software"]["torch"] == torch.__version__
    best = load_model(summary.best).provenance["metrics"]
    assert best["loss_val"] == pytest.approx(min(float(r["loss_val"]) for r in validated))
    # The published weights are the averages, not the last ones.
    state = load_checkpoint(find_checkpoints(outdir)[-1])
    for name, weight in load_model(summary.model).named_parameters():
        assert torch.equal(weight, state["ema"][name])
        assert not torch.equal(weight, state["model"][name])


def test_a_finished_run_is_returned_as_it_is(emt_run):
    root, options, summary = emt_run
    before = {p: p.stat().st_mtime_ns for p in (root / "run").iterdir()}
    assert train(options, root / "run") == summary
    assert {p: p.stat().st_mtime_ns for p in (root / "run").iterdir()} == before


def test_another_configuration_or_other_data_are_refused(emt_run):
    root, _, _ = emt_run
    training = {"numb_steps": 400, "valid_freq": 50, "enable_ema": True, "ema_decay": 0.9}
    with pytest.raises(ConfigError, match=r"training\.numb_steps: 300 there, 400 now"):
        train(config(root / "train", root / "valid", **training), root / "run")
    training["numb_steps"] = 300
    moved = config(root / "valid", root / "valid", **training)
    with pytest.raises(ConfigError, match="fingerprint of the training data"):
        train(moved, root / "run")


def test_finetune_only_the_last_layer(emt_run):
    root, _, pretrained = emt_run
    document = settings(root / "valid", numb_steps=5, trainable="last_layer")
    document["finetune"] = {"model": str(pretrained.model), "bias": "change"}
    summary = train(parse_config(TrainConfig, document, "test"), root / "finetuned")
    old, new = (dict(load_model(p).named_parameters()) for p in (pretrained.model, summary.model))
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed
    assert all(name.startswith("fitting.nets.0.layers.2") for name in changed)
    # Without validation data the last model is the best one.
    best = load_model(summary.best).state_dict()
    assert all(torch.equal(best[k], v) for k, v in load_model(summary.model).state_dict().items())
    history = load_model(summary.model).provenance["finetuned_from"]["provenance"]
    assert history["steps"] == 300


def test_bias_is_shifted_to_the_data_after_training(emt_run):
    root, _, _ = emt_run
    data = open_dataset([root / "valid"], TYPE_MAP)
    left = []
    for shift in (False, True):
        options = config(root / "valid", numb_steps=5, change_bias_after_training=shift)
        model = load_model(train(options, root / f"shift-{shift}").model)
        frames = [data[k] for k in range(len(data))]
        errors = [model.evaluate(f.coord[None], f.box[None], f.atype).energy[0] - f.energy
                  for f in frames]  # fmt: skip
        left.append(abs(np.mean(errors)))
    assert left[0] > 1e-2
    assert left[1] < 1e-5


def test_a_missing_pretrained_model(tmp_path):
    document = settings(write_random(tmp_path / "data", 3, 1))
    document["finetune"] = {"model": str(tmp_path / "no.safetensors")}
    with pytest.raises(ModelFileError, match=r"finetune\.model: .*no\.safetensors: no such"):
        train(parse_config(TrainConfig, document, "test"), tmp_path / "run")


def test_epochs_mixed_sizes_and_starting_over(tmp_path):
    data = write_random(tmp_path / "data", 12, 1)
    options = config(data, numb_steps=None, numb_epoch=1.5, disp_freq=1, tensorboard=True)
    summary = train(options, tmp_path / "run")
    assert 5 <= summary.steps <= 7  # 52 atoms in batches of 12 to 17, one and a half times
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    first = (tmp_path / "run" / "lcurve.csv").read_bytes()
    (tmp_path / "run" / "lcurve.csv").write_text("rubbish")
    train(options, tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "lcurve.csv").read_bytes() == first


def test_divergence_stops_and_names_step_and_frames(tmp_path):
    data = open_dataset([write_random(tmp_path / "data", 6, 1, sizes=(4,))], TYPE_MAP)
    frames = [data[k] for k in range(6)]
    frames[3] = frames[3]._replace(force=np.full((4, 3), 1e200))
    write_mixed(frames, TYPE_MAP, tmp_path / "bad")
    options = config(
        tmp_path / "bad", training_data={"systems": [str(tmp_path / "bad")], "batch_size": 1}
    )
    written = open_dataset([tmp_path / "bad"], TYPE_MAP)
    (k,) = [k for k in range(6) if np.abs(written[k].force).max() > 1e100]
    with pytest.raises(NumericalError, match=r"step \d: loss inf") as caught:
        train(options, tmp_path / "run")
    assert str(caught.value).splitlines()[1:] == [f"  {written.name(k)}"]
    assert "stopped: step" in (tmp_path / "run" / "train.log").read_text()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_labels_the_loss_does_not_use(tmp_path):
    data = write_random(tmp_path / "data", 6, 1)
    document = settings(data)
    document["loss"] = {
        "start_pref_e": 0,
        "start_pref_f": 0,
        "start_pref_ae": 1,
        "limit_pref_ae": 1,
    }
    with pytest.raises(DataError, match=r"none of the frames .* \(active terms: ae\)"):
        train(parse_config(TrainConfig, document, "test"), tmp_path / "run")


def test_lines_reach_the_log_of_the_caller(tmp_path, caplog):
    data = write_random(tmp_path / "data", 3, 1)
    with caplog.at_level(logging.INFO, logger="dpa_core"):
        train(config(data, numb_steps=2), tmp_path / "run")
    assert any("ms/step" in line for line in caplog.messages)
    assert logging.getLogger("dpa_core").level in (logging.NOTSET, logging.INFO)
