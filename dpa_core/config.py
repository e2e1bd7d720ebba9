"""The configuration tree: model, loss, learning rate, optimizer, data and training.

One frozen pydantic tree under DeePMD's names; the docstring under a field is its only
description and its default is the only default. A DeePMD `input.json` enters through
`deepmd_input.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dpa_core.config_errors import parse_config as parse_config
from dpa_core.errors import ConfigError

Precision = Literal["float32", "float64"]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
# Whose formulas: DeePMD-kit's PyTorch and TensorFlow backends differ in details.
Convention = Literal["pytorch", "tensorflow"]


ACTIVATIONS = (
    "tanh", "relu", "relu6", "softplus", "sigmoid", "gelu", "gelu_tf", "silu",
    "silut", "custom_silu", "linear", "none",
)  # fmt: skip


def check_activation(name: str) -> None:
    """Raise ValueError unless `name` is an activation, e.g. "tanh" or "silut:5.0"."""
    base, _, threshold = name.lower().partition(":")
    if base not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    if threshold:
        if base not in ("silut", "custom_silu"):
            raise ValueError(f"activation {base!r} takes no threshold, got {name!r}")
        float(threshold)


class Config(pydantic.BaseModel):
    """Base of every configuration block: frozen; unknown keys, inf and nan are errors."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class CompressionConfig(Config):
    """Tables in place of the embedding nets (`dpaflow model compress`); for inference only."""

    lower: float
    """Where the tables begin, in units of s, the normalised radial value."""
    stride: PositiveFloat
    """Width of a bin."""
    nbins: Annotated[int, Field(gt=0, le=2**20)]
    """Bins of every table."""
    min_distance: PositiveFloat
    """Å. Distance down to which the tables reach."""


class _Descriptor(Config):
    rcut: PositiveFloat = 6.0
    """Å. Cutoff radius."""
    rcut_smth: NonNegativeFloat = 0.5
    """Å. Where the switch starts to fall; below rcut."""
    neuron: tuple[PositiveInt, ...] = Field((25, 50, 100), min_length=1)
    """Widths of the embedding net."""
    axis_neuron: PositiveInt = 16
    """Columns of the second factor of the descriptor; at most neuron[-1]."""
    activation_function: str = "tanh"
    """tanh, relu, relu6, softplus, sigmoid, gelu, gelu_tf, silu, silut[:T], linear, none."""
    resnet_dt: bool = False
    """A learnt step for every skip connection of the embedding net."""
    type_one_side: bool = False
    """Embed the neighbour's type only, not the centre's."""
    exclude_types: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    """Pairs of types that do not see each other."""
    env_protection: NonNegativeFloat = 0.0
    """Å. Added to r in the denominators of the environment matrix."""
    set_davg_zero: bool = True
    """Keep davg at 0, so that empty slots contribute nothing."""
    precision: Precision = "float32"
    """Arithmetic of the networks; coordinates and energy sums are always float64."""
    trainable: bool = True
    """False freezes the descriptor."""
    seed: Seed | None = None
    """Seed of the initial weights; the training seed when None."""
    convention: Convention = "pytorch"
    """DeePMD-kit's backend whose formulas hold; tensorflow for models read from its graphs."""
    compression: CompressionConfig | None = None
    """Of a compressed model; written by `dpaflow model compress`, never by hand."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> _Descriptor:
        if self.rcut_smth >= self.rcut:
            raise ValueError(f"rcut_smth ({self.rcut_smth}) must be below rcut ({self.rcut})")
        if self.axis_neuron > self.neuron[-1]:
            raise ValueError(
                f"axis_neuron ({self.axis_neuron}) must not exceed neuron[-1] ({self.neuron[-1]})"
            )
        check_activation(self.activation_function)
        return self


class DPA1Config(_Descriptor):
    """DPA-1 (arXiv:2208.08236): type embedding and gated attention over neighbours."""

    type: Literal["dpa1"] = "dpa1"
    sel: PositiveInt | Literal["auto"] = 120
    """Largest number of neighbours, also the 1/sel normalisation; "auto" measures the data."""
    tebd_dim: PositiveInt = 8
    """Width of the type embedding."""
    tebd_input_mode: Literal["concat", "strip"] = "concat"
    """How types enter the embedding net: concat (DPA-1) or strip (v2, compressible)."""
    attn: PositiveInt = 128
    """Width of queries, keys and values."""
    attn_layer: NonNegativeInt = 2
    """Number of attention layers."""
    attn_dotr: bool = True
    """Gate the attention by the cosine between neighbour directions."""
    normalize: bool = True
    """L2-normalise queries, keys and values."""
    temperature: float | None = None
    """Multiplier of q·k; None means (attn * scaling_factor)^(-1/2)."""
    scaling_factor: PositiveFloat = 1.0
    """Used when temperature is None."""
    smooth_type_embedding: bool = True
    """Smooth attention at the cutoff, needed for energy conservation in MD."""
    trainable_ln: bool = True
    """Train the affine weights of the LayerNorm."""
    ln_eps: PositiveFloat = 1e-5
    """Epsilon of the LayerNorm."""
    concat_output_tebd: bool = True
    """Append the centre's type embedding to the descriptor."""
    use_econf_tebd: bool = False
    """Embed electron configurations instead of one-hot types."""
    use_tebd_bias: bool = False
    """A bias in the type embedding layer."""


