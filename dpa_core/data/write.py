"""Write frames as deepmd/npy/mixed, the form in which data travel between steps."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpa_core.data.checks import check_frame
from dpa_core.data.elements import formula
from dpa_core.errors import DataError
from dpa_core.frames import Frame

Item = tuple[Frame, str]

ARRAYS = {
    "coord": "coord",
    "box": "box",
    "energy": "energy",
    "force": "force",
    "virial": "virial",
    "atom_energy": "atom_ener",
    "fparam": "fparam",
    "aparam": "aparam",
}
"""Frame attribute -> name of the .npy file."""


def write_mixed(
    frames: Iterable[Frame],
    type_map: Sequence[str],
    outdir: str | Path,
    source: Sequence[str] | None = None,
    dtype: str = "float64",
) -> list[Path]:
    """Write frames as deepmd/npy/mixed: one folder per number of atoms.

    Frames that differ in periodicity or in the labels they have go to separate folders, since
    a set has a label for all its frames or for none. Every folder has a table frames.csv
    (source, natoms, formula).

    Parameters
    ----------
    frames
        The frames; types are indices into `type_map`, virtual atoms are not allowed.
    type_map
        Names of the types.
    outdir
        New or empty folder; it appears complete or not at all.
    source
        Where each frame came from.
    dtype
        float64 or float32, of everything except energies, which are always float64.

    Returns
    -------
    The folders of the systems.

    Raises
    ------
    DataError
        No frames, a frame with impossible values, or `outdir` holds files already.
    """
    if dtype not in ("float32", "float64"):
        raise DataError(f"dtype {dtype!r}; allowed: float32, float64")
    outdir = Path(outdir)
    if outdir.exists() and any(outdir.iterdir()):
        raise DataError(f"{outdir}: is not empty; choose a new folder or remove it first")
    groups = _group(frames, type_map, source)
    outdir.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{outdir.name}.", dir=outdir.parent))
    try:
        for name, items in groups.items():
            _write_system(items, type_map, staging / name, dtype)
        staging.chmod(0o755)
        if outdir.exists():
            outdir.rmdir()
        staging.replace(outdir)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return [outdir / name for name in groups]


def _group(
    frames: Iterable[Frame], type_map: Sequence[str], source: Sequence[str] | None
) -> dict[str, list[Item]]:
    """Frames that fit into one folder, by the folder's name."""
    kinds: dict[tuple[int, tuple[str, ...]], list[Item]] = defaultdict(list)
    number = -1
    for number, frame in enumerate(frames):
        check_frame(frame, f"frame {number}")
        if frame.atype.min() < 0 or frame.atype.max() >= len(type_map):
            raise DataError(
                f"frame {number}: types {frame.atype.min()} to {frame.atype.max()} do not fit a "
                f"type_map of {len(type_map)} names"
            )
        if source is not None and number >= len(source):
            raise DataError(f"source names {len(source)} frames, there are more frames than that")
        present = tuple(name for name in ARRAYS if getattr(frame, name) is not None)
        item = (frame, "" if source is None else source[number])
        kinds[len(frame.atype), present].append(item)
    if number < 0:
        raise DataError("no frames to write")
    if source is not None and len(source) != number + 1:
        raise DataError(f"source names {len(source)} frames, there are {number + 1}")
    groups: dict[str, list[Item]] = {}
    for (natoms, _), items in sorted(kinds.items()):
        name, suffix = f"{natoms:04d}", 1
        while name in groups:
            suffix += 1
            name = f"{natoms:04d}-{suffix}"
        groups[name] = items
    return groups


def _write_system(items: Sequence[Item], type_map: Sequence[str], folder: Path, dtype: str) -> None:
    first = items[0][0]
    data = folder / "set.000"
    data.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n" * len(first.atype))
    (folder / "type_map.raw").write_text("".join(f"{name}\n" for name in type_map))
    if first.box is None:
        (folder / "nopbc").touch()
    np.save(data / "real_atom_types.npy", np.stack([f.atype for f, _ in items]).astype(np.int32))
    for attribute, name in ARRAYS.items():
        if getattr(first, attribute) is None:
            continue
        rows: list[NDArray[np.float64]] = [np.ravel(getattr(f, attribute)) for f, _ in items]
        wanted = np.float64 if attribute == "energy" else np.dtype(dtype)
        np.save(data / f"{name}.npy", np.stack(rows).astype(wanted).reshape(len(items), -1))
    with (folder / "frames.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["source", "natoms", "formula"])
        table.writerows([src, len(f.atype), formula(f.atype, type_map)] for f, src in items)
