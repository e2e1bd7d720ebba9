"""Pooled errors against hand computation; files."""

from __future__ import annotations

import numpy as np
import pytest

from dpa_core.errors import ConfigError, DataError, NumericalError
from dpa_core.evaluate import TestResult, test_model
from tests.tools.conftest import dataset, frame, labelled


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def tested(model, rng):
    """Labels = predictions plus known errors; sizes 2, 3 in one system, 4 in the other."""
    frames = labelled(model, [frame(rng, t) for t in ([0, 1], [0, 1, 2], [2, 2, 2, 2])])
    rng = np.random.default_rng(1)
    d_force = [rng.standard_normal((len(f.atype), 3)) for f in frames]
    d_virial = [rng.standard_normal((3, 3)) for _ in frames]
    frames = [
        f._replace(energy=f.energy - e, force=f.force - df, virial=f.virial - dv)
        for f, e, df, dv in zip(frames, (0.2, -0.9, 2.0), d_force, d_virial)
    ]
    frames[1] = frames[1]._replace(virial=None)
    return dataset(frames[:2], frames[2:]), d_force, d_virial


@pytest.mark.parametrize("batch_atoms", [1, 5, 512])
def test_metrics_by_hand(model, tested, batch_atoms):
    data, d_force, d_virial = tested
    calls = []
    result = test_model(model, data, batch_atoms=batch_atoms, progress=lambda *a: calls.append(a))
    overall = result.overall
    per_atom = np.array([0.1, -0.3, 0.5])
    assert (overall.nframes, overall.natoms) == (3, 9)
    assert overall.rmse_e == pytest.approx(np.sqrt(np.mean(per_atom**2)))
    assert overall.mae_e == pytest.approx(0.3)
    forces = np.concatenate(d_force)
    assert overall.rmse_f == pytest.approx(np.sqrt((forces**2).sum() / 27))
    assert overall.mae_f == pytest.approx(np.abs(forces).mean())
    virials = np.array([d_virial[0] / 2, d_virial[2] / 4])
    assert overall.rmse_v == pytest.approx(np.sqrt(np.mean(virials**2)))
    assert overall.mae_v == pytest.approx(np.abs(virials).mean())
    first, second = result.systems.values()
    assert (first.nframes, second.nframes, second.natoms) == (2, 1, 4)
    assert second.rmse_e == pytest.approx(0.5)
    assert first.rmse_f == pytest.approx(np.sqrt(np.mean(np.concatenate(d_force[:2]) ** 2)))
    assert first.rmse_v == pytest.approx(np.sqrt(np.mean((d_virial[0] / 2) ** 2)))
    assert calls[-1] == (3, 3)
    assert result.system.tolist() == [0, 0, 1]
    assert (result.energy_pred - result.energy_ref) == pytest.approx([0.2, -0.9, 2.0])
    assert np.isnan(result.virial_ref[1]).all()
    assert list(result.systems) == [info.name for info in data.systems]


def test_missing_labels_give_none(model, rng):
    one = frame(rng, [0, 1])
    result = test_model(model, dataset([one]))
    assert result.overall == (1, 2, None, None, None, None, None, None)
    expected = model.evaluate(one.coord[None], one.box[None], one.atype)
    assert result.energy_pred == pytest.approx(expected.energy)


def test_files_round_trip(model, tested, tmp_path):
    result = test_model(model, tested[0])
    arrays, metrics = result.save(tmp_path / "m--d.x")
    assert (arrays.name, metrics.name) == ("m--d.x.npz", "m--d.x.json")
    again = TestResult.load(tmp_path / "m--d.x")
    assert again.to_json() == result.to_json()
    assert again.overall == result.overall
    for name in ("energy_ref", "force_pred", "virial_ref", "system", "natoms"):
        assert np.array_equal(getattr(again, name), getattr(result, name), equal_nan=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m--d.x.json", "m--d.x.npz"]
    metrics.write_text(metrics.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="version 2"):
        TestResult.load(tmp_path / "m--d.x")
    with pytest.raises(DataError, match="not a readable test result"):
        TestResult.load(tmp_path / "none")


def test_impossible_input(model, rng):
    data = dataset([frame(rng, [0])])
    with pytest.raises(DataError, match="no frames"):
        test_model(model, data.subset([]))
    with pytest.raises(ConfigError, match="type_map"):
        test_model(model, dataset([frame(rng, [0])], type_map=("H", "O")))


def test_a_frame_that_fails_is_named_and_not_left_out(model, rng):
    frames = labelled(model, [frame(rng, [0, 1]) for _ in range(3)])
    huge = frames[1]._replace(force=np.full((2, 3), 1e300))
    with pytest.raises(NumericalError, match=r"frame 1: prediction .* label 1e\+300"):
        test_model(model, dataset([frames[0], huge, frames[2]]))
    coincident = frames[2]._replace(coord=np.repeat(frames[2].coord[:1], 2, axis=0))
    with pytest.raises(NumericalError, match=r"frame 2: prediction nan.*overlapping atoms"):
        test_model(model, dataset([*frames[:2], coincident]))
