"""The graph of concurrent learning, its settings, and changes of settings on the way."""

import json
import re
from pathlib import Path

import pytest
import yaml

from dpa_core.errors import ConfigError
from ops.base import REQUEST, STATUS
from ops.catalog import OPS as ALL_OPS
from ops.catalog import load_reference
from tests.workflows.helpers import write_model
from workflows import graph, revisions, runner
from workflows.backends import local
from workflows.concurrent_learning import Progress
from workflows.pipeline import plan
from workflows.revisions import (
    apply_changes,
    current_plan,
    folder_decisions,
    parse_revision,
    revised_plan,
)
from workflows.run_folder import RunFolder, StepState
from workflows.schema import Pretrain, dump_pipeline, load_pipeline

TRAIN = {
    "strategy": "last",
    "training": {"training_data": {"batch_size": 2}, "numb_steps": 100},
    "later": {"training": {"numb_steps": 40}, "learning_rate": {"start_lr": 1e-4}},
}
LOOP = {
    "init": {"structures": ["start"], "data": ["old"]},
    "committee": {"size": 3},
    "train": TRAIN,
    "structures": {
        "start": {"type": "generate", "lattice": "fcc", "element": "Cu", "rattle": 0.1, "count": 5},
        "known": {"type": "data", "data": "old", "count": 2},
    },
    "explore": {"type": "ase", "steps": 20, "trj_freq": 5},
    "select": {"lo": 0.1, "hi": 0.5, "max_candidates": 10},
    "stages": [
        {"structures": ["start"], "explore": {"temperatures": [300]}},
        {
            "name": "hot", "structures": ["known"], "explore": {"temperatures": [900]},
            "select": {"lo": 0.2},
        },
    ],
    "label": {"labeler": {"type": "ase", "calculator": "emt"}, "group_size": 4},
    "test": ["hold"],
}  # fmt: skip


CP2K_TEMPLATE = (
    Path(__file__).parents[2] / "examples/concurrent_learning/cp2k/input.inp"
).read_text()

PRETRAIN = {"data": "old", "training": {"numb_steps": 1}}


@pytest.fixture
def load(tmp_path):
    for name in ("old", "hold"):
        (tmp_path / f"{name}.extxyz").write_text("1\n\nCu 0 0 0\n")
    write_model(tmp_path / "pretrained.safetensors")

    def load(**changes):
        """Pipeline with some blocks of `concurrent_learning` (or, with `_`, others) replaced."""
        document = {
            "name": "loop",
            "seed": 3,
            "type_map": ["Cu", "Ni"],
            "data": {n: {"sources": [{"path": f"{n}.extxyz"}]} for n in ("old", "hold")},
            "models": {"small": {}},
            "concurrent_learning": LOOP | {k: v for k, v in changes.items() if k[0] != "_"},
        }
        document |= {key[1:]: value for key, value in changes.items() if key[0] == "_"}
        path = tmp_path / "loop.yaml"
        path.write_text(yaml.safe_dump(document))
        return load_pipeline(path, {})

    return load


def by_key(nodes):
    return {node.key: node for node in nodes}


def test_every_step_has_settings_and_inputs_its_op_accepts(load):
    pipeline = load(compare={"random": [1]})
    nodes = plan(pipeline, Progress(2, finished=True, labelled=7))
    for node in nodes:
        spec = ALL_OPS[node.op]
        load_reference(spec.config).model_validate(node.config)
        load_reference(spec.inputs)(**node.inputs)
    done: set[str] = set()
    for level in graph.levels(nodes):
        assert all(graph.needs(node) <= done for node in level)
        done |= {node.key for node in level}
    assert nodes[-1].key == "report"


