"""Quintic tables of functions of one number, in place of embedding nets.

For a fixed pair of types the embedding is C functions of s, the normalised radial value. A table
holds them on [lower, upper = lower + nbins h], in bins of width h that begin at s_k = lower + k h:

    G(s) = P_k(x) = c0 + x (c1 + x (c2 + x (c3 + x (c4 + x c5)))),   x = s - s_k.

P_k has the value, slope and curvature of the net at both ends of its bin, so G is C²; between them
it is off by at most h⁶ max|G⁽⁶⁾| / 46080.

Outside the domain G levels off within one bin. With δ = s - clamp(s, lower, upper) and x at the
border (0 in the first bin, h in the last), x is replaced by

    x + u(δ),   u(δ) = δ / sqrt(1 + (δ/h)²),

which is C² at δ = 0 because u' = 1 and u'' = 0 there, and never leaves the bin by more than h.
"""

from __future__ import annotations

from math import perm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpa_core.config import CompressionConfig

TERMS = 6


class EmbeddingTables(nn.Module):
    """The tables of a descriptor, and which of them holds for which pair of types.

    Parameters
    ----------
    config
        Domain and bins, the same for all tables.
    table_of
        (ntypes, slots) int64: the table of a centre's and a neighbour's type.
    width
        Number of functions C.

    Attributes
    ----------
    table
        (ntables, nbins, 6, C) coefficients c0 ... c5.
    """

    table: Tensor
    table_of: Tensor
    starts: Tensor

    def __init__(self, config: CompressionConfig, table_of: Tensor, width: int) -> None:
        super().__init__()
        self.stride = config.stride
        self.lower, self.upper = config.lower, config.lower + config.nbins * config.stride
        # Where the bins begin; a power of two as stride makes x = s - s_k exact.
        starts = config.lower + config.stride * torch.arange(config.nbins, dtype=torch.float64)
        self.register_buffer("starts", starts, persistent=False)
        self.register_buffer("table_of", table_of, persistent=False)
        ntables = int(table_of.max()) + 1
        self.register_buffer("table", torch.zeros(ntables, config.nbins, TERMS, width))

    def forward(self, s: Tensor, centre: Tensor, neighbor: Tensor) -> Tensor:
        """Embeddings (N, M, C) at s (N, M, 1), for types (N,) and (N, M)."""
        s = s.squeeze(-1)
        tables = self.table_of[centre[:, None], neighbor]
        return self.evaluate(s.flatten(), tables.flatten()).unflatten(0, s.shape)

    def evaluate(self, s: Tensor, tables: Tensor) -> Tensor:
        """Functions (B, C) of tables (B,) at s (B,); differentiable in s, as often as needed."""
        inside = s.clamp(self.lower, self.upper)
        nbins = self.table.shape[1]
        k = ((inside.detach() - self.lower) / self.stride).long().clamp(max=nbins - 1)
        beyond = s - inside
        x = inside - self.starts.to(s.dtype)[k]
        x = x + beyond * (1 + (beyond / self.stride).square()).rsqrt()
        return _Quintic.apply(x, tables * nbins + k, self.table.flatten(0, 1), 0)


class _Quintic(torch.autograd.Function):
    """Derivatives of polynomials, (B, C); nothing of that size or larger is kept for backward.

    Σ_j c_j x^j is a weighted sum of rows of the table: one pass over memory, which is what
    `embedding_bag` does, without gathering the rows first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, which: Tensor, table: Tensor, order: int) -> Tensor:
        """d^order/dx^order of the polynomials table[which], table (K, 6, C), at x (B,)."""
        ctx.save_for_backward(x, which, table)
        ctx.order = order
        if order >= TERMS:
            return table.new_zeros(len(x), table.shape[-1])
        powers = [torch.ones_like(x)]
        for _ in range(order + 1, TERMS):
            powers.append(powers[-1] * x)
        factors = x.new_tensor([perm(j, order) for j in range(order, TERMS)])
        rows = which[:, None] * TERMS + torch.arange(order, TERMS, device=x.device)
        return F.embedding_bag(
            rows,
            table.flatten(0, 1),
            mode="sum",
            per_sample_weights=torch.stack(powers, 1) * factors,
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of x, Σ_C grad · (next derivative), itself differentiable."""
        x, which, table = ctx.saved_tensors
        slope = _Quintic.apply(x, which, table, ctx.order + 1)
        return (grads[0] * slope).sum(-1), None, None, None


def quintics(values: Tensor, stride: float) -> Tensor:
    """Coefficients of the polynomials that match values and two derivatives at the nodes.

    Parameters
    ----------
    values
        (3, nbins + 1, C): value, slope and curvature at the ends of the bins, float64.
    stride
        Width h of a bin.

    Returns
    -------
    Tensor
        (nbins, 6, C).
    """
    h = stride
    (f0, f1), (g0, g1), (w0, w1) = ((v[:-1], v[1:]) for v in values)
    # What the quadratic part misses at the right end, in units of the value.
    rise = f1 - f0 - h * g0 - h**2 / 2 * w0
    slope = h * (g1 - g0) - h**2 * w0
    curvature = h**2 * (w1 - w0)
    c3 = (10 * rise - 4 * slope + curvature / 2) / h**3
    c4 = (-15 * rise + 7 * slope - curvature) / h**4
    c5 = (6 * rise - 3 * slope + curvature / 2) / h**5
    return torch.stack([f0, g0, w0 / 2, c3, c4, c5], dim=1)
