"""Concurrent learning in hindsight: a pool of labelled frames whose labels are hidden until asked.

A committee (heads on one descriptor) is trained on a few frames of nbmotaw, looks at the rest
of the pool, and asks for the labels it needs most; then it is trained again on all it has.
Every strategy starts from the same frames; `random` draws, and `all` is trained on the whole
pool. No orchestrator: this is a plain loop made of dpaflow's functions.

    python examples/concurrent_learning/replay_nbmotaw.py --data ../shared/data/nbmotaw/mixed

It can be stopped at any time and goes on where it was. Results: replay.json, replay-TEST.png.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpa_core.committee import Committee, deviation
from dpa_core.data import Dataset, open_dataset, write_mixed
from ops.files import read_json, write_json
from ops.plots import efficiency_figure, png
from ops.select import SelectSettings, trust
from ops.selection.choice import choose_frames
from ops.train import RunTrainConfig, TrainInputs, run_train

TYPE_MAP = ("Nb", "Mo", "Ta", "W")
POOL = ("train/unary", "train/binary")
TESTS = ("unary", "binary", "quaternary")
CANDIDATES = 4
"""Candidates for one chosen frame: those of largest deviation, of which diverse ones are chosen."""
DIVERSITY = {"committee + farthest": "farthest", "committee + entropy": "entropy",
             "committee alone": "top"}  # fmt: skip
MODEL = {
    "type_map": TYPE_MAP,
    "heads": 4,
    "descriptor": {"type": "dpa1", "rcut": 5.0, "rcut_smth": 0.5, "sel": 80, "attn_layer": 0,
                   "neuron": [10, 20, 40], "axis_neuron": 8},
    "fitting_net": {"neuron": [64, 64, 64]},
}  # fmt: skip
LOSS = {"start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 1,
        "start_pref_v": 0.1, "limit_pref_v": 1}  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="nbmotaw/mixed")
    parser.add_argument("--out", type=Path, default=Path("runs/replay-nbmotaw"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 400, 800],
                        help="labelled frames after each round")  # fmt: skip
    parser.add_argument("--steps", type=int, default=4000, help="training steps, the same for all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--strategies", nargs="+", choices=["random", *DIVERSITY],
                        default=["random", "committee + farthest"])  # fmt: skip
    parser.add_argument("--pool", type=int, help="use only so many frames of the pool")
    return parser.parse_args()


def train(data: Dataset, chosen: list[int], seed: int, steps: int, folder: Path) -> Path:
    """Train a committee on the chosen frames, or take the one that is there."""
    if (folder / "train" / "run.json").exists():
        return folder / "train" / read_json(folder / "train" / "run.json")["model"]
    if not (folder / "frames").exists():
        write_mixed((data[k] for k in chosen), TYPE_MAP, folder / "frames")
    config = RunTrainConfig.model_validate({
        "model": MODEL,
        "loss": LOSS,
        "learning_rate": {"type": "exp", "start_lr": 2e-3, "stop_lr": 1e-5, "smooth": True},
        "training": {"training_data": {"batch_size": "auto:128"}, "numb_steps": steps,
                     "seed": seed, "save_freq": 500, "gradient_max_norm": 100.0},
    })  # fmt: skip
    model = run_train(TrainInputs(train=[folder / "frames"]), config, folder / "train").model
    print(f"trained {folder}", flush=True)
    return model


def errors(committee: Committee, data: Dataset) -> dict[str, float]:
    """Errors of the committee's mean: rmse_e, eV/atom, and rmse_f, eV/Å."""
    frames = [data[k] for k in range(len(data))]
    found = committee.predict(frames)
    energy = (found.energy.mean(axis=0) - [f.energy for f in frames]) / found.natoms
    force = [(f.mean(axis=0) - x.force).ravel() for f, x in zip(found.force, frames, strict=True)]
    return {
        "rmse_e": float(np.sqrt(np.mean(energy**2))),
        "rmse_f": float(np.sqrt(np.mean(np.concatenate(force) ** 2))),
    }


