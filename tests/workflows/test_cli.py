"""The dpaflow command: exit codes, messages, and a small pipeline with the real OPs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from dpa_core.errors import ConfigError
from ops import base
from ops.files import write_json
from tests.workflows.helpers import write_model
from workflows import cli, cli_model, doctor, revisions, run_folder
from workflows.backends import local
from workflows.graph import Node


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Call `dpaflow ...` in this process, as main() does; returns (exit code, output)."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def call(*arguments):
        result = runner.invoke(cli.app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            if not hasattr(result.exception, "exit_code"):
                raise result.exception
            return result.exception.exit_code, f"error: {result.exception}"
        return result.exit_code, result.output

    return call


def dpaflow(*arguments, **options):
    command = [sys.executable, "-m", "workflows.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_is_instant():
    code = (
        "import sys, workflows.cli as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'dflow', 'numpy', 'ase', 'pydantic', 'yaml')\n"
        "sys.stderr.write(str([m for m in heavy if m in sys.modules]))"
    )
    begin = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.process_time() - begin < 0.5
    assert done.stderr == "[]"
    assert "resume" in done.stdout


def test_wrong_file_gives_one_message_and_exit_code_2(tmp_path):
    (tmp_path / "p.yaml").write_text("name: x\nmodls: {}\n")
    done = dpaflow("validate", tmp_path / "p.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/p.yaml: 2 mistakes\n")
    assert "modls: unknown key; did you mean 'models'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for arguments in (("--debug", "validate"), ("validate", "--debug")):
        done = dpaflow(*arguments, tmp_path / "p.yaml")
        assert "Traceback" in done.stderr


def test_unwritable_folder_gives_one_message_and_exit_code_1(tmp_path):
    (tmp_path / "file").write_text("")
    done = dpaflow("init", tmp_path / "file" / "folder")
    assert done.returncode == 1
    assert done.stderr.startswith("error: [Errno 20] Not a directory:")
    assert "check the path" in done.stderr
    assert done.stderr.count("\n") == 1


def test_templates_are_valid(call, tmp_path, monkeypatch):
    assert call("init", "--template", "x")[0] == 2
    data = tmp_path / "somewhere"
    data.mkdir()
    for name in ("unary", "binary", "ternary"):
        (data / f"{name}.extxyz").write_text("")
    write_model(tmp_path / "model.safetensors")
    for variable in ("MY_DATA", "DEMO_DATA"):
        monkeypatch.setenv(variable, str(data))
    monkeypatch.setenv("PRETRAINED", str(tmp_path / "model.safetensors"))
    for template in ("demo", "pretrain", "finetune"):
        code, output = call("init", template, "--template", template)
        assert code == 0, output
        code, output = call("validate", f"{template}/pipeline.yaml")
        assert code == 0, output
    assert call("init", "demo") == (2, "error: demo/pipeline.yaml exists; move it away or name "
                                       "another folder")  # fmt: skip


def test_schema_is_json(call):
    code, output = call("schema")
    assert code == 0
    assert "targets" in json.loads(output)["properties"]


@pytest.fixture
def failed_run(tmp_path):
    """Folder of a run whose second step failed, written by hand."""
    folder = run_folder.RunFolder(tmp_path / "run")
    folder.dflow.mkdir(parents=True)
    nodes = [Node("collect-a", "collect", {}), Node("pretrain-m", "train", {})]
    prints = {node.key: "f" for node in nodes}
    plan = {"nodes": [n._asdict() for n in nodes], "fingerprints": prints}
    write_json(folder.plan, plan)
    for node, state, reason in zip(nodes, ("succeeded", "failed"), ("", "loss is NaN at step 7"),
                                   strict=True):  # fmt: skip
        outdir = folder.steps / node.key
        outdir.mkdir(parents=True)
        status = base.Status(
            node.key,
            node.op,
            state,
            reason,
            elapsed=65.4,
            fingerprint="f",
            started="2026-01-01T00:00:00+00:00",
        )
        write_json(outdir / base.STATUS, status._asdict())
        (outdir / base.LOG).write_text(f"log of {node.key}\n")
    return folder


def test_status_and_logs(call, failed_run):
    code, output = call("status", failed_run.root)
    assert code == 0
    assert "1 min 05 s" in output
    assert "loss is NaN at step 7" in output
    assert "continue with: dpaflow resume" in output
    assert "log of pretrain-m" in call("logs", failed_run.root)[1]
    assert "log of collect-a" in call("logs", failed_run.root, "collect-a")[1]
    assert call("logs", failed_run.root, "colect-a")[1].endswith("did you mean collect-a")
    assert "is not the folder of a run" in call("status", failed_run.root.parent)[1]
    assert call("resume", failed_run.root)[0] == 2


def test_exit_code_and_report_of_a_failed_run(call, failed_run, monkeypatch, tmp_path):
    states = run_folder.read_states(failed_run, live=False)
    monkeypatch.setattr(local, "run_locked", lambda *_: local.Result(states, stopped=False))
    monkeypatch.setattr(revisions, "plan", lambda *_: [])
    (tmp_path / "a.xyz").write_text("")
    (tmp_path / "p.yaml").write_text(
        "{name: x, data: {a: {sources: [{path: a.xyz}]}}, models: {m: {}},"
        " pretrain: {data: a, training: {numb_steps: 1}}}"
    )
    code, output = call("run", "p.yaml", "--out", failed_run.root)
    assert code == 1
    assert "FAILED pretrain-m: loss is NaN at step 7" in output
    assert "| log of pretrain-m" in output
    monkeypatch.setattr(local, "run_locked", lambda *_: local.Result(states, stopped=True))
    assert call("run", "p.yaml", "--out", failed_run.root)[0] == 130
    revisions.write_revisions(failed_run, [revisions.parse_revision("pretrain-m", ["seed=2"])])
    output = call("run", "p.yaml", "--out", failed_run.root)[1]
    assert "without the change from pretrain-m on ({'seed': 2})" in output
    assert "without" not in call("run", "p.yaml", "--out", failed_run.root)[1]


def test_doctor(call, tmp_path, monkeypatch):
    code, output = call("doctor", tmp_path)
    assert code == 0, output
    assert "torch" in output
    assert "GB free" in output
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-package"))
    code, output = call("doctor", tmp_path / "not" / "there")
    assert code == 1
    assert "FAIL  no-such-package" in output


def frames(count, symbols, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
        atoms.symbols[:] = rng.choice(symbols, len(atoms))
        atoms.rattle(0.1, rng=rng)
        calculator = EMT()
        atoms.calc = calculator
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


PIPELINE = """
name: small
type_map: [Cu, Ni]
data:
  alloys: {sources: [{path: data.xyz}]}
