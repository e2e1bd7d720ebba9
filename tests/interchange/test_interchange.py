"""Files DeePMD-kit 3.2.0 wrote, read here; files written here, as DeePMD-kit would write them.

`deepmd/` and its `recorded.json` are made by record_deepmd_files.py. What DeePMD-kit computes with
our files is in `benchmarks/interchange`, which needs DeePMD-kit itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from dpa_core.deepmd_input import convert_model
from dpa_core.errors import ModelFileError
from dpa_core.interchange.files import load_model, read_header, save_model
from dpa_core.model import Potential, build_model
from tests.interchange.options import option_sets, precision_of, question, structures
from tests.reference.fill import fill

FILES = Path(__file__).parent / "deepmd"
RECORD = json.loads((FILES / "recorded.json").read_text())["files"]
SETS = option_sets()
# Relative to the largest component of the tensor.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
SWAPPED = [1, 0, 2]
BY_RULE = [name for name in RECORD if not name.startswith("trained")]
DICTIONARIES = [name for name in RECORD if name.endswith((".dp", ".yaml"))]
CHECKPOINTS = [name for name in RECORD if name.endswith(".pt")]


def our_model(section: dict[str, Any]) -> Potential:
    """Make the model of a `model` section, its parameters by the rule."""
    config = convert_model(section, "option set")
    return fill(build_model(config), config.descriptor.set_davg_zero)


def evaluate(model: Potential, asked: dict[str, Any]) -> Any:
    box = None if asked["box"] is None else [asked["box"]]
    parameters = {k: asked[k] for k in ("fparam", "aparam") if k in asked}
    return model.evaluate([asked["coord"]], box, asked["atype"], **parameters)


def assert_answers(model: Potential, case: dict[str, Any]) -> None:
    """Energy, force and virial on every recorded structure."""
    for name, asked in case["questions"].items():
        result = evaluate(model, asked)
        for key in ("energy", "force", "virial"):
            expected = np.array(case["answers"][name][key])
            allowed = TOLERANCE[precision_of(case["model"])] * np.abs(expected).max()
            found = getattr(result, key).reshape(-1)
            np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=name)


@pytest.mark.parametrize("name", RECORD)
def test_numbers_of_deepmd_files(name: str) -> None:
    assert_answers(load_model(str(FILES / name)), RECORD[name])


def test_numbers_are_not_trivial() -> None:
    """The record can tell models apart: forces do not vanish, energies differ."""
    cells = [case["answers"]["cell"] for case in RECORD.values()]
    assert min(np.abs(cell["force"]).max() for cell in cells) > 5e-3
    frozen = 2  # the trained models are here as .pt and as .pth
    assert len({round(cell["energy"][0], 9) for cell in cells}) == len(cells) - frozen


@pytest.mark.parametrize("name", BY_RULE)
def test_hyperparameters_of_deepmd_files(name: str) -> None:
    """What the input asked for is what is read, whatever DeePMD-kit calls it."""
    asked = convert_model(RECORD[name]["model"], name)
    found = load_model(FILES / name).config
    assert found.descriptor.model_copy(update={"seed": None}) == asked.descriptor
    assert found.fitting_net.model_copy(update={"seed": None}) == asked.fitting_net
    for key in ("type_map", "pair_exclude_types", "atom_exclude_types", "preset_out_bias"):
        assert getattr(found, key) == getattr(asked, key)


@pytest.mark.parametrize("name", BY_RULE)
def test_tensors_of_deepmd_files(name: str) -> None:
    """Bit for bit those that were put in, where DeePMD-kit keeps them in float64."""
    expected = our_model(RECORD[name]["model"]).state_dict()
    found = load_model(FILES / name).state_dict()
    rounded = {"descriptor.davg", "descriptor.dstd"}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        single = key in rounded and RECORD[name]["model"]["descriptor"]["precision"] == "float32"
        wanted = value.float().double() if single else value
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=0 if single else 1e-15)


def test_branches_share_the_descriptor() -> None:
    water, alloy = (load_model(f"{FILES}/trained_two.pt#{k}") for k in ("water", "alloy"))
    for key, value in water.descriptor.state_dict().items():
        assert torch.equal(value, alloy.descriptor.state_dict()[key])
    assert not torch.equal(water.out_bias, alloy.out_bias) or any(
        not torch.equal(a, b)
        for a, b in zip(water.fitting.parameters(), alloy.fitting.parameters(), strict=True)
    )
    with pytest.raises(ModelFileError, match="branches alloy, water; which one is not said"):
        load_model(FILES / "trained_two.pt")


@pytest.mark.parametrize("name", ["davg_exclude.dp", "trained_dpa1.pt", "trained_dpa1.pth"])
def test_provenance_of_deepmd_files(name: str) -> None:
    header = read_header(FILES / name)
    assert header["type_map"] == ["O", "H", "Cu"]
    origin = header["provenance"]["origin"]
    assert origin["file"] == name
    assert origin["backend"] == "PyTorch"


def test_step_of_a_checkpoint_is_kept() -> None:
    """DeePMD-kit counts from 0: this is `trained_dpa1-3.pt`, the third step's."""
    assert read_header(FILES / "trained_dpa1.pt")["provenance"]["origin"]["step"] == 2


