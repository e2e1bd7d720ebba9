"""Splits: sizes, nesting, formulas that stay together, impossible wishes."""

from __future__ import annotations

import pytest

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError, DataError
from ops.split import Split, assign, draw


def parts(formulas, **settings):
    found = assign(formulas, parse_config(Split, settings, "split"))
    return {part: {k for k, p in enumerate(found) if p == part} for part in set(found)}


def test_fractions_give_the_sizes():
    found = parts(["Al"] * 103, valid=0.1, test=0.2)
    assert {name: len(k) for name, k in found.items()} == {"train": 72, "valid": 10, "test": 21}


def test_growing_train_keeps_the_draw_and_the_test_set():
    draws = [parts(["Al"] * 40, train=n, test=10, unit="frames") for n in (1, 4, 16)]
    assert draws[0]["train"] < draws[1]["train"] < draws[2]["train"]
    assert draws[0]["test"] == draws[1]["test"] == draws[2]["test"]
    assert [len(d["train"]) for d in draws] == [1, 4, 16]
    assert len(draws[0]["unused"]) == 29


def test_all_others_are_the_test_set():
    found = parts(["Al"] * 9, train=4, test=None, unit="frames")
    assert len(found["train"]) == 4
    assert len(found["test"]) == 5


def test_seed_changes_the_draw_and_repeats_it():
    one, two = (parts(["Al"] * 50, test=0.5, seed=s) for s in (1, 2))
    assert one != two
    assert one == parts(["Al"] * 50, test=0.5, seed=1)


def test_one_formula_never_sits_in_two_parts():
    formulas = [f"Al{k % 17}" for k in range(340)]
    found = parts(formulas, by="composition", valid=0.2, test=0.2)
    where = {name: {formulas[k] for k in ks} for name, ks in found.items()}
    assert where["train"] | where["valid"] | where["test"] == set(formulas)
    assert sum(len(names) for names in where.values()) == 17
    assert 0.1 < len(found["test"]) / 340 < 0.3
    assert 0.1 < len(found["valid"]) / 340 < 0.3


def test_too_few_formulas():
    with pytest.raises(DataError, match="1 formulas are too few"):
        parts(["Al"] * 10, by="composition", test=0.3)


def test_too_few_frames():
    with pytest.raises(DataError, match="only 3 were kept"):
        parts(["Al"] * 3, train=4, unit="frames")
    with pytest.raises(DataError, match="5 frames asked for, the data hold 4"):
        draw(4, 5, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 0.8, "test": 0.3}, "sum to 1.1"),
        ({"train": None, "test": None}, "only one of train and test"),
        ({"train": 2.5, "unit": "frames"}, "whole numbers"),
        ({"by": "composition", "unit": "frames"}, "unit: fraction"),
    ],
)
def test_impossible_splits(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(Split, settings, "split")


def test_draws_nest():
    assert draw(100, 4, 7) == draw(100, 16, 7)[:4]
    assert sorted(draw(10, 10, 3)) == list(range(10))
