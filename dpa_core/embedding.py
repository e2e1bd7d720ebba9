"""Layers with DeePMD's skip connections, the networks made of them, and the type embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpa_core.config import DPA1Config, FittingConfig, SeE2AConfig
from dpa_core.electrons import electron_configurations


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Activation function by DeePMD's name, case-insensitive (see config.check_activation)."""
    base, _, threshold = name.lower().partition(":")
    if base in ("silut", "custom_silu"):
        limit = float(threshold or 3.0)
        return lambda x: silut(x, limit)
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": torch.tanh,
        "relu": F.relu,
        "relu6": F.relu6,
        "softplus": F.softplus,
        "sigmoid": torch.sigmoid,
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_tf": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_single": gelu_single,
        "silu": F.silu,
        "linear": lambda x: x,
        "none": lambda x: x,
    }
    return named[base]


def activation_of(config: DPA1Config | SeE2AConfig | FittingConfig) -> str:
    """Name of a net's activation; TensorFlow's own gelu has one constant in single precision."""
    name = config.activation_function
    single = config.convention == "tensorflow" and name.lower() == "gelu_tf"
    return "gelu_single" if single else name


def gelu_single(x: Tensor) -> Tensor:
    """GELU by tanh as `tensorflow.nn.gelu` has it."""
    cubic = 0.04471499845385551  # 0.044715 in single precision
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + cubic * x**3)))


def silut(x: Tensor, threshold: float) -> Tensor:
    """SiLU below the threshold, continued above it by a tanh of equal value and slope."""
    gate = 1 / (1 + math.exp(-threshold))
    value, slope = threshold * gate, gate * (1 + threshold * (1 - gate))
    above = torch.tanh(slope * (x - threshold)) + value
    return torch.where(x >= threshold, above, F.silu(x))


class ResidualLayer(nn.Module):
    """y = act(x W + b) [* idt], plus x or [x, x] where the widths allow it.

    The skip connection exists whenever out == in or out == 2 in (the first layer of a net
    included), `idt` only together with it. Weights are stored (in, out).
    """

    idt: nn.Parameter | None

    def __init__(
        self,
        width_in: int,
        width_out: int,
        activation_function: str,
        resnet_dt: bool,
        generator: torch.Generator,
        *,
        skip: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.width_in, self.width_out = width_in, width_out
        self.act = activation(activation_function)
        self.copies = width_out // width_in if skip and width_out in (width_in, 2 * width_in) else 0
        std = 1 / math.sqrt(width_in + width_out)
        self.weight = nn.Parameter(_normal((width_in, width_out), 0.0, std, generator))
        self.bias = nn.Parameter(_normal((width_out,), 0.0, 1.0, generator)) if bias else None
        has_idt = resnet_dt and self.copies > 0
        self.idt = nn.Parameter(_normal((width_out,), 0.1, 1e-3, generator)) if has_idt else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.finish(F.linear(x, self.weight.T, self.bias), x)

    def finish(self, linear: Tensor, x: Tensor) -> Tensor:
        """From x W + b to the layer's output."""
        y = self.act(linear)
        if self.idt is not None:
            y = y * self.idt
        if self.copies == 1:
            y = y + x
        elif self.copies == 2:
            y = y + torch.cat([x, x], dim=-1)
        return y


class ResidualNet(nn.Module):
    """A chain of `ResidualLayer`s.

    Parameters
    ----------
    width_in, widths
        Input width and the widths of the layers.
    linear_out
        If given, a last linear layer of this width without skip or activation.
    equal_skips
        Skip connections only between two layers of equal width (fitting nets of TensorFlow).
    """

    def __init__(
        self,
        width_in: int,
        widths: Sequence[int],
        activation_function: str,
        resnet_dt: bool,
        generator: torch.Generator,
        linear_out: int | None = None,
        *,
        equal_skips: bool = False,
    ) -> None:
        super().__init__()
        ins = [width_in, *widths]
        layers = [
            ResidualLayer(
                i, o, activation_function, resnet_dt, generator,
                skip=not equal_skips or (k > 0 and i == o),
            )
            for k, (i, o) in enumerate(pairwise(ins))
        ]  # fmt: skip
        if linear_out is not None:
            layers.append(
                ResidualLayer(
                    ins[-1], linear_out, "linear", resnet_dt=False, generator=generator, skip=False
                )
            )
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width_in) -> (..., widths[-1] or linear_out)."""
        for layer in self.layers:
            x = layer(x)
        return x


class TypeEmbedding(nn.Module):
    """One residual linear layer on one-hot types or electron configurations.

    T = W (+ b), plus I where tebd_dim == ntypes, plus [I, I] where tebd_dim == 2 ntypes
    (reference 1.5: the layer carries DeePMD's skip connection).
    """

    inputs: Tensor

    def __init__(
        self,
        type_map: Sequence[str],
        tebd_dim: int,
        *,
        use_econf: bool,
        use_bias: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        ntypes = len(type_map)
        inputs = electron_configurations(type_map) if use_econf else torch.eye(ntypes)
        self.register_buffer("inputs", inputs.double(), persistent=False)
        self.layer = ResidualLayer(
            inputs.shape[1], tebd_dim, "linear", resnet_dt=False, generator=generator, bias=use_bias
        )

    def forward(self) -> Tensor:
        """(ntypes, tebd_dim), in the layer's precision."""
        return self.layer(self.inputs.to(self.layer.weight.dtype))


def _normal(shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator) -> Tensor:
    # Drawn in float64 so that a seed means the same weights in either precision.
    return torch.empty(shape, dtype=torch.float64).normal_(mean, std, generator=generator)
