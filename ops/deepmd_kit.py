"""DeePMD-kit's own program, where it is installed: it writes what only it can write.

dpaflow reads every model file of DeePMD-kit and writes .dp, .yaml and .pt. What LAMMPS, i-PI and
other codes load (.pth, .pb) is made from a .dp file by `dp convert-backend`. Its .pt2 is not among
them: nothing here can read it back, and DeePMD-kit 3.2.0 gives other numbers with it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpa_core.errors import ConfigError, ModelFileError

FROZEN = (".pth", ".pb")
"""Suffixes of the files that only DeePMD-kit writes."""
VARIABLE = "DPAFLOW_DP"
ERROR = re.compile(r"[\w.]*(Error|Exception): ")
TAIL = 8
"""Lines of what `dp` printed that are quoted."""
logger = logging.getLogger(__name__)


def find_dp() -> list[str] | None:
    """Return what starts DeePMD-kit: $DPAFLOW_DP, `dp` or `python -m deepmd`; None if missing.

    Raises
    ------
    ConfigError
        $DPAFLOW_DP names no program.
    """
    words = shlex.split(os.environ.get(VARIABLE, ""))
    if words:
        if shutil.which(words[0]) is None:
            raise ConfigError(
                f"{VARIABLE} is {os.environ[VARIABLE]!r}, and there is no such program; give the "
                "path of DeePMD-kit's dp, or unset it"
            )
        return words
    beside = Path(sys.executable).with_name("dp")
    found = shutil.which("dp") or shutil.which(beside)
    if found is not None:
        return [found]
    if importlib.util.find_spec("deepmd") is not None:
        return [sys.executable, "-m", "deepmd"]
    return None


def convert_backend(source: Path, target: Path) -> Path:
    """Make a file of another backend of DeePMD-kit from a .dp file.

    Parameters
    ----------
    source
        The .dp file.
    target
        Its suffix chooses the backend; an existing file is replaced when the new one is there.

    Raises
    ------
    ConfigError
        DeePMD-kit is not installed; the message has the commands to run elsewhere.
    ModelFileError
        It cannot make the file; the message has what it said.
    """
    command = find_dp()
    if command is None:
        raise ConfigError(how_to_install({target: source}))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    command += ["convert-backend", str(source), str(part)]
    logger.info("%s", shlex.join(command))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode or not part.exists():
            said = _said(done.stdout + done.stderr)
            raise ModelFileError(
                f"{target}: DeePMD-kit cannot make it (exit code {done.returncode} of "
                f"{shlex.join(command)}). It needs the backend of {target.suffix} files, and "
                f"that backend every option of the model. It said:\n{said}"
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _said(output: str) -> str:
    """Return the error of a Python program's output; the last lines where there is none."""
    lines = output.strip().splitlines()
    errors = [n for n, line in enumerate(lines) if ERROR.match(line)]
    return "\n".join(lines[errors[-1] :][:TAIL] if errors else lines[-TAIL:])


def how_to_install(files: Mapping[Path, Path]) -> str:
    """Return what to do where there is no DeePMD-kit; `files`: what to make -> from which .dp."""
    commands = [f"  dp convert-backend {source} {target}" for target, source in files.items()]
    head = (
        f"{', '.join(map(str, files))}: only DeePMD-kit writes {next(iter(files)).suffix} files, "
        f"and its program dp is not found (${VARIABLE}, PATH, python -m deepmd). Where it is "
        "installed, run"
    )
    return "\n".join([head, *commands])


def lammps_lines(models: Sequence[Path], type_map: Sequence[str]) -> list[str]:
    """Return the lines of a LAMMPS input that use frozen models; several write deviations."""
    names = " ".join(map(str, models))
    devi = " out_file model_devi.out out_freq 100" if len(models) > 1 else ""
    return [
        "units           metal",
        "atom_style      atomic",
        f"pair_style      deepmd {names}{devi}",
        f"pair_coeff      * * {' '.join(type_map)}  # elements of atom types 1, 2, ...",
    ]
