"""Exploration: physics of the ensembles, stops, layout, seeds, parts, resuming after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from dpa_core.calculator import CommitteeCalculator
from dpa_core.committee import Committee, read_model_devi
from dpa_core.config import ModelConfig, parse_config
from dpa_core.data import open_dataset
from dpa_core.errors import ConfigError, NumericalError
from dpa_core.interchange.files import save_model
from dpa_core.model import build_model
from dpa_core.neighbors import neighbor_pairs
from ops.explore import ExploreConfig, ExploreInputs, run_explore
from ops.explorers import AseExplorer, Stops
from ops.explorers.ase_md import GuardedCalculator, prepare, run_md, thermal_momenta
from ops.explorers.common import Task
from ops.explorers.stops import (
    check_cell,
    check_deviation,
    check_distance,
    check_temperature,
    temperature_limit,
)
from ops.structures import atoms_of
from tests.ops.helpers import TYPES, make_frame, write

MODEL = {
    "type_map": ["Al", "Ni", "Cu"],
    "descriptor": {
        "type": "se_e2_a", "rcut": 4.0, "rcut_smth": 1.0, "sel": [40, 40, 40], "neuron": [4, 8],
        "axis_neuron": 3, "precision": "float64",
    },
    "fitting_net": {"neuron": [7, 7], "precision": "float64"},
}  # fmt: skip
ALLOY = {"type": "generate", "lattice": "fcc", "element": "Cu", "a": 3.7, "cell": "cubic",
         "composition": {"Cu": 0.5, "Al": 0.5}, "rattle": 0.03, "count": 2}  # fmt: skip
ATOMS = bulk("Cu", cubic=True)


def small_model(seed, scale=1.0):
    model = build_model(parse_config(ModelConfig, MODEL, "test"), seed)
    with torch.no_grad():
        for name, weight in model.fitting.named_parameters():
            if weight.shape[-1] == 1 or "out" in name or "final" in name:
                weight.mul_(scale)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_model(small_model(k), folder / f"m{k}.safetensors") for k in (1, 2, 3)]


def config(explorer=None, structures=("alloy",), **rest):
    explorer = {"type": "ase", "temperatures": [300], "steps": 20} | (explorer or {})
    stage = {"structures": list(structures), "explorer": explorer}
    return parse_config(
        ExploreConfig, {"sources": {"alloy": ALLOY}, "stages": [stage]} | rest, "test"
    )


def explorer(**settings):
    return parse_config(AseExplorer, {"temperatures": [300]} | settings, "test")


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "explore.json"
    }


class Springs(Calculator):
    """Nearest neighbours of fcc copper tied by springs: quick, and its pressure is known.

    E = k/2 sum (d - d0)^2 over the pairs found at the start.
    """

    implemented_properties = ("energy", "free_energy", "forces", "stress")
    k, d0 = 3.0, 3.61 / np.sqrt(2)

    def __init__(self, atoms):
        super().__init__()
        i, j, shift, _ = neighbor_pairs(atoms.positions, atoms.cell[:], 1.2 * self.d0)
        self.pairs = i, j, shift

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        i, j, shift = self.pairs
        vectors = self.atoms.positions[j] - self.atoms.positions[i] + shift @ self.atoms.cell[:]
        length = np.sqrt((vectors**2).sum(axis=1))
        pull = (self.k * (length - self.d0) / length)[:, None] * vectors
        forces = np.zeros_like(self.atoms.positions)
        np.add.at(forces, i, pull)
        stress = 0.5 * pull.T @ vectors / self.atoms.get_volume()
        energy = 0.25 * self.k * ((length - self.d0) ** 2).sum()
        self.results = {"energy": energy, "free_energy": energy, "forces": forces,
                        "stress": full_3x3_to_voigt_6_stress(stress)}  # fmt: skip

    def volume_at(self, gpa):
        """Per atom, at 0 K: P = -dE/dV = -2 sqrt(2) k (d - d0) / d^2 with V = d^3 / sqrt(2)."""
        p = gpa * units.GPa / (2 * np.sqrt(2) * self.k)
        d = self.d0 if p == 0 else (-1 + np.sqrt(1 + 4 * p * self.d0)) / (2 * p)
        return d**3 / np.sqrt(2)


def simulate(settings, steps, atoms=None, kelvin=300.0, pressure=0.0):
    """Kinetic energy, volume and total energy of every step."""
    atoms = ATOMS.copy() if atoms is None else atoms
    task = Task("x", settings.ensemble, atoms, kelvin, pressure)
    dynamics = prepare(atoms, settings, task, Springs(atoms), np.random.default_rng(3))
    kinetic, volume, total = [], [], []
    for _ in dynamics.irun(steps):
        kinetic.append(atoms.get_kinetic_energy())
        volume.append(atoms.get_volume())
        total.append(atoms.get_total_energy())
    return np.array(kinetic), np.array(volume), np.array(total)


# ---- physics ----


def test_initial_velocities_are_thermal_and_do_not_drift():
    masses = np.tile([1.0, 30.0, 200.0], 4000)
    p = thermal_momenta(masses, 500.0, np.random.default_rng(1))
    assert np.abs(p.sum(axis=0)).max() < 1e-9
    for m in (1.0, 30.0, 200.0):
        kelvin = np.mean(p[masses == m] ** 2 / m) / units.kB
        assert kelvin == pytest.approx(500, rel=0.05)


def test_nve_conserves_energy():
    kinetic, _, total = simulate(explorer(ensemble="nve", timestep=2.0), 200)
    assert np.ptp(total) < 0.03 * np.ptp(kinetic)


def test_nve_of_the_committee_conserves_energy():
    """Our own model, with the list of neighbours that is kept between steps."""
    settings = explorer(ensemble="nve", timestep=1.0)
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=1)
    atoms.symbols[:3] = "Al"
    committee = Committee([small_model(1, 300)])
    calculator = GuardedCalculator(committee, Stops(), atoms.get_volume(), settings)
    task = Task("x", "nve", atoms, 300.0)
    dynamics = prepare(atoms, settings, task, calculator, np.random.default_rng(1))
    kinetic, total = [], []
    for _ in dynamics.irun(150):
        kinetic.append(atoms.get_kinetic_energy())
        total.append(atoms.get_total_energy())
    assert np.abs(atoms.get_forces()).max() > 0.05
    assert 1 < calculator.searches < 40
    assert np.ptp(total) < 0.03 * np.ptp(kinetic)


@pytest.mark.parametrize(
    ("settings", "moving"),
    [
        ({"thermostat": "langevin"}, 12),
        ({"thermostat": "nose-hoover"}, 9),
        ({"ensemble": "npt"}, 9),
        pytest.param({"ensemble": "npt", "cell": "full"}, 9, marks=pytest.mark.slow),
    ],
)
def test_four_atoms_have_the_temperature_asked_for(settings, moving):
    """Counted over the degrees of freedom that move; ASE's 3N would give 400 K for 9 of 12."""
    settings = explorer(timestep=4.0, tdamp=40.0, pdamp=400.0, **settings)
    kinetic, _, _ = simulate(settings, 1500)
    kelvin = 2 * kinetic[300:] / (moving * units.kB)
    blocks = kelvin[: len(kelvin) // 11 * 11].reshape(11, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    assert error < 22
    assert abs(kelvin.mean() - 300) < max(4 * error, 12)


@pytest.mark.parametrize("cell", ["isotropic", "full"])
def test_npt_follows_the_pressure(cell):
    settings = explorer(ensemble="npt", cell=cell, timestep=4.0, pdamp=300.0, tdamp=40.0)
    atoms = ATOMS.copy()
    _, volume, _ = simulate(settings, 700, atoms, kelvin=100.0, pressure=6.0)
    expected = Springs(ATOMS).volume_at(6.0)
    assert Springs(ATOMS).volume_at(0.0) == pytest.approx(ATOMS.get_volume() / 4)
    assert expected < 0.975 * ATOMS.get_volume() / 4
    assert volume[200:].mean() / 4 == pytest.approx(expected, rel=6e-3)
    lengths = atoms.cell.lengths() / ATOMS.cell.lengths()
    assert (np.ptp(lengths) < 1e-9) == (cell == "isotropic")


# ---- stops ----


def test_limits_on_single_structures():
    box = np.eye(3) * 4.0
    coord = np.array([[0.0, 0, 0], [0, 0, 3.5]])
    copper = np.array([29, 29])
    # 0.5 Å through the boundary, covalent radii 1.32 + 1.32
    problem = check_distance(coord, box, copper, Stops(min_distance=0.2))
    assert problem is not None
    assert problem.reason == "distance"
    assert "Cu-Cu 0.500 Å apart, 0.19 of the sum" in problem.message
    assert check_distance(coord, box, copper, Stops(min_distance=0.18)) is None
    assert check_distance(coord, None, copper, Stops(min_distance=0.5)) is None
    # an atom may be too close to its own image
    assert check_distance(coord[:1], np.diag([9, 9, 1.0]), copper[:1], Stops()) is not None
    assert check_cell(coord, box, 64.0, Stops()) is None
    for factor in (0.3, 2.1):
        grown = check_cell(coord, box, 64.0 / factor, Stops())
        assert grown is not None
        assert grown.reason == "volume"
    bad = check_cell(coord * np.nan, box, 64.0, Stops())
    assert bad is not None
    assert bad.reason == "nan"
    devi = check_deviation(0.6, Stops(max_devi_f=0.5))
    assert devi is not None
    assert devi.reason == "deviation"
    assert check_deviation(float("nan"), Stops()) is not None
    assert check_deviation(0.6, Stops()) is None


def test_temperature_limit_allows_for_small_cells():
    """Chi-squared with 9 degrees of freedom goes beyond 3 x mean every few hundred draws."""
    stops = Stops(max_heating=3.0, max_temperature=5000.0)
    assert temperature_limit(300, 4, stops) == pytest.approx(300 * (3 + 6 * np.sqrt(2 / 9)))
    assert temperature_limit(300, 100000, stops) == pytest.approx(900, rel=0.02)
    assert temperature_limit(3000, 4, stops) == 5000
    assert temperature_limit(300, 4, Stops(max_heating=None)) == np.inf
    assert check_temperature(float("nan"), np.inf) is not None


def trajectory_of(atoms, committee=None, **settings):
    committee = committee or Committee([small_model(1), small_model(2)])
    task = Task("x", settings.get("ensemble", "nvt"), atoms, 300.0, 0.0)
    return run_md(explorer(steps=40, **settings), task, committee, TYPES, 5)


def test_stop_by_overlap_at_the_start():
    atoms = ATOMS.copy()
    atoms.positions[1] = atoms.positions[0] + [0.3, 0, 0]
    found = trajectory_of(atoms)
    assert found.stop is not None
    assert (found.stop.reason, found.stop.step, found.frames) == ("distance", 0, [])
    assert found.deviation.max_devi_f.shape == (0,)


def test_stop_by_heat_keeps_the_frames_before():
    found = trajectory_of(ATOMS, stop={"max_temperature": 30})
    assert found.stop is not None
    assert found.stop.reason == "temperature"
    # forces that blow the cell up
    far = trajectory_of(ATOMS, Committee([small_model(1, 3e5), small_model(2)]), timestep=5.0)
    assert far.stop is not None
    assert far.stop.reason in ("temperature", "distance")
    assert far.steps == list(range(0, far.stop.step, 10))


def test_stop_by_deviation_keeps_the_frame():
    atoms = ATOMS.copy()
    atoms.rattle(0.1, seed=1)
    found = trajectory_of(atoms, stop={"max_devi_f": 1e-14})
    assert found.stop is not None
    assert (found.stop.reason, found.stop.step, found.steps) == ("deviation", 0, [0])


def test_stop_by_expansion():
    """Pulled at 100 GPa, a crystal almost without forces flies apart."""
    atoms = ATOMS.copy()
    task = Task("x", "npt", atoms, 300.0, -100.0)
    settings = explorer(ensemble="npt", steps=400, pdamp=50.0, stop={"min_distance": None})
    found = run_md(settings, task, Committee([small_model(1)]), TYPES, 5)
    assert found.stop is not None
    assert found.stop.reason == "volume"
    assert found.done < found.stop.step <= 400
    assert len(found.frames) == found.done // 10 + 1


def test_stop_by_nan_drops_the_frame():
    model = small_model(1)
    with torch.no_grad():
        model.out_bias.fill_(float("nan"))
    found = trajectory_of(ATOMS, Committee([model]))
    assert found.stop is not None
    assert (found.stop.reason, found.stop.step, found.frames) == ("nan", 0, [])


def test_a_member_that_gives_nan_is_noticed():
    broken = small_model(2)
    with torch.no_grad():
        for weight in broken.fitting.parameters():
            weight.fill_(float("nan"))
    found = trajectory_of(ATOMS, Committee([small_model(1), broken]))
    assert found.stop is not None
    assert (found.stop.reason, found.frames) == ("nan", [])


def test_error_of_the_model_at_a_later_step(monkeypatch):
    calls = []

    def calculate(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 25:
            raise NumericalError("energy is not finite")
        return original(self, *args, **kwargs)

    original = CommitteeCalculator.calculate
    monkeypatch.setattr(CommitteeCalculator, "calculate", calculate)
    found = trajectory_of(ATOMS)
    assert found.stop is not None
    assert (found.stop.reason, found.stop.step, found.done) == ("nan", 25, 24)
    assert found.steps == [0, 10, 20]


# ---- the OP ----


def test_layout_and_deviation(models, tmp_path):
    settings = config({"temperatures": [300, 600], "repeats": 2})
    document = run_explore(ExploreInputs(models), settings, tmp_path)
    assert document == json.loads((tmp_path / "explore.json").read_text())
    entries = document["trajectories"]
    assert [e["name"] for e in entries] == [f"{k:06d}" for k in range(8)]
    assert [e["temperature"] for e in entries[:4]] == [300, 300, 600, 600]
    assert [e["structure"] for e in entries[::4]] == ["alloy-0000", "alloy-0001"]
    assert all(e["frames"] == 3 and e["stop"] is None and e["steps"] == 20 for e in entries)
    assert entries[0]["formula"] == "Al2Cu2"
    folder = tmp_path / "trajectories" / "000003"
    dataset = open_dataset(folder, type_map=TYPES)
    steps, devi = read_model_devi(folder / "model_devi.out")
    assert (len(dataset), steps.tolist()) == (3, [0, 10, 20])
    assert dataset[0].force is None
    # the file against members asked one by one
    forces = []
    for path in models:
        atoms = atoms_of(dataset[2], TYPES)
        atoms.calc = CommitteeCalculator([path])
        forces.append(atoms.get_forces())
    expected = np.sqrt(np.square(np.array(forces) - np.mean(forces, axis=0)).sum(-1).mean(0)).max()
    assert devi.max_devi_f[2] == pytest.approx(expected, rel=1e-5)
    assert entries[3]["max_devi_f"] == pytest.approx(devi.max_devi_f.max(), rel=1e-5)
    first = [np.load(p) for p in sorted((tmp_path / "trajectories").glob("*/*/set.000/coord.npy"))]
    assert np.array_equal(first[0][0], first[1][0])  # same start, other velocities
    assert not np.array_equal(first[0][2], first[1][2])


def test_same_seed_same_bytes_and_parts_make_the_whole(models, tmp_path):
    whole = config({"temperatures": [300, 500], "steps": 10})
    run_explore(ExploreInputs(models), whole, tmp_path / "whole")
    for part in (0, 1):
        settings = config({"temperatures": [300, 500], "steps": 10}, part=part, parts=2)
        run_explore(ExploreInputs(models), settings, tmp_path / f"p{part}")
    parts = [contents(tmp_path / f"p{k}") for k in (0, 1)]
    assert not set(parts[0]) & set(parts[1])
    assert parts[0] | parts[1] == contents(tmp_path / "whole")
    other = config({"temperatures": [300, 500], "steps": 10}, iteration=1)
    run_explore(ExploreInputs(models), other, tmp_path / "other")
    changed = contents(tmp_path / "other")
    assert not [k for k, v in contents(tmp_path / "whole").items()
                if k.endswith("coord.npy") and changed[k] == v]  # fmt: skip


CODE = """
import json, sys
from pathlib import Path
from dpa_core.config import parse_config
from ops.explore import ExploreConfig, ExploreInputs, run_explore
data, models, outdir = json.loads(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3])
config = parse_config(ExploreConfig, data, "x")
run_explore(ExploreInputs([Path(m) for m in models]), config, outdir)
"""


def test_killed_and_resumed_gives_the_same_bytes(models, tmp_path, root):
    settings = config({"temperatures": [300, 400], "steps": 60, "trj_freq": 5})
    inputs = ExploreInputs(models)
    run_explore(inputs, settings, tmp_path / "calm")
    argument = [settings.model_dump_json(), ",".join(map(str, models)), str(tmp_path / "killed")]
    child = subprocess.Popen([sys.executable, "-c", CODE, *argument], cwd=root)
    folder = tmp_path / "killed" / "trajectories"
    deadline = time.monotonic() + 60
    while not (folder / "000001").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (folder / ".000003").mkdir()  # as if killed while writing
    (folder / ".000003" / "half").write_text("x")
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("0*")}
    document = run_explore(inputs, settings, tmp_path / "killed")
    assert len(document["trajectories"]) == 4
    assert contents(tmp_path / "killed") == contents(tmp_path / "calm")
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("0*") if p.name in before} == before


