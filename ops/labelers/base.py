"""What every labeler can do, and the structure it is asked to label."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from dpa_core.config import Config
from dpa_core.errors import ConfigError
from ops.storage import is_url, localize

if TYPE_CHECKING:
    from ase import Atoms

    from dpa_core.frames import Frame

WARNING = "warning: "
"""First word of what `check` found that may be all right on another machine."""


class LabelFailed(Exception):
    """One structure could not be labelled; the text says why."""


class LabelKilled(LabelFailed):
    """The calculation was ended from outside, which says nothing about its settings."""


class Waiting(Exception):
    """A label must come from outside and is not there yet; the text says what is missing."""


class Structure(NamedTuple):
    """A structure without labels.

    Attributes
    ----------
    elements
        Symbols of the n atoms, in order.
    coord
        (n, 3) float64, Å.
    box
        (3, 3) float64, rows are lattice vectors, Å; None without periodicity.
    """

    elements: tuple[str, ...]
    coord: NDArray[np.float64]
    box: NDArray[np.float64] | None

    @classmethod
    def of(cls, frame: Frame, type_map: Sequence[str]) -> Structure:
        """Structure of a frame; virtual atoms are left out."""
        real = frame.atype >= 0
        elements = tuple(type_map[t] for t in frame.atype[real])
        return cls(elements, np.asarray(frame.coord[real], np.float64), frame.box)

    def digest(self) -> str:
        """Hash of elements, coordinates and cell, exact to the last bit (-0 is 0)."""
        value = hashlib.sha256("\n".join(self.elements).encode())
        for array in (self.coord, np.zeros(0) if self.box is None else self.box):
            value.update(b"|" + (np.asarray(array, dtype="<f8") + 0.0).tobytes())
        return value.hexdigest()

    def formula(self) -> str:
        """Chemical formula, e.g. "Al3Mg1", elements by alphabet."""
        names = sorted(set(self.elements))
        return "".join(f"{name}{self.elements.count(name)}" for name in names)

    def atoms(self) -> Atoms:
        """Return the structure as `ase.Atoms`."""
        from ase import Atoms

        return Atoms(
            list(self.elements), positions=self.coord, cell=self.box, pbc=self.box is not None
        )

    def ordered(self, names: Sequence[str]) -> tuple[Structure, NDArray[np.int64]]:
        """Atoms grouped by element, in the order of `names`.

        Returns
        -------
        tuple
            The new structure and, for each of its atoms, the number it has here.
        """
        position = {name: k for k, name in enumerate(names)}
        order = np.argsort([position[e] for e in self.elements], kind="stable")
        elements = tuple(self.elements[k] for k in order)
        return Structure(elements, self.coord[order], self.box), order

    def right_handed(self) -> Structure:
        """Return the same periodic structure in a right-handed cell: c is turned round if need be.

        Several codes refuse left-handed cells. The lattice, hence energy, forces and virial,
        stay what they are.
        """
        if self.box is None or np.linalg.det(self.box) > 0:
            return self
        return self._replace(box=self.box * np.array([[1.0], [1.0], [-1.0]]))

    def to_json(self) -> dict[str, Any]:
        """Return plain lists; the numbers read back are the same to the last bit."""
        return {
            "elements": list(self.elements),
            "coord": self.coord.tolist(),
            "box": None if self.box is None else self.box.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Structure:
        """Inverse of `to_json`."""
        box = None if data["box"] is None else np.array(data["box"], dtype=np.float64)
        coord = np.array(data["coord"], dtype=np.float64).reshape(-1, 3)
        return cls(tuple(data["elements"]), coord, box)


class Job(NamedTuple):
    """One structure to label with one set of settings.

    Attributes
    ----------
    name
        Of the task: "000000".
    structure
        What to label.
    folder
        A new folder that holds the inputs which `write` prepared, for this attempt alone.
    """

    name: str
    structure: Structure
    folder: Path


class Context(NamedTuple):
    """What a labeler may need beside its settings: data sets by name, hand-over folder."""

    data: Mapping[str, Path] = {}
    handout: Path | None = None


Label = Callable[[Job], "Frame"]
"""Label one structure: atoms in the order asked for; raises LabelFailed or Waiting."""


class BaseLabeler(Config):
    """Settings of a labeler and what can be done with them."""

    stored: ClassVar[bool] = True
    """Whether its labels are kept in the label store."""
    files: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a path."""
    texts: ClassVar[tuple[str, ...]] = ()
    """Fields that hold the path of a text file, or the text itself."""

    def check(self) -> list[str]:
        """Return the mistakes that can be seen without running anything."""
        return []

    def attempts(self) -> tuple[Self, ...]:
        """Return the settings to try, one after another, until a structure is labelled."""
        return (self,)

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return everything beside the structure that decides its label, as plain JSON."""
        raise NotImplementedError

    def write(self, structure: Structure, folder: Path) -> None:
        """Write the inputs of a calculation; raises ConfigError or DataError."""

    def start(self, context: Context) -> Label:
        """Return the function that labels one structure."""
        raise NotImplementedError

    def mapped(self, change: Callable[[str], str]) -> Self:
        """Return the settings with `change` applied to every path."""
        return self._changed(change)

    def inlined(self) -> Self:
        """Return the settings with the text of every template in place of its path.

        So a change of a template is a change of the settings, and no other machine needs
        the file.
        """
        return self._changed(read_setting, paths=False)

    def _changed(self, change: Callable[[str], str], *, paths: bool = True) -> Self:
        names = (*self.files, *self.texts) if paths else self.texts
        update = {}
        for name in names:
            value = getattr(self, name)
            if value and not is_text(value):
                update[name] = change(value)
        return self.model_copy(update=update)


class RetryingLabeler(BaseLabeler):
    """A labeler with a second set of settings."""

    retry: dict[str, Any] = Field(default_factory=dict)
    """Settings that replace those above in a second attempt, where the first one fails."""

    @pydantic.model_validator(mode="after")
    def _second(self) -> Self:
        if self.retry:
            self.attempts()
        return self

    def attempts(self) -> tuple[Self, ...]:
        """Return these settings, and those of the second attempt if there are any."""
        first = self.model_copy(update={"retry": {}})
        if not self.retry:
            return (first,)
        if unknown := sorted({"retry", "type"} & set(self.retry)):
            raise ValueError(f"retry: {unknown[0]!r} cannot be set here")
        data = {**first.model_dump(exclude_unset=True), **self.retry, "retry": {}}
        try:
            return first, type(self).model_validate(data)
        except pydantic.ValidationError as error:
            told = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ValueError(f"retry: {'; '.join(told)}") from error

    def _changed(self, change: Callable[[str], str], *, paths: bool = True) -> Self:
        changed = super()._changed(change, paths=paths)
        if not self.retry:
            return changed
        second = super(RetryingLabeler, self.attempts()[1])._changed(change, paths=paths)
        retry = {name: getattr(second, name) for name in self.retry}
        return changed.model_copy(update={"retry": retry})


def is_text(value: str) -> bool:
    """Whether a setting is the text itself: anything of more than one line."""
    return "\n" in value


def read_setting(value: str) -> str:
    """Return the text of a template setting: a path, or the text itself.

    Raises
    ------
    ConfigError
        There is no such file.
    """
    if is_text(value):
        return value
    try:
        return Path(localize(value)).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"template {value}: {error.strerror}; give the path of a file") from error


def label_id(structure: Structure, identity: Mapping[str, Any]) -> str:
    """Name of a label in the store: 16 hex digits of a hash of all that decides it."""
    text = structure.digest() + json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text_hash(text: str) -> str:
    """Short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Short hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def find_file(name: str, folder: str | None, what: str) -> Path:
    """Return the path of a pseudopotential or orbital file.

    Raises
    ------
    ConfigError
        It does not exist.
    """
    path = Path(localize(folder or ".")).expanduser() / Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"{what}: {path} does not exist; check the file and its folder")
    return path.absolute()


