"""Write the reference inputs and record the LAMMPS output that test_explore_lammps.py reads.

    python -m tests.ops.record_lammps LMP

LMP is any LAMMPS (recorded with 22 Jul 2025 - Update 4): the deepmd pair style is replaced by
Lennard-Jones, and model_devi.out is written by hand, since only the files' form matters here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from dpa_core.config import parse_config
from ops.explorers import LammpsExplorer
from ops.explorers.common import Task
from ops.explorers.lammps import LOG, write_inputs

FOLDER = Path(__file__).parent / "lammps"
SEED = 1234567890123456789
CASES = {
    "nve": {"ensemble": "nve", "steps": 30},
    "nvt-langevin": {"ensemble": "nvt", "steps": 30, "relative": 1.0},
    "nvt-nose-hoover": {"ensemble": "nvt", "thermostat": "nose-hoover", "steps": 30},
    "npt-isotropic": {"ensemble": "npt", "pressures": [2.5], "steps": 30},
    "npt-full": {"ensemble": "npt", "cell": "full", "pressures": [2.5], "steps": 30},
    "halted": {"ensemble": "nve", "steps": 100, "stop": {"max_temperature": 150}},
}
PLAIN = {"pair_style": "lj/cut 6.0", "pair_coeff": "* * 0.4 2.3"}


def structure() -> Atoms:
    """Eight atoms, Al and Cu, in a skewed cell of either composition and left handedness."""
    atoms = bulk("Cu").repeat(2)
    atoms.symbols[[1, 4, 6]] = "Al"
    shear = np.array([[1, 0.02, 0], [0, 1, 0.05], [0, 0, 1]])
    atoms.set_cell(atoms.cell[:] @ shear, scale_atoms=True)
    atoms.set_cell(atoms.cell[:][[1, 0, 2]])
    return atoms


def settings(name: str) -> LammpsExplorer:
    """Settings of a case."""
    data = {"type": "lammps", "model_files": ["/models/m0.pth", "/models/m1.pth"],
            "temperatures": [300], "write_only": True} | CASES[name]  # fmt: skip
    return parse_config(LammpsExplorer, data, name)


def task(name: str) -> Task:
    """Task of a case."""
    config = settings(name)
    return Task("alloy-0000", config.ensemble, structure(), 300.0, config.pressures[0])


def record(program: str, folder: Path) -> None:
    """Run the inputs with a plain potential and keep what the test reads."""
    text = (folder / "in.lammps").read_text()
    lines = [
        f"{word} {PLAIN[word]}" if (word := line.split(" ")[0]) in PLAIN else line
        for line in text.splitlines()
    ]
    (folder / "plain").write_text("\n".join(lines) + "\n")
    subprocess.run([program, "-in", "plain"], cwd=folder, check=True)
    log = (folder / LOG).read_text().splitlines()
    (folder / LOG).write_text("\n".join(line for line in log if "fix-id" in line) + "\n")
    (folder / "plain").unlink()


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    for case in CASES:
        write_inputs(settings(case), task(case), ("O", "Al", "Cu"), SEED, FOLDER / case)
    for case in ("npt-full", "halted"):
        record(sys.argv[1], FOLDER / case)
