"""Quantum ESPRESSO: the user's input of pw.x, with the structure put into it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from dpa_core.errors import ConfigError
from ops.labelers.base import (
    Structure,
    copy_files,
    file_hash,
    find_file,
    folder_in_input,
    mesh,
    missing_files,
    text_hash,
)
from ops.labelers.command import OUTPUT, CommandLabeler, need_cell, template_text

INPUT = "input.in"
CARDS = ("ATOMIC_SPECIES", "ATOMIC_POSITIONS", "CELL_PARAMETERS", "K_POINTS", "OCCUPATIONS",
         "CONSTRAINTS", "ATOMIC_VELOCITIES", "ATOMIC_FORCES", "ADDITIONAL_K_POINTS", "SOLVENTS",
         "HUBBARD")  # fmt: skip
WRITTEN = CARDS[:3]
"""Cards that are written here."""
CELL_KEYS = ("a", "b", "c", "cosab", "cosac", "cosbc")
"""Keys of &SYSTEM that give a cell by other means."""
BY_SPECIES = re.compile(
    r"(starting_magnetization|starting_charge|hubbard_\w+|angle[12]|london_(?:c6|rvdw))\((\d+)\)"
)
"""Keys of &SYSTEM numbered by species; here in the order of `pseudos`."""
SEVERAL = re.compile(r"\w+\([^)]*,[^)]*\)")
"""Keys of &SYSTEM numbered by more than the species, e.g. Hubbard_J(1,2)."""


class QeLabeler(CommandLabeler):
    """pw.x of Quantum ESPRESSO: a self-consistent calculation per structure.

    The template is an input file; its nat, ntyp, ibrav, cell, species and positions are
    replaced. Keys numbered by species, e.g. starting_magnetization(1), count in the order of
    `pseudos`.
    """

    files: ClassVar[tuple[str, ...]] = ("pseudo_dir",)
    texts: ClassVar[tuple[str, ...]] = ("template",)
    reader: ClassVar[str] = "qe/pw"

    type: Literal["qe"]
    """Which labeler this is."""
    template: str
    """Path of the input of pw.x, or its text: calculation scf with tprnfor and tstress."""
    command: str = f"pw.x -in {INPUT}"
    """Shell command line, run in the folder of the calculation, where the input is input.in; the
    output of pw.x is its standard output. It is no part of a label's identity."""
    kspacing: PositiveFloat | None = None
    """1/Å, 2π included. Instead of the template's K_POINTS: a mesh of that density."""
    pseudos: dict[str, str] = Field(min_length=1)
    """Element -> name of its pseudopotential in `pseudo_dir`."""
    pseudo_dir: str
    """Folder of the pseudopotentials."""

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """Template, k-points and pseudopotentials of the elements that occur."""
        return {
            "type": "qe",
            "template": text_hash(template_text(self.template)),
            "kspacing": self.kspacing,
            # keys numbered by species depend on the place in `pseudos`
            "pseudos": {
                e: [k, file_hash(self._pseudo(e))]
                for k, e in enumerate(self.pseudos)
                if e in elements
            },
        }

    def output(self, folder: Path) -> Path:
        """Return the output of pw.x."""
        return folder / OUTPUT

    def mistakes(self) -> list[str]:
        """Return what the template must ask for and does not, and files that do not exist."""
        namelists, cards = _parse(template_text(self.template))
        control = namelists.get("control", {})
        found = []
        if (kind := control.get("calculation", "scf")) != "scf":
            found.append(f"template: calculation = 'scf' is needed, found {kind!r}")
        for name in ("tprnfor", "tstress"):
            if control.get(name) is not True:
                found.append(f"template: {name} = .true. is needed, found {control.get(name)}")
        if "system" not in namelists or "ecutwfc" not in namelists["system"]:
            found.append("template: &SYSTEM with ecutwfc is needed")
        for key in namelists.get("system", {}):
            numbered = BY_SPECIES.fullmatch(key)
            if numbered and not 1 <= int(numbered[2]) <= len(self.pseudos):
                found.append(
                    f"template: {key}: numbers count in the order of pseudos, which has "
                    f"{len(self.pseudos)} elements"
                )
            if SEVERAL.fullmatch(key):
                found.append(f"template: {key} cannot be renumbered for each structure; remove it")
        if ("K_POINTS" in cards) == (self.kspacing is not None):
            found.append("give k-points once: the card K_POINTS of the template, or kspacing")
        return found + missing_files(self._pseudo, self.pseudos, self.pseudo_dir)

    def write(self, structure: Structure, folder: Path) -> None:
        """Write input.in."""
        from ase.data import atomic_masses, atomic_numbers
        from ase.io.espresso_namelist.namelist import Namelist

        box = need_cell(structure.right_handed(), "pw.x")
        if missing := sorted(set(structure.elements) - set(self.pseudos)):
            raise ConfigError(f"labeler.pseudos has no pseudopotential for {missing[0]}; add it")
        used = [e for e in self.pseudos if e in structure.elements]
        namelists, cards = _parse(template_text(self.template))
        own = {"pseudo_dir": folder_in_input(self.pseudo_dir), "outdir": "./out"}
        control = namelists.get("control", {}) | own
        system = self._system(namelists.get("system", {}), used)
        system |= {"ibrav": 0, "nat": len(structure.elements), "ntyp": len(used)}
        namelists = {"control": control, "system": system, "electrons": {}} | {
            k: v for k, v in namelists.items() if k not in ("control", "system")
        }
        lines = [Namelist(namelists).to_string().rstrip("\n"), "ATOMIC_SPECIES"]
        for e in used:
            lines.append(f"{e} {atomic_masses[atomic_numbers[e]]:.4f} {self.pseudos[e]}")
        lines += ["CELL_PARAMETERS angstrom", *(_numbers(row) for row in box)]
        lines += ["ATOMIC_POSITIONS angstrom"]
        lines += [f"{e} {_numbers(x)}" for e, x in zip(structure.elements, structure.coord)]
        if self.kspacing is not None:
            numbers = " ".join(map(str, mesh(box, self.kspacing)))
            lines += ["K_POINTS automatic", f"{numbers} 0 0 0"]
        lines += [line for name, card in cards.items() if name not in WRITTEN for line in card]
        (folder / INPUT).write_text("\n".join(lines) + "\n")

    def finish(self, elements: Sequence[str], folder: Path) -> None:
        """Put pseudopotentials of a URL beside the input."""
        copy_files(self.pseudo_dir, self._pseudo, elements, folder)

    def _system(self, template: dict[str, Any], used: Sequence[str]) -> dict[str, Any]:
        """&SYSTEM without a cell, keys of species renumbered for those that occur."""
        system = {}
        for key, value in template.items():
            if key in CELL_KEYS or key.startswith("celldm"):
                continue
            match = BY_SPECIES.fullmatch(key)
            if match is None:
                system[key] = value
                continue
            element = list(self.pseudos)[int(match[2]) - 1]
            if element in used:
                system[f"{match[1]}({used.index(element) + 1})"] = value
        return system

    def _pseudo(self, element: str) -> Path:
        if element not in self.pseudos:
            raise ConfigError(f"labeler.pseudos has no pseudopotential for {element}; add it")
        return find_file(self.pseudos[element], self.pseudo_dir, f"pseudopotential of {element}")


def _parse(text: str) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Namelists, and the lines of each card."""
    from ase.io.espresso import read_fortran_namelist

    namelists, lines = read_fortran_namelist(io.StringIO(text))
    cards: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        name = line.split()[0].split("{")[0].split("(")[0].upper()
        if name in CARDS:
            current = cards.setdefault(name, [])
        current.append(line)
    return {k.lower(): dict(v) for k, v in namelists.items()}, cards


def _numbers(row: Sequence[float]) -> str:
    return " ".join(f"{x:.12f}" for x in row)
