"""From a model to a compressed one: its embedding nets become tables (see dpa_core.tables).

The stride is the largest power of two at which the tables agree with the nets; as the error falls
with the sixth power of the stride (fifth for slopes), little is lost by asking for much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpa_core.config import CompressionConfig, DPA1Config, SeE2AConfig, require_uncompressed
from dpa_core.descriptor import Descriptor, DPA1Descriptor, Environment
from dpa_core.env_mat import switch
from dpa_core.errors import ConfigError
from dpa_core.model import Potential, build_model
from dpa_core.tables import TERMS, quintics
from dpa_core.tabulated import count_tables, table_of_pairs

# C functions of s: (B,) -> (B, C).
Functions = Callable[[Tensor], Tensor]

MIN_DISTANCE = 0.3
TOLERANCE = 1e-8
MAX_BYTES = 2**30
# Finer tables are a sign of an activation with a kink.
_SMALLEST_STRIDE = 2.0**-9
# Where a bin is looked at: the errors of value and slope are largest at 1/2 and at 1/2 ± √5/10.
_INSIDE = (9 / 32, 16 / 32, 23 / 32)


class CompressionReport(NamedTuple):
    """What `compress` made and how good it is.

    Attributes
    ----------
    config
        Domain, stride and bins.
    ntables, nbytes
        Number of tables and their size.
    value_error, slope_error
        Largest difference of table and net inside the bins, and of their slopes, as stored (so in
        single precision rounding is most of it); parts of the largest value and slope.
    """

    config: CompressionConfig
    ntables: int
    nbytes: int
    value_error: float
    slope_error: float


def compress(
    model: Potential,
    *,
    min_distance: float = MIN_DISTANCE,
    tolerance: float = TOLERANCE,
    max_bytes: float = MAX_BYTES,
) -> tuple[Potential, CompressionReport]:
    """Make a model for inference whose embedding nets are tables.

    Parameters
    ----------
    model
        Left as it is.
    min_distance
        Å. The tables reach down to this distance; closer atoms see an embedding that levels off
        within one bin, so energies and forces stay smooth.
    tolerance
        Largest difference of table and net, and of their slopes, as part of the largest value and
        slope.
    max_bytes
        Largest size of all tables together.

    Returns
    -------
    tuple[Potential, CompressionReport]

    Raises
    ------
    ConfigError
        The tables would be too large, cannot reach the tolerance, or a setting is out of range.
    """
    config = model.config.descriptor
    require_uncompressed(model.config, "compress")
    if not 0 < min_distance < config.rcut:
        raise ConfigError(
            f"min_distance is {min_distance:g} Å; it must be above 0 and below rcut "
            f"({config.rcut:g} Å)"
        )
    exact = copy.deepcopy(model.descriptor).cpu().double().requires_grad_(requires_grad=False)
    ends = _ends(exact, min_distance)
    ntables = count_tables(config, exact.ntypes)
    _check_size(config, exact.ntypes, _bins(ends, 1.0, min_distance), max_bytes)
    functions = [_functions(exact, number) for number in range(ntables)]
    stride = 1.0
    while True:
        tables = _bins(ends, stride, min_distance)
        nbytes = _check_size(config, exact.ntypes, tables, max_bytes)
        values, slopes = _worst(functions, tables, tolerance)
        if max(values, slopes) <= tolerance:
            break
        stride /= 2
        if stride < _SMALLEST_STRIDE:
            raise ConfigError(_unreachable(config, tolerance, max(values, slopes)))
    result = _tabulated(model, exact, functions, tables)
    kept = result.get_buffer("descriptor.tables.table")
    stored = [_errors(one, kept[k], tables).tolist() for k, one in enumerate(functions)]
    return result, CompressionReport(tables, ntables, nbytes, *map(max, zip(*stored, strict=True)))


def _ends(descriptor: Descriptor, min_distance: float) -> tuple[float, float]:
    """Smallest and largest s: at rcut and at the smallest distance, and in slots without atom."""
    rcut, rcut_smth = descriptor.radii
    r = torch.tensor(min_distance, dtype=torch.float64)
    closest = switch(r, rcut_smth, rcut) / (r + descriptor.config.env_protection)
    average, deviation = descriptor.davg[:, 0], descriptor.dstd[:, 0]
    # Excluded neighbours have s = 0, or davg (TensorFlow's formulas).
    found = (-average / deviation, (closest - average) / deviation, average, torch.zeros(1))
    s = torch.cat(found)
    return float(s.min()), float(s.max())


def _bins(ends: tuple[float, float], stride: float, min_distance: float) -> CompressionConfig:
    """Bins that begin at multiples of the stride, so that arithmetic on s is exact."""
    first = torch.tensor(ends[0] / stride).floor().item()
    last = torch.tensor(ends[1] / stride).ceil().item()
    return CompressionConfig(
        lower=first * stride,
        stride=stride,
        nbins=max(1, int(last - first)),
        min_distance=min_distance,
    )


def _check_size(
    config: DPA1Config | SeE2AConfig, ntypes: int, tables: CompressionConfig, max_bytes: float
) -> int:
    """Return the size of the tables; refuse it before memory is asked for."""
    ntables = count_tables(config, ntypes)
    width = config.neuron[-1]
    size = 4 if config.precision == "float32" else 8
    nbytes = ntables * tables.nbins * TERMS * width * size
    if nbytes <= max_bytes:
        return nbytes
    smaller = "keep fewer elements (--elements)"
    if isinstance(config, DPA1Config) and config.tebd_input_mode == "concat":
        smaller = 'train with tebd_input_mode "strip" (one table), keep fewer elements (--elements)'
    raise ConfigError(
        f"the tables would take at least {nbytes / 2**30:.3g} GiB: {ntables:,} for {ntypes} "
        f"elements, {tables.nbins} bins, {width} functions; allowed: {max_bytes / 2**30:.3g} GiB. "
        f"Allow more (--max-size), {smaller}, or give a larger --min-distance (now "
        f"{tables.min_distance:g} Å)"
    )


def _unreachable(config: DPA1Config | SeE2AConfig, tolerance: float, error: float) -> str:
    return (
        f"tables cannot follow the embedding net to {tolerance:g}: with bins of "
        f"{_SMALLEST_STRIDE:.2g} they are still {error:.2g} off. The activation "
        f"{config.activation_function!r} may have a kink; allow a larger tolerance or train with "
        "a smooth activation such as tanh"
    )


def _functions(descriptor: Descriptor, number: int) -> Functions:
    """Return what table `number` holds, as a function of s."""
    if not isinstance(descriptor, DPA1Descriptor):
        return lambda s: descriptor.embedding[number](s[:, None])
    if descriptor.embedding_strip is not None:
        return lambda s: descriptor.embedding(s[:, None])
    pairs = table_of_pairs(descriptor.config, descriptor.ntypes)
    centre, neighbor = torch.nonzero(pairs == number)[0]

    def concat(s: Tensor) -> Tensor:
        types = neighbor.expand(1, len(s))
        env = Environment(centre[None], types, centre[None], torch.ones_like(types).bool())
        table, _ = descriptor._types(env)
        return descriptor._embed_concat(s[None, :, None], table, env)[0]

    return concat


def _jet(functions: Functions, s: Tensor) -> Tensor:
    """Values, slopes and curvatures, (3, B, C)."""
    one = torch.ones_like(s)

    def tangent(f: Callable[[Tensor], Any], x: Tensor) -> Any:
        return torch.func.jvp(f, (x,), (one,))

    (value, first), (_, second) = tangent(lambda x: tangent(functions, x), s)
    return torch.stack([value, first, second])


def _coefficients(functions: Functions, tables: CompressionConfig) -> Tensor:
    """One table, (nbins, 6, C) float64."""
    nodes = tables.lower + tables.stride * torch.arange(tables.nbins + 1, dtype=torch.float64)
    return quintics(_jet(functions, nodes), tables.stride)


def _worst(
    functions: list[Functions], tables: CompressionConfig, tolerance: float
) -> tuple[float, float]:
    """Largest relative errors of value and slope; of the first table that fails, if one does."""
    worst = torch.zeros(2, dtype=torch.float64)
    for one in functions:
        worst = worst.maximum(_errors(one, _coefficients(one, tables), tables))
        if worst.max() > tolerance:
            break
    return float(worst[0]), float(worst[1])


def _errors(functions: Functions, table: Tensor, tables: CompressionConfig) -> Tensor:
    """Errors (2,) of value and slope of one table, evaluated in its own precision.

    Relative to the largest value and slope; a slope below the largest value over the width of the
    domain counts as that.
    """
    starts = tables.lower + tables.stride * torch.arange(tables.nbins, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    worst, scale = torch.zeros(2, dtype=torch.float64), torch.full((2,), tiny, dtype=torch.float64)
    for part in _INSIDE:
        x = part * tables.stride
        exact = _jet(functions, starts + x)[:2]
        value = slope = torch.zeros_like(table[:, 0])
        for j in reversed(range(TERMS)):
            slope = slope * x + value
            value = value * x + table[:, j]
        worst = worst.maximum((torch.stack([value, slope]) - exact).abs().amax((1, 2)))
        scale = scale.maximum(exact.abs().amax((1, 2)))
    scale[1] = scale[1].maximum(scale[0] / (tables.nbins * tables.stride))
    return worst / scale


def _tabulated(
    model: Potential, exact: Descriptor, functions: list[Functions], tables: CompressionConfig
) -> Potential:
    """Build the compressed model: tables filled, everything else as it was."""
    descriptor = model.config.descriptor.model_copy(update={"compression": tables})
    result = build_model(model.config.model_copy(update={"descriptor": descriptor}))
    state, old = result.state_dict(), model.state_dict()
    state |= {name: old[name] for name in state.keys() & old.keys()}
    table = state["descriptor.tables.table"]
    for number, one in enumerate(functions):
        table[number] = _coefficients(one, tables)
    if "descriptor.pair_factors" in state and isinstance(exact, DPA1Descriptor):
        nothing = torch.zeros(0, dtype=torch.int64)
        env = Environment(nothing, nothing[:, None], nothing, nothing[:, None].bool())
        types, _ = exact._types(env)
        state["descriptor.pair_factors"] = exact.strip_factors(types)
    result.load_state_dict(state)
    result.provenance = model.provenance
    return result
