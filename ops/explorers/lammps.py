"""Molecular dynamics by LAMMPS with DeePMD-kit's pair style: settings, inputs, run.

`lammps_output` reads what LAMMPS wrote.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pydantic

from dpa_core.errors import ConfigError
from ops.deepmd_kit import find_dp
from ops.explorers.common import MDSettings, Task
from ops.explorers.stops import temperature_limit
from ops.files import write_text
from ops.model_files import convert, members
from ops.storage import localize, split_part

if TYPE_CHECKING:
    from ase import Atoms

logger = logging.getLogger(__name__)

INPUT, DATA, DUMP, DEVIATION = "in.lammps", "data.lammps", "dump.lammpstrj", "model_devi.out"
LOG, OUTPUT, FINISHED = "log.lammps", "lammps.out", "finished"
BAR_PER_GPA = 1e4
FS_PER_PS = 1e3
MAX_SEED = 900_000_000
"""Seeds of `velocity` and `fix langevin` lie below."""
VACUUM = 10.0
"""Å around a molecule; LAMMPS shrinks the box to it."""
HALT_EVERY = 10
"""Steps between two looks of LAMMPS at temperature and volume."""


class LammpsExplorer(MDSettings):
    """Molecular dynamics by LAMMPS (`pair_style deepmd`), one run a trajectory.

    Needs a LAMMPS with DeePMD-kit's plugin, and models frozen by DeePMD-kit: those of
    `model_files`, or the committee's own, which DeePMD-kit's `dp` converts.
    """

    type: Literal["lammps"] = "lammps"
    command: str | None = None
    """What runs LAMMPS, as "lmp" or "mpirun -n 4 lmp_mpi"; `-in in.lammps` is appended."""
    model_files: tuple[str, ...] = ()
    """Two or more models frozen by DeePMD-kit (.pth, .pb, .pt2), the first drives; left out: the
    committee's models, converted. Those that are named here are not trained by the loop."""
    frozen: Literal["pth", "pb"] = "pth"
    """What the committee's models are converted to: the backend that this LAMMPS has, PyTorch,
    TensorFlow (not every model) or PyTorch exported."""
    write_only: bool = False
    """Write the inputs and pause the pipeline; resume it when the runs are done."""

    @pydantic.model_validator(mode="after")
    def _runnable(self) -> LammpsExplorer:
        if self.command is not None and not shlex.split(self.command):
            raise ValueError("command is empty")
        return self


def check_lammps(config: LammpsExplorer, models: Sequence[Path] = ()) -> None:
    """Find out before the first run whether LAMMPS can run at all.

    Parameters
    ----------
    config
        The explorer.
    models
        The committee, for want of `model_files`.

    Raises
    ------
    ConfigError
        No models or one alone, missing model files, nothing to convert the committee with, no
        command, or the program is not found.
    """
    if not config.model_files and (problem := cannot_freeze()):
        raise ConfigError(f"explorer lammps: model_files {problem}")
    if len(config.model_files or _singles(models)) < 2:
        raise ConfigError(
            f"explorer lammps: {'model_files names' if config.model_files else 'there is'} at most "
            "one model, and DeePMD-kit's pair style writes a deviation only for two or more; name "
            "all members of the committee"
        )
    for name in config.model_files:
        if not Path(localize(name)).expanduser().exists():
            raise ConfigError(f"explorer lammps: model_files: {name} does not exist")
    if config.write_only:
        return
    if config.command is None:
        raise ConfigError(
            "explorer lammps: command is not set; give the LAMMPS to run (with DeePMD-kit's "
            "plugin), set write_only: true to run the inputs yourself, or use type: ase"
        )
    program = shlex.split(config.command)[0]
    if shutil.which(program) is None:
        raise ConfigError(
            f"explorer lammps: the program {program!r} of command is not found; install LAMMPS "
            "with DeePMD-kit's plugin or give its path, set write_only: true, or use type: ase"
        )


def cannot_freeze() -> str:
    """Return why LAMMPS cannot have the committee's own models; "" if it can."""
    if find_dp() is not None:
        return ""
    return (
        "is empty, and DeePMD-kit, which would convert the committee's models for LAMMPS, is not "
        "found ($DPAFLOW_DP, dp, python -m deepmd); install it, name models frozen by DeePMD-kit, "
        "or use explorer type: ase"
    )


def _singles(models: Sequence[Path]) -> list[str]:
    return [one for model in models for one in members(model)]


def with_frozen(config: LammpsExplorer, models: Sequence[Path], folder: Path) -> LammpsExplorer:
    """Return the explorer with model files that LAMMPS can load; made in `folder` if need be.

    Raises
    ------
    ConfigError, ModelFileError
        DeePMD-kit is not installed, or cannot convert a model.
    """
    if config.model_files:
        return config
    files = []
    for k, one in enumerate(_singles(models)):
        source, _ = split_part(one)
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:12]
        target = folder / f"m{k}-{digest}.{config.frozen}"
        if not target.exists():  # an interrupted step goes on with those that are there
            convert(one, target)
        files.append(str(target.resolve()))
    return config.model_copy(update={"model_files": tuple(files)})