def missing_files(find: Callable[[str], Path], elements: Iterable[str], folder: str) -> list[str]:
    """Return a line for each element whose file does not exist; a URL is not looked at."""
    missing = []
    for element in () if is_url(folder) else elements:
        try:
            find(element)
        except ConfigError as error:
            missing.append(str(error))
    return missing


def folder_in_input(folder: str) -> str:
    """Return what an input calls a folder of pseudopotentials or orbitals.

    Where the inputs are written is not where they are run: files of a URL are put beside the
    input by `copy_files`.
    """
    return "./" if is_url(folder) else str(Path(folder).expanduser().absolute())


def copy_files(
    folder: str,
    find: Callable[[str], Path],
    elements: Iterable[str],
    target: Path,
) -> None:
    """Put the files of some elements beside the input, if their folder is a URL."""
    for element in sorted(set(elements)) if is_url(folder) else ():
        file = find(element)
        shutil.copyfile(file, target / file.name)


def mesh(box: NDArray[np.float64], kspacing: float) -> tuple[int, int, int]:
    """k-points along each reciprocal vector, at most `kspacing` (1/Å, 2π included) apart.

    VASP's rule for KSPACING: n = max(1, ceil(|b|/kspacing)), a·b = 2π.
    """
    reciprocal = 2 * np.pi * np.linalg.inv(box).T
    numbers = np.ceil(np.linalg.norm(reciprocal, axis=1) / kspacing - 1e-9)
    a, b, c = (max(1, int(n)) for n in numbers)
    return a, b, c
