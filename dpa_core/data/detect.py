"""Which format a file or folder has, found out from its content."""

from __future__ import annotations

import gzip
import logging
import lzma
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dpa_core.data.npy import is_npy_system, open_npy
from dpa_core.data.system import System
from dpa_core.errors import DataError

log = logging.getLogger(__name__)

FORMATS = (
    "deepmd/npy", "deepmd/npy/mixed", "deepmd/hdf5", "extxyz", "oc20/s2ef",
    "oc20/s2ef/adsorption", "ase/traj", "ase/db", "vasp/outcar", "vasp/xml", "abacus", "qe/pw",
    "qe/cp/traj", "cp2k", "gaussian", "fhi_aims", "siesta", "pwmat/movement", "orca/spout",
    "psi4/out", "n2p2",
)  # fmt: skip
"""Names `open_dataset(fmt=...)` takes."""

ALIASES = {
    "npy": "deepmd/npy", "mixed": "deepmd/npy/mixed", "hdf5": "deepmd/hdf5", "xyz": "extxyz",
    "quip/gap/xyz": "extxyz", "s2ef": "oc20/s2ef", "traj": "ase/traj", "db": "ase/db",
    "abacus/scf": "abacus", "abacus/md": "abacus",
    "abacus/relax": "abacus", "qe/pw/scf": "qe/pw", "cp2k/output": "cp2k",
    "cp2k/aimd_output": "cp2k", "gaussian/log": "gaussian", "gaussian/md": "gaussian",
    "fhi_aims/scf": "fhi_aims", "fhi_aims/md": "fhi_aims", "siesta/output": "siesta",
    "siesta/aimd_output": "siesta", "pwmat/output": "pwmat/movement",
}  # fmt: skip
"""Short names, and dpdata's names of what is one format here."""

HEAD = 1 << 16
"""Bytes of a file that are looked at."""

SIGNATURES = (
    ("vasp/outcar", r"^ *vasp\.\d"),
    ("vasp/xml", r"<modeling>"),
    ("qe/pw", r"Program PWSCF"),
    ("cp2k", r"^ (?:DBCSR|CP2K)\|"),
    ("gaussian", r"Entering Gaussian System"),
    ("abacus", r"Atomic-orbital Based Ab-initio Computation at UStc|WELCOME TO ABACUS"),
    ("fhi_aims", r"Invoking FHI-aims"),
    ("siesta", r"^Siesta Version|Welcome to SIESTA"),
    ("pwmat/movement", r"^ *\d+ +atoms, *Iteration"),
    ("orca/spout", r"^ *\* O   R   C   A \*"),
    ("psi4/out", r"Psi4: An Open-Source Ab Initio"),
    ("n2p2", r"\Abegin\s+(?:comment.*\n|lattice|atom)"),
)
"""Format and the text that gives it away."""

UNSUPPORTED = (
    ("CASTEP", r"CCC   AA    SSS  TTTTT  EEEEE  PPPP"),
    ("NWChem", r"Northwest Computational Chemistry Package|echo of input deck"),
    ("DFTB+", r"Fermi distribution function|^Geometry = GenFormat"),
    ("ABINIT", r"^\.Version .* of ABINIT"),
    ("OpenMX", r"This calculation was performed by OpenMX"),
)
"""Codes that are recognised, so that the message can name them."""


