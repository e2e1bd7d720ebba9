"""What a run costs before and between its steps does not grow with the data set (counts)."""

from __future__ import annotations

import numpy as np
import pytest

from dpa_core import stats
from dpa_core.data import Dataset
from dpa_core.train import loop, train
from tests.train.small import config


def write_large(root, nframes):
    """Frames of four atoms in one mixed system, written as whole arrays."""
    folder, random = root / "set.000", np.random.default_rng(1)
    folder.mkdir(parents=True)
    (root / "type.raw").write_text("0\n" * 4)
    (root / "type_map.raw").write_text("Cu\nAu\n")
    arrays = {
        "coord": random.uniform(0, 5, (nframes, 12)),
        "box": np.tile(5 * np.eye(3).ravel(), (nframes, 1)),
        "energy": random.normal(size=nframes),
        "force": random.normal(size=(nframes, 12)),
        "real_atom_types": random.integers(0, 2, (nframes, 4)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return root


def frames_read(monkeypatch, root, nframes):
    """Frames that a run of three steps reads, of them in its steps, and energies it looks at."""
    read, energies, steps = [], [], []
    get, energy, step = Dataset.__getitem__, Dataset.energies, loop.take_step

    def counted_step(run, indices, lr):
        steps.extend(indices)
        return step(run, indices, lr)

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "__getitem__", lambda s, k: read.append(k) or get(s, k))
        patch.setattr(
            Dataset, "energies", lambda s, k=None: energies.append(np.size(k)) or energy(s, k)
        )
        patch.setattr(loop, "take_step", counted_step)
        patch.setattr(stats, "MAX_SEL_ATOMS", 400)
        patch.setattr("dpa_core.train.prepare._BIAS_FRAMES", 200)
        settings = config(write_large(root / str(nframes), nframes), numb_steps=3)
        train(settings, root / f"run-{nframes}")
    return len(read), len(steps), max(energies)


def test_frames_read_do_not_grow_with_the_set(tmp_path, monkeypatch):
    small, large = (frames_read(monkeypatch, tmp_path, n) for n in (1_000, 20_000))
    assert small[0] == large[0] < 1_000
    assert small[1] == large[1] == 9  # three steps of three frames
    assert large[2] <= 1_000  # the fingerprint's sample


@pytest.mark.slow
def test_a_million_frames(tmp_path, monkeypatch):
    assert frames_read(monkeypatch, tmp_path, 1_000_000)[0] < 1_000
