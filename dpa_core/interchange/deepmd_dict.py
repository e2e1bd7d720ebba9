"""DeePMD-kit's backend-independent dictionary -> what a model holds.

`.dp` and `.yaml` files are two ways to write this dictionary. Hyperparameters stand in it several
times (descriptor, its networks, their layers); what decides for DeePMD-kit is read, the rest must
agree with it. Every key is either read, known to change nothing, or the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa_core.config import DPA1Config, ModelConfig, parse_config
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.content import Content, with_own_note
from dpa_core.interchange.deepmd_names import Names, to_ours

# @class -> newest @version that is read; all begin at 1.
VERSIONS = {
    "Model": 2, "Fitting": 4, "NetworkCollection": 1, "EmbeddingNetwork": 2, "FittingNetwork": 1,
    "Layer": 2, "LayerNorm": 1, "NeighborGatedAttention": 1, "TypeEmbedNet": 2,
}  # fmt: skip
DESCRIPTOR_VERSIONS = {"dpa1": 4, "se_atten": 4, "se_atten_v2": 4, "se_e2_a": 3, "se_a": 3}
PRECISIONS = {"default": "float64", "double": "float64", "single": "float32"}
PRECISIONS |= {"float64": "float64", "float32": "float32"}

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
_NETS = {"embeddings", "embeddings_strip", "attention_layers", "env_mat", "type_embedding"}
# Keys that must have one of these values: anything else is a model we do not have.
_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "attn_mask": (False, None), "spin": (None,), "lmax": (1, None), "compress": (None,),
    "dim_case_embd": (0, None), "tot_ener_zero": (False, None), "layer_name": (None,),
    "use_aparam_as_mask": (False, None), "var_name": ("energy",), "dim_out": (1, None),
    "seed": None, "stripped_type_embedding": None,
}  # fmt: skip


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
        model = _mapping(data, "the file")["model"]
        config = _config(_mapping(model, "model"), path)
        _check_parts(model, config)
        tensors = _tensors(model, config)
    except KeyError as error:
        raise ModelFileError(f"{path}: {error.args[0]} is missing") from error
    except (_Refused, ConfigError) as error:
        raise ModelFileError(f"{path}: {error}") from error
    origin = {k: data[k] for k in ("software", "version", "backend", "time") if k in data}
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


class _Refused(Exception):
    """Something in the dictionary is wrong or not supported; the text says where and what."""


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"{where} is {type(value).__name__}, expected a mapping")
    return value


def _part(data: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    if key not in data:
        raise _Refused(f"{where}.{key} is missing")
    return _mapping(data[key], f"{where}.{key}")


def _config(model: dict[str, Any], path: Path) -> ModelConfig:
    _expect(model, "model", {"type": ("standard", None)})
    _version(model, "model", "Model")
    descriptor, fitting = _part(model, "descriptor", "model"), _part(model, "fitting", "model")
    kind = descriptor.get("type")
    if kind not in DESCRIPTOR_VERSIONS:
        raise _Refused(
            f"model.descriptor.type is {kind!r}; supported: {', '.join(DESCRIPTOR_VERSIONS)}"
        )
    _version(descriptor, "model.descriptor", "Descriptor", DESCRIPTOR_VERSIONS[kind])
    _expect(fitting, "model.fitting", {"type": ("ener", None)})
    _version(fitting, "model.fitting", "Fitting")
    section = {
        "type_map": model.get("type_map"),
        "descriptor": _descriptor(descriptor, kind),
        "fitting_net": _fitting(fitting),
        "pair_exclude_types": model.get("pair_exclude_types") or [],
        "atom_exclude_types": model.get("atom_exclude_types") or [],
        "preset_out_bias": _preset(model),
    }
    return parse_config(ModelConfig, section, f"{path.name}: model")


def _descriptor(data: dict[str, Any], kind: str) -> dict[str, Any]:
    where = "model.descriptor"
    mixed = kind not in ("se_e2_a", "se_a")
    _known(data, where, {*_SHARED, *(_DPA1 if mixed else ()), *_STRUCTURE, *_NETS})
    result = {key: data[key] for key in _SHARED if key in data}
    _require(data, where, ("rcut", "rcut_smth", "sel", "neuron", "axis_neuron"))
    result |= {"precision": _precision(data, where), "sel": data["sel"]}
    if not mixed:
        return result | {"type": "se_e2_a"}
    if kind == "se_atten_v2":
        data = {"tebd_input_mode": "strip", "smooth_type_embedding": True} | data
    # Absent in files of version 1, which have the bias.
    data = {"use_tebd_bias": True, "use_econf_tebd": False} | data
    _require(data, where, ("tebd_dim", "attn", "attn_layer", "smooth_type_embedding"))
    result |= {key: data[key] for key in _DPA1 if key in data}
    if result.get("ln_eps") is None:
        result["ln_eps"] = 1e-5
    sel = data["sel"]
    return result | {"type": "dpa1", "sel": sum(sel) if isinstance(sel, list) else sel}


def _fitting(data: dict[str, Any]) -> dict[str, Any]:
    where = "model.fitting"
    others = {"nets", "mixed_types", "dim_descrpt", "exclude_types", "trainable"}
    _known(data, where, {*_FITTING, *_STRUCTURE, *others})
    _require(data, where, ("neuron", "resnet_dt", "activation_function", "nets"))
    result = {key: data[key] for key in _FITTING if key in data}
    result["precision"] = _precision(data, where)
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
    values = _mapping(preset, "model.preset_out_bias").get("energy")
    names = model.get("type_map") or []
    if not isinstance(values, list) or len(values) != len(names) or len(preset) != 1:
        raise _Refused("model.preset_out_bias: expected energy, one entry per element of type_map")
    flat = [v[0] if isinstance(v, list) and v else v for v in values]
    return {name: v for name, v in zip(names, flat) if v is not None}


def _known(data: dict[str, Any], where: str, keys: set[str]) -> None:
    for key, value in data.items():
        if key in _NEUTRAL:
            allowed = _NEUTRAL[key]
            if allowed is not None and value not in allowed:
                raise _Refused(
                    f"{where}.{key} is {value!r}, which is not supported; supported: {allowed[0]!r}"
                )
        elif key not in keys:
            raise _Refused(f"{where}.{key} is a key that this dpaflow does not know")


def _require(data: dict[str, Any], where: str, keys: tuple[str, ...]) -> None:
    for key in keys:
        if data.get(key) is None:
            raise _Refused(f"{where}.{key} is missing")


def _precision(data: dict[str, Any], where: str) -> str:
    name = data.get("precision", "default")
    if name not in PRECISIONS:
        raise _Refused(f"{where}.precision is {name!r}; supported: float64 (also default), float32")
    return PRECISIONS[name]


def _version(data: dict[str, Any], where: str, name: str, newest: int | None = None) -> None:
    if data.get("@class", name) != name:
        raise _Refused(f"{where} is a {data['@class']!r}, expected {name!r}")
    newest, version = newest or VERSIONS[name], data.get("@version", 1)
    if not isinstance(version, int) or not 1 <= version <= newest:
        raise _Refused(f"{where}.@version is {version!r}; supported: 1 to {newest}")


def _expect(data: dict[str, Any], where: str, fields: Mapping[str, tuple[Any, ...]]) -> None:
    """Check the fields that are there; allowed values of one, the first for the message."""
    for key, allowed in fields.items():
        if key in data and data[key] not in allowed:
            raise _Refused(f"{where}.{key} is {data[key]!r}, expected {allowed[0]!r}")


def _check_parts(model: dict[str, Any], config: ModelConfig) -> None:
    """Whether networks, layers and attention are what the descriptor and fitting say."""
    descriptor, fitting = model["descriptor"], model["fitting"]
    for key in ("embeddings", "embeddings_strip"):
        if key in descriptor:
            _check_nets(descriptor[key], f"model.descriptor.{key}", config.descriptor)
    _check_nets(fitting["nets"], "model.fitting.nets", config.fitting_net)
    _expect(fitting, "model.fitting", {
        "exclude_types": (list(config.atom_exclude_types), []),
        "mixed_types": (config.descriptor.type == "dpa1",),
    })  # fmt: skip
    if isinstance(config.descriptor, DPA1Config):
        _check_types(_part(descriptor, "type_embedding", "model.descriptor"))
        attention = _part(descriptor, "attention_layers", "model.descriptor")
        _check_attention(attention, config.descriptor)


def _check_nets(data: Any, where: str, config: Any) -> None:
    data = _mapping(data, where)
    _version(data, where, "NetworkCollection")
    networks = data.get("networks")
    if not isinstance(networks, list) or not networks:
        raise _Refused(f"{where}.networks is not a list of networks")
    fits = data.get("network_type") == "fitting_network"
    for n, net in enumerate(networks):
        place = f"{where}.networks.{n}"
        _version(_mapping(net, place), place, "FittingNetwork" if fits else "EmbeddingNetwork")
        layers = net.get("layers")
        if not isinstance(layers, list) or len(layers) != len(config.neuron) + fits:
            raise _Refused(f"{place}.layers does not have {len(config.neuron) + fits} layers")
        for k, layer in enumerate(layers):
            last = fits and k == len(config.neuron)
            act = ("none", "linear", "Linear") if last else (config.activation_function,)
            _check_layer(layer, f"{place}.layers.{k}", act, not last)


def _check_layer(layer: Any, where: str, activation: tuple[str, ...], resnet: bool) -> None:
    _version(_mapping(layer, where), where, "Layer")
    allowed = {"activation_function": activation, "resnet": (resnet,)}
    _expect(layer, where, allowed)


def _check_types(data: dict[str, Any]) -> None:
    where = "model.descriptor.type_embedding"
    _version(data, where, "TypeEmbedNet")
    net = _part(data, "embedding", where)
    _version(net, f"{where}.embedding", "EmbeddingNetwork")
    layers = net.get("layers")
    if not isinstance(layers, list) or len(layers) != 1:
        raise _Refused(f"{where}.embedding.layers is not one layer, which alone is supported")
    _check_layer(
        layers[0], f"{where}.embedding.layers.0", ("Linear", "linear", "none"), resnet=True
    )


def _check_attention(data: dict[str, Any], d: DPA1Config) -> None:
    where = "model.descriptor.attention_layers"
    _version(data, where, "NeighborGatedAttention")
    layers = data.get("attention_layers")
    if not isinstance(layers, list) or len(layers) != d.attn_layer:
        raise _Refused(f"{where}.attention_layers does not have {d.attn_layer} layers")
    fields = {
        "dotr": (d.attn_dotr,), "do_mask": (False,), "scaling_factor": (d.scaling_factor,),
        "normalize": (d.normalize,), "temperature": (d.temperature,), "num_heads": (1,),
        "smooth": (d.smooth_type_embedding,), "bias": (True,), "eps": (d.ln_eps,),
        "ln_eps": (d.ln_eps, None), "hidden_dim": (d.attn,),
    }  # fmt: skip
    _expect(data, where, fields)
    for k, layer in enumerate(layers):
        place = f"{where}.attention_layers.{k}"
        _expect(_mapping(layer, place), place, fields)
        inner, norm = _part(layer, "attention_layer", place), _part(layer, "attn_layer_norm", place)
        _expect(inner, f"{place}.attention_layer", fields)
        _version(norm, f"{place}.attn_layer_norm", "LayerNorm")
        _expect(norm, f"{place}.attn_layer_norm", fields)
        for name in ("in_proj", "out_proj"):
            here = f"{place}.attention_layer.{name}"
            _check_layer(_part(inner, name, here), here, ("none", "linear", "Linear"), resnet=False)


def _tensors(model: dict[str, Any], config: ModelConfig) -> dict[str, Tensor]:
    names = Names(config.descriptor.type == "dpa1", "dict")
    tensors = dict(_defaults(config))
    for place, value in _variables(model, ""):
        name = names.ours(place)
        if value is None:
            continue  # what must be there is noticed as missing when the model is built
        if name is None:
            raise _Refused(f"model.{place} is a tensor that this dpaflow does not know")
        try:
            tensors[name] = to_ours(name, torch.from_numpy(np.array(value)), config)
        except (ValueError, TypeError) as error:
            raise _Refused(f"model.{place} {error}") from error
    return tensors


def _defaults(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Vectors that may be absent: no bias, no parameters."""
    ntypes = len(config.type_map)
    for name, value in (("out_bias", 0.0), ("out_std", 1.0), ("fitting.bias_atom_e", 0.0)):
        yield name, torch.full((ntypes,), value, dtype=torch.float64)
    net = config.fitting_net
    for name, size in (("fparam", net.numb_fparam), ("aparam", net.numb_aparam)):
        if not size:
            for end in ("avg", "inv_std"):
                yield f"fitting.{name}_{end}", torch.zeros(0, dtype=torch.float64)


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
