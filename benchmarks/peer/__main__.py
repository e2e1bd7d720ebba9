"""Speed and memory against DeePMD-kit 3.2.0, PyTorch backend, in one run.

    python -m benchmarks.peer --quick --peer PYTHON     under 10 minutes on 2 cores
    python -m benchmarks.peer --full --peer PYTHON      hours; every case of cases.py

PYTHON belongs to an environment with DeePMD-kit built against the same torch; README.md says how
to make one. Without it only dpaflow is measured. Results are written after every case; cases that
an earlier run left in the output folder are kept unless measured again.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peer import report
from benchmarks.peer.cases import QUICK, Case, full
from benchmarks.peer.measure import Settings, measure
from benchmarks.peer.process import ROOT, WorkerError
from benchmarks.peer.quiet import Patience

_QUICK_LIMIT = 570
_BACKENDS = ("pt", "pt-expt", "pt-expt-compile")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer")
    much = parser.add_mutually_exclusive_group(required=True)
    much.add_argument("--quick", action="store_true", help="a few cases, under 10 minutes")
    much.add_argument("--full", action="store_true", help="all cases, hours")
    parser.add_argument("--peer", default="", help="Python with DeePMD-kit 3.2.0")
    shared = Path(os.environ.get("DPAFLOW_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of data sets")
    parser.add_argument("--cases", default="", help="only cases whose name this expression finds")
    parser.add_argument(
        "--outdir", type=Path,
        help="results.{json,md,png}; default: this folder for --full, ./peer-quick for --quick",
    )  # fmt: skip
    parser.add_argument(
        "--tuned", nargs="+", choices=_BACKENDS,
        help="backends among which the tuned peer is the fastest; default: all, pt for --quick",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the cases, measure nothing")
    return parser.parse_args()


def main() -> int:
    given = options()
    logging.basicConfig(level=logging.INFO, format="          %(message)s")
    cases = [c for c in (QUICK if given.quick else full()) if re.search(given.cases, c.name)]
    if given.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    if not cases:
        print(f"no case matches {given.cases!r}; --list shows their names", file=sys.stderr)
        return 2
    outdir = given.outdir or (Path("peer-quick") if given.quick else Path(__file__).parent)
    outdir.mkdir(parents=True, exist_ok=True)
    if given.quick:
        (outdir / "results.json").unlink(missing_ok=True)
    skipped = run(cases, given, outdir)
    print(report.write(outdir, skipped))
    return 0


def run(cases: list[Case], given: argparse.Namespace, outdir: Path) -> list[str]:
    """Measure; return the names of the cases for which there was no time."""
    began, skipped, slow = time.monotonic(), [], 1.0
    for case in cases:
        now = time.monotonic() - began
        if given.quick and now + slow * case.seconds > _QUICK_LIMIT:
            skipped.append(case.name)
            continue
        print(f"{now:6.0f} s  {case.name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="dpaflow-peer-") as folder:
            settings = Settings(
                peer=given.peer,
                data=given.data,
                turns=_turns(case, given),
                backends=given.tuned or (_BACKENDS[:1] if given.quick else _BACKENDS),
                patience=Patience(10 if given.quick else 60),
                folder=Path(folder) / "case",
            )
            try:
                records = measure(case, settings)
            except WorkerError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
                continue
        # A busy or slower machine is so for the next case, too.
        slow = max(slow, (time.monotonic() - began - now) / case.seconds)
        report.keep(outdir, records)
        print(*report.lines(records), sep="\n", file=sys.stderr, flush=True)
    return skipped


def _turns(case: Case, given: argparse.Namespace) -> int:
    """Medians of 5; of 2 where a turn is a whole start and there is little time."""
    return 2 if given.quick and case.kind == "start" else 5


if __name__ == "__main__":
    sys.exit(main())
