"""Kill a loop at random moments, fill its disk, and compare with an undisturbed run.

    python benchmarks/faults/fault_test.py OUT [--kills 50] [--seed 1]

Runs `loop.yaml` (EMT labels, some of which fail, and trajectories that diverge) three times
into OUT: undisturbed, with kill -9 of its processes at random moments, and on a disk that
fills up again and again. Labels, data sets, choices, decisions and models must be the same,
byte by byte. A part whose results are in OUT is not run again. Linux; the full disk needs
`unshare` and user namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from compare import differences, quarantined, results
from full_disk import disk_part
from kills import Killer, at_work

HERE = Path(__file__).resolve().parent
PARTS = ("undisturbed", "kills", "disk")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--fillings", type=int, default=6, help="times that the disk is full")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for part in options.part or PARTS:
        path = out / f"{part}.json"
        if not path.exists():
            document = globals()[f"do_{part}"](out, options)
            path.write_text(json.dumps(document, indent=1) + "\n")
        document = json.loads(path.read_text())
        show(part, document)
        failed = failed or bool(document["problems"])
    print("FAILED" if failed else "all results are the same")
    return int(failed)


def do_undisturbed(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    make_inputs(out)
    run = out / "undisturbed"
    shutil.rmtree(run, ignore_errors=True)
    begin = time.monotonic()
    with (out / "undisturbed.log").open("w", encoding="utf-8") as log:
        code = launch(["run", str(out / "loop.yaml"), "--out", str(run)], log).wait()
    seconds = time.monotonic() - begin
    found = results(run)
    stopped = [t["stop"]["reason"] for p in sorted(run.glob("steps/*/explore.json"))
               for t in json.loads(p.read_text())["trajectories"] if t["stop"]]  # fmt: skip
    failures = quarantined(run)
    problems = [f"ended with {code}"] if code else []
    problems += [] if stopped else ["no trajectory diverged: the loop is too tame"]
    problems += [] if len(failures) > 1 else ["hardly a label failed: the loop is too tame"]
    figures = {
        "seconds": round(seconds, 1),
        "steps": at_work(run)[1],
        "labels": sum(name.startswith("label ") for name in found),
        "failed_labels": len(failures),
        "diverged_trajectories": dict(Counter(stopped)),
        "results_compared": len(found),
    }
    return {"problems": problems, "figures": figures, "results": found}


def do_kills(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    run = out / "killed"
    for path in (run, out / "killed.log", out / "killed.jsonl", out / "calls"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    before = json.loads((out / "undisturbed.json").read_text())
    first = ["run", str(out / "loop.yaml"), "--out", str(run)]
    killer = Killer(run, launch, first, out / "killed.log", random.Random(options.seed))
    begin = time.monotonic()
    killer.go(options.kills, before["figures"]["steps"])
    seconds = time.monotonic() - begin
    problems = [*killer.problems, *differences(before["results"], results(run))]
    if len(killer.kills) < options.kills:
        problems.append(f"the loop was through after {len(killer.kills)} kills")
    steps = Counter(_kind(s) for kill in killer.kills for s in kill.steps or ["between steps"])
    figures = {
        "kills": len(killer.kills),
        "by_victim": dict(Counter(kill.victim for kill in killer.kills).most_common()),
        "by_step_at_work": dict(steps.most_common()),
        "steps_done_at_each_kill": " ".join(str(kill.done) for kill in killer.kills),
        "seconds": round(seconds, 1),
        "seconds_to_end_after_a_kill": {
            "median": sorted(k.ended for k in killer.kills)[len(killer.kills) // 2],
            "largest": max(k.ended for k in killer.kills),
        },
        "resumed_while_processes_were_left": sum(not k.waited for k in killer.kills),
    }
    return {"problems": problems, "figures": figures}


def do_disk(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the disk part in a mount namespace of its own, where anybody may mount."""
    if os.environ.get("FAULTS_NAMESPACE"):
        before = json.loads((out / "undisturbed.json").read_text())
        return disk_part(out, launch, before, options.fillings, options.seed)
    command = [sys.executable, __file__, str(out), "--part", "disk", "--seed", str(options.seed)]
    command += ["--fillings", str(options.fillings)]
    try:
        test = ["unshare", "--map-root-user", "--mount", "true"]
        subprocess.run(test, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return {"problems": [], "figures": {"skipped": f"no mount namespace: {error}"}}
    environment = {**os.environ, "FAULTS_NAMESPACE": "1"}
    subprocess.run([*test[:-1], *command], env=environment, stdout=subprocess.DEVNULL, check=False)
    if not (out / "disk.json").exists():
        return {"problems": ["the part with the full disk broke down"], "figures": {}}
    return dict(json.loads((out / "disk.json").read_text()))


def make_inputs(out: Path) -> None:
    """Write the pipeline and the data set that the committee is tested on."""
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.io import write

    frames = []
    for seed in range(4):
        atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
        atoms.symbols[[1, 2]] = "Au"
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(atoms)
    write(out / "hot.extxyz", frames)
    shutil.copyfile(HERE / "loop.yaml", out / "loop.yaml")


def launch(arguments: list[str], output: IO[str]) -> subprocess.Popen[str]:
    """Start dpaflow, one thread everywhere, with the faulty calculator in reach."""
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "workflows.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def show(part: str, document: dict[str, Any]) -> None:
    print(f"--- {part}")
    for name, value in document["figures"].items():
        print(f"{name.replace('_', ' ')}: {value}")
    for problem in document["problems"]:
        print(f"PROBLEM {problem}")
    sys.stdout.flush()


def _kind(step: str) -> str:
    """Return the kind of a step: train for iter-000001-train-m0."""
    words = step.removeprefix("init-").removeprefix("final-").split("-")
    return words[2] if words[0] == "iter" else words[0]


if __name__ == "__main__":
    sys.exit(main())
