"""The examples of loops of a user's own, in small settings, and what they rely on."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ase.calculators.emt import EMT

import ops
from dpa_core.config import parse_config
from dpa_core.errors import ConfigError
from dpa_core.interchange.files import load_model
from ops.base import StepRequest
from ops.catalog import find_op, load_reference
from ops.explorers import AseExplorer
from ops.labelers import AseLabeler
from ops.structures import GenerateSource
from ops.train import RunTrainConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "custom_loop"
CRYSTAL = GenerateSource(lattice="fcc", element="Cu", cell="cubic", rattle=0.02, count=3)
EMT_LABELER = AseLabeler(type="ase", calculator="emt")


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# the plain loop


@pytest.fixture(scope="module")
def plain():
    return load_example("loop")


@pytest.fixture(scope="module")
def interrupted(plain, tmp_path_factory):
    """A loop that stops after one round, then goes on to a second; and its first model twice."""
    folder = tmp_path_factory.mktemp("plain")
    arguments = [str(folder), "--steps", "20", "--tolerance", "1e-9"]
    model = folder / "round-0" / "train" / "model.safetensors"
    codes = [plain.main([*arguments, "--rounds", "1"])]
    seen = [(model.read_bytes(), model.stat().st_mtime_ns)]
    codes.append(plain.main([*arguments, "--rounds", "2"]))
    seen.append((model.read_bytes(), model.stat().st_mtime_ns))
    return folder, codes, seen


def test_a_plain_loop_goes_on_where_it_stopped(interrupted):
    folder, codes, (first, second) = interrupted
    assert codes == [1, 1]  # it says that it has not converged
    assert first == second
    labels = json.loads((folder / "start" / "labels" / "labels.json").read_text())["tasks"]
    assert [task["attempts"] for task in labels] == [1] * 6
    result = json.loads((folder / "result.json").read_text())
    assert [row["labels"] for row in result["rounds"]] == [6, 12]


def test_a_plain_loop_trains_a_committee_that_grew_from_the_one_before(interrupted):
    folder = interrupted[0]
    models = [load_model(folder / f"round-{k}" / "train" / "model.safetensors") for k in (0, 1)]
    assert [len(model.heads()) for model in models] == [3, 3]
    log = json.loads((folder / "round-1" / "train" / "run.json").read_text())
    assert (log["finetuned"], log["train_frames"]) == (True, 12)


def test_the_bulk_modulus_of_the_plain_loop_is_that_of_a_known_curve(plain):
    """E = B/2 · (V - V0)² / V0: B = V0 · E'' exactly, for small changes of volume."""
    atoms = plain.make_structures({"alloy": plain.ALLOY}, {}, ["alloy"], seed=1)[0].atoms
    curve = plain.compress(atoms)
    volumes = np.array([a.get_volume() for a in curve])
    assert volumes / atoms.get_volume() == pytest.approx(plain.STRETCH)
    v0 = atoms.get_volume()
    energies = 0.5 * 100 * plain.units.GPa * (volumes - v0) ** 2 / v0
    assert plain.bulk_modulus(curve, energies) == pytest.approx(100, rel=0.02)
    assert np.isnan(plain.bulk_modulus(curve, -energies))


@pytest.mark.slow
def test_a_plain_loop_finds_the_bulk_modulus_of_its_labels(plain, tmp_path):
    assert plain.main([str(tmp_path)]) == 0
    found = json.loads((tmp_path / "result.json").read_text())["rounds"]
    alloys = plain.make_structures(
        {"alloy": plain.ALLOY.model_copy(update={"count": 3})}, {}, ["alloy"], seed=1
    )
    truth = []
    for curve in (plain.compress(plain.relax(s.atoms, EMT())) for s in alloys):
        for atoms in curve:
            atoms.calc = EMT()
        energies = np.array([atoms.get_potential_energy() for atoms in curve])
        truth.append(plain.bulk_modulus(curve, energies))
    error = [abs(row["modulus"] / np.mean(truth) - 1) for row in found]
    assert error[0] > 0.1  # there was something to learn
    assert error[-1] < 0.05


def test_labels_can_be_prepared_again_in_the_same_folder(tmp_path):
    """A loop that was killed calls every function again."""
    config = ops.StructuresConfig(sources={"crystal": CRYSTAL})
    selected = ops.run_structures(ops.StructuresInputs(), config, tmp_path / "start")
    prepare = ops.PrepareConfig(labeler=EMT_LABELER)
    label = ops.LabelConfig(labeler=EMT_LABELER)
    found = []
    for _ in range(2):
        ops.prepare_labels(ops.PrepareInputs(selected), prepare, tmp_path / "prepared")
        done = ops.run_labels(ops.LabelInputs(tmp_path / "prepared"), label, tmp_path / "labels")
        found.append([(task["id"], task["state"]) for task in done["tasks"]])
    assert found[0] == found[1]
    assert {state for _, state in found[0]} == {"labelled"}


def test_all_names_of_ops_are_there():
    for name in ops.__all__:
        assert getattr(ops, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ops.nonsense


# the workflow


def test_settings_of_a_step_may_be_an_object():
    """What was not set stays so; what tells the members of a union apart is kept."""
    stage = {"structures": ("crystal",), "explorer": AseExplorer(temperatures=(300,))}
    config = ops.ExploreConfig(sources={"crystal": CRYSTAL}, stages=(stage,))
    request = StepRequest(key="a", op="explore", config=config)
    assert request.config["sources"]["crystal"]["type"] == "generate"
    assert parse_config(ops.ExploreConfig, request.config, "test") == config
    document = {"model": {"heads": 2}, "training": {"numb_steps": 3}}
    train = parse_config(RunTrainConfig, document, "test")
    assert "type_map" not in StepRequest(key="a", op="train", config=train).config["model"]


def test_a_step_names_an_input_that_nobody_gives():
    from ops.step_op import step

    request = StepRequest(key="a", op="test", inputs={"models": {"m": "train:model"}})
    with pytest.raises(ConfigError, match=r"'a' reads 'train:model'.*data"):
        step(request, {"data": None})


@pytest.fixture
def dflow_settings(monkeypatch):
    """The settings of dflow, put back after the test."""
    import dflow

    def put(**settings):
        for name, value in settings.items():
            monkeypatch.setitem(dflow.config, name, value)

    return put


def test_a_step_reads_what_was_uploaded_and_what_a_step_wrote(tmp_path, dflow_settings):
    from dflow import Steps, Workflow, download_artifact, upload_artifact

    from ops.step_op import FOLDER, step

    dflow_settings(mode="debug", debug_workdir=str(tmp_path), debug_artifact_dir=str(tmp_path))
    data = tmp_path / "data"
    data.mkdir()
    (data / "number").write_text("5")
    steps = Steps("sum")
    settings = {"calls": str(tmp_path / "calls"), "value": 1}
    op = "tests.workflows.toy_ops:ADD"
    inputs = {"one": "mine:number"}
    first = step(
        StepRequest(key="first", op=op, config=settings, inputs=inputs),
        {"mine": upload_artifact(data)},
    )
    inputs = {"parts": ["before:number"], "one": "mine:number"}
    second = step(
        StepRequest(key="second", op=op, config=settings, inputs=inputs),
        {"before": first, "mine": upload_artifact(data)},
    )
    steps.add(first)
    steps.add(second)
    workflow = Workflow("sum", steps=steps)
    workflow.submit()
    assert workflow.query_status() == "Succeeded"
    folder = workflow.query_step(key="second")[0].outputs.artifacts[FOLDER]
    download_artifact(folder, path=tmp_path / "result")
    assert next((tmp_path / "result").rglob("number")).read_text() == "12"


@pytest.fixture
def rendered(dflow_settings, monkeypatch):
    """The example's manifest for Argo, and what was uploaded for it."""
    import dflow
    from dflow.utils import StorageClient

    class Memory(StorageClient):
        files: ClassVar = {}

        def upload(self, key, path):
            self.files[key] = Path(path).read_bytes()

        def download(self, key, path):
            raise NotImplementedError

        def list(self, prefix, recursive=False):
            return [key for key in self.files if key.startswith(prefix)]

        def copy(self, src, dst):
            self.files[dst] = self.files[src]

        def get_md5(self, key):
            return ""

    monkeypatch.setitem(dflow.s3_config, "storage_client", Memory())
    dflow_settings(mode="default", k8s_api_server="http://127.0.0.1:1", token="none")
    steps = load_example("dflow_loop").build([300.0, 900.0], 10, image="dpaflow:test")
    return dflow.Workflow("heating", steps=steps).to_dict(), Memory.files


