"""What a model file holds, whatever its format, and the one way from there to a model.

A reader returns `Content`; `build` makes the model and refuses anything that is missing, left
over, of another shape or not finite. So no tensor ever keeps a random value.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dpa_core.config import DPA1Config, ModelConfig
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.model import build_model
from dpa_core.tables import TERMS
from dpa_core.tabulated import count_pair_factors, count_tables

if TYPE_CHECKING:
    from dpa_core.model import Potential

AGAIN = "copy or train it again"
# Tables of pairs of types are made whole.
_MOST_TYPES = 2000
_MOST_NEIGHBORS = 10**6


class Content(NamedTuple):
    """A model, read but not built.

    Attributes
    ----------
    config
        With a resolved `sel`.
    tensors
        Everything `Potential.state_dict()` has, under its names.
    provenance
        What made the model, JSON-able.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    provenance: dict[str, Any]


def build(content: Content, path: str | Path) -> Potential:
    """Make the model, on the CPU.

    Raises
    ------
    ModelFileError
        If the tensors do not fit the configuration exactly or are not finite.
    """
    config, tensors, provenance = content
    _check_widths(config, tensors, path)
    try:
        model = build_model(config)
    except ConfigError as error:
        raise ModelFileError(f"{path}: the stored configuration is unusable: {error}") from error
    _check_tensors(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)
    model.provenance = provenance
    return model


def own_note(model: Potential, provenance: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a file for DeePMD-kit notes for us: what its formats have no place for.

    That is seeds, provenance, and `out_std`, which for DeePMD-kit's PyTorch backend is no part
    of an energy while its TensorFlow backend multiplies with it. In such files it is 1.
    """
    return {
        "config": model.config.model_dump(mode="json"),
        "provenance": model.provenance if provenance is None else provenance,
        "out_std": model.out_std.tolist(),
    }


def with_own_note(content: Content, note: Any) -> Content:
    """Take back what `own_note` noted, if it still fits.

    A note that contradicts the model itself, or is no note of ours, is left alone.
    """
    try:
        config = ModelConfig.model_validate(note["config"])
        provenance = dict(note["provenance"])
        out_std = torch.tensor([float(x) for x in note["out_std"]], dtype=torch.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return content
    if _numbers(config) != _numbers(content.config) or len(out_std) != len(config.type_map):
        return content
    return Content(config, {**content.tensors, "out_std": out_std}, provenance)


def _numbers(config: ModelConfig) -> ModelConfig:
    """Return the configuration without what only matters for training."""
    descriptor = config.descriptor.model_copy(update={"seed": None, "trainable": True})
    fitting = {"seed": None, "trainable": True, "rcond": None}
    return config.model_copy(
        update={
            "descriptor": descriptor,
            "fitting_net": config.fitting_net.model_copy(update=fitting),
            "preset_out_bias": {},
            "data_stat_nbatch": 1,
            "data_stat_protect": 1.0,
        }
    )


def _check_widths(config: ModelConfig, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse networks larger than the file before any memory is asked for them."""
    descriptor, fitting = config.descriptor, config.fitting_net
    ntypes, numbers = len(config.type_map), sum(t.numel() for t in tensors.values())
    mixed = isinstance(descriptor, DPA1Config)
    tables = descriptor.compression
    nets = 1 if mixed else ntypes ** (1 if descriptor.type_one_side else 2)
    if tables is not None:
        nets = 0
    fits = config.heads * (1 if mixed else ntypes)
    width = descriptor.neuron[-1] * descriptor.axis_neuron
    width += fitting.numb_fparam + fitting.numb_aparam
    # How often, and the widths of layers that follow each other.
    chains = [(nets, descriptor.neuron), (fits, (width, *fitting.neuron, 1))]
    if tables is not None:
        ntables = count_tables(descriptor, ntypes)
        chains.append((ntables, (tables.nbins * TERMS, descriptor.neuron[-1])))
        chains.append((1, (count_pair_factors(descriptor, ntypes), descriptor.neuron[-1])))
    layers = nets * len(descriptor.neuron) + fits * (len(fitting.neuron) + 1)
    if isinstance(descriptor, DPA1Config):
        chains.append((1, (ntypes, descriptor.tebd_dim)))
        chains.append((descriptor.attn_layer, (descriptor.neuron[-1], 3 * descriptor.attn)))
        layers += descriptor.attn_layer
    sel = descriptor.sel
    if sel != "auto" and (sum(sel) if isinstance(sel, tuple) else sel) > _MOST_NEIGHBORS:
        raise ModelFileError(f"{path}: sel is above {_MOST_NEIGHBORS:,}; {AGAIN}")
    if layers > len(tensors) or ntypes > _MOST_TYPES:
        raise ModelFileError(
            f"{path}: the header describes {layers} layers for {ntypes} elements, but the file "
            f"holds only {len(tensors)} tensors; {AGAIN}"
        )
    for count, chain in chains:
        if count * sum(a * b for a, b in pairwise(chain)) > numbers:
            raise ModelFileError(
                f"{path}: the header describes {count} nets of widths {list(chain)}, but the file "
                f"holds only {numbers} numbers; {AGAIN}"
            )


def _check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path
) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            problems.append(
                f"{name} is {tuple(have.shape)} {have.dtype}, "
                f"expected {tuple(want.shape)} {want.dtype}"
            )
        elif not bool(torch.isfinite(have).all()):
            problems.append(f"{name} holds nan or inf")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(
            f"{path}: tensors do not fit the configuration: {'; '.join(sorted(problems)[:3])}{more}"
        )
