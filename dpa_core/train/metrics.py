"""What a run reports: lcurve.csv, TensorBoard, and the averages behind a row."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpa_core.loss import TERMS, Metrics, rmse

log = logging.getLogger(__name__)

COLUMNS = (
    "step",
    "lr",
    "loss",
    *(f"rmse_{term}" for term in TERMS),
    "loss_val",
    *(f"rmse_{term}_val" for term in TERMS),
)
Row = dict[str, float | None]


class Interval:
    """Training errors averaged over the steps since the last row."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start the next interval."""
        self.steps = 0
        self.loss = 0.0
        self.sums = torch.zeros(len(TERMS), 3, dtype=torch.float64)

    def add(self, loss: float, metrics: Metrics) -> None:
        """Take in one step."""
        self.steps += 1
        self.loss += loss
        self.sums = self.sums.to(metrics.sums.device) + metrics.sums

    def row(self) -> Row:
        """Mean loss and root mean square errors."""
        return {"loss": self.loss / max(self.steps, 1), **rmse(self.sums)}

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"steps": self.steps, "loss": self.loss, "sums": self.sums.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the interval a checkpoint was taken in."""
        self.steps, self.loss, self.sums = state["steps"], state["loss"], state["sums"]


class Curve:
    """lcurve.csv, written row by row; TensorBoard beside it if asked for.

    The file holds no times, so that a resumed run writes it byte for byte as an
    uninterrupted one. Units: eV/atom (e, v), eV/Å (f), eV (ae); empty where unlabelled.

    Parameters
    ----------
    outdir
        Folder of the run.
    length
        Bytes to keep of an earlier lcurve.csv: rows behind the checkpoint are cut off.
    step
        Step the run continues from.
    tensorboard
        Write events to outdir/tensorboard.
    """

    def __init__(self, outdir: Path, length: int, step: int, tensorboard: bool) -> None:
        path = outdir / "lcurve.csv"
        known = path.stat().st_size if path.exists() else 0
        if known < length:
            log.warning("%s is shorter than at the checkpoint; its early rows are lost", path)
        self._stream = path.open("r+" if known else "w", encoding="utf-8", newline="")
        self._stream.truncate(min(known, length))
        self._stream.seek(0, os.SEEK_END)
        if self._stream.tell() == 0:
            self._stream.write(",".join(COLUMNS) + "\n")
        self._board = _summary_writer(outdir, step) if tensorboard else None

    def write(self, row: Row) -> None:
        """Append a row; it is on its way to the disk when this returns."""
        cells = [_cell(row.get(name)) for name in COLUMNS]
        self._stream.write(",".join(cells) + "\n")
        self._stream.flush()
        if self._board is not None:
            for name, value in row.items():
                if value is not None and name != "step":
                    self._board.add_scalar(name, value, int(row["step"] or 0))

    def sync(self) -> int:
        """Bring all rows to the disk; length of the file in bytes."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def close(self) -> None:
        """Close the files."""
        self._stream.close()
        if self._board is not None:
            self._board.close()


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.10e}"


def _summary_writer(outdir: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(outdir / "tensorboard"), purge_step=step + 1)


def add_validation(row: Row, loss: Tensor | float, sums: Tensor) -> None:
    """Put the errors on the validation set into the `_val` columns of a row."""
    row["loss_val"] = float(loss)
    row.update({f"{name}_val": value for name, value in rmse(sums).items()})
