"""ABACUS: INPUT of the user, KPT, STRU with pseudopotentials and orbitals by element."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
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
from ops.labelers.command import CommandLabeler, need_cell, template_text

BOHR = 0.529177210903
"""Å (CODATA 2018)."""
OWN = {"suffix": "ABACUS", "stru_file": "STRU", "kpoint_file": "KPT"}
"""Keys of INPUT that are set here, whatever the template says."""


class AbacusLabeler(CommandLabeler):
    """ABACUS: a self-consistent calculation per structure, plane waves or orbitals."""

    files: ClassVar[tuple[str, ...]] = ("pseudo_dir", "orbital_dir")
    texts: ClassVar[tuple[str, ...]] = ("input", "kpt")
    reader: ClassVar[str] = "abacus"

    type: Literal["abacus"]
    """Which labeler this is."""
    command: str = "abacus"
    """Shell command line, run in the folder of the calculation. It is no part of a label's
    identity."""
    input: str
    """Path of the INPUT file, or its text: calculation scf with cal_force 1 and cal_stress 1."""
    kpt: str | None = None
    """Path of the KPT file, or its text."""
    kspacing: PositiveFloat | None = None
    """1/Å, 2π included. Instead of `kpt`: a Gamma-centred mesh of that density."""
    pseudos: dict[str, str] = Field(min_length=1)
    """Element -> name of its pseudopotential in `pseudo_dir`."""
    pseudo_dir: str
    """Folder of the pseudopotentials."""
    orbitals: dict[str, str] = Field(default_factory=dict)
    """Element -> name of its numerical orbitals in `orbital_dir`, for basis_type lcao."""
    orbital_dir: str | None = None
    """Folder of the orbitals; that of the pseudopotentials when left out."""
    magnetism: dict[str, float] = Field(default_factory=dict)
    """μB. Element -> magnetic moment that each of its atoms starts with; 0 when left out."""

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """INPUT, KPT, pseudopotentials and orbitals of the elements that occur."""
        kpt = None if self.kpt is None else text_hash(template_text(self.kpt))
        used = sorted(set(elements))
        return {
            "type": "abacus",
            "input": text_hash(template_text(self.input)),
            "kpt": kpt,
            "kspacing": self.kspacing,
            "pseudos": {e: file_hash(self._pseudo(e)) for e in used},
            "orbitals": {e: file_hash(self._orbital(e)) for e in used} if self.orbitals else {},
            "magnetism": {e: self.magnetism[e] for e in used if e in self.magnetism},
        }

    def output(self, folder: Path) -> Path:
        """Return the log of the SCF run."""
        return folder / f"OUT.{OWN['suffix']}" / "running_scf.log"

    def order(self, structure: Structure) -> tuple[Structure, NDArray[np.int64]]:
        """Group atoms by element, in the order of `pseudos`."""
        return structure.ordered(tuple(self.pseudos))

    def mistakes(self) -> list[str]:
        """Return what INPUT lacks, and files that do not exist."""
        keys = input_keys(template_text(self.input))
        found = []
        if (kind := keys.get("calculation", "scf")) != "scf":
            found.append(f"input: calculation scf is needed, found {kind}")
        for name in ("cal_force", "cal_stress"):
            if keys.get(name, "0").lower() not in ("1", "true"):
                found.append(f"input: {name} 1 is needed, found {keys.get(name, 'nothing')}")
        lcao = keys.get("basis_type", "pw").startswith("lcao")
        if lcao and set(self.orbitals) != set(self.pseudos):
            found.append(
                "input: basis_type lcao needs labeler.orbitals for every element of pseudos"
            )
        if self.kpt is not None:
            template_text(self.kpt)
        if self.kpt is not None and self.kspacing is not None:
            found.append("give one of kpt and kspacing")
        if not (self.kpt or self.kspacing or "kspacing" in keys or keys.get("gamma_only") == "1"):
            found.append("give kpt or kspacing, or kspacing or gamma_only in INPUT")
        found += missing_files(self._pseudo, self.pseudos, self.pseudo_dir)
        return found + missing_files(self._orbital, self.orbitals, self._orbital_dir)

    def write(self, structure: Structure, folder: Path) -> None:
        """Write INPUT, KPT and STRU."""
        box = need_cell(structure, "ABACUS")
        if missing := sorted(set(structure.elements) - set(self.pseudos)):
            raise ConfigError(f"labeler.pseudos has no pseudopotential for {missing[0]}; add it")
        keys = input_keys(template_text(self.input)) | OWN
        keys["ntype"] = str(len(set(structure.elements)))
        keys["pseudo_dir"] = folder_in_input(self.pseudo_dir)
        if self.orbitals:
            keys["orbital_dir"] = folder_in_input(self._orbital_dir)
        lines = ["INPUT_PARAMETERS", *(f"{name} {value}" for name, value in keys.items())]
        (folder / "INPUT").write_text("\n".join(lines) + "\n")
        if self.kpt is not None:
            (folder / "KPT").write_text(template_text(self.kpt))
        elif self.kspacing is not None:
            numbers = " ".join(map(str, mesh(box, self.kspacing)))
            (folder / "KPT").write_text(f"K_POINTS\n0\nGamma\n{numbers} 0 0 0\n")
        ordered, _ = self.order(structure.right_handed())
        (folder / "STRU").write_text(self._stru(ordered))

    def finish(self, elements: Sequence[str], folder: Path) -> None:
        """Put pseudopotentials and orbitals of a URL beside the input."""
        copy_files(self.pseudo_dir, self._pseudo, elements, folder)
        if self.orbitals:
            copy_files(self._orbital_dir, self._orbital, elements, folder)

    def _stru(self, structure: Structure) -> str:
        from ase.data import atomic_masses, atomic_numbers

        used = [e for e in self.pseudos if e in structure.elements]
        lines = ["ATOMIC_SPECIES"]
        for e in used:
            lines.append(f"{e} {atomic_masses[atomic_numbers[e]]:.4f} {self.pseudos[e]}")
        if self.orbitals:
            lines += ["", "NUMERICAL_ORBITAL", *(self.orbitals[e] for e in used)]
        lines += ["", "LATTICE_CONSTANT", f"{1 / BOHR:.12f}", "", "LATTICE_VECTORS"]
        lines += [_numbers(row) for row in need_cell(structure, "ABACUS")]
        lines += ["", "ATOMIC_POSITIONS", "Cartesian"]
        for e in used:
            rows = [x for x, name in zip(structure.coord, structure.elements) if name == e]
            lines += [
                e,
                str(self.magnetism.get(e, 0.0)),
                str(len(rows)),
                *(f"{_numbers(row)} 1 1 1" for row in rows),
            ]
        return "\n".join(lines) + "\n"

    def _pseudo(self, element: str) -> Path:
        if element not in self.pseudos:
            raise ConfigError(f"labeler.pseudos has no pseudopotential for {element}; add it")
        return find_file(self.pseudos[element], self.pseudo_dir, f"pseudopotential of {element}")

    def _orbital(self, element: str) -> Path:
        if element not in self.orbitals:
            raise ConfigError(f"labeler.orbitals has no file for {element}; add it")
        return find_file(self.orbitals[element], self._orbital_dir, f"orbital of {element}")

    @property
    def _orbital_dir(self) -> str:
        return self.orbital_dir or self.pseudo_dir


def input_keys(text: str) -> dict[str, str]:
    """Keys of an INPUT file, lower case, and their values, in order."""
    keys = {}
    for line in text.splitlines():
        words = re.split(r"#|//", line, maxsplit=1)[0].split()
        if len(words) > 1:
            keys[words[0].lower()] = " ".join(words[1:])
    return keys


def _numbers(row: Sequence[float]) -> str:
    return " ".join(f"{x:.12f}" for x in row)
