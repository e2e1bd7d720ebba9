"""DeePMD-kit's half of the comparison: makes files, reads ours, says what it computes.

Run by `compare.py` with the Python of an environment that has deepmd-kit 3.2.0 (PyTorch backend)
and nothing of dpaflow but this repository's root and `tests/reference` on the path:

    python benchmarks/interchange/peer_side.py FOLDER

FOLDER has `sets.json` and our files in `ours/`; DeePMD-kit's files go to `theirs/` and the numbers
to `theirs.json`. Files are made by what its commands call: `dp --pt freeze`, `dp convert-backend`.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepmd
import numpy as np
import torch
from deepmd.backend.backend import Backend
from deepmd.entrypoints.convert_backend import convert_backend
from deepmd.infer import DeepPot
from deepmd.pt.entrypoints.main import freeze
from deepmd.pt.model.model import BaseModel, get_model
from deepmd.pt.train.wrapper import ModelWrapper
from deepmd.utils.argcheck import normalize
from record_deepmd import fill

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
# Specialising TorchScript for every size of input takes seconds a structure, changes no formula.
torch.jit.set_fusion_strategy([])

Answers = dict[str, Any]


def normal(section: dict[str, Any]) -> dict[str, Any]:
    """Return the `model` section as training stores it: every key filled in by DeePMD-kit."""
    rest = {"learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-8, "decay_steps": 9}}
    training = {"training_data": {"systems": ["data"]}, "numb_steps": 1}
    whole = {"model": copy.deepcopy(section), **rest, "loss": {}, "training": training}
    return normalize(whole)["model"]


def make_model(params: dict[str, Any]) -> torch.nn.Module:
    """Make a model with the parameters of tests/reference/fill.py."""
    # A model with preset_out_bias cannot be serialised, so its parameters come from one without.
    plain = {k: v for k, v in copy.deepcopy(params).items() if k != "preset_out_bias"}
    data = get_model(plain).serialize()
    fill(data, params["descriptor"]["set_davg_zero"])
    model = get_model(copy.deepcopy(params))
    model.load_state_dict(BaseModel.deserialize(data).state_dict())
    return model


def write_checkpoint(model: torch.nn.Module, params: dict[str, Any], path: Path) -> None:
    """As training does: state dict with `_extra_state`, and an optimizer."""
    wrapper = ModelWrapper(model, model_params=copy.deepcopy(params))
    torch.save({"model": wrapper.state_dict(), "optimizer": {}}, path)


def deserialize(path: Path) -> torch.nn.Module:
    """Return the model of a `.dp` or `.yaml` file, PyTorch backend."""
    data = Backend.detect_backend_by_model(str(path))().serialize_hook(str(path))
    return BaseModel.deserialize(data["model"]).eval()


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ask_model(model: torch.nn.Module, asked: dict[str, Any]) -> Answers:
    natoms = len(asked["atype"])
    inputs = {
        "coord": tensor(asked["coord"]).reshape(1, natoms, 3).requires_grad_(),
        "atype": torch.tensor([asked["atype"]]),
        "box": None if asked["box"] is None else tensor(asked["box"]).reshape(1, 9),
    }
    for key, shape in (("fparam", (1, -1)), ("aparam", (1, natoms, -1))):
        if key in asked:
            inputs[key] = tensor(asked[key]).reshape(shape)
    out = model(**inputs)
    return {key: out[key].detach().reshape(-1).tolist() for key in ("energy", "force", "virial")}


def ask_pot(pot: DeepPot, asked: dict[str, Any]) -> Answers:
    box = None if asked["box"] is None else np.array([asked["box"]])
    parameters = {k: np.array(asked[k]) for k in ("fparam", "aparam") if k in asked}
    values = pot.eval(np.array([asked["coord"]]), box, asked["atype"], **parameters)
    return dict(zip(("energy", "force", "virial"), (v.reshape(-1).tolist() for v in values)))


def ask(path: Path, questions: dict[str, Any], way: str) -> dict[str, Answers]:
    """Ask one file all questions.

    `way` is "eager" (.dp and .yaml), "numpy" (.dp: DeePMD-kit's NumPy backend, energies only),
    "checkpoint" (.pt, not compiled) or "frozen" (.pth, TorchScript).
    """
    if way == "eager":
        model = deserialize(path)
        return {name: ask_model(model, asked) for name, asked in questions.items()}
    if way == "checkpoint":
        check_strictly(path)
    pot = DeepPot(str(path), **({"no_jit": True} if way == "checkpoint" else {}))
    answers = {name: ask_pot(pot, asked) for name, asked in questions.items()}
    if way == "numpy":
        return {name: {"energy": a["energy"]} for name, a in answers.items()}
    return answers


def theirs(name: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the model in every format and ask each file."""
    params = normal(case["model"])
    paths = {k: folder / "theirs" / f"{name}.{k}" for k in ("pt", "pth", "dp", "yaml")}
    write_checkpoint(make_model(params), params, paths["pt"])
    freeze(str(paths["pt"]), str(paths["pth"]))
    ways = {"pt": "checkpoint", "pth": "frozen", "dp": "eager", "yaml": "eager"}

    def answer(kind: str) -> dict[str, Answers]:
        if kind in ("dp", "yaml"):
            convert_backend(INPUT=str(paths["pth"]), OUTPUT=str(paths[kind]))
        return ask(paths[kind], case["questions"], ways[kind])

    return {kind: guarded(lambda k=kind: answer(k)) for kind in ways}


def ours(name: str, number: int, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read what we wrote, in every way DeePMD-kit has.

    Compiling takes seconds, so each model goes one of the three ways to a `.pth` file.
    """
    paths = {k: folder / "ours" / f"{name}.{k}" for k in ("pt", "dp", "yaml")}
    ways = {
        "dp": (paths["dp"], "eager"),
        "yaml": (paths["yaml"], "eager"),
        "pt": (paths["pt"], "checkpoint"),
        "dp, NumPy backend": (paths["dp"], "numpy"),
    }
    answers = {
        way: guarded(lambda p=path, h=how: ask(p, case["questions"], h))
        for way, (path, how) in ways.items()
    }
    kind = ("pt", "dp", "yaml")[number % 3]
    way = "pth by dp freeze" if kind == "pt" else f"pth by dp convert-backend of .{kind}"
    answers[way] = guarded(lambda: compiled(paths[kind], folder / f"{name}.pth", case))
    return answers


def compiled(source: Path, target: Path, case: dict[str, Any]) -> dict[str, Answers]:
    """Make a `.pth` file of ours and ask it."""
    if source.suffix == ".pt":
        freeze(str(source), str(target))
    else:
        convert_backend(INPUT=str(source), OUTPUT=str(target))
    return ask(target, case["questions"], "frozen")


def check_strictly(path: Path) -> None:
    """Load a checkpoint as training does: no tensor may be missing or left over."""
    state = torch.load(path, weights_only=True)["model"]
    model = get_model(copy.deepcopy(state["_extra_state"]["model_params"]))
    ModelWrapper(model).load_state_dict(state, strict=True)


def guarded(work: Callable[[], Any]) -> Any:
    """Do the work, or return {"error": ...}: one failing set must not hide the others."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 reported in the table
        return {"error": f"{type(error).__name__}: {str(error)[:400]}"}


def main(folder: Path) -> None:
    (folder / "theirs").mkdir(exist_ok=True)
    sets = json.loads((folder / "sets.json").read_text())
    record: dict[str, Any] = {"theirs": {}, "ours": {}}
    for number, (name, case) in enumerate(sets.items()):
        record["theirs"][name] = guarded(lambda n=name, c=case: theirs(n, c, folder))
        record["ours"][name] = guarded(lambda n=name, k=number, c=case: ours(n, k, c, folder))
        print(f"{number + 1}/{len(sets)} {name}", file=sys.stderr, flush=True)
    record["code"] = f"deepmd-kit {deepmd.__version__}, torch {torch.__version__}"
    (folder / "theirs.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
