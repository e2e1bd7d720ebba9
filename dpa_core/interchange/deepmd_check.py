"""Whether the parts of DeePMD-kit's dictionary are known and agree with each other.

Hyperparameters stand in it several times: in the descriptor or fitting, in its networks, in
their layers. Which of them decides differs between DeePMD-kit's backends, so all must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dpa_core.config import DPA1Config, FittingConfig, ModelConfig, SeE2AConfig

# @class -> newest @version that is read; all begin at 1.
VERSIONS = {
    "Model": 2, "Fitting": 4, "NetworkCollection": 1, "EmbeddingNetwork": 2, "FittingNetwork": 1,
    "Layer": 2, "LayerNorm": 1, "NeighborGatedAttention": 1, "TypeEmbedNet": 2,
}  # fmt: skip
PRECISIONS = {"default": "float64", "double": "float64", "single": "float32"}
PRECISIONS |= {"float64": "float64", "float32": "float32"}
# Keys that must have one of these values: anything else is a model we do not have.
_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "attn_mask": (False, None), "spin": (None,), "lmax": (1, None), "compress": (None,),
    "dim_case_embd": (0, None), "tot_ener_zero": (False, None), "layer_name": (None,),
    "use_aparam_as_mask": (False, None), "var_name": ("energy",), "dim_out": (1, None),
    "seed": None, "stripped_type_embedding": None,
}  # fmt: skip
_LINEAR = ("none", "linear", "Linear")
_HEAD = ("@class", "@version")

Net = DPA1Config | SeE2AConfig | FittingConfig


class Refused(Exception):
    """Something in the dictionary is wrong or not supported; the text says where and what."""


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return the value if it is a mapping."""
    if not isinstance(value, dict):
        raise Refused(f"{where} is {_shown(value)}, expected a mapping")
    return value


