"""Energy per atom -> energy, force, virial and atomic virial, for every model alike.

Energies are differentiated with respect to the neighbour vectors d_ij = r_j - r_i. With
g_ij = dE/dd_ij:  F_i = Σ_j g_ij - Σ_k g_ki,  W = -Σ_ij g_ij ⊗ d_ij = -dE/dstrain.

Atoms are independent of each other given their neighbours. So a loss is differentiated in two
passes: energies and forces first, without a graph. The loss L then gives a_i = dL/dE_i and, from
the formulas above, b_ij = dL/dg_ij = dL/dF_i - dL/dF_j - dL/dW d_ij; and the gradient of L is
that of Σ a_i E_i + Σ b_ij·g_ij with a and b fixed, which needs a few atoms at a time. Memory
does not grow with the batch.

Models on CPU are evaluated by compiled kernels (`dpa_core.kernels`) where these know their
formulas, else by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dpa_core import kernels
from dpa_core.frames import Batch, Prediction

if TYPE_CHECKING:
    from dpa_core.descriptor import Environment
    from dpa_core.model import Potential

_T = TypeVar("_T")

# Atoms that torch evaluates at once. On CPU working sets that stay in cache, and rows as wide
# as they need; elsewhere enough work for a whole device.
CHUNK = 64
_DEVICE_CHUNK = 1024


class _Neighborhoods(NamedTuple):
    """Atoms with their neighbours, as torch takes them."""

    batch: Batch
    env: Environment
    vectors: Tensor


def neighbor_vectors(batch: Batch) -> Tensor:
    """r_j + shift @ box - r_i, (N, M, 3) float64; meaningless in empty slots."""
    translation = batch.shift @ batch.box[batch.frame]
    return batch.coord[batch.index] + translation - batch.coord[:, None]


def predict(model: Potential, batch: Batch, *, atom_virial: bool = False) -> Prediction:
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

    Returns
    -------
    Prediction
        Without a graph; see `loss_gradient`.
    """
    return predict_heads((model,), batch, atom_virial=atom_virial)[0]


def predict_heads(
    models: Sequence[Potential], batch: Batch, *, atom_virial: bool = False
) -> list[Prediction]:
    """Do as `predict` for models on one descriptor (`Potential.heads`), evaluated once for all.

    Parameters
    ----------
    models
        At least one; all with the same descriptor and the same excluded pairs.
    batch, atom_virial
        As in `predict`.
    """
    engine = kernels.find(models)
    if engine is not None:
        return engine.predict(batch, atom_virial=atom_virial)
    return _predict_by_torch(models, _neighborhoods(models[0], batch), atom_virial=atom_virial)


def loss_gradient(
    model: Potential, batch: Batch, loss: Callable[[Prediction], tuple[Tensor, _T]]
) -> tuple[Prediction, _T]:
    """Add the gradient of a loss to the `grad` of the model's parameters.

    Parameters
    ----------
    model
        Any model that returns atomic energies.
    batch
        Frames and their neighbours.
    loss
        Gives the loss of a prediction, and anything else, which is returned.

    Returns
    -------
    prediction, anything
        The prediction has no graph.
    """
    engine = kernels.find((model,))
    if engine is not None:
        prediction, differentiate = engine.learn(batch)
    else:
        near = _neighborhoods(model, batch)
        prediction = _predict_by_torch((model,), near, atom_virial=False)[0]
        differentiate = partial(_differentiate_by_torch, model, near)
    leaves = [
        getattr(prediction, name).requires_grad_()
        for name in ("energy", "atom_energy", "force", "virial")
    ]
    value, other = loss(prediction)
    differentiate(Prediction(*torch.autograd.grad(value, leaves, materialize_grads=True)))
    for leaf in leaves:
        leaf.requires_grad_(requires_grad=False)
    return prediction, other


def _neighborhoods(model: Potential, batch: Batch) -> _Neighborhoods:
    return _Neighborhoods(batch, model.environment(batch), neighbor_vectors(batch))


def _predict_by_torch(
    models: Sequence[Potential], near: _Neighborhoods, *, atom_virial: bool
) -> list[Prediction]:
    found = _by_torch(models, near)
    return [_assemble(near, energy, gradient, atom_virial) for energy, gradient in found]


