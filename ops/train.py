"""Train a potential: from random weights or, given a pretrained model, by finetuning."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

import dpa_core.errors
from dpa_core.config import (
    DataConfig,
    DPA1Config,
    FinetuneConfig,
    ModelConfig,
    TrainConfig,
    TrainingConfig,
    parse_config,
)
from dpa_core.errors import DataError, DPAError
from ops.files import holds_frames, read_json, write_json
from ops.split import draw
from ops.storage import localize

if TYPE_CHECKING:
    from dpa_core.data import Dataset

FROM_INPUTS = "(from the step's inputs)"
TASK, FAILURE = "torchrun.json", "torchrun-error-{}.json"
logger = logging.getLogger(__name__)


def _all_elements() -> tuple[str, ...]:
    from ase.data import chemical_symbols

    return tuple(chemical_symbols[1:])


class ModelSettings(ModelConfig):
    """The model; without a `type_map` it gets the elements of its data."""

    type_map: tuple[str, ...] = _all_elements()
    """Names of the types; left out: the pretrained model's and those of the data."""

    @model_validator(mode="after")
    def _has_nets(self) -> ModelSettings:
        if self.descriptor.compression is not None:
            raise ValueError("descriptor.compression: train first, then `dpaflow model compress`")
        return self


class DataSettings(DataConfig):
    """Batches; the systems are the step's inputs unless given."""

    systems: tuple[str, ...] = Field((FROM_INPUTS,), min_length=1)
    """Folders or files; those of the step's inputs when left out."""


class TrainingSettings(TrainingConfig):
    """The run; the systems are the step's inputs unless given."""

    training_data: DataSettings = DataSettings()
    """Batch size and, by hand, systems."""
    validation_data: DataSettings | None = None
    """Batch size and, by hand, systems of the validation."""


class FinetuneSettings(FinetuneConfig):
    """How finetuning starts; the pretrained model is the step's input unless given."""

    model: str = FROM_INPUTS
    """Path of the pretrained model file."""


