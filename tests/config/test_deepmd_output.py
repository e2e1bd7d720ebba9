"""Our configurations become DeePMD-kit input files, and come back unchanged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from dpa_core.config import DPA1Config, FittingConfig, ModelConfig, SeE2AConfig
from dpa_core.deepmd_input import convert_model
from dpa_core.deepmd_output import model_section
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


@pytest.mark.parametrize(
    ("cls", "strategy"),
    [
        (DPA1Config, model_configs.DPA1),
        (SeE2AConfig, model_configs.SE),
        (FittingConfig, model_configs.FITTING),
        (ModelConfig, model_configs.MODELS),
    ],
)
def test_every_field_is_varied(cls: type, strategy: object) -> None:
    """A field added to the configuration must be added to the round trip above."""
    varied = set(strategy.wrapped_strategy.kwargs)  # type: ignore[attr-defined]
    assert set(cls.model_fields) - varied <= {"type", "heads", "convention"}


def test_several_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads is 3: DeePMD-kit has no model.*MODEL#0"):
        model_section(ModelConfig(type_map=("O",), heads=3))


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
