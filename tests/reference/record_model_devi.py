"""Record `dp model-devi` of DeePMD-kit itself on small committees.

Needs an environment with deepmd-kit 3.2.0 (PyTorch backend) and nothing of dpaflow:

    python tests/reference/record_model_devi.py tests/reference/model_devi.json

Members differ in the weights of their fitting nets only, by the rule at `member`. The record
holds the numbers and the file that the program writes. With `relative_v` DeePMD-kit 3.2.0
divides row by row what belongs column by column, which fails for all but one frame, so there
it gets one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import deepmd
import numpy as np
from cases import DPA1, SE, SYSTEMS, TYPE_MAP, model
from deepmd.infer.model_devi import make_model_devi
from deepmd.pt.utils.serialization import deserialize_to_file
from record_deepmd import fill_nets, make_model

COMMITTEES = {
    "dpa1": {"model": model(DPA1), "members": 4, "system": "cell"},
    "dpa1-no-attention": {"model": model(DPA1 | {"attn_layer": 0}), "members": 3, "system": "cell"},
    "se": {"model": model(SE), "members": 2, "system": "molecule"},
}
# Number of frames and options of a run.
RUNS: list[tuple[int, dict[str, float]]] = [
    (3, {}),
    (3, {"relative": 0.3}),
    (1, {"relative": 1.0, "relative_v": 0.2}),
]
FRAMES = 3


def member(config: dict, k: int) -> dict:
    """Serialised model k: the filled model, its fitting nets' weights and biases shifted."""
    data = make_model(config).serialize()
    fill_nets(data["fitting"]["nets"], 120 + 0.3 * k, 130 + 0.5 * k, 140)
    return data


def systems() -> dict[str, dict[str, Any]]:
    """Structures of cases.py, the isolated atom left out, rattled by a sine."""
    found = {}
    for name in ("cell", "molecule"):
        system = SYSTEMS[name]
        keep = 5 if name == "molecule" else 6
        coord = np.array(system["coord"])[:keep]
        ramp = np.arange(coord.size).reshape(coord.shape)
        rattled = [(coord + 0.1 * np.sin(f + ramp)).tolist() for f in range(FRAMES)]
        found[name] = {"coord": rattled, "atype": system["atype"][:keep], "box": system["box"]}
    return found


def write_system(folder: Path, system: dict[str, Any], frames: int) -> Path:
    """The folder `dp model-devi` reads (deepmd/npy)."""
    part = folder / "set.000"
    part.mkdir(parents=True)
    np.savetxt(folder / "type.raw", system["atype"], fmt="%d")
    (folder / "type_map.raw").write_text("\n".join(TYPE_MAP) + "\n")
    np.save(part / "coord.npy", np.array(system["coord"])[:frames].reshape(frames, -1))
    if system["box"] is None:
        (folder / "nopbc").touch()
        box = np.eye(3)
    else:
        box = np.array(system["box"])
    np.save(part / "box.npy", np.tile(box.reshape(1, 9), (frames, 1)))
    return folder


def record(committee: dict[str, Any], system: dict[str, Any], folder: Path) -> list[dict]:
    files = []
    for k in range(committee["members"]):
        files.append(str(folder / f"{k}.pth"))
        data = {"model": member(committee["model"], k), "model_def_script": committee["model"]}
        deserialize_to_file(files[-1], data)
    runs = []
    for number, (frames, options) in enumerate(RUNS):
        data_folder = write_system(folder / f"system{number}", system, frames)
        output = folder / f"{number}.out"
        (found,) = make_model_devi(
            models=files, system=str(data_folder), output=str(output), frequency=1, **options
        )
        text = output.read_text().replace(str(data_folder), "system")
        runs.append({"options": options, "deviation": found[:, 1:].tolist(), "file": text})
    return runs


def main(target: Path) -> None:
    structures = systems()
    committees = {}
    for name, committee in COMMITTEES.items():
        with tempfile.TemporaryDirectory() as folder:
            runs = record(committee, structures[committee["system"]], Path(folder))
        committees[name] = committee | {"runs": runs}
        sys.stderr.write(f"{name} {runs[0]['file']}\n")
    document = {
        "code": f"deepmd-kit {deepmd.__version__}",
        "systems": structures,
        "committees": committees,
    }
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
