"""ASE calculator: energy, forces and stress of a model for molecular dynamics and relaxation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import ArrayLike

from dpa_core import kernels
from dpa_core.batch import make_batch
from dpa_core.committee import Committee, Deviation, deviation
from dpa_core.derivatives import predict
from dpa_core.errors import ConfigError, NumericalError
from dpa_core.frames import Batch, Frame, Prediction
from dpa_core.interchange.files import load_model
from dpa_core.model import Potential
from dpa_core.neighbors import Neighbors, NeighborSpec, Pairs, search_pairs, table_of_pairs

log = logging.getLogger(__name__)

Periodicity = tuple[bool, bool, bool]


class _Candidates(NamedTuple):
    """Pairs closer than rcut + skin, and the structure they were searched in."""

    frame: Frame
    pbc: Periodicity
    pairs: Pairs

    def serve(self, frame: Frame, pbc: Periodicity, skin: float) -> bool:
        """Whether all pairs within rcut of a structure are among them."""
        old = self.frame
        if self.pbc != pbc or not np.array_equal(old.atype, frame.atype):
            return False
        if old.box is not None and frame.box is not None and (old.box != frame.box).any():
            return False
        moved = np.square(frame.coord - old.coord).sum(axis=1).max()
        return bool(moved <= (0.5 * skin) ** 2)


class DPACalculator(Calculator):
    """ASE calculator of a model.

    Parameters
    ----------
    model
        A model or the path of its file.
    skin
        Å. Pairs are searched up to rcut + skin and the search is repeated when an atom has
        moved by more than skin/2, or the cell, the periodicity or the atoms have changed.
    device
        Where the model runs, e.g. "cpu" or "cuda"; None leaves it where it is.
    fparam
        Frame parameters of a model that has them.

    Notes
    -----
    Results: energy and free_energy (eV), energies (eV per atom), forces (eV/Å) and, where the
    cell has a volume, stress (eV/Å³, Voigt, -virial/|V|: tension is positive). Any mix of
    periodic and open directions works; the virial is that of the strained structure either
    way.

    Raises
    ------
    ConfigError
        For an element that the model's type_map lacks, or a negative skin.
    ModelFileError
        If the file cannot be read.
    """

    # ASE declares it per instance and reads it from the class.
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | Potential,
        *,
        skin: float = 1.0,
        device: str | None = None,
        fparam: ArrayLike | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not skin >= 0:
            raise ConfigError(f"skin is {skin}; a length of at least 0 Å is needed")
        self.model = model if isinstance(model, Potential) else load_model(model)
        if device is not None:
            self.model.to(device)
        self.skin = float(skin)
        self.fparam = None if fparam is None else np.asarray(fparam, np.float64)
        self.searches = 0
        self._types = {name: t for t, name in enumerate(self.model.type_map)}
        self._candidates: _Candidates | None = None
        self._batch: Batch | None = None  # all candidates, for kernels
        self._crowded = False  # `sel` has no room for all neighbours, since the last search
        self._warned = False

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; called by ASE.

        Raises
        ------
        ConfigError
            For an unknown element or a periodic direction without lattice vector.
        NumericalError
            If energy or forces are not finite.
        """
        super().calculate(atoms, properties, system_changes)
        structure = self.atoms
        if structure is None or len(structure) == 0:
            raise ConfigError("DPACalculator needs a structure with at least one atom")
        frame, pbc = self._frame(structure)
        found = self._predicted(frame, pbc)
        energy = float(found.energy[0])
        forces = found.force.detach().cpu().numpy()
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise NumericalError(
                f"the model gives a non-finite energy or force for {structure.symbols} (energy "
                f"{energy} eV); check for atoms on top of each other"
            )
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": found.atom_energy.detach().cpu().numpy(),
            "forces": forces,
        }
        if structure.cell.rank == 3:
            virial = found.virial[0].detach().cpu().numpy()
            stress = -0.5 * (virial + virial.T) / abs(structure.cell.volume)
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)

    def _frame(self, atoms: Atoms) -> tuple[Frame, Periodicity]:
        elements, place = np.unique(atoms.numbers, return_inverse=True)
        symbols = [chemical_symbols[z] for z in elements]
        unknown = sorted(set(symbols) - set(self._types))
        if unknown:
            raise ConfigError(
                f"the structure holds {', '.join(unknown)}, which the model does not know; its "
                f"type_map is {list(self.model.type_map)}"
            )
        atype = np.array([self._types[name] for name in symbols], np.int64)[place]
        pbc: Periodicity = tuple(bool(p) for p in atoms.pbc)  # type: ignore[assignment]
        box = None
        if any(pbc):
            missing = [k for k in range(3) if pbc[k] and not atoms.cell[k].any()]
            if missing:
                raise ConfigError(
                    f"pbc is {list(pbc)}, but lattice vector {missing[0]} is zero; set the cell"
                )
            # Open directions may lack a lattice vector; any independent one will do.
            box = np.array(atoms.cell.complete())
        return Frame(np.array(atoms.positions), atype, box, fparam=self.fparam), pbc

    def _predicted(self, frame: Frame, pbc: Periodicity) -> Prediction:
        """Energy, force and virial; kernels look at the distances of the candidates themselves."""
        candidates = self._near(frame, pbc)
        engine = kernels.find((self.model,))
        if engine is not None and not self._crowded:
            if self._batch is None:
                table = table_of_pairs(candidates.pairs, frame, NeighborSpec(self.model.spec.rcut))
                self._batch = make_batch([frame], self.model.spec, [table])
            coord = torch.from_numpy(frame.coord)
            found = engine.predict_uncut(self._batch._replace(coord=coord))
            if found is not None:
                return found
            self._crowded = True
        batch = make_batch([frame], self.model.spec, [self._table(frame, pbc)])
        return predict(self.model, batch.to(self.model.out_bias.device))

    def _near(self, frame: Frame, pbc: Periodicity) -> _Candidates:
        candidates = self._candidates
        if candidates is None or not candidates.serve(frame, pbc, self.skin):
            spec = self.model.spec
            pairs = search_pairs(frame, spec, spec.rcut + self.skin, pbc)
            candidates = self._candidates = _Candidates(frame, pbc, pairs)
            self._batch, self._crowded = None, False
            self.searches += 1
        return candidates

    def _table(self, frame: Frame, pbc: Periodicity) -> Neighbors:
        """Neighbours within rcut, picked from the candidates; `sel` truncates as always."""
        spec, pairs = self.model.spec, self._near(frame, pbc).pairs
        near = pairs.distances(frame.coord, frame.box) <= spec.rcut
        # The candidates are sorted already, so what is near fills the table as it comes.
        table = table_of_pairs(pairs.select(near), frame, spec)
        if table.dropped and not self._warned:
            self._warned = True
            log.warning(table.overflow(spec))
        return table


