"""Reads an HDF5 file's attribute `json` and its arrays; run as a script by `deepmd_dp.py`.

HDF5 believes its files: a damaged one can make it loop for ever, ask for gigabytes or crash. So
it reads in a process of its own, which may take only so much time and memory. To stdout go a
line of JSON, the text, and the arrays, one after the other.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np


class Bad(Exception):
    """The file as a whole cannot be used."""


def limit(size: int) -> None:
    """Bound memory and processor time by the size of the file, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        seconds = math.ceil(time.process_time()) + 1 + size // (50 << 20)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        space = used * resource.getpagesize() + 4 * size + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (space, space))


def text(file: h5py.File, size: int) -> bytes:
    """Return the attribute."""
    if "json" not in file.attrs:
        raise Bad("an HDF5 file, but not a model: it has no attribute 'json'")
    attribute = file.attrs.get_id("json")
    if attribute.shape == () and attribute.dtype.itemsize <= size:
        value = file.attrs["json"]
        if isinstance(value, str | bytes):
            return value.encode() if isinstance(value, str) else value
    raise Bad("the attribute 'json' is no text")


def wrong(data: Any) -> str:
    """Say why a data set is none that models have; "" if it is one."""
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        return "is not an array of this file"
    if data.dtype.kind not in "fiub":
        return f"holds {data.dtype}, not numbers"
    if data.shape is None or data.chunks is not None or data.id.get_storage_size() != data.nbytes:
        return "is compressed, in pieces or not all there"
    return ""


def main() -> None:
    """Read the file named on the command line."""
    path = Path(sys.argv[1])
    size = left = path.stat().st_size
    limit(size)
    sets: dict[str, Any] = {}
    parts: list[bytes] = []
    with h5py.File(path, "r", locking=False) as file:
        parts.append(text(file, size))
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                continue
            data = file[name]
            sets[name] = wrong(data)
            if not sets[name]:
                left -= data.nbytes
                if left < 0:
                    raise Bad(f"data set {name[:80]!r} and those before it claim to be larger")
                array = np.asarray(data[()])
                sets[name] = [array.dtype.str, list(array.shape)]
                parts.append(array.tobytes())
    head = json.dumps({"text": len(parts[0]), "sets": sets})
    sys.stdout.buffer.writelines([head.encode(), b"\n", *parts])


if __name__ == "__main__":
    try:
        main()
    except Bad as error:
        sys.exit(f"{error}")
    except (
        OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        sys.exit(f"damaged: {' '.join(str(error).split())[:200] or type(error).__name__}")
