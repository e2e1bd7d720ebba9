"""Pickles read as data: values, containers and tensors; nothing is ever called or imported.

The instructions are carried out here, one by one. torch writes two dozen of pickle's seventy;
every other one is an error. A name (`collections.OrderedDict`) stays a name, and the few that
torch needs for its tensors and containers are the only ones that mean something.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# At 100 bytes each that is the memory a hostile pickle can ask for.
MOST_INSTRUCTIONS = 1_000_000

_MARK = object()


class PickleError(ValueError):
    """A pickle is damaged or wants more than to hold data."""


class Name(NamedTuple):
    """A class or function that a pickle names."""

    module: str
    name: str


# Functions that rebuild a tensor, and those that return what they are given.
_TENSORS = [Name("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2")]
_SAME = [Name("torch._utils", "_rebuild_parameter")] + [
    Name("torch.jit._pickle", name)
    for name in (
        "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist",
        "restore_type_tag",
    )
]  # fmt: skip


class Object:
    """An instance of a class that is not loaded: nothing but its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


class Unpickler:
    """Reads one pickle.

    Parameters
    ----------
    raw
        The pickle.
    storage
        Gives the one-dimensional tensor of a persistent id.
    """

    def __init__(self, raw: bytes, storage: Callable[[Any], Tensor]) -> None:
        self._raw, self._at, self._storage = raw, 0, storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._push = self._stack.append

    def load(self) -> Any:
        """Return the pickled object.

        Raises
        ------
        PickleError
            If the pickle is damaged, too long or asks for anything but data.
        """
        try:
            for _ in range(MOST_INSTRUCTIONS):
                if self._at >= len(self._raw):
                    raise PickleError("its pickle is cut short")
                code = self._raw[self._at]
                self._at += 1
                if code == _STOP:
                    return self._stack.pop()
                action = _TABLE[code]
                if action is None:
                    raise PickleError(
                        f"its pickle uses {bytes([code])!r}, which torch never writes"
                    )
                action(self)
        except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise PickleError(f"its pickle is damaged near byte {self._at}") from error
        except UnicodeDecodeError as error:
            raise PickleError(f"text near byte {self._at} of its pickle is not UTF-8") from error
        raise PickleError(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")

    def _take(self, size: int) -> bytes:
        part = self._raw[self._at : self._at + size]
        if len(part) < size:
            raise PickleError("its pickle is cut short")
        self._at += size
        return part

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _line(self) -> str:
        end = self._raw.find(b"\n", self._at, self._at + 1000)
        if end < 0:
            raise PickleError("a name in its pickle does not end")
        return self._take(end + 1 - self._at)[:-1].decode()

    def _since_mark(self) -> list[Any]:
        for n in range(len(self._stack) - 1, -1, -1):
            if self._stack[n] is _MARK:
                items = self._stack[n + 1 :]
                del self._stack[n:]
                return items
        raise PickleError("its pickle is damaged: a mark is missing")

    def _skip(self, size: int) -> None:
        self._take(size)

    def _text(self, size: str) -> None:
        self._push(self._take(self._number(size)).decode())

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _tuple(self, size: int) -> None:
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise PickleError("its pickle appends to what is no list")
        target += items

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("its pickle sets items of what is no dict")
        # Hashing nested tuples can take for ever.
        if not all(isinstance(key, str | int) for key in items[::2]):
            raise PickleError("its pickle has dicts whose keys are neither text nor numbers")
        target.update(zip(items[::2], items[1::2]))

    def _pair(self) -> list[Any]:
        value = self._stack.pop()
        return [self._stack.pop(), value]

    def _name_of(self, name: Any, module: Any) -> None:
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("its pickle is damaged: a name is no text")
        self._push(Name(module, name))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple):
            raise PickleError("its pickle is damaged: arguments are no tuple")
        self._push(_call(function, arguments))

    def _new(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Name) or not kind.module.startswith("__torch__.") or arguments:
            raise _refused(kind)
        self._push(Object())

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Object):
            if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
                raise PickleError("its pickle is damaged: attributes are no dict")
            target.attributes = state
        elif not isinstance(target, dict):  # `_metadata` of a state dict says nothing
            raise PickleError(f"its pickle sets the state of a {type(target).__name__}")


_ACTIONS: dict[bytes, Callable[[Unpickler], None]] = {
    b"\x80": lambda u: u._skip(1),  # protocol
    b"\x95": lambda u: u._skip(8),  # frame
    b"(": lambda u: u._push(_MARK),
    b")": lambda u: u._push(()),
    b"]": lambda u: u._push([]),
    b"}": lambda u: u._push({}),
    b"t": lambda u: u._push(tuple(u._since_mark())),
    b"a": lambda u: u._extend([u._stack.pop()]),
    b"e": lambda u: u._extend(u._since_mark()),
    b"s": lambda u: u._set(u._pair()),
    b"u": lambda u: u._set(u._since_mark()),
    b"\x94": Unpickler._memoize,
    b"\x8a": lambda u: u._push(int.from_bytes(u._take(u._number("<B")), "little", signed=True)),
    b"c": lambda u: u._push(Name(u._line(), u._line())),
    b"\x93": lambda u: u._name_of(u._stack.pop(), u._stack.pop()),
    b"R": Unpickler._reduce,
    b"\x81": Unpickler._new,
    b"b": Unpickler._build,
    b"Q": lambda u: u._push(u._storage(u._stack.pop())),
    b"N": lambda u: u._push(None),
    b"\x88": lambda u: u._push(True),  # noqa: FBT003
    b"\x89": lambda u: u._push(False),  # noqa: FBT003
    b"K": lambda u: u._push(u._number("<B")),
    b"M": lambda u: u._push(u._number("<H")),
    b"J": lambda u: u._push(u._number("<i")),
    b"G": lambda u: u._push(u._number(">d")),
    b"X": lambda u: u._text("<I"),
    b"\x8c": lambda u: u._text("<B"),
    b"\x8d": lambda u: u._text("<Q"),
    b"q": lambda u: u._put(u._number("<B")),
    b"r": lambda u: u._put(u._number("<I")),
    b"h": lambda u: u._push(u._memo[u._number("<B")]),
    b"j": lambda u: u._push(u._memo[u._number("<I")]),
    b"\x85": lambda u: u._tuple(1),
    b"\x86": lambda u: u._tuple(2),
    b"\x87": lambda u: u._tuple(3),
}
_STOP = ord(".")
_TABLE = [_ACTIONS.get(bytes([code])) for code in range(256)]


def _refused(what: Any) -> PickleError:
    asked = ".".join(what)[:80] if isinstance(what, Name) else "calling what is no function"
    return PickleError(f"its pickle asks for {asked}, which is no data and was not run")


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Make what a few functions of torch would make."""
    if not isinstance(function, Name):
        raise _refused(function)
    if function == ("collections", "OrderedDict") and not arguments:
        return {}
    if function in _TENSORS:
        return _tensor(*arguments[:4])
    if function in _SAME:
        return arguments[0]
    raise _refused(function)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(storage, Tensor) or len(size) != len(stride):
        raise PickleError("a tensor in its pickle has no storage, or shape and stride differ")
    numbers = (offset, *size, *stride)
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers) or len(size) > 16:
        raise PickleError("a tensor in its pickle has an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    count = 1
    for n in size:
        count *= n
    if count > storage.numel() or (count and last >= storage.numel()):
        raise PickleError(
            f"a tensor of shape {tuple(size)} reaches beyond the {storage.numel()} numbers of its "
            "record"
        )
    return torch.as_strided(storage, size, stride, offset) if count else storage.new_empty(size)
