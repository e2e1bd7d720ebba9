"""Checkpoint files: order, atomic writes, clear errors."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.train.checkpoint import (
    check_same_run,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def test_the_newest_by_number_are_kept_and_come_back(tmp_path):
    for step in (8, 9, 10, 11):
        state = {"step": step, "w": torch.arange(3.0), "n": {"a": [1, None]}}
        save_checkpoint(tmp_path, state, keep=2)
    assert [p.name for p in find_checkpoints(tmp_path)] == ["checkpoint-10.pt", "checkpoint-11.pt"]
    state = load_checkpoint(find_checkpoints(tmp_path)[-1])
    assert state["step"] == 11
    assert state["n"] == {"a": [1, None]}
    assert torch.equal(state["w"], torch.arange(3.0))


def test_a_failed_write_leaves_no_checkpoint(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path, {"step": 1, "bad": lambda: None}, keep=2)
    assert find_checkpoints(tmp_path) == []


def test_a_full_disk_is_the_systems_error_and_leaves_nothing(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, {"step": 1}, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_truncated_foreign_and_future_files(tmp_path):
    path = save_checkpoint(tmp_path, {"step": 1, "w": torch.zeros(1000)}, keep=2)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelFileError, match=r"checkpoint-1\.pt: not a readable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"hello")
    with pytest.raises(ModelFileError, match="not a readable checkpoint"):
        load_checkpoint(path)
    path = save_checkpoint(tmp_path, {"step": 2, "format_version": 99}, keep=2)
    with pytest.raises(ModelFileError, match="version 99"):
        load_checkpoint(path)


def test_differing_keys_are_named_and_harmless_ones_are_not(tmp_path):
    then = {"training": {"numb_steps": 10, "save_freq": 5, "seed": 1}, "loss": {"x": (1, 2)}}
    now = {"training": {"numb_steps": 20, "save_freq": 6, "seed": 1}, "loss": {"x": [1, 2]}}
    with pytest.raises(ConfigError) as caught:
        check_same_run(now, then, tmp_path)
    text = str(caught.value)
    assert "training.numb_steps: 10 there, 20 now" in text
    assert "save_freq" not in text
    assert "loss" not in text
    assert "finetune.model" in text
    now["training"]["numb_steps"] = 10
    check_same_run(now, then, tmp_path)


def test_a_switch_that_an_older_version_did_not_have_is_off(tmp_path):
    check_same_run({"loss": {"new": False}}, {"loss": {}}, tmp_path)
    with pytest.raises(ConfigError, match=r"loss\.new: None there, True now"):
        check_same_run({"loss": {"new": True}}, {"loss": {}}, tmp_path)
