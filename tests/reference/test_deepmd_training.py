"""Statistics, losses and learning rates against DeePMD-kit 3.2.0 (record_deepmd.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dpa_core.batch import make_batch
from dpa_core.bias import change_bias
from dpa_core.config import LearningRateConfig, LossConfig, ModelConfig
from dpa_core.data import open_dataset, write_mixed
from dpa_core.frames import Frame, Labels, Prediction
from dpa_core.loss import EnergyLoss
from dpa_core.model import build_model
from dpa_core.neighbors import NeighborSpec
from dpa_core.stats import compute_env_stats
from dpa_core.train.distributed import World
from dpa_core.train.schedule import Schedule

RECORD = json.loads((Path(__file__).parent / "deepmd.json").read_text())
RTOL = 1e-10


def recorded_frames(systems: list[dict]) -> list[Frame]:
    """Frames of the recorded systems, padding atoms dropped as our readers do."""
    frames = []
    for system in systems:
        for atype, coord, box, energy in zip(
            *(np.array(system[k]) for k in ("atype", "coord", "box", "energy")), strict=True
        ):
            real = atype >= 0
            frames.append(Frame(coord[real], atype[real], box, energy=float(energy)))
    return frames


@pytest.mark.parametrize("number", range(len(RECORD["statistics"])))
def test_statistics(number: int, tmp_path: Path) -> None:
    case = RECORD["statistics"][number]
    config = ModelConfig.model_validate(case["model"])
    paths = write_mixed(recorded_frames(case["frames"]), config.type_map, tmp_path / "data")
    dataset = open_dataset(paths, type_map=config.type_map)
    model = build_model(config)
    compute_env_stats(model, dataset, seed=1)
    change_bias(model, dataset, "set")
    np.testing.assert_allclose(model.descriptor.davg.numpy(), case["davg"], rtol=RTOL, atol=1e-15)
    np.testing.assert_allclose(model.descriptor.dstd.numpy(), case["dstd"], rtol=RTOL)
    energy_bias = (model.out_bias + model.fitting.bias_atom_e).numpy()
    np.testing.assert_allclose(energy_bias, case["out_bias"], rtol=1e-9)


@pytest.mark.parametrize("case", RECORD["losses"], ids=lambda c: f"lr{c['lr_ratio']}")
def test_loss(case: dict) -> None:
    predicted, labelled = (
        {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
        for values in RECORD["loss_inputs"]
    )
    frames, natoms = predicted["atom_energy"].shape
    yes = torch.ones(frames, dtype=torch.bool)

    def ragged(values: dict) -> dict:
        return values | {
            "force": values["force"].reshape(-1, 3),
            "atom_energy": values["atom_energy"].reshape(-1),
        }

    far_apart = np.arange(3.0 * natoms).reshape(natoms, 3) * 100
    batch = make_batch([Frame(far_apart, np.zeros(natoms, np.int64))] * frames, NeighborSpec(3.0))
    loss, _ = EnergyLoss(LossConfig.model_validate(case["config"]))(
        Prediction(**ragged(predicted)),
        Labels(**ragged(labelled), **{f"has_{k}": yes for k in labelled}),
        batch,
        case["lr_ratio"],
        World(),
    )
    assert float(loss) == pytest.approx(case["loss"], rel=RTOL)


@pytest.mark.parametrize("case", RECORD["schedules"], ids=lambda c: c["config"]["type"])
def test_schedule(case: dict) -> None:
    config = dict(case["config"])
    numb_steps = config.pop("numb_steps")
    schedule = Schedule(LearningRateConfig.model_validate(config), numb_steps)
    ours = [schedule(step) for step in case["steps"]]
    np.testing.assert_allclose(ours, case["lr"], rtol=1e-12)
