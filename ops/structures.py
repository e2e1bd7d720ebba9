"""Starting structures: frames of data sets, files, and generated lattices, alloys and surfaces.

Every structure is made with a random generator of its own, seeded by a hash of (seed, name of
the source, number): adding a source or raising a count leaves the other structures as they are.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from dpa_core.config import Config
from dpa_core.errors import ConfigError, DataError
from ops.split import draw
from ops.storage import localize
from ops.structure_sources import (
    DataSource,
    FileSource,
    GenerateSource,
    StructureSource,
    VariedSource,
)

if TYPE_CHECKING:
    from ase import Atoms

    from dpa_core.frames import Frame

logger = logging.getLogger(__name__)

ATTEMPTS = 100
"""Draws of a random structure before it is said that there are no more different ones."""
SAME = 1e-6
"""Å. Structures that agree within this are the same."""


class Structure(NamedTuple):
    """A structure without labels or calculator, and its name, e.g. "fcc-0003"."""

    atoms: Atoms
    name: str


class StructuresConfig(Config):
    """Which structures are made."""

    sources: dict[str, StructureSource] = Field(min_length=1)
    """The sources by name."""
    names: tuple[str, ...] | None = None
    """Sources that are used; all when left out."""
    type_map: tuple[str, ...] | None = None
    """Elements of the written data; left out: those found, by atomic number."""
    seed: NonNegativeInt = 1
    """Seed of everything random."""


class StructuresInputs(NamedTuple):
    """Data sets that sources of type `data` draw from."""

    data: Mapping[str, Path] = {}


def run_structures(inputs: StructuresInputs, config: StructuresConfig, outdir: Path) -> Path:
    """Write starting structures as a data set without labels.

    Parameters
    ----------
    inputs
        Data sets by name.
    config
        Sources and seed.
    outdir
        Receives `selected/`, an unlabelled deepmd/npy/mixed folder whose frames.csv names the
        structures; it can be labelled as what `select` chooses.

    Returns
    -------
    Path
        The folder `selected`.

    Raises
    ------
    ConfigError, DataError
        As `make_structures`; an element outside `type_map`.
    """
    from dpa_core.data import merge_type_maps, write_mixed

    names = tuple(config.sources) if config.names is None else config.names
    made = make_structures(config.sources, inputs.data, names, config.seed)
    found = merge_type_maps(e for s in made for e in s.atoms.get_chemical_symbols())
    type_map = found if config.type_map is None else config.type_map
    check_elements(made, type_map)
    selected = outdir / "selected"
    shutil.rmtree(selected, ignore_errors=True)  # it may be of other settings
    frames = [frame_of(s.atoms, type_map) for s in made]
    write_mixed(frames, type_map, selected, source=[s.name for s in made])
    logger.info("%d structures of %s", len(made), ", ".join(names))
    return selected


def make_structures(
    sources: Mapping[str, StructureSource],
    data: Mapping[str, Path],
    names: Sequence[str],
    seed: int,
) -> list[Structure]:
    """Make the structures of the sources named, in the order of `names`.

    Parameters
    ----------
    sources
        Settings by name.
    data
        Data sets by name.
    names
        Sources to use.
    seed
        Of everything random.

    Returns
    -------
    list[Structure]
        Cells are periodic in all directions or in none; no two of one source are the same.

    Raises
    ------
    ConfigError
        An unknown source or data set, or more structures than can be told apart.
    DataError
        A file that cannot be read, too few frames, a cell with volume 0.
    """
    structures = []
    for name in names:
        if name not in sources:
            raise ConfigError(f"structures: {name!r} is unknown; there are {', '.join(sources)}")
        structures += _from_source(name, sources[name], data, seed)
    return structures


def derived_seed(*parts: int | str) -> int:
    """Hash numbers and names into a seed of 63 bits; equal on all machines."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def check_elements(structures: Sequence[Structure], type_map: Sequence[str]) -> None:
    """Raise ConfigError, naming all of them, if elements are not in `type_map`."""
    missing: dict[str, str] = {}
    for structure in structures:
        for element in structure.atoms.get_chemical_symbols():
            if element not in type_map:
                missing.setdefault(element, structure.name)
    if missing:
        told = ", ".join(f"{e} (in {name})" for e, name in sorted(missing.items()))
        raise ConfigError(
            f"structures: {told} not in type_map {list(type_map)[:30]}; add the elements to the "
            "model or leave these structures out"
        )


def frame_of(atoms: Atoms, type_map: Sequence[str]) -> Frame:
    """Return the structure alone as a `Frame`, without labels or velocities."""
    from ase import Atoms

    from dpa_core.data.labels import frame_from_atoms

    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    return frame_from_atoms(bare, type_map, str(atoms.symbols))


def atoms_of(frame: Frame, type_map: Sequence[str]) -> Atoms:
    """Return a frame's structure as ASE's object."""
    from ase import Atoms

    symbols = [type_map[t] for t in frame.atype]
    return Atoms(symbols, frame.coord, cell=frame.box, pbc=frame.box is not None)


