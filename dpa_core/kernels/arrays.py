"""A model's weights as the arrays that the kernels work on; gradients go the same way back.

What depends on types alone is made here by torch: the type embedding's share of the first
layer, strip mode's factors, what the fitting net adds for a centre's type and parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpa_core.attention import GatedAttentionLayer
from dpa_core.descriptor import Descriptor, DPA1Descriptor, SeE2ADescriptor
from dpa_core.embedding import ResidualLayer, ResidualNet
from dpa_core.fitting import EnergyFitting
from dpa_core.kernels.job import ATTENTION
from dpa_core.tables import EmbeddingTables
from dpa_core.tabulated import TabulatedDPA1, TabulatedSeE2A, rows_of_pairs

# exp() of logits must stay in the range of float32 without subtracting the largest.
_LARGEST_SCALE = 30.0


class LayerArrays(NamedTuple):
    """A layer: (rows, out) weight, bias and step; `copies` of the input are added to it.

    Of the weight the first `inputs` rows count.
    """

    inputs: int
    weight: Tensor
    bias: Tensor | None
    idt: Tensor | None
    copies: int


class Arrays(NamedTuple):
    """What `source/job.hpp` calls by the same names."""

    net_of: Tensor
    row_of: Tensor
    first_weight: Tensor | None
    first_bias: Tensor | None
    embedding: list[list[LayerArrays]]
    tables: EmbeddingTables | None
    factor: Tensor | None
    attention: list[dict[str, Tensor]]
    fitting: list[list[LayerArrays]]


def supports(descriptor: Descriptor, fittings: Sequence[EnergyFitting]) -> bool:
    """Whether the kernels know all formulas of a model on CPU."""
    if type(descriptor) not in (DPA1Descriptor, SeE2ADescriptor, TabulatedDPA1, TabulatedSeE2A):
        return False
    config, net = descriptor.config, fittings[0].config
    if config.precision != net.precision or descriptor.davg.device.type != "cpu":
        return False
    if net.atom_ener is not None and any(e is not None for e in net.atom_ener):
        return False
    if isinstance(descriptor, DPA1Descriptor) and descriptor.config.attn_layer:
        layer = cast(GatedAttentionLayer, descriptor.attention.layers[0])
        if not descriptor.config.normalize or not 0 < layer.scale <= _LARGEST_SCALE:
            return False
    embedding = _embedding_nets(descriptor)
    if embedding and config.activation_function.lower() != "tanh":
        return False
    nets = [_net(n) for f in fittings for n in f.nets]
    plain = [*(n[0] for n in (*nets, *embedding)), *(n[-1] for n in nets)]
    return net.activation_function.lower() == "tanh" and all(x.copies == 0 for x in plain)


def arrays_of(descriptor: Descriptor, fittings: Sequence[EnergyFitting]) -> Arrays:
    """Arrays of a descriptor and fitting nets on it, which stand one after the other."""
    row_of = rows_of_pairs(descriptor.config, descriptor.ntypes)
    tables = getattr(descriptor, "tables", None)
    first_weight, first_bias = (None, None) if tables else _first_layer(descriptor)
    nets = _embedding_nets(descriptor)
    width = descriptor.dim_out - descriptor.dim_type
    return Arrays(
        net_of=row_of if len(nets) > 1 else torch.zeros_like(row_of),
        row_of=row_of,
        first_weight=first_weight,
        first_bias=first_bias,
        embedding=[[_layer(layer) for layer in n[1:]] for n in nets],
        tables=tables,
        factor=_factors(descriptor),
        attention=[
            {name: getattr(layer, name) for name in ATTENTION}
            for layer in getattr(getattr(descriptor, "attention", None), "layers", ())
        ],
        fitting=[_fitting(_net(n), width) for fitting in fittings for n in fitting.nets],
    )


def first_of(
    descriptor: Descriptor,
    fitting: EnergyFitting,
    atype: Tensor,
    fparam: Tensor | None,
    aparam: Tensor | None,
) -> Tensor:
    """Return what the first layer of the fitting net adds to the descriptor's share, (N, width).

    Its bias and its product with the inputs behind the descriptor: the centre's type
    embedding, frame and atom parameters.
    """
    inputs = fitting.extra_inputs(descriptor.davg.new_zeros(0).to(fitting.dtype), fparam, aparam)
    if descriptor.dim_type:
        inputs = [cast(DPA1Descriptor, descriptor).type_embedding()[atype], *inputs]
    start = descriptor.dim_out - descriptor.dim_type
    firsts = [_net(n)[0] for n in fitting.nets]
    which = torch.zeros_like(atype) if len(firsts) == 1 else atype
    # embedding() is indexing whose gradient takes a tenth of the time.
    added = F.embedding(which, torch.stack([cast(Tensor, layer.bias) for layer in firsts]))
    if inputs:
        x = torch.cat(inputs, -1)
        for k, layer in enumerate(firsts):
            own = (which == k).to(x.dtype)[:, None]
            added = added + (x * own) @ layer.weight[start:]
    return added


def _first_layer(descriptor: Descriptor) -> tuple[Tensor, Tensor]:
    """Return the nets' first weights, (nets, width), and biases, (rows of pairs, width)."""
    firsts = [n[0] for n in _embedding_nets(descriptor)]
    biases = torch.stack([cast(Tensor, layer.bias) for layer in firsts])
    if not isinstance(descriptor, DPA1Descriptor):
        return torch.cat([layer.weight for layer in firsts]), biases
    (first,), tebd = firsts, descriptor.config.tebd_dim
    types = descriptor.type_embedding()
    one_side, ntypes = descriptor.config.type_one_side, len(types)
    if descriptor.config.tebd_input_mode == "strip":
        return first.weight, biases.expand(ntypes if one_side else ntypes**2, -1)
    rows = types @ first.weight[1 : 1 + tebd] + biases
    if not one_side:
        centre = types @ first.weight[1 + tebd :]
        rows = (centre[:, None] + rows[None]).flatten(0, 1)
    return first.weight[:1], rows


def _factors(descriptor: Descriptor) -> Tensor | None:
    """Strip mode's factors, (rows, width)."""
    if not isinstance(descriptor, DPA1Descriptor) or descriptor.config.tebd_input_mode != "strip":
        return None
    if isinstance(descriptor, TabulatedDPA1):
        return descriptor.pair_factors
    return descriptor.strip_factors(descriptor.type_embedding())


def _fitting(net: list[ResidualLayer], width: int) -> list[LayerArrays]:
    """Layers of a fitting net; the first without what `first_of` adds."""
    first = LayerArrays(width, net[0].weight, None, None, 0)
    return [first, *(_layer(layer) for layer in net[1:])]


def _embedding_nets(descriptor: Descriptor) -> list[list[ResidualLayer]]:
    if isinstance(descriptor, TabulatedDPA1 | TabulatedSeE2A):
        return []
    if isinstance(descriptor, DPA1Descriptor):
        return [_net(descriptor.embedding)]
    return [_net(n) for n in descriptor.embedding]


def _net(net: nn.Module) -> list[ResidualLayer]:
    return list(cast(ResidualNet, net).layers)  # type: ignore[arg-type]


def _layer(layer: ResidualLayer) -> LayerArrays:
    return LayerArrays(len(layer.weight), layer.weight, layer.bias, layer.idt, layer.copies)
