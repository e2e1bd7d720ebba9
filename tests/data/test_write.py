"""The mixed writer, read back by this package and by dpdata; HDF5 as dpdata writes it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from dpa_core.data import find_systems, open_dataset, write_mixed
from dpa_core.errors import DataError
from dpa_core.frames import Frame

from .helpers import write_system


def _frames() -> list[Frame]:
    rng = np.random.default_rng(3)
    frames = []
    for k, natoms in enumerate((2, 3, 2, 3)):
        frames.append(
            Frame(
                coord=rng.random((natoms, 3)) * 3,
                atype=rng.integers(0, 3, natoms),
                box=3 * np.eye(3) + 0.1 * rng.random((3, 3)),
                energy=1e5 + rng.random() if k != 3 else None,
                force=rng.random((natoms, 3)),
                virial=rng.random((3, 3)),
            )
        )
    return [*frames, frames[0]._replace(box=None, virial=None)]


def test_round_trip_is_exact(tmp_path: Path) -> None:
    frames = _frames()
    names = [f"run, {k}" for k in range(5)]
    folders = write_mixed(frames, ["H", "Cu", "Xx"], tmp_path / "out", source=names)
    assert [f.name for f in folders] == ["0002", "0002-2", "0003", "0003-2"]
    data = open_dataset(folders, ["Xx", "Cu", "H"])
    rows = [
        row
        for folder in folders
        for row in csv.DictReader((folder / "frames.csv").read_text().splitlines())
    ]
    assert len(rows) == len(data) == 5
    for k, row in enumerate(rows):
        mine, back = frames[names.index(row["source"])], data[k]
        assert int(row["natoms"]) == len(mine.atype)
        assert [("Xx", "Cu", "H")[t] for t in back.atype] == [
            ("H", "Cu", "Xx")[t] for t in mine.atype
        ]
        for name in ("coord", "box", "energy", "force", "virial"):
            np.testing.assert_array_equal(getattr(back, name), getattr(mine, name))


def test_float32_keeps_energy_in_double(tmp_path: Path) -> None:
    frames = _frames()[:1]
    (folder,) = write_mixed(frames, ["H", "Cu", "O"], tmp_path / "out", dtype="float32")
    assert np.load(folder / "set.000" / "force.npy").dtype == np.float32
    assert np.load(folder / "set.000" / "energy.npy").dtype == np.float64
    assert open_dataset([folder])[0].energy == frames[0].energy
    with pytest.raises(DataError, match="is not empty"):
        write_mixed(frames, ["H", "Cu", "O"], tmp_path / "out")


def test_dpdata_reads_what_is_written(tmp_path: Path) -> None:
    import dpdata

    frames = [f for f in _frames() if f.energy is not None and f.box is not None]
    write_mixed(frames, ["H", "Cu", "O"], tmp_path / "out")
    energies = []
    for folder in sorted((tmp_path / "out").iterdir()):
        systems = dpdata.MultiSystems()
        systems.load_systems_from_file(str(folder), fmt="deepmd/npy/mixed")
        energies += [e for s in systems for e in s["energies"]]
    assert sorted(energies) == sorted(f.energy for f in frames)


def test_hdf5_of_dpdata(tmp_path: Path) -> None:
    import dpdata

    folder = write_system(tmp_path / "O1H2", nframes=4)
    other = write_system(tmp_path / "Cu2", atype=(0, 0), type_map=("Cu",), seed=1)
    (other / "nopbc").touch()
    file = tmp_path / "data.hdf5"
    systems = dpdata.MultiSystems(*(
        dpdata.LabeledSystem(str(f), fmt="deepmd/npy") for f in (folder, other)
    ))  # fmt: skip
    systems.to("deepmd/hdf5", str(file))
    groups = [name for name, _ in find_systems(file)]
    assert len(groups) == 2
    assert all(name.startswith(f"{file}#/") for name in groups)
    whole = open_dataset([file], ["Cu", "H", "O"])
    assert len(whole) == 7
    (group,) = [g for g in groups if "H2" in g.rpartition("#")[2]]
    water = open_dataset([group], ["Cu", "H", "O"])
    reference = open_dataset([folder], ["Cu", "H", "O"])
    assert len(water) == 4
    for k in range(4):
        # dpdata may sort the types, so compare atom by atom of each type
        mine, theirs = water[k], reference[k]
        for t in range(3):
            np.testing.assert_allclose(mine.force[mine.atype == t], theirs.force[theirs.atype == t])
        assert mine.energy == pytest.approx(theirs.energy, abs=1e-12)
        np.testing.assert_allclose(mine.virial, theirs.virial)
    assert water.energies([3, 0]).tolist() == [water[3].energy, water[0].energy]
    assert open_dataset([next(g for g in groups if g != group)])[0].box is None
    with pytest.raises(DataError, match="has no group /nothing"):
        open_dataset([f"{file}#/nothing"])


def test_broken_hdf5_does_not_hide_its_neighbours(tmp_path: Path) -> None:
    import h5py

    write_system(tmp_path / "good")
    with h5py.File(tmp_path / "other.h5", "w") as file:  # no deepmd data: passed over
        file["x"] = [1, 2]
    assert len(find_systems(tmp_path)) == 1
    (tmp_path / "broken.hdf5").write_bytes((tmp_path / "other.h5").read_bytes()[:900])
    assert len(find_systems(tmp_path)) == 2
    with pytest.raises(DataError, match=r"broken\.hdf5: not a readable HDF5 file"):
        open_dataset([tmp_path])
    with pytest.raises(DataError, match=r"other\.h5: no group with type\.raw"):
        open_dataset([tmp_path / "other.h5"])