def largest_remainder(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Divide `total` into whole numbers as the shares ask; the sum is exact.

    Remainders go to the largest fractional parts; of equal ones, to the first by alphabet.
    """
    whole = sum(shares.values())
    exact = {name: total * shares[name] / whole for name in sorted(shares)}
    counts = {name: int(value + 1e-9) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: (round(counts[name] - exact[name], 9), name))
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _from_source(
    name: str, source: StructureSource, data: Mapping[str, Path], seed: int
) -> list[Structure]:
    if isinstance(source, DataSource):
        bases = _from_data(name, source, data, seed)
    elif isinstance(source, FileSource):
        bases = _from_files(name, source)
    else:
        bases = [_generate(name, source)]
    count = len(bases) if source.count is None else source.count
    if count > len(bases) and not source.random:
        raise ConfigError(
            f"structures.{name}: count is {count}, but there are only {len(bases)} different "
            "structures; lower count, or set rattle, strain or composition"
        )
    seen: set[str] = set()
    made = []
    for number in range(count):
        label = f"{name}-{number:04d}"
        atoms = _new_one(bases[number % len(bases)], source, (seed, name, number), seen)
        if atoms is None:
            raise ConfigError(
                f"structures.{name}: count is {count}, but only {number} different structures "
                f"were found in {ATTEMPTS} draws; lower count, enlarge supercell or set rattle"
            )
        made.append(Structure(atoms, label))
    return made


def _new_one(
    base: Atoms, source: VariedSource, key: tuple[int, str, int], seen: set[str]
) -> Atoms | None:
    """Make a structure unlike those seen; None if there seems to be none left."""
    for attempt in range(ATTEMPTS if source.random else 1):
        atoms = _vary(base, source, np.random.default_rng(derived_seed(*key, attempt)))
        grids = (np.round(x / SAME).astype(np.int64) for x in (atoms.cell[:], atoms.positions))
        mark = hashlib.sha256(b"".join(x.tobytes() for x in (atoms.numbers, *grids))).hexdigest()
        if mark not in seen or not source.random:
            seen.add(mark)
            return atoms
    return None


def _vary(base: Atoms, source: VariedSource, rng: np.random.Generator) -> Atoms:
    """Supercell, alloy, strain and rattle of one structure."""
    atoms = _repeat(base, source)
    if source.composition:
        counts = largest_remainder(source.composition, len(atoms))
        symbols = [element for element, n in counts.items() for _ in range(n)]
        atoms.set_chemical_symbols([symbols[k] for k in rng.permutation(len(symbols))])
    if source.strain:
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + _strain(source.strain, rng)), scale_atoms=True)
    if source.rattle:
        atoms.positions += rng.normal(scale=source.rattle, size=(len(atoms), 3))
    return atoms


def _strain(largest: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Symmetric tensor; its diagonal and the sums of its off-diagonal pairs are uniform."""
    tensor = np.diag(rng.uniform(-largest, largest, 3))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        tensor[i, j] = tensor[j, i] = 0.5 * rng.uniform(-largest, largest)
    return tensor


def _repeat(base: Atoms, source: VariedSource) -> Atoms:
    if source.supercell is None:
        return base.copy()
    if base.cell.rank < 3:
        raise DataError(f"{base.symbols}: has no cell, so there is no supercell of it")
    if isinstance(source.supercell[0], tuple):
        from ase.build import make_supercell

        return make_supercell(base, np.array(source.supercell))
    return base.repeat(source.supercell)


def _from_data(name: str, source: DataSource, data: Mapping[str, Path], seed: int) -> list[Atoms]:
    from dpa_core.data import open_dataset

    if source.data not in data:
        raise ConfigError(
            f"structures.{name}.data is {source.data!r}, which is not among the data sets given: "
            f"{', '.join(data) or 'none'}"
        )
    dataset = open_dataset(data[source.data])
    order = draw(len(dataset), len(dataset), derived_seed(seed, name))
    chosen = order[: min(source.count, len(order))]
    return [_whole(atoms_of(dataset[k], dataset.type_map), dataset.name(k)) for k in chosen]


def _from_files(name: str, source: FileSource) -> list[Atoms]:
    from ase.io import read

    path = Path(localize(source.path)).expanduser()
    found = [path] if path.exists() else sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207
    if not found:
        raise DataError(f"structures.{name}.path: nothing matches {source.path!r}; check the path")
    bases = []
    for file in found:
        try:
            images: Any = read(file, index=source.index, format=source.format)
        except Exception as error:  # every format of ASE has its own errors
            raise DataError(
                f"{file}: ASE cannot read it ({type(error).__name__}: {error}); check "
                f"structures.{name}.format and .index"
            ) from error
        bases += [_whole(a, str(file)) for a in (images if isinstance(images, list) else [images])]
    if not bases:
        raise DataError(f"structures.{name}: {source.path!r} holds no structures")
    return bases


def _generate(name: str, source: GenerateSource) -> Atoms:
    from ase.build import bulk, surface

    options: dict[str, Any] = {"a": source.a, "c": source.c}
    conventional = source.surface is not None and source.lattice not in ("hcp", "wurtzite")
    if source.cell != "primitive" or conventional:
        options["cubic" if conventional else source.cell] = True
    try:
        atoms = bulk(source.element, source.lattice, **options)
        if source.surface is not None:
            cut = source.surface
            atoms = surface(atoms, cut.miller, cut.layers, vacuum=cut.vacuum)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ConfigError(
            f"structures.{name}: ASE cannot build {source.lattice} {source.element}: {error}"
        ) from error
    return _whole(atoms, name)


def _whole(atoms: Atoms, where: str) -> Atoms:
    """Return the bare structure, periodic in all directions or in none."""
    from ase import Atoms

    pbc = bool(atoms.pbc.any())
    if pbc and (atoms.cell.rank < 3 or not abs(atoms.cell.volume) > 0):
        raise DataError(
            f"{where}: periodic, but its cell {atoms.cell[:].tolist()} has no volume; set the "
            "missing lattice vectors"
        )
    cell = atoms.cell[:] if pbc else None
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell[:]).all()):
        raise DataError(f"{where}: holds numbers that are not finite")
    return Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=pbc)