models:
  dpa1:
    descriptor: {type: dpa1, rcut: 3.5, sel: 20, neuron: [4, 8], axis_neuron: 4, attn: 8,
                 attn_layer: 1}
    fitting_net: {neuron: [8, 8]}
pretrain:
  data: alloys
  training: {training_data: {batch_size: 4}, numb_steps: 4, disp_freq: 2, save_freq: 2}
"""


def test_pipeline_with_real_ops_then_model_commands(call, tmp_path):
    ase.io.write(tmp_path / "data.xyz", list(frames(12, ["Cu", "Ni"], 1)))
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    code, output = call("run", "pipeline.yaml", "--out", "run")
    assert code == 0, output
    assert "3 steps: 3 succeeded" in output
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    model = tmp_path / "run" / "steps" / "pretrain-dpa1" / "model.safetensors"
    code, output = call("model", "info", model)
    assert (code, "type_map   Cu Ni" in output) == (0, True)
    code, output = call("model", "test", model, "data.xyz", "--no-plots", "--out", "t")
    assert code == 0, output
    results = json.loads((tmp_path / "t" / "results.json").read_text())["results"]
    assert results[0]["overall"]["nframes"] == 12
    code, output = call("model", "change-bias", model, "data.xyz", "--out", "b")
    assert code == 0, output
    code, output = call("model", "change-bias", model, "--set", "Cu=-3.5", "--out", "s")
    assert code == 0, output
    assert "Cu -3.5000" in call("model", "info", tmp_path / "s" / "model.safetensors")[1]
    code, output = call("model", "eval-desc", model, "data.xyz", "--out", "d.npz")
    assert code == 0, output
    table = np.load(tmp_path / "d.npz", allow_pickle=False)
    assert len(table["descriptor"]) == len(table["frame"]) == len(table["element"]) == 48
    assert call("model", "change-bias", model)[0] == 2
    assert call("model", "info", tmp_path / "data.xyz")[0] == 2


def test_train_and_finetune_by_hand(call, tmp_path):
    ase.io.write(tmp_path / "data.xyz", list(frames(6, ["Cu"], 2)))
    document = {
        "model": {
            "type_map": ["Cu"],
            "descriptor": {"type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.5, "sel": [20],
                           "neuron": [4, 8], "axis_neuron": 4},
            "fitting_net": {"neuron": [8, 8]},
        },
        "loss": {"type": "ener"},
        "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5},
        "training": {"numb_steps": 3, "disp_file": "lcurve.out",
                     "training_data": {"systems": ["data.xyz"], "batch_size": 2}},
    }  # fmt: skip
    (tmp_path / "input.json").write_text(json.dumps(document))
    code, output = call("model", "train", "input.json", "--out", "first")
    assert code == 0, output
    assert (tmp_path / "first" / "model.safetensors").exists()
    (tmp_path / "more.yaml").write_text("training: {numb_steps: 2}\n")
    model = tmp_path / "first" / "model.safetensors"
    code, output = call("model", "finetune", model, "more.yaml", "--data", "data.xyz", "--out", "2")
    assert code == 0, output
    (tmp_path / "wrong.yaml").write_text("trainng: {numb_steps: 2}\n")
    code, output = call("model", "train", "wrong.yaml")
    assert code == 2
    assert "trainng: unknown key; did you mean 'training'?" in output
    with pytest.raises(ConfigError, match="no such file"):
        cli_model.read_train_config(tmp_path / "none.yaml")


def test_data_of_the_same_name_are_all_tested():
    assert cli_model._named([Path("a/train"), Path("b/train"), Path("c")]) == {
        "a-train": [Path("a/train")],
        "b-train": [Path("b/train")],
        "c": [Path("c")],
    }
