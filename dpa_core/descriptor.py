"""The descriptors: DPA-1 (arXiv:2208.08236) and DeepPot-SE (se_e2_a, arXiv:1805.09003).

Both are D = (XᵀX)[:, :axis_neuron] with X = Rᵀ G / nnei, where R (N, M, 4) is the normalised
environment matrix, G (N, M, C) the embedding of the neighbours and nnei = sum(sel).

DeePMD's formulas run over tables padded to `sel`. Here a table is only as wide as the batch
needs; what the missing empty slots would add is included exactly:
an empty slot carries R = -davg/dstd and the type of its frame's first atom, so all empty
slots of an atom are equal and one column, counted `rest` times, stands for them.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dpa_core.attention import Gate, GatedAttention
from dpa_core.config import DPA1Config, SeE2AConfig
from dpa_core.embedding import ResidualLayer, ResidualNet, TypeEmbedding, activation_of
from dpa_core.env_mat import env_rows
from dpa_core.errors import ConfigError


class Environment(NamedTuple):
    """The neighbourhoods of some atoms, without their geometry.

    Attributes
    ----------
    atype
        (N,) types of the centres, virtual atoms mapped to 0.
    neighbor_type
        (N, M) types of the neighbours; in empty slots the type of the frame's first atom.
    pad_type
        (N,) type of the frame's first atom.
    mask
        (N, M) bool, False in empty slots.
    """

    atype: Tensor
    neighbor_type: Tensor
    pad_type: Tensor
    mask: Tensor

    def select(self, atoms: Tensor, width: int) -> Environment:
        """Return the first `width` slots of some of the atoms."""
        return Environment(
            self.atype[atoms],
            self.neighbor_type[atoms, :width],
            self.pad_type[atoms],
            self.mask[atoms, :width],
        )


class _Descriptor(nn.Module):
    """What both descriptors share: statistics, excluded pairs, normalised env matrix."""

    davg: Tensor
    dstd: Tensor
    allowed: Tensor
    # Trailing numbers of the descriptor that are the centre's type and nothing else.
    dim_type = 0
    # See NeighborSpec.
    total_first = True

    def __init__(self, config: DPA1Config | SeE2AConfig, ntypes: int) -> None:
        super().__init__()
        if config.sel == "auto":
            raise ConfigError(
                'descriptor.sel is still "auto"; resolve it with stats.resolve_sel first'
            )
        self.ntypes = ntypes
        sel = config.sel if isinstance(config.sel, tuple) else (config.sel,)
        self.sel: tuple[int, ...] = sel
        self.nnei = max(1, sum(sel))
        self.register_buffer("davg", torch.zeros(ntypes, 4, dtype=torch.float64))
        self.register_buffer("dstd", torch.ones(ntypes, 4, dtype=torch.float64))
        allowed = pair_filter(config.exclude_types, ntypes)
        self.register_buffer("allowed", allowed, persistent=False)
        self.dtype = getattr(torch, config.precision)
        # Where the switch ends and where it starts.
        self.radii = (config.rcut, config.rcut_smth)

    def _geometry(
        self, vectors: Tensor, env: Environment, config: DPA1Config | SeE2AConfig
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised rows (N, M, 4), switch, directions and the mask of unexcluded slots."""
        rows, sw, direction = env_rows(vectors, env.mask, *self.radii, config.env_protection)
        rows = (rows - self.davg[env.atype, None]) / self.dstd[env.atype, None]
        mask = env.mask
        if config.exclude_types:
            # Only occupied slots are zeroed; empty ones keep -davg/dstd (DeePMD's order).
            allowed = self.allowed[env.atype[:, None], env.neighbor_type]
            rows = rows * (allowed | ~mask)[..., None]
            mask = mask & allowed
            sw = sw * allowed
        return rows.to(self.dtype), sw.to(self.dtype), direction.to(self.dtype), mask

    @staticmethod
    def _contract(x: Tensor, axis_neuron: int) -> Tensor:
        """X (N, 4, C) -> D (N, C * axis_neuron), C slow."""
        return (x.mT @ x[..., :axis_neuron]).flatten(1)


