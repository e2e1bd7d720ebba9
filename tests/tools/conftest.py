"""Small models and data sets, held in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpa_core.config import ModelConfig, parse_config
from dpa_core.data.dataset import Dataset
from dpa_core.data.system import MemorySystem
from dpa_core.frames import Frame
from dpa_core.model import Potential, build_model

TYPE_MAP = ("O", "H", "Cu")
DPA1 = {
    "type": "dpa1", "rcut": 3.5, "rcut_smth": 0.5, "sel": 60, "neuron": [4, 8], "axis_neuron": 3,
    "tebd_dim": 4, "attn": 6, "attn_layer": 1, "precision": "float64",
}  # fmt: skip
SE = {
    "type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.5, "sel": [20, 20, 20], "neuron": [4, 8],
    "axis_neuron": 3, "precision": "float64",
}  # fmt: skip
FITTING = {"neuron": [7, 7], "precision": "float64"}


def config(
    descriptor: dict[str, Any] | None = None, type_map: Sequence[str] = TYPE_MAP, **rest: Any
) -> ModelConfig:
    fitting = FITTING | rest.pop("fitting_net", {})
    data = {"type_map": list(type_map), "descriptor": DPA1 | (descriptor or {}),
            "fitting_net": fitting} | rest  # fmt: skip
    if (descriptor or {}).get("type") == "se_e2_a":
        data["descriptor"] = SE | (descriptor or {})
    return parse_config(ModelConfig, data, "test")


def frame(
    rng: np.random.Generator, atype: Sequence[int], length: float = 5.0, **labels: Any
) -> Frame:
    """Random atoms at least 0.8 Å apart in a slightly skewed cell."""
    box = length * (np.eye(3) + 0.1 * rng.standard_normal((3, 3)))
    coord = np.zeros((0, 3))
    while len(coord) < len(atype):
        new = rng.random(3) @ box
        delta = (coord - new) @ np.linalg.inv(box)
        distance = np.linalg.norm((delta - np.round(delta)) @ box, axis=1)
        if distance.min(initial=9.0) > 0.8:
            coord = np.vstack([coord, new])
    return Frame(coord, np.array(atype, np.int64), box, **labels)


def dataset(*systems: Sequence[Frame], type_map: Sequence[str] = TYPE_MAP) -> Dataset:
    opened = [MemorySystem(Path(f"sys{k}"), type_map, list(f)) for k, f in enumerate(systems)]
    return Dataset(opened, type_map)


def labelled(model: Potential, frames: Sequence[Frame]) -> list[Frame]:
    """The frames with the model's own energies, forces and virials as labels."""
    result = []
    for one in frames:
        box = None if one.box is None else one.box[None]
        e = model.evaluate(one.coord[None], box, one.atype)
        result.append(one._replace(energy=float(e.energy[0]), force=e.force[0], virial=e.virial[0]))
    return result


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def make_model() -> Callable[..., Potential]:
    def make(descriptor: dict[str, Any] | None = None, seed: int = 1, **rest: Any) -> Potential:
        return build_model(config(descriptor, **rest), seed)

    return make
