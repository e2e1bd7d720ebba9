"""Energy conservation of every way to evaluate a model, judged by torch in float64.

    python -m benchmarks.nve [--data FOLDER] [--steps 10000] [--outdir runs/nve]

Trains a small DPA-1 model with attention on water and one on an alloy, thermalises, and runs NVE
dynamics from the same positions and velocities with every variant of systems.py, one after the
other, one thread each: about 45 minutes. What is finished is kept in the output folder, so an
interrupted run goes on where it was. Writes results.{json,md,png}; exit code 1 if a bound of
report.py is violated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.nve import report
from benchmarks.nve.files import load_series, model_file, series_file, start_file
from benchmarks.nve.systems import SYSTEMS, VARIANTS

ROOT = Path(__file__).resolve().parents[2]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nve")
    shared = Path(os.environ.get("DPAFLOW_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of data sets")
    parser.add_argument("--steps", type=int, default=10_000, help="of every variant")
    parser.add_argument("--outdir", type=Path, default=Path("runs/nve"), help="models and runs")
    parser.add_argument("--results", type=Path, help="folder of results.*; default: OUTDIR")
    return parser.parse_args()


def main() -> int:
    given = options()
    if given.steps < report.FEWEST_STEPS:
        print(f"--steps is {given.steps}; a drift needs at least {report.FEWEST_STEPS}")
        return 2
    began = time.monotonic()
    for system in SYSTEMS:
        folder = given.outdir / system
        model, start = model_file(folder), start_file(folder)
        _work(system, "train", given)  # returns at once when finished
        if not _fresh(start, model):
            _work(system, "start", given)
        for variant in VARIANTS:
            if not _fresh(series_file(folder, variant, given.steps), model, start):
                print(f"{time.monotonic() - began:6.0f} s  {system}, {variant}", flush=True)
                _work(system, variant, given)
    runs: report.Runs = {}
    for system in SYSTEMS:
        files = {v: series_file(given.outdir / system, v, given.steps) for v in VARIANTS}
        runs[system] = {v: load_series(path) for v, path in files.items()}
    text, violated = report.write(runs, given.results or given.outdir)
    print(text)
    return 1 if violated else 0


def _fresh(path: Path, *sources: Path) -> bool:
    """Whether a file exists and is not older than what it was made from."""
    if not path.exists():
        return False
    return all(path.stat().st_mtime >= source.stat().st_mtime for source in sources)


def _work(system: str, task: str, given: argparse.Namespace) -> None:
    """Run a task in a process of its own with one thread."""
    command = [
        sys.executable, "-m", "benchmarks.nve.worker", system, task, "--steps", str(given.steps),
        "--data", str(given.data.resolve()), "--outdir", str(given.outdir.resolve()),
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=env)


if __name__ == "__main__":
    sys.exit(main())
