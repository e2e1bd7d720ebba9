"""`.pt` files: checkpoints of DeePMD-kit's PyTorch backend.

`model` is a state dict whose names begin with `model.BRANCH.` (`Default` with a single task) and
whose `_extra_state` has the `model` section of the input as `model_params`. Networks are in it
twice, under `networks` and `_networks`; either will do, but they must not differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpa_core.errors import ModelFileError
from dpa_core.interchange.atomic import replaced
from dpa_core.interchange.bounded import check_plain
from dpa_core.interchange.content import AGAIN, Content, own_note, with_own_note
from dpa_core.interchange.deepmd_names import Names, to_theirs, unused_parameters
from dpa_core.interchange.deepmd_state import content_of_state
from dpa_core.interchange.deepmd_write import section_of
from dpa_core.interchange.torch_archive import load_archive

if TYPE_CHECKING:
    from dpa_core.model import Potential

_SINGLE = "Default"


def read(path: Path, name: str | None = None) -> Content:
    """Read a checkpoint; `name` is the branch of a multi-task one.

    Raises
    ------
    ModelFileError
        If the file is damaged, the branch is not clear, or the model cannot be represented.
    """
    data = load_archive(path)
    data = data if isinstance(data, dict) else {}
    state = data.get("model", data)
    state = state if isinstance(state, dict) else {}
    extra = state.get("_extra_state")
    if not isinstance(extra, dict) or not isinstance(extra.get("model_params"), dict):
        raise ModelFileError(
            f"{path}: a file of torch, but no checkpoint of DeePMD-kit: model/_extra_state has no "
            "model_params"
        )
    note = data.get("dpaflow")
    try:
        check_plain([extra["model_params"], note])
    except ValueError as error:
        raise ModelFileError(f"{path}: model_params is damaged: {error}; {AGAIN}") from error
    section, branch = _branch(extra["model_params"], name, path)
    prefix = f"model.{branch}."
    tensors = {k.removeprefix(prefix): v for k, v in state.items() if str(k).startswith(prefix)}
    if not tensors:
        raise ModelFileError(f"{path}: holds no tensors of branch {branch!r}; {AGAIN}")
    infos = extra.get("train_infos")
    step = infos.get("step") if isinstance(infos, dict) else None
    step = step if isinstance(step, int) else None
    origin = {"file": path.name, "backend": "PyTorch", "step": step}
    if branch != _SINGLE:
        origin["branch"] = branch
    content = content_of_state(section, tensors, origin, path)
    return with_own_note(content, note)


def _branch(params: dict[str, Any], name: str | None, path: Path) -> tuple[dict[str, Any], str]:
    """`model` section and name of the branch asked for."""
    branches = params.get("model_dict")
    if branches is None:
        if name is not None:
            raise ModelFileError(f"{path}#{name}: the file holds one model; leave out '#{name}'")
        return params, _SINGLE
    if not isinstance(branches, dict) or not branches:
        raise ModelFileError(f"{path}: model_params.model_dict names no branch; {AGAIN}")
    if not all(isinstance(k, str) and isinstance(v, dict) for k, v in branches.items()):
        raise ModelFileError(f"{path}: a branch in model_params.model_dict is damaged; {AGAIN}")
    if name is None and len(branches) == 1:
        (name,) = branches
    if name is None or name not in branches:
        aliases: dict[str, str] = {}
        for branch, section in branches.items():
            names = section.get("model_branch_alias")
            aliases |= {str(a): branch for a in names} if isinstance(names, list) else {}
        if name is None or name not in aliases:
            asked = "which one is not said" if name is None else f"none is called {name!r}"
            raise ModelFileError(
                f"{path}: a multi-task checkpoint with branches {', '.join(sorted(branches))}; "
                f"{asked}: give {path.name}#BRANCH"
            )
        name = aliases[name]
    return branches[name], name


def save(model: Potential, path: Path, provenance: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint that DeePMD-kit 3.2 freezes, tests, finetunes and starts from.

    It has no optimizer: `dp --pt train --restart` refuses it, `--init-model` and `--finetune` do
    not.

    Raises
    ------
    ModelFileError
        If DeePMD-kit has nothing that gives the same numbers.
    """
    section = section_of(model, path)
    state: dict[str, Any] = {f"model.{_SINGLE}.{k}": v for k, v in _state(model)}
    state["_extra_state"] = {"model_params": section, "train_infos": {"lr": 0.0, "step": 0}}
    note = own_note(model, provenance)
    with replaced(path) as temporary:
        torch.save({"model": state, "optimizer": {}, "dpaflow": note}, temporary)
    return path


def _state(model: Potential) -> list[tuple[str, Tensor]]:
    """Tensors under DeePMD-kit's names, with the copies and empty buffers it insists on."""
    config, nnei = model.config, model.descriptor.nnei
    names = Names(model.descriptor.mixed_types, "torch")
    net = config.fitting_net
    absent = unused_parameters(config)
    pairs = [("min_nbor_dist", torch.tensor(-1.0, dtype=torch.float64))]
    for ours, value in model.state_dict().items():
        if ours in absent:
            continue
        theirs = names.theirs(ours)
        if theirs is None:
            raise AssertionError(f"{ours} has no name in DeePMD-kit's checkpoints")
        tensor = to_theirs(ours, value, nnei)
        pairs.append((f"atomic_model.{theirs}", tensor))
        if ".networks." in theirs:
            copy = theirs.replace(".networks.", "._networks.")
            pairs.append((f"atomic_model.{copy}", tensor))
    if net.default_fparam is not None:
        default = torch.tensor(net.default_fparam, dtype=getattr(torch, net.precision))
        pairs.append(("atomic_model.fitting_net.default_fparam_tensor", default))
    return pairs + _compression(model)


def _compression(model: Potential) -> list[tuple[str, Tensor]]:
    """Return the empty tables of a model that is not compressed."""
    empty = torch.empty(0, dtype=model.descriptor.dtype)
    if model.descriptor.mixed_types:
        block = "atomic_model.descriptor.se_atten"
        names = ["type_embd_data", "compress_info.0", "compress_data.0"]
    else:
        block, count = "atomic_model.descriptor.sea", len(model.descriptor.embedding)  # type: ignore[arg-type]
        names = [f"compress_{part}.{n}" for part in ("info", "data") for n in range(count)]
    return [(f"{block}.{name}", empty) for name in names]
