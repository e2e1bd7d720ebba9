"""What a person sees of a run: a live bar on a terminal, aligned lines everywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpa_core.train.metrics import Row

log = logging.getLogger(__name__)
_PACKAGE = "dpa_core"

# Header and width of a line's columns; errors are shown in meV.
_HEADER = (
    f"{'step':>10} {'lr':>10} {'E meV/atom':>11} {'F meV/Å':>11} {'V meV/atom':>11} "
    f"{'ms/step':>9} {'ETA':>9}"
)


class _ConsoleHandler(logging.Handler):
    """Log lines to the console that also draws the bar, so that they do not collide."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class Display:
    """Progress of one run, as a context manager.

    Lines go through `logging`, into train.log and, unless the program has set up logging
    itself, to stderr. On a terminal a bar stays below them. Other than first processes
    show nothing.

    Parameters
    ----------
    outdir
        Folder of the run; gets train.log.
    active
        Whether this is the first process.
    """

    def __init__(self, outdir: Path, active: bool) -> None:
        self._outdir = outdir
        self._active = active
        self._handlers: list[logging.Handler] = []
        self._progress: Progress | None = None
        self._numb_steps = 0
        self._lines = 0
        self._last = (0, 0.0)

    def __enter__(self) -> Display:
        logger = logging.getLogger(_PACKAGE)
        self._level = logger.level
        if not self._active:
            logger.setLevel(logging.ERROR)
            return self
        console = Console(stderr=True)
        if not logger.hasHandlers():
            self._handlers.append(_ConsoleHandler(console))
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
        file = logging.FileHandler(self._outdir / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._handlers.append(file)
        for handler in self._handlers:
            logger.addHandler(handler)
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if error is not None and not isinstance(error, SystemExit):
            log.error("stopped: %s", error)
        logger = logging.getLogger(_PACKAGE)
        logger.setLevel(self._level)
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()

    def start(self, facts: Mapping[str, str], step: int, numb_steps: int) -> None:
        """Print the header of the run and start the clock."""
        if not self._active:
            return
        width = max(len(key) for key in facts)
        for key, value in facts.items():
            log.info("%s  %s", key.ljust(width), value)
        self._numb_steps = numb_steps
        self._last = (step, time.perf_counter())
        if self._progress is not None:
            self._progress.add_task("train", total=numb_steps, completed=step, speed="")
            self._progress.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step)

    def row(self, row: Row) -> None:
        """Print one aligned line, and a second one if the row holds a validation."""
        if not self._active:
            return
        step, now = int(row["step"] or 0), time.perf_counter()
        pace = (now - self._last[1]) / max(step - self._last[0], 1)
        eta = timedelta(seconds=round(pace * (self._numb_steps - step)))
        if self._lines % 20 == 0:
            log.info(_HEADER)
        self._lines += 1
        errors = _errors(row, "")
        log.info("%10d %10.3e %s %9.1f %9s", step, row["lr"], errors, 1000 * pace, eta)
        if row.get("loss_val") is not None:
            log.info("%10s %10s %s", "validation", "", _errors(row, "_val"))
        self._last = (step, now)
        if self._progress is not None:
            speed = f"{1000 * pace:.1f} ms/step"
            self._progress.update(self._progress.task_ids[0], speed=speed)

    def pause(self, seconds: float) -> None:
        """Do not count the last `seconds` (validation, checkpoint) as training time."""
        self._last = (self._last[0], self._last[1] + seconds)

    def note(self, text: str, *args: object) -> None:
        """Print a line between the rows."""
        if self._active:
            log.info(text, *args)


def _errors(row: Row, suffix: str) -> str:
    names: Sequence[str] = ("rmse_e", "rmse_f", "rmse_v")
    values = [row.get(name + suffix) for name in names]
    return " ".join(f"{'-':>11}" if v is None else f"{1000 * v:11.3f}" for v in values)
