"""Files that workflow tests need to exist."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from dpa_core.interchange.native import FORMAT, VERSION


def write_model(path: Path, provenance: str = "{}") -> None:
    """Write a file with the header of a model; it has no weights."""
    config = '{"type_map": ["Cu", "Ni"]}'
    header = {
        "format": FORMAT, "version": str(VERSION), "config": config, "provenance": provenance
    }  # fmt: skip
    save_file({"none": np.zeros(1)}, path, header)
