"""Models and structures whose DeePMD-kit results are recorded; plain data, needs only NumPy.

Read by `record_deepmd.py` (in an environment with deepmd-kit). The recorded file repeats each
model's configuration, so the tests do not depend on this file.
"""

from __future__ import annotations

import random

TYPE_MAP = ["O", "H", "Cu"]

SYSTEMS = {
    "cell": {  # the golden vectors' cell: right-handed, slightly skewed
        "coord": [
            [0.1, 0.2, 0.3], [1.1, 0.4, 0.2], [-0.3, 1.2, 0.5],
            [2.4, 2.2, 0.7], [0.6, 2.9, 2.1], [3.0, 0.3, 2.8],
        ],
        "atype": [0, 1, 1, 2, 0, 2],
        "box": [[4.6, 0, 0], [0.3, 4.4, 0], [-0.2, 0.1, 4.2]],
    },
    # Where sel binds, no two distances tie at its end: which one is kept is arbitrary.
    "skewed": {  # rcut reaches over several images; atoms outside the cell
        "coord": [[0.2, -0.1, 0.4], [3.9, 0.6, 1.3], [1.5, 2.3, 5.2]],
        "atype": [2, 0, 1],
        "box": [[3.1, 0.2, -0.1], [1.4, 2.9, 0.3], [0.9, -1.1, 3.3]],
    },
    "molecule": {  # no box; the last atom sees nobody
        "coord": [
            [0.0, 0.1, 0.0], [0.9, 0.3, 0.2], [-0.2, 0.95, 0.3],
            [2.1, 1.7, 0.8], [1.9, -0.8, 1.6], [15.0, 15.0, 15.0],
        ],
        "atype": [1, 0, 1, 2, 0, 1],
        "box": None,
    },
    "virtual": {  # -1 is a virtual atom, the first one included
        "coord": [
            [0.7, 0.9, 3.1], [0.1, 0.2, 0.3], [1.1, 0.4, 0.2], [-0.3, 1.2, 0.5],
            [2.0, 2.0, 2.0], [2.45, 2.2, 0.7], [0.6, 2.9, 2.1],
        ],
        "atype": [-1, 2, 1, 1, -1, 0, 2],
        "box": [[4.6, 0, 0], [0.3, 4.4, 0], [-0.2, 0.1, 4.2]],
    },
    "atom": {"coord": [[0.3, 0.2, 0.1]], "atype": [1], "box": None},
    "primitive": {  # one atom, rcut larger than the cell
        "coord": [[0.3, 0.2, 0.1]],
        "atype": [2],
        "box": [[0.1, 1.9, 1.8], [1.8, 0.1, 1.9], [1.9, 1.8, 0.1]],
    },
}  # fmt: skip

FITTING = {"neuron": [7, 7], "resnet_dt": True, "precision": "float64"}
DPA1 = {
    "type": "dpa1", "rcut": 3.5, "rcut_smth": 0.5, "sel": 40, "neuron": [4, 8, 16],
    "axis_neuron": 3, "tebd_dim": 4, "attn": 6, "attn_layer": 2, "smooth_type_embedding": True,
    "attn_dotr": True, "normalize": True, "scaling_factor": 1.0, "type_one_side": False,
    "tebd_input_mode": "concat", "concat_output_tebd": True, "set_davg_zero": True,
    "precision": "float64",
}  # fmt: skip
SE = {
    "type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.5, "sel": [14, 14, 14],
    "neuron": [4, 8, 16], "axis_neuron": 3, "set_davg_zero": True, "precision": "float64",
}  # fmt: skip

_ACTIVATIONS = [
    "tanh", "relu", "relu6", "softplus", "sigmoid", "gelu", "gelu_tf", "silu", "silut:1.5",
    "custom_silu", "linear",
]  # fmt: skip
_SHARED_OPTIONS = {
    "neuron": [[4, 8, 16], [5, 5, 10], [9, 9, 18], [6, 7, 8]],
    "activation_function": _ACTIVATIONS,
    "resnet_dt": [False, True],
    "type_one_side": [False, True],
    "exclude_types": [[], [], [[0, 1]], [[0, 0], [1, 2]]],
    "env_protection": [0.0, 0.0, 0.3],
    "set_davg_zero": [True, False],
}
_DPA1_OPTIONS = _SHARED_OPTIONS | {
    "tebd_input_mode": ["concat", "strip"],
    "smooth_type_embedding": [True, False],
    "attn_layer": [0, 1, 2, 3],
    "attn_dotr": [True, False],
    "normalize": [True, False],
    "temperature": [None, 0.7],
    "scaling_factor": [1.0, 2.5],
    "use_econf_tebd": [False, True],
    "use_tebd_bias": [False, True],
    "concat_output_tebd": [True, False],
    "sel": [40, 90, 10],
    "tebd_dim": [4, 3, 6],
    "ln_eps": [1e-5, 1e-3],
}
_SE_OPTIONS = _SHARED_OPTIONS | {"sel": [[14, 14, 14], [30, 9, 21], [3, 5, 2]]}
_FITTING_OPTIONS = {
    "neuron": [[7, 7], [8, 8, 16], [52, 7]],
    "resnet_dt": [True, False],
    "activation_function": ["tanh", "silu"],
}