def part(data: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return a mapping that must be there."""
    if key not in data:
        raise Refused(f"{where}.{key} is missing")
    return mapping(data[key], f"{where}.{key}")


def check_known(data: dict[str, Any], where: str, keys: Iterable[str]) -> None:
    """Refuse keys that are not among these and not neutral."""
    for key, value in data.items():
        if key in _NEUTRAL:
            allowed = _NEUTRAL[key]
            # An array cannot be looked up; it may stand here if the file is wrong.
            if allowed is not None and (isinstance(value, np.ndarray) or value not in allowed):
                raise Refused(
                    f"{where}.{key} is {_shown(value)}, which is not supported; supported: "
                    f"{allowed[0]!r}"
                )
        elif key not in keys:
            raise Refused(f"{where}.{key} is a key that this dpaflow does not know")


def require(data: dict[str, Any], where: str, keys: tuple[str, ...]) -> None:
    """Refuse a part that lacks one of these."""
    for key in keys:
        if data.get(key) is None:
            raise Refused(f"{where}.{key} is missing")


def precision(data: dict[str, Any], where: str) -> str:
    """Return our name of a part's precision."""
    name = data.get("precision", "default")
    if not isinstance(name, str) or name not in PRECISIONS:
        raise Refused(
            f"{where}.precision is {_shown(name)}; supported: float64 (also default), float32"
        )
    return PRECISIONS[name]


def check_version(data: dict[str, Any], where: str, name: str, newest: int | None = None) -> None:
    """Refuse a part of another class or of a version that is not known."""
    if data.get("@class", name) != name:
        raise Refused(f"{where} is a {_shown(data['@class'])}, expected {name!r}")
    newest, version = newest or VERSIONS[name], data.get("@version", 1)
    whole = isinstance(version, int) and not isinstance(version, bool)
    if not whole or not 1 <= version <= newest:
        raise Refused(f"{where}.@version is {_shown(version)}; supported: 1 to {newest}")


def expect(data: dict[str, Any], where: str, fields: Mapping[str, tuple[Any, ...]]) -> None:
    """Check the fields that are there; allowed values of each, the first for the message."""
    for key, allowed in fields.items():
        if key in data and data[key] not in allowed:
            raise Refused(f"{where}.{key} is {_shown(data[key])}, expected {allowed[0]!r}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


def _agrees(data: Any, where: str, wanted: str) -> None:
    """Check the precision of a part of a network, if it says one."""
    if "precision" in data and precision(data, where) != wanted:
        raise Refused(f"{where}.precision is {data['precision']!r}, expected {wanted!r}")


def check_parts(model: dict[str, Any], config: ModelConfig) -> None:
    """Check networks, layers and attention against what the descriptor and fitting say.

    Raises
    ------
    Refused
        At the first contradiction.
    """
    descriptor, fitting = model["descriptor"], model["fitting"]
    d, types = config.descriptor, (list(config.type_map), None)
    ntypes, mixed = len(config.type_map), d.type == "dpa1"
    expect(descriptor, "model.descriptor", {"ntypes": (ntypes,), "type_map": types})
    if "env_mat" in descriptor:
        _check_environment(part(descriptor, "env_mat", "model.descriptor"), d)
    ndim = 0 if mixed else 1 if d.type_one_side else 2
    for key in ("embeddings", "embeddings_strip"):
        if key in descriptor:
            _check_nets(descriptor[key], f"model.descriptor.{key}", d, (ndim, ntypes))
    width = d.neuron[-1] * d.axis_neuron
    if isinstance(d, DPA1Config):
        width += d.tebd_dim if d.concat_output_tebd else 0
        _check_types(part(descriptor, "type_embedding", "model.descriptor"), d, config.type_map)
        attention = part(descriptor, "attention_layers", "model.descriptor")
        _check_attention(attention, d)
    fields = {
        "ntypes": (ntypes,), "type_map": types, "mixed_types": (mixed,), "dim_descrpt": (width,),
        "exclude_types": (list(config.atom_exclude_types), [], None),
    }  # fmt: skip
    expect(fitting, "model.fitting", fields)
    size = (0 if mixed else 1, ntypes)
    _check_nets(fitting["nets"], "model.fitting.nets", config.fitting_net, size)


def _check_environment(data: dict[str, Any], d: Net) -> None:
    assert not isinstance(d, FittingConfig)  # noqa: S101  (for mypy)
    where = "model.descriptor.env_mat"
    fields = {
        "rcut": (d.rcut,), "rcut_smth": (d.rcut_smth,), "use_exp_switch": (False,),
        # Some writers leave it at 0 whatever the descriptor has, and no reader reads it.
        "protection": (d.env_protection, 0.0),
    }  # fmt: skip
    check_known(data, where, fields)
    expect(data, where, fields)


def _check_nets(data: Any, where: str, config: Net, size: tuple[int, int]) -> None:
    ndim, ntypes = size
    fits = isinstance(config, FittingConfig)
    fields = {
        "ndim": (ndim,), "ntypes": (ntypes,),
        "network_type": ("fitting_network" if fits else "embedding_network",),
    }  # fmt: skip
    check_version(mapping(data, where), where, "NetworkCollection")
    check_known(data, where, (*_HEAD, *fields, "networks"))
    expect(data, where, fields)
    networks = data.get("networks")
    if not isinstance(networks, list) or len(networks) != ntypes**ndim:
        raise Refused(f"{where}.networks is not a list of {ntypes**ndim} networks")
    for n, net in enumerate(networks):
        _check_net(net, f"{where}.networks.{n}", config)


def _check_net(net: Any, where: str, config: Net) -> None:
    fits = isinstance(config, FittingConfig)
    fields: dict[str, tuple[Any, ...]] = {
        "activation_function": (config.activation_function,),
        "resnet_dt": (config.resnet_dt,),
        "neuron": (list(config.neuron),),
        **({"out_dim": (1,), "bias_out": (True,)} if fits else {"bias": (True,)}),
    }
    check_version(mapping(net, where), where, "FittingNetwork" if fits else "EmbeddingNetwork")
    # in_dim may be that of before a change of elements; the first matrix is what counts.
    check_known(net, where, (*_HEAD, *fields, "in_dim", "precision", "layers", "trainable"))
    expect(net, where, fields)
    _agrees(net, where, config.precision)
    layers = net.get("layers")
    if not isinstance(layers, list) or len(layers) != len(config.neuron) + fits:
        raise Refused(f"{where}.layers does not have {len(config.neuron) + fits} layers")
    for k, layer in enumerate(layers):
        last = fits and k == len(config.neuron)
        activation = _LINEAR if last else (config.activation_function,)
        _check_layer(layer, f"{where}.layers.{k}", config.precision, activation, not last)


def _check_layer(
    layer: Any, where: str, wanted: str, activation: tuple[str, ...] = _LINEAR, resnet: bool = True
) -> None:
    check_version(mapping(layer, where), where, "Layer")
    arrays = part(layer, "@variables", where)
    check_known(arrays, f"{where}.@variables", ("w", "b", "idt"))
    fields = {
        "activation_function": activation, "resnet": (resnet,),
        "bias": (arrays.get("b") is not None,), "use_timestep": (arrays.get("idt") is not None,),
    }  # fmt: skip
    check_known(layer, where, (*_HEAD, *fields, "@variables", "precision", "trainable"))
    expect(layer, where, fields)
    _agrees(layer, where, wanted)


def _check_types(data: dict[str, Any], d: DPA1Config, type_map: tuple[str, ...]) -> None:
    where = "model.descriptor.type_embedding"
    check_version(data, where, "TypeEmbedNet")
    # Absent in version 1, which has the bias, and so must the descriptor.
    data = {"use_tebd_bias": True} | data
    shared: dict[str, tuple[Any, ...]] = {
        "neuron": ([d.tebd_dim],), "activation_function": (*_LINEAR[::-1], None),
        "resnet_dt": (False,),
    }  # fmt: skip
    fields = shared | {
        "ntypes": (len(type_map),), "type_map": (list(type_map), None),
        "use_econf_tebd": (d.use_econf_tebd,), "use_tebd_bias": (d.use_tebd_bias,),
    }  # fmt: skip
    # The row that padding adds is made when the table is used.
    others = ("padding", "embedding", "precision", "trainable")
    check_known(data, where, (*_HEAD, *fields, *others))
    expect(data, where, fields)
    _agrees(data, where, d.precision)
    net = part(data, "embedding", where)
    where = f"{where}.embedding"
    check_version(net, where, "EmbeddingNetwork")
    fields = shared | {"bias": (d.use_tebd_bias,)}
    check_known(net, where, (*_HEAD, *fields, "in_dim", "precision", "layers", "trainable"))
    expect(net, where, fields)
    _agrees(net, where, d.precision)
    layers = net.get("layers")
    if not isinstance(layers, list) or len(layers) != 1:
        raise Refused(f"{where}.layers is not one layer, which alone is supported")
    _check_layer(layers[0], f"{where}.layers.0", d.precision)


def _check_attention(data: dict[str, Any], d: DPA1Config) -> None:
    where = "model.descriptor.attention_layers"
    check_version(data, where, "NeighborGatedAttention")
    layers = data.get("attention_layers")
    if not isinstance(layers, list) or len(layers) != d.attn_layer:
        raise Refused(f"{where}.attention_layers does not have {d.attn_layer} layers")
    fields: dict[str, tuple[Any, ...]] = {
        "dotr": (d.attn_dotr,), "do_mask": (False,), "scaling_factor": (d.scaling_factor,),
        "normalize": (d.normalize,), "temperature": (d.temperature,), "num_heads": (1,),
        "smooth": (d.smooth_type_embedding,), "bias": (True,), "eps": (d.ln_eps,),
        "ln_eps": (d.ln_eps, None), "hidden_dim": (d.attn,), "embed_dim": (d.neuron[-1],),
        "nnei": (d.sel,), "layer_num": (d.attn_layer,),
    }  # fmt: skip
    others = ("precision", "trainable_ln")
    check_known(data, where, (*_HEAD, *fields, *others, "attention_layers"))
    expect(data, where, fields)
    for k, layer in enumerate(layers):
        place = f"{where}.attention_layers.{k}"
        inner = part(mapping(layer, place), "attention_layer", place)
        norm = part(layer, "attn_layer_norm", place)
        check_version(norm, f"{place}.attn_layer_norm", "LayerNorm")
        for name, one, more in (
            ("", layer, ("attention_layer", "attn_layer_norm")),
            (".attention_layer", inner, ("in_proj", "out_proj")),
            (".attn_layer_norm", norm, (*_HEAD, "trainable", "@variables")),
        ):
            check_known(one, f"{place}{name}", (*fields, *others, *more))
            expect(one, f"{place}{name}", fields)
            _agrees(one, f"{place}{name}", d.precision)
        for name in ("in_proj", "out_proj"):
            here = f"{place}.attention_layer.{name}"
            _check_layer(part(inner, name, f"{place}.attention_layer"), here, d.precision,
                         resnet=False)  # fmt: skip
