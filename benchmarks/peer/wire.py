"""What both workers share: JSON lines with the driver, memory, malloc; standard library only.

A worker reads one request a line from its standard input, `{"do": NAME, ...}`, and answers with
one line; what the codes print goes to standard error. `our_worker.py` runs in dpaflow's Python,
`peer_worker.py` in DeePMD-kit's.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Answer = dict[str, Any]


class Line:
    """The worker's end of the connection.

    Takes file descriptor 1 for itself, so that nothing else gets between the answers.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def read(self) -> Request:
        """Next request; the process ends with `quit` or when the driver is gone."""
        text = sys.stdin.readline()
        request: Request = json.loads(text) if text else {"do": "quit"}
        if request["do"] == "quit":
            sys.stderr.flush()
            os._exit(0)  # the peer's loader processes are daemons; nothing is to be saved
        return request

    def write(self, answer: Answer) -> None:
        """Send an answer."""
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()


def serve(line: Line, commands: dict[str, Callable[[Request], Answer]]) -> None:
    """Answer requests until the driver says quit; an exception is an answer, too."""
    while True:
        request = line.read()
        try:
            answer = commands[request["do"]](request)
        except (Exception, SystemExit) as error:  # noqa: BLE001 reported in the table
            traceback.print_exc()
            # TorchScript says the cause in the last line, behind a page of its own code.
            cause = (str(error).strip().splitlines() or [""])[-1]
            answer = {"error": f"{type(error).__name__}: {cause[:300]}"}
        line.write(answer)


def memory(field: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" at its peak; 0 where there is no /proc."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: no allocation is mapped, none is returned.

    Stronger than raising M_MMAP_THRESHOLD, which glibc bounds at 32 MiB.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def timed(work: Callable[[], Any], times: int) -> tuple[list[float], Any]:
    """Seconds of each call, and what the last one returned."""
    seconds, result = [], None
    for _ in range(times):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return seconds, result
