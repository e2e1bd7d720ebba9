"""Models of any format, and FILE#NAME, wherever a pipeline or a command names a model."""

import json
import shutil

import numpy as np
import pytest
import yaml

from dpa_core.config import ModelConfig
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.files import load_model, read_header, save_model
from dpa_core.model import build_model
from ops import deepmd_kit, model_files
from ops.storage import split_part
from ops.train import RunTrainConfig, TrainInputs, run_train
from tests.ops.helpers import TYPES, make_frame, write
from tests.workflows.test_cli import call  # noqa: F401
from workflows import graph
from workflows.backends.argo.inputs import externalise, signatures
from workflows.backends.argo.preflight.steps import local_files
from workflows.backends.argo.scene import Scene
from workflows.pipeline import plan
from workflows.schema import load_pipeline

SMALL = {
    "type_map": list(TYPES),
    "descriptor": {"type": "dpa1", "rcut": 4.0, "rcut_smth": 1.0, "sel": 30, "neuron": [2, 4],
                   "axis_neuron": 2, "attn": 4, "attn_layer": 1},
    "fitting_net": {"neuron": [4, 4]},
}  # fmt: skip
RUN = {"training": {"numb_steps": 3, "disp_freq": 1, "save_freq": 3}}


def make(heads=1, seed=1, **provenance):
    model = build_model(ModelConfig.model_validate({**SMALL, "heads": heads}), seed)
    model.provenance = provenance
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(make(elements=["Al", "Cu"]), folder / "model.safetensors")
    save_model(make(heads=3), folder / "committee.safetensors")
    for suffix in ("dp", "yaml", "pt"):
        model_files.convert(folder / "model.safetensors", folder / f"model.{suffix}")
    write([make_frame([0, 1, 2, 0], seed=k) for k in range(5)], folder / "data")
    return folder


@pytest.fixture
def fake_dp(tmp_path, monkeypatch):
    """A stand-in for DeePMD-kit's program: what it writes is what it was given."""
    program = tmp_path / "bin" / "dp"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = convert-backend ] && cp "$2" "$3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("DPAFLOW_DP", str(program))
    return program


