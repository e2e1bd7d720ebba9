"""Train a small model, export it, run it in LAMMPS, and compare every number with dpaflow's.

    python compare.py OUTDIR --lmp LMP                  # LAMMPS with DeePMD-kit's plugin, .pb
    python compare.py OUTDIR --deepmd PYTHON --suffix .pth --settings train-attention.yaml

The second asks DeePMD-kit itself, without LAMMPS. LMP is the LAMMPS program, PYTHON that of an
environment with DeePMD-kit; $DPAFLOW_DP names the `dp` that makes the frozen model. Writes
OUTDIR/comparison.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from ase.io.lammpsdata import write_lammps_data

from dpa_core import DPACalculator
from ops.model_files import export
from ops.train import TrainInputs, run_train
from workflows.cli_model import read_train_config

HERE = Path(__file__).resolve().parent
BAR = 1.6021765e6  # bar in eV/Å³, the constant of LAMMPS's units metal
VOIGT = [0, 4, 8, 1, 2, 5]  # xx yy zz xy xz yz, as LAMMPS has them
# DeePMD-kit answers in a process of its own: its packages and ours need not fit together
DEEPMD = """
import sys, numpy as np
from deepmd.infer import DeepPot
data = np.load(sys.argv[2])
e, f, v = DeepPot(sys.argv[1]).eval(data["coord"], data["box"], data["atype"])
np.savez(sys.argv[3], energy=e.reshape(-1), force=f, virial=v.reshape(-1, 3, 3))
"""


def alloy(seed: int, rattle: float) -> Atoms:
    """Return 32 atoms of Cu-Au in a strained cell."""
    rng = np.random.default_rng(seed)
    share = rng.random()  # of gold
    atoms = bulk("Cu", cubic=True, a=3.61 + 0.45 * share + rng.normal(scale=0.05)) * (2, 2, 2)
    atoms.symbols[rng.random(len(atoms)) < share] = "Au"
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


def make_data(path: Path, frames: int) -> None:
    """Write labelled alloys; EMT knows their energies."""
    labelled = [alloy(seed, 0.05 + 0.05 * (seed % 3)) for seed in range(frames)]
    for atoms in labelled:
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
    write(path, labelled)


def run_lammps(lmp: str, model: Path, start: Atoms, folder: Path) -> list[dict]:
    """Run in.lammps and return what LAMMPS says about its frames."""
    with (folder / "data.lammps").open("w", encoding="utf-8") as stream:
        write_lammps_data(stream, start, specorder=["Cu", "Au"], masses=True, units="metal",
                          atom_style="atomic", force_skew=True)  # fmt: skip
    shutil.copy(HERE / "in.lammps", folder)
    command = [lmp, "-in", "in.lammps", "-var", "model", str(model.resolve())]
    with (folder / "lammps.out").open("w", encoding="utf-8") as out:
        subprocess.run(command, cwd=folder, stdout=out, stderr=out, check=True)
    numbers = np.loadtxt(folder / "numbers.out", ndmin=2)
    frames = read(folder / "frames.lammpstrj", format="lammps-dump-text", index=":")
    return [
        {"atoms": atoms, "energy": row[1], "force": atoms.get_forces(), "pressure": row[2:8] / BAR}
        for atoms, row in zip(frames, numbers, strict=True)
    ]


def run_deepmd(python: str, model: Path, start: Atoms, folder: Path) -> list[dict]:
    """Ask DeePMD-kit's Python interface about the start, distorted in six ways."""
    frames = []
    for seed in range(6):
        atoms = start.copy()
        atoms.rattle(0.05 * seed, seed=seed)
        frames.append(atoms)
    types = [["Cu", "Au"].index(name) for name in start.symbols]
    np.savez(
        folder / "frames.npz",
        coord=np.array([atoms.positions.ravel() for atoms in frames]),
        box=np.array([atoms.cell.array.ravel() for atoms in frames]),
        atype=np.array(types),
    )
    answers = folder / "answers.npz"
    command = [python, "-c", DEEPMD, str(model), str(folder / "frames.npz"), str(answers)]
    subprocess.run(command, check=True, capture_output=True)
    found = np.load(answers)
    pressures = [
        ((v + v.T) / 2 / atoms.get_volume()).ravel()[VOIGT]
        for v, atoms in zip(found["virial"], frames)
    ]
    columns = (frames, found["energy"], found["force"], pressures)
    names = ("atoms", "energy", "force", "pressure")
    return [dict(zip(names, values)) for values in zip(*columns)]


def compare(model: Path, frames: list[dict]) -> list[dict]:
    """Return the differences of energy (eV/atom), forces (eV/Å) and pressure (eV/Å³)."""
    calculator = DPACalculator(model)
    rows = []
    for frame in frames:
        atoms = frame["atoms"].copy()
        atoms.pbc, atoms.calc = True, calculator
        stress = atoms.get_stress(voigt=False).ravel()[VOIGT]
        force = atoms.get_forces()
        rows.append(
            {
                "energy": float(frame["energy"]),
                "max_force": float(abs(force).max()),
                "energy_difference": abs(frame["energy"] - atoms.get_potential_energy())
                / len(atoms),
                "force_difference": float(abs(frame["force"] - force).max()),
                "pressure_difference": float(abs(frame["pressure"] + stress).max()),
            }
        )
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--lmp", help="LAMMPS with DeePMD-kit's plugin")
    parser.add_argument("--deepmd", help="Python with DeePMD-kit, instead of LAMMPS")
    parser.add_argument("--settings", type=Path, default=HERE / "train.yaml")
    parser.add_argument("--suffix", default=".pb", choices=(".pb", ".pth"))
    parser.add_argument("--frames", type=int, default=60)
    return parser.parse_args()


def main() -> None:
    options = parse()
    out = options.outdir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    make_data(out / "data.extxyz", options.frames)
    begin = time.monotonic()
    trained = run_train(
        TrainInputs([out / "data.extxyz"]), read_train_config(options.settings), out / "train"
    )
    print(f"trained in {time.monotonic() - begin:.0f} s: {trained.model}")
    (exported,) = export(trained.model, out / f"model{options.suffix}")
    if exported.copy is None:
        raise SystemExit(f"no DeePMD-kit here: {exported.source} is written, set DPAFLOW_DP")
    print(exported.copy)
    start = alloy(1000, 0.05)
    if options.lmp:
        frames = run_lammps(options.lmp, exported.path, start, out)
    else:
        frames = run_deepmd(options.deepmd, exported.path, start, out)
    rows = compare(trained.model, frames)
    print("energy, eV   max force, eV/Å   differences: eV/atom     eV/Å   eV/Å³")
    for row in rows:
        print("{energy:10.4f} {max_force:17.3f} {energy_difference:22.1e} {force_difference:8.1e} "
              "{pressure_difference:7.1e}".format(**row))  # fmt: skip
    program = "LAMMPS" if options.lmp else "DeePMD-kit"
    document = {"program": program, "settings": options.settings.name, "suffix": options.suffix,
                "frames": rows}  # fmt: skip
    (out / "comparison.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
