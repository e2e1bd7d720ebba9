"""Learning rates in closed form."""

from __future__ import annotations

import math

import pytest

from dpa_core.config import LearningRateConfig
from dpa_core.errors import ConfigError
from dpa_core.train.schedule import Schedule


def schedule(numb_steps, **options):
    return Schedule(LearningRateConfig(**options), numb_steps)


def test_value_recorded_from_a_deepmd_run():
    lr = schedule(60, start_lr=2e-3, stop_lr=1e-5, decay_steps=20)
    assert lr(59) == pytest.approx(5.848035e-5, rel=1e-7)
    assert lr(0) == lr(19) == 2e-3
    assert lr(20) == pytest.approx(2e-3 * 0.005 ** (1 / 3))


def test_exp_smooth_given_rate_and_lower_bound():
    lr = schedule(100, start_lr=1.0, stop_lr=1e-4, decay_steps=10, smooth=True)
    assert lr(5) == pytest.approx(1e-4 ** (5 / 100))
    lr = schedule(100, start_lr=1.0, stop_lr=0.2, decay_steps=10, decay_rate=0.5)
    assert [lr(9), lr(10), lr(20), lr(30), lr(99)] == [1.0, 0.5, 0.25, 0.2, 0.2]


@pytest.mark.parametrize(("span", "steps"), [(2000, 100), (1009, 11), (60, 1), (5000, 100)])
def test_exp_short_runs_get_shorter_decay_steps(span, steps):
    assert schedule(span, decay_steps=5000).decay_steps == steps
    assert schedule(span, decay_steps=5000, decay_rate=0.9).decay_steps == 5000


def test_cosine():
    lr = schedule(100, type="cosine", start_lr=1.0, stop_lr=0.1)
    assert lr(0) == 1.0
    assert lr(50) == pytest.approx(0.55)
    assert lr(25) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert lr(100) == lr(1000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kind", "middle"),
    [("inverse_linear", 1 / (0.5 / 0.1 + 0.5)), ("cosine", 0.55), ("linear", 0.55)],
)
def test_wsd(kind, middle):
    options = {"start_lr": 1.0, "stop_lr": 0.1, "decay_phase_ratio": 0.2, "decay_type": kind}
    lr = schedule(100, type="wsd", warmup_steps=10, **options)
    assert lr(5) == pytest.approx(0.5)
    assert lr(10) == lr(80) == 1.0
    assert lr(90) == pytest.approx(middle)
    assert lr(100) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["exp", "cosine", "wsd"])
def test_warm_up_is_linear_and_shifts_the_decay(kind):
    options = {"type": kind, "start_lr": 0.02, "stop_lr": 1e-4, "decay_steps": 7}
    lr = schedule(100, warmup_steps=20, warmup_start_factor=0.1, **options)
    assert lr(0) == pytest.approx(0.002)
    assert lr(10) == pytest.approx(0.02 * 0.55)
    assert lr.ratio(10) == pytest.approx(0.55)
    assert lr(20) == 0.02
    if kind != "wsd":
        assert lr(57) == pytest.approx(schedule(80, **options)(37))


def test_phases_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"warmup_steps is 100, the run has only 100"):
        schedule(100, warmup_steps=100)
    with pytest.raises(ConfigError, match=r"exceed the run's 100 steps"):
        schedule(100, type="wsd", warmup_steps=60, decay_phase_ratio=0.5)
