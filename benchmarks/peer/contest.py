"""Lets workers take turns at one command and collects times and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peer.process import OURS, Worker, WorkerError
from benchmarks.peer.quiet import Patience, Turn, take_turn

Times = dict[str, Any]
"""Of one code: median `seconds`, `fastest`, `slowest`, `turns`, memory, or `error`."""

Maker = Callable[[], Worker]

_WARM_CALLS, _LONG = 3, 20.0


def started(worker: Worker, command: str, *first: str, **keys: Any) -> Worker:
    """Prepare a worker with the commands `first` and warm it up; it is ended if that fails."""
    try:
        for name in first:
            worker.facts["built"] = worker.ask(name, **keys).get("seconds")
        answer = worker.ask(command, times=1)
        worker.facts |= {"first": answer["seconds"][0]} | _answer_of(answer)
        # TorchScript and compilers change the code in the first calls; a call of many seconds
        # is dominated by its operations.
        for _ in range(_WARM_CALLS):
            if answer["seconds"][0] < _LONG:
                answer = worker.ask(command, times=1)
        worker.facts["last"] = answer["seconds"][0]
    except WorkerError:
        worker.close()
        raise
    return worker


def _answer_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what shows that both codes compute the same: first loss, or energy and forces."""
    if "losses" in answer:
        return {"loss": answer["losses"][0]}
    return {k: answer[k] for k in ("energy", "force") if k in answer}


def fastest(makers: Sequence[Maker], command: str, patience: Patience) -> Worker:
    """Open workers one after another and keep the fastest.

    Raises
    ------
    WorkerError
        None of them works.
    """
    best, best_time = None, float("inf")
    tried: dict[str, float | str] = {}
    for number, make in enumerate(makers):
        try:
            worker = make()
            turn = take_turn(worker, command, patience) if len(makers) > 1 else None
        except WorkerError as error:
            tried[f"candidate {number + 1}"] = str(error)
            continue
        seconds = worker.facts["last"] if turn is None else turn.seconds
        tried[worker.side.name] = seconds
        if seconds >= best_time:
            worker.close()
            continue
        if best is not None:
            best.close()
        best, best_time = worker, seconds
    if best is None:
        raise WorkerError("; ".join(map(str, tried.values())) or "no backend to try")
    best.facts["tried"] = tried
    return best


def contest(
    makers: dict[str, Maker], command: str, turns: int, patience: Patience, *, alternating: bool
) -> dict[str, Times]:
    """Let the codes take turns, one by one if `alternating`, else each all of its own.

    Returns
    -------
    dict
        Times of each; `error` where it failed.
    """
    if alternating:
        return _alternate(makers, command, turns, patience)
    found: dict[str, Times] = {}
    for name, make in makers.items():
        found |= _alternate({name: make}, command, turns, patience)
    return found


def _alternate(
    makers: dict[str, Maker], command: str, number: int, patience: Patience
) -> dict[str, Times]:
    workers: dict[str, Worker] = {}
    turns: dict[str, list[Turn]] = {name: [] for name in makers}
    failed: dict[str, Times] = {}
    found: dict[str, Times] = {}
    try:
        for name, make in makers.items():
            with_error(name, failed, _open, workers, name, make)
        for _ in range(number):
            for name in [n for n in workers if n not in failed]:
                given = (workers[name], command, patience)
                with_error(name, failed, lambda n, g: turns[n].append(take_turn(*g)), name, given)
        for name in [n for n in workers if n not in failed]:
            with_error(name, failed, _finish, found, name, workers[name], turns[name])
    finally:
        for worker in workers.values():
            worker.close()
    return {name: (found | failed)[name] for name in makers}


def _open(workers: dict[str, Worker], name: str, make: Maker) -> None:
    workers[name] = make()


def _finish(found: dict[str, Times], name: str, worker: Worker, turns: list[Turn]) -> None:
    found[name] = _result(worker, turns)


def with_error(
    name: str, failed: dict[str, Times], work: Callable[..., object], *given: Any
) -> None:
    """Do the work; a failure is the result of this code, not the end of the comparison."""
    try:
        work(*given)
    except WorkerError as error:
        failed[name] = {"error": str(error)}


def _result(worker: Worker, turns: list[Turn]) -> Times:
    seconds = [turn.seconds for turn in turns]
    result = {
        "seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds),
        "cpu": statistics.median(turn.cpu for turn in turns),
        "others": statistics.median(turn.others for turn in turns),
        "turns": len(turns), "side": worker.side.name, **worker.facts, **worker.ask("memory"),
    }  # fmt: skip
    if worker.side is OURS and "loss" in result:
        cold = worker.ask("steps", times=3, cold=True)["seconds"]
        result["cold"] = statistics.median(cold)
    return result
