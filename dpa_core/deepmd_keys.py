"""What every key of a DeePMD-kit `input.json` means to dpaflow; read by `deepmd_input.py`.

Defaults are those of DeePMD-kit 3.2's input schema; `by_class` turns them into those of its
PyTorch classes, which differ and apply to the `model_params` of a checkpoint.
"""

# ruff: noqa: FBT003  (defaults of keys)
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

ABSENT: Any = object()
REQUIRED: Any = object()


class Key(NamedTuple):
    """How one DeePMD key is treated.

    Attributes
    ----------
    default
        DeePMD's JSON default; ABSENT leaves the key out, and ours applies; REQUIRED: must be given.
    to
        Our name if it differs; "" drops the key.
    neutral
        Values that change nothing; any other one is an error. None: all values are fine.
    convert
        DeePMD's value -> ours; a ValueError becomes a message.
    aliases
        Other spellings.
    """

    default: Any = ABSENT
    to: str | None = None
    neutral: tuple[Any, ...] | None = None
    convert: Callable[[Any], Any] | None = None
    aliases: tuple[str, ...] = ()


Table = dict[str, Key]
HARMLESS = Key(to="")
DICT = Key()


def _only(*values: Any) -> Key:
    return Key(to="", neutral=(*values, None))


def _precision(value: Any) -> Any:
    return "float64" if value == "default" else value


def _sel_sum(value: Any) -> Any:
    if isinstance(value, list):
        return sum(value)
    return _sel(value)


def _sel(value: Any) -> Any:
    if isinstance(value, str) and value not in ("auto", "auto:1.1"):
        raise ValueError('the automatic margin is 1.1; give "auto" or a number')
    return "auto" if isinstance(value, str) else value


def _all_trainable(value: Any) -> Any:
    # DeePMD's PyTorch backend knows all or nothing, too.
    return all(value) if isinstance(value, list) else value


