"""Writes the frames of a case, for both codes the same files; reads DeePMD's layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.peer.cases import SOURCES


def write_system(data: Path, name: str, frames: int, target: Path) -> list[str]:
    """Copy frames, spread evenly over a system, into a new one; return its type map."""
    source = data / SOURCES[name].folder
    total = len(np.load(source / "set.000" / "energy.npy"))
    chosen = np.unique(np.linspace(0, total - 1, frames).astype(int))
    if len(chosen) != frames:
        raise ValueError(f"{source} has {total} frames, {frames} are needed")
    (target / "set.000").mkdir(parents=True)
    for path in sorted((source / "set.000").glob("*.npy")):
        np.save(target / "set.000" / path.name, np.load(path)[chosen])
    for label in ("type.raw", "type_map.raw"):
        (target / label).write_text((source / label).read_text())
    return (source / "type_map.raw").read_text().split()


def write_cell(data: Path, name: str, copies: tuple[int, int, int], target: Path) -> int:
    """Write the first frame of a system, repeated along its cell vectors; return its atoms."""
    source = data / SOURCES[name].folder
    box = np.load(source / "set.000" / "box.npy")[0].astype(np.float64).reshape(3, 3)
    coord = np.load(source / "set.000" / "coord.npy")[0].astype(np.float64).reshape(-1, 3)
    atype = np.loadtxt(source / "type.raw", dtype=np.int64)
    steps = np.stack(np.meshgrid(*map(np.arange, copies), indexing="ij"), -1).reshape(-1, 3)
    coord = (coord + (steps @ box)[:, None]).reshape(-1, 3)
    box = box * np.array(copies)[:, None]
    np.savez(target, coord=coord, box=box, atype=np.tile(atype, len(steps)))
    return len(coord)