class DPA1Descriptor(_Descriptor):
    """DPA-1: one embedding net for all elements, then gated attention.

    Parameters
    ----------
    config
        With a resolved `sel`.
    type_map
        Elements.
    generator
        Source of the initial weights.
    """

    mixed_types = True
    # Types that only slots have (see dpa_core.tensorflow).
    extra_types = 0

    def __init__(
        self, config: DPA1Config, type_map: tuple[str, ...], generator: torch.Generator
    ) -> None:
        super().__init__(config, len(type_map))
        self.config = config
        tebd = config.tebd_dim
        self.type_embedding = TypeEmbedding(
            type_map, tebd, use_econf=config.use_econf_tebd, use_bias=config.use_tebd_bias,
            generator=generator,
        )  # fmt: skip
        self._make_nets(config, generator)
        self.attention = GatedAttention(config, generator)
        self.dim_out = config.neuron[-1] * config.axis_neuron
        if config.concat_output_tebd:
            self.dim_type = tebd
            self.dim_out += tebd
        self.to(self.dtype)
        for name in ("davg", "dstd"):
            setattr(self, name, getattr(self, name).double())

    def _make_nets(self, config: DPA1Config, generator: torch.Generator) -> None:
        width = config.tebd_dim if config.type_one_side else 2 * config.tebd_dim
        net = (config.neuron, activation_of(config), config.resnet_dt, generator)
        strip = config.tebd_input_mode == "strip"
        self.embedding = ResidualNet(1 if strip else 1 + width, *net)
        self.embedding_strip = ResidualNet(width, *net) if strip else None

    def forward(self, vectors: Tensor, env: Environment) -> Tensor:
        """Neighbour vectors (N, M, 3) float64 -> descriptor (N, dim_out).

        Requires M <= sel.
        """
        config = self.config
        rest = self.nnei - env.mask.shape[1]
        if rest > 0:
            vectors, env = _append_empty_column(vectors, env)
        types, env = self._types(env)
        rows, sw, direction, mask = self._geometry(vectors, env, config)
        g = self._embed(rows[..., :1], sw, types, env)
        if config.attn_layer:
            cosines = direction @ direction.mT if config.attn_dotr else None
            g = self.attention(g, Gate(sw, mask, cosines, max(rest, 1)))
        if rest > 1:
            weight = rows.new_ones(rows.shape[1])
            weight[-1] = rest
            rows = rows * weight[:, None]
        d = self._contract(rows.mT @ g / self.nnei, config.axis_neuron)
        if config.concat_output_tebd:
            d = torch.cat([d, types[env.atype]], dim=-1)
        return d

    def _types(self, env: Environment) -> tuple[Tensor, Environment]:
        """Table of type embeddings, and the types of slots as rows of it."""
        return self.type_embedding(), env

    def _embed(self, s: Tensor, sw: Tensor, types: Tensor, env: Environment) -> Tensor:
        """Embedding net on [s, T_j, T_i] (concat), or N(s) g_t + N(s) (strip)."""
        if self.embedding_strip is None:
            return self._embed_concat(s, types, env)
        return self._times_pairs(self.embedding(s), self.strip_factors(types), sw, env)

    def strip_factors(self, types: Tensor) -> Tensor:
        """Strip mode's g_t = N'(T_j, T_i): row t_j, or t_i * len(types) + t_j if two-sided."""
        net = cast(ResidualNet, self.embedding_strip)
        if self.config.type_one_side:
            return net(types)
        neighbor = types.expand(len(types), *types.shape)
        return net(torch.cat([neighbor, neighbor.transpose(0, 1)], -1).flatten(0, 1))

    def _times_pairs(self, g_s: Tensor, factors: Tensor, sw: Tensor, env: Environment) -> Tensor:
        """Strip mode: N(s) g_t + N(s)."""
        row = env.neighbor_type
        if not self.config.type_one_side:
            row = env.atype[:, None] * (self.ntypes + self.extra_types) + row
        g_t = factors[row]
        if self.config.smooth_type_embedding:
            g_t = g_t * sw[..., None]
        return g_s * g_t + g_s

    def _embed_concat(self, s: Tensor, types: Tensor, env: Environment) -> Tensor:
        first = cast(ResidualLayer, self.embedding.layers[0])
        bias = 0.0 if first.bias is None else first.bias
        tebd = self.config.tebd_dim
        # The type part of the first layer depends on the types alone: tables, not products.
        neighbor_part = (types @ first.weight[1 : 1 + tebd])[env.neighbor_type]
        linear = s * first.weight[0] + neighbor_part
        if self.config.type_one_side:
            linear = linear + bias
        else:
            centre_part = types @ first.weight[1 + tebd :] + bias
            linear = linear + centre_part[env.atype][:, None]
        x = s
        if first.copies:
            parts = [s, types[env.neighbor_type]]
            if not self.config.type_one_side:
                parts.append(types[env.atype][:, None].expand_as(parts[1]))
            x = torch.cat(parts, dim=-1)
        g = first.finish(linear, x)
        for layer in self.embedding.layers[1:]:
            g = layer(g)
        return g


