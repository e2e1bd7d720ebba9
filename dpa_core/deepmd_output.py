"""Our configuration -> a DeePMD-kit 3.2 input, the way back of `deepmd_input.py`.

Every hyperparameter is written: DeePMD-kit's input schema, its PyTorch classes and its other
backends fill in different defaults. What DeePMD-kit has no key for is said under `_comment`,
which it ignores.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from dpa_core.config import (
    DataConfig,
    FinetuneConfig,
    LearningRateConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
    TrainingConfig,
    parse_config,
    require_uncompressed,
)
from dpa_core.errors import ConfigError

DATA_TO_FILL_IN = "PATH/TO/TRAINING_DATA"
READABLE = ("", ".hdf5", ".h5", ".lmdb")
"""Endings of data that DeePMD-kit reads; "" is a folder."""


def model_section(config: ModelConfig) -> dict[str, Any]:
    """Return the `model` section of a DeePMD-kit input, PyTorch backend.

    Parameters
    ----------
    config
        The model; `sel` may still be "auto".

    Returns
    -------
    dict
        Plain JSON values. DeePMD-kit stores the same as `model_params` in its checkpoints.

    Raises
    ------
    ConfigError
        DeePMD-kit has no such model: several heads, TensorFlow's numerical conventions, or
        dpaflow's tables.
    """
    require_uncompressed(config, "a model for DeePMD-kit")
    if config.heads > 1:
        raise ConfigError(
            f"heads is {config.heads}: DeePMD-kit has no model with several fitting nets; "
            "write each head by itself, MODEL#0, MODEL#1, ..."
        )
    plain = config.model_dump(mode="json")
    for part in ("descriptor", "fitting_net"):
        convention = plain[part].pop("convention", "pytorch")
        if convention != "pytorch":
            raise ConfigError(
                f"{part}.convention is {convention!r}: DeePMD-kit's PyTorch backend computes such "
                "a model differently; keep dpaflow's own format or the TensorFlow graph, or take "
                "it over with `dpaflow model convert MODEL OUT --as-pytorch`, which says how far "
                "energies and forces change"
            )
    preset = plain["preset_out_bias"]
    section = {
        "type_map": plain["type_map"],
        "descriptor": _descriptor(config, plain["descriptor"]),
        "fitting_net": _given(plain["fitting_net"]),
        "data_stat_nbatch": plain["data_stat_nbatch"],
        "data_stat_protect": plain["data_stat_protect"],
        "pair_exclude_types": plain["pair_exclude_types"],
        "atom_exclude_types": plain["atom_exclude_types"],
    }
    if preset:
        section["preset_out_bias"] = {"energy": [preset.get(e) for e in plain["type_map"]]}
    return section


def training_input(config: TrainConfig) -> dict[str, Any]:
    """Return a whole DeePMD-kit input, PyTorch backend.

    Parameters
    ----------
    config
        The run.

    Returns
    -------
    dict
        Plain JSON values; `_comment`, if there, lists what could not be expressed.

    Raises
    ------
    ConfigError
        As `model_section`.
    """
    notes = _notes(config)
    model, training = model_section(config.model), config.training
    for part in ("descriptor", "fitting_net"):
        # DeePMD-kit would draw other weights in every run.
        model[part].setdefault("seed", training.seed)
    if training.trainable != "all":
        model["descriptor"]["trainable"] = False
    validating = _validating(config, notes)
    optimizer = config.optimizer
    return {
        **({"_comment": notes} if notes else {}),
        "model": model,
        "learning_rate": _learning_rate(config.learning_rate),
        "loss": _loss(config.loss),
        "optimizer": {
            "type": optimizer.type,
            "adam_beta1": optimizer.beta1,
            "adam_beta2": optimizer.beta2,
            "weight_decay": optimizer.weight_decay,
        },
        "training": _training(training),
        **({"validating": validating} if validating else {}),
    }


def input_of_model(config: ModelConfig, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return a DeePMD-kit input that trains a model like this one, as it was trained.

    Parameters
    ----------
    config
        The model's.
    provenance
        The model's; where it holds no training settings, the recommended ones are written and
        `_comment` says so.

    Raises
    ------
    ConfigError
        As `model_section`.
    """
    stored = provenance.get("train_config")
    problem = "the model's file does not tell how it was trained"
    if isinstance(stored, dict):
        document = stored | {"model": config.model_dump(mode="json")}
        try:
            settings = parse_config(TrainConfig, document, "provenance")
        except ConfigError:
            problem = "the training settings in the model's file are of another version"
        else:
            return training_input(settings)
    result = training_input(_recommended(config))
    note = (
        f"{problem}: learning_rate, loss, optimizer and training are what DeePMD-kit recommends "
        f"for DPA-1, not what made the model; put your data in place of {DATA_TO_FILL_IN}"
    )
    return {"_comment": [note]} | result