class CommitteeCalculator(DPACalculator):
    """ASE calculator of a committee: driven by its first member, all members judge.

    Parameters
    ----------
    committee
        A committee, or the paths of its files (see `Committee.load`).
    skin, device, fparam
        As in `DPACalculator`.

    Raises
    ------
    ConfigError
        As `DPACalculator`, or if the models do not fit together.
    ModelFileError
        If a file cannot be read.
    """

    def __init__(
        self,
        committee: Committee | Sequence[str | Path],
        *,
        skin: float = 1.0,
        device: str | None = None,
        fparam: ArrayLike | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(committee, Committee):
            committee = Committee.load(committee)
        self.committee = committee if device is None else committee.to(device)
        super().__init__(self.committee.models[0], skin=skin, fparam=fparam, **kwargs)

    def deviation(
        self, atoms: Atoms, *, relative: float | None = None, relative_v: float | None = None
    ) -> Deviation:
        """Deviation of the committee for one structure (F = 1).

        Neighbours come from the list of the last step where that is still valid.

        Parameters
        ----------
        atoms
            Usually the structure just calculated.
        relative, relative_v
            See `dpa_core.committee.deviation`.

        Raises
        ------
        ConfigError
            As `calculate`.
        """
        frame, pbc = self._frame(atoms)
        prediction = self.committee.predict([frame], [self._table(frame, pbc)])
        return deviation(prediction, relative, relative_v)
