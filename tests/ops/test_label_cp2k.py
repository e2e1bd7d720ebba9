"""CP2K run for real, with the templates of the example."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from dpa_core.config import parse_config
from dpa_core.data import open_dataset, write_mixed
from dpa_core.frames import Frame
from ops.label import (
    LabelConfig,
    LabelInputs,
    PrepareConfig,
    PrepareInputs,
    prepare_labels,
    run_labels,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cp2k") is None, reason="needs cp2k (Debian: cp2k, cp2k-data)"),
]
TYPES = ("Al", "Mg")
ATYPE = np.array([0, 1, 0, 0])
# recorded with CP2K 2023.1 (Debian 12) and examples/concurrent_learning/cp2k/input.inp
ENERGY = -192.566972315
FORCE_1 = (0.25326191, 0.07429615, 0.3514724)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DPAFLOW_LABELS", str(tmp_path / "labels"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def templates(root: Path) -> Path:
    return root / "examples" / "concurrent_learning" / "cp2k"


def cell() -> tuple[np.ndarray, np.ndarray]:
    """Positions and box of a rattled, strained cell of fcc Al3Mg."""
    rng = np.random.default_rng(1)
    atoms = bulk("Al", cubic=True, a=4.15)
    box = atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3)))
    return atoms.get_scaled_positions() @ box + rng.normal(0, 0.1, (4, 3)), box


def run(labeler: dict, frames: list[Frame], folder: Path) -> list[dict]:
    write_mixed(frames, TYPES, folder / "sel")
    settings = parse_config(PrepareConfig, {"labeler": labeler}, "test")
    prepare_labels(PrepareInputs(folder / "sel"), settings, folder / "p")
    config = parse_config(LabelConfig, {"labeler": labeler}, "test")
    return run_labels(LabelInputs(folder / "p"), config, folder / "l")["tasks"]


def test_forces_and_virial_are_derivatives_of_the_energy(templates: Path, tmp_path: Path) -> None:
    coord, box = cell()
    direction = np.random.default_rng(2).normal(size=(4, 3))
    direction /= np.linalg.norm(direction)
    strain = np.array([[1.0, 0.25, 0.0], [0.25, 0.5, 0.0], [0.0, 0.0, -0.3]])
    frames = [Frame(coord, ATYPE, box)]
    h, e = 0.01, 0.005
    frames += [Frame(coord + s * h * direction, ATYPE, box) for s in (1, -1)]
    for s in (1, -1):
        stretch = np.eye(3) + s * e * strain
        frames.append(Frame(coord @ stretch, ATYPE, box @ stretch))
    labeler = {"type": "cp2k", "template": str(templates / "input.inp")}
    tasks = run(labeler, frames, tmp_path)
    assert [t["state"] for t in tasks] == ["labelled"] * 5, tasks
    data = open_dataset(tmp_path / "l" / "labelled", type_map=TYPES)
    energy = [data[k].energy for k in range(5)]
    first = data[0]
    assert first.energy == pytest.approx(ENERGY, abs=1e-5)
    np.testing.assert_allclose(first.force[1], FORCE_1, atol=1e-4)
    np.testing.assert_array_equal(first.coord, coord)
    assert (first.force * direction).sum() == pytest.approx(
        -(energy[1] - energy[2]) / (2 * h), abs=1e-3
    )
    # a cell that changes under a plane-wave cutoff of 200 Ry changes the basis a little: 0.02 GPa
    assert (first.virial * strain).sum() == pytest.approx(
        -(energy[3] - energy[4]) / (2 * e), abs=1e-2
    )


def test_what_does_not_converge_is_retried_then_put_aside(templates: Path, tmp_path: Path) -> None:
    text = (templates / "input.inp").read_text()
    hopeless = text.replace("MAX_SCF 40", "MAX_SCF 2")
    assert hopeless != text
    frames = [Frame(*cell()[:1], ATYPE, cell()[1])]
    labeler = {"type": "cp2k", "template": hopeless}
    retry = labeler | {"retry": {"template": str(templates / "retry.inp")}}
    (task,) = run(retry, frames, tmp_path / "a")
    assert (task["state"], task["attempts"]) == ("labelled", 2), task
    found = open_dataset(tmp_path / "a" / "l" / "labelled")[0]
    assert found.energy == pytest.approx(ENERGY, abs=1e-4)  # the same physics as input.inp
    (task,) = run(labeler | {"retry": {"template": hopeless + "\n"}}, frames, tmp_path / "b")
    assert (task["state"], task["attempts"]) == ("failed", 2)
    place = tmp_path / "labels" / "failed" / task["id"]
    assert "SCF run NOT converged" in (place / "attempt-2" / "run.out").read_text()
    assert json.loads((place / "info.json").read_text())["reason"] == task["reason"]
    assert "converge" in task["reason"].lower()
