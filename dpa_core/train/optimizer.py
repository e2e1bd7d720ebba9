"""Optimizer, gradient handling and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dpa_core.config import OptimizerConfig
from dpa_core.errors import ConfigError
from dpa_core.train.distributed import World


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
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
    kind = torch.optim.AdamW if config.type == "AdamW" else torch.optim.Adam
    betas = (config.beta1, config.beta2)
    return kind(weights, lr=0.0, betas=betas, weight_decay=config.weight_decay)


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
