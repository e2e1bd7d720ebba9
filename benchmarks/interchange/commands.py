"""DeePMD-kit's commands on our files, ours on files of real trainings; part of `compare.py`.

Real trainings of a few steps (DPA-1, DeepPot-SE, two branches), `--init-model` and `--finetune`
of our `.pt`, `dp test`, `dp convert-backend` to `.pt2`, and cells that are left-handed or skewed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpa_core.errors import ModelFileError
from dpa_core.interchange.files import load_model, save_model
from dpa_core.model import Potential
from tests.interchange.options import structures
from tests.interchange.trainings import (
    BRANCHES,
    STEPS,
    write_data,
    write_input,
    write_two_branches,
)
from tests.reference.cases import DPA1, SE, model

TINY = {"dpa1": DPA1 | {"set_davg_zero": False}, "se": SE | {"set_davg_zero": False}}

PT2 = (
    "largest relative difference; leaving out the empty slots (davg is not 0 here) brings it to "
    "6e-3 at most, so DeePMD-kit's `.pt2` does not seem to count them as its other files do"
)

Line = tuple[str, str, str]
"""What was tried, the number, what the number is."""


def prepare(folder: Path, our_model: Callable[[dict[str, Any]], Potential], *, pt2: bool) -> None:
    """Write data, inputs, our files and `commands.json`."""
    write_data(folder / "data")
    tasks: list[dict[str, Any]] = []
    for kind, descriptor in TINY.items():
        section = model(descriptor)
        write_input(folder, f"train-{kind}", section, rate=1e-3)
        tasks.append(_dp(f"train-{kind}", "--pt", "train", f"train-{kind}.json"))
        tasks.append(_ask(f"trained-{kind}", f"train-{kind}-{STEPS}.pt"))
        save_model(our_model(section), folder / f"ours-{kind}.pt")
        save_model(our_model(section), folder / f"ours-{kind}.dp")
        for way in ("init-model", "finetune"):
            # So small a rate that no weight changes: what comes out must be what went in.
            write_input(folder, f"{way}-{kind}", section, rate=1e-30)
            tasks.append(_dp(f"{way}-{kind}", "--pt", "train", f"{way}-{kind}.json", f"--{way}",
                             f"ours-{kind}.pt"))  # fmt: skip
        tasks.append(_dp(f"test-{kind}", "--pt", "test", "-m", f"ours-{kind}.pt", "-s", "data",
                         "-d", f"detail-{kind}"))  # fmt: skip
    write_two_branches(folder, "train-two", model(TINY["dpa1"]))
    tasks.append(_dp("train-two", "--pt", "train", "train-two.json"))
    tasks += [_ask(f"trained-{k}", f"train-two-{STEPS}.pt", head=k) for k in BRANCHES]
    odd = _ask("odd", f"train-dpa1-{STEPS}.pt") | {"questions": odd_cells()}
    tasks.append(odd | {"options": {"nlist_backend": "native"}})
    tasks.append(odd | {"name": "odd-vesin", "options": {"nlist_backend": "vesin"}})
    if pt2:
        tasks.append(_dp("pt2", "convert-backend", "ours-dpa1.dp", "ours-dpa1.pt2"))
        tasks.append(_ask("asked-pt2", "ours-dpa1.pt2"))
    (folder / "commands.json").write_text(json.dumps(tasks))


def _dp(name: str, *arguments: str) -> dict[str, Any]:
    return {"name": name, "dp": list(arguments)}


def _ask(name: str, file: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "ask": file, "questions": structures(), **keys}


def odd_cells() -> dict[str, dict[str, Any]]:
    """One crystal in four cells: two vectors swapped, and a vector added twice to another."""
    right = structures()["cell"]
    a, b, c = np.array(right["box"])
    boxes = {
        "right-handed": (a, b, c),
        "left-handed": (b, a, c),
        "skewed": (a, b, c + 2 * a),
        "left-handed, skewed": (b, a, c + 2 * a),
    }
    return {
        k: right | {"box": [[round(float(x), 9) for x in v] for v in box]}
        for k, box in boxes.items()
    }


def lines(
    folder: Path,
    difference: Callable[[Potential, dict[str, Any], dict[str, Any]], list[float]],
    our_model: Callable[[dict[str, Any]], Potential],
) -> Iterator[Line]:
    """Yield what the commands gave: (what, number, what the number is)."""
    answers = json.loads((folder / "answers.json").read_text())
    cells = {"questions": structures()}
    reading = [(f"trained-{k}", f"train-{k}-{STEPS}.pt") for k in TINY]
    reading += [(f"trained-{k}", f"train-two-{STEPS}.pt#{k}") for k in BRANCHES]
    for name, file in reading:
        yield _read(name, file, folder, answers[name], cells, difference)
    for kind, descriptor in TINY.items():
        ours = our_model(model(descriptor))
        for way in ("init-model", "finetune"):
            yield _kept(f"{way}-{kind}", ours, folder, answers)
        yield _tested(kind, ours, folder, answers)
    if "pt2" in answers:
        yield _pt2(answers, our_model(model(TINY["dpa1"])), cells, difference)


def _read(
    name: str,
    file: str,
    folder: Path,
    values: dict[str, Any],
    cells: dict[str, Any],
    difference: Callable[..., list[float]],
) -> Line:
    what = f"`dp --pt train`, checkpoint `{file}` read"
    try:
        worst = max(difference(load_model(folder / file), cells, values))
    except (ModelFileError, KeyError) as error:
        return what, "failed", str(values.get("error", error)).replace(f"{folder}/", "")
    return what, f"{worst:.1e}", "largest relative difference of energy, force and virial"


def _kept(name: str, ours: Potential, folder: Path, answers: dict[str, Any]) -> Line:
    """Whether training with a vanishing rate ended at the tensors it was given."""
    what = f"`dp --pt train --{name.rpartition('-')[0]}` of our `.pt` ({name.rpartition('-')[2]})"
    if "error" in answers[name]:
        return what, "failed", answers[name]["error"]
    after = load_model(folder / f"{name}-{STEPS}.pt").state_dict()
    moved = {k: float((after[k] - v).abs().amax()) for k, v in ours.state_dict().items() if len(v)}
    # Finetuning fits the energy bias to the new data; that is what it is for.
    fitted = ("out_bias", "out_std") if name.startswith("finetune") else ()
    rest = max(v for k, v in moved.items() if k not in fitted)
    meaning = f"a parameter moved by {rest:.0e} at most in {STEPS} steps at a vanishing rate"
    if fitted:
        meaning += f"; the bias was fitted to the data ({moved['out_bias']:.1f} eV)"
    return what, "accepted" if rest < 1e-12 else "differs", meaning


def _tested(kind: str, ours: Potential, folder: Path, answers: dict[str, Any]) -> Line:
    what = f"`dp --pt test` of our `.pt` ({kind})"
    if "error" in answers[f"test-{kind}"]:
        return what, "failed", answers[f"test-{kind}"]["error"]
    data = folder / "data"
    coord, box = (np.load(data / "set.000" / f"{name}.npy") for name in ("coord", "box"))
    types = np.loadtxt(data / "type.raw", dtype=int)
    result = ours.evaluate(coord.reshape(len(coord), -1, 3), box.reshape(-1, 3, 3), types)
    worst = 0.0
    for end, values in (("e", result.energy), ("f", result.force), ("v", result.virial)):
        columns = np.loadtxt(folder / f"detail-{kind}.{end}.out")
        found = columns[:, columns.shape[1] // 2 :].reshape(-1)
        worst = max(worst, float(np.abs(found - values.reshape(-1)).max() / np.abs(found).max()))
    return what, f"{worst:.1e}", "largest relative difference, energies, forces and virials"


def _pt2(
    answers: dict[str, Any], ours: Potential, cells: dict[str, Any], difference: Callable[..., Any]
) -> Line:
    what = "`dp convert-backend` of our `.dp` to `.pt2` (AOTInductor)"
    for name in ("pt2", "asked-pt2"):
        if "error" in answers[name]:
            return what, "failed", f"in DeePMD-kit: {answers[name]['error']}"
    worst = max(difference(ours, cells, answers["asked-pt2"]))
    return what, f"{worst:.1e}", PT2


def odd_lines(folder: Path) -> Iterator[str]:
    """Table of one crystal in four cells, a model of DeePMD-kit's: both codes' energies."""
    answers = json.loads((folder / "answers.json").read_text())
    potential = load_model(folder / f"train-dpa1-{STEPS}.pt")
    yield "| cell | dpaflow | DeePMD-kit, its own neighbour list | DeePMD-kit, vesin |"
    yield "|---|---|---|---|"
    for name, asked in odd_cells().items():
        ours = potential.evaluate([asked["coord"]], [asked["box"]], asked["atype"]).energy[0]
        theirs = [_energy(answers[key], name) for key in ("odd", "odd-vesin")]
        yield f"| {name} | {ours:.12f} | {theirs[0]} | {theirs[1]} |"


def _energy(answers: dict[str, Any], name: str) -> str:
    found = answers if "error" in answers else answers[name]
    return f"{found['energy'][0]:.12f}" if "energy" in found else found["error"]
