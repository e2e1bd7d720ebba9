"""CP2K: the user's input file, with the structure put into its &SUBSYS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import PositiveFloat

from dpa_core.errors import ConfigError
from ops.labelers.base import Structure, mesh, text_hash
from ops.labelers.command import OUTPUT, CommandLabeler, need_cell, template_text

INPUT = "input.inp"
PLACE, MESH = "@STRUCTURE@", "@MESH@"


class Cp2kLabeler(CommandLabeler):
    """CP2K, any version that dpdata reads.

    The template is a complete input of a single point (RUN_TYPE ENERGY_FORCE) with a KIND
    section for each element. The cell and the coordinates go where the line `@STRUCTURE@` is,
    else to the head of &SUBSYS, in place of any &CELL and &COORD there. Forces and stress must be
    printed to standard output.
    """

    texts: ClassVar[tuple[str, ...]] = ("template",)
    reader: ClassVar[str] = "cp2k"

    type: Literal["cp2k"]
    """Which labeler this is."""
    template: str
    """Path of the input file, or its text."""
    command: str = f"cp2k -i {INPUT}"
    """Shell command line, run in the folder of the calculation, where the input is input.inp;
    CP2K's log is its standard output. It is no part of a label's identity."""
    kspacing: PositiveFloat | None = None
    """1/Å, 2π included. Largest distance of k-points; the mesh is written where the template
    says @MESH@ (SCHEME MONKHORST-PACK @MESH@)."""

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """Template and k-point distance."""
        text = text_hash(template_text(self.template))
        return {"type": "cp2k", "template": text, "kspacing": self.kspacing}

    def output(self, folder: Path) -> Path:
        """Return CP2K's log."""
        return folder / OUTPUT

    def mistakes(self) -> list[str]:
        """Return what the template must ask for and does not."""
        text = template_text(self.template)
        where = "template" if "\n" in self.template else self.template
        found = [f"{where}: {line}" for line in _template_mistakes(text)]
        if (MESH in text) != (self.kspacing is not None):
            found.append(f"{where}: {MESH} and labeler.kspacing belong together, one is missing")
        return found

    def write(self, structure: Structure, folder: Path) -> None:
        """Write input.inp."""
        box = need_cell(structure, "CP2K")
        text = template_text(self.template)
        kinds = {s.argument.upper() for s in sections(text) if s.name == "KIND"}
        missing = sorted({e for e in structure.elements if e.upper() not in kinds})
        if missing and "DEFAULT" not in kinds:
            raise ConfigError(
                f"labeler.template has no &KIND {missing[0]}, which {structure.formula()} needs; "
                "add it with its BASIS_SET and POTENTIAL"
            )
        if self.kspacing is not None:
            text = text.replace(MESH, " ".join(map(str, mesh(box, self.kspacing))))
        (folder / INPUT).write_text(insert_structure(text, structure.right_handed()))


class Section(NamedTuple):
    """A section of an input file.

    Attributes
    ----------
    path
        Names from the outermost to this one, upper case: ("FORCE_EVAL", "SUBSYS", "CELL").
    argument
        What follows the name on its line.
    first, last
        Numbers of its first and last line.
    lines
        Numbers of its own lines with keywords, those of sections inside left out.
    """

    path: tuple[str, ...]
    argument: str
    first: int
    last: int
    lines: tuple[int, ...]

    @property
    def name(self) -> str:
        """The last name of the path."""
        return self.path[-1]


def sections(text: str) -> Iterator[Section]:
    """Yield all sections of an input file, inner ones before those they are in.

    Raises
    ------
    ConfigError
        Sections are not closed in the order they were opened.
    """
    open_: list[tuple[str, str, int, list[int]]] = []
    for number, line in enumerate(text.splitlines()):
        words = re.split(r"[!#]", line, maxsplit=1)[0].split()
        if not words:
            continue
        if not words[0].startswith("&"):
            if open_:
                open_[-1][3].append(number)
        elif words[0].upper() != "&END":
            open_.append((words[0][1:].upper(), " ".join(words[1:]), number, []))
        else:
            if not open_ or (len(words) > 1 and words[1].upper() != open_[-1][0]):
                raise ConfigError(
                    f"line {number + 1}: {line.strip()!r} closes "
                    f"{'&' + open_[-1][0] if open_ else 'no section'}; check the sections"
                )
            path = tuple(item[0] for item in open_)
            _, argument, first, lines = open_.pop()
            yield Section(path, argument, first, number, tuple(lines))
    if open_:
        raise ConfigError(f"line {open_[-1][2] + 1}: &{open_[-1][0]} is never closed")


