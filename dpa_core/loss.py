"""Energy loss: energy, force, virial and atomic energy of a batch of unequal frames.

Source: DeePMD-kit's `ener` loss. With N the atoms of a frame and dX = prediction - label,
every term is a mean over the frames (or atoms) that carry its label:

    term           mse                mae        huber of
    energy         dE²/N (or /N²)     |dE|/N     dE/N
    force          dF²                |dF|       dF
    virial         dW²/N (or /N²)     |dW|/N     dW/N
    atomic energy  dE_i²              |dE_i|     dE_i

`relative_f` v divides dF by |F label| + v; `f_use_norm` takes |dF| of an atom for its three
components. Each times its prefactor limit + (start - limit) * lr(t)/start_lr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dpa_core.config import LossConfig
from dpa_core.frames import Batch, Labels, Prediction

if TYPE_CHECKING:  # dpa_core.train imports this module
    from dpa_core.train.distributed import World

TERMS = ("e", "f", "v", "ae")


class Metrics(NamedTuple):
    """What a step reports, the same on every process.

    Attributes
    ----------
    loss
        () float64, the loss of the joint batch.
    sums
        (4, 3) float64: for every term the sum of the loss, of the squared error (energy and
        virial per atom) and the number of values. Sums of several batches may be added.
    """

    loss: Tensor
    sums: Tensor


class EnergyLoss:
    """The loss of a batch; with several processes, this one's share of the joint loss.

    Parameters
    ----------
    config
        Prefactors, kind of loss, Huber widths.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        delta = config.huber_delta
        e, f, v = delta if isinstance(delta, tuple) else (delta, delta, delta)
        self._delta = (e, f, v, e)
        start = [getattr(config, f"start_pref_{term}") for term in TERMS]
        limit = [getattr(config, f"limit_pref_{term}") for term in TERMS]
        # DeePMD: a term is active only if both of its prefactors are nonzero.
        self.active = tuple(bool(s and m) for s, m in zip(start, limit, strict=True))
        active = torch.tensor(self.active, dtype=torch.float64)
        self._start = torch.tensor(start, dtype=torch.float64) * active
        self._limit = torch.tensor(limit, dtype=torch.float64) * active

    def __call__(
        self,
        prediction: Prediction,
        labels: Labels,
        batch: Batch,
        lr_ratio: float,
        world: World,
    ) -> tuple[Tensor, Metrics]:
        """Loss to differentiate and the metrics of the joint batch.

        Parameters
        ----------
        prediction, labels, batch
            This process's share of the batch.
        lr_ratio
            lr(t)/start_lr, which moves the prefactors.
        world
            The processes that share the batch.
        """
        return self.combine(self.sums(prediction, labels, batch), lr_ratio, world)

    def prefactors(self, lr_ratio: float) -> Tensor:
        """(4,) float64: factors of energy, force, virial and atomic energy."""
        return self._limit + (self._start - self._limit) * lr_ratio

    def sums(self, prediction: Prediction, labels: Labels, batch: Batch) -> Tensor:
        """(4, 3) sums of loss, squared error and counts over the frames at hand."""
        natoms = batch.natoms.clamp(min=1).to(torch.float64)
        real = batch.atype >= 0
        one = natoms.new_ones(())
        errors = (
            (prediction.energy - labels.energy, natoms, labels.has_energy),
            (prediction.force - labels.force, one, labels.has_force[batch.frame] & real),
            (prediction.virial - labels.virial, natoms[:, None, None], labels.has_virial),
            (
                prediction.atom_energy - labels.atom_energy,
                one,
                labels.has_atom_energy[batch.frame] & real,
            ),
        )
        rows = []
        for term, (error, size, labelled), delta in zip(TERMS, errors, self._delta, strict=True):
            kept = labelled.reshape(-1, *[1] * (error.dim() - 1)).expand_as(error)
            error = torch.where(kept, error, 0.0)
            square = (error.detach() / size) ** 2
            if term == "f":
                error = self._force_error(error, labels.force)
            rows += [self._measure(error, size, delta).sum(), square.sum(), kept.sum()]
        return torch.stack([row.to(torch.float64) for row in rows]).reshape(len(TERMS), 3)

    def _force_error(self, error: Tensor, force: Tensor) -> Tensor:
        """Errors as the loss counts them, (N, 3), from those of atoms with labels `force`."""
        if self.config.relative_f is not None:
            error = error / (force.norm(dim=-1, keepdim=True) + self.config.relative_f)
        if self.config.f_use_norm:
            # The count is of components, so an atom's one value stands three times.
            error = torch.linalg.vector_norm(error, dim=-1, keepdim=True).expand_as(error)
        return error

    def _measure(self, error: Tensor, natoms: Tensor, delta: float) -> Tensor:
        """Loss per value, before the mean; zero for a zero error."""
        if self.config.loss_func == "mse":
            return error**2 / (natoms**2 if self.config.intensive_ener_virial else natoms)
        if self.config.loss_func == "mae":
            return error.abs() / natoms
        x = (error / natoms).abs()
        return torch.where(x <= delta, 0.5 * x**2, delta * (x - 0.5 * delta))

    def combine(self, sums: Tensor, lr_ratio: float, world: World) -> tuple[Tensor, Metrics]:
        """Turn this process's sums into its share of the loss.

        Terms are normalised by the counts of all processes, so that gradients summed over
        the processes are those of one process with the joint batch.
        """
        total = world.sum(sums.detach())
        weight = self.prefactors(lr_ratio).to(total.device) / total[:, 2].clamp(min=1)
        return (weight * sums[:, 0]).sum(), Metrics((weight * total[:, 0]).sum(), total)

    def no_frames(self, device: torch.device) -> Tensor:
        """Return the sums of a process that got no frame of this batch."""
        return torch.zeros(len(TERMS), 3, dtype=torch.float64, device=device)


def rmse(sums: Tensor) -> dict[str, float | None]:
    """Root mean square errors {"rmse_e": eV/atom, "rmse_f": eV/Å, ...}; None if unlabelled.

    Parameters
    ----------
    sums
        (4, 3) `Metrics.sums` of one batch, or added over many.
    """
    return {
        f"rmse_{term}": (square / count) ** 0.5 if count else None
        for term, (_, square, count) in zip(TERMS, sums.tolist(), strict=True)
    }
