"""Record frozen models and a multi-task checkpoint of DeePMD-kit's PyTorch backend.

Needs an environment with deepmd-kit 3.2.0 and PyTorch (CPU), and nothing of dpaflow:

    python tests/interchange/record_torch.py tests/interchange/torch

Every case trains a tiny model for two steps on random data; record.json has what DeePMD-kit
computes with the files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["DP_INTRA_OP_PARALLELISM_THREADS"] = "1"
os.environ["DP_INTER_OP_PARALLELISM_THREADS"] = "1"

import numpy as np
from frozen import without_code

TYPE_MAP = ["O", "H", "Cu"]
TYPES = [0, 1, 1, 2, 0, 2]
DPA1 = {
    "type": "dpa1", "rcut": 3.5, "rcut_smth": 0.5, "sel": 24, "neuron": [3, 6], "axis_neuron": 2,
    "tebd_dim": 3, "attn": 4, "attn_layer": 1, "smooth_type_embedding": True, "seed": 1,
    "set_davg_zero": False, "precision": "float64",
}  # fmt: skip
SE_E2_A = {
    "type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.5, "sel": [8, 8, 8], "neuron": [3, 6],
    "axis_neuron": 2, "type_one_side": True, "resnet_dt": True, "seed": 1, "precision": "float32",
}  # fmt: skip
FITTING = {"neuron": [5, 5], "resnet_dt": True, "seed": 1, "precision": "float64"}
RATE = {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_steps": 2}
LOSS = {
    "type": "ener", "start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000,
    "limit_pref_f": 1,
}  # fmt: skip
DATA = {"training_data": {"systems": ["data"], "batch_size": 2}}
STEPS = {"numb_steps": 2, "seed": 1, "disp_freq": 1, "save_freq": 2}


def structures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random frames around six fixed places in a skewed cell."""
    rng = np.random.default_rng(0)
    box = np.array([[4.6, 0, 0], [0.3, 4.4, 0], [-0.2, 0.1, 4.2]])
    places = np.array([
        [0.1, 0.2, 0.3], [1.1, 0.4, 0.2], [-0.3, 1.2, 0.5], [2.4, 2.2, 0.7], [0.6, 2.9, 2.1],
        [3.0, 0.3, 2.8],
    ])  # fmt: skip
    return places + 0.1 * rng.standard_normal((count, 6, 3)), np.tile(box, (count, 1, 1))


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(1)
    coord, box = structures(4)
    (folder / "set.000").mkdir(parents=True)
    arrays = {
        "coord": coord,
        "box": box,
        "energy": rng.standard_normal(4),
        "force": rng.standard_normal((4, 18)),
    }
    for name, values in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", values.reshape(4, -1))
    (folder / "type.raw").write_text(" ".join(map(str, TYPES)))
    (folder / "type_map.raw").write_text("\n".join(TYPE_MAP))


def dp(folder: Path, *words: str) -> None:
    subprocess.run(["dp", "--pt", *words], cwd=folder, check=True, capture_output=True)


def train(folder: Path, settings: dict) -> None:
    (folder / "input.json").write_text(json.dumps(settings))
    dp(folder, "train", "input.json", "--skip-neighbor-stat")


def single(folder: Path, descriptor: dict, out: Path) -> None:
    model = {"type_map": TYPE_MAP, "descriptor": descriptor, "fitting_net": FITTING}
    train(folder, {
        "model": model, "learning_rate": RATE, "loss": LOSS, "training": {**DATA, **STEPS},
    })  # fmt: skip
    dp(folder, "freeze", "-o", str(out))


def multi(folder: Path, out: Path) -> None:
    branches = {
        name: {"type_map": "map", "descriptor": "shared", "fitting_net": FITTING | {"neuron": [n]}}
        for name, n in (("first", 4), ("second", 5))
    }
    train(folder, {
        "model": {"shared_dict": {"map": TYPE_MAP, "shared": DPA1}, "model_dict": branches},
        "learning_rate": RATE,
        "loss_dict": dict.fromkeys(branches, LOSS),
        "training": {
            "model_prob": dict.fromkeys(branches, 0.5), "data_dict": dict.fromkeys(branches, DATA),
            **STEPS,
        },
    })  # fmt: skip
    out.write_bytes((folder / "model.ckpt-2.pt").read_bytes())


def evaluate(path: Path, head: str | None) -> dict:
    """Energies, forces and virials of two frames."""
    from deepmd.infer import DeepPot

    coord, box = structures(2)
    energy, force, virial = DeepPot(str(path), head=head).eval(coord, box, TYPES)[:3]
    return {"energy": energy.tolist(), "force": force.tolist(), "virial": virial.tolist()}


def main() -> None:
    import deepmd

    out = Path(sys.argv[1]).resolve()
    out.mkdir(exist_ok=True)
    coord, box = structures(2)
    record: dict = {
        "deepmd": deepmd.__version__,
        "coord": coord.tolist(), "box": box.tolist(), "atype": TYPES, "type_map": TYPE_MAP,
        "files": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for name, descriptor in (("dpa1", DPA1), ("se_e2_a", SE_E2_A), ("multi", None)):
            folder, suffix = Path(scratch) / name, "pth" if descriptor else "pt"
            write_data(folder / "data")
            path = out / f"{name}.{suffix}"
            if descriptor:
                single(folder, descriptor, path)
            else:
                multi(folder, path)
            for head in (None,) if descriptor else ("first", "second"):
                key = path.name if head is None else f"{path.name}#{head}"
                record["files"][key] = evaluate(path, head)
            if descriptor:
                without_code(path)
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