def find_systems(path: str | Path, fmt: str | None = None) -> list[tuple[str, str]]:
    """Everything readable at a path.

    A folder is searched recursively; what has no labels by its nature (inputs, plain xyz) and
    what is in no supported format is passed over there, but is an error if named directly.

    Parameters
    ----------
    path
        File, folder, or file.hdf5#/group.
    fmt
        One of `FORMATS`; None: any.

    Returns
    -------
    (path, format) of each system, for `open_system`.

    Raises
    ------
    DataError
        Nothing is there, or nothing readable.
    """
    fmt = None if fmt is None else ALIASES.get(fmt, fmt)
    if fmt is not None and fmt not in FORMATS:
        raise DataError(f"fmt {fmt!r} is unknown; allowed: {', '.join(FORMATS)}")
    root = Path(str(path).partition("#")[0])
    if not root.exists():
        prefix = _cp_prefix(root) if fmt in (None, "qe/cp/traj") else None
        if prefix is None:
            raise DataError(f"{path}: no such file or folder")
        return [(str(prefix), "qe/cp/traj")]
    if root.is_file():
        kind = fmt or detect(root)
        if kind is None:
            raise DataError(_unreadable(root))
        return _systems_in(path, kind)
    found = [(name, fmt or kind) for name, kind in _search(root) if fmt is None or _same(kind, fmt)]
    if not found:
        raise DataError(
            f"{path}: holds no data{'' if fmt is None else f' of format {fmt}'}; "
            f"supported are {', '.join(FORMATS)}"
        )
    return found


def open_system(path: str, fmt: str, type_map: Sequence[str] | None = None) -> list[System]:
    """Open what `find_systems` found; one entry is one system for nearly every format."""
    file = Path(path)
    if fmt.startswith("deepmd/npy"):
        system = open_npy(file, type_map)
        if fmt == "deepmd/npy/mixed" and not system.mixed:
            raise DataError(f"{path}: no real_atom_types.npy; this is deepmd/npy, not mixed")
        return [system]
    if fmt == "deepmd/hdf5":
        from dpa_core.data.hdf5 import open_hdf5

        return [open_hdf5(path, type_map)]
    if fmt in ("extxyz", "ase/traj", "ase/db") or fmt.startswith("oc20"):
        return [_open_ase(file, fmt)]
    from dpa_core.data.dft import open_dft

    return list(open_dft(file, fmt))


