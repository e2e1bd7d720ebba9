"""Option set x format x direction: our numbers against DeePMD-kit 3.2.0's own.

    python -m benchmarks.interchange.compare --peer PYTHON_WITH_DEEPMD_KIT

Makes every model of `tests/interchange/options.py` twice, here and in DeePMD-kit, writes it in
every format both ways, and lets each code evaluate the files of the other. The models' parameters
follow the rule of `tests/reference/fill.py`, so neither side takes them from the other's files.
Prints a table; `--output FOLDER` keeps results.md and results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.interchange import commands
from dpa_core.deepmd_input import convert_model
from dpa_core.errors import ModelFileError
from dpa_core.interchange.files import load_model, save_model
from dpa_core.model import Potential, build_model
from tests.interchange.options import option_sets, precision_of, question, structures
from tests.reference.fill import fill

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"float64": 1e-10, "float32": 1e-5}
QUANTITIES = ("energy", "force", "virial")
# Where every component cancels to nothing, an absolute difference counts: eV, eV/Å, eV.
FLOOR = 1e-3
FORMATS = ("dp", "yaml", "pt")
DIRECTIONS = {
    "theirs": "DeePMD-kit wrote, dpaflow reads",
    "ours": "dpaflow wrote, DeePMD-kit reads",
}
COLUMNS = {
    "theirs": ("dp", "yaml", "pt", "pth"),
    "ours": ("dp", "yaml", "pt", "pth", "dp, NumPy backend"),
}
NOT_OURS = "DeePMD-kit cannot write it"
NOTHING = [float("nan")] * 3


class Row(NamedTuple):
    """One combination: largest relative differences over all structures."""

    option: str
    precision: str
    direction: str
    format: str
    energy: float
    force: float
    virial: float
    note: str = ""

    @property
    def worst(self) -> float:
        """Of energy, force and virial."""
        return max_or_nan([self.energy, self.force, self.virial])

    @property
    def good(self) -> bool:
        """Whether it is as exact as promised."""
        return not self.note and self.worst <= ALLOWED[self.precision]


def our_model(section: dict[str, Any]) -> Potential:
    """Make the model of a set, its parameters by the rule."""
    config = convert_model(section, "option set")
    return fill(build_model(config), config.descriptor.set_davg_zero)


def prepare(folder: Path, only: str) -> dict[str, Any]:
    """Write `sets.json` and our files."""
    (folder / "ours").mkdir()
    sets = {}
    for name, case in option_sets().items():
        if only not in name:
            continue
        asked = {k: question(case, s) for k, s in structures().items()}
        sets[name] = case | {"questions": asked}
        model = our_model(case["model"])
        for kind in FORMATS:
            save_model(model, folder / "ours" / f"{name}.{kind}")
    (folder / "sets.json").write_text(json.dumps(sets))
    return sets


def run_peer(peer: Path, script: str, *arguments: str) -> None:
    """Run one of our scripts in DeePMD-kit's environment."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'reference'}",
    }
    path = Path(__file__).with_name(script)
    subprocess.run([peer, path, *arguments], check=True, env=environment)


def answer(model: Potential, asked: dict[str, Any]) -> dict[str, np.ndarray]:
    box = None if asked["box"] is None else [asked["box"]]
    parameters = {k: asked[k] for k in ("fparam", "aparam") if k in asked}
    result = model.evaluate([asked["coord"]], box, asked["atype"], **parameters)
    return {key: np.asarray(getattr(result, key)).reshape(-1) for key in QUANTITIES}


def difference(ours: np.ndarray, theirs: list[float]) -> float:
    """Largest difference relative to the largest component."""
    expected = np.array(theirs)
    return float(np.abs(ours - expected).max() / max(np.abs(expected).max(), FLOOR))


