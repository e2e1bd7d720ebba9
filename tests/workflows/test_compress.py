"""`dpaflow model compress`, and compressed models wherever a model may be named."""

import json

import numpy as np
import pytest
import safetensors.torch
from ase.build import bulk

from dpa_core import CommitteeCalculator, DPACalculator
from dpa_core.compress import compress
from dpa_core.config import ModelConfig, TrainConfig
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.finetune import remap_types
from dpa_core.interchange.files import load_model, read_header, save_model
from dpa_core.model import build_model
from dpa_core.train import train
from ops.train import RunTrainConfig, TrainInputs, run_train
from tests.ops.helpers import make_frame, write
from tests.workflows.test_cli import call  # noqa: F401
from tests.workflows.test_model_files import RUN, SMALL, pipeline


def make(heads=1, **descriptor):
    document = {**SMALL, "heads": heads, "descriptor": SMALL["descriptor"] | descriptor}
    model = build_model(ModelConfig.model_validate(document), 1)
    model.descriptor.dstd[:] = 0.1
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed")
    save_model(make(), folder / "model.safetensors", {"elements": ["Al"]})
    save_model(make(heads=2), folder / "committee.safetensors")
    for name in ("model", "committee"):
        compressed, _ = compress(load_model(folder / f"{name}.safetensors"))
        save_model(compressed, folder / f"{name}-c.safetensors")
    write([make_frame([0, 1, 2, 0], seed=k) for k in range(5)], folder / "data")
    return folder


def test_the_command(call, folder, tmp_path):  # noqa: F811
    source = folder / "model.safetensors"
    code, output = call("model", "compress", source, "-o", "c.safetensors", "--data",
                        folder / "data", "--min-distance", 0.5)  # fmt: skip
    assert code == 0, output
    assert "9 tables of" in output
    assert "down to 0.5 Å" in output
    assert "c.safetensors: read back, energies differ by" in output
    assert "test it before" not in output
    code, output = call("model", "info", "c.safetensors")
    assert (code, "trained on Al" in output, "untrained  Ni Cu" in output) == (0, True, True)
    assert "compressed 9 tables" in output
    assert "from model.safetensors; for inference only" in output
    note = read_header(tmp_path / "c.safetensors")["provenance"]["compressed"]
    assert note["value_error"] < 1e-6
    code, output = call("model", "compress", source, "-o", "c.safetensors", "--elements", "Cu, Al")
    assert (code, "4 tables of" in output) == (0, True), output
    assert load_model("c.safetensors").type_map == ("Cu", "Al")
    head = folder / "committee.safetensors#1"
    assert call("model", "compress", head, "-o", "one.safetensors")[0] == 0
    assert load_model("one.safetensors").config.heads == 1


def test_what_the_command_refuses(call, folder):  # noqa: F811
    source = folder / "model.safetensors"

    def refused(*options, source=source):
        code, output = call("model", "compress", source, "-o", *options)
        assert code == 2, output
        return output

    assert "compressed models are written to .safetensors" in refused("c.dp")
    assert "allowed: 1e-05 GiB" in refused("c.safetensors", "--max-size", 1e-5)
    assert "below rcut (4 Å)" in refused("c.safetensors", "--min-distance", 5)
    compressed = folder / "model-c.safetensors"
    assert "use the model it was made from" in refused("c.safetensors", source=compressed)


def test_a_structure_on_which_it_is_off_is_told(folder, monkeypatch, tmp_path, caplog):
    from ops import model_files

    monkeypatch.setattr(model_files, "COMPRESSED_DIFFERENCE", (0.0, 0.0))
    model_files.compress(folder / "model.safetensors", tmp_path / "c.safetensors")
    assert "test it before it is used" in caplog.text


@pytest.mark.parametrize("suffix", [".dp", ".yaml", ".pt"])
def test_deepmd_kit_gets_none(folder, tmp_path, suffix):
    model = load_model(folder / "model-c.safetensors")
    with pytest.raises(ModelFileError, match=r"compressed.*use the model it was made from"):
        save_model(model, tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())


def test_the_commands_take_compressed_models(call, folder, tmp_path):  # noqa: F811
    data, model = folder / "data", folder / "model-c.safetensors"
    assert call("model", "test", model, data, "--no-plots", "--out", "t")[0] == 0
    assert (
        call("model", "test", folder / "model.safetensors", data, "--no-plots", "-o", "u")[0] == 0
    )
    one, other = (
        json.loads((tmp_path / k / "results.json").read_text())["results"][0] for k in "tu"
    )
    assert one.keys() == other.keys()
    code, output = call("model", "change-bias", model, data, "--out", "b")
    assert code == 0, output
    changed = load_model(tmp_path / "b" / "model.safetensors")
    assert changed.config.descriptor.compression is not None
    assert call("model", "eval-desc", model, data, "--out", "d.npz")[0] == 0
    code, output = call("model", "devi", "-m", folder / "committee-c.safetensors", data)
    assert (code, "5 frames, 2 models" in output) == (0, True)
    code, output = call("model", "devi", "-m", model, "-m", folder / "model.safetensors", data)
    assert (code, "5 frames, 2 models" in output) == (0, True)
    assert call("model", "info", model, "--input-json")[0] == 2


