"""extxyz, S2EF, traj and db: keys, units, signs, cells; references from ASE itself."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect

from dpa_core.data import find_systems, open_dataset
from dpa_core.data.labels import find_key, frame_from_atoms
from dpa_core.errors import DataError

GPA = 160.21766208


def copper(left_handed: bool = False) -> Atoms:
    """A strained, rattled cell with EMT labels."""
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(
        atoms.cell @ [[1.02, 0.03, 0], [0, 0.97, 0.01], [0.02, 0, 1.05]], scale_atoms=True
    )
    atoms.rattle(0.1, seed=1)
    if left_handed:
        atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    atoms.calc = EMT()
    atoms.get_potential_energy()
    return atoms


def numerical_virial(atoms: Atoms, step: float = 1e-5) -> np.ndarray:
    """-dE/dstrain by central differences."""
    out = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            energy = []
            for sign in (1, -1):
                strained = atoms.copy()
                strain = np.eye(3)
                strain[i, j] += sign * step
                strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                strained.calc = EMT()
                energy.append(strained.get_potential_energy())
            out[i, j] = -(energy[0] - energy[1]) / (2 * step)
    return out


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("suffix", ["xyz", "traj", "db", "xyz.gz"])
def test_virial_is_minus_dE_dstrain(tmp_path: Path, suffix: str, left_handed: bool) -> None:
    atoms = copper(left_handed)
    path = tmp_path / f"cu.{suffix}"
    if suffix == "db":
        with connect(path) as database:
            database.write(atoms)
    else:
        stored = atoms.copy()
        stored.calc = SinglePointCalculator(stored, **atoms.calc.results)
        ase.io.write(path, stored, format="traj" if suffix == "traj" else "extxyz")
    frame = open_dataset([path])[0]
    np.testing.assert_allclose(frame.virial, numerical_virial(atoms), atol=2e-5)
    np.testing.assert_allclose(frame.force, atoms.get_forces(), atol=1e-7)
    assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
    np.testing.assert_allclose(frame.box, atoms.cell.array, atol=1e-7)


def one(tmp_path: Path, comment: str, columns: str = "", values: str = "") -> Any:
    path = tmp_path / "one.xyz"
    path.write_text(f"1\n{comment} Properties=species:S:1:pos:R:3{columns}\nCu 0 0 0 {values}\n")
    return open_dataset([path])[0]


CELL = 'Lattice="2 0 0 0 5 0 0 0 1" '  # 10 Å³


@pytest.mark.parametrize(
    "key",
    ["energy", "Energy", "REF_energy", "dft_energy", "DFT_energy", "free_energy", "energy_ref",
     "total_energy", "ref-energy", "TOTEN"],
)  # fmt: skip
def test_energy_keys(tmp_path: Path, key: str) -> None:
    assert one(tmp_path, f"{key}=-1.25").energy == -1.25


@pytest.mark.parametrize(
    "key", ["force", "forces", "REF_forces", "dft_force", "Forces", "forces_dft", "REF_force"]
)
def test_force_keys(tmp_path: Path, key: str) -> None:
    assert one(tmp_path, "x=1", f":{key}:R:3", "1 2 3").force.tolist() == [[1, 2, 3]]


def test_preferred_keys_and_predictions() -> None:
    assert find_key("energy", {"energy": 0, "free_energy": 0, "REF_energy": 0}) == "REF_energy"
    assert find_key("energy", {"free_energy": 0, "energy": 0}) == "energy"
    assert find_key("energy", {"mace_energy": 0, "U0": 0}) is None
    assert find_key("force", {"mace_forces": 0, "dft_forces": 0}) == "dft_forces"


@pytest.mark.parametrize("key", ["virial", "virials", "REF_virial", "dft_virials"])
def test_virial_keys(tmp_path: Path, key: str) -> None:
    frame = one(tmp_path, CELL + f'{key}="1 2 3 2 5 6 3 6 9"')
    assert frame.virial.tolist() == [[1, 2, 3], [2, 5, 6], [3, 6, 9]]


@pytest.mark.parametrize("key", ["stress", "REF_stress", "dft_stresses"])
def test_stress_becomes_virial(tmp_path: Path, key: str) -> None:
    expected = -10 * np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])
    for text in ("1 2 3 4 5 6", "1 6 5 6 2 4 5 4 3"):  # Voigt, or all nine
        np.testing.assert_allclose(one(tmp_path, CELL + f'{key}="{text}"').virial, expected)


def test_declared_units(tmp_path: Path) -> None:
    frame = one(tmp_path, CELL + 'stress="1 0 0 0 1 0 0 0 1" stress_unit=GPa')
    np.testing.assert_allclose(frame.virial, -10 * np.eye(3) / GPA)
    frame = one(tmp_path, CELL + 'REF_stress="1 0 0 0 1 0 0 0 1" REF_stress_units=kbar')
    np.testing.assert_allclose(frame.virial, -1 * np.eye(3) / GPA)
    frame = one(
        tmp_path, "energy=1 energy_unit=Hartree force-unit=Hartree/Bohr", ":forces:R:3", "1 0 0"
    )
    assert frame.energy == pytest.approx(27.211386245988)
    assert frame.force[0, 0] == pytest.approx(51.422067476)


def test_periodicity(tmp_path: Path) -> None:
    assert one(tmp_path, "energy=1").box is None
    assert one(tmp_path, CELL + 'pbc="F F F"').box is None
    slab = fcc111("Cu", (2, 2, 2), vacuum=None)
    slab.pbc = (True, True, False)
    box = frame_from_atoms(slab, ["Cu"], "slab").box
    np.testing.assert_allclose(box[:2], slab.cell.array[:2])
    assert box[2] == pytest.approx([0, 0, 100 + np.ptp(slab.positions[:, 2])])
    wire = Atoms("Cu", cell=[3, 0, 0], pbc=(True, False, False))
    box = frame_from_atoms(wire, ["Cu"], "wire").box
    np.testing.assert_allclose(np.abs(box[0]), [3, 0, 0], atol=1e-12)
    np.testing.assert_allclose(box @ box.T, np.diag([9, 1e4, 1e4]), atol=1e-9)


def test_fixed_atoms_keep_their_force(tmp_path: Path) -> None:
    atoms = copper()
    force = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 1]))
    for suffix in ("traj", "xyz", "db"):
        path = tmp_path / f"fixed.{suffix}"
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=force)
        ase.io.write(path, atoms)
        np.testing.assert_allclose(open_dataset([path])[0].force, force, atol=1e-7)


def test_frames_of_any_size_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = []
    for k, symbols in enumerate(("CuO", "H", "Cu2H3", "OOCu")):
        atoms = Atoms(symbols, positions=rng.random((len(Atoms(symbols)), 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=float(k))
        images.append(atoms)
    for suffix in ("xyz", "traj", "db"):
        path = tmp_path / f"all.{suffix}"
        ase.io.write(path, images)
        data = open_dataset([path], ["O", "Cu", "H"])
        assert data.natoms.tolist() == [2, 1, 5, 3]
        assert data.counts([2, 0]).tolist() == [[0, 2, 3], [1, 1, 0]]
        for k in (3, 0, 2, 1):
            assert data[k].energy == k
            np.testing.assert_allclose(data[k].coord, images[k].positions, atol=1e-7)
        with pytest.raises(DataError, match="element 'H' not in type_map"):
            open_dataset([path], ["O", "Cu"])


def test_species_column_and_atomic_numbers(tmp_path: Path) -> None:
    path = tmp_path / "z.xyz"
    path.write_text("2\nProperties=pos:R:3:Z:I:1:forces:R:3\n0 0 0 29 1 0 0\n0 0 2 1 -1 0 0\n")
    data = open_dataset([path])
    assert data.type_map == ("H", "Cu")
    assert data[0].atype.tolist() == [1, 0]


def test_s2ef(tmp_path: Path) -> None:
    atoms = copper()
    text = tmp_path / "0.extxyz"
    ase.io.write(text, [atoms, atoms], format="extxyz")
    with lzma.open(tmp_path / "0.extxyz.xz", "wb") as stream:
        stream.write(text.read_bytes())
    text.unlink()
    with lzma.open(tmp_path / "0.txt.xz", "wt") as stream:
        stream.write("random1,frame7,-100.5\nrandom1,frame9,-200.5\n")
    assert [fmt for _, fmt in find_systems(tmp_path)] == ["oc20/s2ef"]
    data = open_dataset([tmp_path])
    assert data[1].energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert data.name(1).endswith("frame 1 (random1,frame9)")
    shifted = open_dataset([tmp_path], fmt="oc20/s2ef/adsorption")
    assert shifted[1].energy - data[1].energy == pytest.approx(200.5)
    with lzma.open(tmp_path / "0.txt.xz", "wt") as stream:
        stream.write("random1,frame7,-100.5\n")
    with pytest.raises(DataError, match="1 lines for 2 frames"):
        open_dataset([tmp_path])
    packed = (tmp_path / "0.extxyz.xz").read_bytes()
    (tmp_path / "0.extxyz.xz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="broken compressed file"):
        open_dataset([tmp_path])


def test_formats_are_found_by_content(tmp_path: Path) -> None:
    atoms = copper()
    for fmt, name in (("extxyz", "a.dat"), ("traj", "b.dat")):
        ase.io.write(tmp_path / name, atoms, format=fmt)
    connect(tmp_path / "c.dat", type="db").write(atoms)
    (tmp_path / "plain.xyz").write_text("1\na comment\nH 0 0 0\n")
    found = {Path(p).name: fmt for p, fmt in find_systems(tmp_path)}
    assert found == {"a.dat": "extxyz", "b.dat": "ase/traj", "c.dat": "ase/db"}
    assert [Path(p).name for p, _ in find_systems(tmp_path, fmt="traj")] == ["b.dat"]
    assert len(open_dataset([tmp_path / "plain.xyz"])) == 1


def test_search_follows_links_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "job").mkdir()
    ase.io.write(tmp_path / "data" / "a.xyz", copper())
    (tmp_path / "job" / "input").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert len(find_systems(tmp_path / "job")) == 1
