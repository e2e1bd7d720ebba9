"""Energy bias per element: least squares on compositions, change and set by statistics.

E ≈ Σ_t counts_t bias_t is solved with the minimum norm, as in DeePMD-kit. Elements whose
amounts always change together cannot be told apart and share their energy; a warning names
them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpa_core.derivatives import neighbor_vectors
from dpa_core.errors import ConfigError, DataError
from dpa_core.frames import Batch, Frame
from dpa_core.stats import iterate_batches, require_same_types

if TYPE_CHECKING:
    from dpa_core.data import Dataset
    from dpa_core.model import Potential

log = logging.getLogger(__name__)

# Energies without derivatives need small batches only: they stay in cache.
_BATCH_ATOMS = 128


class BiasFit(NamedTuple):
    """Solution of the least-squares problem.

    Attributes
    ----------
    bias
        (T,) eV; 0 for elements that no frame contains, unless preset.
    std
        Standard deviation of the residual energy of a frame, eV.
    indistinct
        Groups of types that the compositions cannot tell apart.
    seen
        (T,) bool, which types occur.
    """

    bias: NDArray[np.float64]
    std: float
    indistinct: tuple[tuple[int, ...], ...]
    seen: NDArray[np.bool_]


class BiasReport(NamedTuple):
    """What `change_bias` did.

    Attributes
    ----------
    before, after
        (T,) energy bias, eV.
    rmse_before, rmse_after
        RMSE of the energy per atom over the frames used, eV; None in mode "set", which does
        not evaluate the model.
    indistinct
        Groups of types that share their bias because the data cannot tell them apart.
    nframes
        Frames used.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    rmse_before: float | None
    rmse_after: float | None
    indistinct: tuple[tuple[int, ...], ...]
    nframes: int


def solve_bias(
    counts: NDArray[np.int64],
    energy: NDArray[np.float64],
    rcond: float | None = None,
    preset: Mapping[int, float] | None = None,
) -> BiasFit:
    """Least-squares energy per element, of minimum norm.

    Parameters
    ----------
    counts
        (n, T) atoms of each type in each frame.
    energy
        (n,) eV.
    rcond
        Singular values below rcond times the largest count as zero; None: eps * max(n, T).
    preset
        Type -> fixed energy, eV; the others are fitted to what remains.

    Returns
    -------
    BiasFit
    """
    a = np.asarray(counts, np.float64)
    ntypes = a.shape[1]
    preset = preset or {}
    bias = np.zeros(ntypes)
    for t, value in preset.items():
        bias[t] = value
    free = np.array([t for t in range(ntypes) if t not in preset], np.int64)
    rest = np.asarray(energy, np.float64) - a @ bias
    indistinct: tuple[tuple[int, ...], ...] = ()
    if len(a) and len(free):
        bias[free] = np.linalg.lstsq(a[:, free], rest, rcond=rcond)[0]
        indistinct = _indistinct(a[:, free], free, rcond)
    residual = np.asarray(energy, np.float64) - a @ bias
    std = float(residual.std()) if len(a) else 0.0
    return BiasFit(bias, std, indistinct, a.sum(0) > 0)


def _indistinct(
    a: NDArray[np.float64], labels: NDArray[np.int64], rcond: float | None
) -> tuple[tuple[int, ...], ...]:
    """Group the columns that a null vector of `a` connects.

    The projector onto the null space couples exactly the columns that can trade energy
    without changing any frame; groups are the connected parts of its nonzero pattern.
    """
    present = np.flatnonzero(a.any(axis=0))
    if not len(present):
        return ()
    triangle = np.linalg.qr(a[:, present], mode="r")
    _, singular, rows = np.linalg.svd(triangle, full_matrices=True)
    cutoff = np.finfo(np.float64).eps * max(a.shape) if rcond is None else rcond
    rank = int(np.count_nonzero(singular > cutoff * singular.max()))
    null = rows[rank:]
    coupled = np.abs(null.T @ null) > 1e-8
    groups, left = [], set(range(len(present)))
    while left:
        group, front = set(), {min(left)}
        while front:
            group |= front
            front = {int(j) for i in front for j in np.flatnonzero(coupled[i])} - group
        left -= group
        if len(group) > 1:
            groups.append(tuple(int(labels[present[i]]) for i in sorted(group)))
    return tuple(groups)