def _systems(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _batch_size(value: Any) -> Any:
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError("one size for all systems is needed; batches mix systems")
        value = value[0]
    if isinstance(value, int):
        return value
    rule, _, number = str(value).partition(":")
    if rule == "auto":
        return f"auto:{number or 32}"
    if rule in ("mixed", "mix") and number.isdigit():
        return int(number)
    raise ValueError('allowed: a number, "auto", "auto:N", "mixed:N"; try "auto:N"')


def _atom_ener(value: Any) -> Any:
    return value or None


DESCRIPTOR: Table = {
    "rcut": Key(6.0),
    "rcut_smth": Key(0.5),
    "neuron": Key([10, 20, 40], aliases=("n_neuron",)),
    "axis_neuron": Key(4, aliases=("n_axis_neuron",)),
    "activation_function": Key("tanh"),
    "resnet_dt": Key(False),
    "type_one_side": Key(False),
    "precision": Key("default", convert=_precision),
    "trainable": Key(True),
    "seed": Key(),
    "exclude_types": Key([]),
    "env_protection": Key(0.0),
    "spin": _only(),
    "type": HARMLESS,
}
DPA1: Table = DESCRIPTOR | {
    "sel": Key("auto", convert=_sel_sum),
    "set_davg_zero": Key(True),
    "attn": Key(128),
    "attn_layer": Key(2),
    "attn_dotr": Key(True),
    "attn_mask": _only(False),
    "trainable_ln": Key(True),
    "ln_eps": Key(1e-5),
    "tebd_dim": Key(8),
    "use_econf_tebd": Key(False),
    "use_tebd_bias": Key(False),
    "scaling_factor": Key(1.0),
    "normalize": Key(True),
    "temperature": Key(),
    "concat_output_tebd": Key(True),
    "lmax": _only(1),
}
SE_ATTEN: Table = DPA1 | {
    "tebd_input_mode": Key("concat"),
    "smooth_type_embedding": Key(False, aliases=("smooth_type_embdding",)),
    "stripped_type_embedding": Key(),
}
DESCRIPTORS: dict[str, Table] = {
    "dpa1": SE_ATTEN,
    "se_atten": SE_ATTEN,
    "se_atten_v2": DPA1 | {"set_davg_zero": Key(False)},
    "se_e2_a": DESCRIPTOR | {"sel": Key("auto", convert=_sel), "set_davg_zero": Key(False)},
}
DESCRIPTORS["se_a"] = DESCRIPTORS["se_e2_a"]

FITTING: Table = {
    "type": _only("ener"),
    "numb_fparam": Key(0),
    "numb_aparam": Key(0),
    "default_fparam": Key(),
    "dim_case_embd": _only(0),
    "neuron": Key([120, 120, 120], aliases=("n_neuron",)),
    "activation_function": Key("tanh"),
    "precision": Key("default", convert=_precision),
    "resnet_dt": Key(True),
    "trainable": Key(True, convert=_all_trainable),
    "rcond": Key(),
    "seed": Key(),
    "atom_ener": Key(convert=_atom_ener),
    "layer_name": _only(),
    "tot_ener_zero": _only(False),
    "use_aparam_as_mask": _only(False),
}
MODEL: Table = {
    "type": _only("standard"),
    "type_map": Key(),
    "descriptor": DICT,
    "fitting_net": DICT,
    "data_stat_nbatch": Key(10),
    "data_stat_protect": Key(1e-2),
    "data_bias_nsample": HARMLESS,
    "pair_exclude_types": Key([]),
    "atom_exclude_types": Key([]),
    "preset_out_bias": Key(),
    "use_srtab": _only(), "smin_alpha": _only(), "sw_rmin": _only(), "sw_rmax": _only(),
    "srtab_add_bias": HARMLESS,
    "type_embedding": _only(), "modifier": _only(), "compress": _only(), "spin": _only(),
    "finetune_head": _only(), "shared_dict": _only(), "model_dict": _only(),
    "bridging_method": _only("None", "none"),
    "bridging_r_inner": HARMLESS, "bridging_r_outer": HARMLESS,
    "info": HARMLESS, "model_branch_alias": HARMLESS,
}  # fmt: skip


# Where the defaults of DeePMD-kit's PyTorch classes are not those of its input schema.
_CUT = dict.fromkeys(("rcut", "rcut_smth", "sel"), REQUIRED)
_ATTENTION = _CUT | {"neuron": [25, 50, 100], "axis_neuron": 16, "set_davg_zero": True}
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "dpa1": _ATTENTION | {"smooth_type_embedding": True},
    "se_atten": _ATTENTION | {"smooth_type_embedding": True},
    "se_atten_v2": _ATTENTION,
    "se_e2_a": _CUT | {"neuron": [25, 50, 100], "axis_neuron": 16, "type_one_side": True},
    "se_a": _CUT | {"neuron": [25, 50, 100], "axis_neuron": 16, "type_one_side": True},
    "ener": {"neuron": [128, 128, 128]},
}
# Arguments of the classes that DeePMD-kit sets itself, over anything in the file.
_SET_BY_KIT = ("ntypes", "type_map", "mixed_types", "dim_descrpt", "embedding_width")


def by_class(table: Table, kind: str) -> Table:
    """Return the table of a descriptor or fitting net with the defaults of its PyTorch class.

    Parameters
    ----------
    table
        The section's table for input files.
    kind
        `type` of the section.
    """
    changed = {
        name: table[name]._replace(default=default)
        for name, default in CLASS_DEFAULTS[kind].items()
    }
    return table | changed | dict.fromkeys(_SET_BY_KIT, HARMLESS)