def write_inputs(
    config: LammpsExplorer, task: Task, type_map: Sequence[str], seed: int, folder: Path
) -> None:
    """Write in.lammps and data.lammps of one trajectory.

    Parameters
    ----------
    config
        Ensemble, length, models.
    task
        Start, temperature (K) and pressure (GPa).
    type_map
        Order of the elements; LAMMPS types are those of them that occur.
    seed
        Of velocities and noise.
    folder
        Is made if needed.
    """
    from ase.io.lammpsdata import write_lammps_data

    if task.atoms is None or task.temperature is None:
        raise ConfigError(f"task {task.structure}: dynamics need a structure and a temperature")
    atoms = _boxed(task.atoms)
    elements = [e for e in type_map if e in atoms.get_chemical_symbols()]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{DATA}"
    with temporary.open("w", encoding="utf-8") as stream:
        # npt with a free cell needs a box that may be skewed from the start
        write_lammps_data(
            stream, atoms, specorder=elements, masses=True, units="metal", atom_style="atomic",
            force_skew=config.ensemble == "npt" and config.cell == "full",
        )  # fmt: skip
    temporary.replace(folder / DATA)
    lines = [*_setup(config, task, elements), *_dynamics(config, task, seed),
             *_halts(config, task, atoms), *_output(config, elements)]  # fmt: skip
    write_text(folder / INPUT, "\n".join(lines) + "\n")


def run_lammps(config: LammpsExplorer, folder: Path) -> int:
    """Run LAMMPS in a folder of `write_inputs` and return its exit code."""
    for name in (DUMP, DEVIATION, LOG, FINISHED):
        (folder / name).unlink(missing_ok=True)
    command = [*shlex.split(config.command or ""), "-in", INPUT]
    logger.info("%s: %s", folder.name, shlex.join(command))
    with (folder / OUTPUT).open("wb") as output:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode


def _boxed(atoms: Atoms) -> Atoms:
    """Return a copy in a box as LAMMPS needs it: right-handed, also around a molecule."""
    boxed = atoms.copy()
    if not boxed.pbc.any():
        boxed.center(vacuum=VACUUM)
        boxed.pbc = False
    elif boxed.cell.handedness < 0:
        # the same lattice, described by the opposite vectors
        boxed.set_cell(-boxed.cell[:], scale_atoms=False)
    return boxed


def _setup(config: LammpsExplorer, task: Task, elements: Sequence[str]) -> list[str]:
    files = [Path(localize(name)).expanduser().resolve() for name in config.model_files]
    models = " ".join(map(str, files))
    devi = f"out_file {DEVIATION} out_freq {config.trj_freq}"
    if config.relative is not None:
        devi += f" relative {config.relative:g}"
    periodic = task.atoms is not None and task.atoms.pbc.any()
    return [
        f"# {task.structure}, {task.ensemble}",
        "units           metal",
        "atom_style      atomic",
        "atom_modify     map yes",
        f"boundary        {'p p p' if periodic else 's s s'}",
        "box             tilt large",
        f"read_data       {DATA}",
        f"pair_style      deepmd {models} {devi}",
        f"pair_coeff      * * {' '.join(elements)}",
        "neighbor        1.0 bin",
        "neigh_modify    every 1 delay 0 check yes",
    ]


def _dynamics(config: LammpsExplorer, task: Task, seed: int) -> list[str]:
    start, noise = 1 + seed % (MAX_SEED - 1), 1 + (seed // MAX_SEED) % (MAX_SEED - 1)
    kelvin = f"{task.temperature:.10g}"
    heat = f"{kelvin} {kelvin} {config.tdamp / FS_PER_PS:.10g}"
    lines = [
        f"timestep        {config.timestep / FS_PER_PS:.10g}",
        f"velocity        all create {kelvin} {start} mom yes rot no dist gaussian loop geom",
    ]
    if config.ensemble == "npt":
        bar = f"{(task.pressure or 0.0) * BAR_PER_GPA:.10g}"
        kind = "iso" if config.cell == "isotropic" else "tri"
        push = f"{kind} {bar} {bar} {config.pdamp / FS_PER_PS:.10g}"
        return [*lines, f"fix             md all npt temp {heat} {push}"]
    if config.ensemble == "nvt" and config.thermostat == "nose-hoover":
        return [*lines, f"fix             md all nvt temp {heat}"]
    lines.append("fix             md all nve")
    if config.ensemble == "nvt":
        lines.append(f"fix             bath all langevin {heat} {noise}")
    return lines


def _halts(config: LammpsExplorer, task: Task, atoms: Atoms) -> list[str]:
    """Write the stops that LAMMPS can judge; the others are applied to what it wrote."""
    conditions = []
    limit = temperature_limit(task.temperature or 0.0, len(atoms), config.stop)
    if limit < float("inf"):
        conditions.append(("temperature", "temp", f"> {limit:.10g}"))
    factor = config.stop.max_expansion
    if factor is not None and config.ensemble == "npt":
        volume = abs(atoms.cell.volume)
        conditions += [("expansion", "vol", f"> {factor * volume:.10g}"),
                       ("collapse", "vol", f"< {volume / factor:.10g}")]  # fmt: skip
    lines = []
    for name, keyword, condition in conditions:
        lines += [
            f"variable        now_{name} equal {keyword}",
            f"fix             {name} all halt {HALT_EVERY} v_now_{name} {condition} error soft",
        ]
    return lines


def _output(config: LammpsExplorer, elements: Sequence[str]) -> list[str]:
    names = " ".join(elements)
    return [
        "thermo_style    custom step temp pe ke etotal press vol",
        f"thermo          {config.trj_freq}",
        f"dump            frames all custom {config.trj_freq} {DUMP} id type element xu yu zu",
        f'dump_modify     frames sort id element {names} format float "%.12g"',
        f"run             {config.steps}",
        f'print           "done" file {FINISHED}',
    ]