def worst(model: Potential, case: dict[str, Any], answers: dict[str, Any]) -> list[float]:
    """Of energy, force and virial, over all structures; NaN where DeePMD-kit has none."""
    found: dict[str, list[float]] = {key: [] for key in QUANTITIES}
    for name, asked in case["questions"].items():
        mine = answer(model, asked)
        for key in QUANTITIES:
            if key in answers[name]:
                found[key].append(difference(mine[key], answers[name][key]))
    return [max(found[key], default=float("nan")) for key in QUANTITIES]


def rows_of(name: str, case: dict[str, Any], record: dict[str, Any], folder: Path) -> list[Row]:
    """Every format and direction of one option set."""
    precision, rows = precision_of(case["model"]), []
    for direction in DIRECTIONS:
        answers = record[direction][name]
        if "error" in answers:
            rows.append(Row(name, precision, direction, "all", *NOTHING, answers["error"]))
            continue
        for kind, values in answers.items():
            errors, note = NOTHING, ""
            try:
                if "error" in values:
                    who = f"{NOT_OURS}: " if direction == "theirs" else ""
                    raise ModelFileError(f"{who}{values['error']}")
                path = folder / "theirs" / f"{name}.{kind}"
                model = load_model(path) if direction == "theirs" else our_model(case["model"])
                errors = worst(model, case, values)
            except ModelFileError as error:
                note = str(error).replace(f"{folder}/", "")
            rows.append(Row(name, precision, direction, kind, *errors, note))
    return rows


def round_trips(sets: dict[str, Any], folder: Path) -> dict[str, int]:
    """Format -> number of sets that come back bit for bit: tensors, config and provenance."""
    same = dict.fromkeys(FORMATS, 0)
    note = {"run": "an example", "rmse": 0.1, "data": ["a", "b"]}
    for case in sets.values():
        model = our_model(case["model"])
        model = load_model(save_model(model, folder / "a.safetensors", note))
        for kind in FORMATS:
            other = load_model(save_model(model, folder / f"a.{kind}"))
            again = load_model(save_model(other, folder / "b.safetensors"))
            same[kind] += equal(model, again)
    return same


def equal(one: Potential, two: Potential) -> bool:
    """Whether two models are the same to the last bit, and say the same of themselves."""
    a, b = one.state_dict(), two.state_dict()
    tensors = list(a) == list(b) and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )
    return tensors and (one.config, one.provenance) == (two.config, two.provenance)


