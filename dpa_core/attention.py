"""Gated self-attention over the neighbours of each atom (arXiv:2208.08236).

Per layer, with G (N, M, C) the neighbours' embeddings, single head of width d = attn:

    q, k, v = split(G W_in + b_in), each L2-normalised;  q *= (d scaling_factor)^-1/2 or temperature
    A_jk = (q_j·k_k + 20) s_j s_k - 20     (smooth; s is the switch)
    P = softmax_k(A) ⊙ s_j s_k ⊙ (r̂_j·r̂_k)
    G <- LayerNorm(G + (P v) W_out + b_out)

An empty slot has s = 0, hence the logit -20: it adds exp(-20) to every denominator. Slots
that differ only in being empty are alike, so the last column of the table may stand for
`rest` of them (its logit gets + log(rest)); the result is that of the table padded to sel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpa_core.config import DPA1Config

# DeePMD's shift of the smooth logits: empty slots weigh exp(-20).
SHIFT = 20.0
# Smallest squared norm that q, k and v are divided by, in DeePMD's two backends.
FLOOR = {"pytorch": 1e-24, "tensorflow": 1e-12}


class Gate(NamedTuple):
    """What all attention layers share.

    Attributes
    ----------
    sw
        (N, M) switch, 0 in empty and excluded slots.
    mask
        (N, M) bool, False in empty and excluded slots.
    cosines
        (N, M, M) r̂_j·r̂_k, or None without `attn_dotr`.
    rest
        How many empty slots the last column stands for (1 = just itself).
    """

    sw: Tensor
    mask: Tensor
    cosines: Tensor | None
    rest: int


class GatedAttentionLayer(nn.Module):
    """One layer of gated self-attention with post-LayerNorm."""

    def __init__(self, config: DPA1Config, generator: torch.Generator) -> None:
        super().__init__()
        width, hidden = config.neuron[-1], config.attn
        self.smooth = config.smooth_type_embedding
        self.normalize = config.normalize
        self.floor = FLOOR[config.convention]
        self.scale = (
            (hidden * config.scaling_factor) ** -0.5
            if config.temperature is None
            else config.temperature
        )
        self.eps = config.ln_eps
        self.in_weight = _parameter((width, 3 * hidden), generator)
        self.in_bias = _parameter((3 * hidden,), generator)
        self.out_weight = _parameter((hidden, width), generator)
        self.out_bias = _parameter((width,), generator)
        self.norm_weight = nn.Parameter(torch.ones(width, dtype=torch.float64))
        self.norm_bias = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.norm_weight.requires_grad_(config.trainable_ln)
        self.norm_bias.requires_grad_(config.trainable_ln)

    def forward(self, g: Tensor, gate: Gate) -> Tensor:
        """(N, M, C) -> (N, M, C)."""
        n, m, width = g.shape
        qkv = F.linear(g, self.in_weight.T, self.in_bias).view(n, m, 3, -1)
        factor = qkv.new_tensor([self.scale, 1.0, 1.0])[:, None]
        if self.normalize:
            # 1 / max(|x|, sqrt(floor)), written so that both derivatives stay cheap.
            factor = factor * qkv.square().sum(-1, keepdim=True).clamp(min=self.floor).rsqrt()
        if self.smooth:
            factor = factor * gate.sw[..., None, None]
        # Scale, norm and switch of q, k and v in one pass over memory.
        q, k, v = (qkv * factor).unbind(2)
        weight = self._smooth(q, k, gate) if self.smooth else self._masked(q, k, gate)
        if gate.cosines is not None:
            weight = weight * gate.cosines
        out = F.linear(weight @ v, self.out_weight.T)
        rows = gate.sw if self.smooth else gate.mask.to(out.dtype)
        out = torch.addcmul(self.out_bias, out, rows[..., None])
        return F.layer_norm(g + out, (width,), self.norm_weight, self.norm_bias, self.eps)

    def _smooth(self, q: Tensor, k: Tensor, gate: Gate) -> Tensor:
        # Softmax ignores the common -20, and (q·k + 20) s_j s_k is one product of vectors
        # that carry their own switch and sqrt(20); so no M x M tensor but A and P is made.
        root = math.sqrt(SHIFT) * gate.sw[..., None]
        extra_q, extra_k = [root], [root]
        if gate.rest > 1:
            log_rest = torch.zeros_like(root)
            log_rest[:, -1] = math.log(gate.rest)
            extra_q.append(torch.ones_like(root))
            extra_k.append(log_rest)
        return torch.softmax(torch.cat([q, *extra_q], -1) @ torch.cat([k, *extra_k], -1).mT, -1)

    def _masked(self, q: Tensor, k: Tensor, gate: Gate) -> Tensor:
        logits = q @ k.mT
        # Finite instead of -inf: an atom without neighbours must not make NaN gradients.
        lowest = torch.finfo(logits.dtype).min
        return torch.softmax(logits.masked_fill(~gate.mask[:, None, :], lowest), dim=-1)


class GatedAttention(nn.Module):
    """`attn_layer` layers, one after the other."""

    def __init__(self, config: DPA1Config, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GatedAttentionLayer(config, generator) for _ in range(config.attn_layer)
        )

    def forward(self, g: Tensor, gate: Gate) -> Tensor:
        """(N, M, C) -> (N, M, C)."""
        for layer in self.layers:
            g = layer(g, gate)
        return g


def _parameter(shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    # Same initial distribution as every other layer: N(0, 1/sqrt(in+out)), biases N(0, 1).
    std = 1 / math.sqrt(sum(shape)) if len(shape) > 1 else 1.0
    values = torch.empty(shape, dtype=torch.float64).normal_(0.0, std, generator=generator)
    return nn.Parameter(values)
