"""Models that cannot be represented, or contradict themselves, are refused: what, where, and what
would do. What is only written in another way, or of an older version, is read."""

from __future__ import annotations

import copy
import functools
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from dpa_core.errors import ModelFileError
from dpa_core.interchange.deepmd_check import VERSIONS
from dpa_core.interchange.files import load_model, save_model
from tests.interchange.hostile import DPA1, HERE, SE, tiny_model

Tree = dict[str, Any]
Change = Callable[[Tree], Any]
KINDS = {"dpa1": DPA1, "se_e2_a": SE, "bias": DPA1 | {"use_tebd_bias": True}}


class Dumper(yaml.CSafeDumper):
    """Writes what occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@functools.cache
def good_tree(kind: str) -> Tree:
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(tiny_model(KINDS[kind]), Path(folder) / "m.yaml")
        return yaml.load(path.read_text(), yaml.CSafeLoader)


def dict_file(path: Path, change: Change, kind: str = "dpa1") -> Path:
    """A `.yaml` file whose `model` was changed; `.dp` files hold the same."""
    tree = copy.deepcopy(good_tree(kind))
    change(tree["model"])
    path.write_text(yaml.dump(tree, Dumper=Dumper, sort_keys=False))
    return path


def place(tree: Any, where: str) -> tuple[Any, Any]:
    """Parent and key of `descriptor.embeddings.networks.0`."""
    *parents, last = (int(k) if k.isdigit() else k for k in where.split("."))
    for key in parents:
        tree = tree[key]
    return tree, last


def put(where: str, value: Any) -> Change:
    def change(tree: Tree) -> None:
        parent, key = place(tree, where)
        parent[key] = value

    return change


def drop(where: str) -> Change:
    def change(tree: Tree) -> None:
        parent, key = place(tree, where)
        del parent[key]

    return change


def refused(path: Path, *words: str) -> str:
    with pytest.raises(ModelFileError) as error:
        load_model(path)
    text = str(error.value)
    assert text.startswith(str(path).partition("#")[0])
    for word in words:
        assert word in text, text
    return text


NET, LAYER = "descriptor.embeddings.networks.0", "descriptor.embeddings.networks.0.layers.0"
FIT, LAST = "fitting.nets.networks.0", "fitting.nets.networks.0.layers.2"
TYPES, ATTENTION = "descriptor.type_embedding", "descriptor.attention_layers"
ONE = f"{ATTENTION}.attention_layers.0"

# What DeePMD-kit has and we do not.
FOREIGN = {
    "type": ["zbl", "linear", "pairtab", "spin_ener", 3, ["standard"]],
    "descriptor.type": ["se_e2_r", "se_e3", "se_atten_v9", "dpa2", "dpa3", "hybrid", None, {}, []],
    "descriptor.spin": [{"use_spin": [True]}],
    "descriptor.lmax": [2],
    "descriptor.attn_mask": [True],
    "descriptor.compress": [{"geo_compress": True}],
    "descriptor.precision": ["float16", "bfloat16", "half", 64, None],
    "descriptor.activation_function": ["swish", 1, None],
    "descriptor.tebd_input_mode": ["sum", None],
    "descriptor.new_option": [1],
    "fitting.type": ["dipole", "polar", "dos", "property"],
    "fitting.var_name": ["dipole", "dos"],
    "fitting.dim_out": [3],
    "fitting.dim_case_embd": [2],
    "fitting.tot_ener_zero": [True],
    "fitting.layer_name": [["a", "b", "c"]],
    "fitting.use_aparam_as_mask": [True],
    "fitting.spin": [{}],
    "fitting.new_option": [False],
    "new_option": ["x"],
    "preset_out_bias": [{"dipole": [1, 2]}, [1, 2], {"energy": [1]}, {"energy": 3}],
    f"{LAYER}.new_option": [1],
    f"{NET}.new_option": [1],
    f"{TYPES}.embedding.layers.0.activation_function": ["tanh"],
    f"{ONE}.attention_layer.num_heads": [2],
    "descriptor.env_mat.use_exp_switch": [True],
}


@pytest.mark.parametrize(
    ("where", "value"), [(k, v) for k, values in FOREIGN.items() for v in values]
)
def test_foreign_models(where: str, value: Any, tmp_path: Path) -> None:
    text = refused(dict_file(tmp_path / "m.yaml", put(where, value)), where.rpartition(".")[2][:10])
    assert any(w in text for w in ("supported", "expected", "allowed", "does not know", "missing",
                                   "should be"))  # fmt: skip


# One place says otherwise than the rest of the file.
CONTRADICTIONS = {
    "descriptor.rcut": 4.0,
    "descriptor.rcut_smth": 1.0,
    "descriptor.sel": [10],
    "descriptor.neuron": [4, 4],
    "descriptor.axis_neuron": 1,
    "descriptor.activation_function": "relu",
    "descriptor.resnet_dt": True,
    "descriptor.precision": "float32",
    "descriptor.tebd_dim": 4,
    "descriptor.tebd_input_mode": "strip",
    "descriptor.type_one_side": True,
    "descriptor.attn": 5,
    "descriptor.attn_layer": 2,
    "descriptor.attn_dotr": False,
    "descriptor.normalize": False,
    "descriptor.temperature": 1.0,
    "descriptor.scaling_factor": 2.0,
    "descriptor.smooth_type_embedding": False,
    "descriptor.ln_eps": 1e-3,
    "descriptor.concat_output_tebd": False,
    "descriptor.use_econf_tebd": True,
    "descriptor.use_tebd_bias": True,
    "descriptor.type_map": ["H", "O"],
    "descriptor.ntypes": 3,
    "type_map": ["H", "O"],
    "atom_exclude_types": [5],
    "fitting.neuron": [3],
    "fitting.resnet_dt": False,
    "fitting.activation_function": "gelu",
    "fitting.precision": "float32",
    "fitting.numb_fparam": 1,
    "fitting.numb_aparam": 2,
    "fitting.default_fparam": [1.0],
    "fitting.atom_ener": [1.0],
    "fitting.exclude_types": [1],
    "fitting.mixed_types": False,
    "fitting.dim_descrpt": 7,
    "fitting.ntypes": 1,
    "fitting.type_map": ["O"],
    "fitting.nets.ndim": 1,
    "fitting.nets.ntypes": 3,
    "fitting.nets.network_type": "embedding_network",
    "fitting.nets.networks": [],
    "fitting.@class": "Descriptor",
    f"{FIT}.activation_function": "relu",
    f"{FIT}.resnet_dt": False,
    f"{FIT}.neuron": [3, 4],
    f"{FIT}.out_dim": 2,
    f"{FIT}.bias_out": False,
    f"{FIT}.precision": "float32",
    f"{FIT}.layers": [],
    f"{LAST}.activation_function": "tanh",
    f"{LAST}.resnet": True,
    f"{LAST}.bias": False,
    f"{LAYER}.activation_function": "relu",
    f"{LAYER}.resnet": False,
    f"{LAYER}.bias": False,
    f"{LAYER}.use_timestep": True,
    f"{LAYER}.precision": "single",
    f"{LAYER}.@class": "LayerNorm",
    f"{NET}.bias": False,
    f"{NET}.neuron": [4],
    "descriptor.embeddings.ndim": 2,
    "descriptor.env_mat.rcut": 4.0,
    "descriptor.env_mat.rcut_smth": 1.0,
    "descriptor.env_mat.protection": 0.5,
    f"{TYPES}.neuron": [4],
    f"{TYPES}.ntypes": 3,
    f"{TYPES}.type_map": ["H", "O"],
    f"{TYPES}.use_econf_tebd": True,
    f"{TYPES}.use_tebd_bias": True,
    f"{TYPES}.activation_function": "tanh",
    f"{TYPES}.resnet_dt": True,
    f"{TYPES}.embedding.layers.0.resnet": False,
    f"{TYPES}.embedding.layers": [],
    f"{ATTENTION}.dotr": False,
    f"{ATTENTION}.layer_num": 2,
    f"{ATTENTION}.nnei": 10,
    f"{ATTENTION}.normalize": False,
    f"{ATTENTION}.temperature": 0.5,
    f"{ATTENTION}.scaling_factor": 2.0,
    f"{ATTENTION}.do_mask": True,
    f"{ATTENTION}.attention_layers": [],
    f"{ONE}.hidden_dim": 5,
    f"{ONE}.embed_dim": 5,
    f"{ONE}.dotr": False,
    f"{ONE}.ln_eps": 1e-3,
    f"{ONE}.attention_layer.smooth": False,
    f"{ONE}.attention_layer.bias": False,
    f"{ONE}.attention_layer.precision": "float32",
    f"{ONE}.attention_layer.in_proj.resnet": True,
    f"{ONE}.attention_layer.in_proj.activation_function": "tanh",
    f"{ONE}.attn_layer_norm.eps": 1e-3,
}


@pytest.mark.parametrize("where", CONTRADICTIONS)
def test_contradictions(where: str, tmp_path: Path) -> None:
    refused(dict_file(tmp_path / "m.yaml", put(where, CONTRADICTIONS[where])))


# What DeePMD-kit would fill in with a default of its own.
NEEDED = (
    "descriptor", "fitting", "type_map", "descriptor.rcut", "descriptor.sel", "descriptor.neuron",
    "descriptor.resnet_dt", "descriptor.activation_function", "descriptor.type_one_side",
    "descriptor.attn_dotr", "descriptor.smooth_type_embedding", "descriptor.@variables",
    "descriptor.embeddings", "descriptor.@variables.davg", "fitting.neuron", "fitting.nets",
    "fitting.resnet_dt", TYPES, ATTENTION, f"{LAYER}.@variables.w", f"{LAYER}.@variables.b",
    f"{LAYER}.@variables", f"{LAST}.@variables.w", f"{FIT}.layers", f"{NET}.layers",
    f"{ONE}.attention_layer", f"{ONE}.attn_layer_norm.@variables.b", f"{ONE}.attn_layer_norm",
    f"{ONE}.attention_layer.in_proj.@variables.w", f"{TYPES}.embedding",
)  # fmt: skip


@pytest.mark.parametrize("where", NEEDED)
def test_missing_parts(where: str, tmp_path: Path) -> None:
    text = refused(dict_file(tmp_path / "m.yaml", drop(where)))
    assert (
        "missing" in text or "does not have" in text or "expected" in text or "not a list" in text
    )


@pytest.mark.parametrize("where", ["descriptor.@variables.x", f"{LAYER}.@variables.x"])
def test_unknown_tensors(where: str, tmp_path: Path) -> None:
    array = {"@is_variable": True, "dtype": "float64", "value": [1.0]}
    refused(dict_file(tmp_path / "m.yaml", put(where, array)), "x is a", "does not know")


def test_an_array_under_a_name_that_is_no_array(tmp_path: Path) -> None:
    array = {"@is_variable": True, "dtype": "float64", "value": [1.0, 2.0]}
    refused(dict_file(tmp_path / "m.yaml", put(f"{LAYER}.@variables.spin", array)), "spin is array")


def test_statistics_that_differ_between_slots(tmp_path: Path) -> None:
    path = save_model(tiny_model(), tmp_path / "m.dp")
    with h5py.File(path, "r+") as file:
        name = json.loads(file.attrs["json"])["model"]["descriptor"]["@variables"]["davg"]
        file[name][0, 1, 0] = 1.0
    refused(path, "davg", "differs from slot to slot")


# Versions.


def every_class(tree: Any, name: str) -> list[Tree]:
    parts = (
        list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    )
    found = [tree] if isinstance(tree, dict) and tree.get("@class") == name else []
    return found + [part for inner in parts for part in every_class(inner, name)]


NEWEST = {**VERSIONS, "Descriptor": 4}


def with_version(name: str, version: Any) -> Change:
    def change(tree: Tree) -> None:
        parts = every_class(tree, name)
        assert parts
        for part in parts:
            part["@version"] = version

    return change


@pytest.mark.parametrize(("name", "newest"), NEWEST.items())
def test_versions(name: str, newest: int, tmp_path: Path) -> None:
    expected = load_model(dict_file(tmp_path / "a.yaml", lambda _: None)).state_dict()
    for version in range(1, newest + 1):
        found = load_model(dict_file(tmp_path / "m.yaml", with_version(name, version))).state_dict()
        assert all(torch.equal(found[k], v) for k, v in expected.items())
    for version in (0, -1, newest + 1, 99, "x", "1", None, 1.5, True, [1]):
        path = dict_file(tmp_path / "m.yaml", with_version(name, version))
        refused(path, "@version", f"supported: 1 to {newest}")


def test_versions_of_se_e2_a(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        load_model(dict_file(tmp_path / "m.yaml", put("descriptor.@version", version), "se_e2_a"))
    path = dict_file(tmp_path / "m.yaml", put("descriptor.@version", 4), "se_e2_a")
    refused(path, "supported: 1 to 3")


def older(tree: Tree) -> None:
    """Version 1: no key for the bias of the type embedding, which is there."""
    for part in (tree["descriptor"], tree["descriptor"]["type_embedding"]):
        part["@version"] = 1
        del part["use_tebd_bias"]
    for key in ("use_econf_tebd", "env_protection", "exclude_types", "trainable"):
        del tree["descriptor"][key]
    del tree["descriptor"]["type_embedding"]["use_econf_tebd"]


def test_version_1_has_the_bias_of_the_type_embedding(tmp_path: Path) -> None:
    model = load_model(dict_file(tmp_path / "m.yaml", older, "bias"))
    assert model.config.descriptor.use_tebd_bias
    refused(dict_file(tmp_path / "m.yaml", older))


def test_null_is_absent_where_that_means_something(tmp_path: Path) -> None:
    def change(tree: Tree) -> None:
        tree["descriptor"] |= {"ln_eps": None, "lmax": 1, "compress": None}
        tree["fitting"] |= {"atom_ener": [], "default_fparam": None, "tot_ener_zero": None}
        tree |= {"preset_out_bias": None, "pair_exclude_types": None}
        tree["@variables"]["out_bias"] = None

    assert not load_model(dict_file(tmp_path / "m.yaml", change)).out_bias.any()


@pytest.mark.parametrize("name", ["#x", "#1"])
def test_a_name_where_there_is_one_model(name: str, tmp_path: Path) -> None:
    for suffix in (".yaml", ".pt", ".safetensors"):
        path = save_model(tiny_model(), tmp_path / f"m{suffix}")
        with pytest.raises(ModelFileError, match="one model"):
            load_model(f"{path}{name}")


# Checkpoints.

STATE = "model.Default.atomic_model."
BIAS = f"{STATE}fitting_net.filter_layers.networks.0.layers.0.bias"
COPY = BIAS.replace(".networks.", "._networks.")


def pt_file(path: Path, change: Change) -> Path:
    save_model(tiny_model(), path)
    data = torch.load(path, weights_only=True)
    del data["dpaflow"]
    change(data["model"])
    torch.save(data, path)
    return path


@pytest.mark.parametrize("gone", [BIAS, COPY])
def test_one_of_two_copies_is_enough(gone: str, tmp_path: Path) -> None:
    expected = load_model(pt_file(tmp_path / "a.pt", lambda _: None)).state_dict()
    found = load_model(pt_file(tmp_path / "m.pt", drop_name(gone))).state_dict()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def drop_name(*names: str) -> Change:
    return lambda state: [state.pop(name) for name in names] and None


def set_name(name: str, value: Any) -> Change:
    return lambda state: state.update({name: value})


def other_branch(state: Tree) -> None:
    for name in [name for name in state if "Default" in name]:
        state[name.replace("Default", "x")] = state.pop(name)


PARAMS = "_extra_state.model_params"
DAVG = f"{STATE}descriptor.se_atten.mean"
STATES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "copies differ": (set_name(COPY, torch.ones(3, dtype=torch.float64)), ("two copies", "differ")),
    "copies of two shapes": (set_name(COPY, torch.ones(4, dtype=torch.float64)), ("two copies",)),
    "both copies missing": (drop_name(BIAS, COPY), ("bias is missing",)),
    "bias missing": (drop_name(f"{STATE}out_bias"), ("out_bias is missing",)),
    "statistics missing": (drop_name(DAVG), ("davg is missing",)),
    "fewer slots": (set_name(DAVG, torch.zeros(2, 8, 4, dtype=torch.float64)), ("(ntypes, 9, 4)",)),
    "unknown tensor": (set_name(f"{STATE}x", torch.ones(1)), ("does not know",)),
    "compressed": (
        set_name(f"{STATE}descriptor.se_atten.compress_data.0", torch.ones(2)),
        ("a compressed model", "give the one it was made from"),
    ),
    "case embedding": (set_name(f"{STATE}fitting_net.case_embd", torch.ones(2)), ("not know",)),
    "other branch": (other_branch, ("no tensors of branch 'Default'",)),
    "no description": (put(PARAMS, None), ("no checkpoint of DeePMD-kit",)),
    "dipole": (put(f"{PARAMS}.fitting_net.type", "dipole"), ("dipole", "not supported")),
    "dpa2": (put(f"{PARAMS}.descriptor.type", "dpa2"), ("dpa2", "not supported")),
    "spin": (put(f"{PARAMS}.spin", {"use_spin": [True, False]}), ("spin",)),
    "zbl": (put(f"{PARAMS}.use_srtab", "table"), ("use_srtab",)),
    "lmax": (put(f"{PARAMS}.descriptor.lmax", 2), ("lmax",)),
    "case": (put(f"{PARAMS}.fitting_net.dim_case_embd", 2), ("dim_case_embd",)),
    "unknown key": (put(f"{PARAMS}.descriptor.rcutt", 2), ("rcutt", "did you mean")),
    "sel auto": (put(f"{PARAMS}.descriptor.sel", "auto"), ("sel",)),
    "other sel": (put(f"{PARAMS}.descriptor.sel", 10), ("mean", "(ntypes, 10, 4)")),
    "type_map is a number": (put(f"{PARAMS}.type_map", 3), ("type_map",)),
    "descriptor is a list": (put(f"{PARAMS}.descriptor", [1]), ("descriptor",)),
    "integers": (set_name(BIAS, torch.ones(3, dtype=torch.int64)), ("two copies",)),
    "transposed": (
        lambda s: s.update({k.replace("bias", "matrix"): s[k.replace("bias", "matrix")].mT
                            for k in (BIAS, COPY)}), ("expected",)),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_checkpoints(name: str, tmp_path: Path) -> None:
    change, words = STATES[name]
    refused(pt_file(tmp_path / "m.pt", change), *words)


MULTI = HERE / "torch" / "multi.pt"


def test_branches() -> None:
    text = refused(MULTI, "branches first, second", "multi.pt#BRANCH")
    assert "which one is not said" in text
    with pytest.raises(ModelFileError, match="none is called 'third'"):
        load_model(f"{MULTI}#third")
    assert load_model(f"{MULTI}#first").provenance["origin"]["branch"] == "first"


def test_alias_of_a_branch(tmp_path: Path) -> None:
    data = torch.load(MULTI, weights_only=True)
    section = data["model"]["_extra_state"]["model_params"]["model_dict"]["second"]
    section["model_branch_alias"] = ["other"]
    torch.save(data, tmp_path / "m.pt")
    model = load_model(f"{tmp_path / 'm.pt'}#other")
    assert model.provenance["origin"]["branch"] == "second"
    assert model.config.fitting_net.neuron == (5,)


# Frozen models: their description is one text in the pickle.


def pth_file(path: Path, change: Change) -> Path:
    source = HERE / "torch" / "dpa1.pth"
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.endswith("/data.pkl") and name.count("/") == 1)
    raw = parts[name]
    start = raw.index(b'{"')
    size = struct.unpack("<I", raw[start - 4 : start])[0]
    section = json.loads(raw[start : start + size])
    change(section)
    text = json.dumps(section).encode()
    parts[name] = raw[: start - 4] + struct.pack("<I", len(text)) + text + raw[start + size :]
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return path


SCRIPTS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "other widths": (put("descriptor.neuron", [3, 7]), ("expected",)),
    "other layers": (put("descriptor.attn_layer", 0), ("unknown",)),
    "other elements": (put("type_map", ["O", "H"]), ("expected",)),
    "other sel": (put("descriptor.sel", 25), ("(ntypes, 25, 4)",)),
    "strip": (put("descriptor.tebd_input_mode", "strip"), ("missing", "expected")),
    "time steps": (put("descriptor.resnet_dt", 1), ("idt is missing",)),
    "parameters": (put("fitting_net.numb_fparam", 1), ("fparam_avg is missing", "expected")),
    "precision": (put("descriptor.precision", "bfloat16"), ("precision",)),
    "dos": (put("fitting_net.type", "dos"), ("dos", "not supported")),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_frozen_models(name: str, tmp_path: Path) -> None:
    change, words = SCRIPTS[name]
    refused(pth_file(tmp_path / "m.pth", change), *words)


def test_frozen_model_unchanged(tmp_path: Path) -> None:
    found = load_model(pth_file(tmp_path / "m.pth", lambda _: None)).state_dict()
    expected = load_model(HERE / "torch" / "dpa1.pth").state_dict()
    assert all(np.array_equal(found[k], v) for k, v in expected.items())
