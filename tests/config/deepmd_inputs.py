"""Input files in the styles of DeePMD-kit 1, 2 and 3; plain data.

What DeePMD-kit 3.2 itself makes of them is in argcheck.json (record_argcheck.py).
"""

from __future__ import annotations

from typing import Any

LEARNING_RATE = {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-8, "decay_steps": 500}
LOSS = {"start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 1}
DATA = {"systems": ["a", "b"], "batch_size": 2}
SE_ATTEN = {
    "type": "se_atten", "sel": 60, "rcut": 6.0, "rcut_smth": 0.5, "neuron": [25, 50, 100],
    "axis_neuron": 16, "attn": 64, "attn_layer": 1, "seed": 3,
}  # fmt: skip


def _input(descriptor: dict[str, Any], **sections: Any) -> dict[str, Any]:
    base = {
        "model": {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": {}},
        "learning_rate": LEARNING_RATE,
        "loss": LOSS,
        "training": {"training_data": DATA, "numb_steps": 1000},
    }
    return base | sections


VERSION_1: dict[str, Any] = {
    "_comment": "DeePMD-kit 1: data among the other keys of training",
    "model": {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_a", "sel": [46, 92], "rcut_smth": 5.8, "rcut": 6.0,
            "neuron": [25, 50, 100], "resnet_dt": False, "axis_neuron": 16, "seed": 1,
        },
        "fitting_net": {"n_neuron": [240, 240, 240], "resnet_dt": True, "seed": 1},
    },
    "learning_rate": {
        "type": "exp", "start_lr": 0.005, "decay_steps": 5000, "decay_rate": 0.95,
    },
    "loss": LOSS | {"start_pref_v": 0, "limit_pref_v": 0},
    "training": {
        "systems": ["../data"], "set_prefix": "set", "stop_batch": 1000000, "batch_size": 1,
        "seed": 1, "disp_file": "lcurve.out", "disp_freq": 100, "numb_test": 10,
        "save_freq": 1000, "save_ckpt": "model.ckpt", "load_ckpt": "model.ckpt",
        "disp_training": True, "time_training": True, "profiling": False,
        "profiling_file": "timeline.json", "_comment": "that's all",
    },
}  # fmt: skip
del VERSION_1["training"]["load_ckpt"]  # refused by DeePMD-kit 3

VERSION_2 = _input(
    SE_ATTEN | {"stripped_type_embedding": True, "set_davg_zero": False},
    training={
        "training_data": DATA | {"set_prefix": "set", "auto_prob_style": "prob_sys_size"},
        "validation_data": DATA | {"set_prefix": "set", "numb_btch": 3},
        "stop_batch": 500, "numb_test": 4, "disp_file": "lcurve.out", "disp_freq": 10,
        "save_freq": 100, "save_ckpt": "model.ckpt", "tensorboard": True,
        "tensorboard_log_dir": "log", "tensorboard_freq": 1, "seed": 7,
    },
)  # fmt: skip
VERSION_31 = _input(
    SE_ATTEN | {"type": "dpa1", "smooth_type_embdding": True},
    training={
        "training_data": DATA, "numb_steps": 500, "opt_type": "AdamW", "adam_beta1": 0.8,
        "weight_decay": 0.01, "warmup_steps": 20, "warmup_start_factor": 0.1,
        "gradient_max_norm": 5.0,
    },
)  # fmt: skip
TENSORFLOW: dict[str, Any] = _input(SE_ATTEN)
TENSORFLOW["model"] |= {
    "type_embedding": {"neuron": [16], "resnet_dt": False, "seed": 1, "_comment": "none"}
}

INPUTS = [
    VERSION_1,
    VERSION_2,
    VERSION_31,
    TENSORFLOW,
    *(_input({"type": kind}) for kind in ("dpa1", "se_atten", "se_atten_v2", "se_e2_a")),
    _input({"type": "dpa1", "sel": [20, 40], "ln_eps": 1e-3, "temperature": 1.0}),
    _input(SE_ATTEN, optimizer={"type": "AdamW"}),
    _input(SE_ATTEN, optimizer={"type": "AdamW", "weight_decay": 0.02}),
    _input(SE_ATTEN, learning_rate={"type": "wsd", "start_lr": 1e-3, "stop_lr_ratio": 0.01}),
    _input(
        SE_ATTEN,
        learning_rate={"type": "cosine", "start_lr": 1e-3, "stop_lr": 1e-5, "warmup_ratio": 0.1},
    ),
    _input(SE_ATTEN, loss={"type": "ener", "loss_func": "mae", "f_use_norm": True}),
    _input(SE_ATTEN, loss={"type": "ener", "relative_f": 0.5}),
    _input(SE_ATTEN, loss={"type": "ener_hess", "use_huber": True, "huber_delta": [0.1, 0.2, 1]}),
    _input(SE_ATTEN, loss={}),
    _input(
        SE_ATTEN,
        training={
            "training_data": DATA, "validation_data": DATA, "numb_epoch": 3, "enable_ema": True,
            "ema_decay": 0.99, "max_ckpt_keep": 3,
        },
        validating={"full_validation": True, "validation_freq": 200, "full_val_start": 0},
    ),
    _input(
        SE_ATTEN,
        training={
            "training_data": DATA, "numb_steps": 1000, "save_freq": 30, "ckpt_keep_ratio": 0.25,
        },
    ),
]  # fmt: skip
