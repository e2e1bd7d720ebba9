"""Outputs of electronic-structure codes, parsed by dpdata (pw.x: ASE), converged frames only.

dpdata keeps unconverged frames of some codes, multiplies the stress by the signed determinant
of the cell for most of them, and takes SIESTA's stress for a pressure; all set right here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpa_core.data.ase_formats import is_compressed
from dpa_core.data.labels import UNITS, frame_from_atoms
from dpa_core.data.system import MemorySystem
from dpa_core.errors import DataError
from dpa_core.frames import Frame

log = logging.getLogger(__name__)

Data = Mapping[str, Any]

UNSIGNED = frozenset({"abacus/scf", "n2p2"})
"""dpdata formats whose virial does not carry the sign of det(cell)."""

TENSION_POSITIVE = frozenset({"siesta/output", "siesta/aimd_output"})
"""dpdata formats whose "virial" is +stress·volume of a code that prints tension positive."""

FAILED = {
    "gaussian": r"Convergence criterion not met",
    "siesta": r"SCF_NOT_CONV|SCF did not converge",
    "orca/spout": r"SCF NOT CONVERGED",
    "psi4/out": r"Could not converge|ConvergenceError",
}
"""Text of a run whose SCF cycle failed, for codes whose failed runs are refused as a whole."""


def open_dft(path: Path, fmt: str) -> list[MemorySystem]:
    """Read the output of a DFT code.

    Parameters
    ----------
    path
        The output file; for qe/cp/traj any file of the trajectory or their common prefix.
    fmt
        One of `READERS`.

    Returns
    -------
    One system, or several if the output holds several compositions.

    Raises
    ------
    DataError
        The file cannot be parsed, or no frame of it is converged.
    """
    if path.is_file() and is_compressed(path):
        raise DataError(f"{path}: compressed output of a DFT code; unpack it first")
    if fmt in FAILED and re.search(FAILED[fmt], _text(path)):
        raise _unconverged(path)
    systems = []
    try:
        with _quiet(path):
            for names, frames in READERS[fmt](path, fmt):
                systems.append(MemorySystem(path, names, frames))
    except DataError:
        raise
    except Exception as error:  # parsers fail in any way on a broken file
        raise DataError(
            f"{path}: cannot be read as {fmt} ({type(error).__name__}: {error}); is the output "
            "complete?"
        ) from error
    if not any(s.nframes for s in systems):
        raise _unconverged(path)
    return [s for s in systems if s.nframes]


def _unconverged(path: Path, why: str = "") -> DataError:
    return DataError(
        f"{path}: not converged, it has no frame with a converged SCF cycle{why}; converge the "
        "calculation or leave the file out"
    )


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Turn what the parsers print and warn into log records that name the file."""
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        yield
    for message in {str(w.message) for w in caught if w.category is UserWarning}:
        if "unsupported ibrav" not in message:  # checked in _cp_trajectory
            log.warning("%s: %s", path, message)
    if printed.getvalue():
        log.debug("%s: %s", path, printed.getvalue().strip())


Read = Iterator[tuple[list[str], list[Frame]]]


def _dpdata(path: Path | str, fmt: str) -> Read:
    """Parse with dpdata's format class itself: LabeledSystem fails for left-handed cells."""
    import dpdata  # noqa: F401  registers the formats
    from dpdata.format import Format

    read = Format.get_formats()[fmt]().from_labeled_system
    rotate = "rot_lower_triangular" in getattr(read, "post_func", ())
    found = read(str(path))
    for data in found if isinstance(found, tuple | list) else [found]:
        frames = _frames(data, fmt)
        yield list(data.get("atom_names", ())), [_rotated(f) for f in frames] if rotate else frames


def _rotated(frame: Frame) -> Frame:
    """Turn a right-handed cell to lower triangular, as in every data set made with dpdata."""
    if frame.box is None or np.linalg.det(frame.box) <= 0:
        return frame
    q, r = np.linalg.qr(frame.box.T)
    q = q * np.sign(np.diag(r))
    return frame._replace(
        coord=frame.coord @ q,
        box=frame.box @ q,
        force=None if frame.force is None else frame.force @ q,
        virial=None if frame.virial is None else q.T @ frame.virial @ q,
    )


