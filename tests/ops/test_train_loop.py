"""What concurrent learning asks of training and collecting: replay, empty data, nothing new."""

import json

import numpy as np
import pytest

import ops.test as testing
from dpa_core.config import parse_config
from dpa_core.data import open_dataset
from dpa_core.errors import ConfigError, DataError
from dpa_core.interchange.files import load_model
from ops.collect import CollectConfig, CollectInputs, run_collect
from ops.train import RunTrainConfig, TrainInputs, run_train
from tests.ops.helpers import make_frame, write

MODEL = {
    "type_map": ["Al", "Ni", "Cu"],
    "descriptor": {"type": "dpa1", "rcut": 4.0, "sel": 20, "neuron": [2, 4], "axis_neuron": 2,
                   "attn_layer": 0},
    "fitting_net": {"neuron": [4]},
}  # fmt: skip


def settings(**changes):
    training = {"training_data": {"batch_size": 2}, "numb_steps": 3, "save_freq": 2}
    return parse_config(RunTrainConfig, {"model": MODEL, "training": training, **changes}, "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("loop")
    write([make_frame([0, 1, 2, 0], seed=k) for k in range(6)], root / "new")
    write([make_frame([2, 2, 2, 1], seed=50 + k) for k in range(40)], root / "old")
    (root / "empty").mkdir()
    return root


def drawn(folder):
    data = open_dataset([folder])
    return sorted(float(data[k].coord.sum()) for k in range(len(data)))


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.5, 6), (0.9, 40)])
def test_replayed_frames_are_their_share_of_all(root, tmp_path, share, count):
    """f = r / (r + n) of n = 6 new frames, as far as there are old ones."""
    inputs = TrainInputs([root / "new"], replay=[root / "old"])
    run = run_train(inputs, settings(replay=share), tmp_path / "a")
    assert run.summary["train_frames"] == 6 + count
    again = run_train(inputs, settings(replay=share), tmp_path / "b")
    assert drawn(tmp_path / "a/replay") == drawn(tmp_path / "b/replay")
    assert np.isin(drawn(tmp_path / "a/replay"), drawn(root / "old")).all()
    assert again.summary["train_frames"] == 6 + count


def test_frames_drawn_with_other_settings_are_not_taken_for_the_same(root, tmp_path):
    write([make_frame([2, 1], seed=k, energy=-9.0 - k) for k in range(20)], tmp_path / "old")
    inputs = TrainInputs([root / "new"], replay=[tmp_path / "old"])
    for _ in range(2):  # a finished run is returned as it is
        run = run_train(inputs, settings(replay=0.5), tmp_path / "run")
        assert run.summary["train_frames"] == 12
    for changes in ({"replay": 0.25}, {"replay": 0.5, "draw_seed": 2}):
        with pytest.raises(ConfigError, match="holds a run with another configuration"):
            run_train(inputs, settings(**changes), tmp_path / "run")


def test_replay_without_data_is_an_error(root, tmp_path):
    with pytest.raises(DataError, match="no data to replay from"):
        run_train(TrainInputs([root / "new"]), settings(replay=0.5), tmp_path)


def test_a_model_is_kept_when_nothing_is_new(root, tmp_path):
    first = run_train(TrainInputs([root / "new"]), settings(), tmp_path / "first")
    data = [root / "new", root / "empty"]
    inputs = TrainInputs(data, pretrained=first.model, new=[root / "empty"], previous=first.model)
    kept = run_train(inputs, settings(), tmp_path / "kept")
    assert kept.model.read_bytes() == first.model.read_bytes()
    assert (kept.summary["steps"], kept.summary["train_frames"]) == (0, 6)
    assert json.loads((tmp_path / "kept/run.json").read_text()) == kept.summary
    # with a new frame it is trained, and empty folders hold no frames
    write([make_frame([0, 0, 1, 2], seed=9)], tmp_path / "one")
    inputs = inputs._replace(train=[*data, tmp_path / "one"], new=[tmp_path / "one"])
    trained = run_train(inputs, settings(), tmp_path / "trained")
    assert trained.summary["train_frames"] == 7
    assert trained.model.read_bytes() != first.model.read_bytes()


def test_only_empty_folders_are_no_data(root, tmp_path):
    with pytest.raises(DataError, match="training has no data"):
        run_train(TrainInputs([root / "empty"]), settings(), tmp_path)


def test_a_committee_of_heads_starts_from_one_model(root, tmp_path):
    first = run_train(TrainInputs([root / "new"]), settings(), tmp_path / "first")
    heads = {"heads": 3}  # nothing else of the model is asked for
    inputs = TrainInputs([root / "new"], pretrained=first.model)
    run = run_train(inputs, settings(model=heads), tmp_path / "heads")
    assert len(load_model(run.model).heads()) == 3


def test_nothing_labelled_is_an_empty_collection(root, tmp_path):
    source = {"path": "unused", "label": "group-0"}
    document = {"sources": [source], "type_map": ["Al", "Ni", "Cu"]}
    inputs = CollectInputs({"group-0": root / "empty"})
    with pytest.raises(DataError):
        run_collect(inputs, parse_config(CollectConfig, document, "test"), tmp_path / "a")
    document["allow_empty"] = True
    run_collect(inputs, parse_config(CollectConfig, document, "test"), tmp_path / "b")
    assert list((tmp_path / "b/train").iterdir()) == []
    strict = parse_config(CollectConfig, document | {"min_train": 1}, "test")
    with pytest.raises(DataError, match="0 training frames are left"):
        run_collect(inputs, strict, tmp_path / "c")


def test_empty_data_are_not_tested(root, tmp_path):
    first = run_train(TrainInputs([root / "new"]), settings(), tmp_path / "first")
    data = {"new": [root / "empty"], "old": [root / "old"]}
    config = testing.RunTestConfig(refit=False, plots=False)
    results = testing.run_test(testing.TestInputs({"m0": first.model}, data), config, tmp_path)
    assert [entry["data"] for entry in results["results"]] == ["old"]
