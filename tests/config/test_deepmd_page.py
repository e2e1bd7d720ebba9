"""The tables of docs/deepmd_input.md are those that the reader uses (REGEN=1 writes them)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dpa_core import deepmd_keys as keys
from dpa_core.deepmd_keys import ABSENT, REQUIRED, Key, Table

PAGE = Path(__file__).parents[2] / "docs" / "deepmd_input.md"
MARK = "REGEN=1 pytest tests/config/test_deepmd_page.py -->\n"
V2 = {"set_davg_zero": keys.DESCRIPTORS["se_atten_v2"]["set_davg_zero"]}
SECTIONS: dict[str, Table] = {
    "top level": keys.TOP,
    "model": keys.MODEL,
    "model.descriptor of `dpa1`, `se_atten`": keys.SE_ATTEN,
    "model.descriptor of `se_atten_v2`: as above, but `tebd_input_mode` strip, smooth, and": V2,
    "model.descriptor of `se_e2_a`, `se_a`": keys.SE_E2_A,
    "model.type_embedding": keys.TYPE_EMBEDDING,
    "model.fitting_net": keys.FITTING,
    "loss": keys.LOSS,
    "learning_rate": keys.LEARNING_RATE,
    "learning_rate of `exp`": keys.SCHEDULES["exp"],
    "learning_rate of `wsd`": keys.SCHEDULES["wsd"],
    "optimizer of `Adam`, `AdamW`": keys.OPTIMIZER,
    "training": keys.TRAINING,
    "training.training_data, training.validation_data": keys.DATA,
    "validating": keys.VALIDATING,
}


def row(name: str, key: Key) -> str:
    names = ", ".join(f"`{n}`" for n in (name, *key.aliases))
    default = "required" if key.default is REQUIRED else ""
    if key.default not in (ABSENT, REQUIRED):
        default = f"`{json.dumps(key.default)}`"
    return f"| {names} | {default} | {treatment(key)} |"


def treatment(key: Key) -> str:
    if key.why == keys.DICT.why:
        return key.why
    if key.neutral is not None:
        allowed = [f"`{json.dumps(v)}`" for v in key.neutral if v is not None]
        return f"{'only ' + ', '.join(allowed) if allowed else 'refused'}: {key.why}"
    if key.to == "":
        return f"dropped: {key.why}"
    taken = f"`{key.to}`" if key.to else "taken"
    return f"{taken}; {key.why}" if key.why else taken


def tables() -> str:
    lines = []
    for title, table in SECTIONS.items():
        lines += ["", f"### {title}", "", "| key | default | here |", "|---|---|---|"]
        lines += [row(name, key) for name, key in table.items()]
    return "\n".join(lines) + "\n"


def test_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, mark, found = text.partition(MARK)
    assert mark, f"{PAGE} has lost its mark"
    if os.environ.get("REGEN"):
        PAGE.write_text(head + mark + tables(), encoding="utf-8")
        return
    assert found == tables(), "REGEN=1 writes the tables anew"


def test_page_has_every_table() -> None:
    shown = list(SECTIONS.values())
    every = [value for name, value in vars(keys).items() if name.isupper()]
    tables_of_keys = [v for v in every if isinstance(v, dict) and all(
        isinstance(key, Key) for key in v.values())]  # fmt: skip
    base = (keys.DESCRIPTOR, keys.DPA1)  # part of the others
    assert all(t in shown for t in tables_of_keys if t not in base)