LOSS: Table = {
    "type": _only("ener"),
    **{f"{end}_pref_{term}": Key(value) for (end, term), value in {
        ("start", "e"): 0.02, ("limit", "e"): 1.0, ("start", "f"): 1000.0, ("limit", "f"): 1.0,
        ("start", "v"): 0.0, ("limit", "v"): 0.0, ("start", "ae"): 0.0, ("limit", "ae"): 0.0,
    }.items()},
    **{f"{end}_pref_{term}": _only(0) for end in ("start", "limit") for term in ("h", "pf", "gf")},
    "use_default_pf": HARMLESS,
    "relative_f": _only(),
    "enable_atom_ener_coeff": _only(False),
    "numb_generalized_coord": _only(0),
    "f_use_norm": _only(False),
    "use_huber": Key(False),
    "loss_func": Key("mse"),
    "huber_delta": Key(0.01),
    "intensive_ener_virial": Key(False),
}  # fmt: skip
LEARNING_RATE: Table = {
    "type": Key("exp"),
    "start_lr": Key(),
    "stop_lr": Key(),
    "stop_lr_ratio": Key(),
    "warmup_steps": Key(),
    "warmup_ratio": Key(),
    "warmup_start_factor": Key(0.0),
    "scale_by_worker": HARMLESS,
}
SCHEDULES: dict[str, Table] = {
    "exp": {"decay_steps": Key(5000), "decay_rate": Key(), "smooth": Key(False)},
    "cosine": {},
    "wsd": {"decay_phase_ratio": Key(0.1), "decay_type": Key("inverse_linear")},
}
OPTIMIZER: Table = {
    "type": Key("Adam"),
    "adam_beta1": Key(0.9, to="beta1"),
    "adam_beta2": Key(0.999, to="beta2"),
    "weight_decay": Key(),
}
DATA: Table = {
    "systems": Key(convert=_systems),
    "batch_size": Key("auto", convert=_batch_size),
    "rglob_patterns": _only(),
    "auto_prob": Key(to="", neutral=("prob_sys_size", None), aliases=("auto_prob_style",)),
    "sys_probs": Key(to="", neutral=(None,), aliases=("sys_weights",)),
    "min_pair_dist": _only(0),
    "numb_btch": Key(to="", aliases=("numb_batch",)),
}
TRAINING: Table = {
    "training_data": DICT,
    "validation_data": DICT,
    "numb_steps": Key(aliases=("stop_batch", "num_step", "num_steps", "numb_step")),
    "numb_epoch": Key(aliases=("num_epochs", "num_epoch", "numb_epochs")),
    "seed": Key(),
    "disp_freq": Key(1000),
    "save_freq": Key(1000),
    "max_ckpt_keep": Key(5),
    "enable_ema": Key(False),
    "ema_decay": Key(0.999),
    "tensorboard": Key(False),
    "gradient_max_norm": Key(),
    # Names of files: ours have fixed names inside the output folder.
    "disp_file": HARMLESS, "save_ckpt": HARMLESS, "save_dir": HARMLESS,
    "tensorboard_log_dir": HARMLESS, "profiling_file": HARMLESS,
    # Caches, logging and speed.
    "stat_file": HARMLESS, "stat_file_mode": HARMLESS, "ema_ckpt_keep": HARMLESS,
    "disp_training": HARMLESS, "time_training": HARMLESS, "disp_avg": HARMLESS,
    "profiling": HARMLESS, "enable_profiler": HARMLESS, "tensorboard_freq": HARMLESS,
    "neighbor_graph_method": HARMLESS, "enable_compile": HARMLESS,
    "ckpt_keep_ratio": _only(),
    "change_bias_after_training": _only(False),
    "acc_freq": _only(1),
    "zero_stage": _only(0),
    "enable_tf32": _only(False),
    "mixed_precision": _only(),
    "data_dict": _only(), "model_prob": _only(), "num_epoch_dict": _only(),
}  # fmt: skip
VALIDATING: Table = {
    "full_validation": Key(False),
    "validation_freq": Key(5000),
    **dict.fromkeys(
        (
            "ema_full_validation", "save_best", "save_best_dir", "max_best_ckpt",
            "validation_metric", "full_val_file", "full_val_start", "compiled_infer",
            "tf32_infer", "amp_infer",
        ),
        HARMLESS,
    ),
}  # fmt: skip
TOP: Table = {
    "model": DICT, "loss": DICT, "learning_rate": DICT, "optimizer": DICT,
    "training": DICT, "validating": DICT, "loss_dict": _only(), "nvnmd": _only(),
}  # fmt: skip
