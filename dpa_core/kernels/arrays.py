"""A model's weights as the arrays that the kernels work on; gradients go the same way back.

What depends on types alone is made here by torch: the type embedding's share of the first
layer, strip mode's factors, what the fitting net adds for a centre's type and parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dpa_core.attention import GatedAttentionLayer
from dpa_core.config import DPA1Config
from dpa_core.descriptor import Descriptor, DPA1Descriptor, Environment, SeE2ADescriptor
from dpa_core.embedding import ResidualLayer, ResidualNet
from dpa_core.fitting import EnergyFitting
from dpa_core.kernels.job import ATTENTION

# exp() of logits must stay in the range of float32 without subtracting the largest.
_LARGEST_SCALE = 30.0


class LayerArrays(NamedTuple):
    """(in, out) weight, bias and step of a layer; `copies` of the input are added to it."""

    weight: Tensor
    bias: Tensor | None
    idt: Tensor | None
    copies: int


class Arrays(NamedTuple):
    """What `source/job.hpp` calls by the same names."""

    first_weight: Tensor
    first_bias: Tensor
    net_of: Tensor
    row_of: Tensor
    embedding: list[list[LayerArrays]]
    factor: Tensor | None
    attention: list[dict[str, Tensor]]
    fitting: list[list[LayerArrays]]

    def weights(self) -> Iterator[Tensor]:
        """All arrays of numbers."""
        yield from (self.first_weight, self.first_bias)
        if self.factor is not None:
            yield self.factor
        for layer in self.attention:
            yield from layer.values()
        for net in (*self.embedding, *self.fitting):
            for w in net:
                yield from (x for x in (w.weight, w.bias, w.idt) if x is not None)


def supports(descriptor: Descriptor, fittings: Sequence[EnergyFitting]) -> bool:
    """Whether the kernels know all formulas of a model on CPU."""
    if type(descriptor) not in (DPA1Descriptor, SeE2ADescriptor):
        return False
    config, net = descriptor.config, fittings[0].config
    if {config.activation_function.lower(), net.activation_function.lower()} != {"tanh"}:
        return False
    if config.precision != net.precision or descriptor.davg.device.type != "cpu":
        return False
    if net.atom_ener is not None and any(e is not None for e in net.atom_ener):
        return False
    if isinstance(config, DPA1Config) and config.attn_layer:
        layer = cast(GatedAttentionLayer, cast(DPA1Descriptor, descriptor).attention.layers[0])
        if not config.normalize or not 0 < layer.scale <= _LARGEST_SCALE:
            return False
    nets = [_net(n) for f in fittings for n in f.nets]
    firsts = [n[0] for n in [*nets, *_embedding_nets(descriptor)]]
    return all(x.copies == 0 for x in [*firsts, *(n[-1] for n in nets)])


def arrays_of(descriptor: Descriptor, fittings: Sequence[EnergyFitting]) -> Arrays:
    """Arrays of a descriptor and fitting nets on it, which stand one after the other."""
    ntypes = descriptor.ntypes
    neighbor = torch.arange(ntypes).expand(ntypes, ntypes)
    centre = neighbor.T
    one_side = descriptor.config.type_one_side
    factor, attention = None, []
    if isinstance(descriptor, DPA1Descriptor):
        first_weight, first_bias, factor = _typed(descriptor)
        net_of = torch.zeros_like(neighbor)
        row_of = neighbor if one_side else centre * ntypes + neighbor
        attention = [
            {name: getattr(layer, name) for name in ATTENTION}
            for layer in descriptor.attention.layers
        ]
    else:
        firsts = [n[0] for n in _embedding_nets(descriptor)]
        first_weight = torch.cat([layer.weight for layer in firsts])
        first_bias = torch.stack([cast(Tensor, layer.bias) for layer in firsts])
        net_of = row_of = neighbor if one_side else centre + ntypes * neighbor
    width = descriptor.dim_out - descriptor.dim_type
    return Arrays(
        first_weight.contiguous(),
        first_bias.contiguous(),
        net_of.contiguous(),
        row_of.contiguous(),
        [[_layer(layer) for layer in n[1:]] for n in _embedding_nets(descriptor)],
        factor,
        attention,
        [_fitting(_net(n), width) for fitting in fittings for n in fitting.nets],
    )


def first_of(
    descriptor: Descriptor,
    fitting: EnergyFitting,
    env: Environment,
    fparam: Tensor | None,
    aparam: Tensor | None,
) -> Tensor:
    """Return what the first layer of the fitting net adds to the descriptor's share, (N, width).

    Its bias and its product with the inputs behind the descriptor: the centre's type
    embedding, frame and atom parameters.
    """
    inputs = fitting.extra_inputs(descriptor.davg.new_zeros(0).to(fitting.dtype), fparam, aparam)
    if descriptor.dim_type:
        inputs = [cast(DPA1Descriptor, descriptor).type_embedding()[env.atype], *inputs]
    start = descriptor.dim_out - descriptor.dim_type
    firsts = [_net(n)[0] for n in fitting.nets]
    which = torch.zeros_like(env.atype) if len(firsts) == 1 else env.atype
    added = torch.stack([cast(Tensor, layer.bias) for layer in firsts])[which]
    if inputs:
        x = torch.cat(inputs, -1)
        for k, layer in enumerate(firsts):
            own = (which == k).to(x.dtype)[:, None]
            added = added + (x * own) @ layer.weight[start:]
    return added


def _typed(descriptor: DPA1Descriptor) -> tuple[Tensor, Tensor, Tensor | None]:
    """First layer of the embedding, a row of biases per pair of types, and strip's factors."""
    types = descriptor.type_embedding()
    first = _net(descriptor.embedding)[0]
    bias = cast(Tensor, first.bias)
    one_side, ntypes = descriptor.config.type_one_side, len(types)
    if descriptor.embedding_strip is not None:
        factor = descriptor.strip_factors(types)
        return first.weight, bias.expand(len(factor), -1), factor
    tebd = descriptor.config.tebd_dim
    rows = types @ first.weight[1 : 1 + tebd] + bias
    if not one_side:
        centre = types @ first.weight[1 + tebd :]
        rows = (centre[:, None] + rows[None]).reshape(ntypes**2, -1)
    return first.weight[:1], rows, None


def _fitting(net: list[ResidualLayer], width: int) -> list[LayerArrays]:
    """Layers of a fitting net; the first without what `first_of` adds."""
    first = LayerArrays(net[0].weight[:width], None, None, 0)
    return [first, *(_layer(layer) for layer in net[1:])]


def _embedding_nets(descriptor: Descriptor) -> list[list[ResidualLayer]]:
    if isinstance(descriptor, DPA1Descriptor):
        return [_net(descriptor.embedding)]
    return [_net(n) for n in descriptor.embedding]


def _net(net: nn.Module) -> list[ResidualLayer]:
    return list(cast(ResidualNet, net).layers)  # type: ignore[arg-type]


def _layer(layer: ResidualLayer) -> LayerArrays:
    return LayerArrays(layer.weight, layer.bias, layer.idt, layer.copies)
