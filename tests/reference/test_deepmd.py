"""Our models against DeePMD-kit 3.2.0, recorded by record_deepmd.py.

More than a hundred models and structures, every option of the descriptor and fitting net.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dpa_core.config import ModelConfig
from dpa_core.electrons import electron_configurations
from dpa_core.model import build_model
from tests.reference.fill import fill

RECORD = json.loads((Path(__file__).parent / "deepmd.json").read_text())
# Relative to the largest entry of the tensor; float32 networks round at 1e-7.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
# Below this a component is a cancelled sum: eV, eV/Å.
FLOOR = 1e-3


def assert_close(got: np.ndarray, expected: list[float], rtol: float, what: str) -> None:
    wanted = np.array(expected).reshape(got.shape)
    scale = max(np.abs(wanted).max(), FLOOR)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rtol * scale, err_msg=what)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("name", RECORD["models"])
def test_model(name: str) -> None:
    case = RECORD["models"][name]
    system = RECORD["systems"][case["system"]]
    config = ModelConfig.model_validate(case["model"])
    model = fill(build_model(config), config.descriptor.set_davg_zero)
    parameters = {k: [case[k]] for k in ("fparam", "aparam") if k in case}
    result = model.evaluate(
        [system["coord"]],
        None if system["box"] is None else [system["box"]],
        system["atype"],
        atom_virial=True,
        **parameters,
    )
    rtol = TOLERANCE[config.descriptor.precision]
    for key in ("energy", "atom_energy", "force", "virial"):
        assert_close(getattr(result, key)[0], case[key], rtol, key)
    squares = np.square(result.atom_virial[0]).sum((1, 2))
    assert_close(squares, case["atom_virial_square"], 10 * rtol, "atom_virial")


def test_no_case_is_trivial() -> None:
    """The record has to be able to tell models apart: forces do not vanish, energies differ."""
    models = RECORD["models"].values()
    periodic = [m for m in models if m["system"] in ("cell", "skewed", "virtual")]
    quiet = [m for m in periodic if np.abs(m["force"]).max() < 1e-5]
    assert len(quiet) < 0.1 * len(periodic)
    energies = {round(m["energy"], 9) for m in periodic}
    assert len(energies) > 0.9 * len(periodic)


def test_electron_configurations() -> None:
    table = RECORD["electron_configurations"]
    assert len(table) == 118
    ours = electron_configurations(tuple(table)).double() * np.sqrt(118)
    for row, (element, bits) in zip(ours, table.items(), strict=True):
        expected = [1.0 if b == "1" else -1.0 for b in f"{int(bits, 16):0118b}"]
        difference = np.abs(row.numpy() - expected).max()
        assert difference < 1e-6, element
    assert torch.isfinite(ours).all()
