"""An independent test set for emt.yaml: molecular dynamics of Cu-Au alloys with EMT itself.

    python make_test.py OUT.extxyz [--frames 60] [--temperature 1000] [--seed 7]

Random fcc alloys of 32 atoms, from Cu3Au to CuAu, run by Langevin dynamics at the temperature
that the loop is to work at; every frame comes from another part of the runs, with energy (eV),
forces (eV/Å) and stress (eV/Å³).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin

RUNS = 6
EQUILIBRATE, BETWEEN = 200, 50


def alloy(gold: int, a: float, rng: np.random.Generator) -> Atoms:
    atoms = bulk("Cu", "fcc", a=a, cubic=True) * (2, 2, 2)
    numbers = np.array([29] * len(atoms))
    numbers[rng.permutation(len(atoms))[:gold]] = 79
    atoms.numbers = numbers
    return atoms


def label(atoms: Atoms) -> Atoms:
    frame = atoms.copy()
    frame.calc = EMT()
    results = SinglePointCalculator(
        frame,
        energy=frame.get_potential_energy(),
        forces=frame.get_forces(),
        stress=frame.get_stress(),
    )
    frame.calc = results
    return frame


def run(atoms: Atoms, count: int, temperature: float, rng: np.random.Generator) -> list[Atoms]:
    atoms.calc = EMT()
    thermal = np.sqrt(units.kB * temperature * atoms.get_masses())
    atoms.set_momenta(thermal[:, None] * rng.normal(size=(len(atoms), 3)))
    friction = 0.02 / units.fs
    md = Langevin(
        atoms, 4 * units.fs, temperature_K=temperature, friction=friction, rng=rng, fixcm=False
    )
    md.run(EQUILIBRATE)
    frames = []
    for _ in range(count):
        md.run(BETWEEN)
        frames.append(label(atoms))
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=1000.0)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    frames: list[Atoms] = []
    for number in range(RUNS):
        gold = (8, 12, 16)[number % 3]
        count = (args.frames - len(frames)) // (RUNS - number)
        frames += run(alloy(gold, 3.7 + 0.15 * gold / 16, rng), count, args.temperature, rng)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write(args.out, frames, format="extxyz")
    print(f"wrote {args.out}: {len(frames)} frames at {args.temperature:g} K")


if __name__ == "__main__":
    main()
