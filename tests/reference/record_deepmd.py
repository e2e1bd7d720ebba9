"""Record reference values with DeePMD-kit itself, an independent code.

Needs an environment with deepmd-kit 3.2.0 (PyTorch backend) and nothing of dpaflow:

    python tests/reference/record_deepmd.py tests/reference/deepmd.json

Parameters follow the deterministic rule of `fill.py`, set through serialize/deserialize.
Cells are right-handed: DeePMD-kit 3.2.0 misses neighbours in left-handed ones. Its compiled
operators are not needed; where the library was built for another torch, hide it.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import deepmd
import numpy as np
import torch
from cases import SYSTEMS, cases
from deepmd.dpmodel.utils.learning_rate import BaseLR
from deepmd.pt.loss.ener import EnergyStdLoss
from deepmd.pt.model.model import EnergyModel, get_model
from deepmd.utils.argcheck import normalize
from deepmd.utils.econf_embd import electronic_configuration_embedding
from record_inputs import INPUTS, LOSSES, SCHEDULES, STATISTICS, loss_tensors, statistics_frames

# Class defaults that differ from ours or from the JSON defaults.
DEFAULTS = {"dpa1": {"type_one_side": False}, "se_e2_a": {"type_one_side": False}}


def rule(h: float, a: float, shape: tuple[int, ...]) -> np.ndarray:
    k = np.arange(int(np.prod(shape)))
    return (a * np.sin(1 + 0.7 * k + h)).reshape(shape)


def fill_layer(layer: dict, w: float, b: float, idt: float) -> None:
    values = layer["@variables"]
    dtype = values["w"].dtype
    values["w"] = rule(w, 1 / np.sqrt(values["w"].shape[0]), values["w"].shape).astype(dtype)
    if values.get("b") is not None:
        values["b"] = rule(b, 0.3, values["b"].shape).astype(dtype)
    if values.get("idt") is not None:
        values["idt"] = (0.2 + rule(idt, 0.05, values["idt"].shape)).astype(dtype)


def fill_nets(collection: dict, w: float, b: float, idt: float) -> None:
    for n, net in enumerate(collection["networks"]):
        for k, layer in enumerate(net["layers"]):
            h = k + 3.1 * n
            fill_layer(layer, w + h, b + h, idt + h)


def fill_attention(descriptor: dict) -> None:
    for i, item in enumerate(descriptor["attention_layers"]["attention_layers"]):
        fill_layer(item["attention_layer"]["in_proj"], 30 + i, 40 + i, 0)
        fill_layer(item["attention_layer"]["out_proj"], 50 + i, 60 + i, 0)
        norm = item["attn_layer_norm"]["@variables"]
        norm["w"] = (1 + rule(70 + i, 0.1, norm["w"].shape)).astype(norm["w"].dtype)
        norm["b"] = rule(80 + i, 0.1, norm["b"].shape).astype(norm["b"].dtype)


def fill(data: dict, davg_zero: bool) -> None:
    """The rule of fill.py, on DeePMD-kit's serialised form."""
    descriptor, fitting = data["descriptor"], data["fitting"]
    fill_nets(descriptor["embeddings"], 10, 20, 25)
    if "embeddings_strip" in descriptor:
        fill_nets(descriptor["embeddings_strip"], 90, 100, 105)
    if "attention_layers" in descriptor:
        fill_attention(descriptor)
        (layer,) = descriptor["type_embedding"]["embedding"]["layers"]
        fill_layer(layer, 110, 115, 0)
    fill_nets(fitting["nets"], 120, 130, 140)
    statistics, inner = descriptor["@variables"], fitting["@variables"]
    for t in range(len(data["type_map"])):
        statistics["davg"][t] = 0.0
        if not davg_zero:
            statistics["davg"][t, :, 0] = 0.10 + 0.05 * t
        statistics["dstd"][t] = 0.20 + 0.03 * t
        statistics["dstd"][t, :, 0] = 0.30 + 0.05 * t
        inner["bias_atom_e"][t] = 0.1 * (t + 1)
        data["@variables"]["out_bias"][0, t, 0] = (1.0, -2.0, 3.0)[t % 3]
    for name, h in (("fparam", 150), ("aparam", 170)):
        if inner.get(f"{name}_avg") is not None:
            shape = inner[f"{name}_avg"].shape
            inner[f"{name}_avg"] = rule(h, 0.5, shape)
            inner[f"{name}_inv_std"] = 1 + rule(h + 10, 0.3, shape)


