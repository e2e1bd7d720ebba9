"""Step folders of a loop, faked file by file as the steps write them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

START = datetime(2026, 1, 1, tzinfo=UTC)


def write(path: Path, document) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def status(folder: Path, start: float, elapsed: float, state="succeeded", **more) -> None:
    """Write a status.json; `start` in seconds after START."""
    started = (START + timedelta(seconds=start)).isoformat(timespec="seconds")
    entry = {"key": folder.name, "op": "x", "state": state, "started": started,
             "elapsed": elapsed, "attempts": 1, **more}  # fmt: skip
    write(folder / "status.json", entry)


def select_document(accurate=80, candidate=15, failed=5, selected=3, stage=0):
    frames = accurate + candidate + failed
    edges = np.geomspace(0.01, 1.0, 21)
    counts = np.random.default_rng(0).multinomial(frames, np.hanning(22)[1:-1] / 10.5)
    return {
        "version": 1, "stage": stage, "frames": frames, "accurate": accurate,
        "candidate": candidate, "failed": failed,
        "fractions": {"accurate": accurate / frames, "candidate": candidate / frames,
                      "failed": failed / frames},
        "lo": 0.05, "hi": 0.15, "rejected": {"distance": 2, "similar": 4}, "selected": selected,
        "deviation": {"mean": 0.061, "median": 0.05, "p95": 0.14, "max": 0.32},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()}, "converged": None,
        "frames_selected": [
            {"trajectory": f"iter-000000-explore-p0/trajectories/{k % 3:06d}", "frame": 7 + k,
             "max_devi_f": 0.06 + 0.02 * k}
            for k in range(selected)
        ],
    }  # fmt: skip


def trajectory(name, stop=None, **more):
    return {"name": name, "structure": "fcc-0003", "formula": "Al2Mg2", "natoms": 4,
            "ensemble": "nvt", "temperature": 600.0, "pressure": None, "steps": 400,
            "frames": 20, "stop": stop, "max_devi_f": 0.2, **more}  # fmt: skip


def row(iteration, **more):
    return {
        "iteration": iteration, "stage": 0, "stage_name": "warm", "explored": 100, "accurate": 80,
        "candidate": 15, "failed": 5, "selected": 3, "labelled": 2, "failed_labels": 1,
        "lo": 0.05, "hi": 0.15, "level_settled": None, "devi_f_mean": 0.061, "devi_f_max": 0.32,
        "stopped": 1, "train_frames": 40 + 2 * iteration, "rmse_f_new": 0.120,
        "rmse_e_new": 0.004, "rmse_f_after": None,
        "test": {"md": {"rmse_f": 0.0875, "rmse_e": 0.003}}, "verdict": "continue", "met": False,
        **more,
    }  # fmt: skip


def decision(rows, verdict="continue", **more):
    last = rows[-1]
    return {"version": 1, "iteration": last["iteration"], "stage": last["stage"],
            "next_stage": last["stage"], "verdict": verdict, "go": verdict == "continue",
            "message": "stage warm: 80.0% accurate, 95.0% wanted.", "advice": "", "rows": rows,
            **more}  # fmt: skip


def explore(folder: Path, part: int) -> None:
    stop = {"reason": "deviation", "step": 120, "message": "max_devi_f 1.3 > 1"}
    trajectories = [trajectory("000000"), trajectory("000002", stop)]
    if part:
        trajectories = [trajectory("000001", pressure=1.5)]
    write(folder / "explore.json",
          {"version": 1, "stage": 0, "trajectories": trajectories, "seconds": 10})  # fmt: skip


def label(folder: Path, state="failed") -> None:
    tasks = [
        {"name": "000000", "id": "aa" * 8, "state": "labelled", "attempts": 1, "reused": False,
         "seconds": 1.0, "reason": ""},
        {"name": "000001", "id": "bb" * 8, "state": state, "attempts": 2, "reused": False,
         "seconds": 1.0, "reason": "SCF <not> converged"},
        {"name": "000002", "id": "cc" * 8, "state": "labelled", "attempts": 1, "reused": True,
         "seconds": 0.0, "reason": ""},
    ]  # fmt: skip
    write(folder / "labels.json", {"version": 1, "tasks": tasks})


def write_test(folder: Path, models=("m0", "m1"), data=("new", "previous", "md")) -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(40, 3))
    results = []
    for m, model in enumerate(models):
        for k, name in enumerate(data):
            error = 0.05 + 0.01 * m + 0.1 * (k == 0)
            overall = {"nframes": 10, "rmse_e": 0.004, "rmse_f": error}
            results.append({"model": model, "data": name, "overall": overall, "systems": {},
                            "formulas": {}, "refit": None})  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
            predicted = reference + rng.normal(scale=error, size=reference.shape)
            np.savez(folder / f"{model}--{name}.npz", force_ref=reference, force_pred=predicted)
    write(folder / "results.json", {"version": 1, "units": {}, "results": results})


def train(folder: Path, frames=40) -> None:
    write(folder / "run.json", {
        "train_frames": frames, "valid_frames": 0, "finetuned": False, "seed": 0,
        "type_map": ["Al", "Mg"], "elements": ["Al", "Mg"], "architecture": "dpa1",
        "steps": 100, "seconds": 61.0, "model": "model.safetensors",
        "best": "model-best.safetensors", "metrics": {},
    })  # fmt: skip
    lines = ["step,lr,loss,rmse_e,rmse_f"]
    lines += [f"{s},1e-3,{9 / s},{0.1 / s},{1 / s**0.5}" for s in range(1, 101, 9)]
    (folder / "lcurve.csv").write_text("\n".join(lines) + "\n")


def collect(folder: Path) -> None:
    row = {"source": "all", "path": "", "files": 1, "found": 2, "kept": 2}
    write(folder / "collect.json", {
        "type_map": ["Al", "Mg"], "table": [{**row, "source": "group-0"}, row], "bad": [],
        "label_conflicts": {"count": 0},
    })  # fmt: skip


def iteration(steps: Path, number: int, rows=None, until="decide", offset=None) -> list[str]:
    """Write the folders of an iteration up to a step; return their names."""
    head = f"iter-{number:06d}"
    start = 1000.0 * number if offset is None else offset
    makers = {
        "train-m0": lambda f: train(f, 40 + 2 * number),
        "train-m1": lambda f: train(f, 40 + 2 * number),
        "explore-p0": lambda f: explore(f, 0),
        "explore-p1": lambda f: explore(f, 1),
        "select": lambda f: write(f / "select.json", select_document()),
        "label-g000": label,
        "collect": collect,
        "test": write_test,
        "decide": lambda f: write(f / "decision.json", decision(rows or [row(number)])),
    }
    done = []
    for k, (name, make) in enumerate(makers.items()):
        folder = steps / f"{head}-{name}"
        make(folder)
        # two parallel trainings overlap by half
        status(folder, start + (30 if name == "train-m1" else 100.0 * k), 60.0)
        done.append(folder.name)
        if name == until:
            break
    return done
