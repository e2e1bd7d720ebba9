"""EMT that fails for some structures, always the same ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT

SECONDS = 0.3
"""What one calculation takes, so that kills hit some in the middle."""
SCRATCH = 200_000
"""Bytes it writes into its folder, as wave functions would be, for the full disk."""


class FaultyEMT(EMT):
    """EMT: of seven structures (by the hash of their coordinates) one raises, one gives NaN."""

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; called by ASE.

        Raises
        ------
        RuntimeError
            For one structure of seven.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        labelled: Any = self.atoms
        digest = hashlib.sha256(np.round(labelled.positions, 8).tobytes()).hexdigest()
        time.sleep(SECONDS)
        Path("scratch").write_bytes(bytes(SCRATCH))
        fate = int(digest, 16) % 7
        if fate == 0:
            raise RuntimeError("the calculation did not converge (made up for the test)")
        if fate == 1:
            self.results["forces"][0, 0] = float("nan")
