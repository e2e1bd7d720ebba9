"""`.pth` files: models frozen by DeePMD-kit's PyTorch backend (TorchScript). Read only."""

from __future__ import annotations

from pathlib import Path

from dpa_core.errors import ModelFileError
from dpa_core.interchange.bounded import parse_json
from dpa_core.interchange.content import AGAIN, Content
from dpa_core.interchange.deepmd_state import content_of_state
from dpa_core.interchange.pickled import Object
from dpa_core.interchange.torch_archive import flat_state, load_archive


def read(path: Path, name: str | None = None) -> Content:
    """Read a frozen model; its code is neither run nor compiled.

    Raises
    ------
    ModelFileError
        If the file is damaged or the model cannot be represented exactly.
    """
    from dpa_core.interchange.deepmd_dict import refuse_name

    refuse_name(path, name)
    module = load_archive(path)
    script = module.attributes.get("model_def_script") if isinstance(module, Object) else None
    if not isinstance(script, str) or not script:
        raise ModelFileError(
            f"{path}: TorchScript, but not a model of DeePMD-kit: no attribute model_def_script"
        )
    try:
        section = parse_json(script)
    except ValueError as error:
        raise ModelFileError(f"{path}: model_def_script is damaged: {error}; {AGAIN}") from error
    if not isinstance(section, dict) or "model_dict" in section:
        raise ModelFileError(f"{path}: model_def_script does not describe one model; {AGAIN}")
    state = flat_state(module, path)
    tensors = {k: v for k, v in state.items() if k.startswith("atomic_model.")}
    return content_of_state(section, tensors, {"file": path.name, "backend": "PyTorch"}, path)
