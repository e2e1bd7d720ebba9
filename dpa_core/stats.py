"""Statistics of the data that become part of the model: davg/dstd, fparam/aparam, `sel`.

Formulas as in DeePMD-kit: moments of the environment matrix are pooled over all `sel` slots
of every atom of a type, empty slots counting as zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpa_core.batch import make_batch
from dpa_core.config import DPA1Config, ModelConfig
from dpa_core.derivatives import neighbor_vectors
from dpa_core.env_mat import env_rows
from dpa_core.errors import ConfigError, DataError
from dpa_core.frames import Batch, Frame
from dpa_core.neighbors import NeighborSpec, search_pairs

if TYPE_CHECKING:
    from dpa_core.data import Dataset
    from dpa_core.model import Potential

log = logging.getLogger(__name__)

# Floor of dstd, and dstd of a type that no sampled frame contains (DeePMD-kit).
STD_FLOOR = 1e-2
STD_UNSEEN = 0.1
# Bounds the work on huge sets: statistics of this many atoms are converged.
MAX_SAMPLE_ATOMS = 50_000
MAX_SEL_ATOMS = 200_000
_BATCH_ATOMS = 512
_SCAN_FRAMES = 20_000


class EnvSums(NamedTuple):
    """Moments of the environment matrix per centre type, columns (radial, angular).

    Attributes
    ----------
    slots
        (T,) atoms of the type times nnei.
    first, second
        (T, 2) sums of values and of squares; the angular ones over all three components.
    """

    slots: Tensor
    first: Tensor
    second: Tensor


def sample_frames(
    dataset: Dataset,
    nbatch: int,
    batch_size: int | str = "auto:256",
    seed: int = 1,
    max_atoms: int = MAX_SAMPLE_ATOMS,
) -> list[int]:
    """Frames that statistics are computed from: `nbatch` training batches of every system.

    Parameters
    ----------
    dataset
        Any data set.
    nbatch
        Batches of every system (`data_stat_nbatch`).
    batch_size
        Frames in a batch, "auto:N": as many as hold at least N atoms, "max:N": at most N.
    seed
        Of the random choice.
    max_atoms
        A larger sample is cut to this size at random.

    Returns
    -------
    list of int
        Sorted frame numbers. Every element that occurs in the data set occurs in the sample,
        a cut one included.
    """
    rng = np.random.default_rng(seed)
    natoms = np.asarray(dataset.natoms)
    chosen = [np.zeros(0, np.int64)]
    by_system = np.argsort(dataset.system_index, kind="stable")
    bounds = np.searchsorted(dataset.system_index[by_system], np.arange(1, len(dataset.systems)))
    for frames in np.split(by_system, bounds):
        if len(frames):
            batch = frames_per_batch(batch_size, float(natoms[frames].mean()))
            size = min(len(frames), nbatch * batch)
            chosen.append(rng.choice(frames, size, replace=False))
    indices = np.concatenate(chosen)
    if natoms[indices].sum() > max_atoms:
        indices = rng.permutation(indices)
        keep = int(np.searchsorted(np.cumsum(natoms[indices]), max_atoms))
        indices = indices[: max(1, keep)]
        log.info("statistics use %d frames (%d atoms)", len(indices), natoms[indices].sum())
    missing = _frames_of_missing_types(dataset, indices, nbatch)
    return [int(k) for k in np.unique(np.concatenate([indices, missing]))]


def frames_per_batch(batch_size: int | str, natoms: float) -> int:
    """Frames of about `natoms` atoms that one batch holds.

    b, ceil(N / natoms) of "auto:N", or floor(N / natoms), at least 1, of "max:N".
    Plain "auto" is DeePMD's "auto:32".
    """
    if isinstance(batch_size, int):
        return batch_size
    rule, _, number = batch_size.partition(":")
    atoms = int(number or 32)
    if rule == "max":
        return max(1, int(atoms / natoms))
    return max(1, int(np.ceil(atoms / max(natoms, 1.0))))


def _frames_of_missing_types(
    dataset: Dataset, indices: NDArray[np.int64], limit: int
) -> NDArray[np.int64]:
    """Up to `limit` frames for every type that occurs, but not in the frames `indices`."""
    missing = np.asarray(dataset.counts(indices)).sum(0) == 0
    found: dict[int, list[int]] = {}
    for start in range(0, len(dataset) if missing.any() else 0, _SCAN_FRAMES):
        scan = np.arange(start, min(start + _SCAN_FRAMES, len(dataset)))
        counts = np.asarray(dataset.counts(scan))
        for t in np.flatnonzero(missing & (counts.sum(0) > 0)):
            frames = found.setdefault(int(t), [])
            frames.extend(int(k) for k in scan[counts[:, t] > 0][: limit - len(frames)])
            missing[t] = len(frames) < limit
        if not missing.any():
            break
    return np.array([k for frames in found.values() for k in frames], np.int64)


def require_same_types(model: Potential, dataset: Dataset) -> None:
    """Raise ConfigError unless data set and model number the elements alike."""
    if tuple(dataset.type_map) != tuple(model.type_map):
        raise ConfigError(
            f"the data set has type_map {list(dataset.type_map)}, the model "
            f"{list(model.type_map)}; open the data with type_map=model.type_map"
        )


def iterate_batches(
    model: Potential, dataset: Dataset, indices: Iterable[int], batch_atoms: int = _BATCH_ATOMS
) -> Iterator[tuple[list[int], list[Frame], Batch]]:
    """Frame numbers, frames and batches of about `batch_atoms` atoms, in the given order."""
    device = model.out_bias.device
    numbers: list[int] = []
    frames: list[Frame] = []
    atoms = 0
    for k in indices:
        frame = dataset[k]
        if frames and atoms + len(frame.atype) > batch_atoms:
            yield numbers, frames, make_batch(frames, model.spec).to(device)
            numbers, frames, atoms = [], [], 0
        numbers.append(k)
        frames.append(frame)
        atoms += len(frame.atype)
    if frames:
        yield numbers, frames, make_batch(frames, model.spec).to(device)


def env_sums(model: Potential, dataset: Dataset, indices: Sequence[int]) -> EnvSums:
    """Sum the environment matrix of some frames, per centre type.

    Excluded pairs count as empty slots, that is as zeros.
    """
    config = model.config.descriptor
    ntypes, device = len(model.type_map), model.out_bias.device
    atoms = torch.zeros(ntypes, dtype=torch.float64, device=device)
    first = torch.zeros(ntypes, 2, dtype=torch.float64, device=device)
    second = torch.zeros_like(first)
    for _, _, batch in iterate_batches(model, dataset, indices):
        env = model.environment(batch)
        allowed = model.descriptor.allowed[env.atype[:, None], env.neighbor_type]
        rows, *_ = env_rows(
            neighbor_vectors(batch), env.mask, config.rcut, config.rcut_smth, config.env_protection
        )
        rows = torch.where((env.mask & allowed)[..., None], rows, 0.0)
        real = batch.atype >= 0
        types, rows = env.atype[real], rows[real]
        atoms.index_add_(0, types, torch.ones_like(types, dtype=torch.float64))
        for total, values in ((first, rows), (second, rows.square())):
            pooled = torch.stack([values[..., 0].sum(1), values[..., 1:].sum((1, 2))], dim=-1)
            total.index_add_(0, types, pooled)
    return EnvSums(atoms * model.descriptor.nnei, first, second)


def davg_dstd(sums: EnvSums, set_davg_zero: bool) -> tuple[Tensor, Tensor]:
    """Compute davg and dstd, (T, 4) each, from the sums.

    davg = (mean_r, 0, 0, 0), dstd = (s_r, s_a, s_a, s_a), s = sqrt(E[x²] - E[x]²) >= 1e-2;
    a type without atoms has davg 0 and dstd 0.1. (DeePMD-kit, EnvMatStat)
    """
    seen = sums.slots > 0
    number = sums.slots.clamp(min=1)[:, None] * sums.slots.new_tensor([1.0, 3.0])
    mean = sums.first / number
    std = (sums.second / number - mean.square()).clamp(min=0).sqrt().clamp(min=STD_FLOOR)
    std = torch.where(seen[:, None], std, STD_UNSEEN)
    davg = torch.zeros(len(seen), 4, dtype=torch.float64, device=seen.device)
    if not set_davg_zero:
        davg[:, 0] = torch.where(seen, mean[:, 0], 0.0)
    return davg, std[:, [0, 1, 1, 1]]


def compute_env_stats(
    model: Potential,
    dataset: Dataset,
    seed: int = 1,
    batch_size: int | str = "auto:256",
    types: Collection[int] | None = None,
) -> None:
    """Fill the descriptor's davg and dstd from a sample of the data.

    Parameters
    ----------
    model
        Changed in place.
    dataset
        With the model's type_map.
    seed, batch_size
        Of the sample, see `sample_frames`; its size follows `data_stat_nbatch`.
    types
        Only fill the rows of these types (finetuning: the new ones); None means all.

    Raises
    ------
    ConfigError
        If the type maps differ.
    """
    require_same_types(model, dataset)
    indices = sample_frames(dataset, model.config.data_stat_nbatch, batch_size, seed)
    sums = env_sums(model, dataset, indices)
    davg, dstd = davg_dstd(sums, model.config.descriptor.set_davg_zero)
    rows = sorted(types) if types is not None else list(range(len(model.type_map)))
    model.descriptor.davg[rows] = davg[rows]
    model.descriptor.dstd[rows] = dstd[rows]


def compute_param_stats(
    model: Potential, dataset: Dataset, seed: int = 1, batch_size: int | str = "auto:256"
) -> None:
    """Fill mean and 1/std of the frame and atom parameters from a sample of the data.

    The standard deviation is at least `data_stat_protect`. Does nothing for a model without
    fparam and aparam.

    Raises
    ------
    DataError
        If a sampled frame lacks them and the model has no default.
    """
    net = model.config.fitting_net
    if not net.numb_fparam and not net.numb_aparam:
        return
    indices = sample_frames(dataset, model.config.data_stat_nbatch, batch_size, seed)
    values: dict[str, list[NDArray[np.float64]]] = {"fparam": [], "aparam": []}
    for k in indices:
        frame = dataset[k]
        fparam = frame.fparam
        if fparam is None and net.default_fparam is not None:
            fparam = np.asarray(net.default_fparam)
        given = (("fparam", fparam, net.numb_fparam), ("aparam", frame.aparam, net.numb_aparam))
        for name, value, width in given:
            if not width:
                continue
            if value is None or np.size(value) % width:
                raise DataError(
                    f"{dataset.name(k)}: {name} is missing or has the wrong size; the model has "
                    f"fitting_net.numb_{name} = {width}, so every frame needs {name}.npy"
                )
            values[name].append(np.reshape(value, (-1, width)))
    for name, parts in values.items():
        if parts:
            _fill_param_stats(model, name, np.concatenate(parts))


def _fill_param_stats(model: Potential, name: str, values: NDArray[np.float64]) -> None:
    std = np.maximum(values.std(axis=0), model.config.data_stat_protect)
    for fitting in model.fittings:
        getattr(fitting, f"{name}_avg").copy_(torch.from_numpy(values.mean(axis=0)))
        getattr(fitting, f"{name}_inv_std").copy_(torch.from_numpy(1.0 / std))


def resolve_sel(config: ModelConfig, dataset: Dataset, seed: int = 1) -> ModelConfig:
    """Replace `sel: auto` by 1.1 times the largest neighbour count, up to a multiple of 4.

    Every frame is searched; of a set with more than `MAX_SEL_ATOMS` atoms a random part.
    """
    descriptor = config.descriptor
    if descriptor.sel != "auto":
        return config
    ntypes = len(config.type_map)
    mixed = isinstance(descriptor, DPA1Config)
    natoms = np.asarray(dataset.natoms)
    order = np.random.default_rng(seed).permutation(len(dataset))
    order = order[: int(np.searchsorted(np.cumsum(natoms[order]), MAX_SEL_ATOMS)) + 1]
    spec = NeighborSpec(descriptor.rcut, () if mixed else (0,) * ntypes, mixed)
    largest = np.zeros(1 if mixed else ntypes, np.int64)
    for k in np.sort(order):
        frame = dataset[int(k)]
        groups = search_pairs(frame, spec, spec.rcut).groups
        largest = np.maximum(largest, groups.max(axis=0, initial=0))
    sel = [4 * -(-11 * int(n) // 40) for n in largest]
    log.info("sel: at most %s neighbours within %g Å, sel = %s", largest, descriptor.rcut, sel)
    new = descriptor.model_copy(update={"sel": max(sel[0], 4) if mixed else tuple(sel)})
    return config.model_copy(update={"descriptor": new})