def _by_torch(models: Sequence[Potential], near: _Neighborhoods) -> list[tuple[Tensor, Tensor]]:
    """Atomic energies (N,) and gradients (N, M, 3) of every model."""
    slots = near.vectors.shape[1]
    energies: list[list[Tensor]] = [[] for _ in models]
    gradients: list[list[Tensor]] = [[] for _ in models]
    chunks = list(_chunks(near))
    for atoms, width in chunks:
        found = _differentiated(models, near, atoms, width, create_graph=False)
        for k, (energy, gradient) in enumerate(found):
            energies[k].append(energy.detach())
            gradients[k].append(F.pad(gradient, (0, 0, 0, slots - width)))
    inverse = torch.argsort(torch.cat([atoms for atoms, _ in chunks]))
    return [
        (torch.cat(energy)[inverse], torch.cat(gradient)[inverse])
        for energy, gradient in zip(energies, gradients, strict=True)
    ]


def _differentiate_by_torch(model: Potential, near: _Neighborhoods, bar: Prediction) -> None:
    batch = near.batch
    a = bar.atom_energy + bar.energy[batch.frame]
    b = bar.force[:, None] - bar.force[batch.index]
    b = b - near.vectors @ bar.virial[batch.frame].mT
    b = torch.where(batch.mask[..., None], b, 0.0)
    for atoms, width in _chunks(near):
        energy, gradient = _differentiated((model,), near, atoms, width, create_graph=True)[0]
        part = (a[atoms] * energy).sum() + (b[atoms, :width] * gradient).sum()
        if part.requires_grad:
            part.backward()


def _chunks(near: _Neighborhoods) -> Iterator[tuple[Tensor, int]]:
    """Atoms to evaluate together, and their largest number of neighbours."""
    batch = near.batch
    # Atoms with similar numbers of neighbours go together, so that few slots are empty.
    counts = batch.mask.sum(1)
    order = torch.argsort(counts, stable=True)
    if batch.head is not None:
        # And so do atoms of one head, which then pass its fitting net as one matrix.
        order = order[torch.argsort(batch.head[batch.frame[order]], stable=True)]
    for atoms in order.split(CHUNK if order.device.type == "cpu" else _DEVICE_CHUNK):
        yield atoms, int(counts[atoms].max())


def _differentiated(
    models: Sequence[Potential],
    near: _Neighborhoods,
    atoms: Tensor,
    width: int,
    *,
    create_graph: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Energies of some atoms, and their gradients, of every model."""
    found = []
    with torch.enable_grad():
        part = near.vectors[atoms, :width].detach().requires_grad_()
        inputs = models[0].inputs_of(near.batch, atoms)
        answers = _energies(models, part, near.env.select(atoms, width), inputs)
        for k, energy in enumerate(answers):
            # An atom without neighbours does not depend on its vectors: its gradient is 0.
            (gradient,) = torch.autograd.grad(
                energy.sum(),
                part,
                create_graph=create_graph,
                retain_graph=create_graph or k + 1 < len(answers),
                materialize_grads=True,
            )
            found.append((energy, gradient))
    return found


def _energies(
    models: Sequence[Potential], vectors: Tensor, env: Environment, inputs: Sequence[Any]
) -> list[Tensor]:
    if len(models) == 1:
        return [models[0](vectors, env, *inputs)]
    d = models[0].descriptor(vectors, env)
    return [model.atomic_energies(d, env, *inputs) for model in models]


def _assemble(
    near: _Neighborhoods, energy: Tensor, gradient: Tensor, atom_virial: bool
) -> Prediction:
    batch = near.batch
    mask = batch.mask[..., None]
    gradient = torch.where(mask, gradient, 0.0)
    vectors = torch.where(mask, near.vectors, 0.0)
    on_neighbors = torch.zeros_like(batch.coord)
    on_neighbors = on_neighbors.index_add(0, batch.index.flatten(), gradient.flatten(0, 1))
    force = gradient.sum(1) - on_neighbors  # index_add's own alpha=-1 is eight times slower
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
