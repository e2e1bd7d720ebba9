"""Collect: filters at their limits, duplicates, splits, bad files, the table."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from dpa_core.config import parse_config
from dpa_core.data import open_dataset
from dpa_core.errors import ConfigError, DataError
from ops.collect import CollectConfig, CollectInputs, run_collect
from ops.filters import Filters, fingerprint, first_failed, reduced_formula
from tests.ops.helpers import TYPES, make_frame, write


def config(**blocks):
    return parse_config(CollectConfig, blocks, "test")


def run(tmp_path, **blocks):
    return run_collect(CollectInputs(), config(**blocks), tmp_path / "out")


def names(frame):
    return [TYPES[t] for t in frame.atype]


def test_reduced_formula():
    assert reduced_formula(["Ni", "Al", "Ni", "Al"]) == "AlNi"
    assert reduced_formula(["Cu", "Al", "Cu", "Cu"]) == "AlCu3"
    assert reduced_formula(["Cu"] * 5) == "Cu"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"max_force": 4.9}, "max_force"),
        ({"max_force": 5.1}, None),
        ({"max_atoms": 1}, "max_atoms"),
        ({"max_atoms": 2}, None),
        ({"energy_per_atom": [-4.4, 0]}, None),
        ({"energy_per_atom": [-3.9, 0]}, "energy_per_atom"),
        ({"elements": ["Al"]}, "elements"),
        ({"elements": ["Al", "Ni", "Cu"]}, None),
        ({"require": ["virial"]}, "labels"),
        # the pair is 1.5 Å apart through the cell border; Al 1.21 Å + Ni 1.24 Å = 2.45 Å
        ({"min_distance": 1.49}, None),
        ({"min_distance": 1.51}, "min_distance"),
        ({"min_distance_covalent": 0.61}, None),
        ({"min_distance_covalent": 0.62}, "min_distance"),
    ],
)
def test_filters_at_their_limits(filters, expected):
    frame = make_frame([0, 1])._replace(
        coord=np.array([[0.5, 0, 0], [9.0, 0, 0]]),
        box=np.eye(3) * 10,
        force=np.array([[3.0, 4.0, 0.0], [0, 0, 0]]),  # length 5, components below
        virial=None,
    )
    assert first_failed(frame, names(frame), parse_config(Filters, filters, "test")) == expected


def test_coincident_atoms_are_too_close():
    frame = make_frame([0, 1])._replace(coord=np.zeros((2, 3)))
    assert first_failed(frame, names(frame), Filters(min_distance=0.1)) == "min_distance"


def test_fingerprint_knows_what_is_the_same():
    frame = make_frame([0, 1, 2, 0], seed=3)
    key = fingerprint(frame, names(frame))
    order = np.array([3, 1, 0, 2])
    moved = frame.coord + np.array([[1, -2, 0], [0, 0, 3], [5, 0, 0], [0, 0, 0]]) @ frame.box
    noise = 1e-9 * np.random.default_rng(0).normal(size=moved.shape)
    same = frame._replace(coord=(moved + noise)[order], atype=frame.atype[order])
    assert fingerprint(same, names(same)) == key
    others = [
        frame._replace(coord=frame.coord + 0.01 * (np.arange(4) == 2)[:, None]),
        frame._replace(atype=np.array([0, 1, 2, 1])),
        frame._replace(box=frame.box * 1.001),
        frame._replace(box=None),
    ]
    assert len({key, *(fingerprint(o, names(o)) for o in others)}) == 5


@pytest.mark.parametrize("denominator", [2, 3, 7, 16, 32, 64, 128])
def test_fingerprint_of_symmetric_positions_ignores_rounding(denominator):
    fractional = np.arange(denominator)[:, None] * np.ones(3) / denominator
    box = np.diag([3.6, 7.2, 28.8])
    frame = make_frame([0] * denominator)._replace(coord=fractional @ box, box=box)
    jitter = np.random.default_rng(1).choice([-1e-10, 1e-10], size=fractional.shape)
    other = frame._replace(coord=(fractional + jitter) @ box)
    assert fingerprint(frame, names(frame)) == fingerprint(other, names(other))


def test_table_says_what_came_from_where(tmp_path):
    good = [make_frame([0, 1], seed) for seed in range(6)]
    hot = [make_frame([1, 2], seed, force=50.0) for seed in range(3)]
    again = good[2]._replace(coord=good[2].coord[::-1], atype=good[2].atype[::-1])
    conflict = good[4]._replace(energy=good[4].energy + 0.1)
    write(good + hot, tmp_path / "one")
    write([again, conflict, make_frame([2, 2])], tmp_path / "two")
    report = run(
        tmp_path,
        sources=[{"path": f"{tmp_path}/one", "label": "first"}, {"path": f"{tmp_path}/tw*"}],
        filters={"max_force": 5},
        split={"valid": 2, "test": 1, "unit": "frames"},
    )
    first, second, total = report.table
    assert (first["found"], first["max_force"], first["duplicates"], first["kept"]) == (9, 3, 0, 6)
    assert (second["found"], second["duplicates"], second["kept"]) == (3, 2, 1)
    assert (total["train"], total["valid"], total["test"], total["unused"]) == (4, 2, 1, 0)
    assert first["source"] == "first"
    assert second["source"].endswith("tw*")
    out = tmp_path / "out"
    document = json.loads((out / "collect.json").read_text())
    assert document["label_conflicts"]["count"] == 1
    assert len(document["rejected"]["first"]["max_force"]) == 3
    with (out / "collect.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["kept"]) for row in rows] == [6, 1, 7]
    parts = [open_dataset([out / part]) for part in ("train", "valid", "test")]
    assert [len(p) for p in parts] == [4, 2, 1]
    written = sorted(float(e) for p in parts for e in p.energies(range(len(p))))
    assert written == sorted([-8.0] * 6 + [-8.0])


def test_written_frames_are_the_frames_read(tmp_path):
    """Elements are renamed into another type map without touching the numbers."""
    frames = [make_frame([0, 2, 2], seed) for seed in range(3)]
    write(frames, tmp_path / "in")
    run(tmp_path, sources=[{"path": f"{tmp_path}/in"}], type_map=["Cu", "Zn", "Al"])
    data = open_dataset([tmp_path / "out/train"], type_map=["Cu", "Zn", "Al"])
    found = [data[k] for k in range(3)]
    order = [next(i for i, g in enumerate(found) if np.allclose(g.coord, f.coord)) for f in frames]
    for frame, k in zip(frames, order, strict=True):
        assert found[k].atype.tolist() == [2, 0, 0]
        np.testing.assert_allclose(found[k].force, frame.force)
        np.testing.assert_allclose(found[k].virial, frame.virial)
        assert found[k].energy == frame.energy


def test_bad_files_stop_or_are_listed(tmp_path):
    write([make_frame([0, 1], seed) for seed in range(3)], tmp_path / "data/good")
    write([make_frame([1, 2], seed) for seed in range(3)], tmp_path / "data/broken")
    write([make_frame([1, 2, 2], 0)], tmp_path / "data/nan")
    broken = next((tmp_path / "data/broken").rglob("force.npy"))
    broken.write_bytes(broken.read_bytes()[:100])
    energy = next((tmp_path / "data/nan").rglob("energy.npy"))
    np.save(energy, np.array([np.nan]))
    sources = [{"path": f"{tmp_path}/data"}]
    with pytest.raises(DataError, match=r"on_bad: skip") as error:
        run(tmp_path, sources=sources)
    assert "broken" in str(error.value)
    assert "nan" in str(error.value).lower()
    assert not (tmp_path / "out").exists()
    report = run(tmp_path, sources=sources, on_bad="skip")
    assert report.table[-1]["kept"] == 3
    assert any("broken" in item["name"] + item["reason"] for item in report.details["bad"])


def test_nothing_left_is_an_error_with_counts(tmp_path):
    write([make_frame([0, 1], seed) for seed in range(4)], tmp_path / "in")
    with pytest.raises(DataError, match="found 4; max_force 4"):
        run(tmp_path, sources=[{"path": f"{tmp_path}/in"}], filters={"max_force": 1e-6})


def test_too_few_frames_for_the_draws_of_later_is_an_error(tmp_path):
    write([make_frame([0, 1], seed) for seed in range(4)], tmp_path / "in")
    run(tmp_path, sources=[{"path": f"{tmp_path}/in"}], min_train=4)
    with pytest.raises(DataError, match="4 training frames are left, 5 are needed"):
        run(tmp_path, sources=[{"path": f"{tmp_path}/in"}], min_train=5)


def test_element_outside_the_type_map_names_frame_and_element(tmp_path):
    write([make_frame([0, 1])], tmp_path / "in")
    with pytest.raises(DataError, match=r"frame 0.*element Ni is not in type_map"):
        run(tmp_path, sources=[{"path": f"{tmp_path}/in"}], type_map=["Al", "Cu"])


def test_missing_path(tmp_path):
    with pytest.raises(DataError, match="nothing matches"):
        run(tmp_path, sources=[{"path": f"{tmp_path}/nowhere"}])


def test_misspelt_key_is_explained():
    with pytest.raises(ConfigError, match="did you mean 'max_force'"):
        config(sources=[{"path": "x"}], filters={"max_forces": 3})


def test_unconverged_dft_output_is_named(tmp_path, shared):
    """A real calculation whose SCF did not converge, beside a good one of another code."""
    samples = shared / "data/raw_samples"
    bad = samples / "gaussian/noncoveraged.gaussianlog"
    sources = [{"path": str(bad)}, {"path": str(samples / "vasp/OUTCAR.h2o.md.10")}]
    with pytest.raises(DataError, match=r"noncoveraged\.gaussianlog.*not converged"):
        run(tmp_path, sources=sources)
    report = run(tmp_path, sources=sources, on_bad="skip")
    assert [row["kept"] for row in report.table] == [0, 10, 10]
    assert report.table[0]["unreadable"] == 1
