"""A frozen graph: what leads to a node, its constants, and the value of a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import ModelFileError
from dpa_core.interchange.protobuf import GraphFile, Node
from dpa_core.interchange.tensorflow_ops import OPS

# Bounds of `value`: numbers in one result, multiplications in all.
MAX_VALUE = 2**24
MAX_WORK = 1e10


class Graph:
    """Nodes of a frozen graph.

    Parameters
    ----------
    path
        The `.pb` file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.file = GraphFile(path)
        self.nodes = self.file.nodes()
        self._arrays: dict[str, NDArray[Any]] = {}

    def error(self, what: str) -> ModelFileError:
        """Make the error of a file that cannot be read exactly."""
        return ModelFileError(f"{self.path}: {what}")

    def order(self, target: str, stop: Iterable[str] = ()) -> list[str]:
        """`target` and all it depends on, every node after its inputs.

        Parameters
        ----------
        target
            A node.
        stop
            Nodes whose inputs are not followed.
        """
        stops, done, order = set(stop), set(), []
        stack = [(target, False)]
        open_: set[str] = set()
        while stack:
            name, leave = stack.pop()
            if leave:
                open_.discard(name)
                done.add(name)
                order.append(name)
                continue
            if name in done:
                continue
            if name in open_:
                raise self.file.error(f"node {name!r} depends on itself")
            if name not in self.nodes:
                raise self.file.error(f"node {name!r} is missing")
            open_.add(name)
            stack.append((name, True))
            if name not in stops:
                stack += [(n, False) for n, _ in self.inputs(name) if n not in done]
        return order

    def inputs(self, name: str) -> list[tuple[str, int]]:
        """Nodes and output numbers a node reads; control inputs are left out."""
        result = []
        for text in self.nodes[name].inputs:
            if not text.startswith("^"):
                source, _, number = text.partition(":")
                result.append((source, int(number) if number.isdecimal() else 0))
        return result

    def input(self, name: str, k: int) -> str:
        """Return the node that a node reads as its input `k`."""
        inputs = self.inputs(name)
        if k >= len(inputs) or inputs[k][0] not in self.nodes:
            raise self.file.error(f"node {name!r} ({self.nodes[name].op}) lacks input {k}")
        return inputs[k][0]

    def scalar(self, name: str) -> float:
        """Return the one number a node amounts to, which must be finite."""
        value = np.asarray(self.value(name))
        if value.size != 1 or value.dtype.kind not in "fiub" or not np.isfinite(value).all():
            raise self.error(f"node {name!r} is {value.reshape(-1)[:3]}, expected one number")
        number = value.reshape(-1)[0]
        # 0.001 in single precision stands for 0.001, not for 0.00100000005.
        return float(str(number)) if value.dtype == np.float32 else float(number)

    def array(self, name: str) -> NDArray[Any]:
        """Return the array of a constant node."""
        if name not in self._arrays:
            value = self.nodes[name].attr("value")
            if not isinstance(value, np.ndarray):
                raise self.error(f"constant {name!r} holds no numbers")
            self._arrays[name] = value
        return self._arrays[name]

    def text(self, name: str) -> str | None:
        """Text of a constant node; None if there is no such node."""
        if name not in self.nodes:
            return None
        value = self.nodes[name].attr("value")
        if not isinstance(value, list) or len(value) != 1:
            raise self.error(f"constant {name!r} holds no text")
        try:
            return str(value[0].decode())
        except UnicodeDecodeError as error:
            raise self.error(f"constant {name!r} is not UTF-8") from error

    def source(self, name: str) -> str:
        """Node behind Identity and Cast nodes: the constant a layer reads."""
        for _ in range(20):
            if self.nodes[name].op not in ("Identity", "ReadVariableOp", "Cast"):
                break
            name = self.input(name, 0)
        return name

    def value(
        self,
        target: str,
        feeds: Mapping[str, tuple[Any, ...]] | None = None,
        *,
        double: bool = False,
    ) -> Any:
        """Compute a node.

        Parameters
        ----------
        target
            The node.
        feeds
            Outputs of nodes that are given, not computed.
        double
            All real numbers in double precision.

        Raises
        ------
        ModelFileError
            If an operation is unknown or does not fit its inputs.
        """
        given = feeds or {}
        values: dict[str, tuple[Any, ...]] = {}
        left = MAX_WORK
        for name in self.order(target, stop=given):
            if name in given:
                values[name] = given[name]
                continue
            result, work = self._compute(name, values, left)
            values[name] = (self._widened(name, result, values) if double else result,)
            left -= work
        return values[target][0]

    def _widened(self, name: str, result: Any, values: Mapping[str, tuple[Any, ...]]) -> Any:
        """Return a result in double precision, not rounded by a Cast."""
        if np.asarray(result).dtype != np.float32:
            return result
        if self.nodes[name].op == "Cast":
            source, number = self.inputs(name)[0]
            result = values[source][number]
        return np.asarray(result, np.float64)

    def _compute(
        self, name: str, values: Mapping[str, tuple[Any, ...]], left: float
    ) -> tuple[Any, float]:
        """Value of one node, and the work it was."""
        node = self.nodes[name]
        if node.op == "Const":
            return self.array(name), 0.0
        if node.op not in OPS:
            raise self.error(f"node {name!r}: operation {node.op!r} is not known")
        try:
            inputs = [values[source][number] for source, number in self.inputs(name)]
            size, work = _cost(node, inputs)
            if size > MAX_VALUE or work > left:
                raise ValueError(f"its result would have {size:.0f} numbers")
            with np.errstate(all="ignore"):
                return OPS[node.op](node, inputs), work
        except (
            ValueError, IndexError, TypeError, NotImplementedError, OverflowError, MemoryError,
            ArithmeticError, AttributeError,
        ) as error:  # fmt: skip
            raise self.error(f"node {name!r} ({node.op}) cannot be computed: {error}") from error


