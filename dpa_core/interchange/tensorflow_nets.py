"""Networks in a frozen graph: their constants by name, their activation by what follows them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpa_core.interchange.tensorflow_graph import Graph

ENERGY = "o_atom_energy"
PRECISIONS = {"float32": "float32", "float64": "float64"}


class Layer(NamedTuple):
    """Constants of one layer: (in, out), (out,) and perhaps (out,)."""

    matrix: NDArray[Any]
    bias: NDArray[Any] | None
    idt: NDArray[Any] | None


class Net(NamedTuple):
    """A chain of layers and the activation behind each but the final one."""

    layers: list[Layer]
    activation: str
    precision: str

    @property
    def own_gelu(self) -> bool:
        """Whether the activation differs from PyTorch's in double precision."""
        return self.activation == "gelu_tf" and self.precision == "float64"

    @property
    def width_in(self) -> int:
        """Numbers the net reads."""
        return int(self.layers[0].matrix.shape[0])

    @property
    def widths(self) -> list[int]:
        """Widths of the layers."""
        return [int(layer.matrix.shape[1]) for layer in self.layers]


class Forward:
    """The part of a graph that leads to the energy, and which of its constants were read.

    Parameters
    ----------
    graph
        With a node `o_atom_energy`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = graph.order(ENERGY)
        self.names = set(self.order)
        self.users: dict[str, list[str]] = {}
        self._taken: set[str] = set()
        for name in self.order:
            for source, _ in graph.inputs(name):
                self.users.setdefault(source, []).append(name)

    def op(self, name: str) -> str:
        """Operation of a node."""
        return self.graph.nodes[name].op

    def with_op(self, *ops: str) -> list[str]:
        """Nodes of these operations."""
        return [name for name in self.order if self.op(name) in ops]

    def take(self, name: str) -> NDArray[Any] | None:
        """Return a constant and note that it was read; None if the energy needs no such."""
        if name not in self.names or self.op(name) != "Const":
            return None
        self._taken.add(name)
        return self.graph.array(name)

    def need(self, name: str) -> NDArray[Any]:
        """Do as `take`, but a missing constant is an error."""
        value = self.take(name)
        if value is None:
            raise self.graph.error(
                f"the graph has no constant {name!r} that leads to the energy; it is not a model "
                "of se_atten, se_atten_v2 or se_e2_a, or written by a version that is not known"
            )
        return value

    def take_all(self, target: str) -> None:
        """Note that everything a node depends on was read."""
        self._taken.update(self.graph.order(target))

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """Match the whole names of constants."""
        matches = (re.fullmatch(pattern, n) for n in self.order if self.op(n) == "Const")
        return [m for m in matches if m]

    def leftover(self) -> list[str]:
        """Arrays of real numbers the energy depends on that nobody has read."""
        rest = [n for n in self.order if self.op(n) == "Const" and n not in self._taken]
        return [n for n in rest if _is_array(self.graph, n)]

    def behind(self, name: str) -> list[str]:
        """Nodes that use a node, Identity, Cast and Reshape skipped."""
        found: list[str] = []
        stack = [name]
        while stack:
            for user in self.users.get(stack.pop(), []):
                through = self.op(user) in ("Identity", "ReadVariableOp", "Cast", "Reshape")
                (stack if through else found).append(user)
        return found


def _is_array(graph: Graph, name: str) -> bool:
    value = graph.nodes[name].attr("value")
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim * value.size > 0


def read_net(forward: Forward, names: str, final: str | None = None) -> Net | None:
    """Read layers 1, 2, ... of a net, and then its final layer.

    Parameters
    ----------
    forward
        The graph.
    names, final
        Names of constants with places for `kind` (matrix, bias or idt), `k` (1, 2, ...) and `n`
        (0, 1, ...).

    Returns
    -------
    Net
        None if there is no first layer.
    """
    layers: list[Layer] = []
    activations: list[str] = []
    while (layer := _layer(forward, names, len(layers))) is not None:
        activations.append(activation_behind(forward, _name(names, "matrix", len(layers))))
        layers.append(layer)
    first = _name(names, "matrix", 0)
    if not layers:
        return None
    if final is not None:
        last = _layer(forward, final, 0)
        if last is None:
            raise forward.graph.error(f"there is no {_name(final, 'matrix', 0)!r}")
        layers.append(last)
    if len(set(activations)) != 1:
        raise forward.graph.error(f"the net of {first!r} has activations {activations}")
    return Net(layers, activations[0], _precision(forward, layers, first))


def _name(names: str, kind: str, n: int) -> str:
    return names.format(kind=kind, k=n + 1, n=n)


def _layer(forward: Forward, names: str, n: int) -> Layer | None:
    matrix, bias, idt = (forward.take(_name(names, kind, n)) for kind in ("matrix", "bias", "idt"))
    if matrix is None:
        return None
    shapes = [value.shape for value in (bias, idt) if value is not None]
    if matrix.ndim != 2 or any(np.prod(shape) != matrix.shape[1] for shape in shapes):
        raise forward.graph.error(
            f"{_name(names, 'matrix', n)!r} has shape {matrix.shape}, what belongs to it {shapes}"
        )
    return Layer(
        matrix,
        None if bias is None else bias.reshape(-1),
        None if idt is None else idt.reshape(-1),
    )


def _precision(forward: Forward, layers: list[Layer], name: str) -> str:
    kinds = {a.dtype.name for layer in layers for a in layer if a is not None}
    if len(kinds) != 1 or not kinds <= PRECISIONS.keys():
        raise forward.graph.error(
            f"the net of {name!r} is in {', '.join(sorted(kinds))}; supported is one of "
            f"{', '.join(PRECISIONS)} for a whole net (mixed precision is not)"
        )
    return PRECISIONS[kinds.pop()]


def activation_behind(forward: Forward, matrix: str) -> str:
    """Name of the activation that follows the product with a matrix."""
    products = [n for n in forward.behind(matrix) if forward.op(n) == "MatMul"]
    if not products:
        raise forward.graph.error(f"nothing is multiplied by {matrix!r}")
    after = products[0]
    biased = [n for n in forward.behind(after) if forward.op(n) == "BiasAdd"]
    after = biased[0] if biased else after
    users = forward.behind(after)
    ops = {forward.op(n) for n in users}
    simple = {
        "Tanh": "tanh", "Relu": "relu", "Relu6": "relu6", "Softplus": "softplus",
        "Gelu": "gelu", "GeluCustom": "gelu", "Sigmoid": "sigmoid",
    }  # fmt: skip
    if len(ops) == 1 and (name := simple.get(next(iter(ops)))):
        return name
    if "Less" in ops and "Sigmoid" in ops:
        (less,) = [n for n in users if forward.op(n) == "Less"][:1]
        return f"silut:{forward.graph.scalar(forward.graph.input(less, 1))}"
    if ops == {"Mul", "Sigmoid"}:
        return "silu"
    if "Pow" in ops:
        return "gelu_tf"
    return "linear"


def tensors_of(net: Net, prefix: str) -> dict[str, Tensor]:
    """Tensors of a net under the names of `ResidualNet`."""
    result = {}
    for k, layer in enumerate(net.layers):
        for name, value in (("weight", layer.matrix), ("bias", layer.bias), ("idt", layer.idt)):
            if value is not None:
                result[f"{prefix}.layers.{k}.{name}"] = tensor(value)
    return result


def tensor(value: NDArray[Any], dtype: str | None = None) -> Tensor:
    """Copy an array of the file."""
    kind = np.dtype(dtype or value.dtype.name)
    return torch.from_numpy(np.array(value, kind, order="C", copy=True))