def model(descriptor: dict, fitting: dict | None = None, **keys: object) -> dict:
    """A model section under the names both codes share."""
    return {
        "type_map": TYPE_MAP,
        "descriptor": descriptor,
        "fitting_net": FITTING | (fitting or {}),
        **keys,
    }


def _draw(rng: random.Random, options: dict) -> dict:
    return {key: rng.choice(values) for key, values in options.items()}


def _swept(name: str, base: dict, options: dict, count: int, seed: int) -> dict[str, dict]:
    """Random combinations of all options: every pair of values meets somewhere."""
    rng = random.Random(seed)
    systems = ("cell", "cell", "skewed", "molecule", "virtual")
    return {
        f"{name}-{k:02d}": {
            "model": model(base | _draw(rng, options), _draw(rng, _FITTING_OPTIONS)),
            "system": systems[k % len(systems)],
        }
        for k in range(count)
    }


def cases() -> dict[str, dict]:
    """Name -> {model, system[, fparam, aparam]}."""
    leaky = {"set_davg_zero": False}
    single = {"precision": "float32"}
    extra = {"numb_fparam": 2, "numb_aparam": 1}
    parameters = {"fparam": [0.3, -0.7], "aparam": [0.1, -0.2, 0.3, 0.5, -0.4, 0.2]}
    found = {
        "padding-leak-virtual-first": {"model": model(DPA1 | leaky), "system": "virtual"},
        "padding-leak-sel-binding": {"model": model(DPA1 | leaky | {"sel": 10}), "system": "cell"},
        "sel-exactly-full": {"model": model(DPA1 | {"sel": 16}), "system": "cell"},
        "sel-one-more": {"model": model(DPA1 | leaky | {"sel": 17}), "system": "cell"},
        "paper-sized-sel": {"model": model(DPA1 | {"sel": 120}), "system": "skewed"},
        "tebd-twice-ntypes": {"model": model(DPA1 | {"tebd_dim": 6}), "system": "cell"},
        "first-layer-skip": {
            "model": model(DPA1 | {"neuron": [9, 9, 18], "resnet_dt": True}),
            "system": "cell",
        },
        "first-layer-skip-one-side": {
            "model": model(DPA1 | {"neuron": [5, 10, 10], "type_one_side": True}),
            "system": "cell",
        },
        "fitting-first-layer-skip": {
            "model": model(DPA1, {"neuron": [52, 52, 7]}),
            "system": "cell",
        },
        "sharp-cutoffs": {"model": model(DPA1 | {"rcut": 4.4, "rcut_smth": 2.0}), "system": "cell"},
        "float32": {"model": model(DPA1 | single, single), "system": "cell"},
        "float32-leak": {"model": model(DPA1 | single | leaky, single), "system": "cell"},
        "fparam-aparam": {"model": model(DPA1, extra), "system": "cell", **parameters},
        "default-fparam": {
            "model": model(DPA1, {"numb_fparam": 2, "default_fparam": [0.2, 0.9]}),
            "system": "cell",
        },
        "atom-ener": {"model": model(DPA1, {"atom_ener": [1.5, None, 3.5]}), "system": "cell"},
        "atom-ener-fparam": {
            "model": model(DPA1, extra | {"atom_ener": [None, 2.0, None]}),
            "system": "cell",
            **parameters,
        },
        "pair-exclude": {
            "model": model(DPA1, pair_exclude_types=[[0, 1], [2, 2]]),
            "system": "cell",
        },
        "pair-exclude-leak": {
            "model": model(DPA1 | leaky, pair_exclude_types=[[0, 1]]),
            "system": "cell",
        },
        "atom-exclude": {"model": model(DPA1, atom_exclude_types=[2]), "system": "cell"},
        "se-atom-ener": {"model": model(SE, {"atom_ener": [1.5, None, 3.5]}), "system": "cell"},
        "se-fparam-aparam": {"model": model(SE, extra), "system": "cell", **parameters},
        "se-pair-exclude": {
            "model": model(SE | leaky, pair_exclude_types=[[0, 1], [2, 2]]),
            "system": "cell",
        },
        "se-sel-zero": {"model": model(SE | {"sel": [14, 14, 0]}), "system": "cell"},
        "se-float32": {"model": model(SE | single, single), "system": "cell"},
    }
    for system in SYSTEMS:
        for suffix, keys in (("", {}), ("-leak", leaky)):
            found[f"dpa1-{system}{suffix}"] = {"model": model(DPA1 | keys), "system": system}
            found[f"se-{system}{suffix}"] = {"model": model(SE | keys), "system": system}
    return (
        found
        | _swept("dpa1", DPA1, _DPA1_OPTIONS, 48, seed=7)
        | _swept("se", SE, _SE_OPTIONS, 16, seed=11)
    )
