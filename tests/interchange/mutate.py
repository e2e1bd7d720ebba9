"""Mutations of model files: blind ones of bytes, and ones that know what a format is made of.

Everything is drawn from a `random.Random`, so an input is known by its seed.
"""

from __future__ import annotations

import io
import itertools
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import torch
import yaml

Rng = random.Random
SIZES = (0, 1, 2, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 99, 10**9, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "x", "auto", "none", "standard", "float16", "silut:nan",
    "\udcff", "é" * 40, "9" * 5000, "/variable_0000", "../x", [], {}, [[]], [1], [None], {"a": 1},
    [[0, 1]], ["O", "O"], [10**9] * 3, {"energy": [1, 2, 3]}, [[[[[[[[1]]]]]]]], {"@variables": {}},
]  # fmt: skip

# What writers say to values that no file of the format can hold.
_UNWRITABLE = (
    UnicodeError, ValueError, TypeError, KeyError, IndexError, OverflowError, OSError,
    RuntimeError, yaml.YAMLError,
)  # fmt: skip


def mutate(kind: str, samples: list[bytes], rng: Rng) -> bytes:
    """Make one input of a format from its samples."""
    data = rng.choice(samples)
    own = STRUCTURED[kind]
    if rng.random() < 0.6:
        try:
            data = own(data, rng)
        except _UNWRITABLE:
            return data
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            data = rng.choice(BLIND)(data, rng, samples)
    return data


def _flip(data: bytes, rng: Rng, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else b""


def _byte(data: bytes, rng: Rng, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.choice((0, 1, 127, 128, 255, 10, 34))]) + data[at + 1 :]


def _cut(data: bytes, rng: Rng, _: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: Rng, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randrange(1, 200) :]


def _repeat(data: bytes, rng: Rng, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at : at + rng.randrange(1, 100)] * rng.randrange(2, 20) + data[at:]


