"""One process of the benchmark: train a model, make its start structure, or run one variant.

    python -m benchmarks.nve.worker SYSTEM TASK --data FOLDER --outdir FOLDER --steps N

TASK is train, start or a variant; each leaves one file, which the next tasks read. Torch runs on
one thread.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

from benchmarks.nve.files import model_file, save_series, series_file, start_file
from benchmarks.nve.systems import CELLS, LATTICE, SYSTEMS, VARIANTS, System, Variant, training
from dpa_core import kernels
from dpa_core.calculator import DPACalculator
from dpa_core.compress import compress
from dpa_core.interchange.files import load_model
from dpa_core.model import Potential, build_model
from dpa_core.neighbors import neighbor_pairs
from dpa_core.train import train

# Steps between two records of the energy.
EVERY = 5
_FRICTION = 0.02 / units.fs


class _Complaints(logging.Handler):
    """Turns a warning of the calculator (`sel` is full) into an error."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


def variant_of(model: Potential, variant: Variant) -> Potential:
    """Give the model in another precision, compressed or not.

    Raises
    ------
    RuntimeError
        If the kernels would not evaluate it although they should, or the other way round.
    """
    config = model.config
    cast = {"precision": variant.precision}
    config = config.model_copy(
        update={
            "descriptor": config.descriptor.model_copy(update=cast),
            "fitting_net": config.fitting_net.model_copy(update=cast),
        }
    )
    result = build_model(config)
    result.load_state_dict(model.state_dict())
    if variant.compressed:
        result, report = compress(result)
        print(f"tables: {report}", flush=True)
    if (kernels.find((result,)) is not None) != variant.kernels:
        raise RuntimeError(
            f"{variant.title}: kernels {'do not run (no compiler?)' if variant.kernels else 'run'}"
        )
    return result


def start_structure(system: System, data: Path) -> Atoms:
    """Give a frame of the liquid, or a random solution on a bcc lattice."""
    if "H" in system.type_map:
        source = data / system.training[0] / "O64H128"
        box, coord = (np.load(source / "set.000" / f"{name}.npy")[0] for name in ("box", "coord"))
        symbols = np.array(system.type_map)[np.loadtxt(source / "type.raw", dtype=np.int64)]
        cell = np.reshape(box, (3, 3))
        return Atoms(symbols, np.reshape(coord, (-1, 3)), cell=cell, pbc=True)
    atoms = bulk("W", "bcc", a=LATTICE, cubic=True).repeat(CELLS)
    symbols = np.resize(system.type_map, len(atoms))
    atoms.symbols[:] = np.random.default_rng(1).permutation(symbols)
    return atoms


def thermalise(system: System, model: Potential, data: Path) -> Atoms:
    """Positions and velocities that all variants start from, at rest as a whole."""
    rng = np.random.default_rng(2)
    atoms = start_structure(system, data)
    atoms.calc = DPACalculator(model)
    spread = np.sqrt(units.kB * system.temperature * atoms.get_masses())
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    dynamics = Langevin(
        atoms, system.timestep * units.fs, temperature_K=system.temperature,
        friction=_FRICTION, rng=rng, fixcm=False,
    )  # fmt: skip
    dynamics.run(system.warmup)
    Stationary(atoms)
    print(f"thermalised: {atoms.get_temperature():.0f} K", flush=True)
    return atoms


def simulate(atoms: Atoms, model: Potential, system: System, steps: int) -> dict[str, Any]:
    """Run NVE dynamics; the series and what is known about the run."""
    calculator = DPACalculator(model)
    atoms.calc = calculator
    masses = atoms.get_masses()[:, None]
    rows: list[tuple[float, ...]] = []

    def record() -> None:
        speed = np.linalg.norm(atoms.get_momenta().sum(0)) / masses.sum()
        rows.append((atoms.get_potential_energy(), atoms.get_kinetic_energy(), speed))

    dynamics = VelocityVerlet(atoms, system.timestep * units.fs)
    dynamics.attach(record, interval=EVERY)
    forces = atoms.get_forces()
    crowd, began = 0, time.perf_counter()
    for _ in range(0, steps, 100):
        crowd = max(crowd, _most_neighbors(atoms, system.rcut))
        dynamics.run(min(100, steps - dynamics.nsteps))
        if dynamics.nsteps % 1000 == 0:
            print(f"{dynamics.nsteps} {sum(rows[-1][:2]):.4f} eV", flush=True)
    seconds = time.perf_counter() - began
    potential, kinetic, speed = np.array(rows).T
    return {
        "potential": potential, "kinetic": kinetic, "speed": speed * units.fs * 1000,
        "natoms": len(atoms), "steps": steps, "step_ps": EVERY * system.timestep / 1000,
        "seconds": seconds, "searches": calculator.searches, "neighbors": crowd, "forces": forces,
    }  # fmt: skip


def _most_neighbors(atoms: Atoms, rcut: float) -> int:
    centres, *_ = neighbor_pairs(atoms.positions, np.array(atoms.cell), rcut)
    return int(np.bincount(centres).max())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nve.worker")
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("task", choices=("train", "start", *VARIANTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--outdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("dpa_core.calculator").addHandler(_Complaints(logging.WARNING))
    system, folder = SYSTEMS[given.system], given.outdir / given.system
    if given.task == "train":
        train(training(system, given.data), folder)
        return 0
    model = load_model(model_file(folder))
    if given.task == "start":
        atoms = thermalise(system, model, given.data)
        atoms.calc = None
        write(start_file(folder), atoms)
        return 0
    variant = VARIANTS[given.task]
    os.environ["DPAFLOW_KERNELS"] = "1" if variant.kernels else "0"
    atoms = read(start_file(folder))
    found = simulate(atoms, variant_of(model, variant), system, given.steps)
    save_series(series_file(folder, given.task, given.steps), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