@pytest.fixture
def no_dp(tmp_path, monkeypatch):
    monkeypatch.delenv("DPAFLOW_DP", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if deepmd_kit.find_dp() is not None:
        pytest.skip("DeePMD-kit is installed here")


def pipeline(folder, given, **changes):
    data = {
        "name": "any-format",
        "type_map": list(TYPES),
        "data": {"new": {"sources": [{"path": str(folder / "data")}]}},
        "models": {"dpa1": {"descriptor": SMALL["descriptor"]}},
        "pretrain": {"from": {"dpa1": str(given)}},
        "targets": [{"name": "t", "data": "new", "frames": [2], "finetune": RUN}],
        **changes,
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_pipeline(path, {})


def finetune(pipeline):
    return next(node for node in plan(pipeline) if node.key.startswith("finetune"))


@pytest.mark.parametrize("name", ["model.dp", "model.yaml", "model.pt", "committee.safetensors#2"])
def test_pretrained_models_of_a_pipeline(folder, name):
    node = finetune(pipeline(folder, folder / name))
    assert node.inputs["pretrained"] == str(folder / name)
    config = {**node.config, **RUN}
    done = run_train(
        TrainInputs([folder / "data"], pretrained=folder / name),
        RunTrainConfig.model_validate(config), folder / name.replace(".", "-").replace("#", "-"),
    )  # fmt: skip
    header = read_header(done.model)
    assert header["config"]["heads"] == 1
    assert header["provenance"]["elements"] == list(TYPES)
    assert header["provenance"]["finetuned_from"]["file"] == name
    again = run_train(
        TrainInputs([folder / "data"], pretrained=folder / name),
        RunTrainConfig.model_validate(config), folder / name.replace(".", "-").replace("#", "-"),
    )  # fmt: skip
    assert again.model.read_bytes() == done.model.read_bytes()


def test_mistakes_are_said_at_load_time(folder):
    def refused(name, match):
        with pytest.raises(ConfigError, match=match):
            pipeline(folder, folder / name)

    refused("no.pt#Al", r"pretrain\.from\.dpa1: no such file: .*no\.pt#Al")
    refused("committee.safetensors#3", r"pretrain\.from\.dpa1: .*no head '3'; allowed: 0 to 2")
    refused("model.dp#Al", r"pretrain\.from\.dpa1: .*model\.dp")
    (folder / "text.pth").write_bytes(b"\x00nothing")
    refused("text.pth", r"pretrain\.from\.dpa1: .*not a model file")


def test_fingerprints_follow_file_and_name(folder, tmp_path):
    file = tmp_path / "c.safetensors"
    shutil.copy(folder / "committee.safetensors", file)

    def prints(name):
        nodes = plan(pipeline(folder, f"{file}{name}"))
        return graph.fingerprints(nodes)[finetune(pipeline(folder, f"{file}{name}")).key]

    first = prints("#0")
    assert first == prints("#0")
    assert first != prints("#1")
    save_model(make(heads=3, seed=7), file)
    assert first != prints("#0")


def test_the_name_survives_the_way_to_a_bucket(folder):
    loaded = pipeline(folder, folder / "committee.safetensors#1")
    changed, uploads = externalise(loaded)
    url = changed.pretrain.given["dpa1"]
    assert url.startswith("s3://")
    assert url.endswith("/committee.safetensors#1")
    upload = next(u for u in uploads if u.path.endswith("committee.safetensors"))
    assert f"{upload.url}#1" == url
    assert signatures(changed, uploads) == {}  # nobody is asked
    assert str(folder / "committee.safetensors") in local_files(Scene(None, loaded, None, ()))


def test_a_file_that_is_called_so_comes_first(tmp_path):
    for name in ("a", "a#b"):
        (tmp_path / name).touch()
    assert split_part(tmp_path / "a#b") == (str(tmp_path / "a#b"), "")
    assert split_part(tmp_path / "a#c") == (str(tmp_path / "a"), "#c")
    assert split_part(tmp_path / "c#c") == (str(tmp_path / "c#c"), "")
    assert split_part("s3://b/a#c") == ("s3://b/a#c", "")


def test_convert_and_info(call, folder, tmp_path):  # noqa: F811
    code, output = call("model", "convert", folder / "model.pt", tmp_path / "x" / "m.dp")
    assert (code, "differ by 0 eV/atom" in output) == (0, True), output
    code, output = call("model", "convert", folder / "committee.safetensors#1", "one.yaml")
    assert code == 0, output
    assert load_model("one.yaml").config.heads == 1
    code, output = call("model", "convert", folder / "committee.safetensors", "all.dp")
    assert (code, "#0" in output) == (2, True), output
    code, output = call("model", "convert", folder / "model.pt", "m.onnx")
    assert (code, ".safetensors" in output) == (2, True)
    for name in ("model.safetensors", "model.dp", "model.pt", "model.yaml"):
        code, output = call("model", "info", folder / name)
        assert (code, "type_map   Al Ni Cu" in output) == (0, True), output
        assert "trained on Al Cu" in output
        assert "untrained  Ni" in output
    code, output = call("model", "info", "one.yaml", "--full")
    assert '"attn_layer": 1' in output
    assert "trained on not recorded" in output
    code, output = call("model", "info", folder / "model.dp", "--input-json")
    assert json.loads(output)["model"]["type_map"] == list(TYPES)


def test_branches_of_a_multi_task_checkpoint(call, root, folder):  # noqa: F811
    file = root / "tests/interchange/torch/multi.pt"
    code, output = call("model", "info", f"{file}#first")
    assert (code, "branch first" in output) == (0, True), output
    assert "trained on Cu H O" in output
    code, output = call("model", "convert", f"{file}#second", "second.safetensors")
    assert code == 0, output
    code, output = call("model", "info", file)
    assert (code, "branches first, second" in output) == (2, True)
    node = finetune(pipeline(folder, f"{file}#first"))
    assert (node.inputs["pretrained"], node.files[-1]) == (f"{file}#first", f"{file}#first")
    with pytest.raises(ConfigError, match=r"pretrain\.from\.dpa1: .*branches first, second"):
        pipeline(folder, f"{file}#third")


def test_the_other_commands_take_any_format(call, folder, tmp_path):  # noqa: F811
    data = folder / "data"
    code, output = call("model", "test", folder / "committee.safetensors#1", data, "--no-plots",
                        "--out", "t")  # fmt: skip
    assert code == 0, output
    results = json.loads((tmp_path / "t" / "results.json").read_text())["results"]
    assert results[0]["model"] == "committee-1"
    code, output = call("model", "change-bias", folder / "model.pt", data, "--out", "b")
    assert code == 0, output
    code, output = call("model", "eval-desc", folder / "model.yaml", data, "--out", "d.npz")
    assert code == 0, output
    code, output = call("model", "devi", "-m", folder / "model.dp", "-m", "b/model.safetensors",
                        data)  # fmt: skip
    assert "5 frames, 2 models" in output


def test_without_deepmd_kit_there_are_commands_to_run(call, folder, tmp_path, no_dp):  # noqa: F811
    code, output = call("model", "convert", folder / "model.pt", "m.pth")
    assert code == 2
    assert "dp convert-backend m.dp m.pth" in output
    assert f"dpaflow model convert {folder / 'model.pt'} m.dp" in output
    assert not list(tmp_path.glob("m.*"))
    with pytest.raises(ConfigError, match=r"dp convert-backend \S+m\.dp \S+m\.pth"):
        deepmd_kit.convert_backend(tmp_path / "m.dp", tmp_path / "m.pth")
    code, output = call("model", "export", folder / "committee.safetensors", "--lammps", "m.pth")
    assert code == 2
    assert "dp convert-backend m-2.dp m-2.pth" in output
    assert sorted(p.name for p in tmp_path.glob("m-*")) == ["m-0.dp", "m-1.dp", "m-2.dp"]
    assert call("model", "export", folder / "model.pt", "--lammps", "m.zip")[0] == 2


def test_export_with_deepmd_kit(call, folder, tmp_path, fake_dp, monkeypatch):  # noqa: F811
    code, output = call("model", "export", folder / "committee.safetensors", "--lammps", "m.pth")
    assert code == 0, output
    assert "m-2.pth: read back, energies differ by 0 eV/atom" in output
    assert "pair_style      deepmd m-0.pth m-1.pth m-2.pth out_file model_devi.out" in output
    assert "pair_coeff      * * Al Ni Cu" in output
    # TensorFlow's backend multiplies energies with it
    assert (load_model(tmp_path / "m-0.pth").out_std == 1).all()
    code, output = call("model", "export", folder / "model.pt", "--lammps", "one.pb")
    assert "pair_style      deepmd one.pb\n" in output
    assert call("model", "convert", folder / "model.pt", "two.pth")[0] == 0
    assert not list(tmp_path.glob(".*"))

    fake_dp.write_text("#!/bin/sh\necho 'ValueError: no such thing' >&2\nexit 3\n")
    code, output = call("model", "convert", folder / "model.pt", "bad.pth")
    assert code == 2
    assert "exit code 3" in output
    assert "ValueError: no such thing" in output
    other = tmp_path / "other.dp"
    save_model(make(seed=9), other)
    fake_dp.write_text(f'#!/bin/sh\ncp {other} "$3"\n')
    with pytest.raises(ModelFileError, match="another model than it was made from"):
        model_files.convert(folder / "model.pt", tmp_path / "bad.pth")
    monkeypatch.setenv("DPAFLOW_DP", "no-such-dp")
    assert call("model", "convert", folder / "model.pt", "bad.pth")[0] == 2


def test_elements_of_a_long_way():
    first = {"elements": ["Al", "Ni"], "steps": 5}
    second = {"finetuned_from": {"file": "a", "provenance": first}, "elements": ["Cu"], "steps": 2}
    assert model_files.trained_elements(second) == ["Cu", "Al", "Ni"]
    foreign = {"origin": {"observed_type": ["H", "O"]}}
    second["finetuned_from"]["provenance"] = foreign
    assert model_files.trained_elements(second) == ["Cu", "H", "O"]
    assert model_files.trained_elements({"steps": 3}) is None
    odd = {"origin": "elsewhere", "bias": 3, "elements": "Cu", "finetuned_from": [1]}
    assert model_files.trained_elements(odd) is None


def test_lammps_takes_the_committee_itself(folder, tmp_path, fake_dp):
    from ops.explorers.lammps import LammpsExplorer, check_lammps, with_frozen

    explorer = LammpsExplorer(temperatures=(300,), command="sh")
    models = [folder / "committee.safetensors", folder / "model.safetensors"]
    check_lammps(explorer, models)
    ready = with_frozen(explorer, models, tmp_path / "models")
    names = [p.rpartition("/")[2].partition("-")[0] for p in ready.model_files]
    assert names == ["m0", "m1", "m2", "m3"]
    assert [load_model(p).config.heads for p in ready.model_files] == [1] * 4
    energies = [load_model(p).evaluate([[[0, 0, 0], [0, 0, 2.5]]], None, [0, 1]).energy.item()
                for p in ready.model_files]  # fmt: skip
    assert len(set(np.round(energies[:3], 6))) == 3
    fake_dp.write_text("#!/bin/sh\nexit 1\n")  # what is there is not made again
    assert with_frozen(explorer, models, tmp_path / "models") == ready
    with pytest.raises(ConfigError, match="at most one model"):
        check_lammps(explorer, models[1:])


def test_a_loop_with_lammps_needs_deepmd_kit(folder, no_dp):
    explore = {"type": "lammps", "command": "lmp", "ensemble": "nvt", "steps": 20, "trj_freq": 5,
               "temperatures": [300]}  # fmt: skip
    loop = {
        "start": "pretrained", "init": {"data": ["new"]}, "train": RUN,
        "structures": {"cells": {"type": "data", "data": "new", "count": 1}},
        "select": {"lo": 0.1, "hi": 0.3},
        "stages": [{"structures": ["cells"], "explore": explore}],
        "label": {"labeler": {"type": "ase", "calculator": "emt"}},
    }  # fmt: skip

    def load(**changes):
        return pipeline(
            folder, folder / "model.pt", targets=[], concurrent_learning=loop, **changes
        )

    with pytest.raises(ConfigError, match=r"stages\.0\.explore\.model_files: is empty, and DeePMD"):
        load()
    assert plan(load(cluster={"image": "registry.example.org/with-deepmd:1.0"}))
    explore["model_files"] = ["m0.pth", "m1.pth"]
    assert plan(load())