def test_an_iteration(load):
    nodes = by_key(plan(load(), Progress(2)))
    assert "report" not in nodes  # not before the end
    assert {f"iter-000001-train-m{m}" for m in range(3)} <= set(nodes)
    # 10 candidates in groups of 4; 5 starting structures in groups of 4
    assert sum(key.startswith("iter-000001-label") for key in nodes) == 3
    assert sum(key.startswith("init-label") for key in nodes) == 2
    train = nodes["iter-000001-train-m2"]
    assert train.inputs["train"] == ["collect-old:train", "init-collect:train",
                                     "iter-000000-collect:train"]  # fmt: skip
    assert train.inputs["pretrained"] == "iter-000000-train-m2:model.safetensors"
    assert train.config["training"]["numb_steps"] == 40
    assert train.config["learning_rate"]["start_lr"] == 1e-4
    # a committee that is trained twice in the same way would agree with itself
    seeds = [n.config["training"]["seed"] for n in nodes.values() if n.op == "train"]
    assert len(set(seeds)) == len(seeds) == 6
    select = nodes["iter-000001-select"]
    assert select.inputs["decision"] == "iter-000000-decide:decision.json"
    assert select.inputs["labelled"] == train.inputs["train"]
    assert set(nodes["iter-000001-test"].inputs["data"]) == {"new", "previous", "hold"}


def test_stages_override_the_defaults(load):
    stages = load().concurrent_learning.stages
    assert [stage.explore.temperatures for stage in stages] == [(300,), (900,)]
    assert [stage.explore.steps for stage in stages] == [20, 20]
    select = by_key(plan(load()))["iter-000000-select"].config["stages"]
    assert "0.2" in json.dumps(select[1])
    assert "0.2" not in json.dumps(select[0])


def test_heads_are_one_training(load):
    nodes = by_key(plan(load(committee={"size": 4, "kind": "heads"}), Progress(2)))
    assert nodes["iter-000001-train-m0"].config["model"]["heads"] == 4
    assert "iter-000001-train-m1" not in nodes


@pytest.mark.parametrize(
    ("strategy", "origin"),
    [("scratch", None), ("last", "iter-000000-train-m0:model.safetensors"), ("pretrained", "FILE")],
)
def test_what_a_later_training_starts_from(load, tmp_path, strategy, origin):
    pretrain = {"from": {"small": "pretrained.safetensors"}}
    pipeline = load(_pretrain=pretrain, start="pretrained", train=TRAIN | {"strategy": strategy})
    nodes = by_key(plan(pipeline, Progress(2)))
    model = str(tmp_path / "pretrained.safetensors")
    assert nodes["iter-000000-train-m0"].inputs["pretrained"] == model
    expected = model if origin == "FILE" else origin
    assert nodes["iter-000001-train-m0"].inputs.get("pretrained") == expected


