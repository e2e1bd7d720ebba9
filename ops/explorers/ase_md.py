"""One trajectory of molecular dynamics with ASE, watched step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import all_changes
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import (
    MTKNPT,
    IsotropicMTKNPT,
    NoseHooverChainNVT,
    NoseHooverChainThermostat,
)
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from dpa_core.calculator import CommitteeCalculator
from dpa_core.committee import Committee, Deviation
from dpa_core.errors import DataError, NumericalError
from dpa_core.frames import Frame
from ops.explorers.ase import AseExplorer
from ops.explorers.common import MDSettings, Task, Trajectory, join_deviations
from ops.explorers.stops import (
    Problem,
    Stop,
    Stops,
    check_cell,
    check_deviation,
    check_distance,
    check_temperature,
    temperature_limit,
)
from ops.structures import frame_of


class Diverged(Exception):
    """The dynamics led to a structure that no model should be asked about."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class GuardedCalculator(CommitteeCalculator):
    """A committee that refuses structures with impossible numbers or an exploded cell.

    Integrators ask for forces in the middle of a step, so looking at finished steps only
    would be too late: a collapsing cell fills the memory with neighbours.
    """

    def __init__(
        self, committee: Committee, stops: Stops, volume: float, config: AseExplorer
    ) -> None:
        super().__init__(committee, skin=config.skin, device=config.device)
        self.stops = stops
        self.volume = volume

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; called by ASE.

        Raises
        ------
        Diverged
            Instead of asking the models.
        NumericalError
            As `DPACalculator`.
        """
        structure = self.atoms if atoms is None else atoms
        if structure is not None:
            box = structure.cell[:] if structure.pbc.all() else None
            problem = check_cell(structure.positions, box, self.volume, self.stops)
            if problem is not None:
                raise Diverged(problem)
        super().calculate(atoms, properties, system_changes)


def run_md(
    config: AseExplorer, task: Task, committee: Committee, type_map: Sequence[str], seed: int
) -> Trajectory:
    """Run one trajectory from Maxwell-Boltzmann velocities without drift.

    Parameters
    ----------
    config
        Ensemble, length, stops.
    task
        Start, temperature, pressure.
    committee
        Its first member drives, all judge the frames.
    type_map
        Names that the types of the frames index.
    seed
        Of velocities and Langevin noise.

    Returns
    -------
    Trajectory
        Sampled frames up to the end or up to where it was stopped.
    """
    if task.atoms is None or task.temperature is None:
        raise DataError(f"task {task.structure}: dynamics need a structure and a temperature")
    return _Run(config, task.atoms.copy(), task, committee, type_map).go(seed)


class _Run:
    """The state of one trajectory."""

    def __init__(
        self,
        config: AseExplorer,
        atoms: Atoms,
        task: Task,
        committee: Committee,
        type_map: Sequence[str],
    ) -> None:
        self.config, self.atoms, self.task, self.type_map = config, atoms, task, type_map
        volume = abs(atoms.cell.volume)
        self.calculator = GuardedCalculator(committee, config.stop, volume, config)
        self.limit = temperature_limit(task.temperature or 0.0, len(atoms), config.stop)
        self.frames: list[Frame] = []
        self.steps: list[int] = []
        self.deviations: list[Deviation] = []

    def go(self, seed: int) -> Trajectory:
        """Run to the end, or until something is wrong."""
        # What overflows here is caught by the checks.
        with np.errstate(all="ignore"):
            done, stop = self._steps(np.random.default_rng(seed))
        deviation = join_deviations(self.deviations)
        return Trajectory(self.frames, self.steps, deviation, done, stop)

    def _steps(self, rng: np.random.Generator) -> tuple[int, Stop | None]:
        step = -1
        problem = self._overlap()
        try:
            if problem is None:
                dynamics = prepare(self.atoms, self.config, self.task, self.calculator, rng)
                for _ in dynamics.irun(self.config.steps):
                    step += 1
                    problem = self._look(step)
                    if problem is not None:
                        return step, Stop(problem.reason, step, problem.message)
                return step, None
        except Diverged as error:
            problem = error.problem
        except NumericalError as error:
            problem = Problem("nan", str(error))
        except (ArithmeticError, DataError, np.linalg.LinAlgError) as error:
            problem = Problem("error", f"{type(error).__name__}: {error}")
        return max(step, 0), Stop(problem.reason, step + 1, problem.message)

    def _overlap(self) -> Problem | None:
        box = self.atoms.cell[:] if self.atoms.pbc.all() else None
        return check_distance(self.atoms.positions, box, self.atoms.numbers, self.config.stop)

    def _look(self, step: int) -> Problem | None:
        """Check a finished step; keep the frame where one is due."""
        problem = check_temperature(self.atoms.get_temperature(), self.limit)
        if problem is not None or step % self.config.trj_freq:
            return problem
        if (problem := self._overlap()) is not None:
            return problem
        deviation = self.calculator.deviation(self.atoms, relative=self.config.relative)
        problem = check_deviation(float(deviation.max_devi_f[0]), self.config.stop)
        if problem is None or problem.reason == "deviation":
            self.frames.append(frame_of(self.atoms, self.type_map))
            self.steps.append(step)
            self.deviations.append(deviation)
        return problem


def prepare(
    atoms: Atoms, config: MDSettings, task: Task, calculator: Any, rng: np.random.Generator
) -> MolecularDynamics:
    """Attach the calculator, draw velocities and return ASE's integrator.

    Parameters
    ----------
    atoms
        The start; it becomes the state of the dynamics.
    config
        Ensemble, time step, relaxation times.
    task
        Temperature (K) and pressure (GPa).
    calculator
        Any ASE calculator; with stress for npt.
    rng
        Of velocities and noise.
    """
    atoms.calc = calculator
    kelvin = task.temperature or 0.0
    atoms.set_momenta(thermal_momenta(atoms.get_masses(), kelvin, rng))
    timestep, tdamp = config.timestep * units.fs, config.tdamp * units.fs
    if config.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    if config.ensemble == "nvt" and config.thermostat == "langevin":
        # fixcm would not sample small cells correctly (ASE's own warning).
        return Langevin(
            atoms, timestep, temperature_K=kelvin, friction=1 / tdamp, fixcm=False, rng=rng
        )
    dynamics: MolecularDynamics
    if config.ensemble == "nvt":
        dynamics = NoseHooverChainNVT(atoms, timestep, kelvin, tdamp)
    else:
        integrator = IsotropicMTKNPT if config.cell == "isotropic" else MTKNPT
        pressure = (task.pressure or 0.0) * units.GPa
        dynamics = integrator(atoms, timestep, kelvin, pressure, tdamp, config.pdamp * units.fs)
    _count_moving(dynamics, len(atoms), kelvin, tdamp)
    return dynamics


def thermal_momenta(
    masses: NDArray[np.float64], kelvin: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw Maxwell-Boltzmann momenta without drift: canonical in 3N - 3 degrees of freedom.

    Written out, since the name of ASE's function depends on its version.

    Parameters
    ----------
    masses
        (natoms,), ASE's unit.
    kelvin
        K.
    rng
        Source of the normal numbers.

    Returns
    -------
    (natoms, 3) in ASE's unit.
    """
    momenta = rng.standard_normal((len(masses), 3)) * np.sqrt(masses * units.kB * kelvin)[:, None]
    return momenta - masses[:, None] * momenta.sum(axis=0) / masses.sum()


def _count_moving(dynamics: Any, natoms: int, kelvin: float, tdamp: float) -> None:
    """Tell ASE's deterministic thermostats that 3N - 3 degrees of freedom move.

    They keep the total momentum, which is zero, yet count 3N: four atoms would be a third too
    hot. Everything they derive from the number of atoms holds for N - 1 in place of N.
    """
    moving = natoms - 1
    dynamics._num_atoms_global = moving
    dynamics._thermostat = NoseHooverChainThermostat(
        num_atoms_global=moving, masses=dynamics.masses, temperature_K=kelvin, tdamp=tdamp
    )