def test_the_workflow_for_a_cluster_holds_no_place_of_this_machine(rendered):
    manifest, files = rendered
    text = json.dumps(manifest) + "".join(data.decode() for data in files.values())
    for place in (EXAMPLES.parents[1], sys.prefix, sys.executable, Path.home(), Path.cwd()):
        assert str(place) not in text
    commands = [t["script"]["command"] for t in manifest["spec"]["templates"] if "script" in t]
    assert len(commands) > 3
    assert set(map(tuple, commands)) == {("python",)}


def test_every_step_of_the_workflow_has_settings_and_inputs_that_its_op_takes(rendered):
    requests = [json.loads(data) for key, data in rendered[1].items() if key.endswith("request")]
    assert len(requests) == 12
    for request in requests:
        spec = find_op(request["op"])
        parse_config(load_reference(spec.config), request["config"], request["key"])
        load_reference(spec.inputs)(**request["inputs"])


@pytest.mark.slow
def test_the_workflow_runs(tmp_path):
    command = [sys.executable, EXAMPLES / "dflow_loop.py", tmp_path, "--temperatures", "300"]
    done = subprocess.run(
        [*command, "--steps", "20"], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if "on the frames of" in line]
    assert [line.split(":")[0] for line in table] == [
        "model0 on the frames of start",
        "model0 on the frames of round0",
    ]