def test_the_end(load):
    pipeline = load(compare={"random": [5, 6]})
    nodes = by_key(plan(pipeline, Progress(3, finished=True, labelled=9)))
    assert len(nodes["final-train-m0"].inputs["train"]) == 5
    assert nodes["compare-random-s005-select"].config["stages"][0]["max_candidates"] == 9
    models = set(nodes["final-test"].inputs["models"])
    assert models == {f"{k}-m{m}" for k in ("start", "final") for m in range(3)} | {
        f"{kind}-s{seed:03d}" for kind in ("random", "selected") for seed in (5, 6)
    }  # fmt: skip
    assert not any(
        k.startswith("compare") for k in by_key(plan(pipeline, Progress(1, finished=True)))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": {"structures": ["strat"]}}, "did you mean 'start'?"),
        ({"test": ["held"]}, "did you mean 'hold'?"),
        ({"test": ["old"]}, "is also trained on"),
        ({"model": "smal"}, "did you mean 'small'?"),
        ({"init": {}}, "needs something to start with"),
        ({"committee": {"size": 1}}, "committee.size"),
        ({"label": {"labeler": {"type": "ase", "calculator": "emtt"}}}, "emtt"),
        ({"label": {"labeler": {"type": "wasp"}}}, "wasp"),
        ({"train": {**TRAIN, "later": {"training": {"numb_stepz": 1}}}}, "numb_stepz"),
        ({"train": {**TRAIN, "training": {"numb_steps": 5, "seed": 2}}}, "seed"),
        ({"compare": {"random": [1], "train": {"training": {"numb_stepz": 1}}}}, "numb_stepz"),
        ({"stages": [{"structures": ["known"], "explore": {"temperaturs": [3]}}]},
         "did you mean 'temperatures'?"),
        ({"structures": {**LOOP["structures"], "f": {"type": "file", "path": "no/*.vasp"}}},
         "no such file"),
        ({"start": "pretrained"}, "pretrain.data: missing"),
        ({"test": ["odl"], "init": {"data": ["odl"]}}, "did you mean 'old'?"),
        ({"label": {"labeler": {"type": "pool", "data": "hold"}}}, "is also trained on"),
        ({"train": {**TRAIN, "replay": {"data": ["hold"]}}}, "is also trained on"),
        ({"compare": {"random": [1]}, "test": []}, "no test data to compare on"),
        ({"train": {**TRAIN, "strategy": "pretrained"}}, "needs start: pretrained"),
        ({"_pretrain": {"from": {"small": "pretrained.safetensors"}}}, "nothing starts from it"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_runs(load, changes, message):
    with pytest.raises(ConfigError) as error:
        load(**changes)
    assert message in str(error.value)


def finish(folder, nodes, key, decision=None):
    """Pretend that a step succeeded."""
    place = folder.steps / key
    place.mkdir(parents=True, exist_ok=True)
    prints = graph.fingerprints(nodes)
    status = {"key": key, "op": "decide", "state": "succeeded", "fingerprint": prints[key]}
    (place / STATUS).write_text(json.dumps(status))
    (place / REQUEST).write_text("{}")
    if decision is not None:
        (place / "decision.json").write_text(json.dumps(decision))


def test_a_run_grows_with_its_decisions(load, tmp_path):
    pipeline, folder = load(), RunFolder(tmp_path / "run")
    nodes, progress = current_plan(pipeline, [], folder_decisions(folder))
    assert progress == Progress(1)
    finish(folder, nodes, "iter-000000-decide", {"go": True})
    nodes, progress = current_plan(pipeline, [], folder_decisions(folder))
    assert progress == Progress(2)
    finish(folder, nodes, "iter-000001-decide", {"go": False, "rows": [{"labelled": 4}] * 2})
    nodes, progress = current_plan(pipeline, [], folder_decisions(folder))
    assert progress == Progress(2, finished=True, labelled=8)
    assert nodes[-1].key == "report"
    # decisions made with other settings do not count
    assert current_plan(load(max_iterations=7), [], folder_decisions(folder))[1] == (Progress(1))


def test_a_setting_changed_on_the_way_leaves_earlier_steps_alone(load):
    pipeline = load()
    before = graph.fingerprints(plan(pipeline, Progress(3)))
    revision = parse_revision("iter-000001/select", ["select.lo=0.08"])
    nodes = revised_plan(pipeline, [revision], Progress(3))
    after = graph.fingerprints(nodes)
    assert list(before) == list(after)
    changed = [key for key in before if before[key] != after[key]]
    first = list(before).index("iter-000001-select")
    assert changed == list(before)[first:]
    config = by_key(nodes)["iter-000001-select"].config
    assert all("0.08" in json.dumps(stage) for stage in config["stages"])
    assert "0.08" not in json.dumps(by_key(nodes)["iter-000000-select"].config)


def test_from_alone_runs_a_step_again(load):
    pipeline = load()
    before = graph.fingerprints(plan(pipeline))
    again = [parse_revision("iter-000000-label", [])]
    after = graph.fingerprints(revised_plan(pipeline, again, Progress()))
    same = [key for key in before if before[key] == after[key]]
    assert "iter-000000-prepare" in same
    assert not any("label" in key or "decide" in key for key in same if key.startswith("iter"))
    twice = graph.fingerprints(revised_plan(pipeline, again * 2, Progress()))
    assert twice["iter-000000-label-g000"] != after["iter-000000-label-g000"]


def test_wrong_changes_are_refused(load):
    pipeline = load()
    for settings, message in (
        (["select.l0=0.08"], "l0"),
        (["select.lo"], "expected KEY=VALUE"),
        (["stages.7.select.lo=1"], "not one of the numbers 0 to 1"),
        (["committee.size=many"], "committee.size"),
        (["test=[nothing]"], "no such name"),
    ):
        with pytest.raises(ConfigError, match=message):
            apply_changes(pipeline, parse_revision("iter-000000-select", settings))
    with pytest.raises(ConfigError, match="no such step; there are"):
        revisions.require_start(parse_revision("iter-000009/select", []), plan(pipeline))


def test_changes_outside_the_loop_and_of_one_stage(load):
    settings = ["execution.parallel=3", "stages.1.select.lo=0.3", "label.min_success=0.9"]
    changed = apply_changes(load(), parse_revision("iter-000000-select", settings))
    assert changed.execution.parallel == 3
    assert changed.concurrent_learning.label.min_success == 0.9
    stages = by_key(plan(changed))["iter-000000-select"].config["stages"]
    assert "0.3" in json.dumps(stages[1])
    assert "0.3" not in json.dumps(stages[0])


def test_a_resolved_pipeline_is_the_same_pipeline(load, tmp_path):
    pipeline = load(compare={"random": [1]})
    copy = tmp_path / "elsewhere" / "pipeline.yaml"
    copy.parent.mkdir()
    copy.write_text(dump_pipeline(pipeline))
    assert plan(load_pipeline(copy, {})) == plan(pipeline)


def test_the_example_is_what_it_says(monkeypatch, tmp_path):
    (tmp_path / "test.extxyz").write_text("")
    monkeypatch.setenv("EMT_TEST", str(tmp_path / "test.extxyz"))
    root = Path(__file__).parents[2]
    pipeline = load_pipeline(root / "examples/concurrent_learning/emt.yaml")
    assert pipeline.concurrent_learning.compare.random == (1, 2, 3)


def test_a_run_keeps_its_templates_and_finds_changed_ones(load, tmp_path, monkeypatch):
    """What is in the run's pipeline.yaml does not change when the user edits a template."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.inp").write_text(f"! {name}\n" + CP2K_TEMPLATE)
    label = {"labeler": {"type": "cp2k", "template": "one.inp"}}
    pipeline, folder = load(label=label), RunFolder(tmp_path / "run")
    runner.start(pipeline, tmp_path / "loop.yaml", folder)
    before = graph.fingerprints(plan(load_pipeline(folder.pipeline, {})))
    assert before == graph.fingerprints(plan(pipeline))
    (tmp_path / "one.inp").write_text("! edited\n" + CP2K_TEMPLATE)
    assert before == graph.fingerprints(plan(load_pipeline(folder.pipeline, {})))
    monkeypatch.chdir(tmp_path)
    revision = parse_revision("iter-000000-prepare", ["label.labeler.template=two.inp"])
    monkeypatch.chdir("/")
    nodes = by_key(revised_plan(load_pipeline(folder.pipeline, {}), [revision], Progress()))
    assert nodes["iter-000000-prepare"].config["labeler"]["template"].startswith("! two")
    assert nodes["init-prepare"].config["labeler"]["template"].startswith("! one")


def test_execution_can_be_changed(load):
    revision = parse_revision("iter-000000-select", ["execution.parallel=3"])
    assert revisions.revised_pipeline(load(), [revision]).execution.parallel == 3


def test_a_run_that_is_stopped_between_iterations_stops(load, tmp_path, monkeypatch):
    """Ctrl-C while the last step of an iteration ends must not begin the next one."""
    pipeline, folder = load(), RunFolder(tmp_path / "run")
    batches = []

    def run_locked(nodes, *_):
        batches.append(len(nodes))
        finish(folder, nodes, "iter-000000-decide", {"go": True})
        states = [StepState(node, "succeeded", None) for node in nodes]
        return local.Result(states, stopped=True)

    monkeypatch.setattr(local, "run_locked", run_locked)
    outcome = runner.drive(pipeline, folder, lambda _: None)
    assert len(batches) == 1
    assert not outcome.result.succeeded


def compared(load, train, **changes):
    """Training of the comparison with random selection after three iterations, and the final."""
    pretrain = {"from": {"small": "pretrained.safetensors"}}
    changes = {"_pretrain": pretrain, "start": "pretrained", "compare": {"random": [5]}, **changes}
    nodes = by_key(plan(load(train=train, **changes), Progress(3, finished=True, labelled=9)))
    return nodes["compare-random-s005-train"], nodes["final-train-m0"], nodes


def test_random_selection_gets_the_same_old_frames_and_none_twice(load):
    random, final, nodes = compared(load, TRAIN | {"replay": {"data": ["old"], "fraction": 0.3}})
    assert random.inputs["replay"] == final.inputs["replay"] == ["collect-old:train"]
    assert random.config["replay"] == final.config["replay"] == 0.3
    # frames that have labels from the start would be fewer new ones
    assert nodes["compare-random-s005-select"].inputs["labelled"] == [
        "collect-old:train", "init-collect:train",
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["scratch", "last", "pretrained"])
def test_random_selection_starts_from_what_the_final_model_descends_from(load, strategy):
    random, final, _ = compared(load, TRAIN | {"strategy": strategy})
    assert ("pretrained" in random.inputs) is (strategy != "scratch")
    assert ("pretrained" in final.inputs) is (strategy != "scratch")


def test_selected_and_random_frames_are_compared_alike(load):
    compare = {"random": [5], "train": {"training": {"numb_epoch": 10}}}
    random, _, nodes = compared(load, TRAIN, compare=compare)
    selected = nodes["compare-selected-s005-train"]
    assert random.config == selected.config
    assert random.config["training"]["numb_epoch"] == 10
    data = {node.key: node.inputs.pop("train") for node in (random, selected)}
    assert random.inputs == selected.inputs
    assert data == {
        random.key: [
            "collect-old:train",
            "init-collect:train",
            "compare-random-s005-collect:train",
        ],
        selected.key: nodes["final-train-m0"].inputs["train"],
    }


def test_the_commands_of_a_verdict_work(load):
    decision = {
        "verdict": "max_iterations", "message": "m", "rows": [{"iteration": 0, "labelled": 2}],
        "advice": "Raise max_iterations and stages.1.max_iterations to go on.",
    }  # fmt: skip
    told = runner.verdict(decision, "/runs/al")
    found = re.search(r"--from (\S+) (--set .*)", told)
    settings = [item.strip().replace("=N", "=9") for item in found[2].split("--set")[1:]]
    assert settings == ["max_iterations=9", "stages.1.max_iterations=9"]
    changed = apply_changes(load(), parse_revision(found[1], settings)).concurrent_learning
    assert (changed.max_iterations, changed.stages[1].max_iterations) == (9, 9)
    keys = {node.key for node in plan(load())}
    steps = re.search("is for: (.*)", told)[1].replace(" or ", ", ").split(", ")
    for step in steps:
        assert any(key.startswith(f"iter-000000-{step}") for key in keys)


def test_changes_of_a_pipeline_without_a_loop(load):
    pipeline = load().model_copy(update={"concurrent_learning": None})
    pipeline = pipeline.model_copy(update={"pretrain": Pretrain.model_validate(PRETRAIN)})
    revision = parse_revision("pretrain-small", ["test.refit=false"])  # a loop has a `test`, too
    assert apply_changes(pipeline, revision).test.refit is False
    with pytest.raises(ConfigError, match="select"):
        apply_changes(pipeline, parse_revision("pretrain-small", ["select.lo=0.1"]))


def test_no_group_of_labels_is_left_out(load):
    """A changed group_size must not leave what was prepared before without its label step."""
    larger = ["label.group_size=10"]  # 10 candidates were prepared as 3 groups
    late = parse_revision("iter-000000-label", larger)
    with pytest.raises(ConfigError, match="begin with --from iter-000000-prepare"):
        revised_plan(load(), [late], Progress())
    early = parse_revision("iter-000000-prepare", larger)
    assert "iter-000000-label-g001" not in by_key(revised_plan(load(), [early], Progress()))
    smaller = parse_revision("iter-000000-label", ["label.group_size=2"])
    assert "iter-000000-label-g004" in by_key(revised_plan(load(), [smaller], Progress()))


def test_other_models_for_lammps_make_the_exploration_run_again(load, tmp_path):
    for name in ("a.pb", "b.pb"):
        (tmp_path / name).write_text("old")
    lammps = {"type": "lammps", "steps": 20, "trj_freq": 5, "model_files": ["a.pb", "b.pb"]}
    pipeline = load(explore=lammps)
    before = graph.fingerprints(plan(pipeline))
    (tmp_path / "b.pb").write_text("another one")
    after = graph.fingerprints(plan(pipeline))
    assert after["iter-000000-train-m0"] == before["iter-000000-train-m0"]
    assert after["iter-000000-explore-p0"] != before["iter-000000-explore-p0"]
