"""The label store: every label once, whole or not at all, and what failed with its log.

    labels/ID/     label.npz (structure and labels), info.json, files that were to be kept
    failed/ID/     info.json (reasons), attempt-1/, attempt-2/: inputs and the ends of the logs
    manual/HASH/   inputs for another machine, see `ops.labelers.manual`

ID is the hash of the structure and of all settings that decide the label.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from ops.files import write_json
from ops.labelers.base import Structure

if TYPE_CHECKING:
    from dpa_core.frames import Frame

log = logging.getLogger(__name__)

ENVIRONMENT = "DPAFLOW_LABELS"
"""Variable with the folder of the store."""
SMALL = 512 * 1024
"""Bytes. Of a larger file of a failed calculation only the end is kept."""
END = 64 * 1024
"""Bytes of that end."""
MANY = 50
"""Files of a failed calculation that are kept at most."""
PRIVATE = ("POTCAR",)
"""Files that are never kept: their licence forbids copies."""


class Stored(NamedTuple):
    """A label of the store: the frame (types are of its sorted elements) and info.json."""

    frame: Frame
    info: dict[str, Any]


class LabelStore:
    """Labels in a folder.

    Parameters
    ----------
    folder
        Made when the first label arrives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, structure: Structure) -> Stored | None:
        """Return the label called `name`, None if there is none.

        A label that cannot be read, or belongs to another structure, is set aside.
        """
        from dpa_core.frames import Frame

        place = self.folder / "labels" / name
        if not place.is_dir():
            return None
        try:
            with (
                (place / "label.npz").open("rb") as stream,
                np.load(stream, allow_pickle=False) as arrays,
            ):
                found = {key: np.array(arrays[key]) for key in arrays.files}
            info = json.loads((place / "info.json").read_text(encoding="utf-8"))
            elements = tuple(str(e) for e in found["elements"])
            stored = Structure(elements, found["coord"], found.get("box"))
            if stored.digest() != structure.digest():
                raise ValueError("it is of another structure")
            energy = float(found["energy"])
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            log.warning("%s: label set aside, %s", place, error)
            place.rename(Path(tempfile.mkdtemp(prefix=f"damaged-{name}-", dir=self.folder)) / name)
            return None
        names = sorted(set(elements))
        types = np.array([names.index(e) for e in elements], dtype=np.int64)
        frame = Frame(stored.coord, types, stored.box, energy, found["force"], found.get("virial"))
        return Stored(frame, info)

    def put(
        self,
        name: str,
        structure: Structure,
        frame: Frame,
        info: Mapping[str, Any],
        kept: Iterable[Path] = (),
    ) -> None:
        """Store a label; one that is there already stays."""
        arrays: dict[str, Any] = {"elements": np.array(structure.elements)}
        arrays |= {"coord": structure.coord, "energy": frame.energy, "force": frame.force}
        optional = {"box": structure.box, "virial": frame.virial}
        arrays |= {key: value for key, value in optional.items() if value is not None}
        staging = self._staging("labels")
        try:
            with (staging / "label.npz").open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            for path in kept:
                shutil.copy2(path, staging / path.name)
            write_json(staging / "info.json", dict(info))
            _move(staging, self.folder / "labels" / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def quarantine(self, name: str, folders: Sequence[Path], info: Mapping[str, Any]) -> Path:
        """Keep what failed: the inputs and the ends of the logs of every attempt."""
        staging = self._staging("failed")
        place = self.folder / "failed" / name
        try:
            for number, folder in enumerate(folders, start=1):
                _keep_small(folder, staging / f"attempt-{number}")
            write_json(staging / "info.json", dict(info))
            shutil.rmtree(place, ignore_errors=True)
            _move(staging, place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return place

    def _staging(self, kind: str) -> Path:
        place = self.folder / kind
        place.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
        staging.chmod(0o755)
        return staging


def open_store(outdir: Path) -> LabelStore:
    """Return the store that $DPAFLOW_LABELS names; one in `outdir` without it."""
    named = os.environ.get(ENVIRONMENT)
    return LabelStore(Path(named) if named else outdir / "store")


def _move(staging: Path, place: Path) -> None:
    """Rename; a folder that another process put there first stays."""
    try:
        staging.rename(place)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _keep_small(folder: Path, target: Path) -> None:
    """Copy files, of large ones only the end."""
    target.mkdir(parents=True)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in PRIVATE)
    for path in files[:MANY]:
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size
        if size <= SMALL:
            shutil.copyfile(path, copy)
            continue
        with path.open("rb") as stream:
            stream.seek(size - END)
            copy.with_name(f"{copy.name}.end").write_bytes(stream.read())