def test_calculators(folder):
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[:2] = "Al"
    atoms.rattle(0.1, seed=1)
    forces = []
    for name in ("model", "model-c"):
        atoms.calc = DPACalculator(folder / f"{name}.safetensors")
        forces.append(atoms.get_forces())
    np.testing.assert_allclose(forces[0], forces[1], atol=1e-5)
    atoms.calc = CommitteeCalculator([folder / "committee-c.safetensors"])
    assert atoms.calc.deviation(atoms).max_devi_f[0] > 0


def test_none_is_trained(folder, tmp_path):
    model = folder / "model-c.safetensors"
    config = RunTrainConfig.model_validate({"finetune": {}, **RUN})
    why = r"compressed.*use the model it was made from"
    with pytest.raises(ConfigError, match=why):
        run_train(TrainInputs([folder / "data"], pretrained=model), config, tmp_path / "a")
    with pytest.raises(ConfigError, match=rf"pretrain\.from\.dpa1: finetuning: .*{why}"):
        pipeline(folder, model)
    head = folder / "committee-c.safetensors#1"
    with pytest.raises(ConfigError, match=rf"pretrain\.from\.dpa1: finetuning: .*{why}"):
        pipeline(folder, head)
    with pytest.raises(ConfigError, match=why):
        remap_types(load_model(model), ["Cu"])
    data = {"training_data": {"systems": [str(folder / "data")]}, "numb_steps": 1}
    block = load_model(model).config.model_dump(mode="json")
    with pytest.raises(ConfigError, match=rf"model\.descriptor\.compression.*{why}"):
        train(TrainConfig.model_validate({"model": block, "training": data}), tmp_path / "b")


@pytest.mark.parametrize("kind", ["concat", "strip", "se_e2_a"])
def test_the_file_gives_the_same_model(tmp_path, kind):
    changes = {
        "concat": {}, "strip": {"tebd_input_mode": "strip"},
        "se_e2_a": {"type": "se_e2_a", "sel": [30, 30, 30]},
    }[kind]  # fmt: skip
    if kind == "se_e2_a":
        block = {k: v for k, v in SMALL["descriptor"].items() if not k.startswith("attn")}
        model = build_model(ModelConfig.model_validate({**SMALL, "descriptor": block | changes}))
    else:
        model = make(**changes)
    compressed, _ = compress(model)
    again = load_model(save_model(compressed, tmp_path / "m.safetensors"))
    assert again.config == compressed.config
    assert not [k for k in again.state_dict() if "descriptor.embedding" in k]
    frame = make_frame([0, 1, 2, 0])
    one, other = (m.evaluate(frame.coord[None], frame.box[None], frame.atype)
                  for m in (compressed, again))  # fmt: skip
    np.testing.assert_array_equal(one.force, other.force)


def edit(path, change):
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    change(tensors, config["descriptor"]["compression"])
    metadata["config"] = json.dumps(config)
    path.write_bytes(safetensors.torch.save(tensors, metadata))


TABLE = "descriptor.tables.table"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, c: c.update(nbins=10**6), "only .* numbers"),
        (lambda t, c: c.update(nbins=10**9), "nbins"),
        (lambda t, c: c.update(nbins=c["nbins"] - 1), f"{TABLE} is"),
        (lambda t, c: c.update(stride=0), "stride"),
        (lambda t, c: c.update(lower="x"), "lower"),
        (lambda t, c: t.update({TABLE: t[TABLE][:2]}), f"only .* numbers|{TABLE} is"),
        (lambda t, c: t.update({TABLE: t[TABLE] * float("nan")}), "nan or inf"),
        (lambda t, c: t.pop(TABLE), "only .* numbers|missing"),
    ],
)
def test_damaged_files(folder, tmp_path, change, reason):
    path = tmp_path / "m.safetensors"
    path.write_bytes((folder / "model-c.safetensors").read_bytes())
    edit(path, change)
    with pytest.raises(ModelFileError, match=reason):
        load_model(path)


def test_settings_cannot_ask_for_tables(folder):
    tables = {"lower": 0, "stride": 0.125, "nbins": 8, "min_distance": 0.5}
    models = {"dpa1": {"descriptor": SMALL["descriptor"] | {"compression": tables}}}
    with pytest.raises(ConfigError, match=r"models\.dpa1: .*compression: train first, then"):
        pipeline(folder, folder / "model.safetensors", models=models)
