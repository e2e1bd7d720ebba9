"""Gather labelled frames: read any format, filter, drop duplicates, split, write.

`collect` keeps only a short record of every frame in memory; frames are read once to judge
them and once more to write the kept ones.
"""

from __future__ import annotations

import csv
import glob
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt

from dpa_core.config import Config
from dpa_core.errors import DataError
from ops.files import holds_frames, write_json, write_text
from ops.filters import FILTERS, Filters, fingerprint, first_failed, reduced_formula
from ops.split import PARTS, Split, assign
from ops.storage import localize

if TYPE_CHECKING:
    from dpa_core.data import Dataset
    from dpa_core.frames import Frame

EXAMPLES = 5
CONFLICT = 1e-3
logger = logging.getLogger(__name__)


class Source(Config):
    """One place that frames come from."""

    path: str
    """A file, a folder or a pattern with `*`; every match is read on its own. Also s3://..."""
    format: str | None = None
    """Any format `dpa_core.data` reads; guessed from the name when left out."""
    label: str | None = None
    """Name in the table; the path when left out."""


class CollectConfig(Config):
    """Everything `collect` needs."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where the frames come from; of duplicates the first is kept."""
    type_map: tuple[str, ...] | None = None
    """Elements of the written data; left out: those found, by atomic number."""
    filters: Filters = Filters()
    """Which frames are kept."""
    unique: bool = True
    """Drop frames whose geometry and composition occurred before."""
    split: Split = Split()
    """How the kept frames are divided."""
    min_train: NonNegativeInt = 0
    """Fewest training frames that are enough; fewer are an error."""
    allow_empty: bool = False
    """Nothing kept, or an empty source folder, is no error; `train/` is then an empty folder."""
    on_bad: Literal["stop", "skip"] = "stop"
    """Unreadable or unconverged files: stop with their names, or list them and go on."""


class CollectInputs(NamedTuple):
    """Where the sources lie now: label -> path. A source not named here is read at its path."""

    paths: Mapping[str, Path] = {}


class CollectReport(NamedTuple):
    """What became of the frames; `collect.json` holds the same.

    Attributes
    ----------
    type_map
        Elements of the written data.
    table
        One row per source and a last one "total": label, path, files, found, unreadable,
        a column per filter, duplicates, kept, train, valid, test, unused.
    details
        The JSON document: the table, example names of rejected frames, bad files with reasons,
        frames per formula and part.
    """

    type_map: tuple[str, ...]
    table: list[dict[str, Any]]
    details: dict[str, Any]


class _Kept(NamedTuple):
    dataset: Dataset
    number: int
    row: _Row
    name: str
    formula: str


class _Row:
    """Tally of one source."""

    def __init__(self, label: str, path: str) -> None:
        self.label = label
        self.path = path
        self.files = 0
        self.found = 0
        self.kept = 0
        self.duplicates = 0
        self.bad: list[dict[str, str]] = []
        self.rejected: dict[str, list[str]] = {name: [] for name in FILTERS}
        self.parts: Counter[str] = Counter()

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.label,
            "path": self.path,
            "files": self.files,
            "found": self.found,
            "unreadable": len(self.bad),
            **{name: len(self.rejected[name]) for name in FILTERS},
            "duplicates": self.duplicates,
            "kept": self.kept,
            **{name: self.parts[name] for name in (*PARTS, "unused")},
        }