def make_model(config: dict, filled: bool = True) -> Any:
    config = copy.deepcopy(config)
    descriptor = config["descriptor"]
    config["descriptor"] = DEFAULTS[descriptor["type"]] | descriptor
    model = get_model(config)
    if not filled:
        return model
    data = model.serialize()
    fill(data, descriptor["set_davg_zero"])
    data.pop("type", None)
    return EnergyModel.deserialize(data)


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evaluate(case: dict) -> dict[str, Any]:
    model = make_model(case["model"])
    system = SYSTEMS[case["system"]]
    natoms = len(system["atype"])
    inputs = {
        "coord": tensor(system["coord"]).reshape(1, natoms, 3).requires_grad_(),
        "atype": torch.tensor([system["atype"]]),
        "box": None if system["box"] is None else tensor(system["box"]).reshape(1, 9),
    }
    if "fparam" in case:
        inputs["fparam"] = tensor([case["fparam"]])
        inputs["aparam"] = tensor([case["aparam"]]).reshape(1, natoms, -1)
    out = model(**inputs, do_atomic_virial=True)
    return {
        "energy": out["energy"].item(),
        "atom_energy": out["atom_energy"].detach().reshape(-1).tolist(),
        "force": out["force"].detach().reshape(-1).tolist(),
        "virial": out["virial"].detach().reshape(-1).tolist(),
        "atom_virial_square": out["atom_virial"]
        .detach()
        .reshape(natoms, 9)
        .square()
        .sum(1)
        .tolist(),
    }


def electron_configurations() -> dict[str, str]:
    """Element -> its ±1 vector as the bits of a hexadecimal number."""
    table = {}
    for element, vector in electronic_configuration_embedding.items():
        bits = "".join("1" if x > 0 else "0" for x in vector)
        table[element] = f"{int(bits, 2):x}"
    return table


def statistics(config: dict) -> dict[str, Any]:
    """davg, dstd and out_bias of a small data set with several systems and padding."""
    model = make_model(config, filled=False)
    samples = []
    mixed = config["descriptor"]["type"] == "dpa1"
    for system in statistics_frames(mixed):
        atype = torch.tensor(system["atype"])
        counts = torch.stack([(atype == t).sum(1) for t in range(len(config["type_map"]))], 1)
        real = counts.sum(1, keepdim=True)
        natoms = torch.cat([real, real, counts], 1)
        nframes = len(system["energy"])
        samples.append(
            {
                "coord": tensor(system["coord"]),
                "atype": atype,
                "box": tensor(system["box"]).reshape(nframes, 9),
                "energy": tensor(system["energy"]).reshape(nframes, 1),
                "find_energy": 1.0,
                "natoms": natoms,
                "real_natoms_vec": natoms,
            }
        )
    model.atomic_model.compute_or_load_stat(lambda: samples)
    data = model.serialize()
    return {
        "model": config,
        "frames": statistics_frames(mixed),
        "davg": data["descriptor"]["@variables"]["davg"][:, 0].tolist(),
        "dstd": data["descriptor"]["@variables"]["dstd"][:, 0].tolist(),
        "out_bias": data["@variables"]["out_bias"].reshape(-1).tolist(),
    }


def losses() -> list[dict[str, Any]]:
    prediction, label = loss_tensors()
    natoms = len(prediction["atom_energy"][0])
    shapes = {"energy": (-1, 1), "force": (-1, natoms, 3), "virial": (-1, 9)}
    shapes["atom_energy"] = (-1, natoms, 1)

    def as_tensors(values: dict) -> dict[str, torch.Tensor]:
        return {k: tensor(v).reshape(shapes[k]) for k, v in values.items()}

    records = []
    for config in LOSSES:
        keys = dict(config)
        if keys.get("loss_func") == "huber":
            keys |= {"loss_func": "mse", "use_huber": True}
        loss = EnergyStdLoss(starter_learning_rate=1.0, **keys)
        labels = as_tensors(label)
        labels["atom_ener"] = labels.pop("atom_energy")
        labels |= {f"find_{k}": 1.0 for k in (*labels, "atom_ener")}
        for ratio in (1.0, 0.25):
            _, value, _ = loss({}, lambda: as_tensors(prediction), labels, natoms, ratio)
            records.append({"config": config, "lr_ratio": ratio, "loss": float(value)})
    return records


def schedules() -> list[dict[str, Any]]:
    records = []
    for config in SCHEDULES:
        keys = dict(config)
        numb_steps = keys.pop("numb_steps")
        schedule = BaseLR(num_steps=numb_steps, **keys)
        steps = sorted({0, 1, 7, 50, 99, 100, 101, numb_steps // 2, numb_steps - 1, numb_steps})
        steps = [s for s in steps if s <= numb_steps]
        values = [float(schedule.value(s)) for s in steps]
        records.append({"config": config, "steps": steps, "lr": values})
    return records


def main(target: Path) -> None:
    models = {}
    for name, case in cases().items():
        models[name] = case | evaluate(case)
        sys.stderr.write(f"{name} {models[name]['energy']}\n")
    recorded = {
        "code": f"deepmd-kit {deepmd.__version__}, torch {torch.__version__}",
        "systems": SYSTEMS,
        "models": models,
        "electron_configurations": electron_configurations(),
        "statistics": [statistics(config) for config in STATISTICS],
        "loss_inputs": loss_tensors(),
        "losses": losses(),
        "schedules": schedules(),
        "inputs": [{"given": i, "normal": normalize(copy.deepcopy(i))} for i in INPUTS],
    }
    target.write_text(compact(recorded))


def compact(recorded: dict) -> str:
    """JSON with one record a line."""
    parts = []
    for key, value in recorded.items():
        if key == "models":
            lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            text = "{\n" + ",\n".join(lines) + "\n}"
        elif isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(v) for v in value) + "\n]"
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
