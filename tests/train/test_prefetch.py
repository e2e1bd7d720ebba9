"""Batches loaded ahead: the same batches, errors at their step, no thread left behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dpa_core.data import open_dataset
from dpa_core.errors import DataError
from dpa_core.train import loop, train
from dpa_core.train.checkpoint import find_checkpoints, load_checkpoint
from dpa_core.train.prefetch import Prefetcher
from dpa_core.train.sampler import BatchSampler
from tests.train.small import config, write_random


def loading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_ahead_in_one_thread_and_in_order():
    loaded = []

    def load(indices):
        loaded.append((tuple(indices), threading.current_thread().name))
        return sum(indices)

    with Prefetcher(load) as batches:
        batches.ask([1, 2])
        batches.ask([3])
        batches.ask([1, 2])
        assert (batches.get([3]), batches.get([1, 2]), batches.get([4])) == (3, 3, 4)
        assert batches.get([3]) == 3  # handed out once, so loaded anew
    assert [indices for indices, _ in loaded] == [(1, 2), (3,), (4,), (3,)]
    assert len({name for _, name in loaded}) == 1
    assert not loading_threads()
    assert batches.get([5]) == 5
    assert loaded[-1] == ((5,), threading.current_thread().name)


def test_an_error_comes_with_its_batch():
    def load(indices):
        if indices == [2]:
            raise DataError("frame 2 is bad")
        return indices

    with Prefetcher(load) as batches:
        batches.ask([1])
        batches.ask([2])
        assert batches.get([1]) == [1]
        with pytest.raises(DataError, match="frame 2"):
            batches.get([2])
        assert batches.get([3]) == [3]
    assert not loading_threads()


def test_a_bad_frame_stops_the_run_at_its_step(tmp_path, monkeypatch):
    write_random(tmp_path / "train", 12, 1, sizes=(3, 3))
    path = next((tmp_path / "train").glob("**/coord.npy"))
    coord = np.load(path)
    coord[3, 0] = np.nan
    np.save(path, coord)
    settings = config(tmp_path / "train", numb_steps=12, save_freq=1)
    sel = settings.model.descriptor.model_copy(update={"sel": 40})
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"descriptor": sel})}
    )
    data = open_dataset(tmp_path / "train")
    frame = next(k for k in range(12) if data.name(k) == f"{path.parent} frame 3")
    sampler = BatchSampler(data.natoms, "auto:12", 1)
    batches = [sampler.next() for _ in range(12)]
    bad = next(k for k, batch in enumerate(batches) if frame in batch)
    monkeypatch.setattr("dpa_core.train.prepare.fresh_model", without_statistics)
    taken, step = [], loop.take_step
    monkeypatch.setattr(loop, "take_step", lambda run, i, lr: taken.append(i) or step(run, i, lr))
    with pytest.raises(DataError, match=r"frame 3: coord\[0, 0\] is nan"):
        train(settings, tmp_path / "run")
    assert taken == batches[: bad + 1]
    assert not loading_threads()
    if bad:
        state = load_checkpoint(find_checkpoints(tmp_path / "run")[-1])
        assert state["step"] == bad
        other = BatchSampler(sampler.natoms, "auto:12", 1)
        other.load_state_dict(state["sampler"])
        assert other.next() == batches[bad]


def without_statistics(settings, _):
    from dpa_core.model import build_model

    return build_model(settings.model, 1)
