"""Data and inputs of real DeePMD-kit trainings of a few steps; needs only NumPy.

For `record_deepmd_files.py` and `benchmarks/interchange`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.cases import SYSTEMS, TYPE_MAP

STEPS = 3
BRANCHES = ("water", "alloy")
_DATA = {"training_data": {"systems": ["data"], "batch_size": 2}}


def write_data(folder: Path) -> None:
    """Write four frames of a right-handed cell with random labels, deepmd/npy."""
    cell = SYSTEMS["cell"]
    rng = np.random.default_rng(3)
    coord = np.array(cell["coord"]).ravel() + rng.normal(0, 0.05, (4, 18))
    arrays = {
        "coord": coord,
        "box": np.tile(np.ravel(cell["box"]), (4, 1)),
        "energy": rng.normal(-5, 1, 4),
        "force": rng.normal(0, 1, coord.shape),
        "virial": rng.normal(0, 1, (4, 9)),
    }
    (folder / "set.000").mkdir(parents=True)
    for name, values in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", values)
    np.savetxt(folder / "type.raw", cell["atype"], fmt="%d")
    (folder / "type_map.raw").write_text("\n".join(TYPE_MAP))


def write_input(folder: Path, name: str, section: dict[str, Any], rate: float) -> None:
    """Write NAME.json, an input with a `model` section; the checkpoint is NAME-3.pt."""
    _write(folder, name, {"model": section, "loss": {"type": "ener"}}, _DATA, rate)


def write_two_branches(folder: Path, name: str, section: dict[str, Any]) -> None:
    """Write the input of two branches that share the descriptor."""
    branch = {"type_map": "types", "descriptor": "shared", "fitting_net": section["fitting_net"]}
    model = {
        "shared_dict": {"types": section["type_map"], "shared": section["descriptor"]},
        "model_dict": dict.fromkeys(BRANCHES, branch),
    }
    loss = {"type": "ener"}
    sections = {"model": model, "loss_dict": dict.fromkeys(BRANCHES, loss)}
    data = {
        "data_dict": dict.fromkeys(BRANCHES, _DATA),
        "model_prob": dict.fromkeys(BRANCHES, 0.5),
    }
    _write(folder, name, sections, data, rate=1e-3)


def _write(
    folder: Path, name: str, sections: dict[str, Any], data: dict[str, Any], rate: float
) -> None:
    schedule = {"type": "exp", "start_lr": rate, "stop_lr": 0.1 * rate, "decay_steps": STEPS}
    training = {
        "numb_steps": STEPS, "save_freq": STEPS, "disp_freq": STEPS, "seed": 1,
        "disp_file": f"{name}.out", "save_ckpt": name,
    }  # fmt: skip
    settings = sections | {"learning_rate": schedule, "training": data | training}
    (folder / f"{name}.json").write_text(json.dumps(settings))
