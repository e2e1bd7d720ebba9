"""Drift and fluctuation of total energies, their bounds, and results.{json,md,png}.

Trajectories are chaotic: after a picosecond two variants are at different places, so only
conserved quantities are compared. With the same timestep all variants share the error of the
integrator, which lets the total energy fluctuate but not drift; what rounding, tables, neighbour
lists or discontinuous forces do wrong comes on top.
"""

from __future__ import annotations

import json
import platform
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.nve.files import Series
from benchmarks.nve.systems import REFERENCE, SYSTEMS, VARIANTS

FEWEST_STEPS = 200
# meV/atom/ns. Heats a harmonic system (3 kT an atom) by 4 K in a nanosecond; GROMACS tolerates
# fifty times as much by default (verlet-buffer-tolerance, 0.005 kJ/mol/ps an atom).
DRIFT = 1.0
# Standard errors of the difference of two slopes that are chance.
CERTAIN = 2.0
BLOCKS = 20
# Fluctuations of chaotic runs of this length differ by some percent, their maxima by more;
# the second number, meV/atom, is room for the rounding of float32 energies.
RMS = (1.25, 0.001)
EXCURSION = (1.5, 0.002)
# Energy per atom and forces at the start, meV/atom and meV/Å: the model must be the same.
START = (0.01, 0.1)
_BOLTZMANN = 8.617333e-5

Runs = dict[str, dict[str, Series]]


class Row(NamedTuple):
    """One run. Energies in meV/atom.

    Attributes
    ----------
    drift, error
        Slope of a linear fit to the total energy and its standard error, meV/atom/ns.
    rms, excursion
        Fluctuation around the fit, and the largest.
    energy_start, force_start
        Differences to the reference at the start: energy, largest force component (meV/Å).
    temperature
        Mean, K.
    speed
        Largest speed of the centre of mass, Å/ps.
    neighbors, searches
        Most neighbours seen of an atom, and neighbour searches done.
    milliseconds
        Wall time of a step.
    violated
        Bounds that do not hold.
    """

    drift: float
    error: float
    rms: float
    excursion: float
    energy_start: float
    force_start: float
    temperature: float
    speed: float
    neighbors: int
    searches: int
    milliseconds: float
    violated: tuple[str, ...] = ()


