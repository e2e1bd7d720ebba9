"""VASP: INCAR of the user, KPOINTS, POTCAR put together by element, POSCAR grouped by element."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from dpa_core.errors import ConfigError
from ops.labelers.base import Structure, file_hash, find_file, mesh, missing_files, text_hash
from ops.labelers.command import CommandLabeler, need_cell, template_text

POTENTIALS = "VASP_PP_PATH"
PER_ATOM = "MAGMOM"
PER_ELEMENT = ("LDAUL", "LDAUU", "LDAUJ", PER_ATOM)
"""INCAR tags with one value for each element (MAGMOM: each atom) of the POSCAR."""


class VaspLabeler(CommandLabeler):
    """VASP: a static calculation per structure."""

    files: ClassVar[tuple[str, ...]] = ("potcars",)
    texts: ClassVar[tuple[str, ...]] = ("incar", "kpoints")
    reader: ClassVar[str] = "vasp/outcar"

    type: Literal["vasp"]
    """Which labeler this is."""
    command: str = "vasp_std"
    """Shell command line, run in the folder of the calculation. It is no part of a label's
    identity."""
    incar: str
    """Path of the INCAR, or its text: a static calculation (no NSW)."""
    kpoints: str | None = None
    """Path of the KPOINTS file, or its text."""
    kspacing: PositiveFloat | None = None
    """1/Å, 2π included. Instead of `kpoints`: a Gamma-centred mesh of that density."""
    potcars: str | None = None
    """Folder of the pseudopotentials, NAME/POTCAR; the environment variable VASP_PP_PATH when
    left out. The files are read where they are and put together for each calculation."""
    potentials: dict[str, str] = Field(default_factory=dict)
    """Element -> name of its pseudopotential, e.g. {Nb: Nb_pv}; the element itself when left
    out. The POSCAR lists elements in this order, others after them by alphabet."""
    per_element: dict[str, dict[str, float]] = Field(default_factory=dict)
    """INCAR tag (LDAUL, LDAUU, LDAUJ, MAGMOM) -> element -> value, written in the order of the
    POSCAR."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> VaspLabeler:
        if unknown := sorted(set(self.per_element) - set(PER_ELEMENT)):
            raise ValueError(f"per_element: {unknown[0]!r}; allowed: {', '.join(PER_ELEMENT)}")
        if self.kpoints is not None and self.kspacing is not None:
            raise ValueError("give one of kpoints and kspacing")
        return self

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """INCAR, KPOINTS, pseudopotentials of the elements that occur."""
        kpoints = None if self.kpoints is None else text_hash(template_text(self.kpoints))
        return {
            "type": "vasp",
            "incar": text_hash(template_text(self.incar)),
            "kpoints": kpoints,
            "kspacing": self.kspacing,
            "potentials": {e: file_hash(self.potcar(e)) for e in sorted(set(elements))},
            "per_element": {
                tag: {e: v for e, v in values.items() if e in elements}
                for tag, values in self.per_element.items()
            },
        }

    def potcar(self, element: str) -> Path:
        """Return the POTCAR of an element.

        Raises
        ------
        ConfigError
            There is none, or no folder is set.
        """
        folder = self.potcars or os.environ.get(POTENTIALS)
        if not folder:
            raise ConfigError(f"labeler.potcars is not set, nor is {POTENTIALS}; give the folder")
        name = self.potentials.get(element, element)
        return find_file(f"{name}/POTCAR", folder, f"pseudopotential of {element}")

    def output(self, folder: Path) -> Path:
        """Return the OUTCAR."""
        return folder / "OUTCAR"

    def order(self, structure: Structure) -> tuple[Structure, NDArray[np.int64]]:
        """Group atoms by element, see `potentials`."""
        return structure.ordered(self._elements(structure.elements))

    def mistakes(self) -> list[str]:
        """Return what INCAR, KPOINTS and pseudopotentials lack."""
        tags = incar_tags(template_text(self.incar))
        found = []
        if tags.get("NSW", "0").split()[0] not in ("0", "1"):
            found.append(
                f"incar: NSW = {tags['NSW']}; a static calculation is needed, leave it out"
            )
        if tags.get("ISIF", "2").split()[0] == "0":
            found.append("incar: ISIF = 0 prints no stress; leave it out or set 2")
        found += [
            f"incar: {tag} depends on the elements of each structure; move it to per_element"
            for tag in PER_ELEMENT
            if tag in tags
        ]
        if self.kpoints is not None:
            template_text(self.kpoints)
        elif self.kspacing is None and "KSPACING" not in tags:
            found.append("give kpoints or kspacing, or KSPACING in the INCAR")
        if not self.potcars and POTENTIALS not in os.environ:
            found.append(f"potcars is not set, nor is {POTENTIALS}; give the folder")
        folder = self.potcars or os.environ.get(POTENTIALS, "")
        return found + missing_files(self.potcar, self.potentials if folder else (), folder)

    def write(self, structure: Structure, folder: Path) -> None:
        """Write INCAR, KPOINTS and POSCAR."""
        from ase.io.vasp import write_vasp

        box = need_cell(structure, "VASP")
        ordered, _ = self.order(structure.right_handed())
        incar = template_text(self.incar).rstrip("\n")
        extra = [self._tag(tag, ordered) for tag in PER_ELEMENT if tag in self.per_element]
        (folder / "INCAR").write_text("\n".join([incar, *extra]) + "\n")
        if self.kpoints is not None:
            (folder / "KPOINTS").write_text(template_text(self.kpoints))
        elif self.kspacing is not None:
            numbers = " ".join(map(str, mesh(box, self.kspacing)))
            (folder / "KPOINTS").write_text(f"automatic\n0\nGamma\n{numbers}\n0 0 0\n")
        with (folder / "POSCAR").open("w") as stream:
            write_vasp(stream, ordered.atoms(), direct=False, sort=False)
        for element in set(ordered.elements):
            self.potcar(element)

    def finish(self, elements: Sequence[str], folder: Path) -> None:
        """Put the POTCAR together."""
        with (folder / "POTCAR").open("wb") as stream:
            for element in self._elements(elements):
                stream.write(self.potcar(element).read_bytes())

    def _elements(self, elements: Sequence[str]) -> list[str]:
        """Elements that occur, in the order of the POSCAR."""
        rest = sorted(set(elements) - set(self.potentials))
        return [e for e in self.potentials if e in elements] + rest

    def _tag(self, tag: str, structure: Structure) -> str:
        """Line of the INCAR with a value for each element (MAGMOM: number*value)."""
        values, items = self.per_element[tag], []
        for element in self._elements(structure.elements):
            if element not in values:
                raise ConfigError(f"labeler.per_element.{tag} has no value for {element}; add it")
            number = f"{structure.elements.count(element)}*" if tag == PER_ATOM else ""
            items.append(f"{number}{values[element]:g}")
        return f"{tag} = {' '.join(items)}"


def incar_tags(text: str) -> dict[str, str]:
    """Tags of an INCAR, upper case, and their values."""
    tags = {}
    for line in text.splitlines():
        for part in re.split(r"[!#]", line, maxsplit=1)[0].split(";"):
            name, equals, value = part.partition("=")
            if equals and value.strip():
                tags[name.strip().upper()] = value.strip()
    return tags