def run_collect(inputs: CollectInputs, config: CollectConfig, outdir: Path) -> CollectReport:
    """Read, filter, deduplicate, split and write frames.

    Parameters
    ----------
    inputs
        Present places of the sources.
    config
        Sources, filters, split.
    outdir
        Receives `train/`, `valid/`, `test/` (deepmd/npy/mixed; empty parts are left out),
        `collect.json` and `collect.csv`.

    Raises
    ------
    DataError
        Bad files under `on_bad: stop`, nothing left (with the counts per filter), fewer frames
        than the split asks for, an element outside `type_map`.
    """
    rows, kept, conflicts = _gather(inputs, config)
    bad = [f"{item['name']}: {item['reason']}" for row in rows for item in row.bad]
    if bad and config.on_bad == "stop":
        raise DataError(_bad_message(bad))
    for line in bad:
        logger.warning("skipped %s", line)
    if not kept and not config.allow_empty:
        raise DataError(_empty_message(rows))
    type_map = _type_map(kept, config)
    parts = assign([item.formula for item in kept], config.split) if kept else []
    if parts.count("train") < config.min_train:
        raise DataError(
            f"{parts.count('train')} training frames are left, {config.min_train} are needed for "
            "the largest draw (and a frame to test on); lower targets.frames, loosen the "
            "filters, or add data"
        )
    outdir.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        _write_part([k for k, p in zip(kept, parts, strict=True) if p == part], type_map,
                    outdir / part)  # fmt: skip
    if config.allow_empty:
        (outdir / "train").mkdir(exist_ok=True)
    formulas: dict[str, Counter[str]] = defaultdict(Counter)
    for item, part in zip(kept, parts, strict=True):
        item.row.parts[part] += 1
        formulas[item.formula][part] += 1
    return _report(rows, type_map, formulas, conflicts, config, outdir)


def _gather(
    inputs: CollectInputs, config: CollectConfig
) -> tuple[list[_Row], list[_Kept], list[str]]:
    rows, kept, conflicts = [], [], []
    seen: dict[str, float | None] = {}
    for source in config.sources:
        label = source.label or source.path
        row = _Row(label, source.path)
        rows.append(row)
        place = inputs.paths.get(label)
        if config.allow_empty and place is not None and not holds_frames(place):
            continue
        for dataset, index, frame in _frames(place, source, row):
            row.found += 1
            elements = [dataset.type_map[t] for t in frame.atype]
            name = dataset.name(index)
            if failed := first_failed(frame, elements, config.filters):
                row.rejected[failed].append(name)
                continue
            key = fingerprint(frame, elements)
            if config.unique and key in seen:
                row.duplicates += 1
                if _differs(frame, seen[key]):
                    conflicts.append(name)
                continue
            seen[key] = frame.energy
            row.kept += 1
            kept.append(_Kept(dataset, index, row, name, reduced_formula(elements)))
    if conflicts:
        logger.warning(
            "%d duplicates carry another energy than the frame kept, first %s: "
            "are these sources at one level of theory?", len(conflicts), conflicts[0]
        )  # fmt: skip
    return rows, kept, conflicts


def _differs(frame: Frame, energy: float | None) -> bool:
    if frame.energy is None or energy is None:
        return False
    return abs(frame.energy - energy) > CONFLICT * len(frame.coord)


def _frames(place: Path | None, source: Source, row: _Row) -> Iterator[tuple[Dataset, int, Frame]]:
    """Readable frames of a source; what cannot be read is noted in `row.bad`."""
    from dpa_core.data import open_dataset

    for path, fmt in _systems(place, source, row):
        row.files += 1
        try:
            dataset = open_dataset([path], fmt=fmt)
            if len(dataset) == 0:
                raise DataError("holds no frames")
        except (DataError, OSError) as error:
            row.bad.append({"name": path, "reason": _reason(path, error)})
            continue
        for index in range(len(dataset)):
            try:
                frame = dataset[index]
            except (DataError, OSError) as error:
                name = dataset.name(index)
                row.bad.append({"name": name, "reason": _reason(name, error)})
                continue
            yield dataset, index, frame


def _systems(place: Path | None, source: Source, row: _Row) -> Iterator[tuple[str, str | None]]:
    """Every file or folder that holds frames, with its format: one bad file spoils no other."""
    from dpa_core.data import find_systems

    for path in _matches(place, source.path):
        try:
            yield from find_systems(path, source.format)
        except (DataError, OSError) as error:
            row.files += 1
            row.bad.append({"name": str(path), "reason": _reason(str(path), error)})


