"""Inputs of the recorded statistics, losses and learning rates; plain data and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from cases import DPA1, SE, model  # isort: skip  (a script: its folder is on the path)


def _wave(shape: tuple[int, ...], h: float, scale: float) -> np.ndarray:
    k = np.arange(int(np.prod(shape)))
    return (scale * np.sin(1 + 0.7 * k + h)).reshape(shape)


def statistics_frames(mixed: bool) -> list[dict[str, Any]]:
    """Two systems of two frames; with `mixed`, compositions vary and -1 pads."""
    first = [[0, 1, 1, 2, 0], [0, 1, 1, 2, 0]]
    second = [[1, 1, 0, 1], [1, 1, 0, 1]]
    if mixed:
        first[1] = [2, 1, 0, 0, -1]
    lattice = np.array([[4.6, 0, 0], [0.3, 4.4, 0], [-0.2, 0.1, 4.2]])
    grid = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.3, 0.7, 0.8]])
    systems = []
    for s, types in enumerate((first, second)):
        natoms = len(types[0])
        coord = grid[:natoms] @ lattice + _wave((2, natoms, 3), 3.3 * s, 0.4)
        systems.append(
            {
                "coord": coord.tolist(),
                "atype": types,
                "box": np.stack([lattice, 1.05 * lattice]).tolist(),
                "energy": [-5.1 - s, -4.3 + 0.7 * s],
            }
        )
    return systems


STATISTICS = [
    model(DPA1),
    model(DPA1 | {"set_davg_zero": False, "sel": 25}),
    model(SE | {"set_davg_zero": False}),
    model(SE | {"set_davg_zero": False, "exclude_types": [[0, 1]]}),
]

PREFACTORS = {
    "start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 1000.0, "limit_pref_f": 1.0,
    "start_pref_v": 0.5, "limit_pref_v": 2.0, "start_pref_ae": 0.3, "limit_pref_ae": 0.7,
}  # fmt: skip
LOSSES = [
    PREFACTORS,
    PREFACTORS | {"intensive_ener_virial": True},
    PREFACTORS | {"start_pref_f": 0.0, "limit_pref_v": 0.0},
    PREFACTORS | {"loss_func": "mae"},
    PREFACTORS | {"loss_func": "huber", "huber_delta": 0.01},
    PREFACTORS | {"loss_func": "huber", "huber_delta": [0.02, 0.3, 0.05]},
    PREFACTORS | {"loss_func": "mae", "f_use_norm": True},
    PREFACTORS | {"loss_func": "huber", "huber_delta": 0.1, "f_use_norm": True},
    PREFACTORS | {"relative_f": 0.3},
    PREFACTORS | {"loss_func": "mae", "relative_f": 0.3, "f_use_norm": True},
]

SCHEDULES = [
    {"type": "exp", "numb_steps": 1000, "start_lr": 1e-3, "stop_lr": 1e-6, "decay_steps": 50},
    {"type": "exp", "numb_steps": 1000, "start_lr": 1e-3, "stop_lr": 1e-6, "decay_steps": 50,
     "smooth": True},
    {"type": "exp", "numb_steps": 60, "start_lr": 2e-3, "stop_lr": 1e-5, "decay_steps": 20},
    {"type": "exp", "numb_steps": 900, "start_lr": 2e-3, "stop_lr": 1e-5, "decay_steps": 5000},
    {"type": "exp", "numb_steps": 3000, "start_lr": 2e-3, "stop_lr": 1e-5, "decay_steps": 5000},
    {"type": "exp", "numb_steps": 500, "start_lr": 2e-3, "stop_lr": 1e-4, "decay_steps": 50,
     "decay_rate": 0.7},
    {"type": "exp", "numb_steps": 500, "start_lr": 2e-3, "stop_lr": 1e-4, "decay_steps": 50,
     "warmup_steps": 100, "warmup_start_factor": 0.1},
    {"type": "cosine", "numb_steps": 500, "start_lr": 2e-3, "stop_lr": 1e-4},
    {"type": "cosine", "numb_steps": 500, "start_lr": 2e-3, "stop_lr": 1e-4, "warmup_steps": 100},
    {"type": "wsd", "numb_steps": 500, "start_lr": 2e-3, "stop_lr": 1e-4},
    {"type": "wsd", "numb_steps": 500, "start_lr": 2e-3, "stop_lr": 1e-4, "decay_type": "cosine",
     "decay_phase_ratio": 0.4, "warmup_steps": 50},
    {"type": "wsd", "numb_steps": 503, "start_lr": 2e-3, "stop_lr": 1e-4, "decay_type": "linear",
     "decay_phase_ratio": 0.25},
]  # fmt: skip


MINIMAL_INPUT = {
    "model": {"type_map": ["O", "H"], "fitting_net": {}},
    "learning_rate": {"start_lr": 1e-3, "stop_lr": 1e-8},
    "loss": {},
    "training": {"training_data": {"systems": ["a"]}, "numb_steps": 10},
}
INPUTS = [
    MINIMAL_INPUT | {"model": MINIMAL_INPUT["model"] | {"descriptor": {"type": kind}}, **more}
    for kind, more in (
        ("dpa1", {}),
        ("se_atten", {"optimizer": {"type": "AdamW"}}),
        ("se_atten_v2", {"learning_rate": {"type": "wsd", "start_lr": 1e-3, "stop_lr": 1e-5}}),
        ("se_e2_a", {"learning_rate": {"type": "cosine", "start_lr": 1e-3, "stop_lr": 1e-5}}),
    )
]


def loss_tensors() -> tuple[dict[str, Any], dict[str, Any]]:
    """Predictions and labels of two frames of three atoms."""
    sizes = {"energy": (2,), "force": (2, 3, 3), "virial": (2, 3, 3), "atom_energy": (2, 3)}
    label = {k: _wave(s, h, 1.0) for h, (k, s) in enumerate(sizes.items())}
    error = {k: _wave(s, 5.0 + h, 0.2) for h, (k, s) in enumerate(sizes.items())}
    prediction = {k: (label[k] + error[k]).tolist() for k in label}
    return prediction, {k: v.tolist() for k, v in label.items()}