class SeE2ADescriptor(_Descriptor):
    """DeepPot-SE: one embedding net per (centre, neighbour) pair of types.

    Nets are listed as in DeePMD's files: index = t_centre + ntypes * t_neighbour, or
    t_neighbour alone with `type_one_side`.
    """

    mixed_types = False

    def __init__(
        self, config: SeE2AConfig, type_map: tuple[str, ...], generator: torch.Generator
    ) -> None:
        ntypes = len(type_map)
        super().__init__(config, ntypes)
        self.config = config
        self._make_nets(config, generator)
        self.dim_out = config.neuron[-1] * config.axis_neuron
        self.to(self.dtype)
        for name in ("davg", "dstd"):
            setattr(self, name, getattr(self, name).double())

    def _make_nets(self, config: SeE2AConfig, generator: torch.Generator) -> None:
        count = self.ntypes if config.type_one_side else self.ntypes**2
        net = (config.neuron, activation_of(config), config.resnet_dt, generator)
        self.embedding = nn.ModuleList(ResidualNet(1, *net) for _ in range(count))

    def forward(self, vectors: Tensor, env: Environment) -> Tensor:
        """Neighbour vectors (N, M, 3) float64 -> descriptor (N, dim_out)."""
        rows, _, _, mask = self._geometry(vectors, env, self.config)
        rows = rows * mask[..., None]
        x = rows.mT @ self._embed(rows[..., :1], env.atype, env.neighbor_type, mask)
        if bool(self.davg.any()):
            x = x + self._empty_slots(env)
        return self._contract(x / self.nnei, self.config.axis_neuron)

    def _embed(self, s: Tensor, centre: Tensor, neighbor: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (N, M, C) of s (N, M, 1), types (N,) and (N, M); those masked are not used."""
        net_index = self._net_index(centre[:, None], neighbor)
        return apply_by_type(self.embedding, s, torch.where(mask, net_index, -1))

    def _net_index(self, centre: Tensor, neighbor: Tensor) -> Tensor:
        return neighbor if self.config.type_one_side else centre + self.ntypes * neighbor

    def _empty_counts(self, env: Environment) -> Tensor:
        """How many slots of every type's block are empty, (N, ntypes)."""
        occupied = torch.stack(
            [(env.mask & (env.neighbor_type == t)).sum(-1) for t in range(self.ntypes)], dim=-1
        )
        return torch.tensor(self.sel, device=env.atype.device) - occupied

    def _empty_slots(self, env: Environment) -> Tensor:
        """Return what the empty slots of every type's block add to RᵀG, (N, 4, C)."""
        types = torch.arange(self.ntypes, device=env.atype.device)
        every = types.expand(self.ntypes, -1)
        empty = self._empty_counts(env).to(self.dtype)
        pad_rows = (-self.davg / self.dstd).to(self.dtype)
        s = pad_rows[:, None, :1].expand(-1, self.ntypes, -1).contiguous()
        g_pad = self._embed(s, types, every, torch.ones_like(every, dtype=torch.bool))
        weighted = torch.einsum("nt,ntc->nc", empty, g_pad[env.atype])
        return pad_rows[env.atype][..., None] * weighted[:, None, :]


Descriptor = DPA1Descriptor | SeE2ADescriptor


def build_descriptor(
    config: DPA1Config | SeE2AConfig, type_map: tuple[str, ...], generator: torch.Generator
) -> Descriptor:
    """Make the descriptor a configuration asks for."""
    if config.compression is not None:
        from dpa_core.tabulated import build_tabulated_descriptor

        return build_tabulated_descriptor(config, type_map, generator)
    if config.convention == "tensorflow":
        from dpa_core.tensorflow import build_tensorflow_descriptor

        return build_tensorflow_descriptor(config, type_map, generator)
    if isinstance(config, SeE2AConfig):
        return SeE2ADescriptor(config, type_map, generator)
    return DPA1Descriptor(config, type_map, generator)


def pair_filter(excluded: tuple[tuple[int, int], ...], ntypes: int) -> Tensor:
    """(ntypes, ntypes) bool, False for excluded pairs, symmetric."""
    allowed = torch.ones(ntypes, ntypes, dtype=torch.bool)
    for a, b in excluded:
        allowed[a, b] = allowed[b, a] = False
    return allowed


def apply_by_type(nets: nn.ModuleList, x: Tensor, which: Tensor) -> Tensor:
    """Apply nets[which] to each row of x; rows with which < 0 give zeros.

    Parameters
    ----------
    nets
        Networks of equal output width.
    x
        (..., in).
    which
        (...) int64.
    """
    flat, which = x.reshape(-1, x.shape[-1]), which.reshape(-1)
    order = torch.argsort(which, stable=True)
    counts = torch.bincount(which + 1, minlength=len(nets) + 1).tolist()
    position = counts[0]
    outputs = []
    for net, count in zip(nets, counts[1:], strict=True):
        if count:
            outputs.append(net(flat[order[position : position + count]]))
            position += count
    if not outputs:
        width = nets[0].layers[-1].weight.shape[1]  # type: ignore[union-attr, index]
        return x.new_zeros(*x.shape[:-1], width)
    y = torch.cat(outputs)
    result = y.new_zeros(len(flat), y.shape[-1]).index_copy(0, order[counts[0] :], y)
    return result.reshape(*x.shape[:-1], -1)


def _append_empty_column(vectors: Tensor, env: Environment) -> tuple[Tensor, Environment]:
    n = len(env.atype)
    return (
        torch.cat([vectors, vectors.new_zeros(n, 1, 3)], dim=1),
        env._replace(
            neighbor_type=torch.cat([env.neighbor_type, env.pad_type[:, None]], dim=1),
            mask=torch.cat([env.mask, env.mask.new_zeros(n, 1)], dim=1),
        ),
    )
