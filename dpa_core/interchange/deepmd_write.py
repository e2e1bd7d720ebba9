"""A model -> DeePMD-kit's backend-independent dictionary, every hyperparameter written out.

The dictionary is that of DeePMD-kit 3.2.0. Its tensors keep our precision: statistics stay
float64 where DeePMD-kit rounds them to the precision of the descriptor when it reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dpa_core.config import DPA1Config, FittingConfig, SeE2AConfig
from dpa_core.deepmd_output import model_section
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.content import own_note
from dpa_core.interchange.deepmd_names import Names, to_theirs

if TYPE_CHECKING:
    from pathlib import Path

    from dpa_core.model import Potential

Arrays = dict[str, NDArray]


def file_dictionary(
    model: Potential, path: Path, provenance: dict[str, Any] | None
) -> dict[str, Any]:
    """Everything a `.dp` or `.yaml` file holds.

    Raises
    ------
    ModelFileError
        If DeePMD-kit has nothing that gives the same numbers.
    """
    return {
        "backend": "dpaflow",
        "model_def_script": section_of(model, path),
        "model": _model(model),
        "dpaflow": own_note(model, provenance),
    }


def section_of(model: Potential, path: Path) -> dict[str, Any]:
    """Return the `model` section of DeePMD-kit's input that makes such a model.

    Raises
    ------
    ModelFileError
        As `file_dictionary`.
    """
    try:
        return model_section(model.config)
    except ConfigError as error:
        raise ModelFileError(f"{path}: DeePMD-kit cannot represent this model: {error}") from error


def _model(model: Potential) -> dict[str, Any]:
    config = model.config
    names = Names(model.descriptor.mixed_types, "dict")
    arrays: Arrays = {}
    for name, value in model.state_dict().items():
        place = names.theirs(name)
        if place is None:
            raise AssertionError(f"{name} has no place in DeePMD-kit's dictionary")
        arrays[place] = to_theirs(name, value, model.descriptor.nnei).numpy()
    return {
        "@class": "Model",
        "@version": 2,
        "type": "standard",
        "type_map": list(config.type_map),
        "atom_exclude_types": list(config.atom_exclude_types),
        "pair_exclude_types": [list(pair) for pair in config.pair_exclude_types],
        "rcond": config.fitting_net.rcond,
        # Already in out_bias; DeePMD-kit 3.2.0 cannot write a file that has it again.
        "preset_out_bias": None,
        "@variables": {k: arrays[f"@variables.{k}"] for k in ("out_bias", "out_std")},
        "descriptor": _descriptor(model, arrays),
        "fitting": _fitting(model, arrays),
    }


def _descriptor(model: Potential, arrays: Arrays) -> dict[str, Any]:
    config = model.config.descriptor
    ntypes = len(model.type_map)
    shared = {
        "@class": "Descriptor",
        "type": config.type,
        "@version": 2,
        "rcut": config.rcut,
        "rcut_smth": config.rcut_smth,
        "sel": list(model.descriptor.sel),
        "neuron": list(config.neuron),
        "axis_neuron": config.axis_neuron,
        "set_davg_zero": config.set_davg_zero,
        "activation_function": config.activation_function,
        "resnet_dt": config.resnet_dt,
        "type_one_side": config.type_one_side,
        "type_map": list(model.type_map),
        "precision": config.precision,
        "exclude_types": [list(pair) for pair in config.exclude_types],
        "env_protection": config.env_protection,
        "env_mat": {
            "rcut": config.rcut,
            "rcut_smth": config.rcut_smth,
            "protection": config.env_protection,
            "use_exp_switch": False,
        },
        "@variables": {k: arrays[f"descriptor.@variables.{k}"] for k in ("davg", "dstd")},
        "trainable": config.trainable,
        "spin": None,
    }
    if isinstance(config, SeE2AConfig):
        ndim = 1 if config.type_one_side else 2
        nets = _nets("descriptor.embeddings", config, ndim, ntypes, arrays)
        return shared | {"embeddings": nets}
    result = shared | {key: getattr(config, key) for key in _DPA1}
    result |= {
        "ntypes": ntypes,
        "attn_mask": False,
        "embeddings": _nets("descriptor.embeddings", config, 0, ntypes, arrays),
        "attention_layers": _attention(config, model.descriptor.nnei, arrays),
        "type_embedding": _type_embedding(model, config, arrays),
    }
    if config.tebd_input_mode == "strip":
        strip = _nets("descriptor.embeddings_strip", config, 0, ntypes, arrays)
        result["embeddings_strip"] = strip
    return result


_DPA1 = (
    "tebd_dim", "tebd_input_mode", "attn", "attn_layer", "attn_dotr", "scaling_factor",
    "normalize", "temperature", "trainable_ln", "ln_eps", "smooth_type_embedding",
    "concat_output_tebd", "use_econf_tebd", "use_tebd_bias",
)  # fmt: skip


def _fitting(model: Potential, arrays: Arrays) -> dict[str, Any]:
    config = model.config.fitting_net
    mixed, ntypes = model.descriptor.mixed_types, len(model.type_map)
    variables: dict[str, Any] = {"bias_atom_e": arrays["fitting.@variables.bias_atom_e"]}
    variables["case_embd"] = None
    for name, size in (("fparam", config.numb_fparam), ("aparam", config.numb_aparam)):
        for end in ("avg", "inv_std"):
            key = f"{name}_{end}"
            variables[key] = arrays[f"fitting.@variables.{key}"] if size else None
    return {
        "@class": "Fitting",
        "@version": 4,
        "type": "ener",
        "var_name": "energy",
        "ntypes": ntypes,
        "dim_descrpt": model.descriptor.dim_out,
        "neuron": list(config.neuron),
        "resnet_dt": config.resnet_dt,
        "numb_fparam": config.numb_fparam,
        "numb_aparam": config.numb_aparam,
        "dim_case_embd": 0,
        "default_fparam": _list(config.default_fparam),
        "activation_function": config.activation_function,
        "precision": config.precision,
        "mixed_types": mixed,
        "nets": _nets("fitting.nets", config, 0 if mixed else 1, ntypes, arrays),
        "rcond": config.rcond,
        "exclude_types": list(model.config.atom_exclude_types),
        "@variables": variables,
        "type_map": list(model.type_map),
        "tot_ener_zero": False,
        "trainable": [config.trainable] * (len(config.neuron) + 1),
        "layer_name": None,
        "use_aparam_as_mask": False,
        "spin": None,
        "dim_out": 1,
        "atom_ener": _list(config.atom_ener) or [],
    }


def _list(values: Any) -> list[Any] | None:
    return None if values is None else list(values)


Net = DPA1Config | SeE2AConfig | FittingConfig


def _nets(place: str, config: Net, ndim: int, ntypes: int, arrays: Arrays) -> dict[str, Any]:
    fits = isinstance(config, FittingConfig)
    count = ntypes**ndim
    return {
        "@class": "NetworkCollection",
        "@version": 1,
        "ndim": ndim,
        "ntypes": ntypes,
        "network_type": "fitting_network" if fits else "embedding_network",
        "networks": [_net(f"{place}.networks.{n}", config, arrays) for n in range(count)],
    }


def _net(place: str, config: Net, arrays: Arrays) -> dict[str, Any]:
    depth = len(config.neuron)
    act = config.activation_function
    layers = [_layer(f"{place}.layers.{k}", config, act, arrays) for k in range(depth)]
    net = {
        "@class": "EmbeddingNetwork",
        "@version": 2,
        "in_dim": len(layers[0]["@variables"]["w"]),
        "neuron": list(config.neuron),
        "activation_function": act,
        "resnet_dt": config.resnet_dt,
        "bias": True,
        "precision": config.precision,
        "layers": layers,
    }
    if isinstance(config, FittingConfig):
        del net["bias"]
        net |= {"@class": "FittingNetwork", "@version": 1, "out_dim": 1, "bias_out": True}
        last = f"{place}.layers.{depth}"
        layers.append(_layer(last, config, "none", arrays, resnet=False))
    return net


def _layer(
    place: str, config: Net, activation: str, arrays: Arrays, **flags: bool
) -> dict[str, Any]:
    values = {k: arrays.get(f"{place}.@variables.{k}") for k in ("w", "b", "idt")}
    return {
        "@class": "Layer",
        "@version": 2,
        "bias": values["b"] is not None,
        "use_timestep": values["idt"] is not None,
        "activation_function": activation,
        "resnet": True,
        "precision": config.precision,
        "trainable": config.trainable,
        "@variables": values,
    } | flags


def _attention(config: DPA1Config, nnei: int, arrays: Arrays) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "nnei": nnei,
        "embed_dim": config.neuron[-1],
        "hidden_dim": config.attn,
        "dotr": config.attn_dotr,
        "do_mask": False,
        "scaling_factor": config.scaling_factor,
        "normalize": config.normalize,
        "temperature": config.temperature,
        "precision": config.precision,
    }
    norm = {"trainable_ln": config.trainable_ln, "ln_eps": config.ln_eps}
    layers = []
    for k in range(config.attn_layer):
        place = f"descriptor.attention_layers.attention_layers.{k}"
        inner = shared | {
            "num_heads": 1,
            "bias": True,
            "smooth": config.smooth_type_embedding,
        }
        for name in ("in_proj", "out_proj"):
            here = f"{place}.attention_layer.{name}"
            inner[name] = _layer(here, config, "none", arrays, resnet=False)
        layers.append(shared | norm | {
            "attention_layer": inner,
            "attn_layer_norm": {
                "@class": "LayerNorm",
                "@version": 1,
                "eps": config.ln_eps,
                "trainable": config.trainable_ln,
                "precision": config.precision,
                "@variables": {
                    k: arrays[f"{place}.attn_layer_norm.@variables.{k}"] for k in ("w", "b")
                },
            },
        })  # fmt: skip
    head = {"@class": "NeighborGatedAttention", "@version": 1, "layer_num": config.attn_layer}
    return head | shared | norm | {"attention_layers": layers}


def _type_embedding(model: Potential, config: DPA1Config, arrays: Arrays) -> dict[str, Any]:
    layer = _layer("descriptor.type_embedding.embedding.layers.0", config, "Linear", arrays)
    shared: dict[str, Any] = {
        "neuron": [config.tebd_dim],
        "resnet_dt": False,
        "precision": config.precision,
        "activation_function": "Linear",
    }
    return shared | {
        "@class": "TypeEmbedNet",
        "@version": 2,
        "ntypes": len(model.type_map),
        "trainable": config.trainable,
        "padding": True,
        "use_econf_tebd": config.use_econf_tebd,
        "use_tebd_bias": config.use_tebd_bias,
        "type_map": list(model.type_map),
        "embedding": shared | {
            "@class": "EmbeddingNetwork",
            "@version": 2,
            "in_dim": len(layer["@variables"]["w"]),
            "bias": config.use_tebd_bias,
            "layers": [layer],
        },
    }  # fmt: skip