def keyword(text: str, path: Sequence[str], name: str) -> str | None:
    """Value of a keyword in the first section of that path; None if it is not there."""
    lines = text.splitlines()
    for section in sections(text):
        if section.path != tuple(path):
            continue
        for number in section.lines:
            words = re.split(r"[!#]", lines[number], maxsplit=1)[0].split(maxsplit=1)
            if words[0].upper() == name:
                return words[1].strip() if len(words) > 1 else ""
    return None


def insert_structure(text: str, structure: Structure) -> str:
    """Put &CELL and &COORD of a structure into an input file.

    Raises
    ------
    ConfigError
        There is neither the line @STRUCTURE@ nor a section FORCE_EVAL/SUBSYS.
    """
    block = ["&CELL"]
    box = need_cell(structure, "CP2K")
    block += [f"  {name} {_numbers(row)}" for name, row in zip("ABC", box)]
    block += ["  PERIODIC XYZ", "&END CELL", "&COORD"]
    block += [f"  {e} {_numbers(r)}" for e, r in zip(structure.elements, structure.coord)]
    block += ["&END COORD"]
    lines = text.splitlines()
    marks = [k for k, line in enumerate(lines) if line.strip() == PLACE]
    if marks:
        return "\n".join([*lines[: marks[0]], *block, *lines[marks[0] + 1 :]]) + "\n"
    found = list(sections(text))
    place = next((s for s in found if s.path == ("FORCE_EVAL", "SUBSYS")), None)
    if place is None:
        raise ConfigError(f"labeler.template has neither the line {PLACE} nor FORCE_EVAL/&SUBSYS")
    old = [s for s in found if s.path in ((*place.path, "CELL"), (*place.path, "COORD"))]
    drop = {k for s in old for k in range(s.first, s.last + 1)}
    kept = [line for k, line in enumerate(lines) if k > place.first and k not in drop]
    block = ["    " + line for line in block]
    return "\n".join([*lines[: place.first + 1], *block, *kept]) + "\n"


def _numbers(row: Sequence[float]) -> str:
    return " ".join(f"{x:.12f}" for x in row)


def _template_mistakes(text: str) -> Iterator[str]:
    try:
        found = list(sections(text))
        run = keyword(text, ["GLOBAL"], "RUN_TYPE") or ""
        level = keyword(text, ["GLOBAL"], "PRINT_LEVEL") or "MEDIUM"
        stress = keyword(text, ["FORCE_EVAL"], "STRESS_TENSOR") or "NONE"
    except ConfigError as error:
        yield str(error)
        return
    if run.upper() not in ("ENERGY_FORCE", "FORCE"):
        yield f"GLOBAL/RUN_TYPE ENERGY_FORCE is needed, found {run or 'nothing'}"
    if level.upper() in ("SILENT", "LOW"):
        yield f"GLOBAL/PRINT_LEVEL MEDIUM is needed (the log must show the atoms), found {level}"
    if stress.upper() not in ("ANALYTICAL", "NUMERICAL"):
        yield f"FORCE_EVAL/STRESS_TENSOR ANALYTICAL is needed, found {stress}"
    printed = {s.name: s.argument.upper() for s in found if s.path[:-1] == ("FORCE_EVAL", "PRINT")}
    for name in ("FORCES", "STRESS_TENSOR"):
        if printed.get(name, "OFF") == "OFF":
            yield f"FORCE_EVAL/PRINT/&{name} ON is needed, it is not printed"
    if PLACE not in text and ("FORCE_EVAL", "SUBSYS") not in {s.path for s in found}:
        yield f"neither the line {PLACE} nor FORCE_EVAL/&SUBSYS: no place for the structure"
    if re.search(r"^\s*@INCLUDE", text, re.IGNORECASE | re.MULTILINE):
        yield "@INCLUDE: the calculation runs in another folder; put the text in here"
