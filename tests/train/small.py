"""Tiny data sets and configurations that train in about a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from dpa_core.config import TrainConfig, parse_config
from dpa_core.data import write_mixed
from dpa_core.frames import Frame

ROOT = Path(__file__).resolve().parents[2]
TYPE_MAP = ("Cu", "Au")


def write_random(outdir, nframes, seed, sizes=(3, 4, 6)):
    """Frames of random atoms and labels; every second one lacks a virial."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(nframes):
        n = sizes[k % len(sizes)]
        frames.append(
            Frame(
                coord=rng.uniform(0, 5, (n, 3)),
                atype=rng.integers(0, 2, n),
                box=5 * np.eye(3) + rng.normal(0, 0.2, (3, 3)),
                energy=float(rng.normal() - 3 * n),
                force=rng.normal(size=(n, 3)),
                virial=rng.normal(size=(3, 3)) if k % 2 else None,
            )
        )
    write_mixed(frames, TYPE_MAP, outdir)
    return outdir


def write_emt(outdir, nframes, seed):
    """Rattled four-atom CuAu cells with energies and forces of ASE's EMT."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(nframes):
        atoms = bulk("Cu", cubic=True, a=3.8)
        symbols = rng.permutation(["Cu"] * 2 + ["Au"] * 2)
        atoms.set_chemical_symbols(list(symbols))
        atoms.positions += rng.normal(0, 0.15, (4, 3))
        atoms.calc = EMT()
        types = np.array([TYPE_MAP.index(s) for s in symbols])
        cell = np.array(atoms.cell)
        energy, force = float(atoms.get_potential_energy()), atoms.get_forces()
        frames.append(Frame(atoms.positions.copy(), types, cell, energy, force))
    write_mixed(frames, TYPE_MAP, outdir)
    return outdir


def settings(train, valid=None, **training):
    """Configuration of a small float64 model as plain dictionaries."""
    nets = {"precision": "float64"}
    descriptor = {"rcut": 4.0, "sel": "auto", "neuron": [4, 8], "axis_neuron": 4, "attn": 8}
    document = {
        "model": {
            "type_map": list(TYPE_MAP),
            "descriptor": {"type": "dpa1", "attn_layer": 1, **descriptor, **nets},
            "fitting_net": {"neuron": [8, 8], **nets},
        },
        "loss": {"start_pref_v": 0.1, "limit_pref_v": 1.0},
        "learning_rate": {"start_lr": 0.01, "stop_lr": 1e-4, "decay_steps": 10},
        "training": {
            "training_data": {"systems": [str(train)], "batch_size": "auto:12"},
            "numb_steps": 20,
            "disp_freq": 5,
            "valid_freq": 10,
            "save_freq": 10,
        },
    }
    if valid is not None:
        document["training"]["validation_data"] = {"systems": [str(valid)]}
    document["training"].update(training)
    return document


def config(*args, **kwargs) -> TrainConfig:
    """The same, validated."""
    return parse_config(TrainConfig, settings(*args, **kwargs), "test")


def launch(document, outdir, *prefix):
    """Start `python -m dpa_core.train` in a process of its own."""
    outdir.mkdir(parents=True, exist_ok=True)
    path = outdir.with_suffix(".json")
    path.write_text(json.dumps(document))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *prefix, "-m", "dpa_core.train", str(path), str(outdir)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
