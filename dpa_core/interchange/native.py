"""The native model file: safetensors, with everything else as JSON in its header.

Header (`__metadata__`): format, version, config (ModelConfig as JSON; it holds the type map),
provenance (JSON, free form: what made the model). Tensors: the model's state dict.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from dpa_core.config import DPA1Config, ModelConfig, parse_config
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.model import build_model

if TYPE_CHECKING:
    from dpa_core.model import Potential

FORMAT = "dpaflow-model"
VERSION = 1


def save_model(
    model: Potential, path: str | Path, provenance: dict[str, Any] | None = None
) -> Path:
    """Write a model file; an existing one is replaced only when the new one is complete.

    Parameters
    ----------
    model
        Any model of this package.
    path
        File to write; its folder is made if needed.
    provenance
        What made the model, JSON-able; None keeps `model.provenance`.

    Returns
    -------
    Path
        The file written.
    """
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": model.config.model_dump_json(),
        "provenance": json.dumps(model.provenance if provenance is None else provenance),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(safetensors.torch.save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_model(path: str | Path) -> Potential:
    """Read a model file.

    Parameters
    ----------
    path
        A file written by `save_model`.

    Returns
    -------
    Potential
        On the CPU, with `provenance` filled.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, of an unknown format or version, or its tensors do
        not fit its configuration.
    """
    path = Path(path)
    header = read_header(path)
    config = _config(header, path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise ModelFileError(f"{path}: cannot read the tensors: {error}; {_AGAIN}") from error
    _check_widths(config, sum(t.numel() for t in tensors.values()), path)
    try:
        model = build_model(config)
    except ConfigError as error:
        raise ModelFileError(f"{path}: the stored configuration is unusable: {error}") from error
    _check_tensors(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)
    model.provenance = header["provenance"]
    return model


def read_header(path: str | Path) -> dict[str, Any]:
    """Format, version, config, type_map and provenance of a model file, without its tensors.

    Raises
    ------
    ModelFileError
        As `load_model`.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: not a model file of dpaflow or truncated ({error}); {_AGAIN}"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ModelFileError(
            f"{path}: a safetensors file, but not a dpaflow model (format "
            f"{metadata.get('format')!r}, expected {FORMAT!r})"
        )
    if metadata.get("version") != str(VERSION):
        raise ModelFileError(
            f"{path}: format version {metadata.get('version')!r}; this dpaflow reads version "
            f"{VERSION}. Use the dpaflow that wrote the file, or a newer one"
        )
    try:
        config, provenance = (json.loads(metadata[key]) for key in ("config", "provenance"))
        type_map = list(config["type_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: the header is damaged: {error!r}; {_AGAIN}") from error
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": config,
        "type_map": type_map,
        "provenance": provenance,
    }


_AGAIN = "copy or train it again"


def _config(header: dict[str, Any], path: Path) -> ModelConfig:
    try:
        return parse_config(ModelConfig, header["config"], "configuration in the header")
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _check_widths(config: ModelConfig, elements: int, path: Path) -> None:
    """Refuse networks larger than the file before any memory is asked for them."""
    descriptor, fitting = config.descriptor, config.fitting_net
    chains = [descriptor.neuron, (descriptor.neuron[-1] * descriptor.axis_neuron,), fitting.neuron]
    if isinstance(descriptor, DPA1Config):
        chains.append((descriptor.tebd_dim,))
        if descriptor.attn_layer:
            chains.append((descriptor.neuron[-1], 3 * descriptor.attn))
            chains.append((descriptor.attn_layer,))
    for chain in chains:
        products = [a * b for a, b in pairwise(chain)]
        if max([*chain, *products]) > elements:
            raise ModelFileError(
                f"{path}: the header describes layers of widths {list(chain)}, but the file "
                f"holds only {elements} numbers; {_AGAIN}"
            )
    layers = [a * b for a, b in pairwise(fitting.neuron)]
    if config.heads * max([1, *fitting.neuron, *layers]) > elements:
        raise ModelFileError(
            f"{path}: the header describes {config.heads} fitting nets of widths "
            f"{list(fitting.neuron)}, but the file holds only {elements} numbers; {_AGAIN}"
        )


def _check_tensors(
    expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], path: Path
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
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(
            f"{path}: tensors do not fit the configuration: {'; '.join(sorted(problems)[:3])}{more}"
        )
