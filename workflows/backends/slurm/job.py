"""What a job runs: `python -m workflows.backends.slurm.job SCRIPT`, with dflow's SCRIPT of the OP.

The step's folder is claimed first, so that two jobs of one step never write into it. The lock of
`ops.base.run_step` cannot see to that: on many cluster file systems a lock holds on one node
only. Creating a file that must not exist holds everywhere.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "DPAFLOW_JOB"
"""Environment variable with the name of a job that is no Slurm's."""
STEP = "DPAFLOW_STEP"
"""Environment variable with the key of the job's step."""


def claim_file(steps: Path, key: str) -> Path:
    """Return the file that names the job at work in a step's folder."""
    return steps / f".{key}.job"


def read_claim(claim: Path) -> str:
    """Return the number of the job that holds a claim, empty if nobody does."""
    try:
        return claim.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def job_number() -> str:
    """Return the number of this very job; its name where there is no Slurm."""
    if os.environ["DPAFLOW_BATCH"] == "shell":
        return os.environ[MARK]
    return os.environ["SLURM_JOB_ID"]


@contextmanager
def claimed(claim: Path, number: str) -> Iterator[None]:
    """Hold a claim; a job that was requeued finds its own."""
    claim.parent.mkdir(parents=True, exist_ok=True)
    try:
        with claim.open("x", encoding="utf-8") as file:
            file.write(number)
    except FileExistsError:
        if (holder := read_claim(claim)) != number:
            raise SystemExit(
                f"job {holder or '?'} is at work in {claim.parent / os.environ[STEP]}; this one, "
                f"{number}, leaves it alone"
            ) from None
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            claim.unlink()


def main() -> None:
    """Run the script while holding the claim."""
    script = sys.argv[1]
    claim = claim_file(Path(os.environ["DPAFLOW_STEPS"]), os.environ[STEP])
    with claimed(claim, job_number()):
        sys.argv = [script]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
