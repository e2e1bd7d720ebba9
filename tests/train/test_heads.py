"""Several fitting nets on one descriptor: a committee trained as one model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from dpa_core import Committee, load_model, save_model
from dpa_core.batch import make_batch
from dpa_core.bias import change_bias
from dpa_core.config import ModelConfig, TrainConfig, parse_config
from dpa_core.data import open_dataset
from dpa_core.derivatives import predict, predict_heads
from dpa_core.errors import ModelFileError
from dpa_core.finetune import merge_config, prepare_finetune, remap_types, set_trainable
from dpa_core.model import build_model
from dpa_core.testing import PhysicsSuite
from dpa_core.train import loop, train
from dpa_core.train.prepare import run_identity
from dpa_core.train.sampler import deal
from tests.physics.test_models import _Small
from tests.tools.conftest import config, dataset, frame
from tests.train.small import TYPE_MAP, settings, write_emt
from workflows.cli import app

HEADS = 3


class TestSecondHead(_Small, PhysicsSuite):
    """The physics suite on a head that is not the first."""

    changes = {"attn_layer": 0}

    def make_model(self):
        self.model_keys = {"heads": 2}
        return super().make_model().heads()[1]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def with_heads(train_data, valid=None, heads=HEADS, **training):
    document = settings(train_data, valid, **training)
    document["model"]["heads"] = heads
    return document


def parse(document) -> TrainConfig:
    return parse_config(TrainConfig, document, "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    return write_emt(root / "train", 24, 1), write_emt(root / "valid", 6, 2)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run long enough to learn."""
    outdir = tmp_path_factory.mktemp("trained")
    options = {"numb_steps": 200, "disp_freq": 100, "valid_freq": 100, "save_freq": 100}
    summary = train(parse(with_heads(*data, **options)), outdir)
    return summary.model


def energies(model, frames):
    return [
        model.evaluate(f.coord[None], None if f.box is None else f.box[None], f.atype).energy[0]
        for f in frames
    ]


def test_one_head_is_the_model_there_always_was():
    """No tensor more, no other weight, and a header without `heads` is one head."""
    one, many = build_model(config()), build_model(config(heads=HEADS))
    assert one.heads() == (one,)
    assert not any(name.startswith("other_fittings") for name in one.state_dict())
    first = many.state_dict()
    assert all(torch.equal(first[name], value) for name, value in one.state_dict().items())
    header = json.loads(config().model_dump_json())
    del header["heads"]
    assert parse_config(ModelConfig, header, "old") == config()


def test_heads_share_all_but_the_fitting_net(rng):
    model = build_model(config(heads=HEADS))
    heads = model.heads()
    assert len(heads) == HEADS
    for head, fitting in zip(heads, model.fittings, strict=True):
        assert head.config.heads == 1
        assert head.descriptor is model.descriptor
        assert head.out_bias is model.out_bias
        assert head.fitting is fitting
    assert model.config.heads == HEADS
    frames = [frame(rng, [0, 1, 2, 1, 0])]
    found = {round(float(energies(m, frames)[0]), 9) for m in heads}
    assert len(found) == HEADS
    assert energies(heads[0], frames) == energies(model, frames)
    model.out_bias += 1.0
    assert energies(heads[2], frames)[0] == pytest.approx(
        5.0 + energies(build_model(config(heads=HEADS)).heads()[2], frames)[0]
    )


@pytest.mark.parametrize("kind", ["dpa1", "se_e2_a"])
def test_dealt_frames_pass_their_own_head(rng, kind):
    """One mixed batch gives each frame what its head alone says; one pass gives all heads."""
    keys = {"fitting_net": {"numb_fparam": 1, "atom_ener": [None, 1.0, None]}, "heads": HEADS}
    model = build_model(config({"type": kind}, **keys))
    frames = [
        frame(rng, types)._replace(fparam=rng.normal(size=1))
        for types in ([0, 1, 2], [2, 1, 0, 0], [1, 1], [0, 2, 1, 1, 0])
    ]
    batch = make_batch(frames, model.spec)
    dealt = torch.tensor([2, 0, 2, 1])
    mixed = predict(model, batch._replace(head=dealt))
    every = predict_heads(model.heads(), batch)
    alone = [predict(head, batch) for head in model.heads()]
    for one, other in zip(every, alone, strict=True):
        for name in ("energy", "force", "virial", "atom_energy"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name))
    of_atom = dealt[batch.frame]
    for k, answer in enumerate(alone):
        torch.testing.assert_close(mixed.energy[dealt == k], answer.energy[dealt == k])
        torch.testing.assert_close(mixed.force[of_atom == k], answer.force[of_atom == k])