def summary(rows: list[Row]) -> list[str]:
    """Worst of each format, direction and precision."""
    lines = ["| direction | format | precision | models | energy | force | virial | within |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.direction, row.format, row.precision), []).append(row)
    for (direction, kind, precision), group in sorted(groups.items(), reverse=True):
        numbers = [number(max_or_nan([getattr(r, q) for r in group])) for q in QUANTITIES]
        good = f"{sum(r.good for r in group)}/{len(group)}"
        cells = [DIRECTIONS[direction], f".{kind}", precision, str(len(group)), *numbers, good]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def table(rows: list[Row]) -> list[str]:
    """One line an option set, the worst of energy, force and virial in each column."""
    columns = [(d, k) for d in DIRECTIONS for k in COLUMNS[d]]
    titles = [f".{k} {'read' if d == 'theirs' else 'written'}" for d, k in columns]
    lines = [f"| option set | precision | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        found.setdefault(row.option, {})[row.direction, row.format.split(" by")[0]] = row
    for name, cells in found.items():
        numbers = [cell(cells.get(column)) for column in columns]
        precision = next(iter(cells.values())).precision
        lines.append(f"| {name} | {precision} | {' | '.join(numbers)} |")
    return lines


def cell(row: Row | None) -> str:
    if row is None or row.note:
        return "none" if row and row.note.startswith(NOT_OURS) else "failed"
    return number(row.worst) if row.good else f"**{number(row.worst)}**"


def max_or_nan(values: list[float]) -> float:
    return max((v for v in values if not np.isnan(v)), default=float("nan"))


def number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1e}"


def report(rows: list[Row], same: dict[str, int], code: str, extra: list[str]) -> str:
    """Everything as Markdown."""
    bad = [f"- {r.option} {DIRECTIONS[r.direction]} .{r.format}: {r.note}" for r in rows if r.note]
    sets = len({r.option for r in rows})
    good = sum(r.good for r in rows)
    parts = [
        "# Model files between dpaflow and DeePMD-kit",
        "",
        f"{code} (PyTorch backend) and dpaflow with torch {torch.__version__}, on a CPU. Made by",
        "`python -m benchmarks.interchange.compare --peer PYTHON --output benchmarks/interchange`.",
        "",
        f"{sets} option sets, {len(rows)} combinations of option set, format and direction, each",
        f"on {len(structures())} right-handed structures; {good} within 1e-10 (float64) and 1e-5",
        "(float32). A difference is the largest one of a tensor divided by its largest component.",
        "",
        *summary(rows),
        "",
        "DeePMD-kit's NumPy backend gives energies only. Each model goes one of three ways to a",
        "`.pth` file.",
        *bad,
        "",
        "## Round trips",
        "",
        "Native file, another format, native file again; tensors to the last bit, config and",
        "provenance as before: "
        + ", ".join(f".{kind} {count} of {sets}" for kind, count in same.items())
        + ".",
        "",
        *extra,
        "## All combinations",
        "",
        "The worst of energy, force and virial. *Read*: DeePMD-kit wrote the file, dpaflow reads",
        "it. *Written*: dpaflow wrote it, DeePMD-kit reads it.",
        "",
        *table(rows),
    ]
    return "\n".join(parts) + "\n"


def results_json(rows: list[Row]) -> str:
    """Option set -> "direction format" -> differences of energy, force and virial."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        values = [None if np.isnan(v) else float(f"{v:.2e}") for v in row[4:7]]
        key = f"{row.direction} .{row.format}"
        found.setdefault(row.option, {})[key] = row.note or values
    lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", type=Path, required=True, help="Python with deepmd-kit 3.2.0")
    parser.add_argument("--output", type=Path, help="folder for results.md and results.json")
    parser.add_argument("--only", default="", help="option sets whose name holds this")
    parser.add_argument("--no-commands", action="store_true", help="leave out dp train and so on")
    parser.add_argument("--pt2", action="store_true", help="compile a .pt2 file, too: minutes")
    arguments = parser.parse_args()
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, extra = Path(scratch), []
        sets = prepare(folder, arguments.only)
        run_peer(arguments.peer, "peer_side.py", str(folder))
        record = json.loads((folder / "theirs.json").read_text())
        rows = [r for name, case in sets.items() for r in rows_of(name, case, record, folder)]
        same = round_trips(sets, folder)
        if not arguments.no_commands:
            extra = run_commands(folder / "commands", arguments.peer, pt2=arguments.pt2)
    text = report(rows, same, record["code"], extra)
    print(text)
    if arguments.output:
        (arguments.output / "results.md").write_text(text)
        (arguments.output / "results.json").write_text(results_json(rows))
    good = all(r.good or r.note.startswith(NOT_OURS) for r in rows)
    return 0 if good and set(same.values()) == {len(sets)} else 1


def run_commands(folder: Path, peer: Path, *, pt2: bool) -> list[str]:
    """DeePMD-kit's commands and odd cells, as Markdown."""
    folder.mkdir()
    commands.prepare(folder, our_model, pt2=pt2)
    run_peer(peer, "peer_commands.py", str(folder))
    found = commands.lines(folder, worst, our_model)
    return [
        "## Commands",
        "",
        "| tried | result | |",
        "|---|---|---|",
        *(f"| {what} | {result} | {meaning} |" for what, result, meaning in found),
        "",
        "## One crystal in four cells",
        "",
        "Energy, eV, of a model that `dp --pt train` made, read from its checkpoint.",
        "",
        *commands.odd_lines(folder),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
