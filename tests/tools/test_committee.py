"""Committee deviation: closed forms, DeePMD-kit's `dp model-devi`, files, the calculator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

import dpa_core.calculator
import dpa_core.committee
from dpa_core import Committee, CommitteeCalculator, save_model
from dpa_core.committee import (
    CommitteePrediction,
    Deviation,
    deviation,
    read_model_devi,
    write_model_devi,
)
from dpa_core.config import ModelConfig
from dpa_core.errors import ConfigError, DataError
from dpa_core.frames import Frame
from dpa_core.model import Potential, build_model
from tests.reference.fill import fill, fill_net
from tests.tools.conftest import config, frame

RECORD = json.loads(
    (Path(__file__).parents[1] / "reference" / "model_devi.json").read_text(encoding="utf-8")
)
SIZES = ([0, 1, 1, 2, 0, 2, 1], [2, 2, 1], [1])


@pytest.fixture
def frames(rng):
    """Three cells and a molecule of different sizes."""
    cells = [frame(rng, types) for types in SIZES]
    return [*cells, cells[0]._replace(box=None)]


def prediction(force, energy=(0.0, 0.0), virial=None):
    """A prediction for one frame; force (K, natoms, 3)."""
    force = np.array(force, np.float64)
    if virial is None:
        virial = np.zeros((len(force), 3, 3))
    return CommitteePrediction(
        np.array(energy, np.float64)[:, None],
        [force],
        np.array(virial, np.float64)[:, None],
        np.array([force.shape[1]]),
    )


def test_closed_forms():
    """Two models: the population deviation of two numbers is half their distance."""
    virial = np.zeros((2, 3, 3))
    virial[1, 0, 1], virial[1, 2, 2] = 4.0, 12.0
    force = [[[1, 0, 0], [0, 0, 0]], [[1, 6, 8], [0, 0, 2]]]
    d = deviation(prediction(force, (3.0, 7.0), virial))
    # |std F| = (5, 1); W/N = 2 and 6 apart by 1 and 3; E/N apart by 2.
    assert (d.max_devi_f[0], d.min_devi_f[0], d.avg_devi_f[0]) == pytest.approx((5, 1, 3))
    assert (d.max_devi_v[0], d.min_devi_v[0]) == pytest.approx((3, 0))
    assert d.avg_devi_v[0] == pytest.approx(np.sqrt((1 + 9) / 9))
    assert d.devi_e[0] == pytest.approx(1)


def test_relative_closed_form():
    force = [[[0, 0, 0]], [[0, 6, 8]]]  # mean (0, 3, 4), std (0, 3, 4)
    virial = np.stack([np.zeros((3, 3)), np.full((3, 3), 2.0)])  # mean 1 and std 1 everywhere
    d = deviation(prediction(force, virial=virial), relative=5.0, relative_v=1.0)
    assert d.max_devi_f[0] == pytest.approx(5 / (5 + 5))
    assert d.max_devi_v[0] == pytest.approx(1 / (3 + 1))
    assert d.avg_devi_v[0] == pytest.approx(1 / (3 + 1))
    with pytest.raises(ConfigError, match="relative is 0"):
        deviation(prediction(force), relative=0)


def member(record, k) -> Potential:
    """Model k of a recorded committee, by the rule of record_model_devi.py."""
    settings = ModelConfig.model_validate(record["model"])
    model = fill(build_model(settings), settings.descriptor.set_davg_zero)
    with torch.no_grad():
        for n, net in enumerate(model.fitting.nets):
            fill_net(net, 120 + 0.3 * k, 130 + 0.5 * k, 140, offset=3.1 * n)
    return model


@pytest.mark.parametrize("name", RECORD["committees"])
def test_like_deepmd(name, tmp_path):
    record = RECORD["committees"][name]
    committee = Committee([member(record, k) for k in range(record["members"])])
    system = RECORD["systems"][record["system"]]
    atype, box = np.array(system["atype"]), system["box"]
    frames = [
        Frame(np.array(c), atype, None if box is None else np.array(box)) for c in system["coord"]
    ]
    for run in record["runs"]:
        wanted = np.array(run["deviation"])
        d = committee.deviation(frames[: len(wanted)], **run["options"])
        assert wanted.max(axis=0).min() > 1e-5  # the record can tell committees apart
        np.testing.assert_allclose(np.transpose(d), wanted, rtol=1e-8, atol=1e-13)
        # The file of `dp model-devi`, letter by letter but for its line with the folder's name.
        path = write_model_devi(tmp_path / "model_devi.out", range(len(wanted)), d)
        assert path.read_text().split("\n")[0] == run["file"].split("\n")[1]
        steps, read = read_model_devi(path)
        (tmp_path / "theirs").write_text(run["file"])
        steps_of_theirs, theirs = read_model_devi(tmp_path / "theirs")
        np.testing.assert_array_equal(steps, steps_of_theirs)
        np.testing.assert_allclose(np.array(read), np.array(theirs), rtol=2e-6)
        assert [len(x) for x in path.read_text().splitlines()[1:]] == [
            len(x) for x in run["file"].splitlines()[2:]
        ]


def test_members_are_what_they_are_alone(frames, make_model):
    models = [make_model(seed=s) for s in (1, 2, 3)]
    found = Committee(models).predict(frames)
    for k, model in enumerate(models):
        for f, one in enumerate(frames):
            box = None if one.box is None else one.box[None]
            alone = model.evaluate(one.coord[None], box, one.atype)
            np.testing.assert_allclose(found.energy[k, f], alone.energy[0], rtol=1e-12)
            np.testing.assert_allclose(found.force[f][k], alone.force[0], atol=1e-12)
            np.testing.assert_allclose(found.virial[k, f], alone.virial[0], atol=1e-12)
    assert found.natoms.tolist() == [7, 3, 1, 7]


def test_many_frames_are_cut_into_batches(frames, make_model, monkeypatch):
    committee = Committee([make_model(seed=s) for s in (1, 2)])
    whole = committee.deviation(frames)
    monkeypatch.setattr(dpa_core.committee, "_BATCH_ATOMS", 8)
    np.testing.assert_allclose(np.array(committee.deviation(frames)), np.array(whole), rtol=1e-9)
    shapes = [d.shape for d in committee.describe(frames)]
    assert shapes == [(len(f.atype), committee.models[0].descriptor.dim_out) for f in frames]


def test_one_search_for_all(frames, make_model, monkeypatch):
    committee = Committee([make_model(seed=s) for s in (1, 2, 3)])
    calls = []
    search = dpa_core.committee.neighbor_table
    monkeypatch.setattr(
        dpa_core.committee, "neighbor_table", lambda *a: calls.append(1) or search(*a)
    )
    committee.predict(frames)
    assert len(calls) == len(frames)


def test_nothing_and_one_member(make_model, frames):
    committee = Committee([make_model()])
    assert committee.size == 1
    assert all(x.shape == (0,) for x in committee.deviation([]))
    assert not np.array(committee.deviation(frames)).any()


def test_members_must_agree(make_model, frames):
    with pytest.raises(ConfigError, match="at least one"):
        Committee([])
    for changes in ({"rcut": 3.0}, {"sel": 40}):
        with pytest.raises(ConfigError, match=f"agree in {next(iter(changes))}.*model 1"):
            Committee([make_model(), make_model(changes)])
    other = build_model(config(type_map=("H", "O", "Cu")))
    with pytest.raises(ConfigError, match="agree in type_map"):
        Committee([make_model(), other])
    foreign = frames[0]._replace(atype=frames[0].atype + 1)
    with pytest.raises(DataError, match="type 3"):
        Committee([make_model()]).predict([foreign])


def test_file_of_lammps_and_damage(tmp_path):
    path = tmp_path / "model_devi.out"
    head = "#       step         max_devi_v         min_devi_v         avg_devi_v "
    head += "        max_devi_f         min_devi_f         avg_devi_f"
    numbers = "  1.0e-02  1.0e-03  5.0e-03  3.0e-01  1.0e-01  2.0e-01"
    path.write_text(f"{head}\n  0{numbers}\n 10{numbers}\n")
    steps, d = read_model_devi(path)
    assert steps.tolist() == [0, 10]
    assert d.max_devi_f.tolist() == [0.3, 0.3]
    assert np.isnan(d.devi_e).all()
    path.write_text(f"{head} atm_devi_f(N)\n 0{numbers}  7.0  8.0\n")  # atomic: no devi_e either
    assert np.isnan(read_model_devi(path)[1].devi_e).all()
    for text in ("1 2 3\n", "0 1 2 3 4 5 6 x\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="not a model deviation file"):
            read_model_devi(path)
    with pytest.raises(DataError, match="missing"):
        read_model_devi(tmp_path / "missing")


def test_round_trip_of_no_frames(tmp_path):
    empty = Deviation(*(np.zeros(0) for _ in Deviation._fields))
    steps, d = read_model_devi(write_model_devi(tmp_path / "x" / "d.out", [], empty))
    assert steps.shape == (0,)
    assert d.devi_e.shape == (0,)


def test_calculator(frames, make_model, tmp_path):
    models = [make_model(seed=s) for s in (1, 2)]
    paths = [save_model(m, tmp_path / f"{k}.safetensors") for k, m in enumerate(models)]
    one = frames[0]
    atoms = Atoms([models[0].type_map[t] for t in one.atype], one.coord, cell=one.box, pbc=True)
    atoms.calc = calculator = CommitteeCalculator(paths)
    alone = models[0].evaluate(one.coord[None], one.box[None], one.atype)
    assert atoms.get_potential_energy() == pytest.approx(alone.energy[0], rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), alone.force[0], atol=1e-12)
    atoms.positions[0] += 0.1
    atoms.get_forces()
    d = calculator.deviation(atoms)
    assert calculator.searches == 1
    moved = one._replace(coord=atoms.positions)
    np.testing.assert_allclose(np.array(d), np.array(Committee(models).deviation([moved])))
    assert d.max_devi_f[0] > 0
    atoms.positions[0] += 2.0
    calculator.deviation(atoms)
    assert calculator.searches == 2
