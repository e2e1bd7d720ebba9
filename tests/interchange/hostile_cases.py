"""Hostile and broken files: name -> suffix, how to make one, what the error says.

    python -m tests.interchange.hostile_cases FOLDER

makes each file, reads it, and prints what happened as JSON; `test_hostile.py` does so in a
process of its own, since the worst files would take the process with them.
"""

# ruff: noqa: T201, BLE001, FBT003
from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import struct
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

from dpa_core.errors import ModelFileError
from dpa_core.interchange.files import load_model, read_header, save_model
from tests.interchange.hostile import HERE, tiny_model
from tests.interchange.mutate import join_fields, parse_fields

MARKER = "code-was-run"
Case = tuple[str, Callable[[Path], Any], str]
CASES: dict[str, Case] = {}
DEEP = 200_000


def case(suffix: str, reason: str) -> Callable[[Callable[[Path], Any]], Any]:
    """Register a function that writes a file; its name is the case's."""

    def add(make: Callable[[Path], Any]) -> Any:
        CASES[f"{suffix.lstrip('.') or 'file'}: {make.__name__.strip('_')}"] = suffix, make, reason
        return make

    return add


def _each(suffix: str, edit: Callable[[Path, Any], Any], table: dict[str, tuple[Any, str]]) -> None:
    """Register variants of one edit."""
    for name, (what, reason) in table.items():
        CASES[f"{suffix.lstrip('.')}: {name}"] = (
            suffix, lambda path, what=what: edit(path, what), reason,
        )  # fmt: skip


# What is no file at all, or of no format.

_each("", lambda path, raw: path.write_bytes(raw), {
    "empty": (b"", "an empty file"),
    "one byte": (b"P", "not a model file|damaged"),
    "zeros": (bytes(5000), "not a model file"),
    "text": (b"hello\n" * 99, "not a model file"),
    "noise": (bytes(range(256)) * 9, "not a model file"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(99), "not a model file"),
    "gzip": (gzip.compress(bytes(10**7)), "not a model file"),
    "pickle": (pickle.dumps({"model": 1}), "not a model file"),
    "zip magic alone": (b"PK\x03\x04", "damaged zip"),
    "HDF5 magic alone": (b"\x89HDF\r\n\x1a\n", "damaged"),
    "HDF5 magic, zeros": (b"\x89HDF\r\n\x1a\n" + bytes(10**5), "damaged"),
})  # fmt: skip


@case("", "a folder")
def _folder(path: Path) -> None:
    path.mkdir()


@case("", "a folder")
def _link_to_folder(path: Path) -> None:
    path.symlink_to(path.parent, target_is_directory=True)


@case("", "no such model file")
def _dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@case("", "cannot be read")
def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@case("", "a pipe or device")
def _pipe(path: Path) -> None:
    os.mkfifo(path)


@case("", "a pipe or device")
def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@case("", "no such model file")
def _missing(path: Path) -> None:
    pass


@case("", "cannot be read")
def _name_too_long(path: Path) -> Path:
    return path.with_name("x" * 300)


@case("", "cannot be read")
def _name_with_nul(path: Path) -> Path:
    return path.with_name("x\0y")


# Cut, and with a wrong start: every format.

GOOD: dict[str, Callable[[Path], Any]] = {
    suffix: lambda path: save_model(tiny_model(), path)
    for suffix in (".safetensors", ".dp", ".yaml", ".pt")
}
GOOD[".pth"] = lambda path: path.write_bytes((HERE / "torch" / "dpa1.pth").read_bytes())
GOOD[".pb"] = lambda path: path.write_bytes((HERE / "tensorflow" / "attn2.pb").read_bytes())


def _harm(path: Path, change: Callable[[bytes], bytes]) -> None:
    GOOD[path.suffix](path)
    path.write_bytes(change(path.read_bytes()))