class SeE2AConfig(_Descriptor):
    """DeepPot-SE (se_e2_a): one embedding net per pair of types, no attention."""

    type: Literal["se_e2_a"] = "se_e2_a"
    sel: tuple[NonNegativeInt, ...] | Literal["auto"] = "auto"
    """Largest number of neighbours of each type; "auto" measures the data."""
    set_davg_zero: bool = False


DescriptorConfig = Annotated[DPA1Config | SeE2AConfig, Field(discriminator="type")]


class FittingConfig(Config):
    """Fitting net `ener`: descriptor of an atom -> its energy."""

    type: Literal["ener"] = "ener"
    neuron: tuple[PositiveInt, ...] = (240, 240, 240)
    """Widths of the hidden layers."""
    resnet_dt: bool = True
    """A learnt step for every skip connection."""
    activation_function: str = "tanh"
    """See the descriptor's."""
    precision: Precision = "float32"
    """Arithmetic of the net."""
    numb_fparam: NonNegativeInt = 0
    """Number of frame parameters."""
    numb_aparam: NonNegativeInt = 0
    """Number of atom parameters."""
    default_fparam: tuple[float, ...] | None = None
    """Frame parameters used where the data give none."""
    atom_ener: tuple[float | None, ...] | None = None
    """One entry per type; a number subtracts the net's output for an all-zero descriptor."""
    rcond: float | None = None
    """Cutoff of small singular values in the energy-bias fit; None is NumPy's default."""
    trainable: bool = True
    """False freezes the fitting net."""
    seed: Seed | None = None
    """Seed of the initial weights; the training seed when None."""
    convention: Convention = "pytorch"
    """See the descriptor's. tensorflow: skips only where hidden widths are equal."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> FittingConfig:
        check_activation(self.activation_function)
        if self.default_fparam is not None and len(self.default_fparam) != self.numb_fparam:
            raise ValueError(
                f"default_fparam has {len(self.default_fparam)} values, numb_fparam is "
                f"{self.numb_fparam}"
            )
        return self


class ModelConfig(Config):
    """A potential: type map, descriptor, fitting net and masks."""

    type_map: tuple[str, ...] = Field(min_length=1)
    """Names of the types, in the order of their indices."""
    descriptor: DescriptorConfig = DPA1Config()
    """The descriptor, chosen by `type`."""
    fitting_net: FittingConfig = FittingConfig()
    """The fitting net."""
    heads: PositiveInt = 1
    """Fitting nets on the one descriptor: a committee at nearly the price of one model."""
    pair_exclude_types: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    """Pairs of types removed from the neighbour list of the whole model."""
    atom_exclude_types: tuple[NonNegativeInt, ...] = ()
    """Types whose atomic energy is zero."""
    preset_out_bias: dict[str, float] = {}
    """Element -> fixed energy bias, eV; the others are fitted."""
    data_stat_nbatch: PositiveInt = 10
    """Batches of every system that the statistics read."""
    data_stat_protect: PositiveFloat = 1e-2
    """Smallest standard deviation of fparam and aparam."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        ntypes = len(self.type_map)
        if len(set(self.type_map)) != ntypes:
            raise ValueError(f"type_map names an element twice: {list(self.type_map)}")
        sel = self.descriptor.sel
        if isinstance(sel, tuple) and len(sel) != ntypes:
            raise ValueError(
                f"descriptor.sel has {len(sel)} numbers, type_map has {ntypes} elements; "
                "se_e2_a needs one per type"
            )
        pairs = (*self.descriptor.exclude_types, *self.pair_exclude_types)
        for t in (*self.atom_exclude_types, *(t for pair in pairs for t in pair)):
            if t >= ntypes:
                raise ValueError(f"type {t} is excluded, type_map has only {ntypes} elements")
        atom_ener = self.fitting_net.atom_ener
        if atom_ener is not None and len(atom_ener) != ntypes:
            raise ValueError(
                f"fitting_net.atom_ener has {len(atom_ener)} numbers for {ntypes} elements"
            )
        for name in self.preset_out_bias:
            if name not in self.type_map:
                raise ValueError(f"preset_out_bias names {name!r}, which is not in type_map")
        return self


def require_uncompressed(config: ModelConfig, what: str) -> None:
    """Raise ConfigError if the model is compressed, which is for inference only."""
    if config.descriptor.compression is not None:
        raise ConfigError(
            f"{what}: the model is compressed: it has tables in place of its embedding nets and "
            "is for inference only; use the model it was made from"
        )


