"""Energy per atom -> energy, force, virial and atomic virial, for every model alike.

Energies are differentiated with respect to the neighbour vectors d_ij = r_j - r_i. With
g_ij = dE/dd_ij:  F_i = Σ_j g_ij - Σ_k g_ki,  W = -Σ_ij d_ij ⊗ g_ij = -dE/dstrain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dpa_core.frames import Batch, Prediction

if TYPE_CHECKING:
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
    vectors = neighbor_vectors(batch)
    env = model.environment(batch)
    # Atoms with similar numbers of neighbours go together, so that few slots are empty.
    counts = batch.mask.sum(1)
    order = torch.argsort(counts, stable=True)
    energies, gradients = [], []
    for atoms in order.split(CHUNK):
        width = int(counts[atoms[-1]])
        with torch.enable_grad():
            part = vectors[atoms, :width].detach().requires_grad_()
            energy = model(part, env.select(atoms, width), *model.inputs_of(batch, atoms))
            # An atom without neighbours does not depend on its vectors: its gradient is 0.
            (gradient,) = torch.autograd.grad(
                energy.sum(), part, create_graph=create_graph, materialize_grads=True
            )
        energies.append(energy if create_graph else energy.detach())
        gradients.append(F.pad(gradient, (0, 0, 0, vectors.shape[1] - width)))
    inverse = torch.argsort(order)
    energy, gradient = torch.cat(energies)[inverse], torch.cat(gradients)[inverse]
    return _assemble(batch, vectors, energy, gradient, atom_virial)


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
