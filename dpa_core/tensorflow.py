"""The descriptors with the formulas of DeePMD-kit's TensorFlow backend.

Most models mean the same in both backends. Where they do not, a model read from a TensorFlow
graph keeps its own formulas (`convention: tensorflow`):

* an empty slot has a type of its own, whose embedding is zero;
* r̂_j is R_j[1:4] / max(|R_j[1:4]|, 1e-6) with R normalised, so that the gate of the attention
  fades within some 0.01 Å of the cutoff;
* the switch of smooth attention is 1 - (1 - rcut_smth w(r)/r)³, between 0 and 1;
* smooth attention puts the radial davg into all four numbers of an excluded neighbour's row;
* DeepPot-SE leaves out the empty slots of excluded pairs too, and where `sel` is full it keeps
  the nearest of each type, not first the nearest of all;
* the operator that makes the environment matrix knows its radii in single precision.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpa_core.attention import FLOOR
from dpa_core.config import DPA1Config, ModelConfig, SeE2AConfig
from dpa_core.descriptor import DPA1Descriptor, Environment, SeE2ADescriptor
from dpa_core.embedding import activation_of
from dpa_core.env_mat import env_rows
from dpa_core.errors import ConfigError


class TensorFlowDPA1(DPA1Descriptor):
    """`se_atten` and `se_atten_v2` of the TensorFlow backend."""

    extra_types = 1

    def __init__(
        self, config: DPA1Config, type_map: tuple[str, ...], generator: torch.Generator
    ) -> None:
        super().__init__(config, type_map, generator)
        self.radii = operator_radii(config.rcut, config.rcut_smth)
        # The type of empty slots; it is excluded from nothing.
        self.allowed = F.pad(self.allowed, (0, 1), value=True)

    def _types(self, env: Environment) -> tuple[Tensor, Environment]:
        slots = torch.where(env.mask, env.neighbor_type, self.ntypes)
        return F.pad(self.type_embedding(), (0, 0, 0, 1)), env._replace(neighbor_type=slots)

    def _geometry(
        self, vectors: Tensor, env: Environment, config: DPA1Config | SeE2AConfig
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, _, _ = env_rows(vectors, env.mask, *self.radii, config.env_protection)
        sw = (1 - (1 - config.rcut_smth * rows[..., 0]) ** 3).clamp(0, 1)
        average = self.davg[env.atype, None]
        rows = (rows - average) / self.dstd[env.atype, None]
        mask = env.mask
        if config.exclude_types:
            allowed = self.allowed[env.atype[:, None], env.neighbor_type]
            rest = average[..., :1] if self.config.smooth_type_embedding else 0.0
            rows = torch.where(allowed[..., None], rows, rest)
            mask = mask & allowed
            sw = sw * allowed
        rows = rows.to(self.dtype)
        squares = rows[..., 1:].square().sum(-1, keepdim=True)
        direction = rows[..., 1:] * squares.clamp(min=FLOOR["tensorflow"]).rsqrt()
        return rows, sw.to(self.dtype), direction, mask


class TensorFlowSeE2A(SeE2ADescriptor):
    """`se_e2_a` of the TensorFlow backend."""

    total_first = False

    def __init__(
        self, config: SeE2AConfig, type_map: tuple[str, ...], generator: torch.Generator
    ) -> None:
        super().__init__(config, type_map, generator)
        self.radii = operator_radii(config.rcut, config.rcut_smth)

    def _empty_counts(self, env: Environment) -> Tensor:
        return super()._empty_counts(env) * self.allowed[env.atype]


def build_tensorflow_descriptor(
    config: DPA1Config | SeE2AConfig, type_map: tuple[str, ...], generator: torch.Generator
) -> DPA1Descriptor | SeE2ADescriptor:
    """Make the descriptor a configuration with `convention: tensorflow` asks for."""
    if isinstance(config, SeE2AConfig):
        return TensorFlowSeE2A(config, type_map, generator)
    return TensorFlowDPA1(config, type_map, generator)


def as_pytorch(config: ModelConfig, *, davg_zero: bool) -> ModelConfig | None:
    """Return the configuration that gives the same energies with PyTorch's formulas.

    For DeepPot-SE they agree as long as no `sel` overflows.

    Parameters
    ----------
    config
        Of any convention.
    davg_zero
        Whether the descriptor's davg is zero.

    Returns
    -------
    ModelConfig
        None if there is none.
    """
    descriptor, fitting = config.descriptor, config.fitting_net
    if "tensorflow" not in (descriptor.convention, fitting.convention):
        return config
    single = operator_radii(descriptor.rcut, descriptor.rcut_smth)
    gelu = activation_of(descriptor) == "gelu_single" and descriptor.precision == "float64"
    own = isinstance(descriptor, DPA1Config) or (bool(descriptor.exclude_types) and not davg_zero)
    if fitting.convention == "tensorflow" or gelu or own:
        return None
    update = {"convention": "pytorch", "rcut": single[0], "rcut_smth": single[1]}
    return config.model_copy(update={"descriptor": descriptor.model_copy(update=update)})


def under_pytorch(config: ModelConfig) -> ModelConfig:
    """Return the configuration of the same weights under PyTorch's formulas.

    Energies and forces change: by nothing or by rounding where `as_pytorch` finds the two
    equal, else by how far the formulas are apart. It is for those who want to run such a model
    where only PyTorch's formulas are known, or to train it further there.

    Raises
    ------
    ConfigError
        If the weights belong to layers that PyTorch's formulas do not have.
    """
    descriptor, fitting = config.descriptor, config.fitting_net
    if fitting.convention == "tensorflow":
        raise ConfigError(
            f"fitting_net.neuron is {list(fitting.neuron)}: with these widths the PyTorch backend "
            "has skip connections that the TensorFlow backend does not have, so the weights "
            "cannot be taken over"
        )
    radii = operator_radii(descriptor.rcut, descriptor.rcut_smth)
    update = {"convention": "pytorch", "rcut": radii[0], "rcut_smth": radii[1]}
    return config.model_copy(update={"descriptor": descriptor.model_copy(update=update)})


def operator_radii(rcut: float, rcut_smth: float) -> tuple[float, float]:
    """Where the switch of TensorFlow's operator really ends and starts, Å.

    It takes both radii, and their difference, in single precision.
    """
    start = np.float32(rcut_smth)
    width = np.float32(rcut) - start
    return float(start) + float(width), float(start)


def own_skips(width_in: int, widths: list[int]) -> bool:
    """Whether skip connections of a fitting net of these widths differ from PyTorch's."""
    ins = [width_in, *widths]
    pairs = list(zip(ins, widths, strict=False))
    return any(o == 2 * i for i, o in pairs) or bool(pairs and pairs[0][0] == pairs[0][1])
