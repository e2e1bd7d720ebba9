"""Read back what LAMMPS wrote: frames, deviations, and why it stopped."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpa_core.committee import Deviation, read_model_devi
from dpa_core.errors import DataError
from ops.explorers import lammps
from ops.explorers.common import Task, Trajectory
from ops.explorers.stops import (
    Problem,
    Reason,
    Stop,
    Stops,
    check_cell,
    check_deviation,
    check_distance,
)
from ops.structures import frame_of

if TYPE_CHECKING:
    from ase import Atoms

HALTED = re.compile(r"fix-id (temperature|expansion|collapse) met on step (\d+)")
TAIL = 2000
"""Characters of LAMMPS's output quoted in a message."""


def read_trajectory(
    config: lammps.LammpsExplorer, task: Task, type_map: Sequence[str], folder: Path
) -> Trajectory:
    """Read the trajectory of a folder in which LAMMPS has run.

    Frames are those that both the dump and model_devi.out have; those that the stops of the
    settings reject end the trajectory, as if LAMMPS had stopped there.

    Raises
    ------
    DataError
        LAMMPS did not get to the first frame (with the end of its output), or the dump's atoms
        are not those of the task.
    """
    images = read_dump(folder / lammps.DUMP)
    devi = folder / lammps.DEVIATION
    steps, deviation = read_model_devi(devi) if devi.is_file() else (np.zeros(0, int), None)
    row = {int(step): k for k, step in enumerate(steps)}
    known = [a for a in images if a.info["timestep"] in row]
    if deviation is None or not known:
        raise DataError(
            f"{folder}: LAMMPS wrote no frame with a deviation; the end of its output:\n"
            f"{_tail(folder)}"
        )
    _check_atoms(known[0], task, folder)
    volume = abs(task.atoms.cell.volume) if task.atoms is not None else 0.0
    kept, stop = [], None
    own = _own_stop(folder, known[-1].info["timestep"])
    for atoms in known:
        step = atoms.info["timestep"]
        if own is not None and own.reason != "error" and step >= own.step:
            break
        problem = _problem(atoms, volume, float(deviation.max_devi_f[row[step]]), config.stop)
        if problem is None or problem.reason == "deviation":
            kept.append(atoms)
        if problem is not None:
            stop = Stop(problem.reason, step, problem.message)
            break
    chosen = [a.info["timestep"] for a in kept]
    picked = Deviation(*(column[[row[s] for s in chosen]] for column in deviation))
    stop = stop or own
    done = known[-1].info["timestep"] if stop is None else stop.step
    return Trajectory([frame_of(a, type_map) for a in kept], chosen, picked, done, stop)


def read_dump(path: Path) -> list[Atoms]:
    """Read a text dump; an incomplete last frame of a killed run is left out.

    Returns
    -------
    list[ase.Atoms]
        With info["timestep"]; periodic in all directions or, without cell, in none.
    """
    from ase.io.lammpsrun import iread_lammps_dump_text

    if not path.is_file():
        return []
    images = []
    with path.open(encoding="utf-8") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy's about empty blocks
        try:
            for atoms in iread_lammps_dump_text(stream, index=slice(None)):
                atoms.pbc = bool(atoms.pbc.any())
                images.append(atoms)
        except (RuntimeError, ValueError, IndexError):
            return images
    # The last number may be cut in two and still be a number.
    return images if path.read_bytes().endswith(b"\n") else images[:-1]


def _check_atoms(atoms: Atoms, task: Task, folder: Path) -> None:
    if task.atoms is not None and sorted(atoms.numbers) != sorted(task.atoms.numbers):
        raise DataError(
            f"{folder / lammps.DUMP}: holds {atoms.symbols}, {task.structure} is "
            f"{task.atoms.symbols}; remove the folder and run it again"
        )


def _problem(atoms: Atoms, volume: float, max_devi_f: float, stops: Stops) -> Problem | None:
    box = atoms.cell[:] if atoms.pbc.all() else None
    return (
        check_cell(atoms.positions, box, volume, stops)
        or check_distance(atoms.positions, box, atoms.numbers, stops)
        or check_deviation(max_devi_f, stops)
    )


def _own_stop(folder: Path, last: int) -> Stop | None:
    """Why LAMMPS itself ended early; None if it did not."""
    log = folder / lammps.LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if halted := HALTED.search(text):
        reason: Reason = "temperature" if halted[1] == "temperature" else "volume"
        return Stop(reason, int(halted[2]), f"LAMMPS: {halted[0]}")
    if (folder / lammps.FINISHED).is_file():
        return None
    return Stop("error", last, f"LAMMPS ended before its last step: {_tail(folder)[-300:]}")


def _tail(folder: Path) -> str:
    output = folder / lammps.OUTPUT
    if not output.is_file():
        output = folder / lammps.LOG
    if not output.is_file():
        return "(there is none)"
    return output.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