def _reason(name: str, error: Exception) -> str:
    return str(error).removeprefix(name).lstrip(": ")


def _matches(place: Path | None, pattern: str) -> list[Path]:
    if place is not None:
        return [place]
    path = Path(localize(pattern)).expanduser()
    if path.exists():
        return [path]
    found = sorted(Path(match) for match in glob.glob(str(path)))  # noqa: PTH207 (absolute ones)
    if not found:
        raise DataError(
            f"sources: nothing matches {pattern!r}, seen from {Path.cwd()}; check the path"
        )
    return found


def _type_map(kept: list[_Kept], config: CollectConfig) -> tuple[str, ...]:
    from ase.data import atomic_numbers

    found = {e for item in kept for e in _elements(item)}
    if config.type_map is None:
        return tuple(sorted(found, key=lambda e: atomic_numbers.get(e, 999)))
    if unknown := sorted(found - set(config.type_map)):
        example = next(i.name for i in kept if set(_elements(i)) & set(unknown))
        raise DataError(
            f"{example}: element {', '.join(unknown)} is not in type_map "
            f"{list(config.type_map)}; add it or set filters.elements to leave such frames out"
        )
    return config.type_map


def _elements(item: _Kept) -> list[str]:
    counts = item.dataset.counts([item.number])[0]
    return [e for e, n in zip(item.dataset.type_map, counts, strict=True) if n]


def _write_part(items: list[_Kept], type_map: tuple[str, ...], outdir: Path) -> None:
    from dpa_core.data import write_mixed

    if not items:
        return

    def frames() -> Iterator[Frame]:
        for item in items:
            frame = item.dataset[item.number]
            lookup = np.array(
                [type_map.index(e) if e in type_map else -1 for e in item.dataset.type_map]
            )
            yield frame._replace(atype=lookup[frame.atype])

    write_mixed(frames(), type_map, outdir, source=[f"{i.row.label}: {i.name}" for i in items])


def _report(
    rows: list[_Row],
    type_map: tuple[str, ...],
    formulas: Mapping[str, Counter[str]],
    conflicts: list[str],
    config: CollectConfig,
    outdir: Path,
) -> CollectReport:
    table = [row.as_dict() for row in rows]
    total = {
        key: sum(row[key] for row in table) for key in table[0] if key not in ("source", "path")
    }
    table.append({"source": "total", "path": "", **total})
    details = {
        "version": 1,
        "type_map": list(type_map),
        "table": table,
        "bad": [item for row in rows for item in row.bad],
        "rejected": {
            row.label: {name: names[:EXAMPLES] for name, names in row.rejected.items() if names}
            for row in rows
        },
        "label_conflicts": {"count": len(conflicts), "examples": conflicts[:EXAMPLES]},
        "formulas": {name: dict(parts) for name, parts in sorted(formulas.items())},
        "config": config.model_dump(mode="json"),
    }
    write_json(outdir / "collect.json", details)
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(outdir / "collect.csv", text.getvalue())
    return CollectReport(type_map, table, details)


def _bad_message(bad: list[str]) -> str:
    head = f"{len(bad)} unreadable or unconverged; remove them or set on_bad: skip"
    more = [f"... and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n  ".join([head, *bad[:20], *more])


def _empty_message(rows: list[_Row]) -> str:
    lines = ["no frame is left after reading and filtering; counts per source:"]
    for row in rows:
        reasons = {name: len(names) for name, names in row.rejected.items()}
        counts = {"unreadable": len(row.bad), **reasons, "duplicates": row.duplicates}
        told = ", ".join(f"{name} {n}" for name, n in counts.items() if n) or "nothing rejected"
        lines.append(f"{row.label}: found {row.found}; {told}")
    return "\n  ".join(lines)
