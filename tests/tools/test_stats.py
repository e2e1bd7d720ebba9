"""davg/dstd against a naive padded loop; sampling; parameter statistics; automatic sel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dpa_core.errors import ConfigError, DataError
from dpa_core.stats import (
    compute_env_stats,
    compute_param_stats,
    frames_per_batch,
    resolve_sel,
    sample_frames,
)
from tests.tools.conftest import config, dataset, frame

RCUT, SMTH = 3.5, 0.5


def weight(r):
    u = min(max((r - SMTH) / (RCUT - SMTH), 0.0), 1.0)
    return u**3 * (-6 * u**2 + 15 * u - 10) + 1


def padded_rows(one, i, nnei, excluded=(), protection=0.0):
    """All nnei rows of atom i, images by brute force, empty slots zero."""
    rows = []
    reach = range(-3, 4)
    for j in range(len(one.atype)):
        for shift in itertools.product(reach, reach, reach):
            d = one.coord[j] + np.array(shift) @ one.box - one.coord[i]
            r = np.sqrt(d @ d)
            if (j == i and shift == (0, 0, 0)) or r > RCUT:
                continue
            pair = {int(one.atype[i]), int(one.atype[j])}
            row = weight(r) * np.r_[1 / (r + protection), d / (r + protection) ** 2]
            rows.append((r, np.zeros(4) if pair in excluded else row))
    rows.sort(key=lambda item: item[0])
    rows = [row for _, row in rows][:nnei]
    return np.array(rows + [np.zeros(4)] * (nnei - len(rows)))


def naive(frames, nnei, **options):
    """(davg, dstd) per type from numpy's own mean and std of the padded tables."""
    result = {}
    for t in range(3):
        tables = [padded_rows(f, i, nnei, **options)
                  for f in frames for i in np.flatnonzero(f.atype == t)]  # fmt: skip
        if not tables:
            result[t] = (0.0, 0.1, 0.1)
            continue
        table = np.concatenate(tables)
        radial, angular = table[:, 0], table[:, 1:].ravel()
        result[t] = (radial.mean(), max(radial.std(), 1e-2), max(angular.std(), 1e-2))
    return result


@pytest.mark.parametrize("sel", [60, 6])
def test_davg_dstd_equal_naive_padded_loop(make_model, rng, sel):
    frames = [frame(rng, [0, 1, 1, 0]), frame(rng, [0, 1])]
    model = make_model({"sel": sel, "set_davg_zero": False})
    compute_env_stats(model, dataset(frames))
    for t, (mean, radial, angular) in naive(frames, sel).items():
        assert model.descriptor.davg[t].tolist() == pytest.approx([mean, 0, 0, 0], abs=1e-14)
        expected = [radial, angular, angular, angular]
        assert model.descriptor.dstd[t].tolist() == pytest.approx(expected, rel=1e-12)


def test_davg_stays_zero_and_excluded_pairs_count_as_zeros(make_model, rng):
    frames = [frame(rng, [0, 1, 1, 2])]
    model = make_model({"exclude_types": [[0, 1]], "env_protection": 0.2})
    compute_env_stats(model, dataset(frames))
    expected = naive(frames, 60, excluded=({0, 1},), protection=0.2)
    assert not model.descriptor.davg.any()
    for t, (_, radial, angular) in expected.items():
        assert model.descriptor.dstd[t, :2].tolist() == pytest.approx([radial, angular], rel=1e-12)


def test_se_e2_a_pools_over_the_sum_of_sel(make_model, rng):
    frames = [frame(rng, [0, 1, 2])]
    model = make_model({"type": "se_e2_a", "sel": [20, 30, 10]})
    compute_env_stats(model, dataset(frames))
    for t, (mean, radial, _) in naive(frames, 60).items():
        assert model.descriptor.davg[t, 0].item() == pytest.approx(mean, rel=1e-12)
        assert model.descriptor.dstd[t, 0].item() == pytest.approx(radial, rel=1e-12)


