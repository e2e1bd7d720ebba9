"""A worker process as the driver sees it: requests, time limits, and a guard on memory."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
# A worker is ended when less than this share of the machine's memory is left.
_LEAST_FREE = 0.06
_WORTH_A_LINE = 5


class WorkerError(RuntimeError):
    """The worker could not do what it was asked for; the text goes into the table."""


class Side(NamedTuple):
    """One of the codes, in one of its settings.

    Attributes
    ----------
    name
        dpaflow, pt, pt tuned, ...
    python
        Interpreter.
    arguments
        Command line after it.
    """

    name: str
    python: str
    arguments: tuple[str, ...]


OURS = Side("dpaflow", sys.executable, ("-m", "benchmarks.peer.our_worker"))
_PEER_SCRIPT = str(Path(__file__).with_name("peer_worker.py"))


def peer_side(python: str, backend: str, *, tuned: bool) -> Side:
    """DeePMD-kit with a backend, as users run it or with malloc keeping freed memory."""
    extra = ("--keep-freed-memory",) if tuned else ()
    name = f"{backend}{', tuned malloc' if tuned else ''}"
    return Side(name, python, (_PEER_SCRIPT, backend, *extra))


def environment(threads: int) -> dict[str, str]:
    """Environment of a process of either code with a number of threads."""
    number = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "DP_INTRA_OP_PARALLELISM_THREADS": number,
        "DP_INTER_OP_PARALLELISM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


class Worker:
    """A running worker; a context manager that ends it.

    Parameters
    ----------
    side
        Code and setting.
    threads
        Threads of torch and OpenMP.
    folder
        Where it runs: DeePMD-kit writes files into its working directory.
    """

    def __init__(self, side: Side, threads: int, folder: Path) -> None:
        self.side = side
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / f"{side.name.replace(' ', '-').replace(',', '')}.log").open("a")
        self._process = subprocess.Popen(
            [side.python, *side.arguments], env=environment(threads), cwd=folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.facts = self.ask("hello", limit=300)

    def _listen(self) -> None:
        if self._process.stdout is not None:
            for text in self._process.stdout:
                self._lines.put(text)
        self._lines.put("")

    def ask(self, do: str, *, limit: float = 3600, **keys: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises
        ------
        WorkerError
            It failed, took longer than `limit` seconds, ended, or left too little memory.
        """
        if self._process.stdin is None or self._process.poll() is not None:
            raise WorkerError("the process has ended")
        self._process.stdin.write(json.dumps({"do": do, **keys}) + "\n")
        self._process.stdin.flush()
        began = time.monotonic()
        answer: dict[str, Any] = json.loads(self._wait(limit))
        took = time.monotonic() - began
        if took > _WORTH_A_LINE or do in ("train", "load"):
            log.info("%7.1f s  %s: %s", took, self.side.name, do)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _wait(self, limit: float) -> str:
        began = time.monotonic()
        while True:
            try:
                text = self._lines.get(timeout=0.2)
            except queue.Empty:
                text = None
            if text:
                return text
            if text == "":
                raise WorkerError(f"the process ended with status {self._process.wait()}")
            if time.monotonic() - began > limit:
                self.close()
                raise WorkerError(f"not done after {limit:.0f} s")
            memory = psutil.virtual_memory()
            if memory.available < _LEAST_FREE * memory.total:
                self.close()
                raise WorkerError(f"does not fit into {memory.total / 2**30:.0f} GiB")

    def cpu_seconds(self) -> float:
        """Processor time that the worker and the processes it started have used."""
        try:
            me = psutil.Process(self._process.pid)
            family = [me, *me.children(recursive=True)]
            return float(sum(sum(p.cpu_times()[:2]) for p in family))
        except psutil.NoSuchProcess as error:
            raise WorkerError("the process has ended") from error

    def close(self) -> None:
        """End the process and those it started."""
        if self._process.poll() is None:
            try:
                family = psutil.Process(self._process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                family = []
            self._process.kill()
            for child in family:
                try:
                    child.kill()
                except psutil.NoSuchProcess:
                    continue
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
