"""Labelers that run a program: its inputs in a folder of their own, its output read by dpdata."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from dpa_core.errors import ConfigError, DataError
from ops.labelers import guard
from ops.labelers.base import (
    WARNING,
    Context,
    Job,
    Label,
    LabelFailed,
    LabelKilled,
    RetryingLabeler,
    Structure,
    read_setting,
)
from ops.labelers.match import WrongStructureError, label_structure

if TYPE_CHECKING:
    from dpa_core.frames import Frame

OUTPUT, ERRORS = "run.out", "run.err"
"""Where the command's standard output and error go."""
NOT_FOUND = (126, 127)
"""Exit codes of a shell that cannot run its command."""
KILLED = tuple(128 + s for s in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Exit codes of a program that somebody ended: no verdict on its settings."""
TIMED_OUT = -1000
LEAST_SPACE = 16 * 1024**2
"""Bytes. With less free space than this a failed calculation blames the disk."""


class CommandLabeler(RetryingLabeler):
    """What labelers that run a program have in common."""

    command: str = Field(min_length=1)
    """Shell command line, run in the folder of the calculation; it may use any number of
    processes, which end with it. Its standard output goes to run.out. It is no part of a
    label's identity."""
    timeout: PositiveFloat | None = None
    """s. One attempt that takes longer is ended and has failed."""
    keep: tuple[str, ...] = ()
    """Patterns of files that are kept beside the label, e.g. [OUTCAR]."""

    reader: ClassVar[str]
    """Format of the output, see `dpa_core.data.dft.READERS`."""

    def check(self) -> list[str]:
        """Return mistakes in any of the attempts; a command that is not found is a warning."""
        found = []
        for number, settings in enumerate(self.attempts()):
            place = "retry: " if number else ""
            try:
                found += [f"{place}{line}" for line in settings.mistakes()]
            except ConfigError as error:
                found.append(f"{place}{error}")
            program = _program(settings.command)
            if program and shutil.which(program) is None:
                found.append(f"{WARNING}{place}command {program!r} is not found on this machine")
        return list(dict.fromkeys(found))

    def mistakes(self) -> list[str]:
        """Return what is wrong with one set of settings."""
        raise NotImplementedError

    def output(self, folder: Path) -> Path:
        """Return the file that holds the results of the calculation in `folder`."""
        raise NotImplementedError

    def order(self, structure: Structure) -> tuple[Structure, NDArray[np.int64]]:
        """Atoms in the order of the input file, see `Structure.ordered`; as they are here."""
        return structure, np.arange(len(structure.elements))

    def finish(self, elements: Sequence[str], folder: Path) -> None:
        """Add what is needed to run but not worth a copy for each task (pseudopotentials)."""

    def start(self, context: Context) -> Label:
        """Return the function that runs the command and reads its output."""
        return self._label

    def _label(self, job: Job) -> Frame:
        self.finish(job.structure.elements, job.folder)
        run_command(self.command, job.folder, self.timeout)
        return self.read(job.structure, job.folder)

    def read(self, asked: Structure, folder: Path) -> Frame:
        """Read the results in `folder` as labels of `asked`; types are those of its elements.

        Raises
        ------
        LabelFailed
            The output is missing, broken or not converged.
        WrongStructureError
            It is of another structure.
        """
        from dpa_core.data.dft import open_dft

        path = self.output(folder)
        if not path.is_file():
            raise LabelFailed(f"no output {path.name}{log_tail(folder)}")
        try:
            systems = open_dft(path, self.reader)
        except WrongStructureError:
            raise
        except DataError as error:
            raise LabelFailed(str(error).replace(f"{folder}/", "")) from error
        if len(systems) != 1 or systems[0].nframes != 1:
            number = sum(s.nframes for s in systems)
            raise WrongStructureError(
                f"{path.name}: {number} frames, expected one; the template must ask for a single "
                "point, not for a relaxation or MD"
            )
        names = sorted(set(asked.elements))
        written, order = self.order(asked.right_handed())
        frame = label_structure(
            written, systems[0].frame(0), systems[0].names, names, str(path.name)
        )
        back = np.argsort(order)
        return frame._replace(
            coord=asked.coord,
            box=asked.box,
            atype=frame.atype[back],
            force=None if frame.force is None else frame.force[back],
        )


def template_text(value: str) -> str:
    """Text of a template with Unix line ends."""
    return read_setting(value).replace("\r\n", "\n")


def need_cell(structure: Structure, code: str) -> NDArray[np.float64]:
    """Return the cell.

    Raises
    ------
    DataError
        There is none.
    """
    if structure.box is None:
        raise DataError(
            f"{structure.formula()} has no cell, which {code} needs; put molecules into a box"
        )
    return structure.box


def run_command(command: str, folder: Path, timeout: float | None) -> None:
    """Run a shell command in `folder`; it ends with this process whatever happens.

    Standard output goes to run.out, standard error to run.err.

    Raises
    ------
    LabelKilled
        Somebody ended it.
    LabelFailed
        It failed or took too long.
    ConfigError
        The shell did not find the command.
    OSError
        It failed and the disk is full.
    """
    code = _exit_code(command, folder, timeout)
    if code in NOT_FOUND:
        raise ConfigError(f"labeler.command {command!r} cannot be run{log_tail(folder)}")
    if code and shutil.disk_usage(folder).free < LEAST_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if code in KILLED:
        raise LabelKilled(f"killed (exit code {code}); is there enough memory?{log_tail(folder)}")
    if code == TIMED_OUT:
        raise LabelFailed(f"not done after {timeout:g} s (timeout){log_tail(folder)}")
    if code:
        raise LabelFailed(f"the command ended with exit code {code}{log_tail(folder)}")


def _exit_code(command: str, folder: Path, timeout: float | None) -> int:
    """Exit code of the command; TIMED_OUT, or 128 + n if it was ended by signal n."""
    with (folder / OUTPUT).open("wb") as output, (folder / ERRORS).open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        code = TIMED_OUT
    finally:
        _end_group(child)
    return code if code >= 0 or code == TIMED_OUT else 128 - code


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End what is left of the command's process group: MPI processes without their mpirun."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
            if child.poll() is None and number == signal.SIGTERM:
                time.sleep(guard.GRACE)
    child.wait()


def log_tail(folder: Path, lines: int = 4) -> str:
    """Last lines of the error stream, else of the output, to be put after a message."""
    for name in (ERRORS, OUTPUT):
        path = folder / name
        text = path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.is_file() else ""
        told = [line.strip() for line in text.splitlines() if line.strip(" -*#")]
        if told:
            return f"; {name}: {' / '.join(told[-lines:])}"
    return ""


def _program(command: str) -> str:
    """First word of a command line that is a program; "" if that cannot be told."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    while words and ("=" in words[0] or words[0] in ("env", "exec", "time", "nice")):
        words.pop(0)
    builtin = {"cd", "source", ".", "ulimit", "module", "export", "set", "test", "["}
    return "" if not words or words[0] in builtin or words[0][0] in "({$" else words[0]
