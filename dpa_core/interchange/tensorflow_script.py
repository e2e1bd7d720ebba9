"""The training script in a graph must not contradict the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpa_core.errors import ModelFileError

DESCRIPTORS = {"se_atten": "dpa1", "se_atten_v2": "dpa1", "dpa1": "dpa1", "se_e2_a": "se_e2_a",
               "se_a": "se_e2_a", "DescrptSeA": "se_e2_a"}  # fmt: skip


def check_script(script: dict[str, Any] | None, found: dict[str, Any], path: str | Path) -> None:
    """Compare what the script says with what the graph is.

    Keys the script leaves out, and those that do not decide about energies (or that
    TensorFlow ignores), are not compared.

    Parameters
    ----------
    script
        `train_attr/training_script`, with a section `model`; None if the file has none.
    found
        Configuration read from the graph.
    path
        For the message.

    Raises
    ------
    ModelFileError
        Naming everything that differs, with both values.
    """
    if script is None:
        return
    model = script["model"]
    problems: list[str] = []

    def compare(key: str, stated: Any, actual: Any) -> None:
        if stated != actual:
            problems.append(f"{key}: script {stated!r}, graph {actual!r}")

    if model.get("type_map"):
        compare("type_map", list(model["type_map"]), list(found["type_map"]))
    for section, plain in (("descriptor", _descriptor), ("fitting_net", _fitting)):
        stated = model.get(section)
        if not isinstance(stated, dict):
            continue
        for key, (said, is_) in plain(stated, found[section]).items():
            compare(f"{section}.{key}", said, is_)
    if problems:
        raise ModelFileError(
            f"{path}: the training script in the file contradicts its graph: "
            f"{'; '.join(problems)}; the file was edited, or a part of it is from another model"
        )


def _descriptor(stated: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {
        "type": (DESCRIPTORS.get(str(stated.get("type")), stated.get("type")), found["type"])
    }
    for key in ("rcut", "rcut_smth"):
        if isinstance(stated.get(key), int | float):
            # The graph's radii are in single precision.
            pairs[key] = (_single(stated[key]), _single(found[key]))
    sel = stated.get("sel")
    if isinstance(sel, int | list) and not isinstance(sel, bool):
        total = sum(sel) if isinstance(sel, list) and found["type"] == "dpa1" else sel
        pairs["sel"] = (total, found["sel"])
    keys = ["neuron", "axis_neuron", "activation_function"]
    if found["type"] == "dpa1":
        pairs["attn_layer"] = (stated.get("attn_layer", 2), found["attn_layer"])
        keys += ["attn", "attn_dotr"] if found["attn_layer"] else []
    pairs |= {key: (_plain(stated[key]), _plain(found[key])) for key in keys if key in stated}
    excluded = {tuple(sorted(pair)) for pair in stated.get("exclude_types") or []}
    pairs["exclude_types"] = (sorted(excluded), sorted(found["exclude_types"]))
    return pairs


def _fitting(stated: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = ("neuron", "activation_function", "numb_fparam", "numb_aparam")
    return {key: (_plain(stated[key]), _plain(found[key])) for key in keys if key in stated}


def _plain(value: Any) -> Any:
    """Names of activations have aliases and no case."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    name = value.lower()
    if name.startswith(("silut", "custom_silu")):
        return "silut"
    return {"gelu_tf": "gelu", "none": "linear"}.get(name, name)


def _single(value: float) -> float:
    return float(str(np.float32(value)))
