"""The descriptors of compressed models: tables in place of the embedding nets.

For a fixed pair of types, DPA-1's embedding in concat mode and DeepPot-SE's depend on s alone: one
table a pair, or one for each type of neighbours with `type_one_side`. In strip mode it is
N(s) g_t + N(s): one table of N, and the constants g_t. Attention, gate and fitting net are those of
the uncompressed model; so are the derivatives, which see only another G(s).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpa_core.config import DPA1Config, SeE2AConfig
from dpa_core.descriptor import Descriptor, DPA1Descriptor, Environment, SeE2ADescriptor
from dpa_core.tables import EmbeddingTables
from dpa_core.tensorflow import TensorFlowDPA1, TensorFlowSeE2A


class TabulatedDPA1(DPA1Descriptor):
    """DPA-1 on tables.

    Attributes
    ----------
    tables
        Of the embedding (concat), or of N(s) (strip).
    pair_factors
        Strip mode's constants g_t, one row a pair of types as in `strip_factors`.
    """

    pair_factors: Tensor

    def _make_nets(self, config: DPA1Config, generator: torch.Generator) -> None:
        self.tables = _tables(config, self.ntypes)
        if rows := count_pair_factors(config, self.ntypes):
            self.register_buffer("pair_factors", torch.zeros(rows, config.neuron[-1]))

    def _embed(self, s: Tensor, sw: Tensor, types: Tensor, env: Environment) -> Tensor:
        g = self.tables(s, env.atype, env.neighbor_type)
        if self.config.tebd_input_mode == "strip":
            return self._times_pairs(g, self.pair_factors, sw, env)
        return g


class TabulatedSeE2A(SeE2ADescriptor):
    """DeepPot-SE on tables."""

    def _make_nets(self, config: SeE2AConfig, generator: torch.Generator) -> None:
        self.tables = _tables(config, self.ntypes)

    def _embed(self, s: Tensor, centre: Tensor, neighbor: Tensor, mask: Tensor) -> Tensor:
        return self.tables(s, centre, neighbor)


class TabulatedTensorFlowDPA1(TabulatedDPA1, TensorFlowDPA1):
    """DPA-1 on tables, with the formulas of the TensorFlow backend."""


class TabulatedTensorFlowSeE2A(TabulatedSeE2A, TensorFlowSeE2A):
    """DeepPot-SE on tables, with the formulas of the TensorFlow backend."""


def build_tabulated_descriptor(
    config: DPA1Config | SeE2AConfig, type_map: tuple[str, ...], generator: torch.Generator
) -> Descriptor:
    """Make the descriptor of a compressed model; its tables are zero until they are filled."""
    tensorflow = config.convention == "tensorflow"
    if isinstance(config, SeE2AConfig):
        kind = TabulatedTensorFlowSeE2A if tensorflow else TabulatedSeE2A
        return kind(config, type_map, generator)
    mixed = TabulatedTensorFlowDPA1 if tensorflow else TabulatedDPA1
    return mixed(config, type_map, generator)


def count_tables(config: DPA1Config | SeE2AConfig, ntypes: int) -> int:
    """How many tables a compressed model has."""
    if isinstance(config, DPA1Config) and config.tebd_input_mode == "strip":
        return 1
    return _slots(config, ntypes) * (1 if config.type_one_side else ntypes)


def count_pair_factors(config: DPA1Config | SeE2AConfig, ntypes: int) -> int:
    """Rows of strip mode's constants g_t; 0 in other modes."""
    if isinstance(config, SeE2AConfig) or config.tebd_input_mode != "strip":
        return 0
    slots = _slots(config, ntypes)
    return slots if config.type_one_side else slots**2


def table_of_pairs(config: DPA1Config | SeE2AConfig, ntypes: int) -> Tensor:
    """(ntypes, slots) int64: number of the table of each centre's and neighbour's type."""
    rows = rows_of_pairs(config, ntypes)
    return torch.zeros_like(rows) if count_tables(config, ntypes) == 1 else rows


def rows_of_pairs(config: DPA1Config | SeE2AConfig, ntypes: int) -> Tensor:
    """(ntypes, slots) int64: number of what depends on the types of centre and neighbour."""
    slots = _slots(config, ntypes)
    centre, neighbor = torch.arange(ntypes)[:, None], torch.arange(slots).expand(ntypes, -1)
    if config.type_one_side:
        return neighbor.clone()
    if isinstance(config, SeE2AConfig):
        return centre + ntypes * neighbor  # as its nets are numbered
    return centre * slots + neighbor


def _slots(config: DPA1Config | SeE2AConfig, ntypes: int) -> int:
    """Types of slots: with TensorFlow's formulas those without an atom have one of their own."""
    own = isinstance(config, DPA1Config) and config.convention == "tensorflow"
    return ntypes + own


def _tables(config: DPA1Config | SeE2AConfig, ntypes: int) -> EmbeddingTables:
    if config.compression is None:
        raise AssertionError("only compressed models have tables")
    table_of = table_of_pairs(config, ntypes)
    return EmbeddingTables(config.compression, table_of, config.neuron[-1])
