"""The neighbour search against ASE's, an independent code, and `sel` against brute force."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa_core.batch import NeighborCache, make_batch
from dpa_core.derivatives import neighbor_vectors
from dpa_core.errors import DataError
from dpa_core.frames import Frame
from dpa_core.neighbors import (
    NeighborSpec,
    _stable_order,
    neighbor_pairs,
    neighbor_table,
    search_pairs,
    table_of_pairs,
)

CELLS = {
    "cubic": np.diag([4.0, 4.0, 4.0]),
    "left-handed": np.diag([4.0, 4.0, 4.0])[[1, 0, 2]],
    "negative diagonal": np.diag([4.0, -4.5, 5.0]),
    "skewed": np.array([[3.1, 0.2, -0.1], [1.4, 2.9, 0.3], [0.9, -1.1, 3.3]]),
    "skewed left-handed": np.array([[1.4, 2.9, 0.3], [3.1, 0.2, -0.1], [0.9, -1.1, 3.3]]),
    "needle": np.array([[2.5, 0.0, 0.0], [2.4, 2.5, 0.0], [0.0, 0.0, 25.0]]),
    "very skewed": np.array([[3.0, 0.0, 0.0], [8.0, 3.0, 0.0], [-7.0, 5.0, 3.0]]),
}


def by_ase(coord, box, rcut):
    atoms = Atoms(positions=coord, cell=box, pbc=box is not None)
    return neighbor_list("ijS", atoms, rcut)


def as_set(i, j, shift):
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shift, strict=True)}


def assert_same_pairs(coord, box, rcut) -> int:
    i, j, shift, distance = neighbor_pairs(coord, box, rcut)
    found = as_set(i, j, shift)
    assert len(found) == len(i), "a pair is listed twice"
    assert found == as_set(*by_ase(coord, box, rcut))
    translation = 0 if box is None else shift @ box
    lengths = np.linalg.norm(coord[j] + translation - coord[i], axis=1)
    np.testing.assert_allclose(distance, lengths, rtol=0, atol=1e-10)
    return len(i)


@pytest.mark.parametrize("rcut", [2.0, 3.5, 6.0, 9.0])
@pytest.mark.parametrize("name", CELLS)
def test_pairs(name: str, rcut: float) -> None:
    box = CELLS[name]
    rng = np.random.default_rng(4)
    for natoms in (1, 5):
        coord = rng.uniform(-1.5, 2.5, (natoms, 3)) @ box  # atoms far outside the cell, too
        assert assert_same_pairs(coord, box, rcut) > 0 or rcut < 4


@pytest.mark.parametrize("rcut", [1.0, 3.5, 50.0])
def test_pairs_without_box(rcut: float) -> None:
    coord = np.random.default_rng(4).uniform(-4, 4, (12, 3))
    assert_same_pairs(coord, None, rcut)
    assert len(neighbor_pairs(coord[:1], None, rcut)[0]) == 0
    assert len(neighbor_pairs(coord[:0], None, rcut)[0]) == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    entries=st.lists(st.floats(-4, 4), min_size=9, max_size=9),
    natoms=st.integers(1, 4),
    rcut=st.floats(0.5, 5.0),
    seed=st.integers(0, 1000),
)
def test_pairs_of_random_cells(entries, natoms, rcut, seed) -> None:
    box = np.array(entries).reshape(3, 3)
    sides = np.linalg.norm(box, axis=1)
    if sides.min() < 1e-3 or abs(np.linalg.det(box)) < 0.05 * sides.prod() or sides.min() < 1:
        return
    coord = np.random.default_rng(seed).uniform(-1, 2, (natoms, 3)) @ box
    # Pairs within rounding of rcut may fall on either side.
    reach = neighbor_pairs(coord, box, rcut + 1e-6)[3]
    if not np.any(np.abs(reach - rcut) < 1e-6):
        assert_same_pairs(coord, box, rcut)


def test_flat_cell_is_an_error() -> None:
    flat = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0]])
    with pytest.raises(DataError, match="neighbour search failed"):
        neighbor_pairs(np.zeros((1, 3)), flat, 3.0)


def dense_frame() -> Frame:
    rng = np.random.default_rng(8)
    box = CELLS["skewed left-handed"]
    return Frame(rng.uniform(0, 1, (5, 3)) @ box, np.array([0, 1, 1, 2, 0]), box)


def nearest(frame: Frame, atom: int, rcut: float) -> list[tuple[float, int]]:
    """(distance, type) of an atom's neighbours by ASE, nearest first."""
    i, j, shift = by_ase(frame.coord, frame.box, rcut)
    own = i == atom
    vectors = frame.coord[j[own]] + shift[own] @ frame.box - frame.coord[atom]
    return sorted(
        (round(float(np.linalg.norm(v)), 9), int(t))
        for v, t in zip(vectors, frame.atype[j[own]], strict=True)
    )


def kept(frame: Frame, spec: NeighborSpec, atom: int) -> list[tuple[float, int]]:
    batch = make_batch([frame], spec)
    mask = batch.mask[atom].numpy()
    lengths = neighbor_vectors(batch)[atom].norm(dim=-1).numpy()[mask]
    types = frame.atype[batch.index[atom].numpy()[mask]]
    return sorted((round(float(r), 9), int(t)) for r, t in zip(lengths, types, strict=True))


