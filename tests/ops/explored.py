"""Make the folder of an explore step by hand, as `ops.explore` leaves one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dpa_core.committee import Deviation, write_model_devi
from dpa_core.data import write_mixed
from dpa_core.frames import Frame

TYPES = ("Al", "Ni")


def bulk(natoms: int = 8, seed: int = 0, *, rattle: float = 0.1, side: float = 2.8) -> Frame:
    """A rattled cubic grid of alternating Al and Ni without labels."""
    rng = np.random.default_rng(seed)
    n = int(np.ceil(natoms ** (1 / 3)))
    grid = np.array([(x, y, z) for x in range(n) for y in range(n) for z in range(n)])[:natoms]
    coord = side * grid + rng.normal(scale=rattle, size=(natoms, 3))
    return Frame(coord, grid.sum(axis=1) % 2, side * n * np.eye(3))


def deviations(max_devi_f: Sequence[float], **others: Sequence[float]) -> Deviation:
    columns = dict.fromkeys(Deviation._fields, np.zeros(len(max_devi_f)))
    given = {"max_devi_f": max_devi_f} | others
    return Deviation(**columns | {k: np.asarray(v, np.float64) for k, v in given.items()})


def make_explored(
    outdir: Path,
    trajectories: Mapping[str, tuple[Sequence[Frame], Deviation]],
    types: Sequence[str] = TYPES,
    **document: object,
) -> Path:
    """Write explore.json and trajectories/NAME with their frames and deviations."""
    rows = []
    for name, (frames, deviation) in trajectories.items():
        folder = outdir / "trajectories" / name
        if frames:
            write_mixed(frames, types, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_model_devi(folder / "model_devi.out", range(len(deviation.max_devi_f)), deviation)
        (folder / "trajectory.json").write_text("{}")
        rows.append({"name": name, "frames": len(frames), "stop": None})
    outdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": 1, "stage": 0, "trajectories": rows, **document})
    (outdir / "explore.json").write_text(text)
    return outdir
