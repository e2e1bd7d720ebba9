"""A model read from a graph must give the energies the graph gives.

A few atoms with made-up neighbours are evaluated twice: by our model, and by the graph's own
operations in NumPy, from the environment matrix on. Slots are full, partly and wholly empty,
one neighbour is just inside the cutoff, and all pairs of types occur, so every option that
changes energies is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dpa_core.descriptor import Environment
from dpa_core.env_mat import env_rows
from dpa_core.interchange.content import Content, build
from dpa_core.interchange.tensorflow_descriptor import Operator
from dpa_core.interchange.tensorflow_nets import ENERGY, Forward
from dpa_core.tensorflow import operator_radii

# Relative to the largest energy without bias; constants of float32 nets are rounded.
TOLERANCE = {"float64": 1e-8, "float32": 1e-5}
# Rounding of the bias, which may be much larger than what it is added to.
ROUNDING = 1e-14
ATOMS = 6
# Elements of the attention of all atoms together.
MAX_ATTENTION = 2**23
CLOSEST = 0.35


class Atoms(NamedTuple):
    """Centres sorted by type, and their neighbours in slots.

    Attributes
    ----------
    atype
        (N,).
    vectors, neighbor_type, mask
        (N, M, 3), (N, M), (N, M): every slot of `sel`, as DeePMD-kit fills them.
    """

    atype: NDArray[np.int64]
    vectors: NDArray[np.float64]
    neighbor_type: NDArray[np.int64]
    mask: NDArray[np.bool_]


def check_energies(forward: Forward, op: Operator, content: Content) -> None:
    """Compare our energies with the graph's.

    Raises
    ------
    ModelFileError
        If they differ: the graph means something that was not understood.
    """
    graph, config = forward.graph, content.config
    atoms = made_up_atoms(op)
    rng = np.random.default_rng(1)
    net = config.fitting_net
    fparam = rng.normal(0, 1, (1, net.numb_fparam))
    aparam = rng.normal(0, 1, (len(atoms.atype), net.numb_aparam))
    theirs = np.asarray(_graph_energies(forward, op, atoms, fparam, aparam)).reshape(-1)
    ours = _our_energies(content, graph.path, atoms, fparam, aparam)
    bias = (content.tensors["fitting.bias_atom_e"] + content.tensors["out_bias"]).numpy()
    scale = max(np.abs(ours - bias[atoms.atype]).max(), 1e-3)
    low = "float32" in (net.precision, config.descriptor.precision)
    allowed = TOLERANCE["float32" if low else "float64"] * scale + ROUNDING * np.abs(bias).max()
    if theirs.shape != ours.shape or not np.abs(theirs - ours).max() <= allowed:
        worst = np.abs(theirs - ours).max() if theirs.shape == ours.shape else np.nan
        raise graph.error(
            "the graph gives other energies than the model read from it (by up to "
            f"{worst:.2g} eV for made-up atoms), so it holds an option or is of a version that "
            "is not known; please report it with the file"
        )


def made_up_atoms(op: Operator) -> Atoms:
    """Make a few centres of different types with neighbours of all types."""
    rng = np.random.default_rng(0)
    ntypes, total = op.ntypes, sum(op.sel)
    count = max(1, min(ATOMS, MAX_ATTENTION // total**2))
    atype = np.sort(np.linspace(0, ntypes - 1, count).round().astype(np.int64))
    n = len(atype)
    radius = rng.uniform(CLOSEST, 1.02, (n, total)) * op.rcut
    radius[0, :1] = op.rcut * 0.9995
    direction = rng.normal(0, 1, (n, total, 3))
    vectors = radius[..., None] * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    if op.mixed:
        types = rng.integers(0, ntypes, (n, total))
        filled = np.arange(total) < np.linspace(total, 0, n).round()[:, None]
    else:
        types = np.broadcast_to(np.repeat(np.arange(ntypes), op.sel), (n, total)).copy()
        place = np.concatenate([np.arange(s) / max(s, 1) for s in op.sel])
        filled = place < np.linspace(1, 0, n)[:, None]
    return Atoms(atype, vectors, types, filled & (radius < op.rcut))


def _graph_energies(
    forward: Forward, op: Operator, atoms: Atoms, fparam: NDArray[Any], aparam: NDArray[Any]
) -> Any:
    """Let the graph compute energies, its operator and inputs given."""
    n = len(atoms.atype)
    rcut, start = operator_radii(op.rcut, op.rcut_smth)
    rows = env_rows(
        torch.from_numpy(atoms.vectors), torch.from_numpy(atoms.mask), rcut, start
    )[0].numpy()  # fmt: skip
    rows = (rows - op.davg[atoms.atype, None]) / op.dstd[atoms.atype, None]
    types = np.where(atoms.mask, atoms.neighbor_type, op.ntypes).astype(np.int32)
    empty = np.zeros((1, n * rows.shape[1]), np.int32)
    matrix = rows.reshape(1, -1)
    outputs = (matrix, None, None, empty, types.reshape(1, -1), atoms.mask.reshape(1, -1))
    counts = [n, n, *np.bincount(atoms.atype, minlength=op.ntypes)]
    feeds: dict[str, tuple[Any, ...]] = {
        op.name: outputs,
        "t_natoms": (np.array(counts, np.int32),),
        "t_type": (atoms.atype.astype(np.int32).reshape(1, -1),),
        "t_coord": (np.zeros((1, 3 * n)),),
        "t_box": (np.zeros((1, 9)),),
        "t_fparam": (fparam,),
        "t_aparam": (aparam.reshape(1, -1),),
    }
    return forward.graph.value(ENERGY, feeds, double=True)


def _our_energies(
    content: Content, path: str | Path, atoms: Atoms, fparam: NDArray[Any], aparam: NDArray[Any]
) -> NDArray[np.float64]:
    model = build(_in_double(content), path)
    # In empty slots: the type of the frame's first atom, which here is of type atype[0].
    first = int(atoms.atype[0])
    pad = torch.full((len(atoms.atype),), first)
    mask = torch.from_numpy(atoms.mask)
    types = torch.where(mask, torch.from_numpy(atoms.neighbor_type), first)
    atype = torch.from_numpy(atoms.atype)
    env = Environment(atype, types, pad, mask)
    frames = torch.from_numpy(np.repeat(fparam, len(atype), 0)) if fparam.size else None
    own = torch.from_numpy(aparam) if aparam.size else None
    with torch.no_grad():
        return model(torch.from_numpy(atoms.vectors), env, atype, frames, own).numpy()


def _in_double(content: Content) -> Content:
    """Return the same model with float64 networks, so that only meaning is compared."""
    config = content.config
    update = {
        key: getattr(config, key).model_copy(update={"precision": "float64"})
        for key in ("descriptor", "fitting_net")
    }
    tensors = {name: value.double() for name, value in content.tensors.items()}
    return content._replace(config=config.model_copy(update=update), tensors=tensors)
