"""Option sets of models and the structures to ask them about; plain data for both codes.

Read by the tests here, by `record_deepmd_files.py` and by `benchmarks/interchange`, the last two
also in an environment with deepmd-kit and without dpaflow. A set is a `model` section of a
DeePMD-kit input; `types` says which of its types stand for types 0, 1 and 2 of a structure.
"""

from __future__ import annotations

import copy
import math
import random
from typing import Any

from tests.reference.cases import DPA1, SE, SYSTEMS, model

_ACTIVATIONS = (
    "relu", "relu6", "softplus", "sigmoid", "gelu", "gelu_tf", "silu", "silut:1.5",
    "custom_silu", "linear",
)  # fmt: skip
_LEAKY = {"set_davg_zero": False}
_STRIP = {"tebd_input_mode": "strip"}
_SINGLE = {"precision": "float32"}
_MANY = ["H", "Li", "C", "N", "O", "Si", "Cu", "U"]


def _v2(**changes: Any) -> dict[str, Any]:
    """A descriptor se_atten_v2, which knows fewer keys."""
    left_out = ("tebd_input_mode", "smooth_type_embedding")
    base = {k: v for k, v in DPA1.items() if k not in left_out}
    return base | {"type": "se_atten_v2", "set_davg_zero": False} | changes


_DPA1 = {
    "base": {},
    "attn-0": {"attn_layer": 0},
    "attn-1": {"attn_layer": 1},
    "attn-3": {"attn_layer": 3},
    "strip": _STRIP,
    "strip-attn-0": _STRIP | {"attn_layer": 0},
    "strip-attn-1": _STRIP | {"attn_layer": 1},
    "one-side": {"type_one_side": True},
    "strip-one-side": _STRIP | {"type_one_side": True},
    "not-smooth": {"smooth_type_embedding": False},
    "strip-not-smooth": _STRIP | {"smooth_type_embedding": False},
    "davg": _LEAKY,
    "davg-not-smooth": _LEAKY | {"smooth_type_embedding": False},
    "davg-attn-0": _LEAKY | {"attn_layer": 0},
    "strip-davg": _STRIP | _LEAKY,
    "strip-davg-one-side-temperature": _STRIP
    | _LEAKY
    | {"type_one_side": True, "temperature": 1.0},
    "temperature": {"temperature": 0.7},
    "scaling-factor": {"scaling_factor": 2.5},
    "no-normalize": {"normalize": False},
    "no-dotr": {"attn_dotr": False},
    "resnet-dt": {"resnet_dt": True},
    "no-output-tebd": {"concat_output_tebd": False},
    "econf": {"use_econf_tebd": True},
    "tebd-bias": {"use_tebd_bias": True},
    "econf-tebd-bias": {"use_econf_tebd": True, "use_tebd_bias": True},
    "tebd-ntypes": {"tebd_dim": 3},
    "tebd-twice-ntypes": {"tebd_dim": 6},
    "exclude": {"exclude_types": [[0, 1], [2, 2]]},
    "exclude-davg": _LEAKY | {"exclude_types": [[0, 1]]},
    "strip-exclude": _STRIP | {"exclude_types": [[0, 1], [2, 2]]},
    "env-protection": {"env_protection": 0.3},
    "ln-eps": {"ln_eps": 1e-3},
    "fixed-ln": {"trainable_ln": False},
    "first-layer-skip": {"neuron": [9, 9, 18], "resnet_dt": True},
    "odd-widths": {"neuron": [6, 7, 8], "axis_neuron": 5},
    "sel-binding": {"sel": 10},
    "sel-binding-davg": _LEAKY | {"sel": 10},
    "sel-full": {"sel": 16},
    "sel-paper": {"sel": 120},
    "sel-list": {"sel": [20, 12, 8]},
    "sharp-cutoff": {"rcut": 4.4, "rcut_smth": 2.0},
    "frozen": {"trainable": False, "seed": 7},
}
_SE = {
    "base": {},
    "one-side": {"type_one_side": True},
    "exclude": {"exclude_types": [[0, 1], [2, 2]]},
    "one-side-exclude": {"type_one_side": True, "exclude_types": [[0, 1]]},
    "davg": _LEAKY,
    "one-side-davg": _LEAKY | {"type_one_side": True},
    "exclude-davg": _LEAKY | {"exclude_types": [[0, 0], [1, 2]]},
    "resnet-dt": {"resnet_dt": True},
    "sel-binding": {"sel": [3, 5, 2]},
    "sel-binding-davg": _LEAKY | {"sel": [3, 5, 2]},
    "sel-zero": {"sel": [14, 14, 0]},
    "env-protection": {"env_protection": 0.3},
    "gelu": {"activation_function": "gelu"},
    "odd-widths": {"neuron": [6, 7, 8], "axis_neuron": 5},
}
_FITTING = {
    "fitting-no-dt": {"resnet_dt": False},
    "fitting-skips": {"neuron": [52, 52, 104]},
    "fitting-silu": {"activation_function": "silu"},
    "fitting-frozen": {"trainable": False, "seed": 3},
    "fparam": {"numb_fparam": 2},
    "aparam": {"numb_aparam": 1},
    "fparam-aparam": {"numb_fparam": 2, "numb_aparam": 1},
    "default-fparam": {"numb_fparam": 2, "default_fparam": [0.2, 0.9]},
    "atom-ener": {"atom_ener": [1.5, None, 3.5]},
    "atom-ener-fparam": {"atom_ener": [None, 2.0, None], "numb_fparam": 2},
}
_WHOLE: dict[str, dict[str, Any]] = {
    "pair-exclude": {"pair_exclude_types": [[0, 1], [2, 2]]},
    "atom-exclude": {"atom_exclude_types": [2]},
    "preset-out-bias": {"preset_out_bias": {"energy": [None, -3.1, 2.0]}},
}
_PRECISIONS = {
    "float32": (_SINGLE, _SINGLE),
    "float32-descriptor": (_SINGLE, {}),
    "float32-fitting": ({}, _SINGLE),
    "float32-davg": (_SINGLE | _LEAKY, _SINGLE),
}


