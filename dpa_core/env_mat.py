"""The environment matrix of DeepPot-SE (arXiv:1805.09003) that DPA-1 shares.

    row_ij = w(r) [ 1/(r+p), d/(r+p)² ],   d = r_j - r_i,   r = |d|,   p = env_protection

A row holds a neighbour: its inverse distance and its direction, both faded out at rcut.
"""

from __future__ import annotations

import torch
from torch import Tensor


def switch(r: Tensor, rcut_smth: float, rcut: float) -> Tensor:
    """Smooth weight w(r): 1 below rcut_smth, 0 beyond rcut, C² between.

    w = u³(-6u² + 15u - 10) + 1,  u = (r - rcut_smth)/(rcut - rcut_smth).
    [arXiv:1805.09003, in the C² form DeePMD-kit uses]

    Parameters
    ----------
    r
        Distances, Å.
    rcut_smth, rcut
        Å, rcut_smth < rcut.
    """
    u = ((r - rcut_smth) / (rcut - rcut_smth)).clamp(0.0, 1.0)
    return u**3 * (-6 * u**2 + 15 * u - 10) + 1


def env_rows(
    vectors: Tensor, mask: Tensor, rcut: float, rcut_smth: float, protection: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the environment matrix, before normalisation.

    Parameters
    ----------
    vectors
        (N, M, 3) float64, r_j - r_i in Å.
    mask
        (N, M) bool; an empty slot gives a zero row, a zero switch and no gradient.
    rcut, rcut_smth, protection
        Å.

    Returns
    -------
    rows, sw, direction
        (N, M, 4) rows; (N, M) the switch w(r); (N, M, 3) unit vectors d/r.
    """
    # An empty slot is moved to (rcut, 0, 0), where w and its derivatives vanish exactly.
    parked = vectors.new_tensor([rcut, 0.0, 0.0])
    vectors = torch.where(mask[..., None], vectors, parked)
    r = vectors.square().sum(-1).sqrt()
    sw = switch(r, rcut_smth, rcut)
    inverse = 1.0 / (r + protection)
    radial = sw * inverse
    rows = torch.cat([radial[..., None], (radial * inverse)[..., None] * vectors], dim=-1)
    return rows, sw, vectors / r[..., None]