for _suffix in GOOD:
    _each(_suffix, _harm, {
        "cut in the middle": (lambda raw: raw[: len(raw) // 2], ""),
        "cut at a third": (lambda raw: raw[: len(raw) // 3], ""),
        "only its start": (lambda raw: raw[:100], ""),
        "wrong magic": (lambda raw: b"\xfe\xfd\xfc\xfb" + raw[4:], "not a model file|damaged"),
        "all 0xff behind its start": (lambda raw: raw[:16] + b"\xff" * (len(raw) - 16), ""),
        "all zero behind its start": (lambda raw: raw[:16] + bytes(len(raw) - 16), ""),
    })  # fmt: skip


# Native.


def _header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    GOOD[".safetensors"](path)
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    text = json.dumps(change(header) or header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def _meta(path: Path, changes: dict[str, str]) -> None:
    _header(path, lambda h: h["__metadata__"].update(changes))


def _config(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    def edit(header: dict[str, Any]) -> None:
        config = json.loads(header["__metadata__"]["config"])
        change(config)
        header["__metadata__"]["config"] = json.dumps(config)

    _header(path, edit)


_each(".safetensors", _meta, {
    "config nested deeply": ({"config": "[" * DEEP + "]" * DEEP}, "nested too deeply"),
    "config names a key twice": ({"config": '{"type_map": [], "type_map": []}'}, "occurs twice"),
    "config of many values": ({"config": "[" + "[]," * 5_000_000 + "[]]"}, "more than"),
    "config with a long number": ({"config": "9" * 100_000}, "header is damaged"),
    "provenance is a list": ({"provenance": "[]"}, "provenance is not a mapping"),
    "provenance nested deeply": ({"provenance": '{"a":' * DEEP + "1" + "}" * DEEP}, "deeply"),
})  # fmt: skip
_each(".safetensors", _config, {
    "many elements": (lambda c: c.update(type_map=[f"X{n}" for n in range(50_000)]), "tensors"),
    "many layers": (lambda c: c["fitting_net"].update(neuron=[1] * 100_000), "tensors"),
    "wide layers": (lambda c: c["fitting_net"].update(neuron=[10**9]), "numbers"),
    "many heads": (lambda c: c.update(heads=10**9), "tensors"),
    "infinite radius": (lambda c: c["descriptor"].update(rcut=float("inf")), "rcut"),
    "radius beyond a float": (lambda c: c["descriptor"].update(rcut=10**400), "rcut"),
    "sel beyond a float": (lambda c: c["descriptor"].update(sel=10**400), "sel"),
    "radius is a list": (lambda c: c["descriptor"].update(rcut=[[1]]), "rcut"),
    "long unknown key": (lambda c: c.update({"x" * 10**6: 1}), r"1 mistake\n  x+ \.\.\."),
    "long value": (lambda c: c.update(type_map="x" * 10**6), "type_map"),
})  # fmt: skip
_each(".safetensors", _header, {
    "shape beyond the file": (lambda h: h["out_bias"].update(shape=[2**40]), "truncated|tensors"),
    "offsets beyond the file": (
        lambda h: h["out_bias"].update(data_offsets=[0, 2**60]), "truncated|tensors",
    ),
    "overlapping tensors": (
        lambda h: h["out_bias"].update(data_offsets=h["out_std"]["data_offsets"]), "truncated",
    ),
    "negative shape": (lambda h: h["out_bias"].update(shape=[-1]), "truncated"),
    "unknown dtype": (lambda h: h["out_bias"].update(dtype="C999"), "truncated"),
    "complex": (lambda h: h["out_bias"].update(dtype="C64"), "truncated|complex64"),
    "integers": (lambda h: h["out_bias"].update(dtype="I64"), "int64"),
    "header is a list": (lambda _: ["a"], "not a model file|truncated"),
})  # fmt: skip


@case(".safetensors", "nan or inf")
def _nan(path: Path) -> None:
    _spoil(path, float("nan"))


@case(".safetensors", "nan or inf")
def _inf(path: Path) -> None:
    _spoil(path, float("inf"))


def _spoil(path: Path, value: float) -> None:
    model = tiny_model()
    model.out_bias[0] = value
    save_model(model, path)


for _suffix in (".dp", ".yaml", ".pt"):
    CASES[f"{_suffix[1:]}: nan"] = _suffix, lambda path: _spoil(path, float("nan")), "nan or inf"
    CASES[f"{_suffix[1:]}: inf"] = _suffix, lambda path: _spoil(path, -float("inf")), "nan or inf"


# DeePMD-kit's dictionary in HDF5.


def _text(path: Path, change: Callable[[str], Any]) -> None:
    GOOD[".dp"](path)
    with h5py.File(path, "r+") as file:
        value = change(file.attrs["json"])
        del file.attrs["json"]
        if value is not None:
            file.attrs["json"] = value


_each(".dp", _text, {
    "no attribute": (lambda _: None, "no attribute 'json'"),
    "attribute is a number": (lambda _: 7, "is no text"),
    "attribute is a list": (lambda t: [t, t], "is no text"),
    "attribute is an array": (lambda _: np.zeros(7000), "is no text"),
    "no JSON": (lambda t: t[:-1], "damaged"),
    "JSON of nothing": (lambda _: "null", "expected a mapping"),
    "JSON nested deeply": (lambda _: "[" * DEEP, "nested too deeply"),
    "JSON nested less deeply": (lambda _: "[" * 500 + "]" * 500, "nested too deeply"),
    "JSON of many values": (lambda _: "[" + "{}," * 5_000_000 + "{}]", "more than"),
    "JSON names a key twice": (lambda t: t.replace('"rcut"', '"sel":1,"rcut"', 1), "twice"),
    "not UTF-8": (lambda t: np.bytes_(t.encode().replace(b'"O"', b'"\xff"')), "damaged"),
    "long number": (lambda t: t.replace("3.5", "9" * 100_000), "damaged"),
    "array outside the root": (lambda t: t.replace("/variable_0000", "/a/b"), "lies elsewhere"),
    "array in another file": (lambda t: t.replace("/variable_0000", "../x"), "lies elsewhere"),
    "array has no name": (lambda t: t.replace("/variable_0000", ""), "lies elsewhere"),
    "array is missing": (lambda t: t.replace("/variable_0000", "/other"), "is missing"),
    "array is a mapping": (lambda t: t.replace('"/variable_0000"', '{"a":1}'), "object|mapping"),
    "array is ragged": (lambda t: t.replace('"/variable_0000"', "[[1],[1,2]]"), "inhomogeneous"),
})  # fmt: skip


def _data_set(path: Path, replace: Callable[[h5py.File, str, Any], Any]) -> None:
    GOOD[".dp"](path)
    with h5py.File(path, "r+") as file:
        old = file["variable_0002"][()]
        del file["variable_0002"]
        replace(file, "variable_0002", old)


def _make(**options: Any) -> Callable[[h5py.File, str, Any], Any]:
    return lambda file, name, old: file.create_dataset(name, **options)


def _virtual(file: h5py.File, name: str, old: Any) -> None:
    layout = h5py.VirtualLayout(shape=(10**9,), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(10**9,))
    file.create_virtual_dataset(name, layout)


def _named_often(file: h5py.File, name: str, old: Any) -> None:
    file.create_dataset(name, data=np.zeros(10**6))
    many = json.dumps([f"/{name}"] * 10_000)
    file.attrs["json"] = file.attrs["json"].replace('"/variable_0003"', many)


def _link(link: Any) -> Callable[[h5py.File, str, Any], Any]:
    return lambda file, name, old: file.__setitem__(name, link)


_each(".dp", _data_set, {
    "huge claim": (_make(shape=(10**9,), dtype="f8"), "not all there"),
    "huge claim in two dimensions": (_make(shape=(2**30, 2**30), dtype="f8"), "damaged|not all"),
    "huge claim in chunks": (
        _make(shape=(10**10,), dtype="f8", chunks=(10**6,)), "in pieces",
    ),
    "compressed": (_make(data=np.zeros(3 * 10**6), compression="gzip"), "is compressed"),
    "never written": (_make(shape=(2,), dtype="f8"), "not all there"),
    "virtual": (_virtual, "is not an array of this file"),
    "in another file": (
        _make(shape=(10**9,), dtype="f8", external=[("/dev/zero", 0, 8 * 10**9)]),
        "is not an array of this file",
    ),
    "external link": (_link(h5py.ExternalLink("other.h5", "/x")), "lies elsewhere"),
    "soft link": (_link(h5py.SoftLink("/variable_0001")), "lies elsewhere"),
    "a group": (lambda file, name, old: file.create_group(name), "is not an array"),
    "the root": (lambda file, name, old: file.__setitem__(name, file["/"]), "is not an array"),
    "a type": (lambda file, name, old: file.__setitem__(name, np.dtype("f8")), "not an array"),
    "complex": (lambda f, name, old: f.create_dataset(name, data=old * 1j), "not numbers"),
    "text": (_make(data="abc"), "not numbers"),
    "objects": (_make(shape=(2,), dtype=h5py.ref_dtype), "not numbers"),
    "records": (_make(data=np.zeros(2, [("a", "f8")])), "not numbers"),
    "nothing": (_make(data=h5py.Empty("f8")), "not all there"),
    "integers": (lambda f, name, old: f.create_dataset(name, data=old.astype(int)), "int64"),
    "other byte order": (
        lambda f, name, old: f.create_dataset(name, data=old.astype(">f8")), "byte order",
    ),
    "named often": (_named_often, "shape"),
    "one number short": (
        lambda f, name, old: f.create_dataset(name, data=old.reshape(-1)[1:]), "shape",
    ),
})  # fmt: skip


@case(".dp", "damaged|crashed")
def _length_of_four_gigabytes(path: Path) -> None:
    """In the heap reference of the attribute, where HDF5 believes it."""
    GOOD[".dp"](path)
    with h5py.File(path) as file:
        size = struct.pack("<I", len(file.attrs["json"].encode()))
    path.write_bytes(path.read_bytes().replace(size, b"\xf0\xff\xff\xff", 1))


@case(".dp", "HDF5 crashed or hung")
def _endless_heap(path: Path) -> None:
    """An object of no size in the global heap, behind which HDF5 2.0 looks for ever."""
    GOOD[".dp"](path)
    raw = bytearray(path.read_bytes())
    first = raw.index(b"GCOL") + 16  # behind it, its size: the first object
    raw[first : first + 16] = bytes(16)
    path.write_bytes(raw)


# The same as text.


def _lines(path: Path, change: Callable[[str], Any]) -> None:
    GOOD[".yaml"](path)
    text = change(path.read_text())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def _laughs(text: str) -> str:
    """A billion values by aliases."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join([*lines, text])


_each(".yaml", _lines, {
    "billion laughs": (_laughs, "anchors and aliases"),
    "anchor": (lambda t: t.replace("model:", "model: &a", 1), "anchors and aliases"),
    "merge key": (lambda t: t + "<<: {a: 1}\n<<: {a: 1}\n", "damaged"),
    "python call": (
        lambda t: t + f"x: !!python/object/apply:os.system ['touch {MARKER}']\n", "tags",
    ),
    "python name": (lambda t: t + "x: !!python/name:os.system\n", "tags"),
    "binary tag": (lambda t: t + "x: !!binary aGk=\n", "tags"),
    "key twice": (lambda t: t + "backend: x\n", "'backend' occurs twice"),
    "two documents": (lambda t: t + "---\na: 1\n", "2 documents"),
    "only comments": (lambda _: "# @variables\n", "0 documents"),
    "flow nested deeply": (lambda _: "'@variables': " + "[" * DEEP, "nest"),
    "mappings nested deeply": (lambda _: "'@variables': " + "{a: " * DEEP, "nest"),
    "blocks nested deeply": (lambda _: "'@variables':\n" + "- " * DEEP, "nested too deeply"),
    "list as key": (lambda t: t + "? [a, b]\n: 1\n", "is no name"),
    "not UTF-8": (lambda t: t.encode().replace(b"- O\n", b"- \xff\n"), "damaged"),
    "UTF-16": (lambda t: t.encode("utf-16"), "not a model file|@variables"),
    "NUL": (lambda t: t + "\0", "damaged|not a model file"),
    "a tab": (lambda t: t.replace("model:\n", "model:\n\t", 1), "damaged"),
    "not text": (lambda t: t.replace("dtype: float64", "dtype: object", 1), "an array of 'object'"),
    "dtype of text": (lambda t: t.replace("dtype: float64", "dtype: U9", 1), "an array of 'U9'"),
    "dtype is a list": (lambda t: t.replace("dtype: float64", "dtype: [f8]", 1), "an array of"),
    "array without values": (lambda t: t.replace("value:", "values:", 1), "damaged.*value"),
    "long number": (lambda t: t.replace("3.5", "9" * 100_000), "damaged"),
    "long text": (lambda t: t.replace("backend: dpaflow", "x" * 10**6, 1), "damaged"),
})  # fmt: skip


# Archives of torch.


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Persistent(pickle.Pickler):
    """Writes `Storage` objects as persistent ids."""

    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, Storage) else None


class Storage:
    """Stands for a record; anything can be said about it."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


def _archive(path: Path, parts: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, part in parts.items():
            archive.writestr(f"m/{name}", part)


def _pickled(path: Path, data: Any) -> None:
    """Write an archive whose pickle is `data`, an object or bytes."""
    if not isinstance(data, bytes):
        out = io.BytesIO()
        Persistent(out, 2).dump(data)
        data = out.getvalue()
    code = {"code/x.py": b""} if path.suffix == ".pth" else {}
    _archive(path, {"data.pkl": data, "data/0": bytes(80), "version": b"3\n", **code})


def _dag(levels: int, leaf: Any = "x") -> Any:
    value = [leaf]
    for _ in range(levels):
        value = [value, value]
    return value


def _loop() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["descriptor"] = loop
    return loop


def _params(**changes: Any) -> dict[str, Any]:
    """Make a checkpoint of nothing but a description."""
    section = {"type_map": ["O"], "descriptor": {"type": "dpa1"}, "fitting_net": {}} | changes
    return {"model": {"_extra_state": {"model_params": section}}}


def _tensor(storage: Any, size: Any = (10,), stride: Any = (1,), offset: Any = 0) -> Any:
    rebuild = torch._utils._rebuild_tensor_v2
    return {"model": {"x": Call(rebuild, storage, offset, size, stride, False, {})}}


DOUBLE = torch.DoubleStorage
TOUCH = Call(os.system, f"touch {MARKER}")
_each(".pt", _pickled, {
    "os.system": (TOUCH, "asks for posix.system, which is no data and was not run"),
    "os.system among the weights": ({"model": {"a": TOUCH}}, "posix.system"),
    "eval": (Call(eval, f"open('{MARKER}', 'w')"), "builtin__.eval"),
    "old class": (b"(S'touch x'\nios\nsystem\n.", "uses b'S'"),
    "inst": (b"(ios\nsystem\n.", "uses b'i'"),
    "obj": (b"(cos\nsystem\no.", "uses b'o'"),
    "ext": (b"\x82\x01.", "which torch never writes"),
    "newobj of a class": (b"cbuiltins\nlist\n)\x81.", "builtins.list"),
    "getattr": (Call(getattr, "x", "upper"), "builtin__.getattr"),
    "bytes of a terabyte": (Call(bytearray, 10**12), "builtin__.bytearray"),
    "sparse tensor": ({"x": Call(torch._utils._rebuild_sparse_tensor, 0, ())}, "sparse"),
    "call of a text": (b"X\x01\x00\x00\x00a)R.", "calling what is no function"),
    "state of a tensor": (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nDoubleStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\ntQK\x00(K\nt(K\x01ttR}b.",
        "sets the state of a Tensor",
    ),
    "empty pickle": (b"", "cut short"),
    "no end": (b"\x80\x02]", "cut short"),
    "nothing on the stack": (b"\x80\x02R.", "damaged"),
    "mark is missing": (b"\x80\x02]t.", "a mark is missing"),
    "memo of a terabyte": (b"\x80\x02]r\xff\xff\xff\xff.", "no checkpoint"),
    "long text": (b"\x80\x02\x8d" + b"\xff" * 8 + b"a.", "cut short"),
    "many lists": (b"\x80\x02" + b"]" * 2_100_000 + b".", "more than 1,000,000 instructions"),
    "nested deeply": (b"\x80\x02" + b"(" * DEEP + b"t" * DEEP + b".", "no checkpoint"),
    "not UTF-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
    "key is a tuple of tuples": (b"\x80\x02}" + b")" + b"2\x86" * 40 + b"Ns.", "uses b'2'"),
    "key is a tuple": ({(1, 2): 3}, "keys are neither"),
    "description is exponential": (_params(a=_dag(50)), "more than"),
    "description contains itself": (_params(a=_loop()), "nested too deeply"),
    "description of long texts": (_params(a=["x" * 10**6] * 300), "more than"),
    "description holds a tensor": (_params(a=b"12"), "damaged|_codecs"),
    "branches are a list": (_params(model_dict=[1]), "names no branch"),
    "a branch is a list": (_params(model_dict={"a": [1]}), "is damaged"),
    "a state that is no dict": ({"model": [1]}, "no checkpoint"),
    "record has another size": (_tensor(Storage("storage", DOUBLE, "0", "cpu", 11)), "holds 10"),
    "record of a terabyte": (_tensor(Storage("storage", DOUBLE, "0", "cpu", 2**40)), "holds 10"),
    "record is missing": (_tensor(Storage("storage", DOUBLE, "7", "cpu", 10)), "is missing"),
    "record above": (_tensor(Storage("storage", DOUBLE, "../data.pkl", "cpu", 1)), "is missing"),
    "record has no name": (_tensor(Storage("storage", DOUBLE, 0, "cpu", 10)), "no name"),
    "not a storage": (_tensor(Storage("module", DOUBLE, "0", "cpu", 10)), "no tensor"),
    "short persistent id": (_tensor(Storage("storage", DOUBLE)), "no tensor"),
    "storage of a type that is none": (_tensor(Storage("storage", dict, "0", "cpu", 1)), "unknown"),
    "shape beyond the record": (
        _tensor(Storage("storage", DOUBLE, "0", "cpu", 10), (11,)), "reaches beyond",
    ),
    "stride beyond the record": (
        _tensor(Storage("storage", DOUBLE, "0", "cpu", 10), (2,), (10,)), "reaches beyond",
    ),
    "offset beyond the record": (
        _tensor(Storage("storage", DOUBLE, "0", "cpu", 10), offset=5), "reaches beyond",
    ),
    "repeated to a terabyte": (
        _tensor(Storage("storage", DOUBLE, "0", "cpu", 10), (2**37,), (0,)), "reaches beyond",
    ),
    "negative shape": (
        _tensor(Storage("storage", DOUBLE, "0", "cpu", 10), (-1,)), "impossible shape",
    ),
    "shape is text": (_tensor(Storage("storage", DOUBLE, "0", "cpu", 10), "ab", "cd"), "imposs"),
    "no storage": (_tensor(None), "no storage"),
})  # fmt: skip


def _checkpoint(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    GOOD[".pt"](path)
    data = torch.load(path, weights_only=True)
    change(data["model"])
    torch.save(data, path)


_BIAS = "model.Default.atomic_model.out_bias"


def _put(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.update({_BIAS: value})


def _one_record_often(state: dict[str, Any]) -> None:
    big = torch.zeros(10**6)
    name = "model.Default.atomic_model.fitting_net.filter_layers.networks.0.layers.{}.matrix"
    state.update({name.format(k): big for k in range(3, 2000)})


_each(".pt", _checkpoint, {
    "complex": (_put(torch.zeros(1, 2, 1, dtype=torch.complex128)), "complex128|unknown type"),
    "integers": (_put(torch.zeros(1, 2, 1, dtype=torch.int64)), "int64"),
    "bools": (_put(torch.zeros(1, 2, 1, dtype=torch.bool)), "torch.bool"),
    "other shape": (_put(torch.zeros(1, 3, 1, dtype=torch.float64)), "shape|expected"),
    "a text": (_put("x"), "not a tensor"),
    "expanded": (_put(torch.zeros(1, dtype=torch.float64).expand(10**12)), "reaches beyond"),
    "meta": (_put(torch.zeros(2, device="meta")), "was not run"),
    "quantized": (_put(OrderedDict()), "not a tensor"),
    "one record under many names": (_one_record_often, "larger than the file"),
})  # fmt: skip


def _repack(path: Path, change: Callable[[list[Any]], Any]) -> None:
    """Change the list of (name, bytes) of a good archive."""
    GOOD[path.suffix](path)
    with zipfile.ZipFile(path) as archive:
        parts = [[name, archive.read(name)] for name in archive.namelist()]
    change(parts)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of two records with one name
        for name, part in parts:
            archive.writestr(name, part)


def _pickle_twice(parts: list[Any]) -> None:
    parts.append(["other/data.pkl", b"N."])


def _drop(end: str) -> Callable[[list[Any]], Any]:
    return lambda parts: parts.remove(next(p for p in parts if p[0].endswith(end)))


def _cut_record(parts: list[Any]) -> None:
    next(p for p in parts if p[0].endswith("data/0"))[1] = b"123"


def _big_endian(parts: list[Any]) -> None:
    next(p for p in parts if p[0].endswith("byteorder"))[1] = b"big"


for _suffix in (".pt", ".pth"):
    _each(_suffix, _repack, {
        "record twice": (lambda parts: parts.append(parts[-1]), "two records have one name"),
        "two pickles": (_pickle_twice, "no data.pkl"),
        "no pickle": (_drop("/data.pkl"), "no data.pkl"),
        "a record less": (_drop("data/0"), "is missing"),
        "a record cut": (_cut_record, "no whole|holds"),
        "big-endian": (_big_endian, "big-endian"),
    })  # fmt: skip


@case(".pt", "unpacks to more than the file holds")
def _zip_bomb(path: Path) -> None:
    _archive(path, {"data.pkl": bytes(300 << 20)}, zipfile.ZIP_DEFLATED)


@case(".pt", "directory has 18 MiB")
def _zip_of_many_entries(path: Path) -> None:
    GOOD[".pt"](path)
    raw = path.read_bytes()
    start = raw.rindex(b"PK\5\6")
    size, at = struct.unpack("<II", raw[start + 12 : start + 20])
    entries = raw[at : at + size]
    end = raw[start : start + 8] + b"\xff" * 4
    end += struct.pack("<II", 18 << 20, at) + b"\0\0"
    path.write_bytes(raw[:at] + (entries * ((18 << 20) // size + 1))[: 18 << 20] + end)


@case(".pt", "no data.pkl")
def _zip_of_nothing(path: Path) -> None:
    _archive(path, {"x": b""})


@case(".pt", "compressed records")
def _compressed(path: Path) -> None:
    _archive(path, {"data.pkl": os.urandom(2000) + bytes(99)}, zipfile.ZIP_DEFLATED)


def _directory(path: Path, at: int, value: bytes) -> None:
    """Change bytes of the first entry of the central directory."""
    GOOD[".pt"](path)
    raw = bytearray(path.read_bytes())
    start = raw.rindex(b"PK\5\6")
    entry = struct.unpack("<I", raw[start + 16 : start + 20])[0] + at
    raw[entry : entry + len(value)] = value
    path.write_bytes(raw)


_CENTRAL = {
    "encrypted": ((8, b"\x01\x00"), "encrypted"),
    "size of four gigabytes": ((24, b"\xfe" * 4), "unpacks to more|damaged"),
    "zip64 size without zip64": ((24, b"\xff" * 4), "unpacks to more|damaged"),
    "offset beyond the end": ((42, b"\xfe\xff\xff\x7f"), "damaged"),
    "offset of another record": ((42, b"\x01\x00\x00\x00"), "damaged"),
    "unknown compression": ((10, b"\x63\x00"), "compressed"),
    "wrong checksum": ((16, b"abcd"), "damaged"),
    "name beyond the directory": ((28, b"\xff\xff"), "damaged"),
}  # fmt: skip
_each(".pt", lambda path, what: _directory(path, *what), _CENTRAL)


class Inert:
    """A class in `__torch__`."""


Inert.__module__, Inert.__qualname__ = "__torch__.deepmd", "Inert"


def _module(*pairs: tuple[str, bytes]) -> bytes:
    """Pickle of a module with attributes, each a pickled value without its end."""
    items = b"".join(_word(name) + value for name, value in pairs)
    return b"c__torch__.x\nM\n)\x81}(" + items + b"ub"


def _word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _modules_explode(levels: int) -> bytes:
    """Each module holds the one before twice."""
    raw = b"\x80\x02" + _module(("a", b"N")) + b"q\x00"
    for n in range(1, levels):
        raw += _module(("a", b"h" + bytes([n - 1])), ("b", b"h" + bytes([n - 1])))
        raw += b"q" + bytes([n])
    section = {"type_map": ["O"], "descriptor": {"type": "dpa1"}, "fitting_net": {}}
    last = b"h" + bytes([levels - 1])
    return raw + _module(("model_def_script", _word(json.dumps(section))), ("a", last)) + b"."


def _script(text: str) -> bytes:
    return b"\x80\x02" + _module(("model_def_script", _word(text))) + b"."


_each(".pth", _pickled, {
    "os.system": (TOUCH, "posix.system"),
    "foreign class": (b"\x80\x02cmodels\nMine\n)\x81.", "models.Mine"),
    "no module": (b"\x80\x02N.", "no attribute model_def_script"),
    "module of nothing": (b"\x80\x02" + _module() + b".", "no attribute model_def_script"),
    "state is a list": (b"\x80\x02c__torch__.x\nM\n)\x81]b.", "attributes are no dict"),
    "modules explode": (_modules_explode(60), "contain each other"),
    "module contains itself": (
        b"\x80\x02c__torch__.x\nM\n)\x81q\x00}(" + _word("model_def_script")
        + _word(json.dumps(_params()["model"]["_extra_state"]["model_params"]))
        + _word("a") + b"h\x00ub.",
        "contain each other",
    ),
    "script is no JSON": (_script("{"), "model_def_script is damaged"),
    "script is a list": (_script("[1]"), "does not describe one model"),
    "script nested deeply": (_script("[" * DEEP), "nested too deeply"),
    "script names a key twice": (_script('{"a":1,"a":1}'), "occurs twice"),
    "script of many tasks": (_script('{"model_dict": {}}'), "does not describe one model"),
    "script of nothing": (_script("{}"), "cannot be represented"),
})  # fmt: skip


# Graphs of TensorFlow: nodes are fields 1 of name 1, op 2, inputs 3, attributes 5.


def _graph(path: Path, change: Callable[[list[Any]], Any]) -> None:
    GOOD[".pb"](path)
    nodes = parse_fields(path.read_bytes())
    assert nodes is not None
    path.write_bytes(join_fields(change(nodes) or nodes))


def _every_constant(value: list[Any]) -> Callable[[list[Any]], Any]:
    """Give every constant this TensorProto."""

    def change(nodes: list[Any]) -> None:
        for _, _, node in nodes:
            if isinstance(node, list) and (2, 2, b"Const") in node:
                node[:] = [field for field in node if field[0] != 5]
                node.append((5, 2, [(1, 2, b"value"), (2, 2, [(8, 2, value)])]))

    return change


def _reads_itself(nodes: list[Any]) -> None:
    for _, _, node in nodes:
        if isinstance(node, list):
            name = next((value for field, _, value in node if field == 1), b"")
            node[:] = [(3, 2, name) if field[0] == 3 else field for field in node]


def _shape(*sizes: int) -> tuple[int, int, list[Any]]:
    return 2, 2, [(2, 2, [(1, 0, size)]) for size in sizes]


_each(".pb", _graph, {
    "a node twice": (lambda nodes: [*nodes, nodes[0]], "two nodes are named"),
    "nodes read themselves": (_reads_itself, ""),
    "no nodes but one": (lambda nodes: nodes[:1], ""),
    "constants of a terabyte": (_every_constant([(1, 0, 2), _shape(2**20, 2**17)]), ""),
    "constants of many dimensions": (_every_constant([(1, 0, 2), _shape(*[2] * 10_000)]), ""),
    "constants of negative shape": (_every_constant([(1, 0, 2), _shape(2**64 - 1)]), ""),
    "constants of unknown type": (_every_constant([(1, 0, 99), _shape(1)]), ""),
    "constants of text": (_every_constant([(1, 0, 7), _shape(1), (8, 2, b"x")]), ""),
    "constants of nothing": (_every_constant([]), ""),
    "constants of not enough": (
        _every_constant([(1, 0, 2), _shape(4, 4), (4, 2, bytes(8))]), "",
    ),
})  # fmt: skip
_each(".pb", lambda path, raw: path.write_bytes(raw), {
    "length of a terabyte": (b"\n\x20\n\xff\xff\xff\xff\xff\x1f" + bytes(40), "damaged"),
    "integer without end": (b"\n\x20\n" + b"\xff" * 99, "damaged"),
    "unknown wire type": (b"\n\x03\n\x01x\x0f", "damaged"),
    "not UTF-8": (b"\n\x08\n\x02\xff\xff\x12\x02ab", "damaged"),
    "many empty nodes": (b"\n\x04\n\x00\n\x00" + b"\n\x00" * 10**6, "damaged"),
})  # fmt: skip


def run(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make and read the file of every case."""
    for name, (suffix, make, _) in CASES.items():
        path = folder / f"case{suffix}"
        path = make(path) or path if suffix == "" else (make(path), path)[1]
        path = path if isinstance(path, Path) else folder / f"case{suffix}"
        yield name, _read(path)
        other = folder / f"case{suffix}"
        if other.is_dir() and not other.is_symlink():
            other.rmdir()
        else:
            other.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, start = _memory("VmRSS"), time.process_time()
    result = {"error": "none", "text": ""}
    for read in (load_model,) if path.suffix == ".dp" else (read_header, load_model):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read(path)
        except BaseException as error:
            text = str(error)
            if isinstance(error, ModelFileError) and text.startswith(str(path)):
                text = text[len(str(path)) :]
            result = {"error": type(error).__name__, "text": text}
    seconds = (time.process_time() - start) / (1 if path.suffix == ".dp" else 2)
    return result | {"seconds": seconds, "bytes": _memory("VmHWM") - before}


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise AssertionError(key)


def main() -> None:
    """Print a line of JSON before and after each case."""
    folder = Path(sys.argv[1])
    os.chdir(folder)
    used = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30),) * 2)
    for name, result in run(folder):
        print(json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    _ = yaml
    main()
