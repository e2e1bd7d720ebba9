"""Our names of tensors <-> DeePMD-kit's, and their shapes: the one table all its formats use.

DeePMD-kit names a tensor in two ways: by its place in the backend-independent dictionary (here
written with dots) and by its name in the PyTorch backend's state dict. Four things are laid out
differently there: davg and dstd are repeated for every slot, per-type vectors are columns.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor

from dpa_core.config import ModelConfig

Dialect = Literal["dict", "torch"]

# Networks: (ours, dictionary, PyTorch); their layers follow in LAYER.
_DPA1_NETS = [
    ("descriptor.embedding", "descriptor.embeddings.networks.0", "se_atten.filter_layers"),
    (
        "descriptor.embedding_strip",
        "descriptor.embeddings_strip.networks.0",
        "se_atten.filter_layers_strip",
    ),
]
_LAYER = [("weight", "w", "matrix"), ("bias", "b", "bias"), ("idt", "idt", "idt")]
_ATTENTION = [
    ("in_weight", "attention_layer.in_proj.@variables.w", "attention_layer.in_proj.matrix"),
    ("in_bias", "attention_layer.in_proj.@variables.b", "attention_layer.in_proj.bias"),
    ("out_weight", "attention_layer.out_proj.@variables.w", "attention_layer.out_proj.matrix"),
    ("out_bias", "attention_layer.out_proj.@variables.b", "attention_layer.out_proj.bias"),
    ("norm_weight", "attn_layer_norm.@variables.w", "attn_layer_norm.matrix"),
    ("norm_bias", "attn_layer_norm.@variables.b", "attn_layer_norm.bias"),
]
_SLOTS = ("descriptor.davg", "descriptor.dstd")
_BIASES = ("out_bias", "out_std")
_PARAMETERS = ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
_DOUBLE = (*_SLOTS, *_BIASES, "fitting.bias_atom_e", *(f"fitting.{p}" for p in _PARAMETERS))


def unused_parameters(config: ModelConfig) -> dict[str, Tensor]:
    """Our empty statistics of fparam or aparam that a model does not have; DeePMD-kit has none."""
    net = config.fitting_net
    return {
        f"fitting.{name}_{end}": torch.zeros(0, dtype=torch.float64)
        for name, size in (("fparam", net.numb_fparam), ("aparam", net.numb_aparam))
        if not size
        for end in ("avg", "inv_std")
    }


class Names:
    """Translates names for one kind of descriptor.

    Parameters
    ----------
    mixed_types
        True for DPA-1, False for DeepPot-SE.
    dialect
        Which of DeePMD-kit's two ways.
    """

    def __init__(self, mixed_types: bool, dialect: Dialect) -> None:
        column = 1 if dialect == "dict" else 2
        pairs = [(row[0], row[column]) for row in _table(mixed_types)]
        self._theirs = [(_pattern(ours), theirs) for ours, theirs in pairs]
        self._ours = [(_pattern(theirs), ours) for ours, theirs in pairs]

    def ours(self, name: str) -> str | None:
        """Our name of their tensor; None if we have nothing like it."""
        return _translate(name, self._ours)

    def theirs(self, name: str) -> str | None:
        """Their name of our tensor."""
        return _translate(name, self._theirs)


def _table(mixed_types: bool) -> list[tuple[str, str, str]]:
    kind = "se_atten" if mixed_types else "sea"
    rows = [
        ("descriptor.davg", "descriptor.@variables.davg", f"descriptor.{kind}.mean"),
        ("descriptor.dstd", "descriptor.@variables.dstd", f"descriptor.{kind}.stddev"),
        ("out_bias", "@variables.out_bias", "out_bias"),
        ("out_std", "@variables.out_std", "out_std"),
    ]
    rows += [
        (f"fitting.{p}", f"fitting.@variables.{p}", f"fitting_net.{p}")
        for p in ("bias_atom_e", *_PARAMETERS)
    ]
    nets = [
        ("fitting.nets.{n}", "fitting.nets.networks.{n}", "fitting_net.filter_layers.networks.{n}")
    ]
    types = ("descriptor.type_embedding.layer", "descriptor.type_embedding.embedding.layers.0",
             "descriptor.type_embedding.embedding.embedding_net.layers.0")  # fmt: skip
    if mixed_types:
        nets += [(ours, path, f"descriptor.{name}.networks.0") for ours, path, name in _DPA1_NETS]
        rows += _of_layer(*types)
        for ours, path, name in _ATTENTION:
            rows.append((
                f"descriptor.attention.layers.{{k}}.{ours}",
                f"descriptor.attention_layers.attention_layers.{{k}}.{path}",
                f"descriptor.se_atten.dpa1_attention.attention_layers.{{k}}.{name}",
            ))  # fmt: skip
    else:
        nets.append((
            "descriptor.embedding.{n}", "descriptor.embeddings.networks.{n}",
            "descriptor.sea.filter_layers.networks.{n}",
        ))  # fmt: skip
    for net in nets:
        rows += _of_layer(*(f"{prefix}.layers.{{k}}" for prefix in net))
    return rows


def _of_layer(ours: str, path: str, name: str) -> list[tuple[str, str, str]]:
    return [(f"{ours}.{a}", f"{path}.@variables.{b}", f"{name}.{c}") for a, b, c in _LAYER]


def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for key in "nk":
        pattern = pattern.replace(re.escape("{" + key + "}"), f"(?P<{key}>\\d+)")
    return re.compile(pattern)


def _translate(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        found = pattern.fullmatch(name)
        if found:
            return template.format(**found.groupdict())
    return None


def to_ours(name: str, value: Tensor, config: ModelConfig) -> Tensor:
    """Their tensor in our layout and precision.

    Raises
    ------
    ValueError
        If it cannot be laid out so.
    """
    dtype = torch.float64
    if name not in _DOUBLE:
        part = config.descriptor if name.startswith("descriptor.") else config.fitting_net
        dtype = getattr(torch, part.precision)
    if not value.is_floating_point():
        raise ValueError(f"holds {value.dtype}, expected {dtype}")
    if name in _SLOTS:
        value = _same_in_all_slots(value, config.descriptor.sel)
    elif name in _DOUBLE:
        value = value.reshape(-1) if value.ndim <= 3 and value.numel() in value.shape else value
    elif name.endswith((".bias", ".idt")) and value.ndim == 2 and 1 in value.shape:
        value = value.reshape(-1)  # DeePMD-kit flattens these, too
    return value.to(dtype).contiguous()


def _same_in_all_slots(value: Tensor, sel: Any) -> Tensor:
    nnei = sum(sel) if isinstance(sel, tuple) else sel
    if value.ndim != 3 or value.shape[1] == 0 or value.shape[1] != nnei:
        raise ValueError(f"has shape {tuple(value.shape)}, expected (ntypes, {nnei}, 4)")
    if not bool((value == value[:, :1]).all()):
        raise ValueError("differs from slot to slot of a type, which no training makes")
    return value[:, 0]


def to_theirs(name: str, value: Tensor, nnei: int) -> Tensor:
    """Our tensor in their layout; precision unchanged, so that nothing is lost.

    `out_std` becomes 1, see `content.own_note`.
    """
    value = value.detach().cpu()
    if name == "out_std":
        value = torch.ones_like(value)
    if name in _SLOTS:
        return value[:, None].expand(-1, nnei, -1).contiguous()
    if name in _BIASES:
        return value[None, :, None].contiguous()
    if name == "fitting.bias_atom_e":
        return value[:, None].contiguous()
    return value.contiguous()