def _recommended(model: ModelConfig) -> TrainConfig:
    """Give the run of DeePMD-kit's examples of DPA-1."""
    data = DataConfig(systems=(DATA_TO_FILL_IN,), batch_size="auto:32")
    return TrainConfig(
        model=model,
        learning_rate=LearningRateConfig(start_lr=1e-3, stop_lr=3.51e-8, decay_steps=5000),
        training=TrainingConfig(training_data=data, numb_steps=1_000_000),
    )


def _descriptor(config: ModelConfig, plain: dict[str, Any]) -> dict[str, Any]:
    if config.descriptor.type == "dpa1":
        # `lmax` stays out: 1 is what it means when left out, and older versions refuse the key.
        plain["attn_mask"] = False
    return _given(plain)


def _given(section: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None: DeePMD says the same by leaving the key out."""
    return {key: value for key, value in section.items() if value is not None}


def _loss(loss: LossConfig) -> dict[str, Any]:
    section = {"type": "ener"} | _given(loss.model_dump(mode="json"))
    huber = loss.loss_func == "huber"
    return section | {"loss_func": "mse" if huber else loss.loss_func, "use_huber": huber}


def _learning_rate(rate: LearningRateConfig) -> dict[str, Any]:
    """Write the keys of this type only: DeePMD-kit refuses those of the others."""
    own = {
        "exp": ("decay_steps", "decay_rate", "smooth"),
        "cosine": (),
        "wsd": ("decay_phase_ratio", "decay_type"),
    }[rate.type]
    common = ("type", "start_lr", "stop_lr", "warmup_steps", "warmup_start_factor")
    return _given({key: getattr(rate, key) for key in common + own})


def _training(training: TrainingConfig) -> dict[str, Any]:
    section: dict[str, Any] = {"training_data": _data(training.training_data)}
    if training.validation_data is not None:
        section["validation_data"] = _data(training.validation_data) | {"numb_btch": 1}
    section |= {
        "numb_steps": training.numb_steps,
        "numb_epoch": training.numb_epoch,
        "seed": training.seed,
        "disp_file": "lcurve.out",
        "disp_freq": training.disp_freq,
        "save_freq": training.save_freq,
        "max_ckpt_keep": training.max_ckpt_keep,
        "gradient_max_norm": training.gradient_max_norm or None,
        "enable_ema": training.enable_ema,
        "ema_decay": training.ema_decay,
        "tensorboard": training.tensorboard,
        "change_bias_after_training": training.change_bias_after_training,
    }
    return _given(section)


def _data(data: DataConfig) -> dict[str, Any]:
    return {"systems": list(data.systems), "batch_size": data.batch_size}


def _validating(config: TrainConfig, notes: list[str]) -> dict[str, Any]:
    """Write the validation of the whole set, which needs a term that the loss has."""
    if config.training.validation_data is None:
        return {}
    for term in "efv":
        if all(getattr(config.loss, f"{end}_pref_{term}") for end in ("start", "limit")):
            kind = "MAE" if config.loss.loss_func == "mae" else "RMSE"
            return {
                "full_validation": True,
                "validation_freq": config.training.valid_freq,
                "full_val_start": 0.0,
                "validation_metric": f"{term.upper()}:{kind}",
            }
    notes.append(
        f"training.valid_freq {config.training.valid_freq}: DeePMD-kit validates on the whole "
        "set only where the loss has energy, force or virial"
    )
    return {}


def _notes(config: TrainConfig) -> list[str]:
    """Name what DeePMD-kit has no key for."""
    notes = _finetune(config.finetune) if config.finetune is not None else []
    if config.training.trainable == "last_layer":
        notes.append(
            "training.trainable last_layer: DeePMD-kit cannot freeze part of a fitting net; here "
            "the whole fitting net is trained"
        )
    for block in (config.training.training_data, config.training.validation_data):
        for system in block.systems if block is not None else ():
            if system.startswith("("):
                notes.append(f"systems {system}: not known here, fill in the folders")
            elif PurePath(system.partition("#")[0]).suffix.lower() not in READABLE:
                notes.append(f"systems {system}: DeePMD-kit reads deepmd/npy, HDF5 and LMDB only")
    more = type(config).model_fields.keys() - TrainConfig.model_fields
    return notes + [
        _unknown(key, getattr(config, key))
        for key in sorted(more)
        if getattr(config, key) != type(config).model_fields[key].default
    ]


def _unknown(key: str, value: Any) -> str:
    return f"{key} {value}: DeePMD-kit has no such setting"


def _finetune(settings: FinetuneConfig) -> list[str]:
    """Tell what to run: finetuning is an option of DeePMD-kit's command, not of its input."""
    option = f"--finetune {settings.model}"
    if settings.new_fitting:
        option += " --model-branch RANDOM"
    elif settings.bias == "none":
        option = f"--init-model {settings.model}"
    notes = [
        f"finetune.model {settings.model}: run dp --pt train input.json {option}, the model "
        "written as .pt"
    ]
    if settings.bias == "set" and not settings.new_fitting:
        notes.append("finetune.bias set: DeePMD-kit's finetuning shifts the bias (change)")
    return notes
