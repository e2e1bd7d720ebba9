"""A learning loop of one's own in plain Python: no dflow, no YAML, only functions of dpaflow.

    python examples/custom_loop/loop.py FOLDER

The question is a number: the bulk modulus of disordered Cu3Au, to 3 %. So nothing is simulated
by molecular dynamics. In every round each alloy is relaxed with the present committee, then
compressed and stretched; every member of the committee fits its own equation of state to the
same structures. Where the members differ most the energy is computed for real (here with EMT,
at no cost), and the loop ends when the bulk moduli of the members agree with each other and
with those of the round before.

Killed and started again, it goes on: a training continues from its checkpoint, a label that is
in the store is not computed again, and everything else takes seconds.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from dpa_core import Committee, CommitteeCalculator
from dpa_core.config import parse_config
from dpa_core.data import open_dataset, write_mixed
from ops import (
    LabelConfig,
    LabelInputs,
    PrepareConfig,
    PrepareInputs,
    RunTrainConfig,
    TrainInputs,
    frame_of,
    make_structures,
    prepare_labels,
    run_labels,
    run_train,
)
from ops.files import write_json
from ops.labelers import AseLabeler
from ops.structures import GenerateSource

TYPES = ("Cu", "Au")
MEMBERS = 3
STRETCH = np.linspace(0.94, 1.06, 7)  # of the volume
LABELLER = AseLabeler(type="ase", calculator="emt")
ALLOY = GenerateSource(
    lattice="fcc", element="Cu", a=3.8, cell="cubic", supercell=(2, 2, 1),
    composition={"Cu": 3, "Au": 1},
)  # fmt: skip


class Judgement(NamedTuple):
    """Structures of a round, and what the members say about them."""

    structures: list[Atoms]
    modulus: np.ndarray  # (MEMBERS,) mean over the alloys, GPa
    disagreement: np.ndarray  # (structures,) of the energy, eV/atom


def training(steps: int, start_lr: float) -> RunTrainConfig:
    """Return the settings of a training; what is not said has the defaults of a pipeline."""
    document = {
        # one descriptor with a fitting net for each member: a committee for the price of a model
        "model": {
            "type_map": TYPES,
            "heads": MEMBERS,
            "descriptor": {"type": "dpa1", "rcut": 5.0, "sel": 80, "neuron": [8, 16],
                           "axis_neuron": 4, "attn_layer": 0},
            "fitting_net": {"neuron": [32, 32]},
        },
        "training": {"training_data": {"batch_size": 4}, "numb_steps": steps,
                     "disp_freq": steps, "save_freq": 100},
        "learning_rate": {"type": "exp", "start_lr": start_lr, "stop_lr": 1e-4},
        "loss": {"start_pref_e": 1, "limit_pref_e": 10, "start_pref_f": 100, "limit_pref_f": 10,
                 "start_pref_v": 1, "limit_pref_v": 1},
    }  # fmt: skip
    return parse_config(RunTrainConfig, document, "the custom loop")


def label(structures: list[Atoms], folder: Path) -> Path:
    """Label structures and return the data set."""
    if not (folder / "structures").exists():
        frames = [frame_of(atoms, TYPES) for atoms in structures]
        write_mixed(frames, TYPES, folder / "structures")
    prepare = PrepareInputs(folder / "structures")
    prepare_labels(prepare, PrepareConfig(labeler=LABELLER), folder / "prepared")
    run_labels(LabelInputs(folder / "prepared"), LabelConfig(labeler=LABELLER), folder / "labels")
    return folder / "labels" / "labelled"


def relax(atoms: Atoms, calculator: object) -> Atoms:
    """Relax cell and positions a little: a poor model shall not run away with the structure."""
    atoms = atoms.copy()
    atoms.calc = calculator
    LBFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=0.02, steps=40)
    return atoms


def compress(atoms: Atoms) -> list[Atoms]:
    """Return the structure at all volumes."""
    cells = [atoms.cell * stretch ** (1 / 3) for stretch in STRETCH]
    copies = [atoms.copy() for _ in cells]
    for copy, cell in zip(copies, cells, strict=True):
        copy.set_cell(cell, scale_atoms=True)
    return copies


def bulk_modulus(structures: list[Atoms], energies: np.ndarray) -> float:
    """Return the bulk modulus in GPa from energies (eV) at several volumes, NaN without minimum."""
    volumes = [atoms.get_volume() for atoms in structures]
    if np.argmin(energies) in (0, len(energies) - 1):
        return np.nan  # this member knows nothing yet, and a fit would find some number
    return EquationOfState(volumes, energies).fit()[2] / units.GPa


def judge(committee: Committee, alloys: list[Atoms]) -> Judgement:
    """Relax and compress all alloys; ask all members about all structures."""
    calculator = CommitteeCalculator(committee)
    curves = [compress(relax(atoms, calculator)) for atoms in alloys]
    structures = [atoms for curve in curves for atoms in curve]
    frames = [frame_of(atoms, committee.type_map) for atoms in structures]
    prediction = committee.predict(frames)  # energy (MEMBERS, structures)
    energies = prediction.energy.reshape(MEMBERS, len(alloys), len(STRETCH))
    modulus = [
        np.mean([bulk_modulus(c, e) for c, e in zip(curves, member, strict=True)])
        for member in energies
    ]
    disagreement = (prediction.energy / prediction.natoms).std(axis=0)
    return Judgement(structures, np.array(modulus), disagreement)


def worst(found: Judgement, count: int, rng: np.random.Generator) -> list[Atoms]:
    """Choose the structures that the members disagree on most, and shake them a little."""
    chosen = [found.structures[k].copy() for k in np.argsort(-found.disagreement)[:count]]
    for atoms in chosen:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return chosen


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--steps", type=int, default=600, help="of the first training")
    parser.add_argument("--tolerance", type=float, default=0.03, help="of the bulk modulus")
    args = parser.parse_args(arguments)

    shaken = ALLOY.model_copy(update={"rattle": 0.05, "strain": 0.02, "count": 6})
    sources = {"alloy": ALLOY.model_copy(update={"count": 3}), "shaken": shaken}
    alloys = [s.atoms for s in make_structures(sources, {}, ["alloy"], seed=1)]
    first = [s.atoms for s in make_structures(sources, {}, ["shaken"], seed=1)]

    data = [label(first, args.folder / "start")]
    model, before, rows, converged = None, np.nan, [], False
    for k in range(args.rounds):
        folder = args.folder / f"round-{k}"
        config = training(args.steps, 3e-3) if model is None else training(args.steps // 2, 1e-3)
        model = run_train(TrainInputs(data, pretrained=model), config, folder / "train").model
        found = judge(Committee.load([model]), alloys)
        value, spread = found.modulus.mean(), found.modulus.std()
        labels = sum(len(open_dataset(path)) for path in data)
        known = bool(np.isfinite(value))  # JSON has no NaN
        row = {"modulus": value, "spread": spread} if known else {"modulus": None, "spread": None}
        rows.append({"round": k, "labels": labels, **row})
        print(f"round {k}: {labels} labels, B = {value:.1f} GPa, members ± {spread:.1f}")
        # false as long as there is nothing to compare with, or a member knows no minimum
        converged = bool(max(spread, abs(value - before)) < args.tolerance * value)
        if converged:
            break
        before = value
        data.append(label(worst(found, 6, np.random.default_rng(k)), folder / "label"))
    write_json(args.folder / "result.json", {"converged": converged, "rounds": rows})
    print(f"{'converged' if converged else 'NOT converged'} after {len(rows)} rounds")
    return 0 if converged else 1


if __name__ == "__main__":
    sys.exit(main())
