"""Energy bias against hand-computed least squares, and the meaning of its modes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from dpa_core.bias import change_bias, set_bias_values, solve_bias
from dpa_core.errors import ConfigError, DataError
from tests.tools.conftest import dataset, frame, labelled


def test_full_rank_is_the_normal_equations(rng):
    counts = rng.integers(0, 9, (40, 3))
    energy = counts @ [-3.0, 1.5, -7.25] + 0.1 * rng.standard_normal(40)
    fit = solve_bias(counts, energy)
    expected = np.linalg.inv(counts.T @ counts) @ counts.T @ energy
    assert fit.bias == pytest.approx(expected, rel=1e-10)
    assert fit.std == pytest.approx(np.sqrt(np.mean((energy - counts @ expected) ** 2)), rel=1e-2)
    assert fit.indistinct == ()
    assert fit.seen.all()


def test_water_shares_its_energy_by_minimum_norm():
    # E = n (x_O + 2 x_H) with min norm: x = E/n (1, 2)/5
    counts = np.array([[1, 2, 0], [4, 8, 0], [64, 128, 0]])
    fit = solve_bias(counts, counts[:, 0] * -10.0)
    assert fit.bias == pytest.approx([-2.0, -4.0, 0.0], abs=1e-12)
    assert fit.indistinct == ((0, 1),)
    assert fit.seen.tolist() == [True, True, False]


def test_groups_follow_the_null_space():
    # water (0, 1), an alloy AB always 1:1 (3, 4), a free element 2; mixed in any amounts
    counts = np.array([[1, 2, 3, 0, 0], [2, 4, 1, 5, 5], [0, 0, 2, 1, 1], [3, 6, 0, 2, 2]])
    assert solve_bias(counts, np.arange(4.0)).indistinct == ((0, 1), (3, 4))
    # three elements, two compositions: all three are coupled
    assert solve_bias(np.array([[1, 1, 0], [0, 1, 1]]), np.ones(2)).indistinct == ((0, 1, 2),)


def test_a_pin_resolves_water():
    counts = np.array([[1, 2], [4, 8]])
    fit = solve_bias(counts, counts[:, 0] * -10.0, preset={1: -1.0})
    assert fit.bias == pytest.approx([-8.0, -1.0])
    assert fit.indistinct == ()


def test_rcond_cuts_small_singular_values():
    counts = np.array([[100, 100], [100, 101]])
    energy = counts @ [1.0, -1.0]
    assert solve_bias(counts, energy).bias == pytest.approx([1.0, -1.0])
    cut = solve_bias(counts, energy, rcond=0.1)
    assert abs(cut.bias[0] - cut.bias[1]) < 1e-2
    assert cut.indistinct == ((0, 1),)


@pytest.fixture
def model(make_model):
    model = make_model()
    model.out_bias.copy_(torch.tensor([1.0, 2.0, 3.0]).double())
    model.fitting.bias_atom_e.copy_(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    return model


def shifted(frames, shift):
    return [f._replace(energy=f.energy + float(np.sum(np.take(shift, f.atype)))) for f in frames]


def test_change_recovers_a_shift_and_leaves_absent_elements(model, rng):
    types = ([0, 1], [0, 0, 1], [1, 1])
    frames = shifted(labelled(model, [frame(rng, t) for t in types]), [-5.0, 4.0, 0.0])
    report = change_bias(model, dataset(frames), "change")
    assert report.before == pytest.approx([1.1, 2.2, 3.3])
    assert report.after == pytest.approx([-3.9, 6.2, 3.3], abs=1e-9)
    assert model.out_bias.tolist() == pytest.approx(report.after)
    errors = np.array([-1 / 2, -6 / 3, 8 / 2])
    assert report.rmse_before == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert report.rmse_after == pytest.approx(0.0, abs=1e-9)
    for f in frames:
        energy = model.evaluate(f.coord[None], f.box[None], f.atype).energy[0]
        assert energy == pytest.approx(f.energy, abs=1e-9)


def test_set_is_the_fit_to_labels_and_absent_elements_become_zero(model, rng):
    energies = {(0, 1): -4.0, (0, 0, 1): -7.0, (1, 1): -2.5}
    frames = [frame(rng, list(t), energy=e) for t, e in energies.items()]
    report = change_bias(model, dataset(frames), "set")
    counts = np.array([[1, 1], [2, 1], [0, 2]])
    expected = np.linalg.lstsq(counts, list(energies.values()), rcond=None)[0]
    assert report.after == pytest.approx([*expected, 0.0])
    assert model.out_bias.tolist() == pytest.approx(report.after)
    assert not model.fitting.bias_atom_e.any()
    residual = np.array(list(energies.values())) - counts @ expected
    assert model.out_std.tolist() == pytest.approx([residual.std()] * 3)


def test_preset_elements_end_at_their_value_in_both_modes(make_model, rng):
    model = make_model(preset_out_bias={"H": -2.0})
    model.out_bias.copy_(torch.tensor([1.0, 7.0, 3.0]))
    frames = [frame(rng, [0, 1]), frame(rng, [0, 0, 1])]
    frames = shifted(labelled(model, frames), [-1.0, -9.0, 0.0])
    change_bias(model, dataset(frames), "change")
    assert model.out_bias.tolist() == pytest.approx([0.0, -2.0, 3.0], abs=1e-9)
    frames = [frame(rng, [0, 1], energy=-12.0), frame(rng, [0, 0, 1], energy=-22.0)]
    change_bias(model, dataset(frames), "set")
    assert model.out_bias.tolist() == pytest.approx([-10.0, -2.0, 0.0])


def test_atomic_energy_labels_decide_for_their_types(model, rng):
    labels = np.array([-3.0, -5.0, 1.0])
    frames = [frame(rng, [0, 0, 1], energy=100.0, atom_energy=labels),
              frame(rng, [2, 2], energy=50.0)]  # fmt: skip
    change_bias(model, dataset(frames[:1], frames[1:]), "set")
    assert model.out_bias.tolist() == pytest.approx([-4.0, 1.0, 25.0])
    assert model.out_std.tolist()[:2] == pytest.approx([1.0, 0.0])


def test_types_without_energy_take_no_part(make_model, rng):
    model = make_model(atom_exclude_types=[1])
    frames = [frame(rng, [0, 1], energy=-4.0), frame(rng, [0, 0, 1, 1, 1], energy=-8.0)]
    assert change_bias(model, dataset(frames), "set").after == pytest.approx([-4.0, 0.0, 0.0])


def test_warning_names_the_elements(model, rng, caplog):
    frames = [frame(rng, [0, 1, 1], energy=-10.0), frame(rng, [0, 1, 1] * 2, energy=-20.0)]
    with caplog.at_level(logging.WARNING):
        report = change_bias(model, dataset(frames), "set")
    assert report.indistinct == ((0, 1),)
    assert "cannot tell O, H apart" in caplog.text


def test_unlabelled_frames_are_left_out(model, rng):
    good = frame(rng, [0], energy=-3.0)
    report = change_bias(model, dataset([good], [frame(rng, [0])]), "set")
    assert report.nframes == 1
    assert report.after[0] == pytest.approx(-3.0)
    with pytest.raises(DataError, match="energy label"):
        change_bias(model, dataset([frame(rng, [0])]))
    with pytest.raises(ConfigError, match="allowed"):
        change_bias(model, dataset([good]), "sett")  # type: ignore[arg-type]


def test_values_by_hand(model):
    set_bias_values(model, {"H": -13.6})
    assert model.out_bias.tolist() == pytest.approx([1.1, -13.6, 3.3])
    with pytest.raises(ConfigError, match="type_map"):
        set_bias_values(model, {"Xx": 1.0})
    with pytest.raises(ConfigError, match="finite"):
        set_bias_values(model, {"H": float("nan")})
