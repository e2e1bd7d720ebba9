"""Energy per atom -> energy, force, virial and atomic virial, for every model alike.

Energies are differentiated with respect to the neighbour vectors d_ij = r_j - r_i. With
g_ij = dE/dd_ij:  F_i = Σ_j g_ij - Σ_k g_ki,  W = -Σ_ij d_ij ⊗ g_ij = -dE/dstrain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpa_core.frames import Batch, Prediction

if TYPE_CHECKING:
    from dpa_core.descriptor import Environment
    from dpa_core.model import Potential

# Atoms evaluated at once: working sets that stay in cache, and rows as wide as they need.
CHUNK = 64


def neighbor_vectors(batch: Batch) -> Tensor:
    """r_j + shift @ box - r_i, (N, M, 3) float64; meaningless in empty slots."""
    translation = batch.shift @ batch.box[batch.frame]
    return batch.coord[batch.index] + translation - batch.coord[:, None]


def predict(
    model: Potential, batch: Batch, *, atom_virial: bool = False, create_graph: bool = False
) -> Prediction:
    """Energy, force and virial of a batch.

    Parameters
    ----------
    model
        Any model that returns atomic energies.
    batch
        Frames and their neighbours.
    atom_virial
        Also return the (N, 3, 3) atomic virials, attributed to the neighbour as in
        DeePMD-kit: W_j = -Σ_i g_ij ⊗ d_ij.
    create_graph
        Keep the graph, so that a loss of the forces can be differentiated.
    """
    models = (model,)
    return predict_heads(models, batch, atom_virial=atom_virial, create_graph=create_graph)[0]


def predict_heads(
    models: Sequence[Potential],
    batch: Batch,
    *,
    atom_virial: bool = False,
    create_graph: bool = False,
) -> list[Prediction]:
    """Do as `predict` for models on one descriptor (`Potential.heads`), evaluated once for all.

    Parameters
    ----------
    models
        At least one; all with the same descriptor and the same excluded pairs.
    batch, atom_virial, create_graph
        As in `predict`.
    """
    vectors = neighbor_vectors(batch)
    env = models[0].environment(batch)
    # Atoms with similar numbers of neighbours go together, so that few slots are empty.
    counts = batch.mask.sum(1)
    order = torch.argsort(counts, stable=True)
    if batch.head is not None:
        # And so do atoms of one head, which then pass its fitting net as one matrix.
        order = order[torch.argsort(batch.head[batch.frame[order]], stable=True)]
    energies: list[list[Tensor]] = [[] for _ in models]
    gradients: list[list[Tensor]] = [[] for _ in models]
    for atoms in order.split(CHUNK):
        width = int(counts[atoms].max())
        with torch.enable_grad():
            part = vectors[atoms, :width].detach().requires_grad_()
            inputs = models[0].inputs_of(batch, atoms)
            answers = _energies(models, part, env.select(atoms, width), inputs)
            for k, energy in enumerate(answers):
                # An atom without neighbours does not depend on its vectors: its gradient is 0.
                (gradient,) = torch.autograd.grad(
                    energy.sum(),
                    part,
                    create_graph=create_graph,
                    retain_graph=create_graph or k + 1 < len(answers),
                    materialize_grads=True,
                )
                energies[k].append(energy if create_graph else energy.detach())
                gradients[k].append(F.pad(gradient, (0, 0, 0, vectors.shape[1] - width)))
    inverse = torch.argsort(order)
    return [
        _assemble(batch, vectors, torch.cat(e)[inverse], torch.cat(g)[inverse], atom_virial)
        for e, g in zip(energies, gradients, strict=True)
    ]


def _energies(
    models: Sequence[Potential], vectors: Tensor, env: Environment, inputs: Sequence[Any]
) -> list[Tensor]:
    if len(models) == 1:
        return [models[0](vectors, env, *inputs)]
    d = models[0].descriptor(vectors, env)
    return [model.atomic_energies(d, env, *inputs) for model in models]


def _assemble(
    batch: Batch, vectors: Tensor, energy: Tensor, gradient: Tensor, atom_virial: bool
) -> Prediction:
    mask = batch.mask[..., None]
    gradient = torch.where(mask, gradient, 0.0)
    vectors = torch.where(mask, vectors, 0.0)
    force = gradient.sum(1).index_add(0, batch.index.flatten(), gradient.flatten(0, 1), alpha=-1)
    per_centre = -(gradient.mT @ vectors)
    zeros = energy.new_zeros(batch.nframes)
    scattered = None
    if atom_virial:
        pairs = -(gradient[..., :, None] * vectors[..., None, :]).flatten(0, 1)
        scattered = torch.zeros_like(per_centre).index_add(0, batch.index.flatten(), pairs)
    return Prediction(
        energy=zeros.index_add(0, batch.frame, energy),
        atom_energy=energy,
        force=force,
        virial=zeros[:, None, None].expand(-1, 3, 3).index_add(0, batch.frame, per_centre),
        atom_virial=scattered,
    )