def option_sets() -> dict[str, dict[str, Any]]:
    """Name -> {model[, types]}."""
    models = {f"dpa1-{name}": model(DPA1 | keys) for name, keys in _DPA1.items()}
    for name in _ACTIVATIONS:
        act = {"activation_function": name}
        models[f"dpa1-{name.replace(':', '-')}"] = model(DPA1 | act, act)
    models |= {
        "dpa1-spelt-se-atten": model(DPA1 | {"type": "se_atten"}),
        "v2-attn-0": model(_v2(attn_layer=0)),
        "v2-attn-2": model(_v2()),
        "v2-float32": model(_v2(**_SINGLE), _SINGLE),
        "dpa1-strip-float32": model(DPA1 | _STRIP | _SINGLE, _SINGLE),
        "dpa1-pair-exclude-davg": model(DPA1 | _LEAKY, **_WHOLE["pair-exclude"]),
    }
    models |= {f"se-{name}": model(SE | keys) for name, keys in _SE.items()}
    for kind, base in (("dpa1", DPA1), ("se", SE)):
        models |= {f"{kind}-{name}": model(base, keys) for name, keys in _FITTING.items()}
        models |= {f"{kind}-{name}": model(base, **keys) for name, keys in _WHOLE.items()}
        models |= {f"{kind}-{k}": model(base | d, f) for k, (d, f) in _PRECISIONS.items()}
    sets: dict[str, dict[str, Any]] = {k: {"model": copy.deepcopy(m)} for k, m in models.items()}
    one_side = SE | {"sel": [6] * len(_MANY), "type_one_side": True}
    for name, base in (("dpa1", DPA1 | {"tebd_dim": 8}), ("se", one_side)):
        many = model(copy.deepcopy(base)) | {"type_map": _MANY}
        sets[f"{name}-many-types"] = {"model": many, "types": [6, 0, 4]}
    one = model(copy.deepcopy(DPA1)) | {"type_map": ["Cu"]}
    sets["dpa1-one-type"] = {"model": one, "types": [0, 0, 0]}
    return sets


def precision_of(model: dict[str, Any]) -> str:
    """`float32` if any part of the model computes so."""
    parts = (model["descriptor"], model["fitting_net"])
    return "float32" if any(p["precision"] == "float32" for p in parts) else "float64"


def structures() -> dict[str, dict[str, Any]]:
    """Right-handed: a cell, a skewed cell smaller than rcut, a larger one, one without box."""
    rng = random.Random(5)
    grid = [(i, j, k) for i in range(3) for j in range(3) for k in range(3)]
    box = [[7.4, 0.1, -0.2], [0.9, 7.1, 0.3], [-0.5, 0.4, 7.7]]
    large = {
        "coord": [
            [round(2.45 * x + rng.gauss(0, 0.25), 6) for x in point] for point in grid
        ],
        "atype": [rng.randrange(3) for _ in grid],
        "box": box,
    }  # fmt: skip
    names = ("cell", "skewed", "molecule")
    return {name: SYSTEMS[name] for name in names} | {"large": large}


def question(case: dict[str, Any], structure: dict[str, Any]) -> dict[str, Any]:
    """Coordinates, box, types and parameters to evaluate a set's model with."""
    types = case.get("types", [0, 1, 2])
    asked = structure | {"atype": [types[t] for t in structure["atype"]]}
    net, natoms = case["model"]["fitting_net"], len(structure["atype"])
    if net.get("numb_fparam") and not net.get("default_fparam"):
        asked["fparam"] = [[0.3, -0.7][: net["numb_fparam"]]]
    if net.get("numb_aparam"):
        count = natoms * net["numb_aparam"]
        asked["aparam"] = [[round(0.5 * math.sin(1 + k), 6) for k in range(count)]]
    return asked