def _frames(data: Data, fmt: str) -> list[Frame]:
    energies = data.get("energies", ())
    number = len(energies)
    if number == 0:
        return []
    types = np.asarray(data["atom_types"], dtype=np.int64)
    labels: dict[str, Any] = {"force": data.get("forces"), "virial": data.get("virials")}
    cells = np.asarray(data["cells"], dtype=np.float64).reshape(number, 3, 3)
    for name, value in labels.items():
        if value is not None and len(value) == 0:
            labels[name] = None
        elif value is not None and len(value) != number:
            raise ValueError(f"{len(value)} frames have a {name}, {number} an energy")
    frames = []
    for k in range(number):
        virial = None if labels["virial"] is None else np.array(labels["virial"][k], dtype=float)
        if virial is not None and fmt not in UNSIGNED and np.linalg.det(cells[k]) < 0:
            virial = -virial
        if virial is not None and fmt in TENSION_POSITIVE:
            virial = -virial
        frames.append(
            Frame(
                coord=np.asarray(data["coords"][k], dtype=np.float64).reshape(-1, 3),
                atype=types,
                box=None if data.get("nopbc", False) else cells[k],
                energy=float(energies[k]),
                force=None if labels["force"] is None else np.asarray(labels["force"][k], float),
                virial=virial,
            )
        )
    return frames


def _abacus(path: Path, fmt: str) -> Read:
    """Read the run whose log is given, through the INPUT beside its OUT.* folder."""
    kind = path.name.removeprefix("running_").removesuffix(".log")
    if kind == "scf" and re.search(r"convergence has not been achieved", _text(path), re.I):
        raise _unconverged(path)
    folder = abacus_folder(path)
    if folder is None:
        raise DataError(
            f"{path}: ABACUS output needs INPUT (with suffix {path.parent.name[4:]!r}) and its "
            f"structure file in {path.parent.parent}"
        )
    reader = {"scf": "abacus/scf", "md": "abacus/md"}.get(kind, "abacus/relax")
    for names, frames in _dpdata(folder, reader):
        if kind == "scf" and _left_handed(folder):
            # dpdata inverts such a structure, but not its forces: invert it back
            frames = [f._replace(coord=-f.coord, box=None if f.box is None else -f.box)
                      for f in frames]  # fmt: skip
        yield names, frames


def _left_handed(folder: Path) -> bool:
    """Whether the lattice vectors in the structure file of an ABACUS run are left-handed."""
    inputs = (folder / "INPUT").read_text()
    match = re.search(r"^\s*stru_file\s+(\S+)", inputs, re.MULTILINE)
    text = (folder / (match.group(1) if match else "STRU")).read_text()
    block = re.search(r"LATTICE_VECTORS[^\n]*\n((?:[^\n]*\n){3})", text)
    if block is None:
        return False
    rows = [[float(x) for x in line.split()[:3]] for line in block.group(1).splitlines()]
    return bool(np.linalg.det(rows) < 0)


def abacus_folder(log_file: Path) -> Path | None:
    """Folder of the INPUT that wrote OUT.suffix/running_*.log; None if it is not there."""
    folder = log_file.parent.parent
    if not (folder / "INPUT").is_file():
        return None
    match = re.search(r"^\s*suffix\s+(\S+)", (folder / "INPUT").read_text(), re.MULTILINE)
    suffix = match.group(1) if match else "ABACUS"
    return folder if log_file.parent.name == f"OUT.{suffix}" else None


def _pwscf(path: Path, fmt: str) -> Read:
    """pw.x of any kind of run, read by ASE: it needs no input file and knows every step."""
    import ase.io
    import ase.units
    from dpdata.unit import EnergyConversion

    # ASE takes the Rydberg of CODATA 2006, dpdata (all other codes here) the current one
    rydberg = EnergyConversion("rydberg", "eV").value() / ase.units.create_units("2006")["Ry"]
    images = ase.io.read(path, index=":", format="espresso-out")
    # an unconverged cycle has no line "!    total energy", hence no energy
    kept = [a for a in images if a.calc is not None and "energy" in a.calc.results]
    if len(kept) < len(images):
        log.warning("%s: %d unconverged frames left out", path, len(images) - len(kept))
    names = sorted({s for a in kept for s in a.get_chemical_symbols()})
    frames = [frame_from_atoms(a, names, f"{path} frame {k}") for k, a in enumerate(kept)]
    yield names, [f._replace(energy=f.energy * rydberg) for f in frames if f.energy is not None]


def cp_prefix(path: Path) -> Path | None:
    """Find the prefix of a cp.x trajectory (.in, .pos, .evp, .for); None if files are missing."""
    for prefix in (path.with_suffix(""), path):
        if all(Path(f"{prefix}{end}").is_file() for end in (".in", ".pos", ".evp", ".for")):
            return prefix
    return None


