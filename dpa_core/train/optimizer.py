"""Optimizer, gradient handling and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpa_core.config import OptimizerConfig
from dpa_core.errors import ConfigError
from dpa_core.train.distributed import World


class Adam:
    """Adam (arXiv:1412.6980), its weight decay decoupled on request (AdamW, arXiv:1711.05101).

    Number for number torch.optim's, whose first use imports torch's compiler: two seconds and
    100 MB. A checkpoint holds the same state under the same names.

    Parameters
    ----------
    weights
        What is trained.
    config
        Decay rates; of the type "AdamW" the weight decay is decoupled.
    """

    eps = 1e-8

    def __init__(self, weights: Sequence[Tensor], config: OptimizerConfig) -> None:
        self.weights = list(weights)
        self.steps = 0
        self._betas = (config.beta1, config.beta2)
        self._decay, self._decoupled = config.weight_decay, config.type == "AdamW"
        self._first = [torch.zeros_like(w) for w in self.weights]
        self._second = [torch.zeros_like(w) for w in self.weights]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Change the weights by their gradients; every weight must have one."""
        self.steps += 1
        weights, grads = self.weights, [w.grad for w in self.weights if w.grad is not None]
        beta1, beta2 = self._betas
        if self._decay and self._decoupled:
            torch._foreach_mul_(weights, 1 - lr * self._decay)
        elif self._decay:
            grads = list(torch._foreach_add(grads, weights, alpha=self._decay))
        torch._foreach_lerp_(self._first, grads, 1 - beta1)
        torch._foreach_mul_(self._second, beta2)
        torch._foreach_addcmul_(self._second, grads, grads, 1 - beta2)
        scale = torch._foreach_sqrt(self._second)
        torch._foreach_div_(scale, (1 - beta2**self.steps) ** 0.5)
        torch._foreach_add_(scale, self.eps)
        size = -lr / (1 - beta1**self.steps)
        torch._foreach_addcdiv_(weights, self._first, scale, size)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        step = torch.tensor(float(self.steps))
        pairs = zip(self._first, self._second, strict=True)
        state = {k: {"step": step, "exp_avg": m, "exp_avg_sq": v} for k, (m, v) in enumerate(pairs)}
        return {"state": state if self.steps else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        for k, one in state["state"].items():
            self.steps = int(one["step"])
            self._first[k].copy_(one["exp_avg"])
            self._second[k].copy_(one["exp_avg_sq"])


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> Adam:
    """Adam (weight decay in the gradient) or AdamW (decoupled) over the trainable weights.

    Raises
    ------
    ConfigError
        Every weight is frozen.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise ConfigError(
            "no weight is trainable; check training.trainable, descriptor.trainable and "
            "fitting_net.trainable"
        )
    return Adam(weights, config)


def join_gradients(weights: Sequence[Tensor], world: World, max_norm: float) -> float:
    """Sum the gradients over the processes, clip them, return their norm before clipping.

    Parameters
    ----------
    weights
        Trainable weights after a backward pass; a missing gradient counts as zero.
    world
        The processes that share the batch.
    max_norm
        Largest norm; 0 does not clip.
    """
    grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    flat = world.sum(torch.cat([g.reshape(-1) for g in grads]))
    norm = float(torch.linalg.vector_norm(flat))
    if max_norm and norm > max_norm:
        flat = flat * (max_norm / norm)
    for weight, grad in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.grad = grad.reshape(weight.shape).to(weight.dtype)
    return norm


class MovingAverage:
    """shadow <- decay * shadow + (1 - decay) * weight after every step (no bias correction).

    Parameters
    ----------
    model
        Its trainable weights are averaged.
    decay
        Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.shadow = {n: p.detach().clone() for n, p in self._weights.items()}

    def update(self) -> None:
        """Take in the weights of the step just done."""
        for name, weight in self._weights.items():
            self.shadow[name].mul_(self.decay).add_(weight.detach(), alpha=1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the averaged weights inside this context."""
        kept = {n: p.detach().clone() for n, p in self._weights.items()}
        self._set(self.shadow)
        try:
            yield
        finally:
            self._set(kept)

    def load(self, shadow: dict[str, Tensor]) -> None:
        """Continue from the averages of a checkpoint."""
        for name, value in shadow.items():
            self.shadow[name].copy_(value)

    def _set(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(values[name])
