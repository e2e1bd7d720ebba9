"""Deterministic parameters, so that models are the same everywhere without files.

F(h, a, shape) = a sin(1 + 0.7 k + h) with k the C-order flat index; which h and a belong to
which tensor is listed in `fill`. Weights are (in, out) matrices, applied as x @ W + b.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpa_core.embedding import ResidualNet
from dpa_core.model import Potential


def rule(h: float, a: float, shape: tuple[int, ...]) -> Tensor:
    k = np.arange(int(np.prod(shape)))
    return torch.from_numpy((a * np.sin(1 + 0.7 * k + h)).reshape(shape))


def fill_net(net: ResidualNet, weight: float, bias: float, idt: float, offset: float = 0) -> None:
    """Layer k: w F(weight+k, 1/sqrt(in)), b F(bias+k, 0.3), idt 0.2 + F(idt+k, 0.05)."""
    for k, layer in enumerate(net.layers):
        h = k + offset
        layer.weight.copy_(rule(weight + h, 1 / np.sqrt(layer.width_in), layer.weight.shape))
        layer.bias.copy_(rule(bias + h, 0.3, layer.bias.shape))
        if layer.idt is not None:
            layer.idt.copy_(0.2 + rule(idt + h, 0.05, layer.idt.shape))


@torch.no_grad()
def fill(model: Potential, davg_zero: bool = True) -> Potential:
    """Give every parameter and statistic of the model its value by the rule."""
    d, ntypes = model.descriptor, len(model.type_map)
    if d.mixed_types:
        fill_net(d.embedding, 10, 20, 25)
        if d.embedding_strip is not None:
            fill_net(d.embedding_strip, 90, 100, 105)
        for i, layer in enumerate(d.attention.layers):
            width, hidden = layer.out_weight.shape[1], layer.out_weight.shape[0]
            layer.in_weight.copy_(rule(30 + i, 1 / np.sqrt(width), layer.in_weight.shape))
            layer.in_bias.copy_(rule(40 + i, 0.3, layer.in_bias.shape))
            layer.out_weight.copy_(rule(50 + i, 1 / np.sqrt(hidden), layer.out_weight.shape))
            layer.out_bias.copy_(rule(60 + i, 0.3, layer.out_bias.shape))
            layer.norm_weight.copy_(1 + rule(70 + i, 0.1, layer.norm_weight.shape))
            layer.norm_bias.copy_(rule(80 + i, 0.1, layer.norm_bias.shape))
        types = d.type_embedding.layer
        types.weight.copy_(rule(110, 1 / np.sqrt(types.width_in), types.weight.shape))
        if types.bias is not None:
            types.bias.copy_(rule(115, 0.3, types.bias.shape))
    else:
        for n, net in enumerate(d.embedding):
            fill_net(net, 10, 20, 25, offset=3.1 * n)
    for n, net in enumerate(model.fitting.nets):
        fill_net(net, 120, 130, 140, offset=3.1 * n)
    for name, h in (("fparam", 150), ("aparam", 170)):
        average = getattr(model.fitting, f"{name}_avg")
        average.copy_(rule(h, 0.5, average.shape))
        getattr(model.fitting, f"{name}_inv_std").copy_(1 + rule(h + 10, 0.3, average.shape))
    for t in range(ntypes):
        d.dstd[t, 0], d.dstd[t, 1:] = 0.30 + 0.05 * t, 0.20 + 0.03 * t
        if not davg_zero:
            d.davg[t, 0] = 0.10 + 0.05 * t
        model.fitting.bias_atom_e[t] = 0.1 * (t + 1)
        model.out_bias[t] = (1.0, -2.0, 3.0)[t % 3]
    return model