# The TensorFlow backend writes the same dictionary, but does not always compute what it says.


def test_dictionary_of_the_tensorflow_backend() -> None:
    """Numbers of the model that was trained; made by `dp convert-backend se_a.pb x.dp`."""
    folder = Path(__file__).parent / "tensorflow"
    record = json.loads((folder / "record.json").read_text())
    model, graph = load_model(FILES / "tensorflow_se_a.dp"), load_model(folder / "se_a.pb")
    for key, value in graph.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    for asked, answers in zip(record["systems"], record["models"]["se_a"]["results"], strict=True):
        result = evaluate(model, asked)
        for key in ("energy", "force", "virial"):
            expected = np.ravel(answers[key])
            found = getattr(result, key).reshape(-1)
            atol = 1e-10 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=key)


def test_dpa1_dictionary_of_the_tensorflow_backend_is_refused(tmp_path: Path) -> None:
    """It says temperature null where the backend computes with 1."""
    path = tmp_path / "x.dp"
    path.write_bytes((FILES / "davg_exclude.dp").read_bytes())
    with h5py.File(path, "r+") as file:
        data = json.loads(file.attrs["json"])
        assert data["backend"] == "PyTorch"
        file.attrs["json"] = json.dumps(data | {"backend": "TensorFlow"})
    with pytest.raises(ModelFileError, match=r"TensorFlow backend.*give the frozen graph \(\.pb\)"):
        load_model(path)


# Cells.


@pytest.mark.parametrize("name", ["davg_exclude.dp", "se_two_side.dp", "trained_dpa1.pth"])
@pytest.mark.parametrize("change", ["left-handed", "skewed", "both"])
def test_the_same_crystal_in_another_cell(name: str, change: str) -> None:
    """DeePMD-kit 3.2.0 itself loses neighbours in left-handed cells."""
    model, case = load_model(FILES / name), RECORD[name]
    asked = case["questions"]["cell"]
    box = np.array(asked["box"])
    if change in ("skewed", "both"):
        box[2] += 2 * box[0] - 3 * box[1]
    if change in ("left-handed", "both"):
        box = box[SWAPPED]
        assert np.linalg.det(box) < 0
    result = evaluate(model, asked | {"box": box})
    for key in ("energy", "force", "virial"):
        expected = np.array(case["answers"]["cell"][key])
        found = getattr(result, key).reshape(-1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


# Round trips.


def assert_bitwise(ours: Potential, again: Potential) -> None:
    assert again.config == ours.config
    assert again.provenance == ours.provenance
    expected, found = ours.state_dict(), again.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", SETS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """Native -> DeePMD-kit's formats -> native changes no bit of tensors, config, provenance."""
    ours = our_model(SETS[name]["model"])
    ours.provenance = {
        "run": "an example",
        "rmse": 0.1,
        "data": ["a", "b"],
        "origin": {"file": "x"},
    }
    native = save_model(ours, tmp_path / "a.safetensors")
    for suffix in ("dp", "yaml", "pt"):
        other = save_model(load_model(native), tmp_path / f"a.{suffix}")
        back = save_model(load_model(other), tmp_path / f"{suffix}.safetensors")
        assert_bitwise(ours, load_model(back))


@pytest.mark.parametrize("name", RECORD)
@pytest.mark.parametrize("suffix", ["safetensors", "dp", "yaml", "pt"])
def test_deepmd_files_written_again(name: str, suffix: str, tmp_path: Path) -> None:
    model = load_model(str(FILES / name))
    assert_bitwise(model, load_model(save_model(model, tmp_path / f"again.{suffix}")))


def test_numbers_survive_a_chain_of_formats(tmp_path: Path) -> None:
    """.pth -> .dp -> .yaml -> .pt -> .safetensors, then the recorded numbers."""
    model = load_model(FILES / "v2.pth")
    for suffix in ("dp", "yaml", "pt", "safetensors"):
        model = load_model(save_model(model, tmp_path / f"x.{suffix}"))
    assert_answers(model, RECORD["v2.pth"])


def test_a_note_that_contradicts_the_model_is_not_believed(tmp_path: Path) -> None:
    """Somebody may change our file with DeePMD-kit's tools, which keep our note as it was."""
    path = save_model(our_model(SETS["dpa1-base"]["model"]), tmp_path / "a.dp", {"run": "ours"})
    with h5py.File(path, "r+") as file:
        data = json.loads(file.attrs["json"])
        data["model"]["descriptor"]["ln_eps"] = 1e-3
        for layer in data["model"]["descriptor"]["attention_layers"]["attention_layers"]:
            layer["ln_eps"] = layer["attn_layer_norm"]["eps"] = 1e-3
        data["model"]["descriptor"]["attention_layers"]["ln_eps"] = 1e-3
        file.attrs["json"] = json.dumps(data)
    model = load_model(path)
    assert model.config.descriptor.ln_eps == 1e-3  # type: ignore[union-attr]
    assert "run" not in model.provenance


# What we write, next to what DeePMD-kit writes for the same model.


def dictionary(path: Path) -> dict[str, Any]:
    """Whole dictionary of a `.dp` or `.yaml` file, read without our reader."""
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text())
    with h5py.File(path) as file:
        data = json.loads(file.attrs["json"])
        return _described(data, file, inside=False)


