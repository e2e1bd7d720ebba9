"""State dict and input section of DeePMD-kit's PyTorch backend -> what a model holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpa_core.config import ModelConfig
from dpa_core.deepmd_input import convert_model
from dpa_core.electrons import electron_configurations
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.content import AGAIN, Content
from dpa_core.interchange.deepmd_names import Names, to_ours, unused_parameters

# Buffers that say nothing about the numbers of a model, or must be empty.
_IGNORED = re.compile(
    r"(.*\.)?(min_nbor_dist|default_fparam_tensor|type_mask|econf_tebd)|_extra_state"
)
_COMPRESSED = re.compile(r".*\.(type_embd_data|compress_(info|data)(\.\d+)?)")


def content_of_state(
    section: dict[str, Any], state: Mapping[str, Any], origin: dict[str, Any], path: Path
) -> Content:
    """Read a model.

    Parameters
    ----------
    section
        The `model` section of the input.
    state
        Names begin with `atomic_model.`; other names must say nothing.
    origin, path
        For provenance; for messages.

    Raises
    ------
    ModelFileError
        If the model cannot be represented exactly.
    """
    try:
        config = convert_model(section, f"{path.name}: model_params", class_defaults=True)
    except ConfigError as error:
        raise ModelFileError(f"{path}: cannot be represented: {error}") from error
    names = Names(config.descriptor.type == "dpa1", "torch")
    tensors = unused_parameters(config)
    _check_sizes(state, path)
    for name, value in _without_copies(state, path).items():
        if _COMPRESSED.fullmatch(name):
            if value.numel():
                raise ModelFileError(
                    f"{path}: a compressed model ({name}); give the one it was made from"
                )
            continue
        if _IGNORED.fullmatch(name):
            _check_default(name, value, config, path)
            if name.endswith("econf_tebd"):
                _check_electrons(name, value, config, path)
            continue
        ours = names.ours(name.removeprefix("atomic_model."))
        if ours is None:
            raise ModelFileError(f"{path}: {name} is a tensor that this dpaflow does not know")
        try:
            tensors[ours] = to_ours(ours, value, config)
        except ValueError as error:
            raise ModelFileError(f"{path}: {name} {error}") from error
    info = section.get("info")
    observed = info.get("observed_type") if isinstance(info, dict) else None
    if isinstance(observed, list) and observed:
        origin = origin | {"observed_type": sorted(str(element) for element in observed)}
    return Content(config, tensors, {"origin": origin})


def _check_sizes(state: Mapping[str, Any], path: Path) -> None:
    """Check that all are tensors, which together are no larger than the file.

    Views of one record under many names would become copies when their layout changes. Both
    copies of a network may be one record, so a file may count twice.
    """
    left = 2 * path.stat().st_size
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelFileError(f"{path}: {name} is not a tensor; {AGAIN}")
        left -= value.numel() * value.itemsize
    if left < 0:
        raise ModelFileError(f"{path}: its tensors are larger than the file; {AGAIN}")


def _without_copies(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """One of each pair of duplicates; DeePMD-kit lets the second one win without a word."""
    result: dict[str, Any] = {}
    for name, value in state.items():
        single = name.replace("._networks.", ".networks.")
        if single in result and not torch.equal(result[single], value):
            raise ModelFileError(
                f"{path}: the two copies of {single} differ, so it is not clear which is "
                f"meant; {AGAIN}"
            )
        result[single] = value
    return result


def _check_default(name: str, value: Tensor, config: ModelConfig, path: Path) -> None:
    default = config.fitting_net.default_fparam
    if name.endswith("default_fparam_tensor") and default is not None:
        expected = torch.tensor(default, dtype=value.dtype)
        if not torch.equal(value.reshape(-1), expected):
            raise ModelFileError(
                f"{path}: default_fparam is {list(default)} in model_params, {value.tolist()} "
                "among the tensors"
            )


def _check_electrons(name: str, value: Tensor, config: ModelConfig, path: Path) -> None:
    """Frozen models hold the electron configurations that type embeddings are made from."""
    expected = electron_configurations(config.type_map).to(value.dtype)
    allowed = 1e-6 if value.dtype == torch.float32 else 1e-14
    if value.shape != expected.shape or float((value - expected).abs().max()) > allowed:
        raise ModelFileError(
            f"{path}: {name} is not the electron configurations of {', '.join(config.type_map)}"
        )
