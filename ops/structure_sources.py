"""Settings of the places that starting structures come from; `ops.structures` makes them."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from dpa_core.config import Config

Row = tuple[int, int, int]


class VariedSource(Config):
    """What is done to every structure of a source, in this order."""

    supercell: tuple[PositiveInt, PositiveInt, PositiveInt] | tuple[Row, Row, Row] | None = None
    """Repetitions along the lattice vectors, or a 3x3 matrix of whole numbers (rows are the
    new lattice vectors in units of the old ones)."""
    composition: dict[str, NonNegativeFloat] | None = None
    """Element -> share: a random alloy on all sites, numbers of atoms by largest remainder."""
    strain: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Largest random strain: lengths change by up to this fraction, right angles by as much in
    radians."""
    rattle: NonNegativeFloat = 0.0
    """Å. Standard deviation of random displacements, per coordinate."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> VariedSource:
        from ase.data import atomic_numbers

        if self.composition is not None:
            unknown = sorted(set(self.composition) - set(atomic_numbers))
            if unknown or sum(self.composition.values()) <= 0:
                raise ValueError(
                    f"composition must give shares of elements, one above 0; got {self.composition}"
                )
        if self.supercell is not None and isinstance(self.supercell[0], tuple):
            matrix = np.array(self.supercell)
            if round(float(np.linalg.det(matrix))) < 1:
                raise ValueError(
                    f"supercell {matrix.tolist()} has determinant {np.linalg.det(matrix):.0f}; "
                    "at least 1 is needed"
                )
        return self

    @property
    def random(self) -> bool:
        """Whether two structures made of one differ."""
        return bool(self.rattle or self.strain or self.composition)


class DataSource(VariedSource):
    """Frames of a data set, in an order drawn by the seed."""

    type: Literal["data"] = "data"
    data: str
    """Name of the data set."""
    count: PositiveInt
    """Number of structures; with something random in it, frames are used again when there are
    fewer."""


class FileSource(VariedSource):
    """Structures read from files by ASE, in the order of their names."""

    type: Literal["file"] = "file"
    path: str
    """A file or a pattern with `*`; any format that ASE reads. Also s3://..."""
    format: str | None = None
    """ASE's name of the format; left out: found out."""
    index: int | str = ":"
    """Which structures of a file: a number or a slice, as "-1" or "::10"."""
    count: PositiveInt | None = None
    """Number of structures; left out: every one once. With something random in it, they are
    used again when there are fewer."""


class Surface(Config):
    """A slab cut from the lattice; vacuum on both sides."""

    miller: tuple[int, int, int] = (1, 1, 1)
    """Miller indices of the conventional cell."""
    layers: PositiveInt = 4
    """Repetitions of the cell normal to the surface, as `ase.build.surface` counts them."""
    vacuum: PositiveFloat = 8.0
    """Å. On each side; twice this should exceed the model's cutoff. The cell is periodic in all
    directions, as plane-wave codes want it."""


class GenerateSource(VariedSource):
    """A lattice, its random alloys or its surfaces."""

    type: Literal["generate"] = "generate"
    lattice: Literal[
        "sc", "fcc", "bcc", "hcp", "diamond", "zincblende", "rocksalt", "cesiumchloride",
        "fluorite", "wurtzite",
    ]  # fmt: skip
    """Crystal structure, as `ase.build.bulk` names it."""
    element: str
    """Element, or formula of a compound ("NaCl"); `composition` replaces it on all sites."""
    a: PositiveFloat | None = None
    """Å. Lattice constant; left out: the element's own from ASE's table."""
    c: PositiveFloat | None = None
    """Å. Second lattice constant of hcp and wurtzite; left out: the ideal one."""
    cell: Literal["primitive", "cubic", "orthorhombic"] = "primitive"
    """Unit cell that is repeated."""
    surface: Surface | None = None
    """A slab instead of the bulk; cut from the conventional cell."""
    count: PositiveInt = 1
    """Number of structures."""


StructureSource = Annotated[DataSource | FileSource | GenerateSource, Field(discriminator="type")]
