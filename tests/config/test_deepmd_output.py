"""Our configurations become DeePMD-kit input files, and come back unchanged."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings

from dpa_core import config
from dpa_core.config import DPA1Config, FittingConfig, ModelConfig, SeE2AConfig, TrainConfig
from dpa_core.deepmd_input import convert, convert_model
from dpa_core.deepmd_output import input_of_model, model_section, training_input
from dpa_core.errors import ConfigError
from tests.config import model_configs


@settings(max_examples=300, deadline=None)
@given(model_configs.MODELS)
def test_models_come_back(model: ModelConfig) -> None:
    section = model_section(model)
    text = json.dumps(section)
    assert convert_model(json.loads(text), "x") == model
    # Nothing is left to defaults, so those of the classes change nothing.
    assert convert_model(section, "x", class_defaults=True) == model


@settings(max_examples=300, deadline=None)
@given(model_configs.RUNS)
def test_runs_come_back(run: TrainConfig) -> None:
    text = json.dumps(training_input(run))
    assert convert(json.loads(text)) == as_written(run)


def as_written(run: TrainConfig) -> TrainConfig:
    """Seeds are spelt out; how often nothing is validated does not matter."""
    seed, plain = run.training.seed, run.model_dump()
    for part in ("descriptor", "fitting_net"):
        if plain["model"][part]["seed"] is None:
            plain["model"][part]["seed"] = seed
    measured = any(
        getattr(run.loss, f"start_pref_{t}") and getattr(run.loss, f"limit_pref_{t}")
        for t in ("e", "f", "v")
    )
    if plain["training"]["validation_data"] is None or not measured:
        plain["training"]["valid_freq"] = 1000
    rate = plain["learning_rate"]
    other = {"exp": ("decay_steps", "decay_rate", "smooth"),
             "wsd": ("decay_phase_ratio", "decay_type")}  # fmt: skip
    for kind, keys in other.items():
        for key in keys if kind != rate["type"] else ():
            del rate[key]
    return TrainConfig.model_validate(plain)


@pytest.mark.parametrize(
    ("cls", "strategy"),
    [
        (config.LossConfig, model_configs.LOSSES),
        (config.LearningRateConfig, model_configs.RATES),
        (config.OptimizerConfig, model_configs.OPTIMIZERS),
        (config.DataConfig, model_configs.DATA),
        (config.TrainingConfig, model_configs.TRAININGS),
        (TrainConfig, model_configs.RUNS),
        (DPA1Config, model_configs.DPA1),
        (SeE2AConfig, model_configs.SE),
        (FittingConfig, model_configs.FITTING),
        (ModelConfig, model_configs.MODELS),
    ],
)
def test_every_field_is_varied(cls: type, strategy: object) -> None:
    """A field added to the configuration must be added to the round trips here."""
    builds = list(getattr(strategy, "original_strategies", [strategy]))
    varied = {name for b in builds for name in getattr(b, "wrapped_strategy", b).kwargs}
    elsewhere = {"type", "heads", "convention", "trainable", "finetune", "compression"}
    assert set(cls.model_fields) - varied <= elsewhere


def test_several_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads is 3: DeePMD-kit has no model.*MODEL#0"):
        model_section(ModelConfig(type_map=("O",), heads=3))


@pytest.mark.parametrize("part", ["descriptor", "fitting_net"])
def test_tensorflows_conventions_are_refused(part: str) -> None:
    data = {"type_map": ["O"], "descriptor": {"type": "dpa1"}, "fitting_net": {}}
    data[part] = data[part] | {"convention": "tensorflow"}  # type: ignore[operator]
    with pytest.raises(ConfigError, match=f"{part}.convention is 'tensorflow'"):
        model_section(ModelConfig.model_validate(data))


def test_class_defaults() -> None:
    """A checkpoint whose `model_params` are short is what DeePMD-kit's classes make of it."""
    descriptor = {"type": "dpa1", "rcut": 6.0, "rcut_smth": 0.5, "sel": [30, 40]}
    section = {"type_map": ["O", "H"], "descriptor": descriptor}
    by_class = convert_model(section, "model.pt", class_defaults=True)
    assert by_class.descriptor.neuron == (25, 50, 100)
    assert by_class.descriptor.axis_neuron == 16
    assert by_class.descriptor.smooth_type_embedding
    assert by_class.descriptor.sel == 70
    assert by_class.fitting_net.neuron == (128, 128, 128)
    by_schema = convert_model(section, "input.json")
    assert by_schema.descriptor.neuron == (10, 20, 40)
    assert not by_schema.descriptor.smooth_type_embedding
    del descriptor["rcut"]
    with pytest.raises(ConfigError, match=r"model\.descriptor\.rcut: missing; this key"):
        convert_model(section, "model.pt", class_defaults=True)


