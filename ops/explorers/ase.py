"""Molecular dynamics by ASE in this process: settings (`ase_md` holds the dynamics)."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat

from ops.explorers.common import MDSettings


class AseExplorer(MDSettings):
    """Molecular dynamics in this process, driven by the committee's first member.

    nvt: Langevin, or a Nosé-Hoover chain; npt: Martyna-Tobias-Klein.
    """

    type: Literal["ase"] = "ase"
    skin: NonNegativeFloat = 1.0
    """Å. Pairs are searched up to rcut + skin and kept until an atom has moved by skin/2."""
    device: str | None = None
    """Where the models run, e.g. "cuda"; left out: on the CPU."""
