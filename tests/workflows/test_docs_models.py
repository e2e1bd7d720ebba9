"""What docs/models.md and examples/lammps show can be done as it stands there."""

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dpa_core.config import ModelConfig, parse_config
from dpa_core.interchange.files import FORMATS, WRITABLE, save_model
from dpa_core.model import build_model
from ops.deepmd_kit import FROZEN
from ops.model_files import convert
from ops.train import RunTrainConfig
from tests.train.small import write_emt
from tests.workflows.test_cli import call  # noqa: F401
from tests.workflows.test_docs import blocks, tables
from tests.workflows.test_model_files import fake_dp  # noqa: F401
from workflows.cli_model import read_train_config
from workflows.pipeline import plan
from workflows.schema import Pipeline, place_paths

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/models.md").read_text(encoding="utf-8")
LAMMPS = ROOT / "examples/lammps"
SMALL = {
    "type_map": ["Cu", "Au"],
    "descriptor": {"type": "dpa1", "rcut": 4.0, "rcut_smth": 1.0, "sel": 60, "neuron": [2, 4],
                   "axis_neuron": 2, "attn": 4, "attn_layer": 1},
    "fitting_net": {"neuron": [4, 4]},
}  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch, fake_dp):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    save_model(build_model(ModelConfig.model_validate(SMALL)), "model.safetensors")
    heads = ModelConfig.model_validate({**SMALL, "heads": 2})
    save_model(build_model(heads), "committee.safetensors")
    convert("model.safetensors", Path("model.pth"))
    return tmp_path


def listings(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_formats_of_the_table():
    told = {row[0].strip("`"): row[2:] for row in tables(PAGE, "file", "what it is")}
    assert set(told) == {".safetensors", ".dp", ".yaml", ".pt", *FROZEN}
    for suffix, (read, written) in told.items():
        kind = WRITABLE.get(suffix, suffix.strip("."))
        assert (read == "yes") == (kind in FORMATS), suffix
        assert (written == "yes") == (suffix in WRITABLE), suffix


def test_python(files):
    found = listings(PAGE, "python")
    assert len(found) == 3
    for code in found:
        exec(compile(code, "docs/models.md", "exec"), {})


def test_commands(files, call):  # noqa: F811
    shutil.copy(ROOT / "tests/interchange/tensorflow/attn2.pb", "graph.pb")
    lines = re.findall(r"^dpaflow (model [^#\n]*)", PAGE, re.M)
    assert len(lines) == 6
    write_emt(files / "data/test", 2, 1)
    for line in lines:
        code, output = call(*shlex.split(line))
        assert code == 0, output
    shown = re.findall(r"^  (pair_\w+ .*)", PAGE, re.M)
    assert [line for line in output.splitlines() if "pair_" in line] == [f"  {s}" for s in shown]


def test_pipeline():
    (document,) = blocks(PAGE)
    assert plan(place_paths(parse_config(Pipeline, document, "docs/models.md"), ROOT))


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("compare", LAMMPS / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Behaves as LAMMPS with in.lammps would: two frames and their numbers, by the model it is given.
STAND_IN = """#!{python}
import sys
import numpy as np
from ase.io.lammpsdata import read_lammps_data
from dpa_core import DPACalculator
assert sys.argv[1:3] == ["-in", "in.lammps"]
atoms = read_lammps_data("data.lammps", units="metal", Z_of_type={{1: 29, 2: 79}})
atoms.calc = DPACalculator(sys.argv[sys.argv.index("model") + 1])
a, b, c = atoms.cell
frames, numbers = [], ["# TimeStep c_thermo_pe c_virial[*]"]
for step in (0, 20):
    atoms.positions += 0.01 * step
    stress = atoms.get_stress(voigt=False).ravel()[[0, 4, 8, 1, 2, 5]] * -1.6021765e6
    numbers.append(" ".join(f"{{x:.17g}}" for x in [step, atoms.get_potential_energy(), *stress]))
    lo = [min(0, b[0], c[0], b[0] + c[0]), min(0, c[1]), 0]
    hi = [a[0] + max(0, b[0], c[0], b[0] + c[0]), b[1] + max(0, c[1]), c[2]]
    tilt = [b[0], c[0], c[1]]
    frames += ["ITEM: TIMESTEP", str(step), "ITEM: NUMBER OF ATOMS", str(len(atoms)),
               "ITEM: BOX BOUNDS xy xz yz pp pp pp"]
    frames += [" ".join(f"{{x:.17g}}" for x in row) for row in zip(lo, hi, tilt)]
    frames.append("ITEM: ATOMS id type element x y z fx fy fz")
    for k, (p, f) in enumerate(zip(atoms.positions, atoms.get_forces())):
        kind = 1 if atoms.symbols[k] == "Cu" else 2
        frames.append(" ".join(map(str, [k + 1, kind, atoms.symbols[k], *p, *f])))
open("frames.lammpstrj", "w").write("\\n".join(frames) + "\\n")
open("numbers.out", "w").write("\\n".join(numbers) + "\\n")
"""


def test_example_without_lammps(example, files, monkeypatch):
    """The whole script with a stand-in for LAMMPS and few steps."""
    program = files / "bin" / "lmp"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    settings = (LAMMPS / "train.yaml").read_text(encoding="utf-8")
    short = re.sub(r"numb_steps: \d+", "numb_steps: 2", settings)
    (files / "short.yaml").write_text(re.sub(r"(disp|save)_freq: \d+", r"\1_freq: 1", short))
    arguments = ["compare.py", "out", "--lmp", str(program), "--frames", "3", "--settings",
                 "short.yaml"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    example.main()
    document = json.loads((files / "out" / "comparison.json").read_text())
    assert len(document["frames"]) == 2
    differences = [[row[f"{k}_difference"] for k in ("energy", "force", "pressure")]
                   for row in document["frames"]]  # fmt: skip
    assert np.max(differences) < 1e-8
    assert (files / "out" / "in.lammps").read_text() == (LAMMPS / "in.lammps").read_text()


def test_settings_of_the_example():
    for name in ("train.yaml", "train-attention.yaml"):
        assert isinstance(read_train_config(LAMMPS / name), RunTrainConfig)


def test_recorded_results():
    """Those in the README are those of the files beside it."""
    text = (LAMMPS / "README.md").read_text(encoding="utf-8")
    for name in ("lammps-tensorflow", "deepmd-pytorch"):
        document = json.loads((LAMMPS / "recorded" / f"{name}.json").read_text())
        rows = document["frames"]
        worst = [max(row[f"{k}_difference"] for row in rows)
                 for k in ("energy", "force", "pressure")]  # fmt: skip
        assert max(worst) < 1e-9
        cells = [f"{value:.0e}".replace("e-0", "e-") for value in worst]
        assert f"| {' | '.join(cells)} |" in text
