"""dpdata's driver: energies, forces and virials of a System are those of the model."""

import subprocess
import sys

import dpdata
import numpy as np
import pytest
from ase.build import bulk, molecule

from dpa_core import DPACalculator, save_model
from dpa_core.config import ModelConfig
from dpa_core.errors import ConfigError
from dpa_core.model import build_model

SMALL = {"type": "dpa1", "rcut": 4.0, "sel": 40, "neuron": [4, 8], "axis_neuron": 2, "attn": 8,
         "attn_layer": 1, "precision": "float64"}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    config = {"type_map": ["O", "Cu", "H", "Al"], "descriptor": SMALL,
              "fitting_net": {"neuron": [8], "precision": "float64"}}  # fmt: skip
    return build_model(ModelConfig.model_validate(config), seed=3)


@pytest.fixture
def path(model, tmp_path):
    return save_model(model, tmp_path / "model.safetensors")


def alloy(seed=0):
    atoms = bulk("Al", cubic=True) * (2, 1, 1)
    atoms.symbols[::3] = "Cu"
    atoms.rattle(0.1, seed=seed)
    return atoms


def same(system, structures, path):
    """Compare a labelled system with ASE's calculator, frame by frame."""
    order = np.argsort([system["atom_names"].index(s) for s in structures[0].symbols],
                       kind="stable")  # fmt: skip
    for k, atoms in enumerate(structures):
        atoms.calc = DPACalculator(path)
        assert system["energies"][k] == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        where = [np.flatnonzero((abs(system["coords"][k] - p) < 1e-9).all(axis=1)).item()
                 for p in atoms.positions[order]]  # fmt: skip
        assert np.allclose(system["forces"][k][where], atoms.get_forces()[order], atol=1e-10)
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False)
            assert np.allclose(system["virials"][k], -stress * atoms.get_volume(), atol=1e-9)


def test_frames_with_a_type_map_of_their_own(path):
    structures = [alloy(seed) for seed in range(3)]
    system = dpdata.System(structures[0], fmt="ase/structure")
    for atoms in structures[1:]:
        system.append(dpdata.System(atoms, fmt="ase/structure"))
    found = system.predict(driver="dpaflow", model=str(path))
    assert isinstance(found, dpdata.LabeledSystem)
    assert found["energies"].shape == (3,)
    assert found["virials"].shape == (3, 3, 3)
    assert "energies" not in system.data
    same(found, structures, path)


def test_molecule(model, path):
    atoms = molecule("H2O")
    system = dpdata.System(atoms, fmt="ase/structure")
    system.data["nopbc"] = True
    found = system.predict(str(path), driver="dpaflow")
    same(found, [atoms], path)
    types = [model.type_map.index(s) for s in atoms.symbols]
    want = model.evaluate(atoms.positions[None], None, types)
    assert np.allclose(found["virials"], want.virial, atol=1e-12)


def test_unknown_element(model):
    system = dpdata.System(bulk("Fe"), fmt="ase/structure")
    with pytest.raises(ConfigError, match=r"holds Fe, which .* type_map is \['O', 'Cu'"):
        system.predict(driver="dpaflow", model=model)
    # named, but no atom of it is there
    system = dpdata.System(alloy(), fmt="ase/structure", type_map=["Al", "Cu"])
    system.data["atom_names"].append("Fe")
    system.data["atom_numbs"].append(0)
    assert np.isfinite(system.predict(driver="dpaflow", model=model)["energies"]).all()


def test_several_systems(model):
    systems = dpdata.MultiSystems(
        *(dpdata.System(atoms, fmt="ase/structure") for atoms in (alloy(), bulk("Cu")))
    )
    found = systems.predict(driver="dpaflow", model=model)
    assert found.get_nframes() == 2


def test_importing_dpdata_brings_no_torch():
    code = "import sys, dpdata.driver, dpdata; print('torch' in sys.modules, " \
           "'dpaflow' in dpdata.driver.Driver.get_drivers())"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
