"""extxyz, OC20 S2EF, ASE trajectories and ASE databases; structures are read one by one."""

from __future__ import annotations

import gzip
import io
import lzma
import re
from array import array
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dpa_core.data.labels import frame_from_atoms
from dpa_core.data.system import System
from dpa_core.errors import DataError
from dpa_core.frames import Frame

if TYPE_CHECKING:
    from ase import Atoms

XZ_MAGIC, GZIP_MAGIC = b"\xfd7zXZ", b"\x1f\x8b"


class AtomsSystem(System):
    """Structures that `load` reads from a file; their elements are known beforehand.

    Parameters
    ----------
    path
        The file.
    sizes
        Number of atoms of every structure.
    numbers
        Atomic numbers of all structures, one after another.
    load
        Reads structure k.
    labels
        Names of the structures for `where`; None numbers them.
    """

    def __init__(
        self,
        path: Path,
        sizes: array[int],
        numbers: array[int],
        load: Callable[[int], Atoms],
        labels: list[str] | None = None,
    ) -> None:
        if len(sizes) == 0:
            raise DataError(f"{path}: zero frames; the file holds no structure")
        if min(sizes) == 0:
            raise DataError(f"{path} frame {sizes.index(0)}: no atoms")
        from ase.data import chemical_symbols

        self.path, self.name, self.nframes = path, str(path), len(sizes)
        self._natoms = np.array(sizes, dtype=np.int64)
        self._end = np.cumsum(self._natoms)
        self._load, self._labels = load, labels
        elements, own = np.unique(np.array(numbers, dtype=np.int16), return_inverse=True)
        self.names = tuple(chemical_symbols[z] for z in elements)
        self._types = own.astype(np.int16)

    def types(self, k: int) -> NDArray[np.int64]:
        """Own types of structure k."""
        end = int(self._end[k])
        return self._types[end - int(self._natoms[k]) : end].astype(np.int64)

    def used(self) -> tuple[int, ...]:
        """All own types occur."""
        return tuple(range(len(self.names)))

    def natoms(self) -> NDArray[np.int64]:
        """Atoms of every structure."""
        return self._natoms

    def frame(self, k: int) -> Frame:
        """Read structure k."""
        return frame_from_atoms(self._load(k), self.names, self.where(k))

    def where(self, k: int) -> str:
        """Place of structure k, with its own label if it has one."""
        label = f" ({self._labels[k]})" if self._labels else ""
        return f"{self.name} frame {k}{label}"


def open_extxyz(path: Path, labels: list[str] | None = None) -> AtomsSystem:
    """Open an (ext)xyz file, also compressed by xz or gzip; it is scanned once for offsets.

    Raises
    ------
    DataError
        The file is truncated, malformed or names an unknown element.
    """
    packed = is_compressed(path)
    stream: BinaryIO = io.BytesIO(_unpack(path)) if packed else path.open("rb")
    with stream:
        offsets, sizes, numbers = _scan(stream, str(path))
    offsets.append(-1)

    def load(k: int) -> Atoms:
        start, stop = offsets[k], offsets[k + 1]
        if packed:
            text = _unpack(path)[start : None if stop < 0 else stop]
        else:
            with path.open("rb") as file:
                file.seek(start)
                text = file.read(-1 if stop < 0 else stop - start)
        return _parse(text, f"{path} frame {k}")

    return AtomsSystem(path, sizes, numbers, load, labels)


def open_s2ef(path: Path, adsorption: bool = False) -> AtomsSystem:
    """Open one N.extxyz.xz of OC20 S2EF; N.txt.xz names the frames.

    Each line of N.txt is "system id, frame, reference energy".

    Parameters
    ----------
    path
        The N.extxyz.xz (or unpacked N.extxyz).
    adsorption
        True subtracts the reference energy (OC20's adsorption energy). The total energy is the
        default: only that is a sum over atoms.
    """
    system = open_extxyz(path)
    table = s2ef_table(path)
    if table is None:
        raise DataError(f"{path}: its table {path.name.replace('.extxyz', '.txt')} is missing")
    lines = [line.rsplit(",", 1) for line in _unpack(table).decode().splitlines() if line.strip()]
    if len(lines) != system.nframes:
        raise DataError(f"{table}: {len(lines)} lines for {system.nframes} frames of {path.name}")
    try:
        references = [float(reference) for _, reference in lines]
    except ValueError as error:
        raise DataError(f"{table}: a line is not 'system,frame,reference energy'") from error
    load = system._load

    def shifted(k: int) -> Atoms:
        atoms = load(k)
        if atoms.calc is not None and "energy" in atoms.calc.results:
            atoms.calc.results["energy"] -= references[k]
        return atoms

    system._labels = [name for name, _ in lines]
    if adsorption:
        system._load = shifted
    return system


def s2ef_table(path: Path) -> Path | None:
    """N.txt(.xz) beside an N.extxyz(.xz), None if there is none."""
    stem = re.sub(r"\.(ext)?xyz(\.xz)?$", "", path.name)
    for name in (f"{stem}.txt.xz", f"{stem}.txt"):
        if (path.parent / name).is_file() and stem != path.name:
            return path.parent / name
    return None


