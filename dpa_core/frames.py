"""The two shapes data takes: one labelled `Frame` (NumPy) and one `Batch` (torch).

Letters used for shapes everywhere: F frames, N atoms of all frames of a batch, M slots of
the neighbour table, T types, C channels. Units: Å, eV, eV/Å (docs/conventions.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LABELS = ("energy", "force", "virial", "atom_energy")


class Frame(NamedTuple):
    """One structure with whatever labels it has.

    Attributes
    ----------
    coord
        (natoms, 3) float64, Å.
    atype
        (natoms,) int64, index into the data set's `type_map`; < 0 marks a virtual atom.
    box
        (3, 3) float64, rows are lattice vectors, Å; None without periodicity.
    energy, force, virial, atom_energy
        (), (natoms, 3), (3, 3), (natoms,): eV, eV/Å, eV, eV. None where not labelled.
        virial = -dE/dstrain.
    fparam, aparam
        (nfparam,), (natoms, naparam): optional frame and atom parameters.
    """

    coord: NDArray[np.float64]
    atype: NDArray[np.int64]
    box: NDArray[np.float64] | None = None
    energy: float | None = None
    force: NDArray[np.float64] | None = None
    virial: NDArray[np.float64] | None = None
    atom_energy: NDArray[np.float64] | None = None
    fparam: NDArray[np.float64] | None = None
    aparam: NDArray[np.float64] | None = None


class Batch(NamedTuple):
    """Frames of any size and composition, atoms concatenated along one axis N.

    Attributes
    ----------
    coord
        (N, 3) float64, Å.
    atype
        (N,) int64; < 0 marks a virtual atom.
    box
        (F, 3, 3) float64; zeros for frames without a box.
    frame
        (N,) int64, the frame each atom belongs to.
    natoms
        (F,) int64, atoms of each frame, virtual ones excluded.
    index
        (N, M) int64, the neighbour's position on axis N. An empty slot points to the first
        atom of its frame (DeePMD's padding takes that atom's type, see descriptor.py).
    shift
        (N, M, 3) float64, lattice translations of the neighbour, in cell vectors.
    mask
        (N, M) bool, False for an empty slot.
    fparam, aparam
        (F, nfparam) / (N, naparam) float64 or None.
    head
        (F,) int64, the fitting net of each frame; None means the first one for all.
    """

    coord: Tensor
    atype: Tensor
    box: Tensor
    frame: Tensor
    natoms: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    shift: Tensor
    mask: Tensor
    fparam: Tensor | None = None
    aparam: Tensor | None = None
    head: Tensor | None = None

    @property
    def nframes(self) -> int:
        """Number of frames F."""
        return self.box.shape[0]

    def centre_types(self) -> tuple[Tensor, Tensor]:
        """Types of the atoms, 0 for virtual ones, and of the first atom of their frame; (N,)."""
        real_type = self.atype.clamp(min=0)
        frames = torch.arange(self.nframes, device=self.frame.device)
        first = torch.searchsorted(self.frame, frames)
        return real_type, real_type[first][self.frame]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        moved = (None if x is None else x.to(device) for x in self)
        return Batch(*moved)  # type: ignore[arg-type]  # None stays where None was


class Labels(NamedTuple):
    """Reference values of a batch; frames without a label hold zeros and a False flag.

    Attributes
    ----------
    energy, force, virial, atom_energy
        (F,), (N, 3), (F, 3, 3), (N,) float64.
    has_energy, has_force, has_virial, has_atom_energy
        (F,) bool: which frames carry the label.
    """

    energy: Tensor
    force: Tensor
    virial: Tensor
    atom_energy: Tensor
    has_energy: Tensor
    has_force: Tensor
    has_virial: Tensor
    has_atom_energy: Tensor

    def to(self, device: torch.device | str) -> Labels:
        """Return the labels on another device."""
        return Labels(*(x.to(device) for x in self))


class Prediction(NamedTuple):
    """What `derivatives.predict` returns for a batch.

    Attributes
    ----------
    energy
        (F,) float64, eV.
    atom_energy
        (N,) float64, eV; 0 for virtual atoms.
    force
        (N, 3) float64, eV/Å.
    virial
        (F, 3, 3) float64, eV: -dE/dstrain.
    atom_virial
        (N, 3, 3) float64, eV; None unless asked for.
    """

    energy: Tensor
    atom_energy: Tensor
    force: Tensor
    virial: Tensor
    atom_virial: Tensor | None = None
