"""Measures one case: opens the workers, lets them alternate, collects times and memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peer.cases import Case, deepmd_input
from benchmarks.peer.contest import Maker, Times, contest, fastest, started, with_error
from benchmarks.peer.data import write_cell, write_system
from benchmarks.peer.process import OURS, Side, Worker, WorkerError, environment, peer_side
from benchmarks.peer.quiet import Patience

_START_FRAMES = 80
# Batches are more than the steps of a case, which are fewer where steps take longer.
_BATCHES, _BATCH_ATOMS = 60, 50_000
SUFFIXES = {"pt": ".pth", "pt-expt": ".pte"}
"""Frozen models of the peer's backends."""


class Settings(NamedTuple):
    """How thoroughly to measure.

    Attributes
    ----------
    peer
        Python of DeePMD-kit's environment; empty: dpaflow alone.
    data
        Folder of the data sets.
    turns
        Turns of every code; the median over them is reported.
    backends
        Candidates for the tuned peer.
    patience
        With turns that other programs disturb.
    folder
        For temporary files.
    """

    peer: str
    data: Path
    turns: int
    backends: tuple[str, ...]
    patience: Patience
    folder: Path


def measure(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Return the records of a case: one, or one for every size."""
    kinds = {
        "train": train, "evaluate": evaluate, "start": start,
        "committee": committee, "large": evaluate,
    }  # fmt: skip
    settings.folder.mkdir(parents=True)
    return kinds[case.kind](case, settings)


def record(case: Case, sides: dict[str, Times], *, atoms: int, name: str = "") -> dict[str, Any]:
    """Make what results.json keeps of a comparison."""
    head = case._asdict() | {"name": name or case.name, "atoms": atoms, "alone": case.alone}
    del head["seconds"], head["sizes"]
    return head | {"sides": sides}


def prepare(
    case: Case, settings: Settings, frames: int, *, batch: int = 0, steps: int | None = None
) -> Path:
    """Write the frames and the input file of a case; return the input file.

    DeePMD-kit forks new loading processes whenever it has been through its data, which costs
    seconds. So each batch, of the same frames, is a system of its own, and there are many.
    """
    systems = [settings.folder / "system"]
    type_map = write_system(settings.data, case.data, frames, systems[0])
    if not batch:
        batches = min(_BATCHES, _BATCH_ATOMS // case.atoms)
        systems += [settings.folder / f"system{k}" for k in range(1, batches)]
        for copy in systems[1:]:
            copy.symlink_to(systems[0])
    content = deepmd_input(case, type_map, [*map(str, systems)], batch or frames, steps=steps)
    path = settings.folder / "input.json"
    path.write_text(json.dumps(content))
    return path


def tuned_sides(settings: Settings, backends: tuple[str, ...]) -> list[Side]:
    """Candidates for the peer at its best."""
    return [peer_side(settings.peer, backend, tuned=True) for backend in backends]


def train(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Complete optimizer steps on one batch."""
    source, folder = prepare(case, settings, case.sizes[0]), settings.folder
    model = str(folder / "model.dp")

    def opened(side: Side) -> Worker:
        worker = Worker(side, case.threads, folder / side.name.replace(", ", "-").replace(" ", "-"))
        out = str(folder / "run")
        more = {"out": out, "model": model} if side is OURS else {"model": model}
        return started(worker, "steps", "train", input=str(source), **more)

    makers: dict[str, Maker] = {"dpaflow": partial(opened, OURS)}
    if settings.peer:
        makers["peer"] = partial(opened, peer_side(settings.peer, "pt", tuned=False))
        best = [partial(opened, side) for side in tuned_sides(settings, settings.backends)]
        makers["tuned"] = partial(fastest, best, "steps", settings.patience)
    times = contest(makers, "steps", settings.turns, settings.patience, alternating=not case.alone)
    return [record(case, times, atoms=case.atoms)]


def evaluate(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Energy, force and virial of cells, every size and code in a process of its own."""
    folder = settings.folder
    model, frozen = _model_files(case, settings)
    if case.kind == "large":
        settings = settings._replace(turns=1)
    records = []
    for k, copies in enumerate(case.sizes):
        cell = folder / f"cell{k}.npz"
        atoms = write_cell(settings.data, case.data, copies, cell)

        def opened(side: Side, file: Path, cell: Path = cell) -> Worker:
            worker = Worker(side, case.threads, folder / "work")
            keys: dict[str, Any] = {"model": str(model), "frozen": str(file), "file": str(cell)}
            return started(worker, "evaluate", "load", "system", **keys)

        makers: dict[str, Maker] = {"dpaflow": partial(opened, OURS, model)}
        if frozen:
            user = peer_side(settings.peer, "pt", tuned=False)
            makers["peer"] = partial(opened, user, frozen["pt"])
            tuned = {s: frozen[s.arguments[1]] for s in tuned_sides(settings, tuple(frozen))}
            best = [partial(opened, side, file) for side, file in tuned.items()]
            makers["tuned"] = partial(fastest, best, "evaluate", settings.patience)
        times = contest(
            makers, "evaluate", settings.turns, settings.patience, alternating=not case.alone
        )
        sized = case._replace(sizes=(copies,))
        records.append(record(case, times, atoms=atoms, name=sized.name))
    return records


def _model_files(case: Case, settings: Settings) -> tuple[Path, dict[str, Path]]:
    """Our initial model as a file, and the peer's frozen ones of it by backend."""
    source, folder = prepare(case, settings, 1), settings.folder
    model, frozen = folder / "model.dp", {}
    keys: dict[str, Any] = {"input": str(source), "out": str(folder / "run"), "model": str(model)}
    with Worker(OURS, case.threads, folder / "work") as worker:
        worker.ask("train", **keys)
    if not settings.peer or case.kind != "evaluate":
        return model, {}
    for backend, suffix in SUFFIXES.items():
        if backend in settings.backends:
            path = folder / f"frozen{suffix}"
            side = peer_side(settings.peer, backend, tuned=False)
            with Worker(side, case.threads, folder / "work") as worker:
                worker.ask("freeze", model=str(model), frozen=str(path))
            frozen[backend] = path
    return model, frozen


def committee(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Four heads against one model, dpaflow alone: a training step, and all heads' forces."""
    source, folder = prepare(case, settings, case.sizes[0]), settings.folder
    cell, model = folder / "cell.npz", folder / "model.dp"
    write_cell(settings.data, case.data, (2, 2, 1), cell)

    def training(heads: int) -> Worker:
        worker = Worker(OURS, case.threads, folder / "work")
        keys: dict[str, Any] = {"out": str(folder / f"run{heads}"), "heads": heads}
        if heads == 1:
            keys["model"] = str(model)
        return started(worker, "steps", "train", input=str(source), **keys)

    def asked(heads: int) -> Worker:
        worker = Worker(OURS, case.threads, folder / "work")
        keys = {"model": str(model), "heads": heads, "file": str(cell)}
        return started(worker, "committee", "load", "system", **keys)

    found = []
    for what, command, make in (("train", "steps", training), ("all heads", "committee", asked)):
        makers: dict[str, Maker] = {
            f"{heads} head{'s' * (heads > 1)}": partial(make, heads) for heads in (1, 4)
        }
        times = contest(makers, command, settings.turns, settings.patience, alternating=True)
        found.append(record(case, times, atoms=case.atoms, name=f"{case.name}, {what}"))
    return found


def start(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Seconds from the start of the command to the row of the first step in its log."""
    source, folder = prepare(case, settings, _START_FRAMES, batch=1, steps=1), settings.folder
    ours = [str(Path(sys.executable).with_name("dpaflow")), "model", "train", str(source)]
    commands = {"dpaflow": ([*ours, "--out", "."], "lcurve.csv")}
    if settings.peer:
        dp = str(Path(settings.peer).with_name("dp"))
        commands["peer"] = ([dp, "--pt", "train", str(source)], "lcurve.out")
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    times: dict[str, Times] = {}
    for turn in range(settings.turns):
        for name, (command, curve) in commands.items():
            place = folder / f"{name}{turn}"
            given = (command, place, curve, case.threads)
            with_error(name, times, lambda n, g: seconds[n].append(_first_row(*g)), name, given)
    for name in set(commands) - set(times):
        values = seconds[name]
        times[name] = {"seconds": statistics.median(values), "fastest": min(values),
                       "slowest": max(values), "turns": len(values), "side": name}  # fmt: skip
    return [record(case, times, atoms=case.atoms)]


def _first_row(command: list[str], folder: Path, curve: str, threads: int) -> float:
    """Run a training command; seconds until its learning curve has a row."""
    folder.mkdir()
    with (folder / "output.log").open("w") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment(threads), stdout=log, stderr=log
        )
        found = None
        while found is None and process.poll() is None:
            time.sleep(0.02)
            found = time.perf_counter() - began if _has_row(folder / curve) else None
        process.wait()
    if process.returncode != 0:
        raise WorkerError(f"{Path(command[0]).name} ended with status {process.returncode}")
    return time.perf_counter() - began if found is None else found


def _has_row(path: Path) -> bool:
    if not path.exists():
        return False
    rows = [line for line in path.read_text().splitlines() if line and line[0] not in "#s"]
    return bool(rows)
