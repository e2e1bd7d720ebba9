"""What is simulated: models, their training, and the dynamics; nothing here runs anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dpa_core.config import TrainConfig, parse_config


class System(NamedTuple):
    """A small DPA-1 model with attention, and the dynamics it drives.

    Attributes
    ----------
    title
        For tables.
    type_map
        Of the model.
    training
        Systems below the data folder.
    batch, steps
        Frames of a training step ("auto:N": at least N atoms), and the number of steps.
    rcut, sel
        Å, and room for neighbours.
    timestep, temperature
        fs and K.
    warmup
        Steps of Langevin dynamics before the dynamics that count.
    """

    title: str
    type_map: tuple[str, ...]
    training: tuple[str, ...]
    batch: int | str
    steps: int
    rcut: float
    sel: int
    timestep: float
    temperature: float
    warmup: int


SYSTEMS = {
    "water": System(
        "64 H2O, 300 K, 0.5 fs", ("O", "H"),
        tuple(f"water_pbe0ts/train/data_{k}" for k in range(3)), 1, 1500,
        rcut=4.5, sel=80, timestep=0.5, temperature=300, warmup=1000,
    ),
    "alloy": System(
        "Nb14Mo14Ta13W13, 600 K, 2 fs", ("Nb", "Mo", "Ta", "W"),
        ("nbmotaw/mixed/train/unary/0054", "nbmotaw/mixed/train/binary/0016"), "auto:96", 1500,
        rcut=5.0, sel=80, timestep=2.0, temperature=600, warmup=500,
    ),
}  # fmt: skip


class Variant(NamedTuple):
    """A way to evaluate the model.

    Attributes
    ----------
    title
        For tables.
    precision
        float32 or float64; the same weights, rounded.
    kernels
        Compiled kernels, else torch.
    compressed
        Whether embedding nets are tables.
    """

    title: str
    precision: str
    kernels: bool = True
    compressed: bool = False


REFERENCE = "eager-f64"
VARIANTS = {
    REFERENCE: Variant("torch eager, float64", "float64", kernels=False),
    "kernels-f64": Variant("kernels, float64", "float64"),
    "kernels-f32": Variant("kernels, float32", "float32"),
    "compressed-f64": Variant("compressed, kernels, float64", "float64", compressed=True),
    "compressed-f32": Variant("compressed, kernels, float32", "float32", compressed=True),
}
"""The first is what the others are judged by."""

# Alloy of the start structure: bcc, 3 x 3 x 3 cubic cells, lattice constant in Å.
LATTICE = 3.24
CELLS = 3


def training(system: System, data: Path) -> TrainConfig:
    """Configure the training of a system's model in float64."""
    model: dict[str, Any] = {
        "type_map": system.type_map,
        "descriptor": {
            "type": "dpa1", "rcut": system.rcut, "rcut_smth": 0.5, "sel": system.sel,
            "neuron": (8, 16, 32), "axis_neuron": 8, "tebd_input_mode": "strip",
            "attn": 32, "attn_layer": 1, "smooth_type_embedding": True, "precision": "float64",
        },
        "fitting_net": {"neuron": (64, 64, 64), "precision": "float64"},
    }  # fmt: skip
    document = {
        "model": model,
        "loss": {"limit_pref_f": 20.0},
        "learning_rate": {"type": "cosine", "start_lr": 3e-3, "stop_lr": 1e-5},
        "training": {
            "training_data": {
                "systems": [str(data / name) for name in system.training],
                "batch_size": system.batch,
            },
            "numb_steps": system.steps, "gradient_max_norm": 0.0, "save_freq": 500,
        },
    }  # fmt: skip
    return parse_config(TrainConfig, document, "benchmarks.nve")
