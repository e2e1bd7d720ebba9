"""The diverse choice against brute force, by closed forms, and on real descriptors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa_core.committee import Committee
from dpa_core.config import ModelConfig
from dpa_core.data import open_dataset, write_mixed
from dpa_core.interchange.files import save_model
from dpa_core.model import build_model
from ops.select import SelectConfig, SelectInputs, run_select
from ops.selection.diverse import EQUAL, Choice, Coverage, choose, squared_distances
from ops.selection.environments import (
    RATTLE,
    Environments,
    Space,
    blocks,
    describe_all,
    fit_space,
    thin,
)
from ops.selection.levels import AdaptiveLevel, adaptive_lower, classify, settled
from tests.ops.explored import TYPES, bulk, deviations, make_explored


def toy(seed: int, nframes: int, *, dimensions: int = 3) -> Environments:
    """Frames of one to five atoms of two elements at random places."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, nframes)
    start = np.concatenate([[0], np.cumsum(sizes)])
    return Environments(
        rng.normal(size=(start[-1], dimensions)), rng.integers(0, 2, start[-1]), start
    )


def atoms(env: Environments, k: int) -> list[tuple[int, np.ndarray]]:
    rows = range(env.start[k], env.start[k + 1])
    return [(int(env.element[i]), env.x[i]) for i in rows]


def brute_novelty(frame, covered) -> float:
    """Largest over atoms of the smallest distance, atom by atom."""
    worst = 0.0
    for element, x in frame:
        near = [np.linalg.norm(x - y) for other, y in covered if other == element]
        worst = max(worst, min(near, default=np.inf))
    return worst


def brute_entropy(frame, covered, h: float) -> float:
    total = 0.0
    for element, x in frame:
        all_of_it = [y for other, y in [*covered, *frame] if other == element]
        total -= np.log(sum(np.exp(-np.sum((x - y) ** 2) / (2 * h * h)) for y in all_of_it))
    return total / len(frame)


@pytest.mark.parametrize("diversity", ["farthest", "entropy"])
@pytest.mark.parametrize("seed", range(4))
def test_choice_is_that_of_brute_force(diversity: str, seed: int) -> None:
    env, old = toy(seed, 12), toy(100 + seed, 3)
    deviation = np.random.default_rng(seed).random(12)
    covered = [a for k in range(3) for a in atoms(old, k)] if seed else []
    expected, first = [], list(covered)
    while len(expected) < 6:
        frames = {k: atoms(env, k) for k in range(12) if k not in expected}
        score = {
            k: brute_novelty(f, covered)
            if diversity == "farthest"
            else brute_entropy(f, covered, 0.4)
            for k, f in frames.items()
        }
        expected.append(max(frames, key=lambda k: (round(score[k], 9), deviation[k])))
        covered += frames[expected[-1]]
    coverage = Coverage(env, 0.4 if diversity == "entropy" else None)
    if first:
        coverage.cover(old.x, old.element)
    np.testing.assert_allclose(
        coverage.novelty(), [brute_novelty(atoms(env, k), first) for k in range(12)], atol=1e-7
    )
    found = choose(coverage, deviation, diversity=diversity, limit=6, min_new=0.0,
                   rng=np.random.default_rng(0))  # fmt: skip
    assert found.chosen == expected


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    env, old = toy(1, 30), toy(2, 20)
    whole = Coverage(env, 0.5)
    whole.cover(old.x, old.element)
    monkeypatch.setattr("ops.selection.diverse.TILE", 7)
    small = Coverage(env, 0.5)
    small.cover(old.x, old.element)
    np.testing.assert_allclose(small.novelty(), whole.novelty(), rtol=1e-9)
    np.testing.assert_allclose(small.entropy(), whole.entropy(), rtol=1e-9)


