"""DeePMD-kit's backend-independent dictionary -> what a model holds.

`.dp` and `.yaml` files are two ways to write this dictionary. Hyperparameters stand in it several
times; those of the descriptor and fitting are read, the others must agree with them
(`deepmd_check.py`). Every key is either read, known to change nothing, or the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa_core.config import ModelConfig, parse_config
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.content import Content, with_own_note
from dpa_core.interchange.deepmd_check import (
    Refused,
    check_known,
    check_parts,
    check_version,
    expect,
    mapping,
    part,
    precision,
    require,
)
from dpa_core.interchange.deepmd_names import Names, to_ours, unused_parameters
from dpa_core.tensorflow import own_skips

DESCRIPTOR_VERSIONS = {"dpa1": 4, "se_atten": 4, "se_atten_v2": 4, "se_e2_a": 3, "se_a": 3}

_SHARED = (
    "rcut", "rcut_smth", "neuron", "axis_neuron", "activation_function", "resnet_dt",
    "type_one_side", "exclude_types", "env_protection", "set_davg_zero", "trainable",
)  # fmt: skip
_DPA1 = (
    "tebd_dim", "tebd_input_mode", "attn", "attn_layer", "attn_dotr", "normalize", "temperature",
    "scaling_factor", "smooth_type_embedding", "trainable_ln", "ln_eps", "concat_output_tebd",
    "use_econf_tebd", "use_tebd_bias",
)  # fmt: skip
_FITTING = (
    "neuron", "resnet_dt", "numb_fparam", "numb_aparam", "default_fparam", "activation_function",
    "atom_ener", "rcond",
)  # fmt: skip
_STRUCTURE = {"@class", "@version", "@variables", "type", "ntypes", "type_map", "precision", "sel"}
_MODEL = {
    "@class", "@version", "@variables", "type", "type_map", "descriptor", "fitting", "rcond",
    "atom_exclude_types", "pair_exclude_types", "preset_out_bias",
}  # fmt: skip
_NETS = {"embeddings", "embeddings_strip", "attention_layers", "env_mat", "type_embedding"}


def content_of(data: Any, path: Path) -> Content:
    """Read the dictionary of a whole file: `model` and what surrounds it.

    Parameters
    ----------
    data
        Nested dictionaries and lists; arrays (NumPy) inside `@variables`.
    path
        Quoted in messages.

    Raises
    ------
    ModelFileError
        If it is not such a dictionary or holds a model that we cannot represent exactly.
    """
    try:
        model = mapping(data, "the file")["model"]
        config = _config(mapping(model, "model"), path)
        if data.get("backend") == "TensorFlow":
            config = _with_own_formulas(config)
        check_parts(model, config)
        tensors = _tensors(model, config)
    except KeyError as error:
        raise ModelFileError(f"{path}: {error.args[0]} is missing") from error
    except (Refused, ConfigError) as error:
        raise ModelFileError(f"{path}: {error}") from error
    words = ("software", "version", "backend", "time")
    origin = {k: str(data[k])[:80] for k in words if k in data}
    provenance = {"origin": {"file": path.name, **origin}}
    return with_own_note(Content(config, tensors, provenance), data.get("dpaflow"))


def refuse_name(path: Path, name: str | None) -> None:
    """Refuse `FILE#NAME` for a file that holds one model.

    Raises
    ------
    ModelFileError
        If a name is given.
    """
    if name is not None:
        raise ModelFileError(f"{path}#{name}: the file holds one model; leave out '#{name}'")


def _config(model: dict[str, Any], path: Path) -> ModelConfig:
    expect(model, "model", {"type": ("standard", None)})
    check_version(model, "model", "Model")
    check_known(model, "model", _MODEL)
    descriptor, fitting = part(model, "descriptor", "model"), part(model, "fitting", "model")
    kind = descriptor.get("type")
    if not isinstance(kind, str) or kind not in DESCRIPTOR_VERSIONS:
        raise Refused(
            f"model.descriptor.type is {str(kind)[:80]!r}; supported: "
            f"{', '.join(DESCRIPTOR_VERSIONS)}"
        )
    check_version(descriptor, "model.descriptor", "Descriptor", DESCRIPTOR_VERSIONS[kind])
    expect(fitting, "model.fitting", {"type": ("ener", None)})
    check_version(fitting, "model.fitting", "Fitting")
    section = {
        "type_map": model.get("type_map"),
        "descriptor": _descriptor(descriptor, kind),
        "fitting_net": _fitting(fitting),
        "pair_exclude_types": model.get("pair_exclude_types") or [],
        "atom_exclude_types": model.get("atom_exclude_types") or [],
        "preset_out_bias": _preset(model),
    }
    return parse_config(ModelConfig, section, f"{path.name}: model")


def _with_own_formulas(config: ModelConfig) -> ModelConfig:
    """Return the model that was trained where the TensorFlow backend wrote the dictionary.

    The numbers must be those of that backend, not what PyTorch makes of the same dictionary.
    For DPA-1 it does not say enough: attention has temperature 1 there, written as null, and type
    embeddings pass a tanh.
    """
    descriptor, fitting = config.descriptor, config.fitting_net
    if descriptor.type == "dpa1":
        raise Refused(
            "a DPA-1 model written by the TensorFlow backend, whose formulas this format does "
            "not hold (its attention has temperature 1, which is written as null); give the "
            "frozen graph (.pb) that the file was made from"
        )
    width_in = descriptor.neuron[-1] * descriptor.axis_neuron
    width_in += fitting.numb_fparam + fitting.numb_aparam
    gelu = fitting.activation_function == "gelu_tf" and fitting.precision == "float64"
    if gelu or own_skips(width_in, list(fitting.neuron)):
        fitting = fitting.model_copy(update={"convention": "tensorflow"})
    descriptor = descriptor.model_copy(update={"convention": "tensorflow"})
    return config.model_copy(update={"descriptor": descriptor, "fitting_net": fitting})


def _descriptor(data: dict[str, Any], kind: str) -> dict[str, Any]:
    where = "model.descriptor"
    mixed = kind not in ("se_e2_a", "se_a")
    check_known(data, where, {*_SHARED, *(_DPA1 if mixed else ()), *_STRUCTURE, *_NETS})
    result = {key: data[key] for key in _SHARED if key in data}
    # DeePMD-kit's defaults are not ours.
    require(data, where, (*_SHARED[:7], "sel", "@variables", "embeddings"))
    result |= {"precision": precision(data, where), "sel": data["sel"]}
    if not mixed:
        return result | {"type": "se_e2_a"}
    if kind == "se_atten_v2":
        data = {"tebd_input_mode": "strip", "smooth_type_embedding": True} | data
    # Absent in files of version 1, which have the bias.
    data = {"use_tebd_bias": True, "use_econf_tebd": False} | data
    require(data, where, (*_DPA1[:5], "smooth_type_embedding"))
    result |= {key: data[key] for key in _DPA1 if key in data}
    if result.get("ln_eps") is None:
        result["ln_eps"] = 1e-5
    sel = data["sel"]
    if isinstance(sel, list) and all(isinstance(n, int) for n in sel):
        sel = sum(sel)
    return result | {"type": "dpa1", "sel": sel}


def _fitting(data: dict[str, Any]) -> dict[str, Any]:
    where = "model.fitting"
    others = {"nets", "mixed_types", "dim_descrpt", "exclude_types", "trainable"}
    check_known(data, where, {*_FITTING, *_STRUCTURE, *others})
    require(data, where, ("neuron", "resnet_dt", "activation_function", "nets"))
    result = {key: data[key] for key in _FITTING if key in data}
    result["precision"] = precision(data, where)
    trainable = data.get("trainable")
    if isinstance(trainable, list):
        trainable = all(trainable)
    result["trainable"] = True if trainable is None else trainable
    result["atom_ener"] = result.get("atom_ener") or None
    return result


def _preset(model: dict[str, Any]) -> dict[str, float]:
    """{"energy": [null, -3.1]} in type order -> {element: eV}."""
    preset = model.get("preset_out_bias")
    if not preset:
        return {}
    values = mapping(preset, "model.preset_out_bias").get("energy")
    names = model.get("type_map")
    names = names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []
    if not isinstance(values, list) or len(values) != len(names) or len(preset) != 1:
        raise Refused("model.preset_out_bias: expected energy, one entry per element of type_map")
    flat = [v[0] if isinstance(v, list) and v else v for v in values]
    return {name: v for name, v in zip(names, flat) if v is not None}


def _tensors(model: dict[str, Any], config: ModelConfig) -> dict[str, Tensor]:
    names = Names(config.descriptor.type == "dpa1", "dict")
    tensors = dict(_defaults(config))
    for place, value in _variables(model, ""):
        name = names.ours(place)
        if value is None:
            continue  # what must be there is noticed as missing when the model is built
        if name is None:
            raise Refused(f"model.{place} is a tensor that this dpaflow does not know")
        try:
            tensors[name] = to_ours(name, torch.from_numpy(np.array(value)), config)
        except (ValueError, TypeError) as error:
            raise Refused(f"model.{place} {error}") from error
    return tensors


def _defaults(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Vectors that may be absent: no bias, no parameters."""
    ntypes = len(config.type_map)
    for name, value in (("out_bias", 0.0), ("out_std", 1.0), ("fitting.bias_atom_e", 0.0)):
        yield name, torch.full((ntypes,), value, dtype=torch.float64)
    yield from unused_parameters(config).items()


def _variables(data: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every entry of every `@variables`, with its dotted place."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(data, dict):
        items = iter(data.items())
    elif isinstance(data, list):
        items = iter(enumerate(data))
    for key, value in items:
        here = f"{place}.{key}" if place else str(key)
        if key == "@variables" and isinstance(value, dict):
            for name, array in value.items():
                yield f"{here}.{name}", array
        elif isinstance(value, dict | list):
            yield from _variables(value, here)