class LossConfig(Config):
    """Energy loss; a prefactor goes from start to limit with the learning rate.

    pref(t) = limit + (start - limit) * lr(t)/start_lr. A term is active only if start and
    limit are both nonzero.
    """

    start_pref_e: NonNegativeFloat = 0.02
    limit_pref_e: NonNegativeFloat = 1.0
    start_pref_f: NonNegativeFloat = 1000.0
    limit_pref_f: NonNegativeFloat = 1.0
    start_pref_v: NonNegativeFloat = 0.0
    limit_pref_v: NonNegativeFloat = 0.0
    start_pref_ae: NonNegativeFloat = 0.0
    limit_pref_ae: NonNegativeFloat = 0.0
    loss_func: Literal["mse", "mae", "huber"] = "mse"
    """mse (DeePMD's default), mae, or huber (quadratic up to huber_delta)."""
    huber_delta: PositiveFloat | tuple[PositiveFloat, PositiveFloat, PositiveFloat] = 0.01
    """One width, or (energy/atom eV, force eV/Å, virial/atom eV)."""
    intensive_ener_virial: bool = False
    """Divide squared energy and virial errors by natoms² instead of natoms."""
    relative_f: PositiveFloat | None = None
    """eV/Å. Divide force errors by |force label| + this; None does not. Not with huber."""
    f_use_norm: bool = False
    """Length of an atom's force error instead of its three components; mae and huber only."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> LossConfig:
        if self.f_use_norm and self.loss_func == "mse":
            raise ValueError('f_use_norm needs loss_func "mae" or "huber" (got "mse")')
        if self.relative_f is not None and self.loss_func == "huber":
            raise ValueError(
                f'relative_f ({self.relative_f}) needs loss_func "mse" or "mae" (got "huber")'
            )
        return self


class LearningRateConfig(Config):
    """Learning rate against the step; warm-up is linear from warmup_start_factor."""

    type: Literal["exp", "cosine", "wsd"] = "exp"
    start_lr: PositiveFloat = 1e-3
    stop_lr: PositiveFloat = 1e-6
    decay_steps: PositiveInt = 5000
    """exp: steps between two reductions."""
    decay_rate: PositiveFloat | None = None
    """exp: factor of a reduction; None reaches stop_lr at the end."""
    smooth: bool = False
    """exp: continuous instead of stepwise."""
    warmup_steps: NonNegativeInt = 0
    warmup_start_factor: NonNegativeFloat = 0.0
    decay_phase_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """wsd: fraction of the steps that decay."""
    decay_type: Literal["inverse_linear", "cosine", "linear"] = "inverse_linear"
    """wsd: shape of the decay."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> LearningRateConfig:
        if self.stop_lr > self.start_lr:
            raise ValueError(f"stop_lr ({self.stop_lr}) must not exceed start_lr ({self.start_lr})")
        return self


class OptimizerConfig(Config):
    """Adam or AdamW."""

    type: Literal["Adam", "AdamW"] = "Adam"
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    weight_decay: NonNegativeFloat = 0.0


class DataConfig(Config):
    """Data sets and how batches are drawn from them."""

    systems: tuple[str, ...] = Field(min_length=1)
    """Folders or files of any format `dpa_core.data` reads; folders are searched."""
    batch_size: (
        PositiveInt | Annotated[str, Field(pattern=r"^(auto(:[1-9]\d*)?|max:[1-9]\d*)$")]
    ) = "auto:256"
    """Frames in a batch, or "auto:N": as many as hold at least N atoms, or "max:N": as many as
    hold at most N, and one in any case."""


class TrainingConfig(Config):
    """The training run."""

    training_data: DataConfig
    validation_data: DataConfig | None = None
    numb_steps: PositiveInt | None = None
    """Length of the run in steps; give this or numb_epoch."""
    numb_epoch: PositiveFloat | None = None
    """Length of the run in passes over the training data."""
    seed: NonNegativeInt = 1
    """Seed of weights and batch order."""
    disp_freq: PositiveInt = 100
    """Steps between two lines of the log and lcurve.csv."""
    valid_freq: PositiveInt = 1000
    """Steps between two validations."""
    save_freq: PositiveInt = 1000
    """Steps between two checkpoints."""
    max_ckpt_keep: PositiveInt = 2
    """Checkpoints kept."""
    gradient_max_norm: NonNegativeFloat = 0.0
    """Clip the gradient's norm to this; 0 does not clip."""
    enable_ema: bool = False
    """Validate and publish an exponential moving average of the weights."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    trainable: Literal["all", "fitting", "last_layer"] = "all"
    """What the optimizer may change."""
    tensorboard: bool = False
    """Write TensorBoard events."""
    change_bias_after_training: bool = False
    """Shift the energy bias of the last model to the training data when it is finished."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if (self.numb_steps is None) == (self.numb_epoch is None):
            raise ValueError("give exactly one of numb_steps and numb_epoch")
        return self


class FinetuneConfig(Config):
    """Start from a pretrained model instead of random weights."""

    model: str
    """Path of the pretrained model file."""
    bias: Literal["change", "set", "none"] = "change"
    """Energy bias before training: shift by the residual, replace by label statistics, keep."""
    new_fitting: bool = False
    """Start with a fresh fitting net (implies bias = set)."""


class TrainConfig(Config):
    """Everything `dpa_core.train.train` needs: one file describes one run."""

    model: ModelConfig
    loss: LossConfig = LossConfig()
    learning_rate: LearningRateConfig = LearningRateConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    finetune: FinetuneConfig | None = None
