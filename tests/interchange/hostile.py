"""Small good model files of every format, to be harmed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from dpa_core.config import ModelConfig, parse_config
from dpa_core.interchange.files import save_model
from dpa_core.model import Potential, build_model

HERE = Path(__file__).parent
SUFFIXES = {"native": ".safetensors", "dp": ".dp", "yaml": ".yaml", "pt": ".pt"}
DPA1 = {
    "type": "dpa1", "rcut": 3.5, "sel": 9, "neuron": [2, 4], "axis_neuron": 2, "tebd_dim": 3,
    "attn": 4, "attn_layer": 1, "precision": "float64",
}  # fmt: skip
SE = {
    "type": "se_e2_a", "rcut": 3.5, "sel": [3, 4], "neuron": [2, 4], "axis_neuron": 2,
    "precision": "float32",
}  # fmt: skip
FITTING = {"neuron": [3, 3], "precision": "float64"}


def tiny_model(descriptor: dict[str, Any] = DPA1, **rest: Any) -> Potential:
    """Make a model of two elements whose files have a few kilobytes."""
    data = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": FITTING} | rest
    return build_model(parse_config(ModelConfig, data, "test"))


def models() -> list[Potential]:
    """Models that differ in what their files hold."""
    strip = DPA1 | {"tebd_input_mode": "strip", "use_tebd_bias": True, "attn_layer": 2}
    return [
        tiny_model(),
        tiny_model(strip, fitting_net=FITTING | {"numb_fparam": 1, "default_fparam": [0.5]}),
        tiny_model(SE | {"exclude_types": [[0, 1]], "resnet_dt": True}),
    ]


def samples(kind: str) -> list[bytes]:
    """Good files of a format."""
    if kind == "pth":
        return [path.read_bytes() for path in sorted((HERE / "torch").glob("*.pth"))]
    if kind == "pb":
        return [path.read_bytes() for path in sorted((HERE / "tensorflow").glob("*.pb"))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{SUFFIXES[kind]}"
        files = [save_model(model, path).read_bytes() for model in models()]
    if kind == "pt":
        files.append((HERE / "torch" / "multi.pt").read_bytes())
    return files