def atomic_energies(model: Potential, batch: Batch) -> Tensor:
    """Atomic energies (N,) in float64 without derivatives, eV."""
    atoms = torch.arange(len(batch.atype), device=batch.atype.device)
    inputs = model.inputs_of(batch, atoms)
    with torch.no_grad():
        return model(neighbor_vectors(batch), model.environment(batch), *inputs)


class _Targets(NamedTuple):
    """What the bias is fitted to: frames (n) with energies, atoms (m) with atomic energies."""

    counts: NDArray[np.int64]
    energy: NDArray[np.float64]
    atype: NDArray[np.int64]
    atom_energy: NDArray[np.float64]


def change_bias(
    model: Potential,
    dataset: Dataset,
    mode: Literal["change", "set"] = "change",
    indices: Sequence[int] | None = None,
) -> BiasReport:
    """Refit the energy bias of a model to labelled data.

    `change` fits E_label - E_model and adds the result to the bias; elements absent from the
    data keep theirs. `set` replaces the bias by the fit to E_label; absent elements become 0.
    `preset_out_bias` pins elements in both modes. Atomic-energy labels, where present, decide
    for their types. The historic `fitting.bias_atom_e` is first merged into `out_bias`, which
    changes no energy, so that both modes speak about the whole bias. Heads share the bias:
    `change` fits it with the first, which is the model that predicts.

    Parameters
    ----------
    model
        Changed in place: `out_bias`, `out_std`.
    dataset
        With the model's type_map.
    mode
        "change" or "set".
    indices
        Frames to use; None means all. Frames without energy are left out.

    Returns
    -------
    BiasReport

    Raises
    ------
    DataError
        If no frame has an energy label.
    ConfigError
        If the type maps differ or the mode is unknown.
    """
    if mode not in ("change", "set"):
        raise ConfigError(f'bias mode is {mode!r}; allowed: "change", "set"')
    require_same_types(model, dataset)
    merge_bias(model)
    chosen = _labelled(dataset, indices)
    before = model.out_bias.cpu().numpy().copy()
    preset = {model.type_map.index(el): e for el, e in model.config.preset_out_bias.items()}
    if mode == "change":
        targets = _residual_targets(model, dataset, chosen)
        # Pinned elements end at their preset value: it is not a shift.
        preset = {t: value - before[t] for t, value in preset.items()}
    else:
        targets = _label_targets(dataset, chosen)
    # Types without energy (atom_exclude_types) take no part in the fit.
    targets.counts[:, list(model.config.atom_exclude_types)] = 0
    fit = solve_bias(targets.counts, targets.energy, model.config.fitting_net.rcond, preset)
    bias, std = _atomic_override(fit, targets, preset)
    after = before + bias if mode == "change" else bias
    model.out_bias.copy_(torch.from_numpy(after))
    model.out_std.copy_(torch.from_numpy(std))
    _warn_indistinct(model.type_map, fit.indistinct)
    errors = (None, None) if mode == "set" else _rmse_pair(targets, bias)
    return BiasReport(before, after, errors[0], errors[1], fit.indistinct, len(chosen))


def _labelled(dataset: Dataset, indices: Sequence[int] | None) -> NDArray[np.int64]:
    """Those of the frames that have an energy."""
    chosen = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
    chosen = chosen[np.isfinite(dataset.energies(chosen))]
    if not len(chosen):
        raise DataError(
            "the energy bias cannot be fitted: none of the frames has an energy label; "
            "give labelled data (energy.npy) or set the bias by hand"
        )
    return chosen


