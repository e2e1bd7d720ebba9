"""The training run: draw a batch, take a step, report, validate, save."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dpa_core.config import TrainConfig
from dpa_core.derivatives import loss_gradient, predict
from dpa_core.errors import DataError, NumericalError
from dpa_core.finetune import refit_bias
from dpa_core.interchange.files import save_model
from dpa_core.kernels import find
from dpa_core.kernels.build import keep_freed_memory
from dpa_core.loss import TERMS, Metrics
from dpa_core.train.checkpoint import check_same_run, save_checkpoint, write_atomic
from dpa_core.train.display import Display
from dpa_core.train.distributed import connect
from dpa_core.train.metrics import Row, add_validation
from dpa_core.train.optimizer import join_gradients
from dpa_core.train.prepare import (
    BEST_FILE,
    MODEL_FILE,
    Datasets,
    Run,
    clear,
    open_datasets,
    prepare,
    provenance,
    run_identity,
)
from dpa_core.train.sampler import deal


class TrainSummary(NamedTuple):
    """A finished run.

    Attributes
    ----------
    model, best
        Files of the last model and of the one with the smallest validation loss (the last
        one without validation data); averaged weights with `enable_ema`.
    steps
        Steps taken.
    seconds
        Wall time, interruptions excluded.
    metrics
        The last row of lcurve.csv.
    """

    model: Path
    best: Path
    steps: int
    seconds: float
    metrics: dict[str, float | None]


def train(config: TrainConfig, outdir: str | Path, *, resume: bool = True) -> TrainSummary:
    """Train a potential, or finetune one if `config.finetune` is set.

    An unfinished run found in `outdir` is continued from its last checkpoint, on CPU bit for
    bit as if never interrupted; a finished one is returned as it is. SIGTERM saves a
    checkpoint and raises SystemExit(0). Under torchrun all processes call this together.

    Parameters
    ----------
    config
        The run.
    outdir
        Receives config.json (resolved), lcurve.csv, train.log, checkpoint-*.pt,
        model.safetensors (last), model-best.safetensors and summary.json.
    resume
        False starts over and removes what an earlier run left in `outdir`.

    Returns
    -------
    TrainSummary

    Raises
    ------
    ConfigError
        The configuration is inconsistent, or `outdir` holds a run with another one.
    DataError
        Data cannot be read.
    NumericalError
        Loss or gradient became NaN or infinite; names the step and the frames.
    """
    outdir = Path(outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    with connect() as world:
        datasets = open_datasets(config)
        if world.first and not resume:
            clear(outdir)
        world.wait()
        done = _finished(config, outdir, datasets)
        if done is not None:
            return done
        with Display(outdir, world.first) as display, _sigterm() as asked_to_stop:
            display.note("preparing data and model")
            run = prepare(config, outdir, datasets, world)
            try:
                display.start(_facts(run), run.step, run.numb_steps)
                with run.data.batches:
                    _loop(run, display, asked_to_stop)
                return _finish(run, display)
            finally:
                if run.curve is not None:
                    run.curve.close()


def _loop(run: Run, display: Display, asked_to_stop: threading.Event) -> None:
    """All steps that are left; a row, a validation and a checkpoint when they are due."""
    training = run.config.training
    while run.step < run.numb_steps:
        lr = run.schedule(run.step)
        indices = run.sampler.next()
        if run.step + 1 < run.numb_steps:
            _load_ahead(run, indices, run.sampler.peek())
        loss, metrics = take_step(run, indices, lr)
        run.step += 1
        run.interval.add(loss, metrics)
        last = run.step == run.numb_steps
        validating = run.data.valid is not None and _due(run.step, training.valid_freq, last)
        if validating or run.step == 1 or _due(run.step, training.disp_freq, last):
            _report(run, display, lr, validating)
        display.advance(run.step)
        stopping = run.world.any(asked_to_stop.is_set())
        if stopping or _due(run.step, training.save_freq, last):
            _save(run)
        if stopping and not last:
            display.note("stopped by SIGTERM at step %d; run again to continue", run.step)
            raise SystemExit(0)


def _load_ahead(run: Run, *batches: Sequence[int]) -> None:
    """Have this process's shares of these joint batches loaded in the background."""
    for indices in batches:
        if mine := run.world.share(indices, run.data.train.natoms):
            run.data.batches.ask(mine)