def detect(path: Path) -> str | None:
    """Format of a file by its content, None if it is none of `FORMATS`."""
    head = _head(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "deepmd/hdf5"
    if head.startswith(b"SQLite format 3"):
        return "ase/db"
    if head.startswith(b"- of Ulm"):
        return "ase/traj" if b"ASE-Trajectory" in head[:32] else None
    if path.name == "INPUT" and head.lstrip().startswith(b"INPUT_PARAMETERS"):
        return "abacus"
    if _cp_prefix(path) is not None:
        return "qe/cp/traj"
    text = head.decode("utf-8", "replace")
    if re.match(r"\s*\d+[ \t]*\r?\n", text):
        from dpa_core.data.ase_formats import s2ef_table

        return "extxyz" if s2ef_table(path) is None else "oc20/s2ef"
    return next((fmt for fmt, mark in SIGNATURES if re.search(mark, text, re.MULTILINE)), None)


def _head(path: Path) -> bytes:
    """First bytes of a file, of its content if it is compressed."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    try:
        if head.startswith(b"\xfd7zXZ"):
            with lzma.open(path) as packed:
                return packed.read(HEAD)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                return packed.read(HEAD)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: broken compressed file ({error}); copy it again") from error
    return head


def _systems_in(path: str | Path, kind: str) -> list[tuple[str, str]]:
    """List the systems of one file of a known format."""
    file = Path(path)
    if kind == "deepmd/hdf5":
        from dpa_core.data.hdf5 import find_groups

        groups = find_groups(path)
        if not groups:
            raise DataError(f"{path}: no group with type.raw; is this deepmd/hdf5?")
        return [(name, kind) for name in groups]
    if kind == "abacus" and file.name == "INPUT":
        return [(str(log_file), kind) for log_file in _abacus_logs(file)]
    return [(str(path), kind)]


def _abacus_logs(inputs: Path) -> list[Path]:
    from dpa_core.data.dft import abacus_folder

    logs = sorted(inputs.parent.glob("OUT.*/running_*.log"))
    mine = [x for x in logs if abacus_folder(x) is not None]
    if not mine:
        raise DataError(f"{inputs}: no OUT.*/running_*.log of this run beside it")
    return mine


def _search(root: Path) -> list[tuple[str, str]]:
    """Systems below a folder, in the order of their paths."""
    found: list[tuple[str, str]] = []
    visited: set[Path] = set()
    for name, subfolders, files in os.walk(root, followlinks=True):
        folder = Path(name)
        if folder.resolve() in visited:  # a link back to a folder already searched
            subfolders.clear()
            continue
        visited.add(folder.resolve())
        subfolders.sort()
        if is_npy_system(folder):
            subfolders[:] = [s for s in subfolders if not s.startswith("set.")]
            found.append((name, "deepmd/npy"))
            continue
        kinds = {f: _detect_quietly(folder / f) for f in sorted(files)}
        if "OUTCAR" in kinds and "vasprun.xml" in kinds:
            # the same run twice; the XML has every step and more digits
            log.info("%s: passed over for vasprun.xml beside it", folder / "OUTCAR")
            kinds["OUTCAR"] = None
        seen_prefixes = set()
        for file, kind in kinds.items():
            if kind is None or not _wanted(folder / file, kind, root):
                continue
            if kind == "qe/cp/traj":
                prefix = _cp_prefix(folder / file)
                if prefix in seen_prefixes:
                    continue
                seen_prefixes.add(prefix)
                found.append((str(prefix), kind))
            elif kind == "deepmd/hdf5":
                found.extend(_groups(folder / file))
            else:
                found.append((str(folder / file), kind))
    return found


def _groups(file: Path) -> list[tuple[str, str]]:
    """Systems of an HDF5 file met in a search; a broken file is left for `open_system`."""
    from dpa_core.data.hdf5 import find_groups

    try:
        return [(name, "deepmd/hdf5") for name in find_groups(file)]
    except DataError:
        return [(str(file), "deepmd/hdf5")]


def _detect_quietly(path: Path) -> str | None:
    """`detect` for the search of a folder: what cannot be opened there is passed over."""
    if path.suffix in (".npy", ".raw") or not path.is_file() or path.stat().st_size == 0:
        return None
    return detect(path)


def _wanted(path: Path, kind: str, root: Path) -> bool:
    """Whether a file met in a search is a system of its own."""
    if kind == "extxyz":
        return b"properties=" in _head(path).lower().split(b"\n", 2)[1]
    if kind != "abacus":
        return True
    from dpa_core.data.dft import abacus_folder

    if path.name == "INPUT":
        return False
    if re.fullmatch(r"running_(scf|md|relax|cell-relax)\.log", path.name) is None:
        return False
    if abacus_folder(path) is None and path.parent != root:
        log.warning("%s: passed over, no INPUT of this run in %s", path, path.parent.parent)
        return False
    return True


def _open_ase(path: Path, fmt: str) -> System:
    from dpa_core.data import ase_formats

    if fmt == "extxyz":
        return ase_formats.open_extxyz(path)
    if fmt == "ase/traj":
        return ase_formats.open_traj(path)
    if fmt == "ase/db":
        return ase_formats.open_db(path)
    return ase_formats.open_s2ef(path, adsorption=fmt.endswith("adsorption"))


def _cp_prefix(path: Path) -> Path | None:
    from dpa_core.data.dft import cp_prefix

    return cp_prefix(path)


def _same(found: str, wanted: str) -> bool:
    """Whether a system of format `found` may be opened as `wanted`."""
    return found == wanted or wanted.startswith(f"{found}/")


def _unreadable(path: Path) -> str:
    text = _head(path).decode("utf-8", "replace")
    code = next((c for c, mark in UNSUPPORTED if re.search(mark, text, re.MULTILINE)), None)
    what = f"output of {code}, which is not supported" if code else "in no supported format"
    return (
        f"{path}: {what}; supported are {', '.join(FORMATS)}. Convert it to extxyz with ASE, or "
        "name its format (`format:` of a pipeline's source, `fmt` in Python)"
    )
