"""What every key of a DeePMD-kit `input.json` means to dpaflow; read by `deepmd_input.py`.

Defaults are those of DeePMD-kit 3.2's input schema; `by_class` turns them into those of its
PyTorch classes, which differ and apply to the `model_params` of a checkpoint.
"""

# ruff: noqa: FBT003  (defaults of keys)
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dpa_core import config, deepmd_old
from dpa_core import deepmd_values as values

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
    why
        Why it is dropped or refused, or what becomes of it; in messages and documentation.
    """

    default: Any = ABSENT
    to: str | None = None
    neutral: tuple[Any, ...] | None = None
    convert: Callable[[Any], Any] | None = None
    aliases: tuple[str, ...] = ()
    why: str = ""


Table = dict[str, Key]
DICT = Key(why="its own section below")


def _harmless(why: str) -> Key:
    return Key(to="", why=why)


def _only(*values: Any, why: str) -> Key:
    return Key(to="", neutral=(*values, None), why=why)


def _each(names: str, key: Key) -> Table:
    return dict.fromkeys(names.split(), key)


SEED = "the training seed when left out"
DESCRIPTOR: Table = {
    "type": Key(why="se_atten is dpa1, se_a is se_e2_a"),
    "rcut": Key(6.0),
    "rcut_smth": Key(0.5),
    "neuron": Key([10, 20, 40], aliases=("n_neuron",)),
    "axis_neuron": Key(4, aliases=("n_axis_neuron",)),
    "activation_function": Key("tanh"),
    "resnet_dt": Key(False),
    "type_one_side": Key(False),
    "precision": Key("default", convert=values.precision, why="default is float64"),
    "trainable": Key(True),
    "seed": Key(why=SEED),
    "exclude_types": Key([]),
    "env_protection": Key(0.0),
    "spin": _only(why="dpaflow has no spin"),
}
DPA1: Table = DESCRIPTOR | {
    "sel": Key("auto", convert=values.sel_sum, why="the sum of a list"),
    "set_davg_zero": Key(True),
    "attn": Key(128),
    "attn_layer": Key(2),
    "attn_dotr": Key(True),
    "attn_mask": _only(False, why="nor does DeePMD-kit's PyTorch backend"),
    "trainable_ln": Key(True),
    "ln_eps": Key(1e-5),
    "tebd_dim": Key(8),
    "use_econf_tebd": Key(False),
    "use_tebd_bias": Key(False),
    "scaling_factor": Key(1.0),
    "normalize": Key(True),
    "temperature": Key(),
    "concat_output_tebd": Key(True),
    "lmax": _only(1, why="higher moments are not the DPA-1 of the paper"),
}
STRIPPED = "true is strip, false concat"
SE_ATTEN: Table = DPA1 | {
    "tebd_input_mode": Key("concat"),
    "smooth_type_embedding": Key(False, aliases=("smooth_type_embdding",)),
    "stripped_type_embedding": Key(to="tebd_input_mode", convert=values.mode, why=STRIPPED),
}
SE_E2_A: Table = DESCRIPTOR | {
    "sel": Key("auto", convert=values.sel), "set_davg_zero": Key(False),
}  # fmt: skip
DESCRIPTORS: dict[str, Table] = {
    "dpa1": SE_ATTEN,
    "se_atten": SE_ATTEN,
    "se_atten_v2": DPA1 | {"set_davg_zero": Key(False)},
    "se_e2_a": SE_E2_A,
    "se_a": SE_E2_A,
}
TYPE_EMBEDDING: Table = {
    "neuron": Key([8], to="tebd_dim", convert=values.one_layer, why="one layer only"),
    # One layer on one-hot types is a table of free numbers, with tanh as without.
    "activation_function": _only(
        "tanh", "linear", "Linear", "none", "None", why="the table is trained directly"
    ),
    "resnet_dt": _only(False, why="the table is trained directly"),
    "precision": _harmless("that of the descriptor"),
    "trainable": _only(True, why="freeze the descriptor"),
    "seed": _harmless("that of the descriptor"),
    "use_econf_tebd": Key(False),
    "use_tebd_bias": Key(False),
}
FITTING: Table = {
    "type": _only("ener", why="dpaflow fits energies"),
    "numb_fparam": Key(0),
    "numb_aparam": Key(0),
    "default_fparam": Key(),
    "dim_case_embd": _only(0, why="no multi-task training"),
    "neuron": Key([120, 120, 120], aliases=("n_neuron",)),
    "activation_function": Key("tanh"),
    "precision": Key("default", convert=values.precision, why="default is float64"),
    "resnet_dt": Key(True),
    "trainable": Key(True, convert=values.all_trainable, why="a list: all or nothing"),
    "rcond": Key(),
    "seed": Key(why=SEED),
    "atom_ener": Key(convert=values.atom_ener),
    "layer_name": _only(why="no multi-task training"),
    "tot_ener_zero": _only(False, why="nor does DeePMD-kit's PyTorch backend"),
    "use_aparam_as_mask": _only(False, why="dpaflow knows atoms of type -1"),
}
TABLE_POTENTIAL = _only(why="no tabulated short-range potential")
MODEL: Table = {
    "type": _only("standard", why="one descriptor and one fitting net"),
    "type_map": Key(),
    "descriptor": DICT,
    "fitting_net": DICT,
    "type_embedding": Key(why="TensorFlow's place for tebd_dim; its own section below"),
    "data_stat_nbatch": Key(10),
    "data_stat_protect": Key(1e-2),
    "data_bias_nsample": _harmless("without effect in DeePMD-kit's PyTorch backend, too"),
    "pair_exclude_types": Key([]),
    "atom_exclude_types": Key([]),
    "preset_out_bias": Key(),
    **_each("use_srtab smin_alpha sw_rmin sw_rmax", TABLE_POTENTIAL),
    "srtab_add_bias": _harmless("of use_srtab"),
    "modifier": _only(why="no long-range modifier"),
    "compress": _only(why="train first; compressed models are not trained"),
    "spin": _only(why="dpaflow has no spin"),
    **_each("finetune_head shared_dict model_dict", _only(why="no multi-task training")),
    "bridging_method": _only("None", "none", why="no analytical core"),
    **_each("bridging_r_inner bridging_r_outer", _harmless("of bridging_method")),
    **_each("info model_branch_alias", _harmless("notes")),
}

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
    return table | changed | dict.fromkeys(_SET_BY_KIT, _harmless("set by DeePMD-kit"))


ZERO = _only(0, why="only energy, force, virial and atomic energy are trained")
LOSS: Table = {
    "type": _only("ener", "ener_hess", why="dpaflow fits energies"),
    "start_pref_e": Key(0.02), "limit_pref_e": Key(1.0),
    "start_pref_f": Key(1000.0), "limit_pref_f": Key(1.0),
    "start_pref_v": Key(0.0), "limit_pref_v": Key(0.0),
    "start_pref_ae": Key(0.0), "limit_pref_ae": Key(0.0),
    **_each("start_pref_h limit_pref_h start_pref_pf limit_pref_pf", ZERO),
    **_each("start_pref_gf limit_pref_gf numb_generalized_coord", ZERO),
    "use_default_pf": _harmless("of start_pref_pf"),
    "relative_f": Key(),
    "enable_atom_ener_coeff": _only(False, why="the energy is the sum over the atoms"),
    "f_use_norm": Key(False),
    "use_huber": Key(False, why="loss_func: huber"),
    "loss_func": Key("mse"),
    "huber_delta": Key(0.01),
    "intensive_ener_virial": Key(False),
}  # fmt: skip
LEARNING_RATE: Table = {
    "type": Key("exp"),
    "start_lr": Key(REQUIRED, convert=values.number),
    "stop_lr": Key(),
    "stop_lr_ratio": Key(convert=values.number, why="becomes stop_lr"),
    "warmup_steps": Key(0),
    "warmup_ratio": Key(convert=values.number, why="becomes warmup_steps"),
    "warmup_start_factor": Key(0.0),
    "scale_by_worker": _harmless("batches are shared by the processes, not multiplied"),
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
    "weight_decay": Key(0.0),
}
WEIGHTS = "batches mix all systems, every frame alike; list a system twice to see it twice as often"
DATA: Table = {
    "systems": Key(convert=values.systems),
    "batch_size": Key(
        "auto", convert=values.batch_size, why="a number, auto, auto:N, max:N, mix:N or mixed:N"
    ),
    "rglob_patterns": _only(why="folders are searched; list them"),
    "auto_prob": Key(
        to="", neutral=("prob_sys_size", None), aliases=("auto_prob_style",), why=WEIGHTS
    ),
    "sys_probs": Key(to="", neutral=(None,), aliases=("sys_weights",), why=WEIGHTS),
    "min_pair_dist": _only(0, why="filter the data: collect has min_distance"),
    "numb_btch": Key(to="", aliases=("numb_batch",), why="the whole validation set is used"),
    "set_prefix": _harmless("without effect in DeePMD-kit, too"),
}
FILES, SPEED = "files have fixed names", "speed or display only"
EXACT = "numbers are not rounded for speed"
TRAINING: Table = {
    "training_data": DICT,
    "validation_data": DICT,
    "numb_steps": Key(
        convert=values.number, aliases=("stop_batch", "num_step", "num_steps", "numb_step")
    ),
    "numb_epoch": Key(aliases=("num_epochs", "num_epoch", "numb_epochs")),
    "seed": Key(),
    "disp_freq": Key(1000),
    "save_freq": Key(1000, convert=values.number),
    "max_ckpt_keep": Key(5),
    "ckpt_keep_ratio": Key(convert=values.number, why="becomes max_ckpt_keep"),
    "enable_ema": Key(False),
    "ema_decay": Key(0.999),
    "tensorboard": Key(False),
    "gradient_max_norm": Key(),
    "change_bias_after_training": Key(False),
    **_each("disp_file save_ckpt save_dir tensorboard_log_dir profiling_file", _harmless(FILES)),
    "stat_file": _harmless("statistics are always computed from the data"),
    "stat_file_mode": _harmless("of stat_file"),
    "ema_ckpt_keep": _harmless("the averages are in the checkpoints"),
    **_each("disp_training time_training disp_avg tensorboard_freq", _harmless(SPEED)),
    **_each("profiling enable_profiler enable_compile", _harmless(SPEED)),
    "enable_tf32": _harmless(EXACT),
    "neighbor_graph_method": _harmless(SPEED),
    "numb_test": _harmless("without effect in DeePMD-kit, too"),
    "acc_freq": _only(1, why="nor does DeePMD-kit's PyTorch backend; enlarge the batch"),
    "zero_stage": _only(0, why="every process holds the whole model and optimizer"),
    "mixed_precision": _only(why="set precision of descriptor and fitting_net"),
    **_each("data_dict model_prob num_epoch_dict", _only(why="no multi-task training")),
}
BEST = "the model with the smallest validation loss is kept"
VALIDATING: Table = {
    "full_validation": Key(False, why="validation_freq becomes training.valid_freq"),
    "ema_full_validation": Key(False, why="as full_validation, with training.enable_ema"),
    "validation_freq": Key(5000),
    **_each("save_best save_best_dir max_best_ckpt validation_metric", _harmless(BEST)),
    "full_val_file": _harmless(FILES),
    "full_val_start": _harmless("validation starts with training"),
    "compiled_infer": _harmless(SPEED),
    **_each("tf32_infer amp_infer", _harmless(EXACT)),
}
TOP: Table = {
    "model": Key(REQUIRED, why=DICT.why),
    **_each("loss learning_rate optimizer", DICT),
    "training": Key(REQUIRED, why=DICT.why),
    "validating": DICT,
    "loss_dict": _only(why="no multi-task training"),
    "nvnmd": _only(why="no NVNMD hardware"),
}


def _foreign(ours: Any, *tables: Table, old: tuple[str, ...] = ()) -> frozenset[str]:
    """Keys of the tables, with aliases and those of older versions, that our blocks lack."""
    names = {n for table in tables for name, key in table.items() for n in (name, *key.aliases)}
    return frozenset(names.union(old) - {f for block in ours for f in block.model_fields})


_NONE: frozenset[str] = frozenset()
_DESCRIPTOR = (config.DPA1Config, config.SeE2AConfig)
# Section -> keys, and values of `type`, that a DeePMD-kit input has and our settings have not.
FOREIGN: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "": (_foreign([config.TrainConfig], TOP), _NONE),
    "model": (_foreign([config.ModelConfig], MODEL), _NONE),
    "model.descriptor": (
        _foreign(_DESCRIPTOR, SE_ATTEN), frozenset(("se_atten", "se_atten_v2", "se_a"))
    ),
    "model.fitting_net": (_foreign([config.FittingConfig], FITTING), _NONE),
    "loss": (_foreign([config.LossConfig], LOSS), _NONE),
    "learning_rate": (_foreign([config.LearningRateConfig], LEARNING_RATE), _NONE),
    "optimizer": (_foreign([config.OptimizerConfig], OPTIMIZER), _NONE),
    "training": (_foreign([config.TrainingConfig], TRAINING, old=deepmd_old.TRAINING), _NONE),
    "training.training_data": (_foreign([config.DataConfig], DATA), _NONE),
    "training.validation_data": (_foreign([config.DataConfig], DATA), _NONE),
}  # fmt: skip