def test_only_asked_types_change(make_model, rng):
    model = make_model()
    compute_env_stats(model, dataset([frame(rng, [0, 1, 2])]), types=[1])
    ones = torch.ones(4, dtype=torch.float64)
    assert torch.equal(model.descriptor.dstd[0], ones)
    assert torch.equal(model.descriptor.dstd[2], ones)
    assert not torch.equal(model.descriptor.dstd[1], ones)


def test_other_type_map_is_refused(make_model, rng):
    data = dataset([frame(rng, [0, 1])], type_map=("H", "O", "Cu"))
    with pytest.raises(ConfigError, match="type_map"):
        compute_env_stats(make_model(), data)


@pytest.mark.parametrize(
    ("batch_size", "natoms", "expected"),
    [
        (3, 100, 3),
        ("auto:256", 100, 3),
        ("auto:256", 300, 1),
        ("auto", 10, 4),
        ("auto:12", 4, 3),
        ("max:256", 100, 2),
        ("max:256", 300, 1),
    ],
)
def test_frames_per_batch(batch_size, natoms, expected):
    assert frames_per_batch(batch_size, natoms) == expected


def test_sample_takes_batches_of_every_system_and_every_element(rng):
    plain = [frame(rng, [0, 1]) for _ in range(30)]
    rare = [*plain[:29], frame(rng, [0, 2])]
    data = dataset(plain, rare)
    for seed in range(5):
        sample = sample_frames(data, nbatch=2, batch_size=3, seed=seed)
        assert sample == sorted(set(sample))
        assert sum(k < 30 for k in sample) == 6
        assert 59 in sample
        assert sum(k >= 30 for k in sample) in (6, 7)
    assert sample_frames(data, 2, 3, seed=1) != sample_frames(data, 2, 3, seed=2)
    assert len(sample_frames(data, 9, 99, max_atoms=20)) <= 11
    shuffled = data.subset(rng.permutation(60)[:40])
    assert max(sample_frames(shuffled, 10, 10)) < 40


def test_parameter_statistics(make_model, rng):
    frames = [
        frame(rng, [0, 1], fparam=np.array([x, 5.0]), aparam=np.array([[x], [2 * x]]))
        for x in (1.0, 2.0, 6.0)
    ]
    model = make_model(fitting_net={"numb_fparam": 2, "numb_aparam": 1})
    compute_param_stats(model, dataset(frames))
    net = model.fitting
    assert net.fparam_avg.tolist() == pytest.approx([3.0, 5.0])
    # std of 1, 2, 6 is sqrt(14/3); a constant parameter gets 1/data_stat_protect
    assert net.fparam_inv_std.tolist() == pytest.approx([np.sqrt(3 / 14), 100.0])
    atoms = np.array([1, 2, 2, 4, 6, 12])
    assert net.aparam_avg.item() == pytest.approx(atoms.mean())
    assert net.aparam_inv_std.item() == pytest.approx(1 / atoms.std())
    with pytest.raises(DataError, match="fparam"):
        compute_param_stats(model, dataset([frame(rng, [0, 1])]))


def test_auto_sel_is_ten_percent_above_the_largest_count_up_to_four(rng):
    one = frame(rng, [0, 1, 1, 0, 1])
    counts = np.zeros((5, 3), int)
    for i, j in itertools.product(range(5), range(5)):
        for shift in itertools.product(range(-3, 4), repeat=3):
            d = one.coord[j] + np.array(shift) @ one.box - one.coord[i]
            counts[i, one.atype[j]] += 0 < d @ d <= RCUT**2
    data = dataset([one])
    sel = resolve_sel(config({"sel": "auto"}), data).descriptor.sel
    largest = counts.sum(1).max()
    assert sel % 4 == 0
    assert 1.1 * largest <= sel < 1.1 * largest + 4
    sels = resolve_sel(config({"type": "se_e2_a", "sel": "auto"}), data).descriptor.sel
    assert sels[2] == 0
    for t in (0, 1):
        assert sels[t] % 4 == 0
        assert 1.1 * counts[:, t].max() <= sels[t] < 1.1 * counts[:, t].max() + 4
    kept = config({"sel": 33})
    assert resolve_sel(kept, data) is kept