def test_sel_keeps_the_nearest() -> None:
    frame, rcut = dense_frame(), 3.5
    total = 0
    for atom in range(5):
        everything = nearest(frame, atom, rcut)
        total += len(everything)
        assert kept(frame, NeighborSpec(rcut), atom) == everything
        limited = kept(frame, NeighborSpec(rcut, (7,)), atom)
        assert [r for r, _ in limited] == [r for r, _ in everything[:7]]
    spec = NeighborSpec(rcut, (7,))
    assert neighbor_table(frame, spec).dropped == total - 5 * 7
    assert neighbor_table(frame, NeighborSpec(rcut, (total,))).dropped == 0


def test_sel_of_each_type() -> None:
    """As DeePMD-kit: the nearest sum(sel) of all types, of these the nearest of each type."""
    frame, rcut, sel = dense_frame(), 3.5, (3, 5, 2)
    for atom in range(5):
        room, expected = list(sel), []
        for r, t in nearest(frame, atom, rcut)[: sum(sel)]:
            if room[t]:
                room[t] -= 1
                expected.append((r, t))
        assert [r for r, _ in kept(frame, NeighborSpec(rcut, sel, False), atom)] == [  # noqa: FBT003
            r for r, _ in sorted(expected)
        ]


def test_overflow_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    frame = dense_frame()
    cache = NeighborCache(NeighborSpec(3.5, (7,)))
    with caplog.at_level(logging.WARNING):
        cache.batch([frame, frame], [0, 1])
    assert cache.dropped == 2 * neighbor_table(frame, cache.spec).dropped > 0
    assert "sel" in caplog.text
    assert "descriptor.sel is [7]" in caplog.text


def test_virtual_atoms_are_nobodys_neighbours() -> None:
    frame = dense_frame()
    with_ghosts = frame._replace(
        coord=np.concatenate([frame.coord[:1] + 0.1, frame.coord]),
        atype=np.concatenate([[-1], frame.atype]),
    )
    spec = NeighborSpec(3.5)
    table = neighbor_table(with_ghosts, spec)
    assert not table.mask[0].any()
    assert not (table.mask & (table.index == 0)).any()
    assert table.mask.sum() == neighbor_table(frame, spec).mask.sum()


def test_table_is_as_wide_as_needed() -> None:
    frame = dense_frame()
    counts = np.bincount(by_ase(frame.coord, frame.box, 3.5)[0])
    assert neighbor_table(frame, NeighborSpec(3.5, (500,))).index.shape == (5, counts.max())


@pytest.mark.parametrize("sel", [(), (30, 30, 30), (3, 5, 2)])
def test_a_row_holds_its_neighbours_first_and_by_type(sel) -> None:
    frame = dense_frame()
    table = neighbor_table(frame, NeighborSpec(3.5, sel, mixed_types=False))
    for row, mask in zip(table.index, table.mask, strict=True):
        assert (mask == (np.arange(len(mask)) < mask.sum())).all()
        assert (np.diff(frame.atype[row[mask]]) >= 0).all()


@pytest.mark.parametrize("spec", [NeighborSpec(3.0), NeighborSpec(3.0, (6,))])
def test_a_wider_search_gives_the_same_table(spec) -> None:
    """What the calculator does from step to step."""
    frame = dense_frame()
    wide = search_pairs(frame, spec, 4.0)
    near = wide.select(wide.distances(frame.coord, frame.box) <= spec.rcut)
    ours, theirs = table_of_pairs(near, frame, spec), neighbor_table(frame, spec)
    assert ours.dropped == theirs.dropped
    for a, b in zip(rows_of(ours), rows_of(theirs), strict=True):
        assert a == b


def rows_of(table) -> list[set[tuple[int, ...]]]:
    return [
        {(int(j), *map(int, s)) for j, s in zip(row[mask], shift[mask], strict=True)}
        for row, shift, mask in zip(table.index, table.shift, table.mask, strict=True)
    ]


def test_the_order_of_neighbours_is_that_of_the_frame_alone() -> None:
    frame, other = dense_frame(), dense_frame()._replace(atype=np.array([2, 2, 1, 0, 0]))
    spec = NeighborSpec(3.5, (7,))
    alone, joint = make_batch([frame], spec), make_batch([other, frame, other], spec)
    assert (alone.index == joint.index[5:10] - 5).all()
    assert (alone.shift == joint.shift[5:10]).all()


@pytest.mark.parametrize("bound", [1, 3, 1 << 16, (1 << 16) + 1, 1 << 40])
def test_stable_order(bound: int) -> None:
    keys = np.random.default_rng(1).integers(0, bound, 5000)
    keys[::2] = keys[1]
    assert (_stable_order(keys, bound) == np.argsort(keys, kind="stable")).all()


def test_atoms_too_far_apart_are_an_error() -> None:
    frame = Frame(np.array([[0.0, 0, 0], [5e5, 0, 0]]), np.zeros(2, int), 4 * np.eye(3))
    with pytest.raises(DataError, match="wrap the coordinates"):
        neighbor_table(frame, NeighborSpec(5.0))
