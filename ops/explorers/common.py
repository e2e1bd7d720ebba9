"""What explorers share: settings of molecular dynamics, a task, and the trajectory it yields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from dpa_core.config import Config
from dpa_core.errors import ConfigError
from ops.explorers.stops import Stop, Stops

if TYPE_CHECKING:
    from ase import Atoms

    from dpa_core.committee import Deviation
    from dpa_core.data import Dataset
    from dpa_core.frames import Frame
    from ops.structures import Structure


class MDSettings(Config):
    """Molecular dynamics: every structure at every temperature and pressure, `repeats` times."""

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    """Constant energy, temperature, or temperature and pressure."""
    thermostat: Literal["langevin", "nose-hoover"] = "langevin"
    """Of nvt; npt always has a Nosé-Hoover chain."""
    cell: Literal["isotropic", "full"] = "isotropic"
    """Of npt: the cell keeps its shape, or changes freely."""
    temperatures: tuple[PositiveFloat, ...] = Field(min_length=1)
    """K. For nve: of the initial velocities."""
    pressures: tuple[float, ...] = Field((0.0,), min_length=1)
    """GPa. Of npt."""
    repeats: PositiveInt = 1
    """Trajectories of every combination, with different velocities."""
    timestep: PositiveFloat = 2.0
    """fs."""
    steps: PositiveInt = 1000
    """Steps of a trajectory."""
    trj_freq: PositiveInt = 10
    """Steps between two frames; the start is one, too."""
    tdamp: PositiveFloat = 100.0
    """fs. Relaxation time of the thermostat."""
    pdamp: PositiveFloat = 1000.0
    """fs. Relaxation time of the barostat."""
    relative: PositiveFloat | None = None
    """eV/Å. Relative force deviation |std F|/(|mean F| + relative) instead of the absolute."""
    stop: Stops = Stops()
    """What ends a trajectory early."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> MDSettings:
        if self.ensemble != "npt" and self.pressures != (0.0,):
            raise ValueError(f"pressures {list(self.pressures)} need ensemble: npt, not "
                             f"{self.ensemble}")  # fmt: skip
        if self.trj_freq > self.steps:
            raise ValueError(f"trj_freq ({self.trj_freq}) must not exceed steps ({self.steps})")
        return self


class Task(NamedTuple):
    """One trajectory to make.

    Attributes
    ----------
    structure
        Name of what it starts from.
    ensemble
        nve, nvt, npt or pool.
    atoms
        The start of molecular dynamics.
    temperature, pressure
        K and GPa.
    dataset, indices
        The data set that a pool explorer goes through, and which of its frames.
    """

    structure: str
    ensemble: str
    atoms: Atoms | None = None
    temperature: float | None = None
    pressure: float | None = None
    dataset: Dataset | None = None
    indices: tuple[int, ...] = ()


class Trajectory(NamedTuple):
    """Frames of one composition in order, and what the committee says about them.

    Attributes
    ----------
    frames
        F frames without labels; types index the type map of the explorer's call.
    steps
        (F,) number of every frame: the step of the dynamics, or the frame of the data set.
    deviation
        Of the F frames.
    done
        Last step that was made.
    stop
        Why it ended early; None if it did not.
    """

    frames: list[Frame]
    steps: list[int]
    deviation: Deviation
    done: int
    stop: Stop | None = None


def md_tasks(config: MDSettings, structures: Sequence[Structure]) -> list[Task]:
    """List structures x temperatures x pressures x repeats, the last changing fastest.

    Raises
    ------
    ConfigError
        A structure of one atom, or one without cell in npt.
    """
    if not structures:
        raise ConfigError(f"explorer {config.ensemble}: the stage names no structures")
    for atoms, name in structures:
        if len(atoms) < 2:
            raise ConfigError(
                f"structure {name} has one atom, which does not move by itself; set supercell"
            )
        if config.ensemble == "npt" and not atoms.pbc.all():
            raise ConfigError(f"structure {name} has no periodic cell; use ensemble: nvt")
    pressures = config.pressures if config.ensemble == "npt" else (None,)
    return [
        Task(name, config.ensemble, atoms, temperature, pressure)
        for atoms, name in structures
        for temperature in config.temperatures
        for pressure in pressures
        for _ in range(config.repeats)
    ]


def join_deviations(parts: Sequence[Any]) -> Deviation:
    """Put deviations one after another; none give one of no frames."""
    from dpa_core.committee import Deviation

    none: NDArray[np.float64] = np.zeros(0)
    return Deviation(*(np.concatenate([none, *columns]) for columns in zip(*parts, strict=True))
                     if parts else (none,) * len(Deviation._fields))  # fmt: skip
