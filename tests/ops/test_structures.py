"""Starting structures: counts, seeds, cells, surfaces, files, data and their messages."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write as write_ase
from hypothesis import given
from hypothesis import strategies as st

from dpa_core.config import parse_config
from dpa_core.data import open_dataset
from dpa_core.errors import ConfigError, DataError
from ops.structures import (
    StructuresConfig,
    StructuresInputs,
    derived_seed,
    largest_remainder,
    make_structures,
    run_structures,
)
from tests.ops.helpers import make_frame, write

FCC = {"type": "generate", "lattice": "fcc", "element": "Al", "a": 4.05, "cell": "cubic"}


def made(source, seed=1, data=None, name="s"):
    config = parse_config(StructuresConfig, {"sources": {name: source}}, "test")
    return make_structures(config.sources, data or {}, [name], seed)


def same(a: Atoms, b: Atoms) -> bool:
    return (
        np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.positions, b.positions)
        and np.array_equal(a.cell[:], b.cell[:])
    )


@given(
    st.dictionaries(st.sampled_from(["Al", "Mg", "Cu", "Ni"]), st.floats(0.01, 5), min_size=1),
    st.integers(1, 500),
)
def test_largest_remainder_is_exact_and_close(shares, total):
    counts = largest_remainder(shares, total)
    assert sum(counts.values()) == total
    whole = sum(shares.values())
    for name, share in shares.items():
        assert abs(counts[name] - total * share / whole) < 1


def test_ties_go_by_alphabet_not_by_order():
    assert largest_remainder({"Mg": 1, "Al": 1}, 3) == {"Al": 2, "Mg": 1}
    assert largest_remainder({"Al": 1, "Mg": 1}, 3) == {"Al": 2, "Mg": 1}


def test_alloy_has_the_exact_composition_and_all_differ():
    alloys = made(FCC | {"supercell": [2, 2, 2], "composition": {"Mg": 0.3, "Al": 0.7}, "count": 9})
    assert [s.name for s in alloys[:2]] == ["s-0000", "s-0001"]
    for atoms, _ in alloys:
        assert Counter(atoms.get_chemical_symbols()) == {"Al": 22, "Mg": 10}
    assert len({tuple(s.atoms.numbers) for s in alloys}) == 9


def test_all_arrangements_are_found_and_then_no_more():
    """Two Mg on four sites have six arrangements."""
    six = made(FCC | {"composition": {"Al": 0.5, "Mg": 0.5}, "count": 6})
    assert len({tuple(s.atoms.numbers) for s in six}) == 6
    with pytest.raises(ConfigError, match="only 6 different structures"):
        made(FCC | {"composition": {"Al": 0.5, "Mg": 0.5}, "count": 7})
    with pytest.raises(ConfigError, match="set rattle"):
        made(FCC | {"count": 2})


def test_same_seed_same_structures_and_others_do_not_matter():
    source = FCC | {"rattle": 0.1, "strain": 0.03, "count": 3}
    first, again = made(source), made(source | {"count": 5})
    assert all(same(a.atoms, b.atoms) for a, b in zip(first, again, strict=False))
    assert not same(first[0].atoms, made(source, seed=2)[0].atoms)
    assert not same(first[0].atoms, made(source, name="t")[0].atoms)


def test_derived_seed_is_fixed_for_ever():
    """Recorded: a change would change the data of every run."""
    assert derived_seed(1, "fcc", 0) == 5374915500210475666
    assert derived_seed(1, 23) != derived_seed(12, 3)


def test_rattle_and_strain_have_the_size_asked_for():
    base = bulk("Al", cubic=True, a=4.05).repeat(5)
    atoms = made(FCC | {"supercell": [5, 5, 5], "rattle": 0.05})[0].atoms
    moved = atoms.positions - base.positions
    assert np.std(moved) == pytest.approx(0.05, rel=0.1)
    for structure in made(FCC | {"strain": 0.04, "count": 40}):
        strain = structure.atoms.cell[:] / 4.05 - np.eye(3)
        assert np.allclose(strain, strain.T)
        assert np.abs(np.diag(strain)).max() <= 0.04
        assert np.abs(strain - np.diag(np.diag(strain))).max() <= 0.02
    scaled = structure.atoms.get_scaled_positions()
    assert np.allclose(scaled, bulk("Al", cubic=True).get_scaled_positions())


def test_supercell_by_matrix_has_the_determinant_times_the_atoms():
    cubic = made(FCC | {"cell": "primitive", "supercell": [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]})
    assert len(cubic[0].atoms) == 4
    assert np.allclose(np.linalg.norm(cubic[0].atoms.cell[:], axis=1), 4.05)
    with pytest.raises(ConfigError, match="determinant"):
        made(FCC | {"supercell": [[1, 0, 0], [1, 0, 0], [0, 0, 1]]})


def test_surface_has_vacuum_and_is_periodic():
    slab = made(FCC | {"surface": {"miller": [1, 1, 1], "layers": 3, "vacuum": 7.0}})[0].atoms
    heights = slab.positions[:, 2]
    normal = np.cross(slab.cell[0], slab.cell[1])
    thickness = abs(slab.cell.volume) / np.linalg.norm(normal)
    assert slab.pbc.all()
    assert thickness - np.ptp(heights) == pytest.approx(14.0, abs=1e-6)
    # three close-packed layers, a/sqrt(3) apart
    assert np.ptp(heights) == pytest.approx(2 * 4.05 / np.sqrt(3), abs=1e-6)


def test_lattice_that_ase_cannot_build():
    with pytest.raises(ConfigError, match="ASE cannot build hcp NaCl"):
        made({"type": "generate", "lattice": "hcp", "element": "NaCl"})


def test_files_by_pattern(tmp_path):
    write_ase(tmp_path / "b.xyz", [bulk("Cu"), bulk("Al")])
    write_ase(tmp_path / "a.vasp", bulk("Ni", cubic=True))
    write_ase(tmp_path / "c.xyz", molecule("H2O"))
    found = made({"type": "file", "path": str(tmp_path / "*")})
    assert [str(s.atoms.symbols) for s in found] == ["Ni4", "Cu", "Al", "OH2"]
    assert [s.atoms.pbc.all() for s in found] == [True, True, True, False]
    last = made({"type": "file", "path": str(tmp_path / "b.xyz"), "index": -1})
    assert [str(s.atoms.symbols) for s in last] == ["Al"]
    (tmp_path / "d.vasp").write_text("nothing")
    with pytest.raises(DataError, match=r"d\.vasp: ASE cannot read it"):
        made({"type": "file", "path": str(tmp_path / "*")})
    with pytest.raises(DataError, match="nothing matches"):
        made({"type": "file", "path": str(tmp_path / "none*")})


def test_flat_cell_is_refused(tmp_path):
    write_ase(tmp_path / "a.extxyz", Atoms("Al", cell=[3, 3, 0], pbc=[True, True, False]))
    with pytest.raises(DataError, match="has no volume"):
        made({"type": "file", "path": str(tmp_path / "a.extxyz")})


def test_frames_of_data_are_a_seeded_permutation(tmp_path):
    data = {"set": write([make_frame([0, 1, 2], seed=k) for k in range(8)], tmp_path / "d")}
    source = {"type": "data", "data": "set", "count": 5}
    first = made(source, data=data)
    coords = {s.atoms.positions.tobytes() for s in first}
    assert len(coords) == 5
    assert first[0].atoms.calc is None
    other = made(source, seed=2, data=data)
    assert {s.atoms.positions.tobytes() for s in other} != coords
    with pytest.raises(ConfigError, match="only 8 different"):
        made(source | {"count": 9}, data=data)
    assert len(made(source | {"count": 9, "rattle": 0.01}, data=data)) == 9
    with pytest.raises(ConfigError, match="not among the data sets given: other"):
        made(source, data={"other": tmp_path})


def test_op_writes_unlabelled_frames(tmp_path):
    config = parse_config(
        StructuresConfig,
        {"sources": {"a": FCC | {"rattle": 0.1, "count": 2}, "b": {**FCC, "element": "Cu"}},
         "type_map": ["O", "Al", "Cu"]},
        "test",
    )  # fmt: skip
    folder = run_structures(StructuresInputs(), config, tmp_path)
    dataset = open_dataset(folder)
    assert folder == tmp_path / "selected"
    assert len(dataset) == 3
    assert dataset[0].energy is None
    assert dataset[0].force is None
    assert "a-0001" in (folder / "0004" / "frames.csv").read_text()
    first = dataset[0].coord.copy()
    for seed, same in ((1, True), (2, False)):
        again = run_structures(
            StructuresInputs(), config.model_copy(update={"seed": seed}), tmp_path
        )
        assert np.array_equal(open_dataset(again)[0].coord, first) == same
    with pytest.raises(ConfigError, match=r"Al \(in a-0000\), Cu \(in b-0000\) not in type_map"):
        run_structures(
            StructuresInputs(), config.model_copy(update={"type_map": ("O",)}), tmp_path / "2"
        )


def test_unknown_source_and_element():
    config = parse_config(StructuresConfig, {"sources": {"a": FCC}}, "test")
    with pytest.raises(ConfigError, match="'b' is unknown; there are a"):
        make_structures(config.sources, {}, ["b"], 1)
    with pytest.raises(ConfigError, match="composition must give shares"):
        made(FCC | {"composition": {"Xx": 1.0}})
