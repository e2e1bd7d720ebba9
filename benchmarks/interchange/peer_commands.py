"""Runs `dp` commands in one process and asks files for numbers; for `commands.py`.

    python benchmarks/interchange/peer_commands.py FOLDER

FOLDER/commands.json is a list of {"name", "dp": [arguments]} and {"name", "ask": file, "head",
"questions"}; FOLDER/answers.json says what came out. Needs deepmd-kit 3.2.0 and nothing of
dpaflow.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import deepmd
import torch
from deepmd.infer import DeepPot
from deepmd.main import main as dp
from peer_side import ask_pot, guarded


def run(task: dict[str, Any]) -> Any:
    if "dp" in task:
        dp(task["dp"])
        return {}
    options = task.get("options", {})
    if task["ask"].endswith(".pt"):
        options |= {"no_jit": True}
    pot = DeepPot(task["ask"], head=task.get("head"), **options)
    return {
        name: guarded(lambda a=asked: ask_pot(pot, a)) for name, asked in task["questions"].items()
    }


def main(folder: Path) -> None:
    os.chdir(folder)
    answers: dict[str, Any] = {}
    for task in json.loads(Path("commands.json").read_text()):
        print(task["name"], file=sys.stderr, flush=True)
        try:
            answers[task["name"]] = run(task)
        except (Exception, SystemExit) as error:  # noqa: BLE001 reported in the table
            Path(f"{task['name']}.log").write_text(traceback.format_exc())
            text = " ".join(str(error).split())[:300]
            answers[task["name"]] = {"error": f"{type(error).__name__}: {text}"}
    answers["code"] = f"deepmd-kit {deepmd.__version__}, torch {torch.__version__}"
    Path("answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
