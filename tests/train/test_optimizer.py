"""Optimizer, clipping and moving average against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpa_core.config import OptimizerConfig
from dpa_core.errors import ConfigError
from dpa_core.train.distributed import World
from dpa_core.train.optimizer import Adam, MovingAverage, join_gradients, make_optimizer

SHAPES = ((7, torch.float32), (33, torch.float64), (2000, torch.float32))


def one_weight(value):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Adam's first step is lr * sign(gradient); its decay enters the gradient.
        ("Adam", 2.0 - 0.1),
        # AdamW shrinks the weight by lr * decay, whatever the gradient.
        ("AdamW", 2.0 * (1 - 0.1 * 0.5) - 0.1),
    ],
)
def test_first_step(kind, expected):
    model = one_weight(2.0)
    optimizer = make_optimizer(OptimizerConfig(type=kind, weight_decay=0.5), model)
    model.weight.grad = torch.full((1, 1), 0.3, dtype=torch.float64)
    optimizer.step(0.1)
    assert model.weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("kind", "decay"), [("Adam", 0.0), ("Adam", 0.1), ("AdamW", 0.1)])
def test_the_same_numbers_as_pytorch_and_after_a_restart(kind, decay):
    config = OptimizerConfig(type=kind, weight_decay=decay, beta2=0.99)
    random = torch.Generator().manual_seed(3)
    ours, theirs = (
        [nn.Parameter(torch.linspace(-1, 1, n, dtype=t)) for n, t in SHAPES] for _ in range(2)
    )
    kinds = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    reference = kinds[kind](theirs, betas=(0.9, 0.99), weight_decay=decay, foreach=False)
    optimizer = Adam(ours, config)
    for step in range(6):
        if step == 2:  # also from a checkpoint of torch.optim's
            optimizer = Adam(ours, config)
            optimizer.load_state_dict(reference.state_dict())
        if step == 4:
            state = optimizer.state_dict()
            optimizer = Adam(ours, config)
            optimizer.load_state_dict(state)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=random, dtype=a.dtype)
            b.grad = a.grad.clone()
        reference.param_groups[0]["lr"] = 0.1 / (1 + step)
        reference.step()
        optimizer.step(0.1 / (1 + step))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_nothing_trainable_is_refused():
    model = one_weight(1.0).requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match="no weight is trainable"):
        make_optimizer(OptimizerConfig(), model)


def test_moving_average():
    model = one_weight(1.0)
    average = MovingAverage(model, 0.9)
    for value in (2.0, 3.0):
        nn.init.constant_(model.weight, value)
        average.update()
    expected = 0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 3.0
    with average.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-15)
    assert model.weight.item() == 3.0


def test_clipping_keeps_the_direction_and_a_missing_gradient_is_zero():
    weights = [
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(1)),
        nn.Parameter(torch.zeros(3)),
    ]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert join_gradients(weights, World(), 0.0) == pytest.approx(5.0)
    assert weights[0].grad.tolist() == [3.0, 0.0]
    assert join_gradients(weights, World(), 2.5) == pytest.approx(5.0)
    assert weights[0].grad.tolist() == [1.5, 0.0]
    assert weights[1].grad.tolist() == [2.0]
    assert weights[2].grad.tolist() == [0.0, 0.0, 0.0]