def _due(step: int, every: int, last: bool) -> bool:
    return last or step % every == 0


def take_step(run: Run, indices: Sequence[int], lr: float) -> tuple[float, Metrics]:
    """One step of the optimizer on a joint batch; its loss and metrics.

    Raises
    ------
    NumericalError
        Loss or gradient is not finite; the weights are left as they were.
    """
    ratio = lr / run.config.learning_rate.start_lr
    mine = run.world.share(indices, run.data.train.natoms)
    run.optimizer.zero_grad()
    if mine:
        batch, labels = run.data.batches.get(mine)
        batch = batch._replace(head=_heads_of(run, indices, mine))
        batch, labels = batch.to(run.world.device), labels.to(run.world.device)
        _, metrics = loss_gradient(
            run.model, batch, lambda found: run.loss(found, labels, batch, ratio, run.world)
        )
    else:
        nothing = run.loss.no_frames(run.world.device)
        _, metrics = run.loss.combine(nothing, ratio, run.world)
    norm = join_gradients(run.optimizer.weights, run.world, run.config.training.gradient_max_norm)
    loss = float(metrics.loss)
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise NumericalError(_diverged(run, indices, loss, norm, lr))
    run.optimizer.step(lr)
    if run.ema is not None:
        run.ema.update()
    return loss, metrics


def _heads_of(run: Run, indices: Sequence[int], mine: Sequence[int]) -> torch.Tensor | None:
    """Head of each of this process's frames: a step costs what one model costs."""
    heads = run.model.config.heads
    if heads == 1:
        return None
    dealt = deal(indices, heads, run.config.training.seed, run.step)
    return torch.tensor([dealt[k] for k in mine])


def _diverged(run: Run, indices: Sequence[int], loss: float, norm: float, lr: float) -> str:
    names = [run.data.train.name(k) for k in indices[:20]]
    more = f"\n  and {len(indices) - 20} more" if len(indices) > 20 else ""
    return (
        f"step {run.step + 1}: loss {loss}, gradient norm {norm} (learning rate {lr:.3e}); "
        "training stops, the last checkpoint is kept. Look for wrong labels or overlapping "
        "atoms in the batch's frames, else lower learning_rate.start_lr or set "
        "training.gradient_max_norm. Frames:\n  " + "\n  ".join(names) + more
    )


def _report(run: Run, display: Display, lr: float, validating: bool) -> None:
    """Write the row of this step, with a validation if one is due."""
    _check_labels(run)
    row: Row = {"step": run.step, "lr": lr, **run.interval.row()}
    if validating:
        began = time.perf_counter()
        with _published_weights(run):
            loss, sums = validate(run)
            add_validation(row, loss, sums)
            if loss < run.best:
                run.best = loss
                _publish(run, BEST_FILE, row)
        display.pause(time.perf_counter() - began)
    run.last_row = row
    run.interval.reset()
    if run.curve is not None:
        run.curve.write(row)
    display.row(row)


def _check_labels(run: Run) -> None:
    counts = run.interval.sums[:, 2].tolist()
    used = [term for term, active in zip(TERMS, run.loss.active, strict=True) if active]
    # The first row is one batch only, which may lack labels by chance.
    if run.step > 1 and not any(n for n, on in zip(counts, run.loss.active, strict=True) if on):
        raise DataError(
            f"none of the frames of steps {run.step - run.interval.steps + 1} to {run.step} has "
            f"a label that the loss uses (active terms: {', '.join(used) or 'none'}); check the "
            "training data and the prefactors of the loss"
        )


