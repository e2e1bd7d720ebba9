"""Learning rate against the step, in closed form (nothing to save in a checkpoint).

Source: DeePMD-kit's `exp`, `cosine` and `wsd` schedules with linear warm-up.
"""

from __future__ import annotations

import math

from dpa_core.config import LearningRateConfig
from dpa_core.errors import ConfigError


class Schedule:
    """Learning rate of every step of a run.

    With W warm-up steps and T = numb_steps - W, t counts from the end of the warm-up:

        warm-up  start * (factor + (1 - factor) * step / W)
        exp      max(stop, start * rate^floor(t / decay_steps)), `smooth`: without floor,
                 rate = (stop/start)^(decay_steps/T) unless given
        cosine   stop + (start - stop) * (1 + cos(pi t/T)) / 2
        wsd      start, then over the last decay_phase_ratio of all steps, tau = 0..1:
                 1/(tau/stop + (1 - tau)/start), cosine or linear

    Parameters
    ----------
    config
        Kind and numbers.
    numb_steps
        Length of the run.

    Raises
    ------
    ConfigError
        Warm-up and decay do not fit into the run.
    """

    def __init__(self, config: LearningRateConfig, numb_steps: int) -> None:
        self.config = config
        self.span = numb_steps - config.warmup_steps
        if self.span < 1:
            raise ConfigError(
                f"learning_rate.warmup_steps is {config.warmup_steps}, the run has only "
                f"{numb_steps} steps; lower warmup_steps or train longer"
            )
        self.decay = max(1, int(config.decay_phase_ratio * numb_steps))
        if config.type == "wsd" and self.decay > self.span:
            raise ConfigError(
                f"learning_rate: warm-up ({config.warmup_steps} steps) and decay ({self.decay}) "
                f"exceed the run's {numb_steps} steps; lower warmup_steps or decay_phase_ratio"
            )
        self.decay_steps = config.decay_steps
        if config.decay_rate is None and config.decay_steps >= self.span:
            # DeePMD's rule for runs shorter than one decay interval.
            self.decay_steps = 100 if self.span // 10 > 100 else self.span // 100 + 1

    def __call__(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        c = self.config
        if step < c.warmup_steps:
            rise = c.warmup_start_factor + (1 - c.warmup_start_factor) * step / c.warmup_steps
            return c.start_lr * rise
        t = step - c.warmup_steps
        if c.type == "exp":
            return self._exp(t)
        if c.type == "cosine":
            return self._cosine(min(t / self.span, 1.0))
        tau = min(max((t - (self.span - self.decay)) / self.decay, 0.0), 1.0)
        if c.decay_type == "inverse_linear":
            return 1 / (tau / c.stop_lr + (1 - tau) / c.start_lr)
        if c.decay_type == "cosine":
            return self._cosine(tau)
        return c.start_lr + (c.stop_lr - c.start_lr) * tau

    def ratio(self, step: int) -> float:
        """lr(step)/start_lr, which moves the prefactors of the loss (warm-up included)."""
        return self(step) / self.config.start_lr

    def _exp(self, t: int) -> float:
        c = self.config
        rate = c.decay_rate
        if rate is None:
            rate = (c.stop_lr / c.start_lr) ** (self.decay_steps / self.span)
        power = t / self.decay_steps if c.smooth else t // self.decay_steps
        return max(c.stop_lr, c.start_lr * rate**power)

    def _cosine(self, tau: float) -> float:
        c = self.config
        return c.stop_lr + (c.start_lr - c.stop_lr) * (1 + math.cos(math.pi * tau)) / 2
