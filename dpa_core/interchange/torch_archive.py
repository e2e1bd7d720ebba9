"""The zip archives of `torch.save` and `torch.jit.save`, read without running anything in them.

Both hold a pickle and one uncompressed record a tensor. torch can load a TorchScript archive only
by compiling its code, so both are read here; see `pickled.py`.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpa_core.errors import ModelFileError
from dpa_core.interchange.content import AGAIN
from dpa_core.interchange.pickled import Name, Object, PickleError, Unpickler

_LARGEST_PICKLE, _LARGEST_DIRECTORY = 64 << 20, 16 << 20
_DEEPEST, _LONGEST_NAME, _MOST_ATTRIBUTES = 20, 300, 500_000
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


def load_archive(path: Path) -> Any:
    """Read what `torch.save` or `torch.jit.save` wrote, tensors on the CPU.

    Returns
    -------
    Any
        Containers, tensors, plain values; instances of TorchScript's classes as `Object`.

    Raises
    ------
    ModelFileError
        If the archive is damaged, or its pickle wants to do more than hold data.
    """
    with _archive(path) as archive:
        root = _root(archive, path)
        raw = archive.read(f"{root}data.pkl")
        records = _Records(archive, root)
        try:
            return Unpickler(raw, records.storage).load()
        except PickleError as error:
            raise ModelFileError(f"{path}: {error}; {AGAIN}") from error


def holds_code(path: Path) -> bool:
    """Whether a zip archive is TorchScript: it has a folder `code` beside `data.pkl`.

    Raises
    ------
    ModelFileError
        If the archive is damaged.
    """
    with _archive(path) as archive:
        return any("/code/" in name for name in archive.namelist())


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose records are as large as they say and not compressed."""
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, path)
            yield archive
    except (
        zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, RuntimeError, zlib.error,
        OverflowError, IndexError,
    ) as error:  # fmt: skip
        # NotImplementedError (an unknown compression) and UnicodeError are among these.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelFileError(
            f"{path}: a damaged zip archive, cannot be read: {reason}; {AGAIN}"
        ) from error


def _check_directory(path: Path) -> None:
    """Refuse a directory of a million entries before `zipfile` makes an object of each."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 66_000))
        tail = file.read()
    # Where the size of the directory stands in its end, and in that of zip64.
    for mark, at, size in ((b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8)):
        for found in re.finditer(mark, tail):
            start = found.start() + at
            claim = int.from_bytes(tail[start : start + size], "little")
            if _LARGEST_DIRECTORY < claim <= path.stat().st_size:
                raise ModelFileError(
                    f"{path}: its directory has {claim >> 20} MiB, more than torch ever writes; "
                    f"{AGAIN}"
                )


def _check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise ModelFileError(f"{path}: two records have one name; {AGAIN}")
    # TorchScript's code and debug records are compressed; they are never unpacked.
    entries = [e for e in archive.infolist() if "/code/" not in e.filename]
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ModelFileError(f"{path}: unpacks to more than the file holds; not read")
    if any(entry.flag_bits & 1 for entry in entries):
        raise ModelFileError(f"{path}: has encrypted records, which torch never writes")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelFileError(f"{path}: has compressed records, which torch never writes")


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the folder of the pickle, which is in its root."""
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1]
    if len(roots) != 1:
        raise ModelFileError(f"{path}: a zip archive, but not one of torch: no data.pkl")
    if archive.getinfo(f"{roots[0]}data.pkl").file_size > _LARGEST_PICKLE:
        raise ModelFileError(f"{path}: data.pkl is larger than {_LARGEST_PICKLE >> 20} MiB")
    order = f"{roots[0]}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ModelFileError(
            f"{path}: written on a big-endian machine; load and save it with torch on another"
        )
    return roots[0]


class _Records:
    """Storages of an archive, each read once, however often the pickle refers to it."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive, self._root = archive, root
        self._read: dict[str, Tensor] = {}

    def storage(self, pid: Any) -> Tensor:
        """Numbers of ("storage", torch.DoubleStorage, "0", "cpu", 12)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise PickleError("its pickle refers to something that is no tensor")
        _, kind, key, _, count = pid
        if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in _DTYPES:
            raise PickleError("its pickle has a tensor of an unknown type")
        if not isinstance(key, str) or not isinstance(count, int):
            raise PickleError("its pickle refers to a record that has no name or size")
        dtype = _DTYPES[kind.name]
        if key not in self._read:
            self._read[key] = self._load(key, dtype)
        found = self._read[key]
        if found.dtype != dtype or found.numel() != count:
            raise PickleError(
                f"record data/{key[:40]} holds {found.numel()} {found.dtype}, its pickle says "
                f"{count} {dtype}"
            )
        return found

    def _load(self, key: str, dtype: torch.dtype) -> Tensor:
        name = f"{self._root}data/{key}"
        if name not in self._archive.NameToInfo:
            raise PickleError(f"record data/{key[:40]} is missing")
        raw = bytearray(self._archive.read(name))
        if len(raw) % dtype.itemsize:
            raise PickleError(f"record data/{key[:40]} has {len(raw)} bytes, no whole {dtype}")
        return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def flat_state(module: Object, path: Path) -> dict[str, Tensor]:
    """Tensors of a module and its submodules under their dotted names.

    Raises
    ------
    ModelFileError
        If modules contain each other.
    """
    tensors: dict[str, Tensor] = {}
    queue: list[tuple[str, Object]] = [("", module)]
    seen = 0
    while queue:
        prefix, part = queue.pop()
        seen += len(part.attributes)
        if seen > _MOST_ATTRIBUTES or prefix.count(".") > _DEEPEST or len(prefix) > _LONGEST_NAME:
            raise ModelFileError(f"{path}: its modules contain each other; {AGAIN}")
        for name, value in part.attributes.items():
            if len(name) > _LONGEST_NAME:
                raise ModelFileError(f"{path}: a name of {len(name)} letters; {AGAIN}")
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, Object):
                queue.append((f"{prefix}{name}.", value))
    return tensors
