"""The native file: exact round trip, and one clear error for every kind of damage."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from dpa_core.errors import ModelFileError
from dpa_core.interchange.files import load_model, read_header, save_model
from tests.tools.conftest import frame


@pytest.fixture
def saved(make_model, tmp_path):
    model = make_model({"precision": "float32"})
    model.out_bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    model.provenance = {"steps": 10, "data": ["a"]}
    return model, save_model(model, tmp_path / "deep" / "m.safetensors")


@pytest.mark.parametrize("kind", ["dpa1", "se_e2_a"])
def test_round_trip_is_exact(make_model, tmp_path, rng, kind):
    model = make_model({"type": kind, "exclude_types": [[0, 2]]}, preset_out_bias={"H": 1.0})
    model.descriptor.davg[:, 0] = 0.125
    path = save_model(model, tmp_path / "m.safetensors", {"by": "test"})
    again = load_model(path)
    assert again.config == model.config
    assert again.type_map == ("O", "H", "Cu")
    assert again.provenance == {"by": "test"}
    one = frame(rng, [0, 1, 2, 0])
    before = model.evaluate(one.coord[None], one.box[None], one.atype)
    after = again.evaluate(one.coord[None], one.box[None], one.atype)
    assert np.array_equal(before.energy, after.energy)
    assert np.array_equal(before.force, after.force)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_header_is_read_without_tensors(saved):
    header = read_header(saved[1])
    assert header["version"] == 1
    assert header["type_map"] == ["O", "H", "Cu"]
    assert header["config"]["descriptor"]["rcut"] == 3.5
    assert header["provenance"] == {"steps": 10, "data": ["a"]}


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    model, path = saved
    old = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, path)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def edit(path, change):
    """Rewrite the file after `change(tensors, metadata)`."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def edit_config(path, **changes):
    def change(_, metadata):
        config = json.loads(metadata["config"])
        for key, value in changes.items():
            *parents, last = key.split("__")
            target = config
            for name in parents:
                target = target[name]
            target[last] = value
        metadata["config"] = json.dumps(config)

    edit(path, change)


DAMAGE = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "truncated"),
    "header cut": (lambda p: p.write_bytes(p.read_bytes()[:50]), "truncated"),
    "empty": (lambda p: p.write_bytes(b""), "an empty file"),
    "text": (lambda p: p.write_text("hello " * 99), "not a model file"),
    "torch file": (
        lambda p: torch.save({"a": torch.ones(2)}, p),
        "no checkpoint of DeePMD-kit",
    ),
    "foreign": (lambda p: safetensors.torch.save_file({"a": torch.ones(2)}, p), "not a dpaflow"),
    "version": (lambda p: edit(p, lambda _, m: m.update(version="7")), "version '7'"),
    "missing": (lambda p: edit(p, lambda t, _: t.pop("out_bias")), "out_bias is missing"),
    "extra": (lambda p: edit(p, lambda t, _: t.update(x=torch.ones(1))), "x is unknown"),
    "shape": (
        lambda p: edit(p, lambda t, _: t.update(out_bias=torch.ones(4).double())),
        r"out_bias is \(4,\)",
    ),
    "dtype": (lambda p: edit(p, lambda t, _: t.update(out_bias=torch.ones(3))), "float32"),
    "json": (lambda p: edit(p, lambda _, m: m.update(config="{")), "header is damaged"),
    "no map": (lambda p: edit(p, lambda _, m: m.update(config="[]")), "header is damaged"),
    "key": (lambda p: edit_config(p, descriptor__rcutt=3), "rcutt: unknown key"),
    "auto": (lambda p: edit_config(p, descriptor__sel="auto"), "unusable"),
    "huge": (lambda p: edit_config(p, fitting_net__neuron=[10**9, 10**9]), "only .* numbers"),
    "huge attn": (lambda p: edit_config(p, descriptor__attn=10**12), "only .* numbers"),
    "many layers": (lambda p: edit_config(p, descriptor__attn_layer=10**9), "only .* tensors"),
    "other width": (lambda p: edit_config(p, descriptor__neuron=[5, 8]), "expected"),
    "huge header": (
        lambda p: p.write_bytes(struct.pack("<Q", 2**60) + p.read_bytes()[8:]),
        "not a model file",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_gives_one_clear_error(saved, kind):
    path = saved[1]
    harm, reason = DAMAGE[kind]
    harm(path)
    with pytest.raises(ModelFileError, match=reason) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match="no such model file"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match="a folder, not a model file"):
        load_model(tmp_path)


def test_public_names_come_lazily():
    code = (
        "import sys, dpa_core; assert 'torch' not in sys.modules;"
        "from dpa_core import load_model, DPACalculator;"
        "assert callable(load_model) and callable(DPACalculator)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import dpa_core

    with pytest.raises(AttributeError, match="nothing"):
        _ = dpa_core.nothing
