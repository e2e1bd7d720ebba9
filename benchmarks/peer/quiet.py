"""Whether other programs had the processor while a turn was timed, and turns that are repeated.

Two threads that wait for each other lose ten times their speed to one other busy program, so a
time without this number says nothing on a machine that is shared.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import psutil

from benchmarks.peer.process import Worker

# A turn takes about so long where steps are short, and at most so many steps. A code that has been
# idle needs a few tens of milliseconds to be as fast as in a long run.
_TURN, _TURN_STEPS = 0.6, 40
DISTURBED = 0.15
"""Cores: what others may use during a turn that counts as quiet."""


class Turn(NamedTuple):
    """One turn of one code.

    Attributes
    ----------
    seconds
        Median step, wall time.
    cpu
        Processor time of a step, all threads.
    others
        Cores that other programs used meanwhile.
    """

    seconds: float
    cpu: float
    others: float


class Patience:
    """What may be spent on turns that other programs disturb.

    Parameters
    ----------
    seconds
        Of waiting and repeating, all turns of a case together.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def wait(self) -> bool:
        """Wait for a second in which nobody works; False when patience has come to its end."""
        while self._left > 0:
            before = _busy()
            time.sleep(1)
            self._left -= 1
            if _busy() - before <= DISTURBED:
                return True
        return False


def take_turn(worker: Worker, command: str, patience: Patience) -> Turn:
    """Take a turn, another if others disturbed it and come to rest; the quietest counts."""
    best = _turn(worker, command)
    while best.others > DISTURBED and patience.wait():
        best = min(best, _turn(worker, command), key=lambda turn: turn.others)
    return best


def _turn(worker: Worker, command: str) -> Turn:
    times = max(1, min(_TURN_STEPS, round(_TURN / worker.facts["last"])))
    busy, own, began = _busy(), worker.cpu_seconds(), time.monotonic()
    seconds = worker.ask(command, times=times)["seconds"]
    wall = time.monotonic() - began
    cpu = worker.cpu_seconds() - own
    others = max(0.0, _busy() - busy - cpu) / wall
    return Turn(float(statistics.median(seconds)), cpu / times, others)


def _busy() -> float:
    """Processor seconds that all programs of the machine have used."""
    t = psutil.cpu_times()
    return float(t.user + t.system + t.nice + getattr(t, "irq", 0) + getattr(t, "softirq", 0))
