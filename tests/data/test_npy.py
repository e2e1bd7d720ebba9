"""deepmd/npy and npy/mixed: values against arrays written by hand, laziness, views."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dpa_core.data import formula, merge_type_maps, open_dataset
from dpa_core.data.npy import MAPS, _mapped
from dpa_core.errors import DataError

from .helpers import write_system


def test_values_and_type_remapping(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "water", sets=2)
    data = open_dataset([folder], ["H", "X1", "O"])
    assert len(data) == 6
    frame = data[4]
    raw = {n: np.load(folder / "set.001" / f"{n}.npy")[1] for n in ("coord", "force", "virial")}
    np.testing.assert_array_equal(frame.coord, raw["coord"].reshape(3, 3))
    np.testing.assert_array_equal(frame.force, raw["force"].reshape(3, 3))
    np.testing.assert_array_equal(frame.virial, raw["virial"].reshape(3, 3))
    assert frame.energy == np.load(folder / "set.001" / "energy.npy")[1]
    assert frame.atype.tolist() == [2, 0, 0]
    assert frame.box.tolist() == (4 * np.eye(3)).tolist()
    assert data.name(4) == f"{folder}/set.001 frame 1"
    assert data.counts([0, 5]).tolist() == [[2, 0, 1], [2, 0, 1]]
    assert data.natoms.tolist() == [3] * 6


def test_type_map_is_union_by_atomic_number(tmp_path: Path) -> None:
    write_system(tmp_path / "a", type_map=("O", "H"))
    write_system(tmp_path / "b", type_map=("Cu", "Li", "Fe"), atype=(0, 1, 1))
    write_system(tmp_path / "c", type_map=("wall", "H"))
    data = open_dataset([tmp_path])
    assert data.type_map == ("H", "Li", "O", "Cu", "wall")  # Fe does not occur
    assert merge_type_maps(["Au", "H", "zz"]) == ("H", "Au", "zz")


def test_missing_labels_differ_between_sets(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "s", sets=2)
    (folder / "set.000" / "energy.npy").unlink()
    (folder / "set.001" / "virial.npy").unlink()
    data = open_dataset([folder])
    assert data[0].energy is None
    assert data[0].virial is not None
    assert data[3].energy is not None
    assert data[3].virial is None
    np.testing.assert_array_equal(np.isnan(data.energies()), [True] * 3 + [False] * 3)


def test_mixed_drops_virtual_atoms(tmp_path: Path) -> None:
    types = [[0, 1, -1], [2, 2, 2], [-1, 1, 0]]
    folder = write_system(
        tmp_path / "m", atype=(0, 0, 0), type_map=("H", "Cu", "O", "Xe"), real_atom_types=types
    )
    np.save(folder / "set.000" / "atom_ener.npy", np.arange(9.0).reshape(3, 3))
    data = open_dataset([folder], ["Cu", "O", "H"])  # Xe is not used, so it may be missing
    assert data.natoms.tolist() == [2, 3, 2]
    assert [data[k].atype.tolist() for k in range(3)] == [[2, 0], [1, 1, 1], [0, 2]]
    coord = np.load(folder / "set.000" / "coord.npy").reshape(3, 3, 3)
    np.testing.assert_array_equal(data[2].coord, coord[2, 1:])
    assert data[2].atom_energy.tolist() == [7.0, 8.0]
    assert data.counts().tolist() == [[1, 0, 1], [0, 3, 0], [1, 0, 1]]
    assert data.counts([2, 1]).tolist() == [[1, 0, 1], [0, 3, 0]]
    assert data.subset([2, 1, 0]).natoms.tolist() == [2, 3, 2]
    assert data.subset([1, 2]).counts().tolist() == [[0, 3, 0], [1, 0, 1]]
    empty = data.subset([])
    assert (len(empty), empty.systems, empty.energies().tolist()) == (0, (), [])


def test_numb_copy_repeats_and_drops(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "s", nframes=3)
    np.save(folder / "set.000" / "numb_copy.npy", np.array([2, 0, 1]))
    data = open_dataset([folder])
    energy = np.load(folder / "set.000" / "energy.npy")
    assert data.energies().tolist() == energy[[0, 0, 2]].tolist()
    assert [data[k].energy for k in range(3)] == energy[[0, 0, 2]].tolist()


def test_nopbc_and_parameters(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "s")
    (folder / "nopbc").touch()
    np.save(folder / "set.000" / "fparam.npy", np.arange(6.0).reshape(3, 2))
    np.save(folder / "set.000" / "aparam.npy", np.arange(18.0).reshape(3, 6))
    frame = open_dataset([folder])[1]
    assert frame.box is None
    assert frame.fparam.tolist() == [2.0, 3.0]
    assert frame.aparam.tolist() == [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]


def test_float32_fortran_order_and_left_handed_cell(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "s")
    path = folder / "set.000" / "coord.npy"
    coord = np.load(path)
    np.save(path, np.asfortranarray(coord.astype(np.float32)))
    np.save(folder / "set.000" / "box.npy", np.tile(np.diag([4.0, 4.0, -4.0]).ravel(), (3, 1)))
    frame = open_dataset([folder])[1]
    assert frame.coord.dtype == np.float64
    np.testing.assert_array_equal(frame.coord.ravel(), coord[1].astype(np.float32))
    assert np.linalg.det(frame.box) == pytest.approx(-64)


def test_type_map_raw_missing_takes_given_map(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "s", type_map=None)
    assert open_dataset([folder], ["Cu", "Ag"])[0].atype.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match=r"type_map\.raw is missing"):
        open_dataset([folder])
    with pytest.raises(DataError, match="type 1 is outside"):
        open_dataset([folder], ["Cu"])


def test_subset_views(tmp_path: Path) -> None:
    for k, name in enumerate("abc"):
        write_system(tmp_path / name, nframes=4, seed=k, atype=(0,) + (1,) * k)
    data = open_dataset([tmp_path])
    energy = data.energies()
    part = data.subset([9, 0, 11]).subset([2, 0])
    assert [part[k].energy for k in range(2)] == energy[[11, 9]].tolist()
    assert part.energies().tolist() == energy[[11, 9]].tolist()
    assert part.natoms.tolist() == [3, 3]
    assert [(s.name, s.first, s.nframes) for s in part.systems] == [(str(tmp_path / "c"), 0, 2)]
    assert part.system_of(1) == 0
    assert [(s.first, s.nframes, s.natoms) for s in data.systems] == [
        (0, 4, 1), (4, 4, 2), (8, 4, 3),
    ]  # fmt: skip
    assert [data.system_of(k) for k in (0, 4, 11)] == [0, 1, 2]
    with pytest.raises(IndexError):
        data.subset([12])
    with pytest.raises(IndexError):
        data[12]


def sparse_npy(path: Path, shape: tuple[int, ...], dtype: type = np.float64) -> None:
    """A .npy of zeros of which only the header is on disk."""
    with path.open("wb") as stream:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_million_frames_open_without_being_read(tmp_path: Path, mixed: bool) -> None:
    nframes, natoms = 1_000_000, 64
    folder = write_system(tmp_path / "big", atype=(0,) * natoms, type_map=("Cu",))
    data = folder / "set.000"
    for name, width in {"coord": 3 * natoms, "force": 3 * natoms, "box": 9, "virial": 9}.items():
        sparse_npy(data / f"{name}.npy", (nframes, width))
    sparse_npy(data / "energy.npy", (nframes,))
    if mixed:
        sparse_npy(data / "real_atom_types.npy", (nframes, natoms), np.int32)
    np.memmap(data / "box.npy", mode="r+", dtype=float, offset=128)[-9:] = np.eye(3).ravel()
    tracemalloc.start()
    begin = time.perf_counter()
    dataset = open_dataset([folder], ["Cu"])
    frame = dataset[nframes - 1]
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(dataset) == nframes
    assert frame.box.tolist() == np.eye(3).tolist()
    assert seconds < 1.0
    assert peak < 20e6  # the coordinates alone are 1.5 GB


def test_a_file_written_anew_is_another_one(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "s", nframes=5)
    file = folder / "set.000" / "energy.npy"
    before = open_dataset([folder])[2].energy
    energy = np.load(file)
    file.unlink()
    np.save(file, energy + 1)
    assert open_dataset([folder])[2].energy == pytest.approx(before + 1)


def test_maps_are_bounded_and_made_when_needed(tmp_path: Path) -> None:
    """A process may have 65,530 maps; 20,000 systems of five arrays would need more."""
    paths = [write_system(tmp_path / f"s{k}", nframes=2, seed=k) for k in range(3)]
    _mapped.cache_clear()
    data = open_dataset(paths)
    assert len(data.natoms) == 6
    assert _mapped.cache_info().misses == 0
    arrays = len(list((paths[0] / "set.000").glob("*.npy")))
    for k in (0, 1, 0, 1):
        data[k]
    assert _mapped.cache_info().misses == arrays
    assert _mapped.cache_info().maxsize == MAPS < 65_530


def test_used_types_are_those_that_occur(tmp_path: Path) -> None:
    paths = [
        write_system(tmp_path / name, atype=atype, type_map=("H", "O", "Cu"))
        for name, atype in (("a", (0, 0)), ("b", (2, 0)))
    ]
    data = open_dataset(paths, ["O", "Cu", "H"])
    assert data.used() == (1, 2)
    assert data.subset(np.flatnonzero(data.system_index == 0)).used() == (2,)


def test_validate_reports_progress_and_the_bad_frame(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "s", nframes=5)
    seen: list[tuple[int, int]] = []
    open_dataset([folder]).validate(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    energy = np.load(folder / "set.000" / "energy.npy")
    energy[3] = np.inf
    np.save(folder / "set.000" / "energy.npy", energy)
    with pytest.raises(DataError, match=r"set\.000 frame 3: energy is inf"):
        open_dataset([folder]).validate()


def test_formula() -> None:
    assert formula(np.array([1, 0, -1, 1]), ["H", "O"]) == "H1O2"
