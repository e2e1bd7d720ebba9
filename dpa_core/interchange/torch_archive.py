"""The zip archives of `torch.save` and `torch.jit.save`, read without running anything in them.

Both hold a pickle and one uncompressed record a tensor. The pickle of a checkpoint is left to
`torch.load(weights_only=True)`. A TorchScript archive, which torch can only load by compiling
its code, is read here: classes become inert containers of attributes, and only what rebuilds
tensors and plain values is ever called. Both pickles are checked before.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpa_core.errors import ModelFileError
from dpa_core.interchange.content import AGAIN

_LARGEST_PICKLE = 64 << 20
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
# Everything torch writes; what calls things by other ways than REDUCE and NEWOBJ is not in it.
_OPCODES = {
    *_PUTS, "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "PROTO", "FRAME", "STOP", "MARK", "POP",
    "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINSTRING", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "EMPTY_SET", "ADDITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
}  # fmt: skip
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


class Module:
    """An object of a TorchScript archive: nothing but its attributes."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes


def load_checkpoint(path: Path) -> Any:
    """Read what `torch.save` wrote, tensors on the CPU.

    Raises
    ------
    ModelFileError
        If the archive is damaged, or its pickle wants to do more than hold data.
    """
    with _archive(path) as archive:
        _checked_pickle(archive, path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise ModelFileError(
            f"{path}: holds objects that are no data, and is not loaded: {reason}"
        ) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def load_module(path: Path) -> Module:
    """Read the object `torch.jit.save` wrote, with its submodules, tensors and constants.

    Raises
    ------
    ModelFileError
        As `load_checkpoint`.
    """
    with _archive(path) as archive:
        raw, root = _checked_pickle(archive, path)
        try:
            result = _Unpickler(raw, archive, root).load()
        except pickle.UnpicklingError as error:
            raise ModelFileError(f"{path}: {error}") from error
        except _DAMAGE as error:
            raise _damaged(path, error) from error
    if not isinstance(result, Module):
        raise ModelFileError(f"{path}: holds no model; {AGAIN}")
    return result


# What broken archives and pickles raise in the libraries that read them.
_DAMAGE = (
    RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError,
    MemoryError, RecursionError, OverflowError, AssertionError, NotImplementedError,
    zipfile.BadZipFile,
)  # fmt: skip


def _damaged(path: Path, error: BaseException) -> ModelFileError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ModelFileError(f"{path}: damaged, cannot be read: {reason}; {AGAIN}")


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose records are as large as they say and not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            # TorchScript's code and debug records are compressed; they are never unpacked.
            entries = [e for e in archive.infolist() if "/code/" not in e.filename]
            if sum(entry.file_size for entry in entries) > size:
                raise ModelFileError(f"{path}: unpacks to more than the file holds; not read")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ModelFileError(f"{path}: has compressed records, which torch never writes")
            yield archive
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _checked_pickle(archive: zipfile.ZipFile, path: Path) -> tuple[bytes, str]:
    """Return the pickle and its folder in the archive, after a look at every instruction."""
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1]
    if len(roots) != 1:
        raise ModelFileError(f"{path}: a zip archive, but not one of torch: no data.pkl")
    if archive.getinfo(f"{roots[0]}data.pkl").file_size > _LARGEST_PICKLE:
        raise ModelFileError(f"{path}: data.pkl is larger than {_LARGEST_PICKLE >> 20} MiB")
    raw = archive.read(f"{roots[0]}data.pkl")
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name not in _OPCODES:
            raise ModelFileError(f"{path}: its pickle uses {opcode.name}, which torch never writes")
        if opcode.name in _PUTS and int(argument) > len(raw):  # type: ignore[arg-type]
            raise ModelFileError(f"{path}: its pickle is damaged; {AGAIN}")
    return raw, roots[0]


class _Unpickler(pickle.Unpickler):
    """Unpickles values, tensors and inert modules; everything else is an error."""

    def __init__(self, raw: bytes, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """Only what TorchScript archives need; made anew each time, so nothing can be spoilt."""
        if module.startswith("__torch__."):
            return _inert_class()
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and name.startswith("_rebuild_tensor"):
            return lambda *arguments: _rebuild(*arguments[:4])
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: OrderedDict()
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which is not loaded")

    def persistent_load(self, pid: Any) -> Tensor:
        """Read the record of a tensor's storage."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("its pickle refers to something that is no tensor")
        raw = bytearray(self._archive.read(f"{self._root}data/{key}"))
        if len(raw) != count * dtype.itemsize:
            raise pickle.UnpicklingError(
                f"record data/{key} has {len(raw)} bytes, expected {count} x {dtype.itemsize}"
            )
        return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _inert_class() -> Callable[..., Module]:
    class Inert(Module):
        def __init__(self) -> None:
            super().__init__({})

        def __setstate__(self, state: Any) -> None:
            self.attributes = state if isinstance(state, dict) else {}

    return Inert


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    if len(size) != len(stride) or min([0, offset, *size, *stride]) < 0:
        raise pickle.UnpicklingError(f"a tensor of shape {size} and stride {stride}")
    count = 1
    for n in size:
        count *= n
    if count > storage.numel():
        raise pickle.UnpicklingError(f"a tensor of shape {size}, but {storage.numel()} numbers")
    return storage.as_strided(size, stride, offset)


def flat_state(module: Module) -> dict[str, Tensor]:
    """Tensors of a module and its submodules under their dotted names."""
    tensors: dict[str, Tensor] = {}
    queue: list[tuple[str, Module]] = [("", module)]
    seen = 0
    while queue:
        prefix, part = queue.pop()
        for name, value in part.attributes.items():
            seen += 1
            if seen > 1_000_000:
                raise ModelFileError("its modules contain each other; not a model")
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, Module):
                queue.append((f"{prefix}{name}.", value))
    return tensors
