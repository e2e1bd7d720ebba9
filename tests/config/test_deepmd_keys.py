"""Every key of DeePMD-kit's input files is known here, with its default (argcheck.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpa_core import deepmd_keys as keys
from dpa_core.deepmd_input import convert
from dpa_core.deepmd_keys import ABSENT, REQUIRED, Key, Table, by_class

RECORD = json.loads((Path(__file__).parent / "argcheck.json").read_text())
TABLES: dict[str, Table] = {
    "": keys.TOP,
    "model": keys.MODEL, "model.standard": keys.MODEL, "type_embedding": keys.TYPE_EMBEDDING,
    "descriptor": {}, "fitting_net": {}, "loss": {}, "optimizer": {}, "learning_rate.cosine": {},
    "descriptor.se_atten": keys.SE_ATTEN, "descriptor.se_e2_a": keys.SE_E2_A,
    "descriptor.se_atten_v2": keys.DESCRIPTORS["se_atten_v2"],
    "fitting_net.ener": keys.FITTING, "loss.ener": keys.LOSS,
    "learning_rate": keys.LEARNING_RATE,
    "learning_rate.exp": keys.SCHEDULES["exp"], "learning_rate.wsd": keys.SCHEDULES["wsd"],
    "optimizer.Adam": keys.OPTIMIZER, "optimizer.AdamW": keys.OPTIMIZER,
    "training": keys.TRAINING, "validating": keys.VALIDATING,
    "training_data": keys.DATA, "validation_data": keys.DATA,
}  # fmt: skip
# Section, key -> why our default is not the one of the schema.
DIFFERENT = {
    ("descriptor.se_atten", "ln_eps"): "None means 1e-5",
    ("descriptor.se_atten_v2", "ln_eps"): "None means 1e-5",
    ("optimizer.AdamW", "weight_decay"): "dp train fills in 0 before the schema is asked",
    ("fitting_net.ener", "atom_ener"): "[] means none",
    ("training_data", "systems"): "'.' stands in the schema of a key that must be given",
    ("validation_data", "systems"): "'.' stands in the schema of a key that must be given",
}
# Keys that DeePMD-kit 3.2's schema does not have, and where they are from.
OTHER = {
    "": {"loss_dict": "multi-task"},
    "model": {"shared_dict": "multi-task", "model_dict": "multi-task"},
    "fitting_net.ener": {"tot_ener_zero": "TensorFlow until 2"},
    "training": {
        "numb_test": "2", "data_dict": "multi-task", "model_prob": "multi-task",
        "num_epoch_dict": "multi-task",
    },
    "training_data": {"set_prefix": "2", "numb_btch": "validation_data only"},
    "validation_data": {"set_prefix": "2", "min_pair_dist": "training_data only"},
    **{f"descriptor.{d}": {"spin": "2"} for d in ("se_atten", "se_atten_v2", "se_e2_a")},
}  # fmt: skip


def every() -> list[tuple[str, str, dict[str, Any]]]:
    found = [(s, k, r) for s, part in RECORD["sections"].items() for k, r in part.items()]
    assert len(found) > 200
    return found


def test_tables_cover_the_schema() -> None:
    assert set(TABLES) == set(RECORD["sections"])
    unknown = [(s, k) for s, k, _ in every() if k not in TABLES[s]]
    assert unknown == []


def test_aliases_are_those_of_the_schema() -> None:
    for section, name, record in every():
        assert set(record.get("aliases", [])) <= set(TABLES[section][name].aliases), name


def test_defaults_are_those_of_the_schema() -> None:
    found = set()
    for section, name, record in every():
        key = TABLES[section][name]
        if (key.to == "" and key.neutral is None) or name == "validating":
            continue  # dropped, or a section
        if not agrees(key, record):
            found.add((section, name))
    assert found == set(DIFFERENT)


def agrees(key: Key, record: dict[str, Any]) -> bool:
    if key.neutral is not None:
        return record.get("default") in key.neutral
    if record.get("required"):
        return key.default is REQUIRED or key is keys.DICT
    expected = record.get("default")
    return (None if key.default is ABSENT else key.default) == expected


def test_we_know_no_key_that_does_not_exist() -> None:
    parts = RECORD["sections"]
    for section, table in TABLES.items():
        base = section.partition(".")[0]
        known = {*parts[section], *parts[base], "type", *OTHER.get(section, {})}
        if base == "model":
            known |= {*parts["model.standard"], *OTHER["model"]}
        assert set(table) <= known, section


def test_what_is_refused_says_why() -> None:
    for section, table in TABLES.items():
        for name, key in table.items():
            assert key.why or key.to != "", f"{section}.{name}"


@pytest.mark.parametrize("kind", list(keys.CLASS_DEFAULTS))
def test_class_defaults_are_those_of_the_classes(kind: str) -> None:
    record = RECORD["classes"][{"dpa1": "se_atten", "se_a": "se_e2_a"}.get(kind, kind)]
    table = by_class(keys.DESCRIPTORS.get(kind, keys.FITTING), kind)
    compared = 0
    for name, key in table.items():
        if name not in record or key.to == "":
            continue
        if record[name].get("required"):
            assert key.default is REQUIRED, name
        else:
            default = None if key.default is ABSENT else key.default
            default = "float64" if default == "default" else default
            assert default == record[name]["default"], name
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("case", RECORD["inputs"])
def test_files_mean_what_they_mean_to_deepmd(case: dict[str, Any]) -> None:
    """DeePMD-kit's own reading of a file, every default filled in, is ours."""
    assert convert(case["given"]) == convert(case["prepared"])
