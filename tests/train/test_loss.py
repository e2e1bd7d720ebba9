"""The loss of ragged batches against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpa_core.batch import make_batch, make_labels
from dpa_core.config import DPA1Config, FittingConfig, LossConfig, ModelConfig
from dpa_core.derivatives import loss_gradient, predict
from dpa_core.frames import Frame, Prediction
from dpa_core.loss import EnergyLoss, rmse
from dpa_core.model import build_model
from dpa_core.neighbors import NeighborSpec
from dpa_core.train.distributed import World

ONE = World()
BOX = 10 * np.eye(3)


def frames():
    """Two atoms with every label; one atom and a virtual one, without virial."""
    first = Frame(
        coord=np.array([[0.0, 0, 0], [2.0, 0, 0]]),
        atype=np.array([0, 0]),
        box=BOX,
        energy=1.0,
        force=np.zeros((2, 3)),
        virial=np.zeros((3, 3)),
        atom_energy=np.array([0.5, 0.5]),
    )
    second = Frame(
        coord=np.array([[0.0, 0, 0], [5.0, 0, 0]]),
        atype=np.array([0, -1]),
        box=BOX,
        energy=3.0,
        force=np.zeros((2, 3)),
    )
    return [first, second]


def batch_and_prediction():
    batch = make_batch(frames(), NeighborSpec(3.0))
    force = torch.zeros(4, 3, dtype=torch.float64)
    force[0, 0], force[1, 1], force[2, 2] = 1.0, -2.0, 3.0
    force[3] = 100.0  # the virtual atom must not count
    virial = torch.zeros(2, 3, 3, dtype=torch.float64)
    virial[0, 0, 0], virial[0, 1, 2] = 2.0, -4.0
    virial[1] = 50.0  # not labelled
    prediction = Prediction(
        energy=torch.tensor([1.6, 2.0], dtype=torch.float64),  # errors 0.6 and -1
        atom_energy=torch.tensor([0.7, 0.9, 9.0, 0.0], dtype=torch.float64),
        force=force,
        virial=virial,
    )
    return batch, make_labels(frames()), prediction


# Per term: value by hand. N = 2 and 1 atoms; three real atoms carry forces.
MSE = {
    "e": (0.6**2 / 2 + 1.0**2 / 1) / 2,
    "f": (1 + 4 + 9) / 9,
    "v": (4 + 16) / 2 / 9,
    "ae": (0.2**2 + 0.4**2) / 2,
}
INTENSIVE = {**MSE, "e": (0.6**2 / 4 + 1.0) / 2, "v": (4 + 16) / 4 / 9}
MAE = {"e": (0.3 + 1.0) / 2, "f": (1 + 2 + 3) / 9, "v": (1 + 2) / 9, "ae": (0.2 + 0.4) / 2}


def huber(x, delta):
    return 0.5 * x * x if x <= delta else delta * (x - 0.5 * delta)


HUBER = {
    "e": (huber(0.3, 0.5) + huber(1.0, 0.5)) / 2,
    "f": (huber(1, 1.5) + huber(2, 1.5) + huber(3, 1.5)) / 9,
    "v": (huber(1, 0.1) + huber(2, 0.1)) / 9,
    "ae": (huber(0.2, 0.5) + huber(0.4, 0.5)) / 2,
}


@pytest.mark.parametrize("term", ["e", "f", "v", "ae"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_func": "mse"}, MSE),
        ({"loss_func": "mse", "intensive_ener_virial": True}, INTENSIVE),
        ({"loss_func": "mae"}, MAE),
        ({"loss_func": "huber", "huber_delta": (0.5, 1.5, 0.1)}, HUBER),
    ],
)
def test_every_term_by_hand(term, options, expected):
    batch, labels, prediction = batch_and_prediction()
    off = {f"{kind}_pref_{t}": 0.0 for kind in ("start", "limit") for t in ("e", "f", "v", "ae")}
    on = {f"start_pref_{term}": 8.0, f"limit_pref_{term}": 2.0}
    loss, metrics = EnergyLoss(LossConfig(**{**off, **on}, **options))(
        prediction, labels, batch, 0.25, ONE
    )
    prefactor = 2.0 + (8.0 - 2.0) * 0.25
    assert float(loss) == pytest.approx(prefactor * expected[term], rel=1e-14)
    assert float(metrics.loss) == float(loss)


def test_displayed_errors_are_per_atom_and_skip_missing_labels():
    batch, labels, prediction = batch_and_prediction()
    _, metrics = EnergyLoss(LossConfig())(prediction, labels, batch, 1.0, ONE)
    found = rmse(metrics.sums)
    assert found["rmse_e"] == pytest.approx(np.sqrt((0.3**2 + 1.0) / 2))
    assert found["rmse_f"] == pytest.approx(np.sqrt(14 / 9))
    assert found["rmse_v"] == pytest.approx(np.sqrt((1 + 4) / 9))
    assert found["rmse_ae"] == pytest.approx(np.sqrt((0.04 + 0.16) / 2))
    assert found == rmse(metrics.sums + metrics.sums)
    unlabelled = [f._replace(energy=None, force=None) for f in frames()]
    _, metrics = EnergyLoss(LossConfig())(prediction, make_labels(unlabelled), batch, 1.0, ONE)
    assert rmse(metrics.sums)["rmse_e"] is None
    assert float(metrics.loss) == 0.0


def test_a_term_with_one_zero_prefactor_is_inactive():
    loss = EnergyLoss(LossConfig(start_pref_e=0.0, limit_pref_e=1.0, limit_pref_f=0.0))
    assert loss.active == (False, False, False, False)
    assert loss.prefactors(0.5).tolist() == [0, 0, 0, 0]
    assert EnergyLoss(LossConfig()).prefactors(0.0).tolist() == [1.0, 1.0, 0.0, 0.0]
    start = EnergyLoss(LossConfig()).prefactors(1.0).tolist()
    assert start == pytest.approx([0.02, 1000.0, 0.0, 0.0])


@pytest.mark.usefixtures("path")
def test_gradient_of_the_loss_is_its_finite_difference():
    """Energy, force and virial loss through both derivatives of a real model."""
    net = {"precision": "float64", "seed": 3}
    descriptor = DPA1Config(rcut=4.0, neuron=(4, 8), axis_neuron=4, attn=8, attn_layer=1, **net)
    config = ModelConfig(
        type_map=("Cu",), descriptor=descriptor, fitting_net=FittingConfig(neuron=(8,), **net)
    )
    model = build_model(config, 1)
    loss = EnergyLoss(LossConfig(start_pref_v=1.0, limit_pref_v=1.0, start_pref_f=10))
    labels, batch = make_labels(frames()), make_batch(frames(), model.spec)

    def value():
        return loss(predict(model, batch), labels, batch, 0.5, ONE)[0]

    loss_gradient(model, batch, lambda found: loss(found, labels, batch, 0.5, ONE))
    step, checked = 1e-5, 0
    for weight in model.parameters():
        gradient = weight.grad
        if gradient is None:
            continue
        with torch.no_grad():
            flat, k = weight.view(-1), weight.numel() // 2
            flat[k] += step
            up = float(value())
            flat[k] -= 2 * step
            down = float(value())
            flat[k] += step
        expected = float(gradient.reshape(-1)[k])
        assert (up - down) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-8)
        checked += abs(expected) > 1e-6
    assert checked > 5


@pytest.mark.parametrize("kind", [{}, {"relative_f": 0.5}, {"f_use_norm": True}])
def test_reshaped_force_errors(kind):
    """Perfect forces pull at nothing, and the reported error stays that of the components."""
    batch, labels, prediction = batch_and_prediction()
    plain = EnergyLoss(LossConfig(loss_func="mae"))
    shaped = EnergyLoss(LossConfig(loss_func="mae", **kind))
    expected = rmse(plain.sums(prediction, labels, batch))
    assert rmse(shaped.sums(prediction, labels, batch)) == expected
    force = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    value, _ = shaped(prediction._replace(force=force), labels, batch, 1.0, ONE)
    value.backward()
    assert torch.equal(force.grad, torch.zeros(4, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"f_use_norm": True}, 'needs loss_func "mae" or "huber"'),
        ({"relative_f": 1.0, "loss_func": "huber"}, 'needs loss_func "mse" or "mae"'),
    ],
)
def test_force_errors_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)