def _cost(node: Node, inputs: list[Any]) -> tuple[float, float]:
    """Upper bounds of the numbers in a result and of the work to get it."""
    shapes = [np.shape(x) for x in inputs]
    sizes = [float(np.size(x)) for x in inputs]
    largest = max(sizes, default=0.0)
    if node.op in ("MatMul", "BatchMatMul", "BatchMatMulV2"):
        (m, k), (n, j) = shapes[0][-2:], shapes[1][-2:]
        common = max(1, min({m, k} & {n, j}, default=1))
        work = max(sizes[0] * max(n, j), sizes[1] * max(m, k))
        return work / common, work
    if node.op == "Fill":
        largest = float(np.prod(np.asarray(inputs[0], float)))
    elif node.op == "Tile":
        largest = sizes[0] * float(np.prod(np.asarray(inputs[1], float)))
    elif node.op == "OneHot":
        largest = sizes[0] * float(inputs[1])
    elif node.op == "Range":
        largest = abs(float(inputs[1] - inputs[0]) / float(inputs[2]))
    elif node.op in ("GatherV2", "Gather"):
        largest = sizes[1] * sizes[0] / max(1, min(shapes[0], default=1))
    elif node.op in ("Pack", "ConcatV2", "AddN"):
        largest = sum(sizes)
    elif node.op in _BROADCASTING:
        largest = float(np.prod(np.array(np.broadcast_shapes(*shapes), float)))
    return largest, largest


_BROADCASTING = (
    "Add", "AddV2", "Mul", "Sub", "RealDiv", "Select", "SelectV2", "BiasAdd", "Maximum",
    "Minimum", "Pow", "SquaredDifference", "FloorDiv", "FloorMod", "Less", "LessEqual",
    "Greater", "GreaterEqual", "Equal", "LogicalAnd",
)  # fmt: skip