class RunTrainConfig(TrainConfig):
    """A `TrainConfig` whose data, type map and pretrained model may come from other steps."""

    model: ModelSettings = ModelSettings()
    training: TrainingSettings
    finetune: FinetuneSettings | None = None
    nproc: PositiveInt = 1
    """Processes of a data-parallel run (torchrun) on this machine."""
    max_frames: PositiveInt | None = None
    """Train on this many frames, the first of a permutation: smaller draws nest in larger."""
    draw_seed: NonNegativeInt = 1
    """Seed of that permutation, and of the replayed frames."""
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training frames that is drawn from the step's `replay` data, so that a
    finetuned model does not forget what it was pretrained on."""


class TrainInputs(NamedTuple):
    """Data folders and the pretrained model; what is empty is taken from the config.

    Attributes
    ----------
    train, valid, pretrained
        Data and the model to start from; empty folders among several hold no frames.
    replay
        Data that `config.replay` draws from.
    new, previous
        A loop's latest data (part of `train`) and its last model: if there is nothing new,
        that model is kept as it is instead of training again.
    """

    train: Sequence[Path] = ()
    valid: Sequence[Path] = ()
    pretrained: Path | None = None
    replay: Sequence[Path] = ()
    new: Sequence[Path] = ()
    previous: Path | None = None


class TrainRun(NamedTuple):
    """A finished run.

    Attributes
    ----------
    model, best
        Last model and the one with the smallest validation error.
    summary
        The content of `run.json`: train_frames, valid_frames, finetuned, seed, draw_seed,
        type_map, elements (of the data), architecture, steps, seconds, model, best, metrics.
    """

    model: Path
    best: Path
    summary: dict[str, Any]


def run_train(inputs: TrainInputs, config: RunTrainConfig, outdir: Path) -> TrainRun:
    """Train in this process, or in several through torchrun.

    Parameters
    ----------
    inputs
        Data and pretrained model.
    config
        The run. With a pretrained model, architecture and weights come from its file and
        `config.model` only adds to its type map.
    outdir
        Receives the files of `dpa_core.train.train` and `run.json`. A run found there
        unfinished is continued.

    Raises
    ------
    ConfigError, DataError, ModelFileError, NumericalError
        As `dpa_core.train.train`.
    """
    from dpa_core.train import train

    outdir = outdir.resolve()
    outdir.mkdir(parents=True, exist_ok=True)
    if inputs.previous is not None and not _filled(inputs.new):
        return _keep(inputs.previous, outdir)
    resolved, facts = resolve(inputs, config, outdir)
    if config.nproc > 1:
        _run_torchrun(resolved, outdir, config.nproc)
    # a run that torchrun has finished is returned as it is
    done = train(resolved, outdir, resume=True)
    summary = {
        **facts,
        "model": done.model.name,
        "best": done.best.name,
        "steps": done.steps,
        "seconds": done.seconds,
        "metrics": done.metrics,
    }
    write_json(outdir / "run.json", summary)
    return TrainRun(done.model, done.best, summary)


def _keep(previous: Path, outdir: Path) -> TrainRun:
    """Take over a model that nothing new could improve, and what is known of its training."""
    logger.info("no new frame: %s is kept", previous)
    for name in (previous.name, "run.json"):
        part = outdir / f".{name}.part"
        shutil.copyfile(previous.parent / name, part)
        part.replace(outdir / name)
    summary = {**read_json(outdir / "run.json"), "best": previous.name, "steps": 0, "seconds": 0.0}
    write_json(outdir / "run.json", summary)
    return TrainRun(outdir / previous.name, outdir / previous.name, summary)


def resolve(
    inputs: TrainInputs, config: RunTrainConfig, outdir: Path
) -> tuple[TrainConfig, dict[str, Any]]:
    """Fill inputs into the configuration.

    Returns
    -------
    tuple[TrainConfig, dict[str, Any]]
        What `dpa_core.train.train` takes, and the facts of the run that `run.json` keeps.
    """
    from dpa_core.data import open_dataset

    systems = _systems(inputs.train, config.training.training_data)
    if not systems:
        raise DataError("training has no data: give inputs.train or training.training_data.systems")
    dataset = open_dataset(systems)
    if config.max_frames is not None:
        drawn = _draw(dataset, config.max_frames, config.draw_seed, outdir / "drawn")
        systems = [str(drawn)]
        dataset = open_dataset(systems)
    replayed = _replay(inputs, config, len(dataset), outdir)
    if replayed is not None:
        systems.append(str(replayed))
        dataset = open_dataset(systems)
    valid = _systems(inputs.valid, config.training.validation_data)
    held_out = open_dataset(valid) if valid else None
    document = config.model_dump(
        mode="json", exclude={"nproc", "max_frames", "draw_seed", "replay"}
    )
    training = document["training"]
    training["training_data"]["systems"] = systems
    training["validation_data"] = _validation(training, valid)
    elements = _elements(dataset) | (_elements(held_out) if held_out is not None else set())
    pretrained = _pretrained(inputs, config)
    document["finetune"] = None
    if pretrained:
        settings = config.finetune or FinetuneSettings()
        document["finetune"] = {**settings.model_dump(mode="json"), "model": pretrained}
    document["model"] = _model(config, pretrained, elements)
    resolved = parse_config(TrainConfig, document, str(outdir / "config.json"))
    facts = {
        "train_frames": len(dataset),
        "valid_frames": 0 if held_out is None else len(held_out),
        "finetuned": bool(pretrained),
        "seed": config.training.seed,
        "draw_seed": config.draw_seed,
        "type_map": list(resolved.model.type_map),
        "elements": sorted(elements),
        "architecture": _architecture(resolved.model),
    }
    return resolved, facts


def _systems(paths: Sequence[Path], data: DataConfig | None) -> list[str]:
    if paths:
        return _filled(paths)
    if data is None or data.systems == (FROM_INPUTS,):
        return []
    return [str(localize(system)) for system in data.systems]


def _filled(paths: Sequence[Path]) -> list[str]:
    """Return the paths without the folders that a step left empty: those hold no frames."""
    return [str(Path(path).resolve()) for path in paths if holds_frames(path)]


def _validation(training: dict[str, Any], systems: list[str]) -> dict[str, Any] | None:
    if not systems:
        return None
    like = training["validation_data"] or training["training_data"]
    return {**like, "systems": systems}


def _pretrained(inputs: TrainInputs, config: RunTrainConfig) -> str | None:
    if inputs.pretrained is not None:
        return str(Path(inputs.pretrained).resolve())
    if config.finetune is None or config.finetune.model == FROM_INPUTS:
        return None
    return str(localize(config.finetune.model))


def _elements(dataset: Dataset) -> set[str]:
    present = dataset.counts().sum(axis=0) > 0
    return {name for name, here in zip(dataset.type_map, present, strict=True) if here}


def _model(config: RunTrainConfig, pretrained: str | None, elements: set[str]) -> dict[str, Any]:
    """Model block with its final type map; a pretrained model's block comes from its file."""
    from ase.data import atomic_numbers

    named = "type_map" in config.model.model_fields_set
    known = config.model.type_map if named else ()
    model: ModelConfig = config.model
    if pretrained:
        from dpa_core.interchange.files import load_model

        model = load_model(pretrained).config
        known = known or model.type_map
    new = sorted(elements - set(known), key=lambda name: atomic_numbers.get(name, 999))
    if named and new:
        raise DataError(
            f"the training data hold {', '.join(new)}, which model.type_map {list(known)} does "
            "not name; add them or leave type_map out"
        )
    type_map = [*known, *new]
    if pretrained:
        from dpa_core.finetune import remap_config

        # what belongs to a type (excluded pairs, preset biases, sel) follows its name
        model = remap_config(model, type_map)
        if "heads" in config.model.model_fields_set:  # a committee may start from one model
            model = model.model_copy(update={"heads": config.model.heads})
    document = model.model_dump(mode="json")
    document["type_map"] = type_map
    return document


