"""The TensorFlow operations an energy model is made of, in NumPy.

They serve two ends: what a constant part of a graph amounts to (the table of type embeddings),
and the proof that a model read from a graph computes what the graph computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dpa_core.interchange.protobuf import DTYPES, Node

Arrays = list[Any]


def _attr(node: Node, key: str, default: Any = 0) -> Any:
    value = node.attr(key)
    return default if value is None else value


def _matmul(node: Node, x: Arrays) -> Any:
    a, b = x
    plain = node.op == "MatMul"
    if _attr(node, "transpose_a" if plain else "adj_x"):
        a = np.swapaxes(a, -1, -2)
    if _attr(node, "transpose_b" if plain else "adj_y"):
        b = np.swapaxes(b, -1, -2)
    return a @ b


def _strided_slice(node: Node, x: Arrays) -> Any:
    value, begin, end, step = x
    begin_mask, end_mask = _attr(node, "begin_mask"), _attr(node, "end_mask")
    if _attr(node, "ellipsis_mask"):
        raise NotImplementedError("StridedSlice with an ellipsis")
    index: list[Any] = []
    for k, (b, e, s) in enumerate(zip(begin, end, step, strict=True)):
        if _attr(node, "new_axis_mask") >> k & 1:
            index.append(None)
        elif _attr(node, "shrink_axis_mask") >> k & 1:
            index.append(int(b))
        else:
            first = None if begin_mask >> k & 1 else int(b)
            last = None if end_mask >> k & 1 else int(e)
            index.append(slice(first, last, int(s)))
    return value[tuple(index)]


def _slice(_: Node, x: Arrays) -> Any:
    value, begin, size = x
    ends = [n if s == -1 else b + s for n, b, s in zip(value.shape, begin, size, strict=True)]
    return value[tuple(slice(int(b), int(e)) for b, e in zip(begin, ends, strict=True))]


def _gather(node: Node, x: Arrays) -> Any:
    if _attr(node, "batch_dims"):
        raise NotImplementedError("GatherV2 with batch dimensions")
    return np.take(x[0], x[1], axis=int(x[2]) if len(x) > 2 else 0)


def _one_hot(_: Node, x: Arrays) -> Any:
    indices, depth, on, off = x
    hot = np.arange(int(depth)) == np.asarray(indices)[..., None]
    return np.where(hot, np.asarray(on), np.asarray(off))


def _reduce(function: Callable[..., Any]) -> Callable[[Node, Arrays], Any]:
    def apply(node: Node, x: Arrays) -> Any:
        axes = tuple(int(a) for a in np.atleast_1d(x[1]))
        return function(x[0], axis=axes, keepdims=bool(_attr(node, "keep_dims")))

    return apply


def _softmax(_: Node, x: Arrays) -> Any:
    e = np.exp(x[0] - x[0].max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _cast(node: Node, x: Arrays) -> Any:
    kind = DTYPES.get(_attr(node, "DstT"))
    if kind is None:
        raise NotImplementedError("Cast to a type that is not read")
    return np.asarray(x[0]).astype(kind)


def _gelu(_: Node, x: Arrays) -> Any:
    v = x[0]
    return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))


def _batch_norm(node: Node, x: Arrays) -> Any:
    """FusedBatchNorm in training mode, as LayerNorm uses it: NCHW or NHWC."""
    v, scale, offset = x[:3]
    first = _attr(node, "data_format", b"NHWC") == b"NCHW"
    axes = (0, 2, 3) if first else (0, 1, 2)
    shape = (1, -1, 1, 1) if first else (1, 1, 1, -1)
    mean, var = v.mean(axes, keepdims=True), v.var(axes, keepdims=True)
    normal = (v - mean) / np.sqrt(var + _attr(node, "epsilon", 1e-4))
    return normal * scale.reshape(shape) + offset.reshape(shape)


def _tile(_: Node, x: Arrays) -> Any:
    return np.tile(x[0], tuple(int(n) for n in x[1]))


def _reshape(_: Node, x: Arrays) -> Any:
    value, sizes = np.asarray(x[0]), [int(n) for n in np.atleast_1d(x[1])]
    if value.size == 0 and -1 in sizes and 0 in sizes:
        # TensorFlow finds the missing number from the axes that are not empty.
        given = math.prod(n for n in value.shape if n)
        sizes[sizes.index(-1)] = given // math.prod(n for n in sizes if n > 0)
    return np.reshape(value, tuple(sizes))


def _simple(function: Callable[..., Any]) -> Callable[[Node, Arrays], Any]:
    return lambda _, x: function(*x)


def _sigmoid(v: Any) -> Any:
    return 1 / (1 + np.exp(-v))


OPS: dict[str, Callable[[Node, Arrays], Any]] = {
    "MatMul": _matmul, "BatchMatMul": _matmul, "BatchMatMulV2": _matmul,
    "StridedSlice": _strided_slice, "Slice": _slice, "GatherV2": _gather, "Gather": _gather,
    "OneHot": _one_hot, "Sum": _reduce(np.sum), "Mean": _reduce(np.mean), "Max": _reduce(np.max),
    "Prod": _reduce(np.prod), "All": _reduce(np.all), "Any": _reduce(np.any),
    "Softmax": _softmax, "Cast": _cast, "Tile": _tile, "Reshape": _reshape,
    "Gelu": _gelu, "GeluCustom": _gelu,
    "FusedBatchNorm": _batch_norm, "FusedBatchNormV2": _batch_norm,
    "FusedBatchNormV3": _batch_norm,
    "Identity": lambda _, x: x[0], "StopGradient": lambda _, x: x[0],
    "ReadVariableOp": lambda _, x: x[0], "PlaceholderWithDefault": lambda _, x: x[0],
    "Pack": lambda node, x: np.stack(x, axis=_attr(node, "axis")),
    "ConcatV2": lambda _, x: np.concatenate(x[:-1], axis=int(x[-1])),
    "Shape": lambda _, x: np.array(np.shape(x[0]), np.int32),
    "Size": lambda _, x: np.int32(np.size(x[0])),
    "Fill": lambda _, x: np.full(tuple(int(n) for n in x[0]), x[1]),
    "ExpandDims": lambda _, x: np.expand_dims(x[0], int(x[1])),
    "Squeeze": lambda node, x: np.squeeze(x[0], tuple(_attr(node, "squeeze_dims", [])) or None),
    "Transpose": lambda _, x: np.transpose(x[0], tuple(int(n) for n in x[1])),
    "AddN": lambda _, x: sum(x[1:], x[0]),
    "BiasAdd": lambda _, x: x[0] + x[1],
    "Select": lambda _, x: np.where(x[0], x[1], x[2]),
    "SelectV2": lambda _, x: np.where(x[0], x[1], x[2]),
    "Range": _simple(np.arange),
    "Add": _simple(np.add), "AddV2": _simple(np.add), "Sub": _simple(np.subtract),
    "Mul": _simple(np.multiply), "RealDiv": _simple(np.true_divide),
    "FloorDiv": _simple(np.floor_divide), "FloorMod": _simple(np.mod), "Neg": _simple(np.negative),
    "Maximum": _simple(np.maximum), "Minimum": _simple(np.minimum), "Pow": _simple(np.power),
    "Square": _simple(np.square), "SquaredDifference": lambda _, x: np.square(x[0] - x[1]),
    "Sqrt": _simple(np.sqrt), "Rsqrt": lambda _, x: 1 / np.sqrt(x[0]), "Exp": _simple(np.exp),
    "Tanh": _simple(np.tanh), "Sigmoid": _simple(_sigmoid),
    "Softplus": lambda _, x: np.logaddexp(x[0], 0).astype(x[0].dtype),
    "Relu": lambda _, x: np.maximum(x[0], 0), "Relu6": lambda _, x: np.clip(x[0], 0, 6),
    "Less": _simple(np.less), "LessEqual": _simple(np.less_equal),
    "Greater": _simple(np.greater), "GreaterEqual": _simple(np.greater_equal),
    "Equal": _simple(np.equal), "LogicalAnd": _simple(np.logical_and),
    "LogicalNot": _simple(np.logical_not),
    "ZerosLike": _simple(np.zeros_like), "OnesLike": _simple(np.ones_like),
}  # fmt: skip
