"""Cheap OPs to test the machinery with: no torch, no data."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dpa_core.config import Config
from dpa_core.errors import DataError
from ops.base import Paused
from ops.catalog import OpSpec


class ToyConfig(Config):
    value: int = 0
    seconds: float = 0.0
    fail: str = ""
    calls: str | None = None


class ToyInputs(NamedTuple):
    parts: Sequence[Path] = ()
    one: Path | None = None


def add(inputs: ToyInputs, config: ToyConfig, outdir: Path) -> None:
    """Write value + the numbers of the inputs; note start and end of every call."""
    _note(config, outdir, "start")
    time.sleep(config.seconds)
    _misbehave(config, outdir)
    paths = [*inputs.parts, *([inputs.one] if inputs.one else [])]
    (outdir / "number").write_text(str(config.value + sum(int(p.read_text()) for p in paths)))
    (outdir / "report.html").write_text("<html></html>")
    _note(config, outdir, "end")


def count(inputs: ToyInputs, config: ToyConfig, outdir: Path) -> None:
    """Count to `value`, going on from what an interrupted run had reached."""
    del inputs
    place = outdir / "reached"
    for number in range(int(place.read_text()) if place.exists() else 0, config.value):
        _note(config, outdir, str(number))
        time.sleep(config.seconds)
        place.write_text(str(number + 1))
    (outdir / "number").write_text(place.read_text())


def _note(config: ToyConfig, outdir: Path, text: str) -> None:
    if config.calls:
        with Path(config.calls).open("a") as file:
            file.write(f"{outdir.name} {text} {time.time()}\n")


def _misbehave(config: ToyConfig, outdir: Path) -> None:
    if config.fail == "data":
        raise DataError("energy.npy: NaN in frame 3")
    if config.fail == "memory":
        raise MemoryError
    if config.fail == "once" and Path(config.calls).read_text().count("start") == 1:
        raise OSError("stale file handle")
    if config.fail == "always":
        raise OSError("stale file handle")
    if config.fail == "pause" and not Path(f"{config.calls}.results").exists():
        raise Paused("put the results there")
    if config.fail == "kill":
        os.kill(os.getpid(), 9)
    if config.fail == "exit":
        sys.exit(0)
    if config.fail == "bug":
        raise KeyError("oops")
    if config.fail == "hang":
        child = subprocess.Popen(["sleep", "60"])
        (outdir / "grandchild").write_text(str(child.pid))
        child.wait()


ADD = OpSpec("tests.workflows.toy_ops:add", "tests.workflows.toy_ops:ToyInputs",
             "tests.workflows.toy_ops:ToyConfig")  # fmt: skip
COUNT = ADD._replace(function="tests.workflows.toy_ops:count", resumable=True)
PAGE = ADD._replace(page="report.html")
