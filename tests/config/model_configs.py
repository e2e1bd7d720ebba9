"""Hypothesis strategies: any `ModelConfig`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dpa_core.config import DPA1Config, FittingConfig, ModelConfig, SeE2AConfig

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