def total_energy(run: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give times, ps, and total energies, meV/atom."""
    energy = 1000 * (run["potential"] + run["kinetic"]) / run["natoms"]
    return run["step_ps"] * np.arange(len(energy)), energy


def inefficiency(noise: NDArray[np.float64]) -> float:
    """Count records per independent one, at least 1.

    Fast oscillations hide slow ones from the sum of the autocorrelation; the means of blocks show
    them.
    """
    length = len(noise) // BLOCKS
    blocks = noise[: BLOCKS * length].reshape(BLOCKS, length).mean(1)
    return max(1.0, float(length * blocks.var(ddof=1) / noise.var()))


def measure(run: Series, reference: Series) -> Row:
    """Numbers of a run, not yet judged."""
    t, energy = total_energy(run)
    slope, offset = np.polyfit(t, energy - energy[0], 1)
    rest = energy - energy[0] - slope * t - offset
    variance = rest.var(ddof=2) * inefficiency(rest)
    start = energy[0] - total_energy(reference)[1][0]
    return Row(
        drift=1000 * float(slope),
        error=1000 * float(np.sqrt(variance / np.square(t - t.mean()).sum())),
        rms=float(rest.std()),
        excursion=float(np.abs(rest).max()),
        energy_start=float(start),
        force_start=1000 * float(np.abs(run["forces"] - reference["forces"]).max()),
        temperature=float(run["kinetic"].mean() / run["natoms"] / 1.5 / _BOLTZMANN),
        speed=float(run["speed"].max()),
        neighbors=run["neighbors"],
        searches=run["searches"],
        milliseconds=1000 * run["seconds"] / run["steps"],
    )


def bounds(row: Row, reference: Row) -> dict[str, tuple[float, float]]:
    """Name -> value and largest allowed one."""
    chance = CERTAIN * np.hypot(row.error, reference.error)
    return {
        "drift": (abs(row.drift), abs(reference.drift) + DRIFT + float(chance)),
        "rms": (row.rms, RMS[0] * reference.rms + RMS[1]),
        "excursion": (row.excursion, EXCURSION[0] * reference.excursion + EXCURSION[1]),
        "energy at the start": (abs(row.energy_start), START[0]),
        "force at the start": (row.force_start, START[1]),
    }


def judge(runs: Runs) -> dict[str, dict[str, Row]]:
    """Measure all runs and compare each with the reference of its system."""
    rows: dict[str, dict[str, Row]] = {}
    for system, found in runs.items():
        reference = measure(found[REFERENCE], found[REFERENCE])
        rows[system] = {}
        for name, run in found.items():
            row = measure(run, found[REFERENCE])
            # Written so that NaN is a violation.
            failed = [k for k, (x, most) in bounds(row, reference).items() if not x <= most]
            rows[system][name] = row._replace(violated=tuple(failed))
    return rows


def write(runs: Runs, folder: Path) -> tuple[str, bool]:
    """Write the results; the text, and whether a bound is violated."""
    rows = judge(runs)
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(runs)
    document: dict[str, Any] = facts | {
        "bounds": {"drift": DRIFT, "standard errors": CERTAIN, "rms": RMS, "excursion": EXCURSION,
                   "start": START},
        "systems": {s: {v: row._asdict() for v, row in some.items()} for s, some in rows.items()},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(_text(rows, facts)) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")
    plot(runs, folder / "results.png")
    return text, any(row.violated for some in rows.values() for row in some.values())


def _facts(runs: Runs) -> dict[str, Any]:
    import torch

    try:
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        cpu = None
    return {
        "steps": next(iter(runs.values()))[REFERENCE]["steps"],
        "cpu": cpu[1] if cpu else platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _text(rows: dict[str, dict[str, Row]], facts: dict[str, Any]) -> list[str]:
    lines = [
        "# Conservation of energy in NVE dynamics", "",
        f"Made by `python -m benchmarks.nve`, {facts['date']}: {facts['steps']} steps of velocity "
        f"Verlet, torch {facts['torch']}, {facts['cpu']}, one thread. DPA-1 with one layer of "
        "attention (neuron 8/16/32, attn 32, fitting 64/64/64), trained for a few minutes in "
        "float64; the other variants have the same weights, and all of a system start from the "
        "same positions and velocities.",
    ]  # fmt: skip
    for system, some in rows.items():
        reference = some[REFERENCE]
        lines += [
            "", f"## {system}: {SYSTEMS[system].title}", "",
            "| variant | drift, meV/atom/ns (allowed) | RMS fluctuation, meV/atom "
            "| largest excursion, meV/atom | energy, force at start against reference, meV/atom, "
            "meV/Å | mean T, K | ms/step | bounds |", "|" + "---|" * 8,
            *(_line(VARIANTS[name].title, row, reference) for name, row in some.items()),
            "", f"Most neighbours seen {max(r.neighbors for r in some.values())} of sel "
            f"{SYSTEMS[system].sel}, which was never full; largest speed of the centre of mass "
            f"{max(r.speed for r in some.values()):.0e} Å/ps.",
        ]  # fmt: skip
    return [*lines, "", *_explained()]


def _line(title: str, row: Row, reference: Row) -> str:
    allowed = bounds(row, reference)["drift"][1]
    return (
        f"| {title} | {row.drift:+.2f} ± {row.error:.2f} ({allowed:.1f}) | {row.rms:.4f} "
        f"| {row.excursion:.4f} | {row.energy_start:+.1e}, {row.force_start:.1e} "
        f"| {row.temperature:.0f} | {row.milliseconds:.1f} "
        f"| {', '.join(row.violated) or 'hold'} |"
    )


def _explained() -> list[str]:
    return [
        "## Bounds", "",
        f"- |drift| ≤ |drift of the reference| + {DRIFT:g} meV/atom/ns + {CERTAIN:g} standard "
        "errors of the difference. The allowance heats a harmonic system (3 kT an atom) by 4 K in "
        "a nanosecond; GROMACS tolerates fifty times as much by default (verlet-buffer-tolerance). "
        "A short run cannot resolve less than the standard errors, which come "
        f"from the means of {BLOCKS} blocks.",
        f"- RMS fluctuation ≤ {RMS[0]:g} × reference + {RMS[1]:g} meV/atom; largest excursion ≤ "
        f"{EXCURSION[0]:g} × reference + {EXCURSION[1]:g} meV/atom. Both come from the timestep; "
        "chaotic runs of this length differ by some percent, and float32 rounds energies.",
        f"- At the start energies agree within {START[0]:g} meV/atom and forces within "
        f"{START[1]:g} meV/Å: it is the same potential.",
        "- A neighbour left out because sel is full stops the run.",
    ]  # fmt: skip


def plot(runs: Runs, path: Path) -> None:
    """Draw the total energies, shifted against each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(runs), figsize=(5 * len(runs), 5), layout="constrained")
    for axes, (system, found) in zip(np.ravel(panels), runs.items()):
        spread = 8 * measure(found[REFERENCE], found[REFERENCE]).rms
        for k, (name, run) in enumerate(found.items()):
            t, energy = total_energy(run)
            energy = energy - energy.mean() - k * spread
            axes.plot(t, energy, linewidth=0.4)
            slope, offset = np.polyfit(t, energy, 1)
            axes.plot(t, slope * t + offset, color="black", linewidth=0.8)
            axes.text(t[-1] / 50, (0.32 - k) * spread, VARIANTS[name].title, fontsize=8)
        axes.set_title(SYSTEMS[system].title, fontsize=9)
        axes.set_xlabel("time, ps")
        axes.set_ylabel("total energy, meV/atom, shifted")
    figure.savefig(path, dpi=130)
    plt.close(figure)