def validate(run: Run) -> tuple[float, torch.Tensor]:
    """Loss (limit prefactors) and error sums of the first head over the whole validation set."""
    data, world = run.data, run.world
    sums = run.loss.no_frames(world.device)
    for numbers in data.valid_batches[world.rank :: world.size]:
        if data.valid is not None and data.valid_cache is not None:
            batch, labels = data.valid_cache.batch(data.valid, numbers)
            batch, labels = batch.to(world.device), labels.to(world.device)
            sums += run.loss.sums(predict(run.model, batch), labels, batch).detach()
    # lr_ratio 0: the best model is judged by the prefactors of the end, at every step alike.
    _, metrics = run.loss.combine(sums, 0.0, world)
    return float(metrics.loss), metrics.sums


def _published_weights(run: Run) -> Any:
    """Context in which the model has the weights that users get (averaged ones with EMA)."""
    return run.ema.applied() if run.ema is not None else nullcontext()


def _publish(run: Run, name: str, row: Row) -> None:
    if run.world.first:
        save_model(run.model, run.outdir / name, provenance(run, row))


def _save(run: Run) -> None:
    if run.world.first:
        save_checkpoint(run.outdir, run.state_dict(), run.config.training.max_ckpt_keep)


def _finish(run: Run, display: Display) -> TrainSummary:
    """Write the model files and the summary of a run that took its last step."""
    training = run.config.training
    with _published_weights(run):
        if training.change_bias_after_training and run.world.first:
            batch_size = training.training_data.batch_size
            refit_bias(run.model, run.data.train, "change", training.seed, batch_size)
        _publish(run, MODEL_FILE, run.last_row)
        if run.data.valid is None:
            _publish(run, BEST_FILE, run.last_row)
    document = {
        "run": run.identity,
        "steps": run.step,
        "seconds": round(run.seconds, 3),
        "metrics": run.last_row,
    }
    if run.world.first:
        write_atomic(run.outdir / "summary.json", (json.dumps(document, indent=2) + "\n").encode())
    run.world.wait()
    display.note("done: %d steps in %.0f s, %s", run.step, run.seconds, run.outdir)
    return _summary(run.outdir, document)


def _finished(config: TrainConfig, outdir: Path, datasets: Datasets) -> TrainSummary | None:
    """Summary of a run that ended here earlier, if it is the one asked for."""
    path = outdir / "summary.json"
    if not path.exists():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    check_same_run(run_identity(config, datasets), document["run"], outdir)
    summary = _summary(outdir, document)
    return summary if summary.model.exists() and summary.best.exists() else None


def _summary(outdir: Path, document: dict[str, Any]) -> TrainSummary:
    return TrainSummary(
        model=outdir / MODEL_FILE,
        best=outdir / BEST_FILE,
        steps=document["steps"],
        seconds=document["seconds"],
        metrics=document["metrics"],
    )


def _facts(run: Run) -> dict[str, str]:
    """Header of the display."""
    weights = list(run.model.parameters())
    trainable = sum(w.numel() for w in weights if w.requires_grad)
    train, valid, world = run.data.train, run.data.valid, run.world
    heads = f" in {run.model.config.heads} heads" if run.model.config.heads > 1 else ""
    return {
        "device": f"{world.device}, {world.size} process(es), {torch.get_num_threads()} threads",
        "evaluation": "torch" if find((run.model,)) is None else "compiled kernels",
        "dtype": f"{run.model.config.descriptor.precision} networks, float64 energies",
        "parameters": f"{trainable} trainable of {sum(w.numel() for w in weights)}{heads}",
        "training": f"{len(train)} frames, {train.natoms.sum()} atoms",
        "validation": f"{len(valid)} frames" if valid is not None else "none",
        "batch": f"{run.config.training.training_data.batch_size}",
        "steps": f"{run.step} done of {run.numb_steps}",
        "output": str(run.outdir.resolve()),
    }


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets (only the main thread may receive signals)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)
