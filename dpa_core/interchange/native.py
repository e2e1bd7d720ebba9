"""The native model file: safetensors, with everything else as JSON in its header.

Header (`__metadata__`): format, version, config (ModelConfig as JSON; it holds the type map),
provenance (JSON, free form: what made the model). Tensors: the model's state dict.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

from dpa_core.config import ModelConfig, parse_config
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.atomic import replaced
from dpa_core.interchange.bounded import parse_json
from dpa_core.interchange.content import AGAIN, Content

if TYPE_CHECKING:
    from dpa_core.model import Potential

FORMAT = "dpaflow-model"
VERSION = 1


def save(model: Potential, path: str | Path, provenance: dict[str, Any] | None = None) -> Path:
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
    with replaced(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))
    return path


def read(path: str | Path, name: str | None = None) -> Content:
    """Read a file written by `save`; of several heads, `name` chooses one ("0", "1", ...).

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, or of an unknown format or version.
    """
    path = Path(path)
    header = read_native_header(path)
    config = _config(header, path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise ModelFileError(f"{path}: cannot read the tensors: {error}; {AGAIN}") from error
    content = Content(config, tensors, header["provenance"])
    return content if name is None else _one_head(content, name, path)


def _one_head(content: Content, name: str, path: Path) -> Content:
    heads = content.config.heads
    if name not in [str(k) for k in range(heads)]:
        allowed = f"0 to {heads - 1}" if heads > 1 else "the file has one model, name none"
        raise ModelFileError(f"{path}: no head {name!r}; allowed: {allowed}")
    other = f"other_fittings.{int(name) - 1}."
    tensors = {k: v for k, v in content.tensors.items() if not k.startswith("other_fittings.")}
    if name != "0":
        tensors |= {
            k.replace(other, "fitting.", 1): v
            for k, v in content.tensors.items()
            if k.startswith(other)
        }
    config = content.config.model_copy(update={"heads": 1})
    return Content(config, tensors, content.provenance | {"head": int(name)})


def read_native_header(path: str | Path) -> dict[str, Any]:
    """Format, version, config, type_map and provenance of a model file, without its tensors.

    Raises
    ------
    ModelFileError
        As `read`.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: not a model file of dpaflow or truncated ({error}); {AGAIN}"
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
        config, provenance = (parse_json(metadata[key]) for key in ("config", "provenance"))
        type_map = list(config["type_map"])
        if not isinstance(provenance, dict):
            raise TypeError("provenance is not a mapping")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: the header is damaged: {error!r}; {AGAIN}") from error
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": config,
        "type_map": type_map,
        "provenance": provenance,
    }


def _config(header: dict[str, Any], path: Path) -> ModelConfig:
    try:
        return parse_config(ModelConfig, header["config"], "configuration in the header")
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error
