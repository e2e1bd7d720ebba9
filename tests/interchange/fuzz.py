"""Fuzz the readers of model files.

    python -m tests.interchange.fuzz --seconds 600 --formats all
    python -m tests.interchange.fuzz --replay dp:1234 --keep input.dp

Inputs are mutations of small good files, numbered per format; a number and a format give the
same input again. Each must give a model or one `ModelFileError` that begins with the path, within
`SLOW` seconds of the processor and `LARGE` bytes, without warnings. Readers run in a forked
process with a limit on its address space; when it dies or hangs, its input is noted and another
process goes on.
"""

# ruff: noqa: T201, BLE001  (talks to a terminal; every exception is a finding)
from __future__ import annotations

import argparse
import functools
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from dpa_core.errors import ModelFileError
from dpa_core.interchange.files import FORMATS, load_model, read_header
from tests.interchange.hostile import samples
from tests.interchange.mutate import mutate

SLOW, HANGS = 1.0, 20.0
LARGE = 250 << 20
SPACE = 4 << 30
LONGEST_MESSAGE = 2200
SUFFIX = {"native": ".safetensors"}


def make(kind: str, number: int) -> bytes:
    """Input `number` of a format."""
    return mutate(kind, _samples(kind), random.Random(f"{kind}:{number}"))


@functools.cache
def _samples(kind: str) -> list[bytes]:
    return samples(kind)


def check(path: Path) -> str:
    """Read a file; return "model", "refused" or what went wrong."""
    result = "model"
    for read in (load_model,) if path.suffix == ".dp" else (load_model, read_header):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read(path)
        except ModelFileError as error:
            result = "refused"
            if not str(error).startswith(str(path)) or len(str(error)) > LONGEST_MESSAGE:
                return f"bad message: {str(error)[:200]}"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {error} [{Path(place.filename).name}:{place.lineno}]"
    return result


def _work(kind: str, first: int, count: int, folder: str, out: Any) -> None:
    """Run inputs in this process: a message before each and after each."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
    path = Path(folder) / f"input{SUFFIX.get(kind, '.' + kind)}"
    for number in range(first, first + count):
        path.write_bytes(make(kind, number))
        before = _peak()
        out.send((number, None))
        start = time.process_time()  # the machine may have other things to do
        result = check(path)
        out.send((number, (result, time.process_time() - start, _peak() - before)))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Tally:
    """What happened with the inputs of one format."""

    def __init__(self, kind: str) -> None:
        self.kind, self.inputs, self.models = kind, 0, 0
        self.longest = self.largest = 0.0
        self.faults: dict[str, list[int]] = {}

    def add(self, number: int, result: str, seconds: float, growth: float) -> None:
        self.inputs += 1
        self.longest, self.largest = max(self.longest, seconds), max(self.largest, growth)
        if result == "model":
            self.models += 1
        elif result != "refused":
            self.fault(number, result)
        if seconds > SLOW:
            self.fault(number, "slow")
        if growth > LARGE:
            self.fault(number, "large")

    def fault(self, number: int, what: str) -> None:
        """Note a fault; alike ones together."""
        self.faults.setdefault(what[:160], []).append(number)

    def row(self) -> str:
        wrong = sum(map(len, self.faults.values()))
        return (
            f"{self.kind:8} {self.inputs:8d} {self.models:8d} {self.longest:9.2f} "
            f"{self.largest / 2**20:9.0f} {wrong:7d}"
        )


def fuzz(kind: str, first: int, count: int, seconds: float) -> Tally:
    """Run inputs of one format until `count` or `seconds` are reached."""
    _samples(kind)  # made once, before forking
    tally, end, number = Tally(kind), time.monotonic() + seconds, first
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        while number < first + count and time.monotonic() < end:
            here, there = context.Pipe(duplex=False)
            batch = min(500, first + count - number)
            worker = context.Process(target=_work, args=(kind, number, batch, folder, there))
            worker.start()
            there.close()
            number = _follow(worker, here, tally, number, end)
            worker.join()
    return tally


def _follow(worker: Any, pipe: Any, tally: Tally, number: int, end: float) -> int:
    """Take a worker's messages; return the number to go on with."""
    reading = False
    while True:
        if not pipe.poll(HANGS):
            worker.kill()
            tally.fault(number, f"hangs for more than {HANGS:.0f} s")
            return number + 1
        try:
            number, result = pipe.recv()
        except EOFError:
            worker.join()
            if worker.exitcode == 0:
                return number
            if not reading:
                raise RuntimeError(f"making input {tally.kind}:{number} failed") from None
            tally.fault(number, f"the process died ({worker.exitcode})")
            tally.inputs += 1
            return number + 1
        reading = result is None
        if result is not None:
            tally.add(number, *result)
            number += 1
            if time.monotonic() > end:
                worker.kill()
                return number


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="for all formats together")
    parser.add_argument("--inputs", type=int, default=10**9, help="most inputs of a format")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--formats", default="all", help=f"all, or some of {','.join(FORMATS)}")
    parser.add_argument("--replay", metavar="FORMAT:NUMBER", help="run one input in this process")
    parser.add_argument("--keep", type=Path, help="with --replay: where to write the input")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.replay:
        return replay(options.replay, options.keep)
    kinds = list(FORMATS) if options.formats == "all" else options.formats.split(",")
    for kind in kinds:
        _samples(kind)  # and their modules: a source file may change in an hour of fuzzing
    tallies = [
        fuzz(kind, options.first, options.inputs, options.seconds / len(kinds)) for kind in kinds
    ]
    print(
        f"{'format':8} {'inputs':>8} {'models':>8} {'longest/s':>9} {'grown/MB':>9} {'faults':>7}"
    )
    for tally in tallies:
        print(tally.row())
    for tally in tallies:
        for what, numbers in sorted(tally.faults.items(), key=lambda item: -len(item[1])):
            print(f"{tally.kind}: {len(numbers)}x {what}; --replay {tally.kind}:{numbers[0]}")
    return int(any(tally.faults for tally in tallies))


def replay(name: str, keep: Path | None) -> int:
    """Read one input with the full traceback."""
    kind, number = name.split(":")
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / f"input{SUFFIX.get(kind, '.' + kind)}"
        path.write_bytes(make(kind, int(number)))
        start = time.perf_counter()
        try:
            print(load_model(path).config)
        except ModelFileError as error:
            print(error)
        print(f"{check(path)}; {time.perf_counter() - start:.2f} s, peak {_peak() >> 20} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
