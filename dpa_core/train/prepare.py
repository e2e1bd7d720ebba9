"""Everything a run needs before its first step: data, model, optimizer, earlier state."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpa_core.batch import NeighborCache
from dpa_core.bias import change_bias
from dpa_core.config import ModelConfig, TrainConfig, parse_config, require_uncompressed
from dpa_core.data import Dataset, open_dataset
from dpa_core.errors import DataError, ModelFileError
from dpa_core.finetune import prepare_finetune, set_trainable
from dpa_core.frames import Batch, Labels
from dpa_core.interchange.files import split_name
from dpa_core.loss import EnergyLoss
from dpa_core.model import Potential, build_model
from dpa_core.stats import compute_env_stats, compute_param_stats, resolve_sel
from dpa_core.train.checkpoint import (
    check_same_run,
    find_checkpoints,
    load_checkpoint,
    write_atomic,
)
from dpa_core.train.distributed import World
from dpa_core.train.metrics import Curve, Interval, Row
from dpa_core.train.optimizer import Adam, MovingAverage, make_optimizer
from dpa_core.train.prefetch import Prefetcher
from dpa_core.train.sampler import BatchSampler, in_order
from dpa_core.train.schedule import Schedule

log = logging.getLogger(__name__)

# More frames would not move the fit of the energy bias.
_BIAS_FRAMES = 100_000
_FINGERPRINT_FRAMES = 1000

MODEL_FILE = "model.safetensors"
BEST_FILE = "model-best.safetensors"

Datasets = tuple[Dataset, Dataset | None]


@dataclass
class Data:
    """Training and validation sets with their neighbour tables."""

    train: Dataset
    train_cache: NeighborCache
    valid: Dataset | None = None
    valid_cache: NeighborCache | None = None
    valid_batches: list[list[int]] = field(default_factory=list)

    @cached_property
    def batches(self) -> Prefetcher[tuple[Batch, Labels]]:
        """Batches of the training set, by frame numbers."""
        return Prefetcher(lambda indices: self.train_cache.batch(self.train, indices))

    @cached_property
    def elements(self) -> list[str]:
        """Elements that the training set holds; the type map may name more."""
        return [self.train.type_map[t] for t in self.train.used()]


@dataclass
class Run:
    """A run in progress: what the loop works on and what a checkpoint holds."""

    config: TrainConfig
    outdir: Path
    world: World
    identity: dict[str, Any]
    numb_steps: int
    data: Data
    model: Potential
    loss: EnergyLoss
    schedule: Schedule
    sampler: BatchSampler
    optimizer: Adam
    ema: MovingAverage | None
    curve: Curve | None = None
    interval: Interval = field(default_factory=Interval)
    step: int = 0
    best: float = float("inf")
    last_row: Row = field(default_factory=dict)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall time of the run, earlier parts included."""
        return self.seconds_before + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            "step": self.step,
            "run": json.dumps(self.identity),
            "model_config": self.model.config.model_dump_json(),
            "provenance": json.dumps(self.model.provenance),
            "numb_steps": self.numb_steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.shadow,
            "sampler": self.sampler.state_dict(),
            "rng": torch.get_rng_state(),
            "interval": self.interval.state_dict(),
            "curve_length": 0 if self.curve is None else self.curve.sync(),
            "last_row": self.last_row,
            "best": self.best,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint (the model has its weights already)."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load(state["ema"])
        self.sampler.load_state_dict(state["sampler"])
        torch.set_rng_state(state["rng"])
        self.interval.load_state_dict(state["interval"])
        self.step, self.best = state["step"], state["best"]
        self.last_row, self.seconds_before = state["last_row"], state["seconds"]


def prepare(config: TrainConfig, outdir: Path, datasets: Datasets, world: World) -> Run:
    """Open a run: from its last checkpoint in `outdir` if there is one, else fresh.

    Parameters
    ----------
    config
        As the user gave it.
    outdir
        Folder of the run, the same on every process.
    datasets
        Training and validation set.
    world
        The processes that share the run.

    Raises
    ------
    ConfigError
        The folder holds another run, or the configuration is inconsistent.
    """
    require_uncompressed(config.model, "training (model.descriptor.compression)")
    state = _last_state(outdir)
    identity = run_identity(config, datasets)
    if state is not None:
        check_same_run(identity, json.loads(state["run"]), outdir)
    train, valid = datasets
    model = _model(config, train, state, world)
    model.to(world.device)
    set_trainable(model, config.training.trainable)
    training = config.training
    sampler = BatchSampler(train.natoms, training.training_data.batch_size, training.seed)
    numb_steps = training.numb_steps or sampler.steps(training.numb_epoch or 1)
    data = Data(train, NeighborCache(model.spec))
    if valid is not None and training.validation_data is not None:
        data.valid, data.valid_cache = valid, NeighborCache(model.spec)
        data.valid_batches = list(in_order(valid.natoms, training.validation_data.batch_size))
    run = Run(
        config=config,
        outdir=outdir,
        world=world,
        identity=identity,
        numb_steps=numb_steps,
        data=data,
        model=model,
        loss=EnergyLoss(config.loss),
        schedule=Schedule(config.learning_rate, numb_steps),
        sampler=sampler,
        optimizer=make_optimizer(config.optimizer, model),
        ema=MovingAverage(model, training.ema_decay) if training.enable_ema else None,
    )
    if state is not None:
        run.load_state_dict(state)
    if world.first:
        length = 0 if state is None else state["curve_length"]
        run.curve = Curve(outdir, length, run.step, training.tensorboard)
        write_atomic(outdir / "config.json", resolved_config(run).encode())
    # Only now may the first process remove or replace files the others have read.
    world.wait()
    return run


