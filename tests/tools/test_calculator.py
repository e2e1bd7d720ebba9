"""The ASE calculator: derivatives by finite differences, slabs, skin, memory."""

from __future__ import annotations

import gc

import numpy as np
import psutil
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.langevin import Langevin
from ase.stress import full_3x3_to_voigt_6_stress

from dpa_core.calculator import DPACalculator
from dpa_core.errors import ConfigError, DataError, ModelFileError, NumericalError
from dpa_core.frames import Frame
from dpa_core.interchange.files import save_model
from dpa_core.neighbors import neighbor_pairs, neighbor_table
from tests.tools.conftest import frame

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@pytest.fixture
def model(make_model):
    model = make_model()
    model.out_bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    return model


def structure(rng, pbc=True):
    one = frame(rng, [0, 1, 2, 1, 0])
    return Atoms([("O", "H", "Cu")[t] for t in one.atype], one.coord, cell=one.box, pbc=pbc)


def strained_energy(atoms, strain):
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=False)
    copy.positions = atoms.positions @ (np.eye(3) + strain)
    return copy.get_potential_energy()


def check_derivatives(atoms):
    step = 1e-4
    forces, stress = atoms.get_forces(), atoms.get_stress()
    for a, k in ((0, 0), (1, 2), (len(atoms) - 1, 1)):
        energies = []
        for sign in (1, -1):
            atoms.positions[a, k] += sign * step
            energies.append(atoms.get_potential_energy())
            atoms.positions[a, k] -= sign * step
        slope = (energies[0] - energies[1]) / (2 * step)
        assert forces[a, k] == pytest.approx(-slope, abs=1e-7)
    for v, (a, b) in enumerate(VOIGT):
        strain = np.zeros((3, 3))
        strain[a, b] += step / 2
        strain[b, a] += step / 2
        slope = (strained_energy(atoms, strain) - strained_energy(atoms, -strain)) / (2 * step)
        assert stress[v] == pytest.approx(slope / abs(atoms.cell.volume), abs=1e-8)


@pytest.mark.parametrize("pbc", [True, (True, True, False), (False, True, False), False])
@pytest.mark.parametrize("handed", [1, -1])
def test_forces_and_stress_are_derivatives(model, rng, pbc, handed):
    atoms = structure(rng, pbc)
    if handed < 0:
        atoms.set_cell(atoms.cell[[1, 0, 2]], scale_atoms=False)
        atoms.pbc = atoms.pbc[[1, 0, 2]]
    atoms.calc = DPACalculator(model)
    check_derivatives(atoms)


def test_results_agree_with_evaluate(model, rng):
    atoms = structure(rng)
    atoms.calc = DPACalculator(model)
    atype = [model.type_map.index(s) for s in atoms.symbols]
    expected = model.evaluate(atoms.positions[None], atoms.cell[:][None], atype)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy[0], rel=1e-12)
    assert atoms.get_potential_energies() == pytest.approx(expected.atom_energy[0])
    assert atoms.get_forces() == pytest.approx(expected.force[0])
    virial = expected.virial[0]
    stress = -full_3x3_to_voigt_6_stress((virial + virial.T) / 2) / atoms.get_volume()
    assert atoms.get_stress() == pytest.approx(stress)


def test_slab_is_the_limit_of_a_large_vacuum(model):
    slab = fcc111("Cu", (2, 2, 2), vacuum=None)
    slab.positions += 0.1 * np.sin(np.arange(24)).reshape(8, 3)
    slab.positions[:, 2] += 50.0  # outside any cell along the open direction
    assert not slab.pbc[2]
    slab.calc = DPACalculator(model)
    vacuum = slab.copy()
    vacuum.cell[2] = (0, 0, 40)
    vacuum.pbc = True
    vacuum.calc = DPACalculator(model)
    assert slab.cell.rank == 2
    assert slab.get_potential_energy() == pytest.approx(vacuum.get_potential_energy(), rel=1e-12)
    assert slab.get_forces() == pytest.approx(vacuum.get_forces(), abs=1e-12)
    with pytest.raises(PropertyNotImplementedError):
        slab.get_stress()


def test_molecule_and_one_atom(model):
    atom = Atoms("H", calculator=DPACalculator(model))
    molecule = Atoms("HH", [[0, 0, 0], [0, 0, 50.0]], calculator=DPACalculator(model))
    assert molecule.get_potential_energy() == pytest.approx(2 * atom.get_potential_energy())
    assert not atom.get_forces().any()


def walk(atoms, rng, steps, length=0.08):
    for _ in range(steps):
        atoms.positions += length * rng.standard_normal(atoms.positions.shape)
        yield


