"""Small labelled structures with energies that are known in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpa_core.data import write_mixed
from dpa_core.frames import Frame

TYPES = ("Al", "Ni", "Cu")
ENERGY = np.array([-3.0, -5.0, -4.0])


def make_frame(
    types: list[int], seed: int = 0, *, energy: float | None = None, force: float = 0.1
) -> Frame:
    """Atoms on a rattled cubic grid of 2.8 Å; the energy is a sum over elements unless given."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(len(types) ** (1 / 3)))
    grid = np.array([(x, y, z) for x in range(side) for y in range(side) for z in range(side)])
    coord = 2.8 * grid[: len(types)] + rng.normal(scale=0.05, size=(len(types), 3))
    value = float(ENERGY[types].sum()) if energy is None else energy
    return Frame(
        coord=coord,
        atype=np.array(types),
        box=np.eye(3) * 2.8 * side,
        energy=value,
        force=rng.normal(scale=force, size=coord.shape),
        virial=rng.normal(scale=0.1, size=(3, 3)),
    )


def write(frames: list[Frame], outdir: Path) -> Path:
    write_mixed(frames, TYPES, outdir)
    return outdir
