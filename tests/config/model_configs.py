"""Hypothesis strategies: any `ModelConfig`, any `TrainConfig` that DeePMD-kit can express."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dpa_core.config import (
    DataConfig,
    DPA1Config,
    FittingConfig,
    LearningRateConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SeE2AConfig,
    TrainConfig,
    TrainingConfig,
)

NAMES = ("O", "H", "Cu")
CUTS = {"rcut": st.floats(3.0, 9.0), "rcut_smth": st.floats(0.0, 2.5)}
WIDTHS = st.lists(st.integers(4, 64), min_size=1, max_size=4).map(tuple)
TYPES = st.integers(0, len(NAMES) - 1)
PAIRS = st.lists(st.tuples(TYPES, TYPES), max_size=2).map(tuple)
ACTIVATIONS = st.sampled_from(["tanh", "gelu", "silut:3.0", "custom_silu", "linear", "none"])
PRECISIONS = st.sampled_from(["float32", "float64"])
SEEDS = st.none() | st.integers(0, 2**31)
BOOL = st.booleans()
NETS: dict[str, Any] = {
    "activation_function": ACTIVATIONS, "resnet_dt": BOOL, "precision": PRECISIONS,
    "trainable": BOOL, "seed": SEEDS,
}  # fmt: skip
COMMON: dict[str, Any] = CUTS | NETS | {
    "neuron": WIDTHS, "axis_neuron": st.integers(1, 4), "type_one_side": BOOL,
    "exclude_types": PAIRS, "env_protection": st.floats(0, 1), "set_davg_zero": BOOL,
}  # fmt: skip
DPA1 = st.builds(
    DPA1Config, **COMMON, sel=st.integers(1, 300) | st.just("auto"), tebd_dim=st.integers(1, 16),
    tebd_input_mode=st.sampled_from(["concat", "strip"]), attn=st.integers(1, 256),
    attn_layer=st.integers(0, 4), attn_dotr=BOOL, normalize=BOOL,
    temperature=st.none() | st.floats(0.01, 10), scaling_factor=st.floats(0.1, 10),
    smooth_type_embedding=BOOL, trainable_ln=BOOL, ln_eps=st.floats(1e-9, 0.1),
    concat_output_tebd=BOOL, use_econf_tebd=BOOL, use_tebd_bias=BOOL,
)  # fmt: skip
SE = st.builds(
    SeE2AConfig, **COMMON, sel=st.just("auto") | st.tuples(*[st.integers(0, 99)] * len(NAMES))
)
NUMBERS = st.floats(-1e4, 1e4)
FITTING = st.builds(
    FittingConfig, **NETS, neuron=st.lists(st.integers(1, 64), max_size=4).map(tuple),
    numb_fparam=st.just(2), numb_aparam=st.integers(0, 3), rcond=st.none() | st.floats(0, 1),
    default_fparam=st.none() | st.tuples(NUMBERS, NUMBERS),
    atom_ener=st.none() | st.tuples(*[st.none() | NUMBERS] * len(NAMES)),
)  # fmt: skip
MODELS = st.builds(
    ModelConfig, type_map=st.permutations(NAMES).map(tuple), descriptor=DPA1 | SE,
    fitting_net=FITTING, pair_exclude_types=PAIRS,
    atom_exclude_types=st.lists(TYPES, max_size=2).map(tuple),
    preset_out_bias=st.dictionaries(st.sampled_from(NAMES), NUMBERS),
    data_stat_nbatch=st.integers(1, 99), data_stat_protect=st.floats(1e-4, 1),
)  # fmt: skip

PREFACTOR = st.sampled_from([0.0, 0.1, 2.0])
WIDTH = st.floats(1e-3, 1)
LOSSES = st.builds(
    LossConfig,
    **{f"{end}_pref_{t}": PREFACTOR for end in ("start", "limit") for t in ("e", "f", "v", "ae")},
    loss_func=st.just("mae"), f_use_norm=BOOL, relative_f=st.none() | WIDTH,
    huber_delta=WIDTH | st.tuples(WIDTH, WIDTH, WIDTH), intensive_ener_virial=BOOL,
) | st.builds(
    LossConfig, loss_func=st.just("huber"), f_use_norm=BOOL,
    huber_delta=WIDTH | st.tuples(WIDTH, WIDTH, WIDTH),
) | st.builds(
    LossConfig, loss_func=st.just("mse"), relative_f=st.none() | WIDTH, intensive_ener_virial=BOOL
)  # fmt: skip
RATE: dict[str, Any] = {
    "start_lr": st.floats(1e-4, 1e-2), "stop_lr": st.floats(1e-9, 1e-5),
    "warmup_steps": st.integers(0, 99), "warmup_start_factor": st.floats(0, 1),
}  # fmt: skip
RATES = st.builds(
    LearningRateConfig, **RATE, type=st.just("exp"), decay_steps=st.integers(1, 9999),
    decay_rate=st.none() | st.floats(0.1, 1), smooth=BOOL,
) | st.builds(LearningRateConfig, **RATE, type=st.just("cosine")) | st.builds(
    LearningRateConfig, **RATE, type=st.just("wsd"), decay_phase_ratio=st.floats(0.01, 1),
    decay_type=st.sampled_from(["inverse_linear", "cosine", "linear"]),
)  # fmt: skip
OPTIMIZERS = st.builds(
    OptimizerConfig, type=st.sampled_from(["Adam", "AdamW"]), beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.99), weight_decay=st.floats(0, 1),
)  # fmt: skip
SYSTEMS = st.lists(st.sampled_from(["a", "b/c", "d.hdf5#/x"]), min_size=1, max_size=3).map(tuple)
DATA = st.builds(
    DataConfig,
    systems=SYSTEMS,
    batch_size=st.integers(1, 9) | st.sampled_from(["auto:64", "max:9"]),
)
RUN: dict[str, Any] = {
    "training_data": DATA, "validation_data": st.none() | DATA, "seed": st.integers(0, 99),
    "disp_freq": st.integers(1, 99), "valid_freq": st.integers(1, 99),
    "save_freq": st.integers(1, 99), "max_ckpt_keep": st.integers(1, 9),
    "gradient_max_norm": st.just(0.0) | st.floats(0.1, 9), "enable_ema": BOOL,
    "ema_decay": st.floats(0, 0.99), "tensorboard": BOOL,
    "change_bias_after_training": BOOL,
}  # fmt: skip
TRAININGS = st.builds(TrainingConfig, **RUN, numb_steps=st.integers(200, 999)) | st.builds(
    TrainingConfig, **RUN, numb_epoch=st.floats(0.5, 9)
)
RUNS = st.builds(
    TrainConfig, model=MODELS, loss=LOSSES, learning_rate=RATES, optimizer=OPTIMIZERS,
    training=TRAININGS,
)  # fmt: skip