def _described(data: Any, file: h5py.File, *, inside: bool) -> Any:
    """Put in the place of an array's name what a `.yaml` file says of it."""
    if isinstance(data, dict):
        return {k: _described(v, file, inside=inside or k == "@variables") for k, v in data.items()}
    if isinstance(data, list):
        return [_described(v, file, inside=inside) for v in data]
    if inside and isinstance(data, str):
        array = file[data][()]
        return {
            "@class": "np.ndarray", "@is_variable": True, "@version": 1,
            "dtype": array.dtype.name, "value": array.tolist(),
        }  # fmt: skip
    return data


def places(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted place; arrays as shape and precision."""
    if isinstance(data, dict) and data.get("@is_variable"):
        yield f"{place}.shape", np.shape(data["value"])
        yield f"{place}.dtype", data["dtype"]
        yield f"{place}.form", {k: v for k, v in data.items() if k not in ("value", "dtype")}
    elif isinstance(data, dict) and data:
        for key, value in data.items():
            yield from places(value, f"{place}.{key}")
    elif isinstance(data, list) and any(isinstance(v, dict) for v in data):
        for key, value in enumerate(data):
            yield from places(value, f"{place}.{key}")
    else:
        yield place, data


# Statistics stay float64 in our files; DeePMD-kit rounds them to the descriptor's precision.
WIDER = {".descriptor.@variables.davg.dtype", ".descriptor.@variables.dstd.dtype"}
# se_atten_v2 is dpa1 with these two.
SPELT_OUT = {".descriptor.smooth_type_embedding", ".descriptor.tebd_input_mode"}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_is_that_of_deepmd(name: str, tmp_path: Path) -> None:
    """Same keys, classes, versions, values, shapes and precisions, in `model`."""
    written = save_model(load_model(FILES / name), tmp_path / name)
    theirs = dict(places(dictionary(FILES / name)["model"]))
    ours = dict(places(dictionary(written)["model"]))
    v2 = theirs[".descriptor.type"] == "se_atten_v2"
    assert ours.keys() - theirs.keys() == (SPELT_OUT if v2 else set())
    assert not theirs.keys() - ours.keys()
    different = {key for key in theirs if type(ours[key]) is not type(theirs[key])}
    different |= {key for key in theirs if ours[key] != theirs[key]}
    single = theirs[".descriptor.precision"] == "float32"
    assert different == (WIDER if single else set()) | ({".descriptor.type"} if v2 else set())


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_is_that_of_deepmd(name: str, tmp_path: Path) -> None:
    """Same names, shapes and precisions, so that `--init-model` and `--finetune` take it."""
    theirs = checkpoint(FILES / name)
    ours = checkpoint(save_model(load_model(FILES / name), tmp_path / name))
    assert ours["optimizer"] == {}
    extra, expected = ours["model"].pop("_extra_state"), theirs["model"].pop("_extra_state")
    assert extra.keys() == expected.keys()
    assert extra["train_infos"].keys() == expected["train_infos"].keys()
    for part in ("descriptor", "fitting_net"):
        written, full = extra["model_params"][part], expected["model_params"][part]
        assert not written.keys() - full.keys(), "a key that DeePMD-kit does not know"
        # A null ln_eps is 1e-5; type and sel have several spellings.
        assert {k for k, v in written.items() if v != full[k]} <= {"type", "sel", "ln_eps"}
    # Made only where neighbour statistics were run.
    optional = {"model.Default.min_nbor_dist"}
    # Part of no energy, unless the TensorFlow backend gets hold of it.
    unused = "model.Default.atomic_model.out_std"
    assert bool((ours["model"][unused] == 1).all())
    assert ours["model"].keys() - optional == theirs["model"].keys() - optional
    for key, tensor in theirs["model"].items():
        assert ours["model"][key].shape == tensor.shape, key
        if not key.endswith((".mean", ".stddev")):
            assert ours["model"][key].dtype == tensor.dtype, key
            assert torch.equal(ours["model"][key], tensor) or key in {*optional, unused}


def test_a_small_set_of_structures_is_right_handed() -> None:
    """DeePMD-kit's numbers mean something only there."""
    for structure in structures().values():
        asked = question(SETS["dpa1-base"], structure)
        assert asked["box"] is None or np.linalg.det(asked["box"]) > 0
