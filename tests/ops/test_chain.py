"""Train, bias, test and report on a chain of tiny runs with real models."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from dpa_core.config import parse_config
from dpa_core.data import open_dataset
from dpa_core.errors import DataError, NumericalError
from dpa_core.interchange.files import load_model
from ops import bias, report, train
from ops import test as tests_op
from tests.ops.helpers import ENERGY, TYPES, make_frame, write

MODEL = {
    "descriptor": {
        "type": "dpa1", "rcut": 4.0, "sel": "auto", "neuron": [4, 8], "axis_neuron": 4,
        "attn": 8, "attn_layer": 1,
    },
    "fitting_net": {"neuron": [8, 8]},
}  # fmt: skip


def settings(steps=4, **blocks):
    training = {"numb_steps": steps, "disp_freq": 2, "valid_freq": 2, "save_freq": steps}
    document = {"model": MODEL, "training": training | blocks.pop("training", {})} | blocks
    return parse_config(train.RunTrainConfig, document, "test")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Data, a pretraining on Al-Ni, a finetuning and a training from scratch on Al-Ni-Cu."""
    root = tmp_path_factory.mktemp("chain")
    binary = [make_frame([0, 1, int(k % 2)], k) for k in range(12)]
    ternary = [make_frame([0, 1, 2, int(k % 3), 2], 50 + k) for k in range(8)]
    write(binary, root / "binary")
    write(ternary, root / "ternary")
    pre = train.run_train(
        train.TrainInputs([root / "binary"], [root / "binary"]), settings(), root / "pretrain"
    )
    drawn = {"max_frames": 3, "draw_seed": 5}
    fine = train.run_train(
        train.TrainInputs([root / "ternary"], (), pre.model), settings(**drawn), root / "finetune"
    )
    scratch = train.run_train(
        train.TrainInputs([root / "ternary"]), settings(**drawn), root / "scratch"
    )
    return root, pre, fine, scratch


def test_train_writes_a_model_of_the_elements_of_its_data(chain):
    root, pre, *_ = chain
    assert pre.summary["type_map"] == ["Al", "Ni"]
    assert pre.summary["train_frames"] == 12
    assert not pre.summary["finetuned"]
    assert pre.summary == json.loads((root / "pretrain/run.json").read_text())
    assert load_model(pre.model).type_map == ("Al", "Ni")
    assert np.isfinite(report.read_lcurve(root / "pretrain/lcurve.csv")["rmse_f"]).all()


def test_finetuning_adds_elements_and_keeps_the_architecture(chain):
    _, pre, fine, scratch = chain
    assert fine.summary["finetuned"]
    assert fine.summary["type_map"] == ["Al", "Ni", "Cu"]
    assert (
        load_model(fine.model).config.descriptor.sel == load_model(pre.model).config.descriptor.sel
    )
    assert not scratch.summary["finetuned"]


def test_runs_of_one_seed_see_the_same_frames(chain):
    root, *_ = chain
    one, two = (open_dataset([root / name / "drawn"]) for name in ("finetune", "scratch"))
    assert len(one) == len(two) == 3
    for k in range(3):
        np.testing.assert_array_equal(one[k].coord, two[k].coord)


def test_elements_outside_a_named_type_map_are_an_error(chain, tmp_path):
    root, *_ = chain
    config = settings(model=MODEL | {"type_map": ["Al", "Ni"]})
    with pytest.raises(DataError, match="hold Cu"):
        train.run_train(train.TrainInputs([root / "ternary"]), config, tmp_path / "out")


def test_training_without_data_says_so(tmp_path):
    with pytest.raises(DataError, match="training has no data"):
        train.run_train(train.TrainInputs(), settings(), tmp_path / "out")


def test_bias_refit_moves_the_reference_of_energy(chain, tmp_path):
    """Labels shifted by known energies per element: exactly these come back."""
    root, pre, *_ = chain
    data = open_dataset([root / "binary"], type_map=TYPES)
    shift = np.array([10.0, -7.0, 0.0])
    moved = []
    model = load_model(pre.model)
    for k in range(len(data)):
        frame = data[k]
        energy = model.evaluate(frame.coord[None], frame.box[None], frame.atype).energy[0]
        moved.append(frame._replace(energy=float(energy + shift[frame.atype].sum())))
    write(moved, tmp_path / "moved")
    done = bias.run_bias(
        bias.BiasInputs(pre.model, [tmp_path / "moved"]), bias.BiasConfig(), tmp_path / "out"
    )
    for name, wanted in (("Al", 10.0), ("Ni", -7.0)):
        assert done.summary["after"][name] - done.summary["before"][name] == pytest.approx(wanted)
    # the network works in float32
    assert done.summary["rmse_after"] < 1e-6 < done.summary["rmse_before"]
    assert done.summary["frames"] == 12
    frame = moved[0]
    found = load_model(done.model).evaluate(frame.coord[None], frame.box[None], frame.atype)
    assert found.energy[0] == pytest.approx(frame.energy)


