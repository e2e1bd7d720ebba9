"""Periodic order: places in the table, and a test that finds order and only order."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import chemical_symbols

from dpa_core.config import DPA1Config, ModelConfig, SeE2AConfig
from dpa_core.model import build_model
from ops.embedding import embedding_pca, order_statistics, periodic_order_test, place_in_table

MAIN = [name for name in chemical_symbols[1:57] if name not in ("H", "He")]


@pytest.mark.parametrize(
    ("element", "place"),
    [
        ("H", (1, 1)), ("He", (1, 18)), ("Li", (2, 1)), ("Be", (2, 2)), ("B", (2, 13)),
        ("Ne", (2, 18)), ("Al", (3, 13)), ("Ca", (4, 2)), ("Sc", (4, 3)), ("Zn", (4, 12)),
        ("Ga", (4, 13)), ("Ag", (5, 11)), ("Ba", (6, 2)), ("La", (6, 0)), ("Yb", (6, 0)),
        ("Lu", (6, 3)), ("Hf", (6, 4)), ("Au", (6, 11)), ("Rn", (6, 18)), ("U", (7, 0)),
        ("Lr", (7, 3)), ("Og", (7, 18)),
    ],
)  # fmt: skip
def test_places(element, place):
    assert place_in_table(element) == place


def test_order_is_found_where_it_is():
    """Vectors made from group (on a circle) and period: both tests must see it."""
    places = np.array([place_in_table(name) for name in MAIN])
    angle = 2 * np.pi * places[:, 1] / 18
    table = np.stack([3 * np.cos(angle), 3 * np.sin(angle), 0.8 * places[:, 0]], axis=1)
    found = order_statistics(table, MAIN, 999, 0)
    assert found["group"]["p"] == 1 / 1000
    assert found["period"]["p"] < 0.01
    assert found["group"]["statistic"] < 0.6
    assert found["period"]["statistic"] > 0.1


def test_random_vectors_give_uniform_p():
    """Under the null hypothesis p is uniform: its mean is 1/2 within 4 standard errors."""
    rng = np.random.default_rng(5)
    values = []
    for k in range(60):
        found = order_statistics(rng.normal(size=(len(MAIN), 4)), MAIN, 99, k)
        values += [found["group"]["p"], found["period"]["p"]]
    assert abs(np.mean(values) - 0.5) < 4 * np.sqrt(1 / 12 / len(values))


def test_statistics_in_closed_form():
    """Li, Na (group 1), Be: |Li-Na| = 1, |Li-Be| = |Na-Be| = 2."""
    table = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3.75)]])
    found = order_statistics(table, ["Li", "Na", "Be"], 500, 1)
    assert found["group"]["statistic"] == pytest.approx(0.5)
    # distances (1, 2, 2), differences of periods (1, 0, 1)
    assert found["period"]["statistic"] == pytest.approx(-0.5)
    # of the 3 ways to choose the pair of one group, one is as small
    assert found["group"]["p"] == pytest.approx(1 / 3, abs=0.08)


def test_pca_reproduces_distances_of_a_plane():
    """Two components of a two-dimensional embedding hold all of it."""
    config = ModelConfig(
        type_map=("Al", "Ni", "Cu", "Ag"), descriptor=DPA1Config(tebd_dim=2, attn_layer=0)
    )
    pca = embedding_pca(build_model(config, seed=3))
    assert pca is not None
    assert pca.explained.sum() == pytest.approx(1)
    wanted = np.linalg.norm(pca.table[:, None] - pca.table[None], axis=-1)
    got = np.linalg.norm(pca.points[:, None] - pca.points[None], axis=-1)
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_nothing_to_show():
    two = build_model(ModelConfig(type_map=("Al", "Ni"), descriptor=DPA1Config()), seed=1)
    plain = build_model(
        ModelConfig(type_map=("Al", "Ni", "Cu"), descriptor=SeE2AConfig(sel=(4, 4, 4))), seed=1
    )
    for model in (two, plain):
        assert embedding_pca(model) is None
        assert periodic_order_test(model, 10) is None
