"""Models of TensorFlow under PyTorch's formulas: only when asked for, and said how far off."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.files import load_model, save_model
from ops.model_files import convert
from tests.reference.cases import SYSTEMS

GRAPHS = Path(__file__).parent / "tensorflow"


def energy_and_force(path):
    system = SYSTEMS["cell"]  # without its box, so that sel has room
    result = load_model(path).evaluate([system["coord"]], None, system["atype"])
    return result.energy[0], result.force[0]


def test_refused_unless_asked_for(tmp_path):
    for suffix in (".dp", ".yaml", ".pt"):
        with pytest.raises(ModelFileError, match=r"convention is 'tensorflow'.*--as-pytorch"):
            save_model(load_model(GRAPHS / "attn2.pb"), tmp_path / f"m{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_deep_pot_se_is_the_same_where_sel_has_room(tmp_path, caplog):
    written = convert(GRAPHS / "se_a.pb", tmp_path / "m.dp", as_pytorch=True)
    model = load_model(written.path)
    assert model.config.descriptor.convention == "pytorch"
    for one, other in zip(
        energy_and_force(GRAPHS / "se_a.pb"), energy_and_force(written.path), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    assert "energies by up to 0 eV/atom" in caplog.text


def test_attention_changes_and_how_far_is_said(tmp_path, caplog):
    written = convert(GRAPHS / "attn2.pb", tmp_path / "m.pt", as_pytorch=True)
    number = float(re.search(r"forces by up to (\S+) eV/Å", caplog.text)[1])
    assert 1e-4 < number < 0.1
    before, after = energy_and_force(GRAPHS / "attn2.pb"), energy_and_force(written.path)
    assert 0 < np.abs(before[1] - after[1]).max() < 20 * number
    assert load_model(written.path).provenance["as_pytorch"].endswith("attn2.pb")


def test_other_skip_connections_cannot_be_taken_over(tmp_path):
    with pytest.raises(ConfigError, match=r"neuron is \[.*skip connections"):
        convert(GRAPHS / "attn0_fit_skip.pb", tmp_path / "m.dp", as_pytorch=True)


def test_the_command(tmp_path):
    from workflows.cli import app

    arguments = ["model", "convert", str(GRAPHS / "attn2.pb"), str(tmp_path / "m.dp")]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    assert CliRunner().invoke(app, [*arguments, "--as-pytorch"]).exit_code == 0