def test_bias_refuses_more_frames_than_there_are(chain, tmp_path):
    root, pre, *_ = chain
    inputs = bias.BiasInputs(pre.model, [root / "binary"])
    with pytest.raises(DataError, match="99 frames asked for"):
        bias.run_bias(inputs, bias.BiasConfig(max_frames=99), tmp_path / "out")


def test_refit_energy_in_closed_form():
    """Residuals that are a sum over elements vanish; the rest stays orthogonal to them."""
    counts = np.array([[1, 2], [3, 1], [2, 2], [5, 0]])
    predicted = np.array([1.0, 2.0, 3.0, 4.0])
    reference = predicted + counts @ np.array([0.5, -2.0])
    shift, shifted = tests_op.refit_energy(counts, reference, predicted)
    np.testing.assert_allclose(shift, [0.5, -2.0])
    np.testing.assert_allclose(shifted, reference, atol=1e-12)
    reference[2] = np.nan
    _, shifted = tests_op.refit_energy(counts, reference, predicted)
    assert np.isfinite(shifted).all()
    assert tests_op.refit_energy(counts, np.full(4, np.nan), predicted) == (None, None)


@pytest.fixture(scope="module")
def tested(chain):
    root, pre, fine, scratch = chain
    models = {"finetune": fine.model, "scratch": scratch.model}
    tests_op.run_test(
        tests_op.TestInputs({"pretrain": pre.model}, {"binary": [root / "binary"]}),
        tests_op.RunTestConfig(),
        root / "test-binary",
    )
    document = tests_op.run_test(
        tests_op.TestInputs(models, {"ternary": [root / "ternary"]}),
        tests_op.RunTestConfig(),
        root / "test-ternary",
    )
    return root, document