def ask(
    committee: Committee, pool: Dataset, known: list[int], number: int, strategy: str, seed: int
) -> list[int]:
    """Choose `number` frames of the pool whose labels are still hidden."""
    hidden = np.setdiff1d(np.arange(len(pool)), known)
    values = np.concatenate([
        deviation(committee.predict([pool[int(k)] for k in some])).max_devi_f
        for some in np.array_split(hidden, -(-len(hidden) // 100))
    ])  # fmt: skip
    settings = SelectSettings(
        hi=1e6,
        adaptive={"fraction": 0.0, "count": CANDIDATES * number},
        diversity=DIVERSITY[strategy],
        max_candidates=number,
        min_new=0.0,
    )
    levels, _ = trust(values, settings, [])
    candidates = np.flatnonzero(levels.candidate)
    choice = choose_frames(pool.subset(hidden[candidates]), values[candidates],
                           pool.subset(known), committee.describe, settings,
                           np.random.default_rng(seed))  # fmt: skip
    return [int(k) for k in hidden[candidates[choice.chosen]]]


def curve(
    strategy: str, seed: int, pool: Dataset, tests: dict[str, Dataset], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Go through all sizes with one strategy and one seed."""
    order = np.random.default_rng(seed).permutation(len(pool)).tolist()
    known: list[int] = []
    rows, committee = [], None
    for number in [len(pool)] if strategy == "all" else args.sizes:
        # all strategies share their start
        name = "start" if strategy != "all" and number == args.sizes[0] else strategy
        folder = args.out / f"seed-{seed}" / name.replace(" ", "") / f"n-{number:05d}"
        if (folder / "chosen.json").exists():
            known = read_json(folder / "chosen.json")
        elif committee is None or strategy == "random":
            known = order[:number]
        else:
            known = known + ask(committee, pool, known, number - len(known), strategy, seed)
        write_json(folder / "chosen.json", known)
        committee = Committee.load([train(pool, known, seed, args.steps, folder)])
        if not (folder / "errors.json").exists():
            found = {test: errors(committee, data) for test, data in tests.items()}
            write_json(folder / "errors.json", found)
        rows.append({"strategy": strategy, "seed": seed, "frames": len(known),
                     "errors": read_json(folder / "errors.json")})  # fmt: skip
    return rows


def draw(rows: list[dict[str, Any]], test: str, path: Path) -> None:
    panels: dict[str, Any] = {}
    for key in ("rmse_e", "rmse_f"):
        kinds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            whole = row["strategy"] == "all"
            kind = f"all {row['frames']} frames" if whole else row["strategy"]
            kinds[kind][0 if whole else row["frames"]].append(row["errors"][test][key])
        panels[key] = kinds
    path.write_bytes(png(efficiency_figure(panels, f"nbmotaw, test {test}")))


def main() -> None:
    args = options()
    torch.set_num_threads(1)
    pool = open_dataset([args.data / part for part in POOL], TYPE_MAP)
    if args.pool:
        pool = pool.subset(np.random.default_rng(0).permutation(len(pool))[: args.pool])
    tests = {name: open_dataset([args.data / "test" / name], TYPE_MAP) for name in TESTS}
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for strategy in (*args.strategies, "all"):
            rows += curve(strategy, seed, pool, tests, args)
            write_json(args.out / "replay.json", {"version": 1, "steps": args.steps, "rows": rows})
            for test in tests:
                draw(rows, test, args.out / f"replay-{test}.png")
    for row in rows:
        told = ", ".join(
            f"{test} {1000 * e['rmse_e']:.1f} meV/atom {1000 * e['rmse_f']:.0f} meV/Å"
            for test, e in row["errors"].items()
        )
        print(f"{row['strategy']}, seed {row['seed']}, {row['frames']} frames: {told}")


if __name__ == "__main__":
    main()
