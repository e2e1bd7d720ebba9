"""A committee of models and its deviation, by the formulas of DeePMD-kit's `dp model-devi`.

With K models, population standard deviations over the models, N atoms and F_i the force on
atom i (DeePMD-kit v2, arXiv:2304.09409, eqs. 69-72):

    devi_f   |std F_i|, with `relative` divided by |mean F_i| + relative;
             max, min and mean over the atoms
    devi_v   std of each of the nine components of W/N, with `relative_v` divided by
             |mean W/N| + relative_v; max, min and root mean square over the components
    devi_e   std of E/N
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpa_core.batch import make_batch
from dpa_core.derivatives import predict_heads
from dpa_core.errors import ConfigError, DataError
from dpa_core.frames import Batch, Frame, Prediction
from dpa_core.interchange.files import load_model
from dpa_core.model import Potential
from dpa_core.neighbors import Neighbors, neighbor_table

log = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Atoms evaluated together: bounds memory for many frames.
_BATCH_ATOMS = 1024


class Deviation(NamedTuple):
    """Disagreement of a committee, one number per frame, (F,) float64.

    Attributes
    ----------
    max_devi_v, min_devi_v, avg_devi_v
        Virial per atom, eV; without unit if relative.
    max_devi_f, min_devi_f, avg_devi_f
        Forces, eV/Å; without unit if relative.
    devi_e
        Energy per atom, eV; NaN where a file does not tell.
    """

    max_devi_v: Array
    min_devi_v: Array
    avg_devi_v: Array
    max_devi_f: Array
    min_devi_f: Array
    avg_devi_f: Array
    devi_e: Array


class CommitteePrediction(NamedTuple):
    """What the K members of a committee say about F frames.

    Attributes
    ----------
    energy
        (K, F), eV.
    force
        For each frame (K, natoms, 3), eV/Å.
    virial
        (K, F, 3, 3), eV: -dE/dstrain.
    natoms
        (F,) atoms of each frame, virtual ones excluded.
    """

    energy: Array
    force: list[Array]
    virial: Array
    natoms: NDArray[np.int64]


class Committee:
    """Models that are asked the same question at the price of one neighbour search.

    Parameters
    ----------
    models
        Members with one type_map, rcut and sel. A single model stands for its heads; of
        several, each is represented by its first head. One member alone deviates by 0.

    Raises
    ------
    ConfigError
        If there is no model, or the members do not fit together.
    """

    def __init__(self, models: Sequence[Potential]) -> None:
        if not models:
            raise ConfigError("a committee needs at least one model")
        members = models[0].heads() if len(models) == 1 else (m.heads()[0] for m in models)
        self.models: tuple[Potential, ...] = tuple(members)
        self.type_map = self.models[0].type_map
        for number, model in enumerate(self.models[1:], 1):
            _check_alike(self.models[0], model, number)
        # Heads of one file come out of one pass through their descriptor.
        groups: dict[int, list[int]] = {}
        for k, model in enumerate(self.models):
            groups.setdefault(id(model.descriptor), []).append(k)
        self._groups = list(groups.values())
        self._warned = False

    @classmethod
    def load(cls, paths: Sequence[str | Path]) -> Committee:
        """Read a committee: the heads of one file, or one member from each of several.

        Raises
        ------
        ConfigError
            As the class.
        ModelFileError
            If a file cannot be read.
        """
        return cls([load_model(path) for path in paths])

    @property
    def size(self) -> int:
        """Number of members K."""
        return len(self.models)

    def to(self, device: str) -> Committee:
        """Move all members to a device, e.g. "cuda"; return the committee."""
        for model in self.models:
            model.to(device)
        return self

    def predict(
        self, frames: Sequence[Frame], tables: Sequence[Neighbors] | None = None
    ) -> CommitteePrediction:
        """Energies, forces and virials of all members.

        Parameters
        ----------
        frames
            Of any size and composition; `atype` indexes the committee's type_map.
        tables
            Neighbour tables of the frames, if known already.

        Raises
        ------
        DataError
            If an atom's type is not in the type_map.
        """
        size, total = self.size, len(frames)
        energy, virial = np.zeros((size, total)), np.zeros((size, total, 3, 3))
        natoms = np.zeros(total, np.int64)
        force: list[Array] = []
        for some, batch in self._batches(frames, tables):
            natoms[some] = batch.natoms.numpy()
            atoms = np.cumsum([len(f.atype) for f in frames[some]])[:-1]
            found = self._members(batch)
            energy[:, some] = [p.energy.cpu().numpy() for p in found]
            virial[:, some] = [p.virial.cpu().numpy() for p in found]
            forces = np.stack([p.force.cpu().numpy() for p in found])
            force += np.split(forces, atoms, axis=1)
        return CommitteePrediction(energy, force, virial, natoms)

    def deviation(
        self,
        frames: Sequence[Frame],
        *,
        relative: float | None = None,
        relative_v: float | None = None,
    ) -> Deviation:
        """Deviation of the members, see `deviation`.

        Raises
        ------
        DataError
            As `predict`.
        ConfigError
            If `relative` or `relative_v` is not positive.
        """
        return deviation(self.predict(frames), relative, relative_v)

    def describe(self, frames: Sequence[Frame]) -> list[Array]:
        """Descriptors of the first member, for each frame (natoms, D) float64."""
        model = self.models[0]
        result: list[Array] = []
        for some, batch in self._batches(frames, None):
            d = model.describe(batch.to(model.out_bias.device)).double().cpu().numpy()
            result += np.split(d, np.cumsum([len(f.atype) for f in frames[some]])[:-1])
        return result

    def _members(self, batch: Batch) -> list[Prediction]:
        """Ask all members, in their order."""
        found: dict[int, Prediction] = {}
        for group in self._groups:
            models = [self.models[k] for k in group]
            answers = predict_heads(models, batch.to(models[0].out_bias.device))
            found |= dict(zip(group, answers, strict=True))
        return [found[k] for k in range(self.size)]

    def _batches(
        self, frames: Sequence[Frame], tables: Sequence[Neighbors] | None
    ) -> Iterator[tuple[slice, Batch]]:
        spec = self.models[0].spec
        for some in _slices([len(f.atype) for f in frames]):
            for number, frame in enumerate(frames[some], some.start):
                self._check_types(frame, number)
            chosen = (
                [neighbor_table(f, spec) for f in frames[some]] if tables is None else tables[some]
            )
            for table in chosen:
                if table.dropped and not self._warned:
                    self._warned = True
                    log.warning(table.overflow(spec))
            yield some, make_batch(frames[some], spec, chosen)

    def _check_types(self, frame: Frame, number: int) -> None:
        if frame.atype.max(initial=-1) >= len(self.type_map):
            raise DataError(
                f"frame {number} has an atom of type {frame.atype.max()}; the committee knows "
                f"{list(self.type_map)}. Open the data with type_map=committee.type_map"
            )


def deviation(
    prediction: CommitteePrediction, relative: float | None = None, relative_v: float | None = None
) -> Deviation:
    """Deviation of a committee from its predictions; formulas in the module's docstring.

    Parameters
    ----------
    prediction
        Of K members for F frames.
    relative
        eV/Å. Force deviations become relative, damped by this force.
    relative_v
        eV. Virial deviations become relative, damped by this virial per atom.

    Raises
    ------
    ConfigError
        If `relative` or `relative_v` is not positive.
    """
    for name, value in (("relative", relative), ("relative_v", relative_v)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}; a positive number is needed, or none")
    per_atom = np.maximum(prediction.natoms, 1)
    forces = [_force_deviation(f, relative) for f in prediction.force]
    virials = prediction.virial.reshape(*prediction.virial.shape[:2], 9) / per_atom[:, None]
    v = virials.std(axis=0)
    if relative_v is not None:
        v /= np.linalg.norm(virials.mean(axis=0), axis=-1, keepdims=True) + relative_v
    return Deviation(
        max_devi_v=v.max(axis=1),
        min_devi_v=v.min(axis=1),
        avg_devi_v=np.sqrt(np.square(v).mean(axis=1)),
        max_devi_f=np.array([f.max() for f in forces], np.float64),
        min_devi_f=np.array([f.min() for f in forces], np.float64),
        avg_devi_f=np.array([f.mean() for f in forces], np.float64),
        devi_e=(prediction.energy / per_atom).std(axis=0),
    )


def _force_deviation(force: Array, relative: float | None) -> Array:
    """(K, natoms, 3) -> (natoms,)."""
    found = np.linalg.norm(force.std(axis=0), axis=-1)
    if relative is not None:
        found /= np.linalg.norm(force.mean(axis=0), axis=-1) + relative
    return found


def write_model_devi(path: str | Path, steps: ArrayLike, deviation: Deviation) -> Path:
    """Write a file as `dp model-devi` does: `step`, the six deviations and `devi_e`.

    Parameters
    ----------
    path
        Replaced when the new file is complete.
    steps
        (F,) integers.
    deviation
        Of as many frames.
    """
    path = Path(path)
    header = f"{'step':10s}" + "".join(f"{name:19s}" for name in Deviation._fields)
    table = np.column_stack([np.asarray(steps, np.int64), *deviation])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    formats = ["%12d"] + len(Deviation._fields) * ["%19.6e"]
    np.savetxt(temporary, table, fmt=formats, delimiter="", header=header)
    temporary.replace(path)
    return path


def read_model_devi(path: str | Path) -> tuple[NDArray[np.int64], Deviation]:
    """Read steps (F,) and deviations from a file of `dp model-devi` or LAMMPS.

    LAMMPS writes no `devi_e`, which becomes NaN; columns of single atoms are skipped.

    Raises
    ------
    DataError
        If the file cannot be read or has other columns.
    """
    path = Path(path)
    names = ("step", *Deviation._fields)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        width = min([len(names), *(len(row) for row in rows)])
        # LAMMPS, told so, appends the deviation of every atom in place of devi_e.
        if any(line.startswith("#") and "atm_devi_f" in line and "devi_e" not in line
               for line in lines):  # fmt: skip
            width = min(width, len(names) - 1)
        if width < len(names) - 1:
            raise ValueError(f"a line of {width} columns")
        table = np.array([row[:width] for row in rows], np.float64).reshape(-1, width)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a model deviation file ({error}); its columns are {', '.join(names)}"
        ) from error
    unknown = np.full((len(table), len(names) - width), np.nan)
    columns = np.hstack([table, unknown]).T
    return columns[0].astype(np.int64), Deviation(*columns[1:])


def _slices(sizes: Sequence[int]) -> Iterator[slice]:
    """Give runs of frames of at most `_BATCH_ATOMS` atoms together, or of one frame."""
    start = atoms = 0
    for k, size in enumerate(sizes):
        if k > start and atoms + size > _BATCH_ATOMS:
            yield slice(start, k)
            start, atoms = k, 0
        atoms += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _check_alike(first: Potential, other: Potential, number: int) -> None:
    pairs = (
        ("type_map", list(first.type_map), list(other.type_map)),
        ("rcut", first.spec.rcut, other.spec.rcut),
        ("sel", list(first.spec.sel), list(other.spec.sel)),
        ("descriptor.type", first.config.descriptor.type, other.config.descriptor.type),
    )
    for name, here, there in pairs:
        if here != there:
            raise ConfigError(
                f"the members of a committee must agree in {name}: model 0 has {here}, model "
                f"{number} has {there}; train them with the same model section (sel as numbers, "
                'not "auto")'
            )