def test_the_deal():
    """Even shares; the same for the same step; every head gets every frame in time."""
    numbers = [40, 7, 3, 9, 21, 5, 2]
    for step in range(20):
        dealt = deal(numbers, HEADS, 1, step)
        shares = np.bincount(list(dealt.values()), minlength=HEADS)
        assert shares.max() - shares.min() <= 1
        assert dealt == deal(numbers, HEADS, 1, step)
    for batch in (numbers, [5]):
        seen = {(k, h) for step in range(60) for k, h in deal(batch, HEADS, 1, step).items()}
        assert len(seen) == HEADS * len(batch)


def test_every_head_learns_and_they_differ(trained, data):
    frames = open_dataset(str(data[1]), TYPE_MAP)
    frames = [frames[k] for k in range(len(frames))]
    committee = Committee.load([trained])
    assert committee.size == HEADS
    found = committee.predict(frames)
    labels = np.concatenate([f.force for f in frames])
    spread = np.sqrt(np.mean(labels**2))
    for k in range(HEADS):
        error = np.concatenate([f[k] for f in found.force]) - labels
        assert np.sqrt(np.mean(error**2)) < 0.35 * spread
    assert committee.deviation(frames).max_devi_f.min() > 1e-2


def test_round_trip_and_damage(trained, tmp_path, rng):
    model = load_model(trained)
    again = load_model(save_model(model, tmp_path / "m.safetensors"))
    assert again.config.heads == HEADS
    one = [frame(rng, [0, 1, 1, 0])]
    for a, b in zip(model.heads(), again.heads(), strict=True):
        assert energies(a, one) == energies(b, one)
    # A head alone is a model of its own.
    alone = load_model(save_model(model.heads()[2], tmp_path / "head.safetensors"))
    assert alone.config.heads == 1
    assert energies(alone, one) == energies(model.heads()[2], one)
    tensors = safetensors.torch.load_file(trained)
    for heads, message in ((10**9, "3000000003 layers"), (2, "unknown"), (4, "missing")):
        header = model.config.model_copy(update={"heads": heads}).model_dump_json()
        metadata = {"format": "dpaflow-model", "version": "1", "config": header, "provenance": "{}"}
        (tmp_path / "bad").write_bytes(safetensors.torch.save(tensors, metadata))
        with pytest.raises(ModelFileError, match=message):
            load_model(tmp_path / "bad")


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path, monkeypatch):
    options = {"numb_steps": 20, "save_freq": 7, "disp_freq": 5, "enable_ema": True}
    document = with_heads(*data, **options)
    whole = train(parse(document), tmp_path / "whole")
    step = loop.take_step
    taken = []

    def killed(*args):
        taken.append(1)
        if len(taken) == 12:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(parse(document), tmp_path / "cut")
    monkeypatch.setattr(loop, "take_step", step)
    cut = train(parse(document), tmp_path / "cut")
    assert (tmp_path / "cut/lcurve.csv").read_bytes() == (
        tmp_path / "whole/lcurve.csv"
    ).read_bytes()
    ours, theirs = (safetensors.torch.load_file(s.model) for s in (cut, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def finetune_config(path, data, finetune=None, numb_steps=1, **model):
    training = {"training_data": {"systems": [str(data)]}, "numb_steps": numb_steps, "seed": 5}
    return parse(
        {
            "model": {"type_map": list(TYPE_MAP), **model},
            "training": training,
            "finetune": {"model": str(path), **(finetune or {})},
        }
    )


def same(a, b) -> bool:
    weights = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in weights)


def test_finetuning_from_one_head_to_many(data, tmp_path):
    model = build_model(config({"sel": 90}, type_map=TYPE_MAP))
    model.fitting.bias_atom_e.copy_(torch.tensor([0.5, 0.25]))
    path = save_model(model, tmp_path / "one.safetensors")
    source = open_dataset(str(data[0]), TYPE_MAP)
    copies = prepare_finetune(finetune_config(path, data[0], heads=HEADS), source)
    assert copies.config.heads == HEADS
    assert all(same(fitting, model.fitting) for fitting in copies.fittings)
    assert not any(fitting.bias_atom_e.any() for fitting in copies.fittings)
    fresh_config = finetune_config(path, data[0], {"new_fitting": True}, heads=HEADS)
    fresh = prepare_finetune(fresh_config, source)
    nets = [model.fitting, *fresh.fittings]
    assert not any(same(a, b) for k, a in enumerate(nets) for b in nets[:k])


def test_copies_become_a_committee(trained, data, tmp_path):
    """Dealt other frames, heads that started alike come to differ."""
    start = save_model(load_model(trained).heads()[0], tmp_path / "one.safetensors")
    run = finetune_config(start, data[0], heads=HEADS, numb_steps=5)
    source = open_dataset(str(data[0]), TYPE_MAP)
    assert Committee([prepare_finetune(run, source)]).deviation([source[0]]).max_devi_f[0] < 1e-12
    committee = Committee.load([train(run, tmp_path / "run").model])
    assert committee.deviation([source[0]]).max_devi_f[0] > 1e-4


def test_finetuning_keeps_the_heads(trained, data, rng):
    source = open_dataset(str(data[0]), TYPE_MAP)
    before = load_model(trained)
    after = prepare_finetune(finetune_config(trained, data[0]), source)
    assert after.config.heads == HEADS
    assert all(same(a, b) for a, b in zip(after.fittings, before.fittings, strict=True))
    one = prepare_finetune(finetune_config(trained, data[0], heads=1), source)
    assert one.other_fittings.state_dict() == {}
    assert merge_config(config(heads=4), config()).heads == 4


def test_type_map_and_bias_of_all_heads(rng):
    """DeepPot-SE has nets per element, in every head; the bias is one for all."""
    model = build_model(config({"type": "se_e2_a"}, heads=2))
    for k, fitting in enumerate(model.fittings):
        fitting.bias_atom_e.copy_(torch.tensor([0.5, 0.25, 0.125]) * (k + 1))
    swapped = remap_types(model, ("Cu", "O", "H"))
    one = frame(rng, [0, 1, 2, 1])
    other = one._replace(atype=np.array([1, 2, 0, 2]))
    for a, b in zip(model.heads(), swapped.heads(), strict=True):
        assert energies(a, [one]) == pytest.approx(energies(b, [other]), rel=1e-12)
    first = [h.evaluate(one.coord[None], one.box[None], one.atype).energy[0] for h in model.heads()]
    change_bias(model, dataset([one._replace(energy=first[0] + 3.0)]))
    after = energies(model.heads()[0], [one]) + energies(model.heads()[1], [one])
    assert np.array(after) - first == pytest.approx([3.0, 3.0])


def test_what_is_trained():
    model = build_model(config(heads=2))
    set_trainable(model, "last_layer")
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    last = {"nets.0.layers.2.weight", "nets.0.layers.2.bias"}
    assert names == {f"{p}.{n}" for p in ("fitting", "other_fittings.0") for n in last}


def test_commands(trained, data, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, ["model", "info", str(trained)])
    assert f"heads      {HEADS}" in shown.output
    out = tmp_path / "devi.out"
    options = ["--relative", "0.5", "--relative-v", "0.1", "-o", str(out)]
    done = runner.invoke(app, ["model", "devi", "-m", str(trained), str(data[1]), *options])
    assert "6 frames, 3 models" in done.output, done.output
    source = open_dataset(str(data[1]), TYPE_MAP)
    d = Committee.load([trained]).deviation(
        [source[k] for k in range(6)], relative=0.5, relative_v=0.1
    )
    written = np.loadtxt(out)
    assert written[:, 0].tolist() == list(range(6))
    np.testing.assert_allclose(written[:, 1:], np.transpose(d), rtol=1e-6)


def test_a_run_from_before_there_were_heads_goes_on(data):
    datasets = (open_dataset(str(data[0]), TYPE_MAP), None)
    one, many = (
        run_identity(parse(with_heads(data[0], heads=k)), datasets)["model"] for k in (1, 2)
    )
    assert "heads" not in one
    assert many["heads"] == 2
