"""Run a loop on a small disk that fills up at random moments."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from compare import differences, results
from kills import HANG, Launch

SIZE = 256
"""MiB of the disk."""


class Ballast:
    """A file that takes all the space there is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ballast"

    def fill(self) -> None:
        """Take what is free, to the last byte."""
        with self.path.open("ab", buffering=0) as stream:
            for size in (2**20, 2**12, 1):
                try:
                    while stream.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def drop(self) -> None:
        """Give it back."""
        self.path.unlink(missing_ok=True)


def disk_part(
    out: Path, launch: Launch, expected: dict[str, str], fillings: int, seed: int
) -> dict[str, Any]:
    """Fill the disk before the start and at random moments; resume; compare.

    Parameters
    ----------
    out
        Receives the mount point `disk` and what dpaflow said.
    launch
        Starts dpaflow.
    expected
        Results of the undisturbed run.
    fillings
        How often the disk is full.
    seed
        Of the moments.
    """
    disk, rng = out / "disk", random.Random(seed)
    disk.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(disk)]
    subprocess.run(command, check=True)
    run, ballast, log = disk / "run", Ballast(disk), out / "disk.log"
    log.unlink(missing_ok=True)
    arguments = ["run", str(out / "loop.yaml"), "--out", str(run)]
    problems: list[str] = []
    moments: list[float] = []
    said: list[str] = []
    while len(moments) < fillings:
        moment = 0.0 if not moments else rng.uniform(2.0, 40.0)
        code, text = _filled(arguments, launch, ballast, moment)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"=== full after {moment:.1f} s: exit code {code}\n{text}")
        ballast.drop()
        if code == 0:
            break
        moments.append(round(moment, 1))
        said += [line for line in text.splitlines() if "free some space" in line][:1]
        problems += _judge(code, text, moment)
        if (run / "pipeline.yaml").exists():
            arguments = ["resume", str(run)]
    with log.open("a", encoding="utf-8") as stream:
        stream.write("=== enough space\n")
        stream.flush()
        code = launch(arguments, stream).wait()
    problems += [f"with enough space it ended with {code}"] if code else []
    problems += differences(expected, results(run))
    if problems and run.exists():
        shutil.copytree(run, out / "disk-run", symlinks=True, dirs_exist_ok=True)
    figures = {"full_after_seconds": moments, "messages": said}
    return {"problems": problems, "figures": figures}


def _filled(
    arguments: list[str], launch: Launch, ballast: Ballast, moment: float
) -> tuple[int, str]:
    """Run until the end with a disk that is full from a moment on."""
    output = ballast.path.parent.parent / "disk.part"  # not on the full disk
    with output.open("w+", encoding="utf-8") as stream:
        if moment == 0.0:
            ballast.fill()
        process = launch(arguments, stream)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment or 0.01)
        limit = time.monotonic() + HANG
        while process.poll() is None and time.monotonic() < limit:
            ballast.fill()
            time.sleep(0.2)
        if process.poll() is None:
            process.kill()
        process.wait()
        stream.seek(0)
        text = stream.read()
    output.unlink()
    return process.returncode, text


def _judge(code: int, text: str, moment: float) -> list[str]:
    """Return what is wrong with what dpaflow said."""
    found = []
    if code not in (1, 2):
        found.append(f"disk full after {moment:.1f} s: exit code {code}")
    if "Traceback" in text:
        found.append(f"disk full after {moment:.1f} s: a traceback was shown")
    if "free some space" not in text:
        found.append(f"disk full after {moment:.1f} s: nothing says what to do")
    return found