def _cp_trajectory(path: Path, fmt: str) -> Read:
    prefix = cp_prefix(path)
    if prefix is None:
        raise DataError(f"{path}: a cp.x trajectory needs prefix.in, .pos, .evp and .for")
    ibrav = re.search(r"ibrav\s*=\s*(-?\d+)", _text(Path(f"{prefix}.in")))
    known = ibrav is not None and int(ibrav.group(1)) in (0, 1, 2, 3, -3)
    if not known and not Path(f"{prefix}.cel").is_file():
        raise DataError(f"{prefix}.cel is missing; it is needed for this ibrav")
    yield from _dpdata(prefix, fmt)


def _cp2k(path: Path, fmt: str) -> Read:
    text = _text(path)
    outcome = _cp2k_outcomes(text)
    if not any(outcome):
        raise _unconverged(path)
    if not re.search(r"GLOBAL\| Run type\s+MD\b", text):
        if not all(outcome):
            raise _unconverged(path, f" ({outcome.count(False)} of {len(outcome)} failed)")
        for names, frames in _dpdata(path, "cp2k/output"):
            yield names, [_with_cp2k_stress(f, text) for f in frames]
        return
    import dpdata  # noqa: F401  registers the formats
    from dpdata.formats.cp2k.output import Cp2kSystems

    tracks = sorted(path.parent.glob("*pos*.xyz"))
    if len(tracks) != 1:
        raise DataError(
            f"{path}: an MD run needs its trajectory *pos*.xyz beside the log, found "
            f"{len(tracks)}; print MOTION/PRINT/TRAJECTORY and FORCES"
        )
    for data in Cp2kSystems(str(path), str(tracks[0]), restart=False):
        yield list(data["atom_names"]), _cp2k_converged(path, _frames(data, fmt), outcome)


def _with_cp2k_stress(frame: Frame, text: str) -> Frame:
    """Add the stress as printed by CP2K 2022 and later, which dpdata overlooks.

    CP2K prints a pressure tensor (compression positive), hence virial = +printed·volume.
    """
    found = re.findall(
        r"STRESS\| (?:Analytical|Numerical) stress tensor \[(\S+)\]\n.*\n"
        r"((?: STRESS\| +[xyz] .*\n){3})",
        text,
    )
    if frame.virial is not None or frame.box is None or not found:
        return frame
    unit, rows = found[-1]
    pressure = np.array([line.split()[2:5] for line in rows.splitlines()], dtype=np.float64)
    volume = abs(float(np.linalg.det(frame.box)))
    return frame._replace(virial=pressure * UNITS["stress"][unit.lower()] * volume)


def _cp2k_outcomes(text: str) -> list[bool]:
    """Whether each SCF cycle converged, in order; with an outer loop only that one counts."""
    outer = re.findall(r"outer SCF loop (converged|FAILED to converge)", text)
    if outer:
        return [word == "converged" for word in outer]
    return [not word for word in re.findall(r"SCF run (NOT )?converged", text)]


def _cp2k_converged(path: Path, frames: list[Frame], outcome: list[bool]) -> list[Frame]:
    """Frames of an MD run whose SCF cycle converged."""
    if all(outcome):
        return frames
    if len(outcome) != len(frames):
        raise _unconverged(path, f" in {outcome.count(False)} of {len(outcome)} MD steps")
    log.warning("%s: %d unconverged frames left out", path, outcome.count(False))
    return [f for f, good in zip(frames, outcome, strict=True) if good]


def _gaussian(path: Path, fmt: str) -> Read:
    dynamics = re.search(r"^ #.*\b(?:ADMP|BOMD)\b", _text(path), re.MULTILINE | re.IGNORECASE)
    # otherwise the last step: that of a single point, or the end of an optimisation
    yield from _dpdata(path, "gaussian/md" if dynamics else "gaussian/log")


def _siesta(path: Path, fmt: str) -> Read:
    many = len(re.findall(r"Begin \S+ (?:step|opt\. move)", _text(path))) > 1
    yield from _dpdata(path, "siesta/aimd_output" if many else "siesta/output")


def _aims(path: Path, fmt: str) -> Read:
    many = "Molecular dynamics" in _text(path)
    yield from _dpdata(path, "fhi_aims/md" if many else "fhi_aims/scf")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


READERS: dict[str, Callable[[Path, str], Read]] = {
    "vasp/outcar": _dpdata,
    "vasp/xml": _dpdata,
    "abacus": _abacus,
    "qe/pw": _pwscf,
    "qe/cp/traj": _cp_trajectory,
    "cp2k": _cp2k,
    "gaussian": _gaussian,
    "fhi_aims": _aims,
    "siesta": _siesta,
    "pwmat/movement": _dpdata,
    "orca/spout": _dpdata,
    "psi4/out": _dpdata,
    "n2p2": _dpdata,
}
"""Format name -> reader."""