RUN: dict = {
    "model": {"type_map": ["O", "H"]},
    "training": {"training_data": {"systems": ["a"]}, "numb_steps": 10, "seed": 5},
}


def run(**changes: object) -> TrainConfig:
    training = RUN["training"] | changes.pop("training", {})  # type: ignore[operator]
    return TrainConfig.model_validate(RUN | changes | {"training": training})


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"finetune": {"model": "a.pt"}},
            r"finetune\.model a\.pt: run dp --pt train .* --finetune",
        ),
        ({"finetune": {"model": "a", "new_fitting": True}}, "--model-branch RANDOM"),
        ({"finetune": {"model": "a", "bias": "none"}}, "--init-model a"),
        ({"finetune": {"model": "a", "bias": "set"}}, r"finetune\.bias set"),
        ({"training": {"trainable": "last_layer"}}, "trainable last_layer"),
        (
            {"training": {"training_data": {"systems": ["x.extxyz"]}}},
            r"x\.extxyz: DeePMD-kit reads",
        ),
        ({"training": {"training_data": {"systems": ["(from a step)"]}}}, "fill in the folders"),
        (
            {
                "loss": {"start_pref_e": 0, "start_pref_f": 0},
                "training": {"validation_data": {"systems": ["v"]}},
            },
            "training.valid_freq 1000: ",
        ),
    ],
)
def test_what_cannot_be_expressed_is_said(changes: dict, note: str) -> None:
    written = training_input(run(**changes))
    assert re.search(note, " ".join(written["_comment"]))
    convert(written)


def test_frozen_descriptor() -> None:
    for what in ("fitting", "last_layer"):
        written = training_input(run(training={"trainable": what}))
        assert not written["model"]["descriptor"]["trainable"]
    assert "_comment" not in training_input(run(training={"trainable": "fitting"}))


def test_settings_of_a_pipeline_step_are_named() -> None:
    from ops.train import RunTrainConfig

    settings = RunTrainConfig.model_validate(RUN | {"nproc": 2})
    assert training_input(settings)["_comment"] == ["nproc 2: DeePMD-kit has no such setting"]


def test_input_of_a_model() -> None:
    trained = run(loss={"start_pref_v": 0.1, "limit_pref_v": 1.0})
    model = trained.model.model_copy(update={"preset_out_bias": {"O": -1.0}})
    stored = trained.model_dump(mode="json")
    written = input_of_model(model, {"train_config": stored})
    assert written == training_input(trained.model_copy(update={"model": model}))
    assert written["loss"]["start_pref_v"] == 0.1


@pytest.mark.parametrize(
    ("provenance", "why"),
    [({}, "does not tell how"), ({"train_config": {"from": "tomorrow"}}, "of another version")],
)
def test_input_of_a_model_of_unknown_training(provenance: dict, why: str) -> None:
    written = input_of_model(ModelConfig(type_map=("O",)), provenance)
    assert why in written["_comment"][0]
    read = convert(written)
    assert read.model.type_map == ("O",)
    assert read.learning_rate.stop_lr == 3.51e-8
    with pytest.raises(ConfigError, match="heads is 2"):
        input_of_model(ModelConfig(type_map=("O",), heads=2), provenance)
