"""Explorers: ways to get new structures from a committee; chosen by `type` in the settings.

The modules named like a `type` hold settings and import nothing heavy.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ops.explorers.ase import AseExplorer
from ops.explorers.lammps import LammpsExplorer
from ops.explorers.pool import PoolExplorer
from ops.explorers.stops import Stops

Explorer = Annotated[AseExplorer | LammpsExplorer | PoolExplorer, Field(discriminator="type")]

__all__ = ["AseExplorer", "Explorer", "LammpsExplorer", "PoolExplorer", "Stops"]