@pytest.mark.parametrize("path", ["kernels", "torch"], indirect=True)
@pytest.mark.parametrize(
    ("descriptor", "excluded", "full"),
    [
        ({"sel": 60}, [], {False}),
        ({"sel": 15}, [], {False, True}),
        ({"sel": 12}, [], {True}),
        ({"sel": 15, "set_davg_zero": False}, [[0, 2]], {False, True}),
        ({"type": "se_e2_a", "sel": [30, 1, 50]}, [], {False}),
        ({"type": "se_e2_a", "sel": [6, 1, 11]}, [[0, 2]], {False, True}),
    ],
    ids=["roomy", "full-at-times", "full", "excluded", "se-roomy", "se-full-at-times"],
)
def test_reused_neighbours_change_nothing(make_model, rng, path, descriptor, excluded, full):
    """Against tables that are made anew at every step, `sel` binding or not."""
    if descriptor.get("type") != "se_e2_a":
        descriptor = {"smooth_type_embedding": False, **descriptor}
    model = make_model(descriptor, pair_exclude_types=excluded)
    atoms = bulk("Cu", cubic=True) * 2
    atoms.symbols[::3] = "O"
    calc, seen = DPACalculator(model, skin=1.0), set()
    for _ in walk(atoms, rng, 12):
        calc.calculate(atoms)
        atype = np.array([("O", "H", "Cu").index(s) for s in atoms.symbols])
        frame = Frame(atoms.positions, atype, np.array(atoms.cell))
        seen.add(neighbor_table(frame, model.spec).dropped > 0)
        fresh = model.evaluate(frame.coord[None], frame.box[None], atype)
        assert calc.results["energy"] == pytest.approx(fresh.energy[0], rel=1e-13)
        assert calc.results["forces"] == pytest.approx(fresh.force[0], abs=1e-12)
    assert seen == full
    assert 1 < calc.searches < 9


def test_search_is_repeated_when_needed(model, rng):
    atoms = structure(rng)
    calc = atoms.calc = DPACalculator(model, skin=1.0)
    atoms.get_potential_energy()
    atoms.positions[0] += 0.28  # 0.485 Å along the diagonal
    atoms.get_potential_energy()
    assert calc.searches == 1
    atoms.positions[0] += 0.02
    atoms.get_potential_energy()
    assert calc.searches == 2
    for change in (
        lambda: atoms.set_cell(atoms.cell * 1.01),
        lambda: atoms.symbols.__setitem__(0, "H"),
        lambda: atoms.set_pbc((True, True, False)),
        lambda: atoms.pop(),
        lambda: atoms.positions.__iadd__(atoms.cell[0] * (np.arange(4) == 2)[:, None]),
    ):
        before = calc.searches
        change()
        energy = atoms.get_potential_energy()
        assert calc.searches == before + 1
        other = atoms.copy()
        other.calc = DPACalculator(model)
        assert energy == pytest.approx(other.get_potential_energy(), rel=1e-12)


def test_sel_overflow_is_reported_once(make_model, caplog):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = DPACalculator(make_model({"sel": 5}))
    for _ in range(2):
        atoms.rattle(0.01)
        atoms.get_forces()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "sel is full" in caplog.text


def test_bad_input(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    calc = DPACalculator(path)
    with pytest.raises(ConfigError, match=r"holds Ag, Ni.*type_map is \['O', 'H', 'Cu'\]"):
        Atoms("CuNiAg", [[0, 0, 0], [2, 0, 0], [0, 2, 0]], calculator=calc).get_forces()
    with pytest.raises(ConfigError, match="lattice vector 2 is zero"):
        Atoms("Cu", cell=[3, 3, 0], pbc=True, calculator=calc).get_forces()
    flat = [[3, 0, 0], [0, 3, 0], [3, 3, 0]]
    with pytest.raises(DataError, match="neighbour search failed"):
        Atoms("Cu", cell=flat, pbc=True, calculator=calc).get_forces()
    with pytest.raises(ConfigError, match="at least one atom"):
        Atoms(calculator=calc).get_potential_energy()
    with pytest.raises(ConfigError, match="skin"):
        DPACalculator(model, skin=-1.0)
    with pytest.raises(ModelFileError, match="no such model"):
        DPACalculator(tmp_path / "none.safetensors")
    with pytest.raises(NumericalError, match="on top of each other"):
        Atoms("CuCu", [[0, 0, 0]] * 2, calculator=calc).get_forces()


def growth(model, steps):
    """Memory gained by `steps` steps of MD after a warm-up, bytes."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = DPACalculator(model, skin=0.3)
    settings = {"temperature_K": 300, "friction": 0.05, "fixcm": False}
    thermostat = Langevin(atoms, 2 * units.fs, rng=np.random.default_rng(0), **settings)
    process = psutil.Process()
    thermostat.run(100)
    gc.collect()
    before, objects = process.memory_info().rss, len(gc.get_objects())
    thermostat.run(steps)
    gc.collect()
    assert atoms.calc.searches > 3
    assert len(gc.get_objects()) - objects < 500
    return process.memory_info().rss - before


def test_neighbour_searches_do_not_leak(rng):
    """vesin's NumPy interface alone leaves 20 kB behind for every new number of pairs."""
    neighbor_pairs(rng.random((9, 3)), None, 2.0)
    gc.collect()
    before = len(gc.get_objects())
    counts = {len(neighbor_pairs(9 * rng.random((40, 3)), None, 4.0)[0]) for _ in range(100)}
    gc.collect()
    assert len(counts) > 50
    assert len(gc.get_objects()) - before < 100


def test_md_does_not_leak(model):
    assert growth(model, 400) < 8e6


@pytest.mark.slow
def test_md_does_not_leak_over_10000_steps(model):
    assert growth(model, 10_000) < 16e6
