"""The potential: descriptor, fitting net and energy bias; returns energies per atom only."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dpa_core.batch import make_batch
from dpa_core.config import ModelConfig
from dpa_core.derivatives import neighbor_vectors, predict
from dpa_core.descriptor import Environment, build_descriptor, pair_filter
from dpa_core.errors import DataError
from dpa_core.fitting import EnergyFitting
from dpa_core.frames import Batch, Frame
from dpa_core.neighbors import NeighborSpec, neighbor_table

log = logging.getLogger(__name__)

# Atoms evaluated together by `evaluate`: bounds memory for many frames.
_EVALUATE_ATOMS = 1024


class Evaluation(NamedTuple):
    """What `Potential.evaluate` returns, NumPy float64.

    Attributes
    ----------
    energy, force, virial, atom_energy
        (nframes,) eV, (nframes, natoms, 3) eV/Å, (nframes, 3, 3) eV, (nframes, natoms) eV.
    atom_virial
        (nframes, natoms, 3, 3) eV, None unless asked for.
    """

    energy: NDArray[np.float64]
    force: NDArray[np.float64]
    virial: NDArray[np.float64]
    atom_energy: NDArray[np.float64]
    atom_virial: NDArray[np.float64] | None = None


class Potential(nn.Module):
    """A DPA-1 or DeepPot-SE potential.

    E_i = fitting(descriptor_i) + bias_atom_e[t_i] + out_bias[t_i]

    With `config.heads` > 1 it carries that many fitting nets, each with initial weights of its
    own. `fitting` is the first, which everything uses unless told otherwise; `heads()` gives
    one model for each.

    Parameters
    ----------
    config
        With a resolved `sel`.
    seed
        Of the initial weights, unless the descriptor or fitting net names its own.
    """

    out_bias: Tensor
    out_std: Tensor
    pair_allowed: Tensor
    silent: Tensor

    def __init__(self, config: ModelConfig, seed: int = 1) -> None:
        super().__init__()
        self.config = config
        self.type_map = config.type_map
        self.provenance: dict[str, Any] = {}
        self._warned = False
        ntypes = len(config.type_map)
        self.descriptor = build_descriptor(
            config.descriptor, config.type_map, _generator(config.descriptor.seed, seed)
        )
        random = _generator(config.fitting_net.seed, seed + 1)
        self.fitting, *others = (
            EnergyFitting(
                config.fitting_net,
                ntypes,
                self.descriptor.dim_out,
                self.descriptor.mixed_types,
                random,
                self.descriptor.dim_type,
            )
            for _ in range(config.heads)
        )
        # Empty with one head, whose files so hold nothing but `fitting`.
        self.other_fittings = nn.ModuleList(others)
        self.register_buffer("out_bias", torch.zeros(ntypes, dtype=torch.float64))
        self.register_buffer("out_std", torch.ones(ntypes, dtype=torch.float64))
        allowed = pair_filter(config.pair_exclude_types, ntypes)
        self.register_buffer("pair_allowed", allowed, persistent=False)
        silent = torch.zeros(ntypes, dtype=torch.bool)
        silent[list(config.atom_exclude_types)] = True
        self.register_buffer("silent", silent, persistent=False)

    @property
    def spec(self) -> NeighborSpec:
        """What the model asks of the neighbour search."""
        descriptor = self.descriptor
        return NeighborSpec(
            self.config.descriptor.rcut, descriptor.sel, descriptor.mixed_types,
            descriptor.total_first,
        )  # fmt: skip

    @property
    def fittings(self) -> tuple[EnergyFitting, ...]:
        """The fitting nets of all heads."""
        others: list[EnergyFitting] = list(self.other_fittings)  # type: ignore[arg-type]
        return (self.fitting, *others)

    def heads(self) -> tuple[Potential, ...]:
        """Return one model per fitting net; they share descriptor and bias with this one."""
        if self.config.heads == 1:
            return (self,)
        return tuple(self._with_fitting(fitting) for fitting in self.fittings)

    def _with_fitting(self, fitting: EnergyFitting) -> Potential:
        """Make a view of this model with one fitting net: no tensor is copied."""
        view = copy.copy(self)
        view.__dict__["_modules"] = {**self._modules}
        view.config = self.config.model_copy(update={"heads": 1})
        view.fitting, view.other_fittings = fitting, nn.ModuleList()
        return view

    def forward(
        self,
        vectors: Tensor,
        env: Environment,
        atype: Tensor,
        fparam: Tensor | None = None,
        aparam: Tensor | None = None,
        head: Tensor | None = None,
    ) -> Tensor:
        """Atomic energies (N,), float64, eV.

        Parameters
        ----------
        vectors
            (N, M, 3) float64, r_j - r_i, Å.
        env
            The neighbourhoods' types and masks.
        atype
            (N,); virtual atoms (< 0) have no energy.
        fparam, aparam
            (N, numb_fparam), (N, numb_aparam).
        head
            (N,) the fitting net of each atom; None means the first.
        """
        d = self.descriptor(vectors, env)
        return self.atomic_energies(d, env, atype, fparam, aparam, head)

    def atomic_energies(
        self,
        d: Tensor,
        env: Environment,
        atype: Tensor,
        fparam: Tensor | None = None,
        aparam: Tensor | None = None,
        head: Tensor | None = None,
    ) -> Tensor:
        """Do the part of `forward` behind the descriptor `d`, (N, dim_out)."""
        if head is None or self.config.heads == 1:
            energy = self.fitting(d, env.atype, fparam, aparam)
        else:
            energy = self._fit_each(d, env.atype, fparam, aparam, head)
        return self.biased(energy, atype)

    def biased(self, energy: Tensor, atype: Tensor) -> Tensor:
        """Add the bias to what a fitting net gives, (N,); `silent_atoms` have no energy."""
        return torch.where(
            self.silent_atoms(atype), 0.0, energy + self.out_bias[atype.clamp(min=0)]
        )

    def silent_atoms(self, atype: Tensor) -> Tensor:
        """Virtual atoms, and those of types without energy, (N,) bool."""
        return (atype < 0) | self.silent[atype.clamp(min=0)]

    def _fit_each(
        self,
        d: Tensor,
        atype: Tensor,
        fparam: Tensor | None,
        aparam: Tensor | None,
        head: Tensor,
    ) -> Tensor:
        """Energies of atoms that belong to several heads: every atom passes one net."""
        energy = torch.zeros(len(d), dtype=torch.float64, device=d.device)
        for k, fitting in enumerate(self.fittings):
            rows = torch.nonzero(head == k).squeeze(1)
            if len(rows):
                own = (None if x is None else x[rows] for x in (fparam, aparam))
                energy = energy.index_copy(0, rows, fitting(d[rows], atype[rows], *own))
        return energy

    def environment(self, batch: Batch) -> Environment:
        """Types and masks of the neighbourhoods of a batch, excluded pairs removed."""
        real_type, pad_type = batch.centre_types()
        neighbor_type, mask = real_type[batch.index], batch.mask
        if self.config.pair_exclude_types:
            mask = mask & self.pair_allowed[real_type[:, None], neighbor_type]
            neighbor_type = torch.where(mask, neighbor_type, pad_type[:, None])
        return Environment(real_type, neighbor_type, pad_type, mask)

    def inputs_of(
        self, batch: Batch, atoms: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Types, frame parameters, atom parameters and heads of some atoms, for `forward`."""
        net = self.config.fitting_net
        fparam = aparam = None
        if net.numb_fparam:
            values = batch.fparam
            if values is None:
                if net.default_fparam is None:
                    raise DataError(f"the model needs fparam ({net.numb_fparam} numbers a frame)")
                values = batch.box.new_tensor(net.default_fparam).expand(batch.nframes, -1)
            fparam = values[batch.frame[atoms]]
        if net.numb_aparam:
            if batch.aparam is None:
                raise DataError(f"the model needs aparam ({net.numb_aparam} numbers an atom)")
            aparam = batch.aparam[atoms]
        head = None if batch.head is None else batch.head[batch.frame[atoms]]
        return batch.atype[atoms], fparam, aparam, head

    def describe(self, batch: Batch) -> Tensor:
        """Descriptors of all atoms, (N, dim_out)."""
        with torch.no_grad():
            return self.descriptor(neighbor_vectors(batch), self.environment(batch))

    def evaluate(
        self,
        coord: ArrayLike,
        box: ArrayLike | None,
        atype: ArrayLike,
        *,
        fparam: ArrayLike | None = None,
        aparam: ArrayLike | None = None,
        atom_virial: bool = False,
    ) -> Evaluation:
        """Energy, force and virial of frames of one size.

        Parameters
        ----------
        coord
            (nframes, natoms, 3), Å.
        box
            (nframes, 3, 3), rows are lattice vectors, Å; None without periodicity.
        atype
            (natoms,) or (nframes, natoms), indices into `type_map`; -1 is a virtual atom.
        fparam, aparam
            (nframes, numb_fparam), (nframes, natoms, numb_aparam), where the model has them.
        atom_virial
            Also return atomic virials.

        Raises
        ------
        DataError
            If a shape does not fit or a type is not in `type_map`.
        """
        frames = _frames(coord, box, atype, fparam, aparam, len(self.type_map))
        natoms = frames[0].coord.shape[0] if frames else 0
        step = max(1, _EVALUATE_ATOMS // max(natoms, 1))
        device = self.out_bias.device
        parts = []
        for start in range(0, len(frames), step):
            some = frames[start : start + step]
            tables = [neighbor_table(frame, self.spec) for frame in some]
            for table in tables:
                if table.dropped and not self._warned:
                    self._warned = True
                    log.warning(table.overflow(self.spec))
            batch = make_batch(some, self.spec, tables).to(device)
            parts.append(predict(self, batch, atom_virial=atom_virial))

        def join(name: str, *shape: int) -> NDArray[np.float64]:
            arrays = [getattr(p, name).detach().cpu().numpy() for p in parts]
            return np.concatenate([np.zeros(0), *(a.ravel() for a in arrays)]).reshape(shape)

        n = len(frames)
        return Evaluation(
            energy=join("energy", n),
            force=join("force", n, natoms, 3),
            virial=join("virial", n, 3, 3),
            atom_energy=join("atom_energy", n, natoms),
            atom_virial=join("atom_virial", n, natoms, 3, 3) if atom_virial else None,
        )


def build_model(config: ModelConfig, seed: int = 1) -> Potential:
    """Make an untrained potential."""
    return Potential(config, seed)


def _generator(own: int | None, default: int) -> torch.Generator:
    return torch.Generator().manual_seed(default if own is None else own)


def _frames(
    coord: ArrayLike,
    box: ArrayLike | None,
    atype: ArrayLike,
    fparam: ArrayLike | None,
    aparam: ArrayLike | None,
    ntypes: int,
) -> Sequence[Frame]:
    coord = np.asarray(coord, np.float64)
    if coord.ndim != 3 or coord.shape[-1] != 3:
        raise DataError(f"coord has shape {coord.shape}; expected (nframes, natoms, 3)")
    n, natoms = coord.shape[:2]
    types = np.asarray(atype)
    if types.shape == (natoms,):
        types = np.broadcast_to(types, (n, natoms))
    if types.shape != (n, natoms):
        raise DataError(f"atype has shape {types.shape}; expected ({natoms},) or ({n}, {natoms})")
    if types.size and types.max() >= ntypes:
        raise DataError(f"atype {types.max()} is out of range; type_map has {ntypes} elements")
    boxes = None
    if box is not None:
        boxes = np.asarray(box, np.float64)
        if boxes.shape != (n, 3, 3):
            raise DataError(f"box has shape {boxes.shape}; expected ({n}, 3, 3) or None")
    frame_parameters = None if fparam is None else np.asarray(fparam, np.float64).reshape(n, -1)
    atom_parameters = (
        None if aparam is None else np.asarray(aparam, np.float64).reshape(n, natoms, -1)
    )
    return [
        Frame(
            coord[k],
            types[k].astype(np.int64),
            None if boxes is None else boxes[k],
            fparam=None if frame_parameters is None else frame_parameters[k],
            aparam=None if atom_parameters is None else atom_parameters[k],
        )
        for k in range(n)
    ]