def test_other_settings_or_models_make_trajectories_anew(models, tmp_path):
    run_explore(ExploreInputs(models), config(), tmp_path / "a")
    run_explore(ExploreInputs(models[::-1]), config({"timestep": 1.0}), tmp_path / "a")
    run_explore(ExploreInputs(models[::-1]), config({"timestep": 1.0}), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_diverged_trajectories_do_not_fail_the_step(models, tmp_path):
    settings = config({"stop": {"min_distance": 1.5}})
    document = run_explore(ExploreInputs(models), settings, tmp_path)
    for entry in document["trajectories"]:
        assert entry["stop"]["reason"] == "distance"
        assert (entry["frames"], entry["max_devi_f"]) == (0, None)
    steps, _ = read_model_devi(tmp_path / "trajectories" / "000000" / "model_devi.out")
    assert len(steps) == 0


def test_stage_of_the_decision(models, tmp_path):
    (tmp_path / "decision.json").write_text('{"next_stage": 1}')
    stages = [
        {"structures": ["alloy"], "explorer": {"type": "ase", "temperatures": [t], "steps": 10}}
        for t in (300, 700)
    ]
    settings = config(stages=stages)
    inputs = ExploreInputs(models, decision=tmp_path / "decision.json")
    document = run_explore(inputs, settings, tmp_path / "out")
    assert document["stage"] == 1
    assert {e["temperature"] for e in document["trajectories"]} == {700}


def test_pool_groups_by_composition_and_hides_labels(models, tmp_path):
    frames = [make_frame(t, seed=k) for k, t in enumerate([[0, 0, 1], [2, 2], [1, 0, 0], [0, 0]])]
    data = {"pool": write(frames, tmp_path / "data")}
    settings = parse_config(
        ExploreConfig, {"stages": [{"explorer": {"type": "pool", "data": "pool"}}]}, "test"
    )
    document = run_explore(ExploreInputs(models, data), settings, tmp_path / "out")
    found = {e["formula"]: e["frames"] for e in document["trajectories"]}
    assert found == {"Al2Ni1": 2, "Cu2": 1, "Al2": 1}
    dataset = open_dataset(tmp_path / "out" / "trajectories")
    assert all(dataset[k].energy is None for k in range(len(dataset)))
    whole = open_dataset(data["pool"], TYPES)
    committee = Committee.load(models)
    for entry in document["trajectories"]:
        folder = tmp_path / "out" / "trajectories" / entry["name"]
        numbers, devi = read_model_devi(folder / "model_devi.out")
        asked = committee.deviation([whole[int(k)] for k in numbers])
        assert np.allclose(asked.max_devi_f, devi.max_devi_f, rtol=1e-5)
    explorer = {"type": "pool", "data": "pool", "max_frames": 2}
    for seed, folder in ((1, "s1"), (1, "s1b"), (2, "s2")):
        few = parse_config(ExploreConfig, {"stages": [{"explorer": explorer}], "seed": seed}, "t")
        document = run_explore(ExploreInputs(models, data), few, tmp_path / folder)
        assert sum(e["frames"] for e in document["trajectories"]) == 2
    assert contents(tmp_path / "s1") == contents(tmp_path / "s1b")


def test_pool_with_a_frame_that_no_model_can_judge(models, tmp_path):
    good, bad = (make_frame([0, 0, 1], seed=k) for k in (1, 2))
    bad.coord[1] = bad.coord[0]
    data = {"pool": write([good, bad], tmp_path / "data")}
    settings = parse_config(
        ExploreConfig, {"stages": [{"explorer": {"type": "pool", "data": "pool"}}]}, "test"
    )
    (entry,) = run_explore(ExploreInputs(models, data), settings, tmp_path / "out")["trajectories"]
    _, devi = read_model_devi(tmp_path / "out" / "trajectories" / "000000" / "model_devi.out")
    assert np.isfinite(devi.max_devi_f).tolist() == [True, False]
    assert entry["max_devi_f"] == pytest.approx(devi.max_devi_f[0], rel=1e-5)


def test_what_cannot_be_explored_is_said(models, tmp_path):
    inputs = ExploreInputs(models)
    lattice = {"type": "generate", "lattice": "fcc", "element": "Cu"}
    sources = {"one": lattice, "gold": lattice | {"element": "Au", "cell": "cubic"}}
    with pytest.raises(ConfigError, match="one-0000 has one atom"):
        run_explore(inputs, config(structures=["one"], sources=sources), tmp_path)
    with pytest.raises(ConfigError, match=r"Au \(in gold-0000\) not in type_map"):
        run_explore(inputs, config(structures=["gold"], sources=sources), tmp_path)
    with pytest.raises(ConfigError, match="stage 0 starts from nothing"):
        config(structures=["nothing"])
    with pytest.raises(ConfigError, match="need ensemble: npt"):
        config({"pressures": [1.0]})
    with pytest.raises(ConfigError, match=r"pressures.0: input should be a finite number"):
        config({"ensemble": "npt", "pressures": [float("nan")]})
    with pytest.raises(ConfigError, match=r"part \(2\) must be below parts \(2\)"):
        config(part=2, parts=2)
    with pytest.raises(ConfigError, match="no model files"):
        run_explore(ExploreInputs([]), config(), tmp_path)