def open_datasets(config: TrainConfig) -> Datasets:
    """Training set and validation set under the model's type map.

    Raises
    ------
    DataError
        A set is unreadable or empty.
    """
    sets: list[Dataset | None] = []
    for key in ("training_data", "validation_data"):
        block = getattr(config.training, key)
        data = None if block is None else open_dataset(block.systems, config.model.type_map)
        if data is not None and len(data) == 0:
            raise DataError(f"training.{key}.systems: no frame in {list(block.systems)}")
        sets.append(data)
    train, valid = sets
    if train is None:
        raise DataError("training.training_data is missing")
    return train, valid


def _last_state(outdir: Path) -> dict[str, Any] | None:
    found = find_checkpoints(outdir)
    return load_checkpoint(found[-1]) if found else None


def _model(
    config: TrainConfig, train: Dataset, state: dict[str, Any] | None, world: World
) -> Potential:
    """Restore the model of a checkpoint, or have the first process make one for all."""
    seed = config.training.seed
    if state is not None:
        stored = json.loads(state["model_config"])
        model = build_model(parse_config(ModelConfig, stored, "checkpoint"), seed)
        model.load_state_dict(state["model"])
        model.provenance = json.loads(state["provenance"])
        return model
    if world.first:
        model = fresh_model(config, train)
        world.broadcast_text(model.config.model_dump_json())
    else:
        stored = json.loads(world.broadcast_text(None))
        model = build_model(parse_config(ModelConfig, stored, "first process"), seed)
    model.to(world.device)
    world.broadcast_model(model)
    return model


def fresh_model(config: TrainConfig, train: Dataset) -> Potential:
    """Make a model ready for its first step: pretrained and adapted, or new with its statistics."""
    if config.finetune is not None:
        return prepare_finetune(config, train)
    seed, batch_size = config.training.seed, config.training.training_data.batch_size
    model = build_model(resolve_sel(config.model, train, seed), seed)
    compute_env_stats(model, train, seed, batch_size)
    compute_param_stats(model, train, seed, batch_size)
    indices = np.arange(len(train))
    if len(train) > _BIAS_FRAMES:
        indices = np.sort(np.random.default_rng(seed).permutation(len(train))[:_BIAS_FRAMES])
    if np.isfinite(train.energies(indices)).any():
        change_bias(model, train, "set", indices.tolist())
    else:
        log.warning("no training frame has an energy: the energy bias stays 0")
    return model


def run_identity(config: TrainConfig, datasets: Datasets) -> dict[str, Any]:
    """Collect what must not change when a run is continued: configuration and data."""
    identity = config.model_dump(mode="json")
    if config.model.heads == 1:
        del identity["model"]["heads"]  # runs begun before there were heads can go on
    del identity["model"]["descriptor"]["compression"]  # None in every run
    for name, data in zip(("training", "validation"), datasets, strict=True):
        identity[f"fingerprint of the {name} data"] = None if data is None else fingerprint(data)
    if config.finetune is not None:
        path, _ = split_name(config.finetune.model)
        if not path.is_file():
            raise ModelFileError(f"finetune.model: {path}: no such model file")
        content = path.read_bytes()
        identity["fingerprint of the pretrained model"] = hashlib.sha256(content).hexdigest()[:16]
    return identity


def fingerprint(data: Dataset) -> str:
    """Give the number of frames and a hash of sizes, compositions and energies (of 1000 frames)."""
    sample = np.unique(np.linspace(0, len(data) - 1, _FINGERPRINT_FRAMES).astype(np.int64))
    digest = hashlib.sha256(np.ascontiguousarray(data.natoms).tobytes())
    digest.update(np.ascontiguousarray(data.counts(sample)).tobytes())
    digest.update(np.ascontiguousarray(data.energies(sample)).tobytes())
    return f"{len(data)} frames, {digest.hexdigest()[:16]}"


def resolved_config(run: Run) -> str:
    """Write the configuration as it runs, JSON: `sel` measured, epochs turned into steps."""
    resolved = run.config.model_dump(mode="json")
    resolved["model"] = run.model.config.model_dump(mode="json")
    resolved["training"] |= {"numb_steps": run.numb_steps, "numb_epoch": None}
    return json.dumps(resolved, indent=2) + "\n"


def provenance(run: Run, metrics: Row) -> dict[str, Any]:
    """Tell what made the model: goes into the header of its file."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("dpaflow")
    except PackageNotFoundError:
        own = "not installed"
    sets = {"training": run.data.train, "validation": run.data.valid}
    software = {
        "dpaflow": own,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return {
        **run.model.provenance,
        "train_config": json.loads(resolved_config(run)),
        "data": {
            name: [{"path": s.name, "frames": s.nframes} for s in data.systems]
            for name, data in sets.items()
            if data is not None
        },
        "elements": run.data.elements,
        "steps": run.step,
        "seed": run.config.training.seed,
        "seconds": round(run.seconds, 3),
        "metrics": metrics,
        "software": software,
    }


def clear(outdir: Path) -> None:
    """Remove what an earlier run left in the folder (resume=False)."""
    names = ("lcurve.csv", "train.log", "summary.json", MODEL_FILE, BEST_FILE)
    for path in (*find_checkpoints(outdir), *(outdir / name for name in names)):
        path.unlink(missing_ok=True)
    shutil.rmtree(outdir / "tensorboard", ignore_errors=True)