def test_entropy_in_closed_form() -> None:
    # frame 0: four equal atoms; frame 1: four atoms far apart; frame 2: two and two
    far = np.arange(4.0)[:, None] * 100
    x = np.concatenate([np.zeros((4, 1)), far, np.repeat(far[:2], 2, axis=0)])
    env = Environments(x, np.zeros(12, dtype=np.int64), np.array([0, 4, 8, 12]))
    coverage = Coverage(env, 1.0)
    np.testing.assert_allclose(coverage.entropy(), [-np.log(4), 0.0, -np.log(2)], atol=1e-12)
    coverage.cover(np.array([[1.0]]), np.zeros(1, dtype=np.int64))
    near = np.exp(-0.5)
    expected = [-np.log(4 + near), -np.log(1 + near) / 4, -(np.log(2 + near) + np.log(2)) / 2]
    np.testing.assert_allclose(coverage.entropy(), expected, atol=1e-12)


@given(
    st.integers(0, 10_000),
    st.integers(1, 15),
    st.integers(1, 15),
    st.sampled_from(["farthest", "entropy", "random", "top"]),
    st.floats(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_what_is_chosen_is_new(
    seed: int, nframes: int, limit: int, diversity: str, min_new: float
) -> None:
    env, old = toy(seed, nframes), toy(seed + 1, 2)
    # frame 0 comes again, in another order
    again = slice(env.start[1] - 1, None, -1) if env.start[1] else slice(0, 0)
    env = Environments(
        np.concatenate([env.x, env.x[again]]),
        np.concatenate([env.element, env.element[again]]),
        np.append(env.start, len(env.x) + env.start[1]),
    )
    coverage = Coverage(env, 0.3)
    coverage.cover(old.x, old.element)
    found = choose(coverage, np.random.default_rng(seed).random(nframes + 1), diversity=diversity,
                   limit=limit, min_new=min_new, rng=np.random.default_rng(seed))  # fmt: skip
    assert len(found.chosen) == len(set(found.chosen)) <= limit
    assert not {0, nframes} <= set(found.chosen)
    covered = [a for k in range(2) for a in atoms(old, k)]
    for k, novelty in zip(found.chosen, found.novelty, strict=True):
        assert not found.known[k]
        assert not found.similar[k]
        own = brute_novelty(atoms(env, k), covered)
        assert own > max(min_new, EQUAL) - 1e-7
        assert novelty == pytest.approx(own, abs=1e-6)
        covered += atoms(env, k)
    left = set(range(nframes + 1)) - set(found.chosen)
    for k in left:
        is_covered = brute_novelty(atoms(env, k), covered) <= max(min_new, EQUAL)
        assert (found.known[k] or found.similar[k]) == is_covered
    if len(found.chosen) < limit:
        assert all(found.known[k] or found.similar[k] for k in left)


def test_distances_far_from_the_origin() -> None:
    x = 1e6 + np.random.default_rng(0).normal(size=(5, 4))
    expected = np.square(x[:, None] - x[None]).sum(axis=-1)
    np.testing.assert_allclose(squared_distances(x, x), expected, atol=1e-8)


def test_space_keeps_distances_in_its_unit() -> None:
    rng = np.random.default_rng(0)
    element = np.repeat([0, 1], 2000)
    plane = rng.normal(size=(2, 50))
    # the elements are far apart, which must not count
    descriptors = rng.normal(size=(4000, 2)) @ plane + 30.0 * element[:, None]
    # a displacement of 1 Å changes the descriptor of element 0 by 5, that of element 1 by 20
    angle = rng.uniform(0, 2 * np.pi, 4000)
    step = np.column_stack([np.cos(angle), np.sin(angle)]) @ np.linalg.qr(plane.T)[0].T
    moved = descriptors + RATTLE * np.where(element == 0, 5.0, 20.0)[:, None] * step
    space = Space.fit(descriptors, element, moved)
    assert space.axes.shape == (50, 2)
    x = space.place(descriptors, element)
    for one, unit in ((0, 5.0), (1, 20.0)):
        before, after = descriptors[element == one], x[element == one]
        before = np.linalg.norm(before[1:50] - before[0], axis=1)
        after = np.linalg.norm(after[1:50] - after[0], axis=1)
        np.testing.assert_allclose(after, before / unit, rtol=1e-6)


def test_equal_environments_are_no_new_ones_whatever_the_rounding() -> None:
    descriptors = np.ones((20, 6)) * (1 + 1e-8 * np.arange(10).repeat(2))[:, None]
    kind = np.zeros(20, dtype=np.int64)
    space = Space.fit(descriptors, kind, descriptors)
    assert np.ptp(space.place(descriptors, kind), axis=0).max() < EQUAL
    zeros = np.zeros((20, 6))
    assert np.isfinite(Space.fit(zeros, kind, zeros).place(zeros, kind)).all()


def test_distances_are_displacements(model: Path) -> None:
    committee = Committee.load([model])
    frames = [bulk(64, seed=k, rattle=0.15) for k in range(4)]
    space = fit_space([frames], committee.describe)
    here = describe_all(frames, committee.describe, space)
    rng = np.random.default_rng(5)
    for size in (0.003, 0.03):
        moved = [f._replace(coord=f.coord + rng.normal(scale=size, size=f.coord.shape))
                 for f in frames]  # fmt: skip
        there = describe_all(moved, committee.describe, space)
        distance = np.sqrt(np.square(there.x - here.x).sum(axis=1).mean())
        assert distance == pytest.approx(size, rel=0.2)


def test_blocks_and_thinning() -> None:
    sizes = np.array([4, 4, 4, 9, 1, 1])
    assert [b.tolist() for b in blocks(sizes, 8)] == [[0, 1], [2, 3], [4, 5]]
    assert list(blocks(sizes[:0])) == []
    assert thin(sizes, np.array([3, 0, 5, 1]), 13).tolist() == [3, 0]
    assert thin(sizes, np.array([3, 0]), 5).tolist() == [3]


def test_described_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(frames):
        return [np.column_stack([f.coord, f.coord**2]) for f in frames]

    frames = [bulk(n, seed=n) for n in (3, 8, 1, 5, 8)]
    space = fit_space([frames], describe)
    whole = describe_all(frames, describe, space)
    monkeypatch.setattr("ops.selection.environments.BLOCK_ATOMS", 4)
    parts = describe_all(frames, describe, space)
    assert whole.start.tolist() == [0, 3, 11, 12, 17, 25] == parts.start.tolist()
    np.testing.assert_allclose(whole.x, parts.x)
    np.testing.assert_array_equal(whole.element, np.concatenate([f.atype for f in frames]))


@given(
    st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=40),
    st.floats(0.05, 1),
    st.floats(0, 1),
    st.integers(0, 50),
)
@settings(max_examples=100, deadline=None)
def test_adaptive_level_by_hand(values, hi: float, fraction: float, count: int) -> None:
    array = np.array(values, dtype=np.float64)
    given_ = AdaptiveLevel(fraction=fraction, count=count)
    levels = classify(array, adaptive_lower(array, hi, given_), hi)
    np.testing.assert_array_equal(levels.accurate + 0 + levels.candidate + levels.failed, 1)
    below = sorted((v for v in values if v < hi), reverse=True)
    n = min(len(below), max(count, int(fraction * len(below) + 1e-9)))
    assert levels.lo == (below[n - 1] if n else hi)
    # at least so many; more only if some equal the level
    assert levels.candidate.sum() == sum(v >= levels.lo for v in below)
    assert levels.candidate.sum() >= n


def test_settled_looks_at_the_last_levels_only() -> None:
    given_ = AdaptiveLevel(tolerance=0.1, checked=3)
    assert not settled([0.1, 0.1], given_)
    assert settled([0.9, 0.1, 0.105, 0.1], given_)
    assert not settled([0.1, 0.12, 0.12], given_)
    assert settled([0.0, 0.0, 0.0], given_)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    descriptor = {"type": "dpa1", "rcut": 4.0, "rcut_smth": 3.0, "sel": 30, "neuron": [4, 8],
                  "axis_neuron": 4, "attn_layer": 0}  # fmt: skip
    settings_ = {"type_map": TYPES, "descriptor": descriptor, "fitting_net": {"neuron": [8]}}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(build_model(ModelConfig.model_validate(settings_), seed=1), path)
    return path


@pytest.mark.parametrize("diversity", ["farthest", "entropy", "random", "top"])
def test_labelled_environments_are_never_chosen(
    tmp_path: Path, model: Path, diversity: str
) -> None:
    frames = [bulk(seed=k, rattle=0.2) for k in range(6)]
    # new positions, but the environments of frame 0: moved as a whole
    moved = frames[0]._replace(coord=frames[0].coord + np.array([0.3, 0.2, 0.1]))
    nearly = frames[1]._replace(coord=frames[1].coord + 1e-4)
    rotated = frames[2]._replace(
        coord=frames[2].coord[:, [1, 2, 0]], box=frames[2].box[:, [1, 2, 0]]
    )
    explored = [moved, *frames[1:], nearly, rotated]
    folder = make_explored(tmp_path / "x", {"000000": (explored, deviations([0.1] * 8))})
    write_mixed([frames[0]._replace(energy=0.0), bulk(2)], TYPES, tmp_path / "old")
    stage = {"lo": 0.05, "hi": 0.2, "diversity": diversity, "min_new": 1e-3}
    inputs = SelectInputs([folder], [model], [tmp_path / "old"])
    config = SelectConfig.model_validate({"stages": [stage]})
    found = run_select(inputs, config, tmp_path / "out")
    assert found["rejected"] == {"known": 1, "similar": 2}
    chosen = {f["frame"] for f in found["frames_selected"]}
    assert len(chosen) == 5
    assert {3, 4, 5} < chosen
    assert len(chosen & {1, 6}) == len(chosen & {2, 7}) == 1
    assert all(f["novelty"] > 1e-3 for f in found["frames_selected"])
    assert len(open_dataset([tmp_path / "out" / "selected"])) == 5
    again = run_select(inputs, config, tmp_path / "again")
    assert again == found


def test_an_element_that_is_new_comes_first(tmp_path: Path, model: Path) -> None:
    only_al = [bulk(seed=k)._replace(atype=np.zeros(8, dtype=np.int64)) for k in range(5)]
    explored = [*only_al[1:], bulk(seed=9)]
    folder = make_explored(tmp_path / "x", {"000000": (explored, deviations([0.1] * 5))})
    write_mixed([only_al[0]._replace(energy=0.0)], TYPES, tmp_path / "old")
    stage = {"lo": 0.05, "hi": 0.2, "max_candidates": 1}
    config = SelectConfig.model_validate({"stages": [stage]})
    inputs = SelectInputs([folder], [model], [tmp_path / "old"])
    (first,) = run_select(inputs, config, tmp_path / "out")["frames_selected"]
    assert (first["frame"], first["novelty"]) == (4, None)


def test_labelled_frames_with_unknown_elements_are_no_obstacle(tmp_path: Path, model: Path) -> None:
    folder = make_explored(tmp_path / "x", {"000000": ([bulk(seed=1)], deviations([0.1]))})
    gold = bulk(seed=2)
    gold.atype[0] = 2
    write_mixed([gold._replace(energy=0.0)], (*TYPES, "Au"), tmp_path / "old")
    write_mixed([bulk(seed=1)._replace(energy=0.0)], TYPES, tmp_path / "older")
    config = SelectConfig.model_validate({"stages": [{"lo": 0.05, "hi": 0.2}]})
    found = [
        run_select(SelectInputs([folder], [model], labelled), config, tmp_path / "out")["selected"]
        for labelled in ([tmp_path / "old"], [tmp_path / "old", tmp_path / "older"])
    ]
    assert found == [1, 0]


def test_a_choice_of_nothing() -> None:
    env = toy(0, 3)
    coverage = Coverage(env)
    coverage.cover(env.x, env.element)
    found = choose(coverage, np.zeros(3), diversity="farthest", limit=5, min_new=0.0,
                   rng=np.random.default_rng(0))  # fmt: skip
    assert isinstance(found, Choice)
    assert (found.chosen, found.known.all(), found.similar.any()) == ([], True, False)
