"""Run a loop on a small disk that fills up at random moments."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from compare import differences, results
from kills import HANG, Launch, at_work

SIZE = 256
"""MiB of the disk."""
LATEST = 12.0
"""Seconds from the start of a step to a full disk, at most."""


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
    out: Path, launch: Launch, before: dict[str, Any], fillings: int, seed: int
) -> dict[str, Any]:
    """Fill the disk before the start and again and again later; resume; compare.

    Parameters
    ----------
    out
        Receives the mount point `disk` and what dpaflow said.
    launch
        Starts dpaflow.
    before
        Figures and results of the undisturbed run.
    fillings
        How often the disk is full.
    seed
        Of the moments.
    """
    disk, rng = out / "disk", random.Random(seed)
    disk.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(disk)]
    subprocess.run(command, check=True)
    filler, log = Filler(disk, launch, rng), out / "disk.log"
    log.unlink(missing_ok=True)
    arguments = ["run", str(out / "loop.yaml"), "--out", str(filler.run)]
    problems: list[str] = []
    fullness: list[str] = []
    said: Counter[str] = Counter()
    for number in range(fillings):
        after = before["figures"]["steps"] * number // fillings if number else None
        code, busy, text = filler.go(arguments, after)
        hit = "before the start" if after is None else ", ".join(busy) or "between steps"
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"=== full: {hit}; exit code {code}\n{text}")
        if code == 0:
            problems.append(f"the loop was through after {number} fillings")
            break
        fullness.append(hit)
        said.update(line for line in text.splitlines() if "free some space" in line)
        problems += _judge(code, text, hit)
        if (filler.run / "pipeline.yaml").exists():
            arguments = ["resume", str(filler.run)]
    with log.open("a", encoding="utf-8") as stream:
        stream.write("=== enough space\n")
        stream.flush()
        code = launch(arguments, stream).wait()
    problems += [f"with enough space it ended with {code}"] if code else []
    problems += differences(before["results"], results(filler.run))
    if problems and filler.run.exists():
        shutil.copytree(filler.run, out / "disk-run", symlinks=True, dirs_exist_ok=True)
    return {"problems": problems, "figures": {"full_during": fullness, "messages": dict(said)}}


class Filler:
    """Starts dpaflow on a disk and fills it.

    Parameters
    ----------
    disk
        The mount point; the run is in it.
    launch
        Starts dpaflow.
    rng
        Draws moments.
    """

    def __init__(self, disk: Path, launch: Launch, rng: random.Random) -> None:
        self.run, self.ballast = disk / "run", Ballast(disk)
        self.output = disk.parent / "disk.part"  # not on the full disk
        self.launch, self.rng = launch, rng

    def go(self, arguments: list[str], after: int | None) -> tuple[int, list[str], str]:
        """Run until the end, with a full disk once `after` steps are done (None: at once).

        Returns the exit code, the steps that were at work, and what was said.
        """
        if after is None:
            self.ballast.fill()
        busy: list[str] = []
        with self.output.open("w+", encoding="utf-8") as stream:
            process = self.launch(arguments, stream)
            if after is not None:
                busy = self._wait(process, after)
            limit = time.monotonic() + HANG
            while process.poll() is None and time.monotonic() < limit:
                self.ballast.fill()  # again: steps that end may free something
                time.sleep(0.2)
            if process.poll() is None:
                process.kill()
            process.wait()
            stream.seek(0)
            text = stream.read()
        self.output.unlink()
        self.ballast.drop()
        return process.returncode, busy, text

    def _wait(self, process: subprocess.Popen[str], after: int) -> list[str]:
        """Wait until a random moment of a step; return the steps at work."""
        busy: list[str] = []
        while process.poll() is None:
            busy, done = at_work(self.run)
            if busy and done >= after:
                break
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.uniform(0.0, LATEST))
        return at_work(self.run)[0]


def _judge(code: int, text: str, hit: str) -> list[str]:
    """Return what is wrong with what dpaflow said."""
    found = []
    if code not in (1, 2):
        found.append(f"disk full ({hit}): exit code {code}")
    if "Traceback" in text:
        found.append(f"disk full ({hit}): a traceback was shown")
    if "free some space" not in text:
        found.append(f"disk full ({hit}): nothing says what to do")
    return found
