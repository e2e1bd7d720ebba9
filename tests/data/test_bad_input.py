"""Every kind of bad input gives one DataError that names file, value and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpa_core.data import open_dataset, write_mixed
from dpa_core.errors import DataError

from .helpers import edit, message, write_system


def _truncate(folder: Path) -> None:
    path = folder / "set.000" / "force.npy"
    path.write_bytes(path.read_bytes()[:-8])


def _shape(folder: Path) -> None:
    np.save(folder / "set.000" / "force.npy", np.zeros((3, 6)))


def _rows(folder: Path) -> None:
    np.save(folder / "set.000" / "energy.npy", np.zeros(2))


def _atoms(folder: Path) -> None:
    (folder / "type.raw").write_text("0 1 1 1")


def _type(folder: Path) -> None:
    (folder / "type.raw").write_text("0 1 2")


def _zero_frames(folder: Path) -> None:
    np.save(folder / "set.000" / "coord.npy", np.zeros((0, 9)))


def _pickle(folder: Path) -> None:
    np.save(folder / "set.000" / "energy.npy", np.array([None, 1, 2]), allow_pickle=True)


def _no_sets(folder: Path) -> None:
    (folder / "set.000").rename(folder / "backup")


OPEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, r"force\.npy: truncated, \d+ bytes on disk, \d+ needed"),
    "shape": (_shape, r"force\.npy: shape \(3, 6\), expected \(3, 9\)"),
    "rows": (_rows, r"energy\.npy: shape \(2,\), expected \(3, 1\)"),
    "atoms": (_atoms, r"coord\.npy: shape \(3, 9\), expected \(3, 12\).*\(4 atoms\)"),
    "type": (_type, r"type 2 is outside .* 2 names \(0 to 1\): O H"),
    "zero frames": (_zero_frames, r"set\.000: zero frames"),
    "not numbers": (_pickle, r"energy\.npy: holds object, expected numbers"),
    "not npy": (lambda f: (f / "set.000" / "coord.npy").write_text("hello"), "not a readable"),
    "empty npy": (lambda f: (f / "set.000" / "coord.npy").write_bytes(b""), "not a readable"),
    "no coord": (lambda f: (f / "set.000" / "coord.npy").unlink(), "coord.npy is missing"),
    "no box": (lambda f: (f / "set.000" / "box.npy").unlink(), "box.npy is missing.*nopbc"),
    "no sets": (_no_sets, r"no set\.\* folder"),
    "type.raw": (lambda f: (f / "type.raw").write_text("O H H"), "one integer per atom"),
    "twice": (lambda f: (f / "type_map.raw").write_text("O O"), "names O twice"),
}


@pytest.mark.parametrize("case", OPEN)
def test_found_when_opened(tmp_path: Path, case: str) -> None:
    folder = write_system(tmp_path / "sys")
    spoil, expected = OPEN[case]
    spoil(folder)
    with pytest.raises(DataError, match=expected) as error:
        open_dataset([folder])
    assert str(folder) in message(error.value)


READ: dict[str, tuple[str, object, float, str]] = {
    "NaN force": ("force", (1, 4), np.nan, r"set\.000 frame 1: force\[1, 1\] is nan"),
    "inf energy": ("energy", 1, np.inf, r"set\.000 frame 1: energy is inf"),
    "NaN virial": ("virial", (1, 0), np.nan, r"frame 1: virial\[0, 0\] is nan"),
    "NaN coord": ("coord", (1, 0), np.nan, r"frame 1: coord\[0, 0\] is nan"),
    "flat cell": ("box", (1, 8), 0.0, r"frame 1: the cell has a volume of 0 Å³.*nopbc"),
}


@pytest.mark.parametrize("case", READ)
def test_found_when_a_frame_is_read(tmp_path: Path, case: str) -> None:
    folder = write_system(tmp_path / "sys")
    name, place, value, expected = READ[case]
    edit(folder / "set.000" / f"{name}.npy", place, value)
    data = open_dataset([folder])
    assert data[0].energy is not None  # the other frames are fine
    with pytest.raises(DataError, match=expected) as error:
        data[1]
    assert str(folder) in message(error.value)


def test_unknown_element_names_element_file_and_map(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "sys")
    with pytest.raises(DataError, match=r"element 'H' not in type_map \['O', 'Cu'\]") as error:
        open_dataset([folder], ["O", "Cu"])
    assert str(folder) in message(error.value)
    mixed = write_system(tmp_path / "m", real_atom_types=[[0, 0, 1]] * 3)
    with pytest.raises(DataError, match="element 'H' not in type_map"):
        open_dataset([mixed], ["O", "Cu"])


def test_mixed_needs_type_map_and_valid_types(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "m", real_atom_types=[[0, 1, 1]] * 2 + [[0, 1, 7]])
    with pytest.raises(DataError, match=r"real_atom_types\.npy frame 2: type 7 is outside"):
        open_dataset([folder], ["O", "H"])[2]
    with pytest.raises(DataError, match=r"real_atom_types\.npy: type 7 is outside"):
        _ = open_dataset([folder], ["O", "H"]).natoms
    (folder / "type_map.raw").unlink()
    with pytest.raises(DataError, match=r"type_map\.raw is missing"):
        open_dataset([folder], ["O", "H"])


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset([tmp_path / "nothing"])
    with pytest.raises(DataError, match="holds no data"):
        open_dataset([tmp_path])
    with pytest.raises(DataError, match="list of systems is empty"):
        open_dataset([])
    with pytest.raises(DataError, match="fmt 'xzy' is unknown; allowed: deepmd/npy"):
        open_dataset([tmp_path], fmt="xzy")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="in no supported format"):
        open_dataset([tmp_path / "notes.txt"])
    folder = write_system(tmp_path / "sys")
    with pytest.raises(DataError, match="not mixed"):
        open_dataset([folder], fmt="deepmd/npy/mixed")


def test_broken_extxyz(tmp_path: Path) -> None:
    cases = {
        "2\nProperties=species:S:1:pos:R:3\nH 0 0 0\n": "truncated at atom 1 of 2",
        "1\nProperties=species:S:1:pos:R:3\nQq 0 0 0\n": "unknown element 'Qq'",
        "1\nenergy=cheap Properties=species:S:1:pos:R:3\nH 0 0 0\n": "energy = 'cheap' is not",
        "1\nProperties=species:S:1:pos:R:3:forces:R:3\nH 0 0 0 1 nan 0\n": r"force\[0, 1\] is nan",
        "1\nenergy=1 energy_unit=furlong Properties=species:S:1:pos:R:3\nH 0 0 0\n": "furlong",
        "1\nProperties=species:S:1:pos:R:3\nH 0 0 x\n": "not valid extxyz",
        '1\nLattice="1 0 0 1 0 0 0 0 1" Properties=species:S:1:pos:R:3\nH 0 0 0\n': "volume of 0",
        '1\nREF_stress="1 2 3" Properties=species:S:1:pos:R:3\nH 0 0 0\n': "Voigt",
        "1\nProperties=species:S:1:pos:R:3\nH 0 0 0\nnonsense\n": "is not a number of atoms",
    }
    for text, expected in cases.items():
        path = tmp_path / "bad.xyz"
        path.write_text(text)
        with pytest.raises(DataError, match=expected) as error:
            open_dataset([path])[0]
        assert str(path) in message(error.value)


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    data = open_dataset([write_system(tmp_path / "sys")])
    edit(tmp_path / "sys" / "set.000" / "force.npy", (2, 0), np.nan)
    with pytest.raises(DataError, match="frame 2"):
        write_mixed((data[k] for k in range(3)), data.type_map, tmp_path / "out")
    with pytest.raises(DataError, match="no frames"):
        write_mixed([], data.type_map, tmp_path / "out")
    with pytest.raises(DataError, match="source names 1 frames"):
        write_mixed([data[0], data[1]], data.type_map, tmp_path / "out", source=["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["sys"]
