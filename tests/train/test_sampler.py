"""Batches: each frame once an epoch, budgets kept, resumable at any position."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dpa_core.errors import DataError
from dpa_core.train.distributed import World
from dpa_core.train.sampler import BatchSampler, in_order

NATOMS = np.array([3, 50, 7, 7, 20, 1, 9, 9, 30, 4, 4, 2])


def test_every_frame_once_an_epoch_in_new_order():
    sampler = BatchSampler(NATOMS, 3, seed=5)
    epochs = [[k for _ in range(4) for k in sampler.next()] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_atom_budget_is_reached_by_the_last_frame():
    sampler = BatchSampler(NATOMS, "auto:40", seed=1)
    stream = []
    for _ in range(50):
        batch = sampler.next()
        sizes = NATOMS[batch]
        assert sizes.sum() >= 40
        assert sizes[:-1].sum() < 40
        stream += batch
    for start in range(0, len(stream) - 12, 12):  # batches may cross epochs, frames do not
        assert sorted(stream[start : start + 12]) == list(range(12))


@pytest.mark.parametrize("budget", [1, 20, 40, 1000])
def test_atom_limit_is_not_exceeded(budget):
    """As many frames as fit; a frame that does not fit is a batch of its own."""
    sampler = BatchSampler(NATOMS, f"max:{budget}", seed=1)
    stream, batches = [], [sampler.next() for _ in range(60)]
    for batch, following in itertools.pairwise(batches):
        atoms = NATOMS[batch].sum()
        assert atoms <= budget or len(batch) == 1
        assert atoms + NATOMS[following[0]] > budget or len(batch) == len(NATOMS)
        stream += batch
    for start in range(0, len(stream) - 12, 12):
        assert sorted(stream[start : start + 12]) == list(range(12))
    ordered = list(in_order(NATOMS, f"max:{budget}"))
    assert [k for batch in ordered for k in batch] == list(range(12))
    assert all(NATOMS[batch].sum() <= budget or len(batch) == 1 for batch in ordered)


def test_atom_limit_resumes_anywhere():
    whole = BatchSampler(NATOMS, "max:25", seed=9)
    for _ in range(30):
        other = BatchSampler(NATOMS, "max:25", seed=9)
        other.load_state_dict(whole.state_dict())
        assert whole.next() == other.next()


def test_a_small_set_is_one_batch():
    sampler = BatchSampler(NATOMS[:3], "auto:1000", seed=1)
    assert [sorted(sampler.next()) for _ in range(3)] == [[0, 1, 2]] * 3


def test_same_seed_same_batches_and_resume_anywhere():
    whole = BatchSampler(NATOMS, "auto:20", seed=9)
    batches = [whole.next() for _ in range(30)]
    assert [b for s in [BatchSampler(NATOMS, "auto:20", seed=9)] for b in [s.next()]] == batches[:1]
    assert BatchSampler(NATOMS, "auto:20", seed=10).next() != batches[0]
    for cut in range(30):
        first, second = (BatchSampler(NATOMS, "auto:20", seed=9) for _ in range(2))
        for _ in range(cut):
            first.next()
        second.load_state_dict(first.state_dict())
        assert [second.next() for _ in range(30 - cut)] == batches[cut:]


def test_epochs_become_steps():
    assert BatchSampler(np.full(10, 4), 4, seed=1).steps(2) == 5
    assert BatchSampler(np.full(10, 4), "auto", seed=1).steps(4) == 5  # 32 atoms, 8 frames
    assert BatchSampler(np.full(10, 4), 1, seed=1).steps(0.25) == 3
    assert BatchSampler(np.full(10, 4), "auto:1000", seed=1).steps(7) == 7


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="hold no frame"):
        BatchSampler(np.zeros(0, np.int64), 3, seed=1)


def test_validation_batches_cover_all_frames_in_order():
    batches = list(in_order(NATOMS, "auto:40"))
    assert [k for b in batches for k in b] == list(range(12))
    assert all(NATOMS[b].sum() >= 40 for b in batches[:-1])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_a_batch_are_complete_and_balanced(size):
    indices = list(range(12))
    shares = [World(rank, size).share(indices, NATOMS) for rank in range(size)]
    assert sorted(k for s in shares for k in s) == indices
    loads = [NATOMS[s].sum() for s in shares]
    assert max(loads) <= max(NATOMS.sum() / size * 4 / 3, 50)  # bound of longest-first
    assert [World(r, 3).share([4], NATOMS) for r in range(3)] == [[4], [], []]


@pytest.mark.parametrize("batch_size", [3, 12, "auto:20", "auto:1000", "max:25", "max:1"])
def test_a_look_ahead_changes_nothing(batch_size):
    sampler = BatchSampler(NATOMS, batch_size, seed=4)
    plain = BatchSampler(NATOMS, batch_size, seed=4)
    for _ in range(30):
        state = sampler.state_dict()
        ahead = sampler.peek()
        assert sampler.state_dict() == state
        assert sampler.next() == ahead == plain.next()
