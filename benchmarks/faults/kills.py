"""Run a loop and kill -9 what it consists of at random moments, until it is through."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil
from compare import labels

HANG = 300.0
"""Seconds after which a run that was hit must have ended."""
LATEST, SOON = 10.0, 1.5
"""Longest delay of a kill, in seconds: usually, and where more steps are done than kills."""
EARLY = 0.2
"""Share of the kills whose delay counts from the start, not from the first step at work."""
PATIENCE = 5
"""Problems after which going on is pointless."""
Launch = Callable[[list[str], IO[str]], subprocess.Popen[str]]


class Kill(NamedTuple):
    """One kill.

    Attributes
    ----------
    victim
        main, master, worker, step (dflow's script of a step), child (the step's function), all.
    steps
        Steps that were at work.
    after
        Seconds from the start of `dpaflow` to the kill.
    ended
        Seconds from the kill to the end of `dpaflow`.
    waited
        Whether the next start waited for everything that was left.
    done
        Steps that had succeeded.
    labels
        Labels in the store.
    """

    victim: str
    steps: list[str]
    after: float
    ended: float
    waited: bool
    done: int
    labels: int


class Killer:
    """Starts, kills and resumes one run.

    Parameters
    ----------
    run
        Folder of the run.
    launch
        Starts `dpaflow` with the given arguments and output.
    first
        Arguments of the first start; later ones resume.
    log
        Receives what dpaflow says.
    rng
        Draws moments and victims.
    """

    def __init__(
        self, run: Path, launch: Launch, first: list[str], log: Path, rng: random.Random
    ) -> None:
        self.run, self.launch, self.first, self.log, self.rng = run, launch, first, log, rng
        self.kills: list[Kill] = []
        self.problems: list[str] = []
        self.known: dict[str, str] = {}

    def go(self, count: int, steps: int) -> None:
        """Kill `count` times while a loop of `steps` steps goes on, then let it finish."""
        while len(self.kills) < count:
            process, left = self._start(), []
            begin = time.monotonic()
            self._wait(process, steps * len(self.kills) // count)
            if process.poll() is None:
                left = self._kill(process, time.monotonic() - begin)
            elif process.returncode == 0:
                break
            else:
                self.problems.append(f"ended with {process.returncode} although nothing was killed")
                if len(self.problems) > PATIENCE:
                    return
            if self.kills and self.kills[-1].waited:
                psutil.wait_procs(left, timeout=HANG)
            self._check_labels()
        self._finish()

    def _start(self) -> subprocess.Popen[str]:
        arguments = (
            ["resume", str(self.run)] if (self.run / "pipeline.yaml").exists() else self.first
        )
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(f"=== after {len(self.kills)} kills: dpaflow {arguments[0]}\n")
            stream.flush()
            return self.launch(arguments, stream)

    def _wait(self, process: subprocess.Popen[str], due: int) -> None:
        """Wait for a random moment: after the start, more often after the start of a step.

        `due` steps have to be done before, so that the kills are spread over the whole loop.
        """
        early = self.rng.random() < EARLY and at_work(self.run)[1] >= due
        limit = time.monotonic() + (0.0 if early else HANG)
        while process.poll() is None and time.monotonic() < limit:
            busy, done = at_work(self.run)
            if busy and done >= due:
                break
            time.sleep(0.1)
        ahead = at_work(self.run)[1] > due + 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.uniform(0.2, SOON if ahead else LATEST))

    def _kill(self, process: subprocess.Popen[str], delay: float) -> list[psutil.Process]:
        """Kill one victim (or all) and wait for the end of the main process; return the rest."""
        main = psutil.Process(process.pid)
        everyone = tree(main)
        victim = self.rng.choice([*everyone, "all"])
        chosen = [self.rng.choice(everyone[victim])] if victim != "all" else flat(everyone)
        steps, done = started(everyone), at_work(self.run)[1]
        begin = time.monotonic()
        for target in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                target.kill()
        try:
            code = process.wait(HANG)
        except subprocess.TimeoutExpired:
            self.problems.append(f"hangs for {HANG:.0f} s after {victim} was killed in {steps}")
            process.kill()
            code = process.wait()
        if code == 0 and victim != "main":
            return []  # it had just ended, or the victim had: no kill
        kill = Kill(victim, steps, round(delay, 2), round(time.monotonic() - begin, 2),
                    self.rng.random() < 0.5, done, len(labels(self.run)))  # fmt: skip
        self.kills.append(kill)
        with self.log.with_suffix(".jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(kill._asdict()) + "\n")
        return flat(everyone)

    def _check_labels(self) -> None:
        now = labels(self.run)
        for name, value in self.known.items():
            if now.get(name) != value:
                self.problems.append(f"label {name} was lost or changed")
        self.known = now

    def _finish(self) -> None:
        process = self._start()
        code = process.wait()
        if code != 0:
            self.problems.append(f"the last start ended with {code}")
        self._check_labels()
        # of dflow, whose log is quoted with bars, it may: somebody killed its processes
        lines = self.log.read_text(encoding="utf-8").splitlines()
        if any(line.startswith("Traceback") for line in lines):
            self.problems.append(f"dpaflow ended with a traceback, see {self.log}")


def tree(main: psutil.Process) -> dict[str, list[psutil.Process]]:
    """Return the processes of a run by what they are."""
    found: dict[str, list[psutil.Process]] = {"main": [main]}
    for process in main.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "ops.run" in command:
                kind = "child"
            elif "workflows.backends.master" in command:
                kind = "master" if process.ppid() == main.pid else "worker"
            elif command and command[-1].endswith("/script"):
                kind = "step"
            else:
                continue
            found.setdefault(kind, []).append(process)
    return found


def flat(everyone: dict[str, list[psutil.Process]]) -> list[psutil.Process]:
    return [process for group in everyone.values() for process in group]


def started(everyone: dict[str, list[psutil.Process]]) -> list[str]:
    """Return the steps that have a process, whether or not they have said so yet."""
    keys = []
    for process in everyone.get("step", []):
        with contextlib.suppress(psutil.Error):
            keys.append(Path(process.cmdline()[-1]).parent.name)
    return sorted(keys)


def at_work(run: Path) -> tuple[list[str], int]:
    """Return the steps whose process is alive, and how many have succeeded."""
    states = list(_states(run))
    busy = [s["key"] for s in states if s["state"] == "running" and psutil.pid_exists(s["pid"])]
    return busy, sum(s["state"] == "succeeded" for s in states)


def _states(run: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((run / "steps").glob("*/status.json")):
        with contextlib.suppress(FileNotFoundError):
            yield json.loads(path.read_text(encoding="utf-8"))
