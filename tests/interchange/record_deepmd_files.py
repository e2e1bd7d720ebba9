"""Have DeePMD-kit write small model files, and record what it computes with them.

Needs an environment with deepmd-kit 3.2.0 (PyTorch backend) and nothing of dpaflow; from the root
of the repository:

    PYTHONPATH=.:tests/reference:benchmarks/interchange \
        python tests/interchange/record_deepmd_files.py tests/interchange/deepmd

Files that begin with `trained` come from `dp --pt train` on a few random frames, the others hold
the parameters of `tests/reference/fill.py`; `.pth`, `.dp` and `.yaml` are made by `dp --pt freeze`
and `dp convert-backend`. The `.pth` files are kept without their code.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import deepmd
import torch
from deepmd.entrypoints.convert_backend import convert_backend
from deepmd.infer import DeepPot
from deepmd.main import main as dp
from deepmd.pt.entrypoints.main import freeze
from peer_side import ask, ask_pot, make_model, normal, write_checkpoint

from tests.interchange.frozen import without_code
from tests.interchange.options import option_sets, question, structures
from tests.interchange.trainings import (
    BRANCHES,
    STEPS,
    write_data,
    write_input,
    write_two_branches,
)

# File -> option set, and changes to the descriptor.
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "davg_exclude.dp": ("dpa1-exclude-davg", {"use_tebd_bias": True}),
    "strip_one_side.dp": ("dpa1-strip-davg-one-side-temperature", {"resnet_dt": True}),
    "v2_float32.dp": ("v2-float32", {}),
    "parameters.dp": ("dpa1-atom-ener-fparam", {}),
    "float32_descriptor.yaml": ("dpa1-float32-descriptor", {"attn_layer": 1}),
    "not_smooth.yaml": ("dpa1-not-smooth", {"normalize": False, "scaling_factor": 2.5}),
    "econf_many.pt": ("dpa1-many-types", {"use_econf_tebd": True, "attn_layer": 1}),
    "preset.pt": ("dpa1-preset-out-bias", {"concat_output_tebd": False}),
    "v2.pth": ("v2-attn-0", {}),
    "econf.pth": ("dpa1-econf", {"attn_layer": 1, "precision": "float32"}),
    "se_two_side.dp": ("se-exclude-davg", {}),
    "se_pair.yaml": ("se-pair-exclude", {"sel": [3, 5, 2], "resnet_dt": True}),
    "se_float32.pth": ("se-float32", {"type_one_side": True}),
}
TRAINED = {"dpa1": "dpa1-default-fparam", "se": "se-davg"}
SMALL = {"neuron": [2, 4], "axis_neuron": 2}


def small(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return an option set with networks of a few numbers."""
    case = copy.deepcopy(option_sets()[name])
    descriptor = case["model"]["descriptor"]
    descriptor |= SMALL | ({"attn": 3} if "attn" in descriptor else {}) | changes
    case["model"]["fitting_net"]["neuron"] = [4, 4]
    return case


def questions(case: dict[str, Any]) -> dict[str, Any]:
    return {k: question(case, s) for k, s in structures().items() if k != "large"}


def by_rule(name: str, folder: Path) -> dict[str, Any]:
    """Write one of FILES; return what to keep of it."""
    case = small(*FILES[name])
    kind, target = name.rpartition(".")[2], folder / name
    params = normal(case["model"])
    checkpoint = target if kind == "pt" else Path("a.pt")
    write_checkpoint(make_model(params), params, checkpoint)
    if kind != "pt":
        frozen = target if kind == "pth" else Path("a.pth")
        freeze(str(checkpoint), str(frozen))
    if kind in ("dp", "yaml"):
        convert_backend(INPUT="a.pth", OUTPUT=str(target))
    way = {"pt": "checkpoint", "pth": "frozen"}.get(kind, "eager")
    asked = questions(case)
    return case | {"questions": asked, "answers": ask(target, asked, way)}


def trained(kind: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Train; keep the checkpoint and what it is frozen to."""
    case = small(TRAINED[kind], {"set_davg_zero": False})
    write_input(Path(), kind, case["model"], rate=1e-3)
    dp(["--pt", "train", f"{kind}.json"])
    checkpoint, frozen = folder / f"trained_{kind}.pt", folder / f"trained_{kind}.pth"
    _without_optimizer(Path(f"{kind}-{STEPS}.pt"), checkpoint)
    freeze(str(checkpoint), str(frozen))
    asked = questions(case)
    entry = case | {"questions": asked}
    return {
        checkpoint.name: entry | {"answers": ask(checkpoint, asked, "checkpoint")},
        frozen.name: entry | {"answers": ask(frozen, asked, "frozen")},
    }


def two_branches(folder: Path) -> dict[str, dict[str, Any]]:
    case = small("dpa1-attn-1", {"set_davg_zero": False})
    write_two_branches(Path(), "two", case["model"])
    dp(["--pt", "train", "two.json"])
    target = folder / "trained_two.pt"
    _without_optimizer(Path(f"two-{STEPS}.pt"), target)
    asked, entries = questions(case), {}
    for branch in BRANCHES:
        pot = DeepPot(str(target), head=branch, no_jit=True)
        answers = {k: ask_pot(pot, a) for k, a in asked.items()}
        entries[f"{target.name}#{branch}"] = case | {"questions": asked, "answers": answers}
    return entries


def _without_optimizer(source: Path, target: Path) -> None:
    """Copy a checkpoint; Adam's moments would make it three times as large."""
    data = torch.load(source, weights_only=True)
    torch.save(data | {"optimizer": {}}, target)


def main(folder: Path) -> None:
    folder = folder.resolve()
    folder.mkdir(exist_ok=True)
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        write_data(Path("data"))
        for name in FILES:
            record[name] = by_rule(name, folder)
        for kind in TRAINED:
            record |= trained(kind, folder)
        record |= two_branches(folder)
        os.chdir(folder)
    for path in folder.glob("*.pth"):
        without_code(path)
    code = f"deepmd-kit {deepmd.__version__}, torch {torch.__version__}"
    lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record.items())
    text = f'{{"code": {json.dumps(code)}, "files": {{\n' + ",\n".join(lines) + "\n}}\n"
    (folder / "recorded.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