def set_bias_values(model: Potential, values: Mapping[str, float]) -> BiasReport:
    """Set the bias of some elements to given energies, eV; the others keep theirs.

    Raises
    ------
    ConfigError
        If an element is not in the type map or a value is not finite.
    """
    for element, value in values.items():
        if element not in model.type_map:
            raise ConfigError(
                f"bias for {element!r}: not in the model's type_map {list(model.type_map)}"
            )
        if not np.isfinite(value):
            raise ConfigError(f"bias for {element!r} is {value}; a finite energy in eV is needed")
    merge_bias(model)
    before = model.out_bias.cpu().numpy().copy()
    for element, value in values.items():
        model.out_bias[model.type_map.index(element)] = value
    return BiasReport(before, model.out_bias.cpu().numpy().copy(), None, None, (), 0)


def merge_bias(model: Potential) -> None:
    """Move `fitting.bias_atom_e` into `out_bias`; the energies of all heads stay the same."""
    shift = model.fitting.bias_atom_e.clone()
    model.out_bias.add_(shift)
    for fitting in model.fittings:
        fitting.bias_atom_e.sub_(shift)


def _residual_targets(model: Potential, dataset: Dataset, chosen: NDArray[np.int64]) -> _Targets:
    """Labels minus the model's energies."""
    energy, types, atomic = [], [np.zeros(0, np.int64)], [np.zeros(0)]
    for _, frames, batch in iterate_batches(model, dataset, chosen.tolist(), _BATCH_ATOMS):
        predicted = atomic_energies(model, batch)
        totals = batch.coord.new_zeros(batch.nframes).index_add(0, batch.frame, predicted)
        labels = np.array([f.energy for f in frames], np.float64)
        energy.append(labels - totals.cpu().numpy())
        parts = np.split(predicted.cpu().numpy(), np.cumsum([len(f.atype) for f in frames])[:-1])
        for frame, part in zip(frames, parts, strict=True):
            if frame.atom_energy is not None:
                types.append(frame.atype)
                atomic.append(frame.atom_energy - part)
    return _Targets(
        np.array(dataset.counts(chosen)),
        np.concatenate(energy),
        np.concatenate(types),
        np.concatenate(atomic),
    )


def _label_targets(dataset: Dataset, chosen: NDArray[np.int64]) -> _Targets:
    """Collect the labels themselves; frames are read only in systems that have atomic energies."""
    systems = dataset.system_index[chosen]
    types, atomic = [np.zeros(0, np.int64)], [np.zeros(0)]
    for system in np.unique(systems):
        for k in chosen[systems == system]:
            frame: Frame = dataset[int(k)]
            if frame.atom_energy is None:
                break
            types.append(frame.atype)
            atomic.append(frame.atom_energy)
    return _Targets(
        np.array(dataset.counts(chosen)),
        dataset.energies(chosen),
        np.concatenate(types),
        np.concatenate(atomic),
    )


def _atomic_override(
    fit: BiasFit, targets: _Targets, preset: Mapping[int, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bias and std per type; mean and std of atomic-energy labels replace the fit."""
    bias, std = fit.bias.copy(), np.full(len(fit.bias), fit.std)
    for t in np.unique(targets.atype):
        if t < 0 or int(t) in preset:
            continue
        values = targets.atom_energy[targets.atype == t]
        bias[t], std[t] = values.mean(), values.std()
    return bias, std


def _rmse_pair(targets: _Targets, shift: NDArray[np.float64]) -> tuple[float, float]:
    natoms = np.maximum(targets.counts.sum(1), 1)
    before = targets.energy / natoms
    after = (targets.energy - targets.counts @ shift) / natoms
    return float(np.sqrt(np.mean(before**2))), float(np.sqrt(np.mean(after**2)))


def _warn_indistinct(type_map: Sequence[str], groups: tuple[tuple[int, ...], ...]) -> None:
    for group in groups:
        log.warning(
            "energy bias: the compositions cannot tell %s apart, so they share their energy "
            "(minimum-norm solution); add frames with other ratios of these elements or pin "
            "one of them with preset_out_bias",
            ", ".join(type_map[t] for t in group),
        )