def test_metrics_are_those_of_the_predictions(chain, tested):
    root, document = tested
    entry = document["results"][0]
    model = load_model(chain[2].model)
    data = open_dataset([root / "ternary"], type_map=model.type_map)
    energy, force = [], []
    for k in range(len(data)):
        frame = data[k]
        found = model.evaluate(frame.coord[None], frame.box[None], frame.atype)
        energy.append((found.energy[0] - frame.energy) / len(frame.coord))
        force.append(found.force[0] - frame.force)
    assert entry["overall"]["rmse_e"] == pytest.approx(np.sqrt(np.mean(np.square(energy))))
    assert entry["overall"]["mae_f"] == pytest.approx(np.mean(np.abs(force)))
    assert set(entry["formulas"]) == {"Al2Cu2Ni", "AlCu2Ni2", "AlCu3Ni"}
    pooled = sum(f["nframes"] * f["rmse_e"] ** 2 for f in entry["formulas"].values())
    assert np.sqrt(pooled / 8) == pytest.approx(entry["overall"]["rmse_e"])
    assert entry["refit"]["rmse_e"] <= entry["overall"]["rmse_e"]
    saved = np.load(root / "test-ternary/finetune--ternary.npz", allow_pickle=False)
    np.testing.assert_allclose(
        saved["energy_ref"], [ENERGY[data[k].atype % 3].sum() for k in range(8)]
    )
    png = (root / "test-ternary/parity-finetune--ternary.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_unknown_element_is_an_error(chain, tmp_path):
    root, pre, *_ = chain
    inputs = tests_op.TestInputs({"pre": pre.model}, {"ternary": [root / "ternary"]})
    with pytest.raises(DataError, match="Cu"):
        tests_op.run_test(inputs, tests_op.RunTestConfig(), tmp_path / "out")


def test_data_without_any_label_are_an_error(chain, tmp_path):
    bare = [f._replace(energy=None, force=None, virial=None) for f in [make_frame([0, 1])]]
    write(bare, tmp_path / "bare")
    inputs = tests_op.TestInputs({"pre": chain[1].model}, {"bare": [tmp_path / "bare"]})
    with pytest.raises(DataError, match="have no label"):
        tests_op.run_test(inputs, tests_op.RunTestConfig(), tmp_path / "out")


def test_report_is_one_file_with_everything(chain, tested, tmp_path):
    root, document = tested
    bias.run_bias(
        bias.BiasInputs(chain[1].model, [root / "binary"]), bias.BiasConfig(), root / "refit"
    )
    steps = ("pretrain", "refit", "finetune", "scratch", "test-binary", "test-ternary")
    status = {"state": "succeeded", "elapsed": 2.5, "attempts": 1}
    (root / "pretrain/status.json").write_text(json.dumps(status))
    config = parse_config(
        report.ReportConfig,
        {
            "title": "Alloys <&> more",
            "n_permutations": 20,
            "curves": [
                {"model": "finetune", "kind": "finetuned", "frames": 3},
                {"model": "scratch", "kind": "from scratch", "frames": 3},
            ],
        },
        "test",
    )
    page = report.write_report(
        report.ReportInputs({name: root / name for name in steps}), config, tmp_path
    ).read_text()
    assert "<h1>Alloys &lt;&amp;&gt; more</h1>" in page
    for heading in ("Results", "Learning curves", "Parity plots", "Energy bias", "Steps", "Using"):
        assert f"<h2>{heading}" in page
    force = 1000 * document["results"][0]["overall"]["rmse_f"]
    assert report.three_digits(force) in page
    # nothing is fetched from anywhere
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    code = page.split("<pre>")[1].split("</pre>")[0].replace("&#34;", '"')
    compile(code, "example", "exec")


def test_report_of_nothing_is_still_a_page(tmp_path):
    inputs = report.ReportInputs({"gone": tmp_path / "gone"})
    page = report.write_report(inputs, report.ReportConfig(title="empty"), tmp_path).read_text()
    assert "<h1>empty</h1>" in page
    assert "<h2>" not in page


def test_seeds_share_a_row_and_the_best_is_marked():
    from ops.report_tables import result_tables, verdict

    def entry(model, force):
        overall = {"nframes": 9, "rmse_e": 0.1, "rmse_f": force}
        return {"model": model, "data": "t", "overall": overall, "refit": None, "formulas": {}}

    results = [entry("zero", 0.3), entry("a1", 0.1), entry("a2", 0.2), entry("b1", 0.4)]
    kinds = {"a1": ("finetuned", 4), "a2": ("finetuned", 4), "b1": ("from scratch", 4)}
    (table,) = result_tables(results, kinds)
    assert [(row.label, row.frames, len(row.runs)) for row in table.rows] == [
        ("zero", None, 1), ("finetuned", 4, 2), ("from scratch", 4, 1),
    ]  # fmt: skip
    force = [row.cells[-1] for row in table.rows]
    assert [cell.best for cell in force] == [False, True, False]
    assert force[1].mean == pytest.approx(150)
    assert force[1].spread == pytest.approx(np.sqrt(0.5) * 100)
    assert len(table.every) == 4
    assert "finetuned (4 training frames)" in verdict([table])
    assert "from scratch 400" in verdict([table])


def test_error_of_a_torchrun_process_keeps_its_class(chain, tmp_path, monkeypatch):
    """The message of the failed process arrives, not torchrun's."""
    root, *_ = chain
    config = settings(nproc=2)

    def fail(command):
        task = tmp_path / "out"
        told = {"class": "NumericalError", "message": "loss is NaN at step 3"}
        (task / "torchrun-error-1.json").write_text(json.dumps(told))

        class Process:
            def wait(self):
                return 1

            def terminate(self):
                pass

        return Process()

    monkeypatch.setattr(train.subprocess, "Popen", fail)
    with pytest.raises(NumericalError, match="NaN at step 3"):
        train.run_train(train.TrainInputs([root / "binary"]), config, tmp_path / "out")


@pytest.mark.slow
def test_two_processes_train_the_same_run(chain, tmp_path):
    root, *_ = chain
    inputs = train.TrainInputs([root / "binary"])
    done = train.run_train(inputs, settings(nproc=2), tmp_path / "out")
    assert done.summary["steps"] == 4
    assert load_model(done.model).type_map == ("Al", "Ni")
