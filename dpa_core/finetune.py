"""From a pretrained model to one that is ready to train on new data, with any type map.

    load -> remap the types by name -> davg/dstd of new types -> refit the energy bias

What belongs to a type moves with its name: the row of the type embedding, of davg/dstd and of
the bias. The networks of DPA-1 act on embeddings and never change size; DeepPot-SE has one
net per type, so its types can only be reordered.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dpa_core.bias import change_bias
from dpa_core.config import DPA1Config, ModelConfig, SeE2AConfig, TrainConfig, require_uncompressed
from dpa_core.errors import ConfigError
from dpa_core.interchange.files import load_model
from dpa_core.model import Potential, build_model
from dpa_core.stats import compute_env_stats, compute_param_stats, sample_frames

if TYPE_CHECKING:
    from dpa_core.data import Dataset

log = logging.getLogger(__name__)

# A further head has the state of `fitting` under this prefix.
_OTHER_HEAD = re.compile(r"^other_fittings\.\d+\.")
# State with one row per type; a new type keeps the value of an untrained model.
_ROWS = ("descriptor.davg", "descriptor.dstd", "fitting.bias_atom_e", "out_bias", "out_std")
_TYPE_EMBEDDING = "descriptor.type_embedding.layer.weight"
# What a finetuning run may choose anew; everything else is the pretrained model's.
_FREE = {
    "descriptor": {"precision", "trainable", "seed"},
    "fitting_net": {"precision", "trainable", "seed", "rcond"},
}
# Bounds the model evaluations that a bias refit costs.
_BIAS_ATOMS = 50_000


def prepare_finetune(config: TrainConfig, dataset: Dataset) -> Potential:
    """Load the pretrained model of `config.finetune` and fit it to a type map and data.

    Parameters
    ----------
    config
        With `finetune`; `config.model.type_map` may be any subset, superset or permutation
        of the pretrained one. The architecture comes from the pretrained file.
    dataset
        Training data with that type map.

    Returns
    -------
    Potential
        Ready to train; its provenance keeps that of the pretrained model.

    Raises
    ------
    ConfigError
        If the configuration contradicts the pretrained architecture, or DeepPot-SE would
        need other elements.
    ModelFileError
        If the pretrained file cannot be read.
    """
    settings = config.finetune
    if settings is None:
        raise ConfigError("finetune is missing; give finetune.model, the pretrained file")
    pretrained = load_model(settings.model)
    target = merge_config(pretrained.config, config.model, settings.new_fitting)
    seed, batch_size = config.training.seed, config.training.training_data.batch_size
    model = _transfer(pretrained, target, seed, settings.new_fitting)
    new = [t for t, name in enumerate(target.type_map) if name not in pretrained.type_map]
    if new:
        log.info("new elements: %s", ", ".join(target.type_map[t] for t in new))
        compute_env_stats(model, dataset, seed, batch_size, types=new)
    if settings.new_fitting:
        compute_param_stats(model, dataset, seed, batch_size)
    mode = "set" if settings.new_fitting else settings.bias
    if mode != "none":
        refit_bias(model, dataset, mode, seed, batch_size)
    model.provenance = {
        "finetuned_from": {
            "file": Path(settings.model).name,
            "type_map": list(pretrained.type_map),
            "provenance": pretrained.provenance,
        },
        "finetune": {"bias": mode, "new_fitting": settings.new_fitting},
    }
    return model


def refit_bias(
    model: Potential,
    dataset: Dataset,
    mode: Literal["change", "set"],
    seed: int,
    batch_size: int | str,
) -> None:
    """Refit the energy bias to a sample of the training data, as large as DeePMD-kit's.

    Parameters
    ----------
    model
        Changed in place.
    dataset
        Training data; without any energy the bias stays.
    mode
        See `dpa_core.bias.change_bias`.
    seed, batch_size
        Of the run; they choose the sample.
    """
    nbatch = model.config.data_stat_nbatch
    indices = sample_frames(dataset, nbatch, batch_size, seed, _BIAS_ATOMS)
    if not np.isfinite(dataset.energies(indices)).any():
        log.warning("no sampled frame has an energy: the energy bias is left as it is")
        return
    report = change_bias(model, dataset, mode, indices)
    if report.rmse_before is not None:
        log.info(
            "energy bias refitted to %d frames: RMSE %.4g -> %.4g eV/atom",
            report.nframes, report.rmse_before, report.rmse_after,
        )  # fmt: skip


def remap_types(model: Potential, new_type_map: Sequence[str], seed: int = 1) -> Potential:
    """Give a model another type map.

    Energies of structures made of kept elements do not change. Rows of new elements: type
    embedding uniform in [0, 1), davg 0, dstd 1, bias 0, out_std 1 (DeePMD-kit).

    Parameters
    ----------
    model
        Left as it is.
    new_type_map
        Any subset, superset or permutation; the same set of elements for DeepPot-SE.
    seed
        Of the new rows.

    Returns
    -------
    Potential
        A new model, on the CPU.

    Raises
    ------
    ConfigError
        If DeepPot-SE would need other elements, or a name occurs twice.
    """
    target = _transfer(model, remap_config(model.config, new_type_map), seed)
    target.provenance = model.provenance
    return target


def set_trainable(model: Potential, what: Literal["all", "fitting", "last_layer"]) -> None:
    """Choose the weights an optimizer may change; the others get requires_grad False.

    `descriptor.trainable`, `fitting_net.trainable` and `trainable_ln` of the configuration
    hold in every case.

    Parameters
    ----------
    model
        Changed in place.
    what
        "all", the whole fitting net, or only its last linear layer.

    Raises
    ------
    ConfigError
        If `what` is none of these.
    """
    if what not in ("all", "fitting", "last_layer"):
        raise ConfigError(f'trainable is {what!r}; allowed: "all", "fitting", "last_layer"')
    config = model.config
    model.requires_grad_(requires_grad=False)
    if what == "all" and config.descriptor.trainable:
        for name, parameter in model.descriptor.named_parameters():
            norm = name.rpartition(".")[2].startswith("norm_")
            frozen = norm and not getattr(config.descriptor, "trainable_ln", True)
            parameter.requires_grad_(not frozen)
    if config.fitting_net.trainable:
        for net in (net for fitting in model.fittings for net in fitting.nets):
            part = net.get_submodule("layers")[-1] if what == "last_layer" else net  # type: ignore[index]
            part.requires_grad_(requires_grad=True)


def remap_config(config: ModelConfig, type_map: Sequence[str]) -> ModelConfig:
    """Return the configuration of the same model under another type map.

    Pairs and types are excluded, and biases preset, by element name; what names a dropped
    element is dropped.

    Raises
    ------
    ConfigError
        As `remap_types`, or if the model is compressed.
    """
    require_uncompressed(config, "finetuning or another type_map")
    old, new = config.type_map, tuple(type_map)
    if len(set(new)) != len(new) or not new:
        raise ConfigError(f"type_map must name every element once; got {list(new)}")
    position = {t: new.index(name) for t, name in enumerate(old) if name in new}
    descriptor: dict[str, Any] = {
        "exclude_types": _remap_pairs(config.descriptor.exclude_types, position)
    }
    if isinstance(config.descriptor, SeE2AConfig):
        descriptor["sel"] = _remap_sel(config.descriptor, old, new)
    fitting = config.fitting_net
    return config.model_copy(
        update={
            "type_map": new,
            "descriptor": config.descriptor.model_copy(update=descriptor),
            "fitting_net": fitting.model_copy(
                update={"atom_ener": _remap_atom_ener(config, position, len(new))}
            ),
            "pair_exclude_types": _remap_pairs(config.pair_exclude_types, position),
            "atom_exclude_types": tuple(
                sorted(position[t] for t in config.atom_exclude_types if t in position)
            ),
            "preset_out_bias": {k: v for k, v in config.preset_out_bias.items() if k in new},
        }
    )


def merge_config(
    pretrained: ModelConfig, wanted: ModelConfig, new_fitting: bool = False
) -> ModelConfig:
    """Combine the pretrained architecture with what a finetuning run may choose.

    Parameters
    ----------
    pretrained
        Configuration of the pretrained model.
    wanted
        The run's: type map, heads, precision, trainable, seed, rcond, preset_out_bias and
        data_stat_*; everything else it sets must agree with the pretrained model.
    new_fitting
        The fitting net is made anew, so its block may differ.

    Raises
    ------
    ConfigError
        Naming every key that differs, with both values.
    """
    base = remap_config(pretrained, wanted.type_map)
    update: dict[str, Any] = {
        key: getattr(wanted, key)
        for key in ("heads", "preset_out_bias", "data_stat_nbatch", "data_stat_protect")
        if key in wanted.model_fields_set
    }
    conflicts = [
        _conflict(key, getattr(base, key), getattr(wanted, key))
        for key in ("pair_exclude_types", "atom_exclude_types")
        if key in wanted.model_fields_set
    ]
    for block, free in _FREE.items():
        if block not in wanted.model_fields_set:
            continue
        have, want = getattr(base, block), getattr(wanted, block)
        if block == "fitting_net" and new_fitting:
            update[block] = want
            continue
        given = want.model_fields_set
        update[block] = have.model_copy(update={k: getattr(want, k) for k in given & free})
        if have.type != want.type:
            conflicts.append(_conflict(f"{block}.type", have.type, want.type))
            continue
        conflicts += [
            _conflict(f"{block}.{key}", getattr(have, key), getattr(want, key))
            for key in sorted(given - free)
            if getattr(want, key) != "auto"
        ]
    found = [line for line in conflicts if line]
    if found:
        raise ConfigError(
            "the configuration differs from the pretrained model in\n  "
            + "\n  ".join(found)
            + "\nleave these keys out to keep the pretrained architecture"
        )
    return base.model_copy(update=update)


def _conflict(key: str, have: Any, want: Any) -> str:
    if key.endswith("exclude_types") and have and isinstance(have[0], tuple):
        if {frozenset(p) for p in have} == {frozenset(p) for p in want}:
            return ""
    elif key == "atom_exclude_types" and set(have) == set(want):
        return ""
    return "" if have == want else f"model.{key}: {want!r}, pretrained: {have!r}"


def _remap_pairs(
    pairs: Sequence[tuple[int, int]], position: dict[int, int]
) -> tuple[tuple[int, int], ...]:
    return tuple((position[a], position[b]) for a, b in pairs if a in position and b in position)


def _remap_sel(
    config: SeE2AConfig, old: Sequence[str], new: Sequence[str]
) -> tuple[int, ...] | Literal["auto"]:
    if set(old) != set(new):
        raise ConfigError(
            f"DeepPot-SE (se_e2_a) has one net per element, so its elements cannot change: "
            f"pretrained {list(old)}, wanted {list(new)}. Use the same elements in any order, "
            "or a DPA-1 model"
        )
    return "auto" if config.sel == "auto" else tuple(config.sel[old.index(name)] for name in new)


def _remap_atom_ener(
    config: ModelConfig, position: dict[int, int], ntypes: int
) -> tuple[float | None, ...] | None:
    """Keep who subtracts the vacuum energy; one shared net does it for all types or none."""
    given = config.fitting_net.atom_ener
    if given is None:
        return None
    shared = isinstance(config.descriptor, DPA1Config) and any(e is not None for e in given)
    values: list[float | None] = [0.0 if shared else None] * ntypes
    for old, new in position.items():
        values[new] = given[old] if given[old] is not None else values[new]
    return tuple(values)


def _transfer(
    source: Potential, config: ModelConfig, seed: int, new_fitting: bool = False
) -> Potential:
    """Build `config` and fill it with the weights of `source`, types matched by name.

    Heads that `source` lacks start as copies of its first one; training deals them other
    frames, which drives them apart.
    """
    target = build_model(config, seed)
    old, state = source.state_dict(), target.state_dict()
    index = [source.type_map.index(n) if n in source.type_map else -1 for n in config.type_map]
    for name in state:
        of_first = _OTHER_HEAD.sub("fitting.", name)
        if new_fitting and of_first.startswith("fitting."):
            continue
        origin = name if name in old else of_first
        if of_first in _ROWS:
            state[name] = _gather(old[origin], state[name], index)
        elif name == _TYPE_EMBEDDING and not source.config.descriptor.use_econf_tebd:  # type: ignore[union-attr]
            state[name] = _remap_embedding(old[name], index, seed)
        else:
            state[name] = old[_source_name(origin, source, index)]
    target.load_state_dict(state)
    return target


def _gather(old: Tensor, fresh: Tensor, index: Sequence[int]) -> Tensor:
    return torch.stack([fresh[t] if k < 0 else old[k].cpu() for t, k in enumerate(index)])


def _remap_embedding(weight: Tensor, index: Sequence[int], seed: int) -> Tensor:
    """Move the rows of the table T = W + identity; new rows are uniform in [0, 1).

    The layer's skip connection adds an identity wherever its widths match (DeePMD-kit), which
    depends on the number of types: it is added to the old weights and taken off the new ones.
    """
    weight = weight.cpu().double()
    dim = weight.shape[1]
    table = weight + _identity(len(weight), dim)
    random = torch.Generator().manual_seed(seed)
    fresh = torch.rand(len(index), dim, generator=random, dtype=torch.float64)
    return _gather(table, fresh, index) - _identity(len(index), dim)


def _identity(ntypes: int, dim: int) -> Tensor:
    """Return what the skip connection adds to the table: I, [I, I] or nothing."""
    eye = torch.eye(ntypes, dtype=torch.float64)
    if dim in (ntypes, 2 * ntypes):
        return eye.repeat(1, dim // ntypes)
    return torch.zeros(ntypes, dim, dtype=torch.float64)


def _source_name(name: str, source: Potential, index: Sequence[int]) -> str:
    """Name in the old state of a tensor; only nets of single types (DeepPot-SE) move."""
    if source.descriptor.mixed_types:
        return name
    nets = r"descriptor\.embedding|(?:fitting|other_fittings\.\d+)\.nets"
    match = re.match(rf"({nets})\.(\d+)\.(.*)", name)
    if match is None:
        return name
    head, number, tail = match[1], int(match[2]), match[3]
    neighbor, centre = divmod(number, len(index))
    if head.endswith(".nets") or source.config.descriptor.type_one_side:
        return f"{head}.{index[number]}.{tail}"
    return f"{head}.{index[centre] + len(index) * index[neighbor]}.{tail}"