def _architecture(model: ModelConfig) -> str:
    if isinstance(model.descriptor, DPA1Config):
        return f"DPA-1, {model.descriptor.attn_layer} attention layers"
    return "DeepPot-SE"


def _replay(
    inputs: TrainInputs, config: RunTrainConfig, new_frames: int, outdir: Path
) -> Path | None:
    """Draw old frames until they are the share `config.replay` of all; None without replay."""
    from dpa_core.data import open_dataset

    if not config.replay:
        return None
    if not inputs.replay:
        raise DataError(f"replay is {config.replay:g}, but there are no data to replay from")
    dataset = open_dataset(_filled(inputs.replay))
    count = min(len(dataset), round(new_frames * config.replay / (1 - config.replay)))
    if count == 0:
        return None
    return _draw(dataset, count, config.draw_seed, outdir / "replay")


def _draw(dataset: Dataset, count: int, seed: int, target: Path) -> Path:
    from dpa_core.data import write_mixed

    chosen = draw(len(dataset), count, seed)
    drawn = dataset.subset(chosen)
    # again for a continued run: the same frames, or `train` sees that they are others
    shutil.rmtree(target, ignore_errors=True)
    names = [dataset.name(k) for k in chosen]
    write_mixed((drawn[k] for k in range(count)), dataset.type_map, target, source=names)
    return target


def _run_torchrun(config: TrainConfig, outdir: Path, nproc: int) -> None:
    """Train in `nproc` processes; an error of one of them is raised here as its own class."""
    task = outdir / TASK
    for old in outdir.glob(FAILURE.format("*")):
        old.unlink()
    write_json(task, config.model_dump(mode="json"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={nproc}", "-m", "ops.train", str(task)]
    process = subprocess.Popen(command)
    stopped = []

    def stop(*_: object) -> None:
        stopped.append(True)
        process.terminate()

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever owns the signals ends the process group
        previous = None
    try:
        code = process.wait()
    finally:
        process.terminate()
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    if stopped:
        sys.exit(128 + signal.SIGTERM)
    for failure in sorted(outdir.glob(FAILURE.format("*"))):
        told = read_json(failure)
        raise getattr(dpa_core.errors, told["class"])(told["message"])
    if code != 0:
        raise RuntimeError(f"torchrun with {nproc} processes ended with exit code {code}")


def _worker(task: Path) -> int:
    """One process of a torchrun run."""
    from dpa_core.train import train

    try:
        train(parse_config(TrainConfig, read_json(task), str(task)), task.parent, resume=True)
    except DPAError as error:
        told = {"class": type(error).__name__, "message": str(error)}
        write_json(task.parent / FAILURE.format(os.environ.get("RANK", "0")), told)
        return error.exit_code
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(_worker(Path(sys.argv[1])))
