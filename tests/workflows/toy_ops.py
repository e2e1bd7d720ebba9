"""Cheap OPs to test the machinery with: no torch, no data."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dpa_core.config import Config
from dpa_core.errors import DataError
from ops.base import OpSpec


class ToyConfig(Config):
    value: int = 0
    seconds: float = 0.0
    fail: str = ""
    marker: str | None = None


class ToyInputs(NamedTuple):
    parts: Sequence[Path] = ()
    one: Path | None = None


def add(inputs: ToyInputs, config: ToyConfig, outdir: Path) -> None:
    """Write value + the numbers of the inputs; count the calls in `calls`."""
    calls = outdir / "calls"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if config.marker:
        with Path(config.marker).open("a") as file:
            file.write("x")
    time.sleep(config.seconds)
    misbehave(config)
    paths = [*inputs.parts, *([inputs.one] if inputs.one else [])]
    total = config.value + sum(int(path.read_text()) for path in paths)
    (outdir / "number").write_text(str(total))


def misbehave(config: ToyConfig) -> None:
    if config.fail == "data":
        raise DataError("energy.npy: NaN in frame 3")
    if config.fail == "memory":
        raise MemoryError
    if config.fail == "once":
        marker = Path(config.marker)
        if marker.read_text() == "x":
            raise OSError("stale file handle")
    if config.fail == "kill":
        os.kill(os.getpid(), 9)
    if config.fail == "exit":
        sys.exit(0)
    if config.fail == "bug":
        raise KeyError("oops")


ADD = OpSpec("tests.workflows.toy_ops:add", "tests.workflows.toy_ops:ToyInputs",
             "tests.workflows.toy_ops:ToyConfig")  # fmt: skip
CONTINUE = ADD._replace(resumable=True)