def _splice(data: bytes, rng: Rng, samples: list[bytes]) -> bytes:
    other = rng.choice(samples)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def _length(data: bytes, rng: Rng, _: list[bytes]) -> bytes:
    """Write an interesting number where a length may be."""
    size = rng.choice((1, 2, 4, 8))
    number = min(rng.choice(SIZES), 256**size - 1)
    # Headers are where lengths are.
    end = rng.choice((64, 2048, len(data) + 1))
    at = rng.randrange(min(end, len(data) + 1))
    return data[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def _insert(data: bytes, rng: Rng, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]


BLIND = [_flip, _flip, _byte, _cut, _remove, _repeat, _splice, _length, _length, _insert]


def mutate_tree(tree: Any, rng: Rng) -> Any:
    """Change a few places of nested dictionaries and lists (in place, as far as possible)."""
    root = {"": tree}
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = [(p, k) for p, k in _places(root) if p is not root or rng.random() < 0.05]
        parent, key = rng.choice(places or [(root, "")])
        _change(parent, key, rng, places)
    return root[""]


def _places(data: Any) -> list[tuple[Any, Any]]:
    keys = list(data) if isinstance(data, dict) else range(len(data))
    result = [(data, key) for key in keys]
    for key in keys:
        if isinstance(data[key], dict | list):
            result += _places(data[key])
    return result


def _change(parent: Any, key: Any, rng: Rng, places: list[tuple[Any, Any]]) -> None:
    what = rng.randrange(10)
    if what < 5:
        parent[key] = rng.choice(ODD)
    elif what == 5 and isinstance(parent, dict):
        del parent[key]
    elif what == 6 and isinstance(parent, list):
        parent += parent[: rng.choice((1, 50))]
    elif what == 7 and isinstance(parent, dict):
        parent[rng.choice((f"{key}x", "seed", "spin", "compress", "type", "lmax"))] = parent[key]
    elif what == 8 and places:
        other, name = rng.choice(places)
        try:
            parent[key] = json.loads(json.dumps(other[name], default=str))
        except (KeyError, IndexError):
            parent[key] = None
    else:
        value = parent[key]
        if isinstance(value, int | float) and abs(value) < 1e300:
            parent[key] = rng.choice((value + 1, -value, value * 1000, str(value), float(value)))
        elif isinstance(value, str):
            parent[key] = value + rng.choice(("x", "\0", " ", "\n"))
        else:
            parent[key] = [value]


def native(data: bytes, rng: Rng) -> bytes:
    """Change the header of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.3:
        header = mutate_tree(header, rng)
    else:
        meta = header["__metadata__"]
        config = json.loads(meta["config"])
        meta["config"] = json.dumps(mutate_tree(config, rng))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def dp(data: bytes, rng: Rng) -> bytes:
    """Change the dictionary or a data set of an HDF5 file."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        if rng.random() < 0.7:
            tree = mutate_tree(json.loads(file.attrs["json"]), rng)
            text = json.dumps(tree)
            del file.attrs["json"]
            file.attrs["json"] = text
        else:
            _other_data_set(file, rng)
    return buffer.getvalue()


def _other_data_set(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(sorted(file))
    old = file[name][()]
    del file[name]
    what = rng.randrange(9)
    if what == 0:
        file.create_dataset(name, data=old, compression="gzip", chunks=True)
    elif what == 1:
        file.create_dataset(name, shape=rng.choice(((10**9,), (10**6, 10**6), ())), dtype="f8")
    elif what == 2:
        file.create_dataset(name, data=old.astype(rng.choice(("f2", ">f8", "i8", "c16", "S8"))))
    elif what == 3:
        file.create_dataset(name, data=old.reshape(-1)[: rng.randrange(old.size + 1)])
    elif what == 4:
        old = old.astype(float)
        old.reshape(-1)[rng.randrange(old.size)] = rng.choice((np.nan, np.inf, 1e308, -1e-320))
        file.create_dataset(name, data=old)
    elif what == 5:
        file[name] = rng.choice((h5py.SoftLink(f"/{name}"), h5py.ExternalLink("x.h5", "/x")))
    elif what == 6:
        layout = h5py.VirtualLayout(shape=(10**6,), dtype="f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", shape=(10**6,))
        file.create_virtual_dataset(name, layout)
    elif what == 7:
        file.create_dataset(name, shape=(10**8,), maxshape=(None,), chunks=(10**6,), dtype="f8")
    else:
        file.create_group(name)


def text(data: bytes, rng: Rng) -> bytes:
    """Change the tree of a YAML file, or its lines."""
    if rng.random() < 0.5:
        tree = mutate_tree(yaml.load(data, yaml.CSafeLoader), rng)
        out = yaml.dump(tree, Dumper=yaml.CSafeDumper, allow_unicode=rng.random() < 0.5)
        return out.encode("utf-8", "surrogatepass")
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(lines))
        words = (
            b"&a", b"*a", b"!!python/object/apply:os.system [x]", b"? ", b"- ", b"[" * 500,
            b"{" * 500, b"'", b'"', b"%YAML 1.3", b"--- ", b"...", b"!!binary x", b"<<: *a", b"\t",
            b"1:30", b"0o17", b"2001-01-01", b"? - a", b"#", b"|", b">", b"\xff\xfe", b"\x00",
        )  # fmt: skip
        what = rng.randrange(5)
        if what == 0:
            lines[at] += b" " + rng.choice(words)
        elif what == 1:
            lines.insert(at, rng.choice(words))
        elif what == 2:
            lines[at] = b" " * rng.randrange(8) + lines[at].strip()
        elif what == 3:
            lines.insert(at, lines[rng.randrange(len(lines))])
        else:
            del lines[at : at + rng.randrange(1, 5)]
            lines.append(b"")
    return b"\n".join(lines)


def archive(data: bytes, rng: Rng) -> bytes:
    """Change the pickle or a record of a zip archive of torch; checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        parts = [(name, old.read(name)) for name in old.namelist() if "/code/" not in name]
        code = [name for name in old.namelist() if "/code/" in name][:1]
    at = next(n for n, (name, _) in enumerate(parts) if name.endswith("/data.pkl"))
    name, raw = parts[at]
    what = rng.randrange(8)
    if what < 4:
        parts[at] = (name, _pickle(raw, rng))
    elif what == 4 and not code:
        return _checkpoint(data, rng)
    elif what == 5:
        n = rng.randrange(len(parts))
        parts[n] = (parts[n][0], rng.choice(BLIND)(parts[n][1], rng, [raw]))
    elif what == 6:
        del parts[rng.randrange(len(parts))]
    else:
        n = rng.randrange(len(parts))
        parts.append((rng.choice((parts[n][0] + "x", "../x", "a/data.pkl", "data.pkl")), raw))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for name, part in [*parts, *((c, b"") for c in code)]:
            new.writestr(zipfile.ZipInfo(name), part)
    return out.getvalue()


def _pickle(raw: bytes, rng: Rng) -> bytes:
    """Change instructions of a pickle."""
    starts = [at for _, _, at in pickletools.genops(raw)] + [len(raw)]
    steps = [raw[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(steps))
        what = rng.randrange(8)
        if what == 0:
            del steps[at]
        elif what == 1:
            steps.insert(at, rng.choice(steps))
        elif what == 2:
            other = rng.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        elif what == 3:
            steps[at : at + 1] = [steps[at], b"2", b"(", b"d", b"]", b"K\1"][: rng.randrange(6)]
        elif what == 4:
            numbers = [n for n, s in enumerate(steps) if s[:1] in (b"K", b"M", b"J", b"h", b"q")]
            at = rng.choice(numbers)
            number = struct.pack("<i", rng.choice((-1, 0, 1, 2, 100, 2**31 - 1)))
            steps[at] = rng.choice((b"J" + number, b"h" + number[:1], b"G" + number * 2))
        elif what == 5:
            steps.insert(at, rng.choice((b"cos\nsystem\n", b"cbuiltins\neval\n", b"\x8a\xff")))
        elif what == 6:
            texts = [n for n, s in enumerate(steps) if s[:1] == b"X"]
            at = rng.choice(texts)
            steps[at] = steps[rng.choice(texts)]
        else:
            steps[at] = rng.choice((b"N", b")", b"}", b"]", b"\x88", b"R", b"b", b"Q", b"u", b"("))
        if not steps:
            break
    return b"".join(steps)


def _checkpoint(data: bytes, rng: Rng) -> bytes:
    """Change values and tensors of a checkpoint and save it again."""
    tree = torch.load(io.BytesIO(data), weights_only=True)
    state = tree["model"]
    if rng.random() < 0.5:
        mutate_tree(state["_extra_state"], rng)
    else:
        name = rng.choice([k for k, v in state.items() if isinstance(v, torch.Tensor)])
        value = state[name]
        state[name] = rng.choice((
            value.float(), value.to(torch.complex64), value[..., :1], value.bool(), value[None],
            value.new_full(value.shape, float("nan")), value.expand(7, *value.shape), {},
            value.new_empty(0), torch.ones(1, dtype=torch.long), value.flatten(), None,
        ))  # fmt: skip
    out = io.BytesIO()
    torch.save(tree, out)
    return out.getvalue()


def graph(data: bytes, rng: Rng) -> bytes:
    """Change fields of nested messages of protocol buffers; lengths are right again."""
    fields = parse_fields(data)
    if fields is None:
        return data
    for _ in range(rng.choice((1, 1, 2, 5))):
        level = fields
        while True:
            at = rng.randrange(len(level))
            value = level[at][2]
            if not isinstance(value, list) or rng.random() < 0.1 or not value:
                break
            level = value
        _change_field(level, at, rng)
        if not fields:
            break
    return join_fields(fields)


def _change_field(level: list[Any], at: int, rng: Rng) -> None:
    field, wire, value = level[at]
    what = rng.randrange(6)
    if what == 0:
        del level[at]
    elif what == 1:
        level.insert(rng.randrange(len(level)), level[rng.randrange(len(level))])
    elif what == 2:
        level[at] = (rng.randrange(1, 16), wire, value)
    elif isinstance(value, int):
        level[at] = (field, wire, rng.choice((*SIZES, value + 1)))
    elif isinstance(value, bytes):
        part = rng.choice(BLIND)(value, rng, [value or b"x"])
        level[at] = (field, wire, part if wire == 2 else part[: len(value)].ljust(len(value)))
    else:
        value += value[: rng.choice((1, 5))]


def parse_fields(data: bytes, depth: int = 0) -> list[Any] | None:
    """Fields as (number, wire type, value); a value that reads as a message is a list."""
    fields: list[Any] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if not 0 < field < 100 or wire not in (0, 1, 2, 5) or at > len(data):
            return None
        if wire == 0:
            value, at = _varint(data, at)
            fields.append((field, wire, value))
            continue
        size, at = _varint(data, at) if wire == 2 else (8 if wire == 1 else 4, at)
        part = data[at : at + size]
        if len(part) < size:
            return None
        inner = parse_fields(part, depth + 1) if wire == 2 and depth < 7 and part else None
        fields.append((field, wire, part if inner is None else inner))
        at += size
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
    return 0, len(data) + 1


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def join_fields(fields: list[Any]) -> bytes:
    out = bytearray()
    for field, wire, value in fields:
        out += _number(field << 3 | wire)
        if wire == 0:
            out += _number(value)
            continue
        part = join_fields(value) if isinstance(value, list) else value
        out += (_number(len(part)) if wire == 2 else b"") + part
    return bytes(out)


STRUCTURED: dict[str, Callable[[bytes, Rng], bytes]] = {
    "native": native, "dp": dp, "yaml": text, "pt": archive, "pth": archive, "pb": graph,
}  # fmt: skip