def open_traj(path: Path) -> AtomsSystem:
    """Open an ASE trajectory; the elements are read at once, the rest when asked for."""
    from ase.io import Trajectory

    sizes, numbers = array("q"), array("h")
    try:
        with Trajectory(path) as trajectory:
            for atoms in trajectory:
                sizes.append(len(atoms))
                numbers.extend(atoms.numbers.tolist())
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path}: not a readable ASE trajectory ({error})") from error

    def load(k: int) -> Atoms:
        with Trajectory(path) as trajectory:
            return trajectory[k]

    return AtomsSystem(path, sizes, numbers, load)


def open_db(path: Path) -> AtomsSystem:
    """Open an ASE database (SQLite)."""
    from ase.db import connect

    sizes, numbers, ids = array("q"), array("h"), []
    database = connect(path, type="db")
    for row in database.select(include_data=False):
        sizes.append(row.natoms)
        numbers.extend(row.numbers.tolist())
        ids.append(row.id)

    def load(k: int) -> Atoms:
        row = database.get(id=ids[k])
        atoms = row.toatoms()
        for key, value in {**row.data, **row.key_value_pairs}.items():
            atoms.info[key] = value
            if np.ndim(value) and len(value) == len(atoms):
                atoms.arrays.setdefault(key, np.asarray(value))
        return atoms

    return AtomsSystem(path, sizes, numbers, load, [f"id {i}" for i in ids])


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed by xz or gzip."""
    return _opener(path) is not None


def _opener(path: Path) -> Callable[..., BinaryIO] | None:
    with path.open("rb") as stream:
        magic = stream.read(5)
    if magic == XZ_MAGIC:
        return lzma.open  # type: ignore[return-value]
    return gzip.open if magic[:2] == GZIP_MAGIC else None  # type: ignore[return-value]


def _unpack(path: Path) -> bytes:
    """Content of a compressed file."""
    return _unpacked(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _unpacked(path: Path, changed: int) -> bytes:
    """Content as of the time `changed`; a few are kept, as they cannot be entered midway."""
    opener = _opener(path)
    if opener is None:
        return path.read_bytes()
    try:
        with opener(path, "rb") as stream:
            return stream.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: broken compressed file ({error}); copy it again") from error


def _scan(stream: BinaryIO, where: str) -> tuple[list[int], array[int], array[int]]:
    """Offset, number of atoms and atomic numbers of every structure."""
    from ase.data import atomic_numbers

    table = {symbol.encode(): z for symbol, z in atomic_numbers.items() if z > 0}
    table.update({str(z).encode(): z for z in range(1, 119)})
    offsets: list[int] = []
    sizes, numbers = array("q"), array("h")
    while True:
        start = stream.tell()
        head = stream.readline()
        if not head:
            return offsets, sizes, numbers
        if not head.strip():
            continue
        place = f"{where} frame {len(offsets)}"
        if not head.strip().isdigit():
            raise DataError(f"{place}: {head[:40]!r} is not a number of atoms; is this extxyz?")
        column = _species_column(stream.readline().decode("utf-8", "replace"), place)
        natoms = int(head)
        for atom in range(natoms):
            words = stream.readline().split(None, column + 1)
            if len(words) <= column:
                raise DataError(f"{place}: truncated at atom {atom} of {natoms}; write it again")
            if words[column] not in table:
                symbol = words[column].decode("utf-8", "replace")
                raise DataError(f"{place}: unknown element {symbol!r} (atom {atom})")
            numbers.append(table[words[column]])
        offsets.append(start)
        sizes.append(natoms)


def _species_column(comment: str, place: str) -> int:
    """Column of the element in the atom lines, from Properties=name:kind:number:..."""
    match = re.search(r'Properties="?([^\s"]+)', comment, flags=re.IGNORECASE)
    if match is None:
        return 0
    fields = match.group(1).split(":")
    columns, at = {}, 0
    for name, _, number in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        columns[name.lower()] = at
        at += int(number) if number.isdigit() else 1
    for name in ("species", "symbols", "element", "elements", "z", "numbers"):
        if name in columns:
            return columns[name]
    raise DataError(f"{place}: Properties={match.group(1)} has no species column")


def _parse(text: bytes, where: str) -> Atoms:
    from ase.io.extxyz import XYZError, read_xyz

    head, comment, rest = text.decode("utf-8", "replace").lstrip().split("\n", 2)
    # ASE insists on nine numbers
    comment = re.sub(r'(stress|virial)(="|=\{|=\[)([^"}\]]*)', _nine, comment, flags=re.IGNORECASE)
    try:
        return next(iter(read_xyz(io.StringIO("\n".join((head, comment, rest))), index=0)))
    except (XYZError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise DataError(f"{where}: not valid extxyz ({error})") from error


def _nine(match: re.Match[str]) -> str:
    """Voigt's xx yy zz yz xz xy as a full tensor; anything else as it was."""
    words = match.group(3).replace(",", " ").split()
    if len(words) != 6:
        return match.group(0)
    xx, yy, zz, yz, xz, xy = words
    return f"{match.group(1)}{match.group(2)}{xx} {xy} {xz} {xy} {yy} {yz} {xz} {yz} {zz}"
