"""The few messages of protocol buffers that a TensorFlow GraphDef consists of, read by hand.

Nothing is trusted: lengths stay inside their message, a varint has ten bytes at most, a tensor
may not be larger than what the file holds (a value repeated to fill a shape is a view, and what
views add up to is bounded), and nothing recurses. Tensors are views of the mapped file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import ModelFileError

MAX_NODES = 100_000
MAX_INPUTS = 10_000
# Numbers that short constants ("this value everywhere") may stand for in one file.
MAX_FILLED = 2**23
MAX_INTEGERS = 100_000

# TensorFlow's DataType -> NumPy; what is not here is no number we read.
DTYPES: dict[int, str] = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 10: "|b1", 19: "<f2"}
STRING = 7
# DataType -> field of TensorProto that holds values one by one, if not in tensor_content.
_VALUES = {1: 5, 2: 6, 3: 7, 7: 8, 9: 10, 10: 11, 19: 13}

Span = tuple[int, int]


class Node:
    """One NodeDef: name, op, inputs (`x`, `x:1`, `^x`) and attributes, decoded on demand."""

    __slots__ = ("_file", "_spans", "inputs", "name", "op")

    def __init__(self, file: GraphFile, span: Span) -> None:
        self._file = file
        self.name, self.op = "", ""
        self.inputs: list[str] = []
        self._spans: list[Span] = []
        for field, value in file.fields(span):
            if field == 5:
                self._spans.append(file.span(value))
            elif field == 3:
                self.inputs.append(file.text(file.span(value)))
            elif field == 1:
                self.name = file.text(file.span(value))
            elif field == 2:
                self.op = file.text(file.span(value))
        if not self.name or not self.op or len(self.inputs) > MAX_INPUTS:
            raise file.error(f"node {self.name!r} has no name, no op or too many inputs")

    def attr(self, key: str) -> Any:
        """Value of an attribute: number, bytes, list of integers, tensor; None if absent."""
        for span in self._spans:
            fields = dict(self._file.fields(span))
            if 1 in fields and self._file.text(self._file.span(fields[1])) == key:
                return self._file.attr_value(self._file.span(fields.get(2, span)))
        return None


class GraphFile:
    """A mapped file and the wire format over it.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._left = MAX_FILLED
        try:
            with Path(path).open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be read: {error}") from error

    def error(self, what: str) -> ModelFileError:
        """Make the error of a damaged file."""
        return ModelFileError(
            f"{self.path}: not a TensorFlow graph, or damaged: {what}; copy the file again"
        )

    def nodes(self) -> dict[str, Node]:
        """All nodes by name.

        Raises
        ------
        ModelFileError
            If the bytes are no GraphDef.
        """
        nodes: dict[str, Node] = {}
        for field, value in self.fields((0, len(self.data))):
            if field != 1:
                continue
            node = Node(self, self.span(value))
            if node.name in nodes:
                raise self.error(f"two nodes are named {node.name!r}")
            nodes[node.name] = node
            if len(nodes) > MAX_NODES:
                raise self.error(f"more than {MAX_NODES} nodes")
        return nodes

    def fields(self, span: Span) -> Iterator[tuple[int, int | bytes | Span]]:
        """Fields of a message: number, and integer, raw fixed bytes or span of the value."""
        at, end = span
        data = self.data
        while at < end:
            # Nearly every number is one byte, and graphs have many.
            key, at = (data[at], at + 1) if data[at] < 0x80 else self._varint(at, end)
            field, wire = key >> 3, key & 7
            if wire == 0:
                value, at = self._varint(at, end)
                yield field, value
                continue
            if wire == 2:
                short = at < end and data[at] < 0x80
                size, at = (data[at], at + 1) if short else self._varint(at, end)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise self.error(f"wire type {wire} at byte {at}")
            if size > end - at:
                raise self.error(f"a length of {size} at byte {at} leads beyond its message")
            yield field, (at, at + size) if wire == 2 else data[at : at + size]
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        for k in range(at, min(end, at + 10)):
            byte = self.data[k]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, k + 1
            shift += 7
        raise self.error(f"an integer at byte {at} does not end")

    def span(self, value: int | bytes | Span) -> Span:
        """Return the value of a field that must have a length."""
        if not isinstance(value, tuple):
            raise self.error("a number stands where text or a message is expected")
        return value

    def text(self, span: Span) -> str:
        """Decode a string."""
        try:
            return self.data[span[0] : span[1]].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"text at byte {span[0]} is not UTF-8") from error

    def attr_value(self, span: Span) -> Any:
        """Decode an AttrValue."""
        for field, value in self.fields(span):
            if field == 1:
                return self._integers([v for f, v in self.fields(self.span(value)) if f == 3])
            if field == 2:
                start, end = self.span(value)
                return self.data[start:end]
            if field in (3, 5, 6) and isinstance(value, int):
                return _signed(value)
            if field == 4 and isinstance(value, bytes) and len(value) == 4:
                return struct.unpack("<f", value)[0]
            if field == 8:
                return self._tensor(self.span(value))
        return None

    def _integers(self, values: list[int | bytes | Span]) -> list[int]:
        """Decode repeated integers, packed or not."""
        result: list[int] = []
        for value in values:
            if isinstance(value, int):
                result.append(_signed(value))
            elif isinstance(value, tuple):
                at, end = value
                while at < end:
                    number, at = self._varint(at, end)
                    result.append(_signed(number))
                    if len(result) > MAX_INTEGERS:
                        raise self.error(f"more than {MAX_INTEGERS} integers in one list")
            else:
                raise self.error("a fixed number stands where an integer is expected")
        return result

    def _tensor(self, span: Span) -> NDArray[Any] | list[bytes]:
        """Decode a TensorProto: an array, or strings."""
        dtype, content = 0, None
        shape: tuple[int, ...] = ()
        fields = list(self.fields(span))
        for field, value in fields:
            if field == 1 and isinstance(value, int):
                dtype = value
            elif field == 2:
                shape = self._shape(self.span(value))
            elif field == 4:
                content = self.span(value)
        values = [v for f, v in fields if f == _VALUES.get(dtype)]
        if dtype == STRING:
            return [self.data[s[0] : s[1]] for s in map(self.span, values)]
        if dtype not in DTYPES:
            raise self.error(f"a constant has data type {dtype}, which is not read")
        count = math.prod(shape)
        kind = np.dtype(DTYPES[dtype])
        if content is not None and content[0] < content[1]:
            if content[1] - content[0] != count * kind.itemsize:
                raise self.error(
                    f"a constant of shape {shape} has {content[1] - content[0]} bytes, expected "
                    f"{count * kind.itemsize}"
                )
            return np.frombuffer(self.data, kind, count, content[0]).reshape(shape)
        return self._filled(self._numbers(values, kind), shape, count)

    def _numbers(self, values: list[int | bytes | Span], kind: np.dtype[Any]) -> NDArray[Any]:
        if kind.kind != "f" or kind.itemsize == 2:
            integers = np.array(self._integers(values), np.int64)
            return (
                integers.astype(np.uint16).view(kind) if kind.kind == "f" else integers.astype(kind)
            )
        parts = []
        for value in values:
            if isinstance(value, tuple) and (value[1] - value[0]) % kind.itemsize == 0:
                count = (value[1] - value[0]) // kind.itemsize
                parts.append(np.frombuffer(self.data, kind, count, value[0]))
            elif isinstance(value, bytes) and len(value) == kind.itemsize:
                parts.append(np.frombuffer(value, kind))
            else:
                raise self.error("values of a constant are not of its data type")
        return np.concatenate(parts) if parts else np.zeros(0, kind)

    def _filled(self, values: NDArray[Any], shape: tuple[int, ...], count: int) -> NDArray[Any]:
        """Give values their shape; the last one fills what is missing (TensorFlow's rule)."""
        if len(values) == count:
            return values.reshape(shape)
        if len(values) > count:
            raise self.error(f"a constant of shape {shape} has {len(values)} values")
        self._left -= count
        if self._left < 0:
            raise self.error(
                f"constants of few values claim shapes such as {shape}: more than {MAX_FILLED} "
                "numbers that the file does not hold"
            )
        if len(values) < 2:
            fill = values[0] if len(values) else values.dtype.type(0)
            return np.broadcast_to(fill, shape)
        tail = np.full(count - len(values), values[-1], values.dtype)
        return np.concatenate([values, tail]).reshape(shape)

    def _shape(self, span: Span) -> tuple[int, ...]:
        sizes = []
        for field, value in self.fields(span):
            if field == 3 and value:
                raise self.error("a constant has no known shape")
            if field == 2:
                size = dict(self.fields(self.span(value))).get(1, 0)
                sizes.append(_signed(size) if isinstance(size, int) else -1)
        if len(sizes) > 16 or any(not 0 <= s < 2**40 for s in sizes):
            raise self.error(f"a constant has shape {tuple(sizes[:16])}")
        return tuple(sizes)


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
