"""What files for DeePMD-kit note for us alone."""

from __future__ import annotations

import pytest
import torch

from dpa_core.config import ModelConfig
from dpa_core.interchange import deepmd_dict, deepmd_dp, deepmd_pt, deepmd_yaml
from dpa_core.interchange.content import with_own_note
from dpa_core.interchange.files import load_model, save_model
from dpa_core.model import build_model

CONFIG = {
    "type_map": ["Cu", "Au"],
    "descriptor": {"type": "dpa1", "rcut": 4.0, "sel": 9, "neuron": [2, 4], "axis_neuron": 2,
                   "attn": 4, "attn_layer": 1, "seed": 7},
    "fitting_net": {"neuron": [4, 4], "seed": 8},
}  # fmt: skip


@pytest.fixture
def model():
    made = build_model(ModelConfig.model_validate(CONFIG))
    made.out_std.copy_(torch.tensor([0.1, 1 / 3]))
    made.provenance = {"steps": 5}
    return made


@pytest.mark.parametrize("kind", [deepmd_dp, deepmd_yaml, deepmd_pt], ids=["dp", "yaml", "pt"])
def test_out_std_is_one_for_others_and_comes_back_to_us(kind, model, tmp_path, monkeypatch):
    path = save_model(model, tmp_path / f"m.{kind.__name__.rpartition('_')[2]}")
    again = load_model(path)
    assert torch.equal(again.out_std, model.out_std)
    assert again.config == model.config
    assert again.provenance == {"steps": 5}
    # What others see: the file without the note.
    owner = kind if kind is deepmd_pt else deepmd_dict
    monkeypatch.setattr(owner, "with_own_note", lambda content, _: content)
    seen = load_model(path)
    assert torch.equal(seen.out_std, torch.ones(2, dtype=torch.float64))
    assert seen.config.descriptor.seed is None or kind is deepmd_pt


@pytest.mark.parametrize(
    "harm",
    [
        {"out_std": [1.0]}, {"out_std": "ab"}, {"out_std": None}, {"provenance": 3},
        {"config": {"type_map": ["Cu", "Ag"]}}, {"config": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_note_that_does_not_fit_is_left_alone(harm, model, tmp_path):
    content = deepmd_dp.read(save_model(model, tmp_path / "m.dp"))
    note = {
        "config": model.config.model_dump(mode="json"),
        "provenance": {"steps": 6},
        "out_std": [2.0, 2.0],
    }
    assert with_own_note(content, note).provenance == {"steps": 6}
    assert with_own_note(content, note | harm) is content
    assert with_own_note(content, "note") is content
