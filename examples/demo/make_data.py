"""Labelled structures for the demo: six fcc metals and their alloys, energies from ASE's EMT.

    python make_data.py OUTDIR [--seed 1] [--scale 1.0]

writes OUTDIR/{unary,binary,ternary}.extxyz with energy (eV), forces (eV/Å) and stress (eV/Å³).
EMT (effective medium theory) is an analytic potential: cheap enough to label a thousand
frames in seconds, many-body enough to be worth learning. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, fcc111, make_supercell
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Au")
# Å, fcc lattice constants of EMT
LATTICE = {"Al": 3.99, "Ni": 3.49, "Cu": 3.61, "Pd": 3.88, "Ag": 4.06, "Au": 4.06}
# the target of the finetuning: none of its frames is in the unary and binary sets
TERNARY = ("Al", "Ni", "Cu")


def mean_lattice(symbols: list[str]) -> float:
    return float(np.mean([LATTICE[name] for name in symbols]))


def crystal(kind: str, a: float) -> Atoms:
    """Return a crystal with the atomic volume of an fcc crystal of lattice constant a."""
    if kind == "fcc":
        return bulk("Cu", "fcc", a=a, cubic=True)
    if kind == "bcc":
        return make_supercell(
            bulk("Cu", "bcc", a=a * 0.5 ** (1 / 3), cubic=True), np.diag([2, 1, 1])
        )
    return bulk("Cu", "hcp", a=a / np.sqrt(2), c=a / np.sqrt(2) * np.sqrt(8 / 3)) * (2, 1, 1)


def supercell(atoms: Atoms, natoms: int) -> Atoms:
    """Double the shortest side until there are `natoms` atoms."""
    while len(atoms) < natoms:
        repeats = [1, 1, 1]
        repeats[int(np.argmin(atoms.cell.lengths()))] = 2
        atoms = atoms.repeat(repeats)
    return atoms


def distort(atoms: Atoms, rng: np.random.Generator, strain: float, rattle: float) -> Atoms:
    """Strain the cell (symmetric, all six components) and move the atoms."""
    atoms = atoms.copy()
    small = rng.normal(scale=strain, size=(3, 3))
    deformation = np.eye(3) + (small + small.T) / 2 + np.eye(3) * rng.normal(scale=strain)
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.positions += rng.normal(scale=rattle, size=atoms.positions.shape)
    return atoms


def decorate(atoms: Atoms, symbols: list[str], rng: np.random.Generator) -> Atoms:
    """Give the sites elements at random, every element at least once."""
    chosen = [*symbols, *rng.choice(symbols, size=len(atoms) - len(symbols))]
    atoms = atoms.copy()
    atoms.symbols[:] = list(rng.permutation(chosen))
    return atoms


def label(atoms: Atoms, kind: str) -> Atoms:
    """Return a copy with EMT energy, forces and stress attached."""
    labelled = atoms.copy()
    labelled.calc = EMT()
    results = {
        "energy": labelled.get_potential_energy(),
        "forces": labelled.get_forces(),
        "stress": labelled.get_stress(),
    }
    labelled.calc = SinglePointCalculator(labelled, **results)
    labelled.set_momenta(None)
    labelled.info = {"config_type": kind}
    return labelled


def static_frames(symbols: list[str], count: int, rng: np.random.Generator) -> list[Atoms]:
    """Strained and rattled fcc, bcc and hcp crystals and (111) slabs of random decoration."""
    frames = []
    kinds = ["fcc", "fcc", "bcc", "hcp", "slab"]
    for k in range(count):
        kind = kinds[k % len(kinds)]
        a = mean_lattice(symbols) * rng.normal(1.0, 0.015)
        if kind == "slab":
            atoms = fcc111("Cu", (2, 2, 3), a=a, vacuum=5.0, periodic=True)
        else:
            atoms = supercell(crystal(kind, a), int(rng.choice([4, 8, 16])))
        atoms = decorate(atoms, symbols, rng) if len(symbols) > 1 else paint(atoms, symbols[0])
        frames.append(label(distort(atoms, rng, 0.02, rng.choice([0.02, 0.08, 0.18])), kind))
    return frames


def paint(atoms: Atoms, symbol: str) -> Atoms:
    atoms = atoms.copy()
    atoms.symbols[:] = [symbol] * len(atoms)
    return atoms


def ordered_frames(pair: tuple[str, str], count: int, rng: np.random.Generator) -> list[Atoms]:
    """Strained and rattled L1_2 and B2 compounds, both ways round."""
    frames = []
    for k in range(count):
        one, two = pair if k % 2 else pair[::-1]
        if k % 4 < 2:
            symbols = [one, two, two, two]
            atoms = bulk("Cu", "fcc", a=mean_lattice(symbols), cubic=True)
            atoms.symbols[:] = symbols
            kind = "L12"
        else:
            atoms = bulk("Cu", "bcc", a=mean_lattice([one, two]) * 0.5 ** (1 / 3), cubic=True)
            atoms.symbols[:] = [one, two]
            kind = "B2"
        frames.append(label(distort(atoms * (2, 1, 1), rng, 0.02, 0.06), kind))
    return frames


def md_frames(
    symbols: list[str], temperature: float, count: int, rng: np.random.Generator
) -> list[Atoms]:
    """Snapshots, 20 fs apart, of a Langevin run of a 16-atom fcc solid."""
    atoms = supercell(crystal("fcc", mean_lattice(symbols) * 1.01), 16)
    atoms = decorate(atoms, symbols, rng) if len(symbols) > 1 else paint(atoms, symbols[0])
    atoms.calc = EMT()
    # half of the initial kinetic energy goes into vibrations
    spread = np.sqrt(2 * units.kB * temperature / atoms.get_masses())
    atoms.set_velocities(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    dynamics = Langevin(
        atoms, 4 * units.fs, temperature_K=temperature, friction=0.05, rng=rng, fixcm=False
    )
    frames = []
    for _ in range(count):
        dynamics.run(5)
        frames.append(label(atoms, f"md-{temperature:.0f}K"))
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of frames")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)

    def n(count: int) -> int:
        return max(1, round(count * args.scale))

    sets: dict[str, list[Atoms]] = {"unary": [], "binary": [], "ternary": []}
    for metal in METALS:
        sets["unary"] += static_frames([metal], n(20), rng)
        sets["unary"] += md_frames([metal], 600.0, n(8), rng)
    for pair in combinations(METALS, 2):
        sets["binary"] += static_frames(list(pair), n(10), rng)
        sets["binary"] += ordered_frames(pair, n(6), rng)
        sets["binary"] += md_frames(list(pair), 600.0, n(4), rng)
    sets["ternary"] += static_frames(list(TERNARY), n(60), rng)
    for _ in range(4):
        sets["ternary"] += md_frames(list(TERNARY), 900.0, n(15), rng)

    args.outdir.mkdir(parents=True, exist_ok=True)
    for name, frames in sets.items():
        path = args.outdir / f"{name}.extxyz"
        temporary = path.with_suffix(".tmp")
        write(temporary, frames, format="extxyz")
        temporary.replace(path)
        atoms = sum(len(frame) for frame in frames)
        print(f"{path}: {len(frames)} frames, {atoms} atoms")


if __name__ == "__main__":
    main()
