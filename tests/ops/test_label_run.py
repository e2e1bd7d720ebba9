"""Labels: real outputs of the codes through the path of a real run, the store, failures, kills."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import psutil
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from dpa_core.config import parse_config
from dpa_core.data import open_dataset, write_mixed
from dpa_core.errors import ConfigError, DataError
from dpa_core.frames import Frame
from ops.base import Paused
from ops.label import (
    LabelConfig,
    LabelInputs,
    PrepareConfig,
    PrepareInputs,
    prepare_labels,
    run_labels,
)
from ops.labelers import LabelFailed, Structure
from ops.labelers.command import run_command
from ops.labelers.match import WrongStructureError, label_structure
from ops.labelers.store import LabelStore

EMT_LABELER = {"type": "ase", "calculator": "emt"}
NAP = f"8{os.getpid()}.25"
"""Seconds; a word by which the processes of this run are found."""
FEW = 2e-5
"""Å. VASP and QE print positions and forces with 5 to 8 decimals."""


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DPAFLOW_LABELS", str(tmp_path / "labels"))


def alloy(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk("Al", cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.05, (4, 3))
    atoms.symbols = rng.choice(["Al", "Cu"], 4)
    return atoms


def select(frames: list[Atoms], folder: Path, type_map: tuple[str, ...] = ("Cu", "Al")) -> Path:
    """Write structures as `select` does."""
    items = [
        Frame(a.positions.copy(), np.array([type_map.index(s) for s in a.symbols]),
              np.array(a.cell.array)) for a in frames
    ]  # fmt: skip
    write_mixed(items, type_map, folder, source=[f"walk frame {k}" for k in range(len(items))])
    return folder


def prepare(labeler: dict[str, Any], selected: Path, outdir: Path, **settings: Any) -> Path:
    data = settings.pop("data", {})
    config = parse_config(PrepareConfig, {"labeler": labeler, **settings}, "test")
    prepare_labels(PrepareInputs(selected, data), config, outdir)
    return outdir


def label(labeler: dict[str, Any], prepared: Path, outdir: Path, **settings: Any) -> list[dict]:
    data = settings.pop("data", {})
    config = parse_config(LabelConfig, {"labeler": labeler, **settings}, "test")
    return run_labels(LabelInputs(prepared, data), config, outdir)["tasks"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# --- ASE ---------------------------------------------------------------------------------------


def test_emt_labels_are_derivatives_of_the_energy(tmp_path: Path) -> None:
    frames = [alloy(k) for k in range(3)]
    prepared = prepare(EMT_LABELER, select(frames, tmp_path / "sel"), tmp_path / "p")
    label(EMT_LABELER, prepared, tmp_path / "l")
    data = open_dataset(tmp_path / "l" / "labelled", type_map=("Cu", "Al"))

    def energy(atoms: Atoms) -> float:
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    h = 1e-4
    for k, atoms in enumerate(frames):
        found = data[k]
        assert found.energy == pytest.approx(energy(atoms.copy()), abs=1e-12)
        ends = [atoms.copy(), atoms.copy()]
        ends[0].positions[1, 2] += h
        ends[1].positions[1, 2] -= h
        assert found.force[1, 2] == pytest.approx(-(energy(ends[0]) - energy(ends[1])) / (2 * h),
                                                  abs=1e-6)  # fmt: skip
        for i, j in ((0, 0), (1, 2)):
            ends = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[i, j] += sign * h
                moved = atoms.copy()
                moved.set_cell(moved.cell.array @ strain, scale_atoms=True)
                ends.append(energy(moved))
            assert found.virial[i, j] == pytest.approx(-(ends[0] - ends[1]) / (2 * h), abs=1e-5)


class Smeared(EMT):
    """As a code with smeared occupations: "energy" is not what the forces belong to."""

    def calculate(self, *args: Any, **keywords: Any) -> None:
        super().calculate(*args, **keywords)
        self.results["free_energy"] = self.results["energy"]
        self.results["energy"] += 0.5


def test_the_energy_is_the_one_that_the_forces_belong_to(tmp_path: Path) -> None:
    selected = select([alloy(0)], tmp_path / "sel")
    energies = []
    for number, name in enumerate(("emt", f"{__name__}:Smeared")):
        labeler = {"type": "ase", "calculator": name}
        prepared = prepare(labeler, selected, tmp_path / f"p{number}")
        label(labeler, prepared, tmp_path / f"l{number}")
        energies.append(open_dataset(tmp_path / f"l{number}" / "labelled")[0].energy)
    assert energies[0] == pytest.approx(energies[1], abs=1e-12)


def test_groups_share_the_tasks_and_the_store(tmp_path: Path) -> None:
    frames = [alloy(k) for k in range(3)]
    selected = select([*frames, frames[0]], tmp_path / "sel")
    prepared = prepare(EMT_LABELER, selected, tmp_path / "p", groups=3, group_size=2)
    document = json.loads((prepared / "tasks.json").read_text())
    assert [(t["name"], t["group"], t["source"]) for t in document["tasks"]] == [
        ("000000", 0, "walk frame 0"), ("000001", 0, "walk frame 1"), ("000002", 1, "walk frame 2"),
    ]  # fmt: skip  # the fourth structure is the first one again
    first = label(EMT_LABELER, prepared, tmp_path / "g0", group=0)
    assert [t["reused"] for t in first] == [False, False]
    assert label(EMT_LABELER, prepared, tmp_path / "g2", group=2) == []
    assert list((tmp_path / "g2" / "labelled").iterdir()) == []
    # later, the same structures in another order: two are there, one is new
    later = prepare(EMT_LABELER, select(frames[::-1], tmp_path / "sel2"), tmp_path / "p2")
    assert [t["reused"] for t in label(EMT_LABELER, later, tmp_path / "g")] == [False, True, True]
    # other settings are other labels
    other = EMT_LABELER | {"arguments": {"fixed_cutoff": False}}
    again = prepare(other, selected, tmp_path / "p3")
    assert [t["reused"] for t in label(other, again, tmp_path / "g3")] == [False] * 3


def test_no_structures(tmp_path: Path) -> None:
    (tmp_path / "sel").mkdir()
    prepared = prepare(EMT_LABELER, tmp_path / "sel", tmp_path / "p")
    assert label(EMT_LABELER, prepared, tmp_path / "l") == []
    assert list((tmp_path / "l" / "labelled").iterdir()) == []


def test_prepare_refuses_what_cannot_work(tmp_path: Path) -> None:
    selected = select([alloy(0), alloy(1)], tmp_path / "sel")
    with pytest.raises(ConfigError, match="'emtt' is unknown to ASE"):
        prepare({"type": "ase", "calculator": "emtt"}, selected, tmp_path / "p")
    with pytest.raises(ConfigError, match="does not take the arguments"):
        prepare(EMT_LABELER | {"retry": {"calculator": "ase.calculators.mixing:SumCalculator",
                "arguments": {"x": 1}}}, selected, tmp_path / "p")  # fmt: skip
    with pytest.raises(ConfigError, match="No such file"):
        prepare({"type": "cp2k", "template": "gone.inp"}, selected, tmp_path / "p")
    with pytest.raises(ConfigError, match="no data set is called 'x'; there are none"):
        prepare({"type": "pool", "data": "x"}, selected, tmp_path / "p")
    with pytest.raises(DataError, match="2 structures to label"):
        prepare(EMT_LABELER, selected, tmp_path / "p", groups=1, group_size=1)


def test_what_fails_is_put_aside_and_the_others_go_on(tmp_path: Path) -> None:
    frames = [alloy(0), alloy(1)]
    frames[0].symbols = ["Al", "Al", "Fe", "Al"]  # EMT does not know iron
    selected = select(frames, tmp_path / "sel", ("Al", "Cu", "Fe"))
    prepared = prepare(EMT_LABELER, selected, tmp_path / "p")
    tasks = label(EMT_LABELER, prepared, tmp_path / "l")
    assert [t["state"] for t in tasks] == ["failed", "labelled"]
    assert "No EMT-potential for Fe" in tasks[0]["reason"]
    assert len(open_dataset(tmp_path / "l" / "labelled")) == 1
    assert (tmp_path / "labels" / "failed" / tasks[0]["id"] / "info.json").exists()
    # complete and asked for again (resume --from): what failed is tried again
    retry = {"arguments": {}, "calculator": "lj"}
    again = EMT_LABELER | {"retry": retry}
    prepared = prepare(again, selected, tmp_path / "p2")
    tasks = label(again, prepared, tmp_path / "l")
    assert [(t["state"], t["attempts"], t["reused"]) for t in tasks] == [
        ("labelled", 2, False), ("labelled", 1, True)]  # fmt: skip


def test_pool_reveals_exactly_what_is_asked_for(tmp_path: Path) -> None:
    frames = [alloy(k) for k in range(4)]
    rng = np.random.default_rng(0)
    labelled = []
    for k, a in enumerate(frames):
        types = np.array([("Al", "Cu").index(s) for s in a.symbols])
        labelled.append(Frame(a.positions.copy(), types, np.array(a.cell.array), float(k),
                              rng.normal(size=(4, 3)), rng.normal(size=(3, 3))))  # fmt: skip
    write_mixed(labelled, ("Al", "Cu"), tmp_path / "pool")
    labeler, data = {"type": "pool", "data": "all"}, {"all": tmp_path / "pool"}
    moved = frames[1].copy()
    moved.positions[0, 0] += 1e-12
    selected = select([frames[2], moved, frames[0]], tmp_path / "sel")
    prepared = prepare(labeler, selected, tmp_path / "p", data=data)
    tasks = label(labeler, prepared, tmp_path / "l", data=data)
    assert [t["state"] for t in tasks] == ["labelled", "failed", "labelled"]
    found = open_dataset(tmp_path / "l" / "labelled")
    for k, wanted in enumerate((labelled[2], labelled[0])):
        assert found[k].energy == wanted.energy
        np.testing.assert_array_equal(found[k].force, wanted.force)
        np.testing.assert_array_equal(found[k].virial, wanted.virial)
        assert [found.type_map[t] for t in found[k].atype] == list(frames[(2, 0)[k]].symbols)


# --- outputs of the codes ----------------------------------------------------------------------


def test_a_turned_output_is_turned_back() -> None:
    """Energy, forces and virial of a rotated copy, computed by EMT, belong to the original."""
    atoms = alloy(5)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)

    def labelled(a: Atoms) -> Frame:
        a.calc = EMT()
        virial = -a.get_stress(voigt=False) * a.get_volume()
        types = np.array([("Al", "Cu").index(s) for s in a.symbols])
        return Frame(a.positions, types, np.array(a.cell.array), a.get_potential_energy(),
                     a.get_forces(), virial)  # fmt: skip

    other = atoms.copy()
    other.set_cell(atoms.cell.array @ turn)
    other.positions = (atoms.positions + atoms.cell.array[0]) @ turn  # and wrapped
    asked = Structure(tuple(atoms.symbols), atoms.positions, atoms.cell.array)
    found = label_structure(asked, labelled(other), ("Al", "Cu"), ("Al", "Cu"), "out")
    wanted = labelled(atoms)
    for name in ("energy", "force", "virial"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-10)
    np.testing.assert_array_equal(found.coord, atoms.positions)


def test_an_output_of_another_structure_is_an_error() -> None:
    atoms = bulk("Al", cubic=True)
    asked = Structure(("Al", "Cu", "Al", "Al"), atoms.positions, atoms.cell.array)
    good = Frame(atoms.positions, np.array([0, 1, 0, 0]), atoms.cell.array, 1.0, np.zeros((4, 3)))

    def read(**change: Any) -> Frame:
        return label_structure(asked, good._replace(**change), ("Al", "Cu"), ("Al", "Cu"), "out")

    read()
    read(coord=atoms.positions + 5e-4)
    with pytest.raises(WrongStructureError, match="another order"):
        read(atype=np.array([1, 0, 0, 0]))
    with pytest.raises(WrongStructureError, match=r"atom 0 is 2\.86"):
        read(coord=atoms.positions[[2, 1, 0, 3]])
    with pytest.raises(WrongStructureError, match="changed the cell"):
        read(box=atoms.cell.array * 1.01)
    with pytest.raises(WrongStructureError, match="changed the cell"):
        read(box=atoms.cell.array @ np.diag([1, 1, -1]))  # a reflection is no rotation
    force = np.zeros((4, 3))
    force[2, 1] = np.inf
    with pytest.raises(LabelFailed, match=r"force\[2, 1\] is inf"):
        read(force=force)
    with pytest.raises(LabelFailed, match="no energy and forces"):
        read(force=None)


@pytest.fixture(scope="module")
def samples(shared: Path) -> Path:
    return shared / "data" / "raw_samples"


def run_sample(labeler: dict[str, Any], asked: list[Atoms], folder: Path) -> list[dict]:
    type_map = tuple(sorted({s for a in asked for s in a.symbols}))
    selected = select(asked, folder / "sel", type_map)
    return label(labeler, prepare(labeler, selected, folder / "p"), folder / "l")


@pytest.fixture
def vasp(tmp_path: Path) -> dict[str, Any]:
    for name in ("O", "H"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "POTCAR").write_text(name)
    return {"type": "vasp", "incar": "ENCUT = 400\nEDIFF = 1e-5\n", "kspacing": 1.0,
            "potcars": str(tmp_path), "potentials": {"O": "O", "H": "H"}}  # fmt: skip


def test_vasp_output_in_the_order_asked_for(samples: Path, vasp, tmp_path: Path) -> None:
    sample = samples / "vasp" / "OUTCAR.h2o.md.10"
    truth = ase.io.read(sample, format="vasp-out", index=0)
    order = [2, 0, 3, 1, 4, 5]  # of the atoms asked for; VASP had O O H H H H
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    asked = Atoms(np.array(list(truth.symbols))[order], truth.positions[order] @ turn,
                  cell=truth.cell.array @ turn, pbc=True)  # fmt: skip
    # the head of an MD run is a static run
    labeler = vasp | {"command": f"sed '/Iteration    2(   1)/,$d' {sample} > OUTCAR; echo hello",
                      "keep": ["OUTCAR", "INCAR"]}  # fmt: skip
    (task,) = run_sample(labeler, [asked], tmp_path)
    assert task["state"] == "labelled", task
    found = open_dataset(tmp_path / "l" / "labelled", type_map=("H", "O"))[0]
    assert [("H", "O")[t] for t in found.atype] == list(asked.symbols)
    np.testing.assert_array_equal(found.coord, asked.positions)
    assert found.energy == pytest.approx(-28.386226, abs=1e-6)  # the manifest's
    np.testing.assert_allclose(found.force, truth.get_forces()[order] @ turn, atol=FEW)
    virial = -truth.get_stress(voigt=False) * truth.get_volume()
    np.testing.assert_allclose(found.virial, turn.T @ virial @ turn, atol=1e-4)
    assert {"label.npz", "info.json", "OUTCAR", "INCAR"} == {
        p.name for p in (tmp_path / "labels" / "labels" / task["id"]).iterdir()}  # fmt: skip


def test_vasp_runs_that_are_no_single_point_or_failed(samples: Path, vasp, tmp_path: Path) -> None:
    sample = samples / "vasp" / "OUTCAR.h2o.md.10"
    asked = ase.io.read(sample, format="vasp-out", index=0)
    with pytest.raises(DataError, match="10 frames, expected one"):
        run_sample(vasp | {"command": f"cp {sample} OUTCAR"}, [asked], tmp_path / "md")
    bad = samples / "vasp" / "OUTCAR.ch4.1step"
    labeler = vasp | {"command": f"cp {bad} OUTCAR; cat POTCAR; echo trouble >&2"}
    labeler["retry"] = {"command": "echo no license >&2; exit 3"}
    (task,) = run_sample(labeler, [asked], tmp_path / "failed")
    assert (task["state"], task["attempts"]) == ("failed", 2)
    assert task["reason"] == (
        "OUTCAR: not converged, it has no frame with a converged SCF cycle; converge the "
        "calculation or leave the file out; then the command ended with exit code 3; run.err: "
        "no license"
    )
    place = tmp_path / "labels" / "failed" / task["id"]
    assert (place / "attempt-1" / "run.out").read_text() == "OH"
    assert (place / "attempt-2" / "run.err").read_text() == "no license\n"
    assert (place / "attempt-1" / "OUTCAR").read_bytes() == bad.read_bytes()
    assert not list(place.rglob("POTCAR"))
    assert list((tmp_path / "failed" / "l").glob("work*")) == []


def test_abacus_output(samples: Path, tmp_path: Path) -> None:
    for name in ("C.upf", "H.upf"):
        (tmp_path / name).write_text(name)
    # positions of STRU.ch4, forces of its running_scf.log, hydrogen asked for on both sides
    coord = 10 * np.array([[1.023557202, 0.758025625, 0.66351336],
                           [0.981274803, 0.861285385, 0.838442496],
                           [0.78075702, 0.889445935, 0.837363468],
                           [1.064091613, 1.043438905, 0.840995502],
                           [1.039321214, 0.756530859, 1.009609207]]) * 0.529177210903  # fmt: skip
    force = [[0.292544, 0.119474, 0.337774], [-0.154995, -1.114764, 0.083421],
             [-0.687903, -0.019808, 0.245423], [0.710191, 0.888630, -0.138594],
             [-0.159837, 0.126468, -0.528024]]  # fmt: skip
    asked = Atoms("HCHHH", coord, cell=np.eye(3) * 5.29177210903, pbc=True)
    log = samples / "abacus" / "scf" / "OUT.ch4" / "running_scf.log"
    bad = samples / "abacus" / "scf" / "OUT.ch4fail" / "running_scf.log"
    labeler = {"type": "abacus", "input": "INPUT_PARAMETERS\ncal_force 1\ncal_stress 1\n",
               "kspacing": 2.0, "pseudo_dir": str(tmp_path),
               "pseudos": {"C": "C.upf", "H": "H.upf"},
               "command": f"mkdir OUT.ABACUS; cp {bad} OUT.ABACUS/running_scf.log",
               "retry": {"command": f"mkdir OUT.ABACUS; cp {log} OUT.ABACUS"}}  # fmt: skip
    (task,) = run_sample(labeler, [asked], tmp_path)
    assert (task["state"], task["attempts"]) == ("labelled", 2), task
    found = open_dataset(tmp_path / "l" / "labelled")[0]
    np.testing.assert_allclose(found.force, force, atol=1e-6)
    assert found.energy == pytest.approx(-219.649914, abs=1e-5)
    assert found.virial is not None


def test_qe_output(samples: Path, tmp_path: Path) -> None:
    for name in ("C.upf", "H.upf"):
        (tmp_path / name).write_text(name)
    sample = samples / "qe" / "scf" / "01.out"
    truth = ase.io.read(sample, format="espresso-out")
    template = "&control\n tprnfor=.true.\n tstress=.true.\n/\n&system\n ecutwfc=110\n/\n"
    labeler = {"type": "qe", "template": template, "kspacing": 1.0, "pseudo_dir": str(tmp_path),
               "pseudos": {"H": "H.upf", "C": "C.upf"}, "command": f"cat {sample}"}  # fmt: skip
    (task,) = run_sample(labeler, [truth], tmp_path)
    assert task["state"] == "labelled", task
    found = open_dataset(tmp_path / "l" / "labelled")[0]
    assert found.energy == pytest.approx(-219.744261, abs=1e-6)  # the manifest's, by dpdata
    np.testing.assert_allclose(found.force, truth.get_forces(), atol=FEW)
    with pytest.raises(DataError, match="another order"):
        run_sample(labeler, [truth[[4, 0, 1, 2, 3]]], tmp_path / "wrong")


def test_cp2k_output(samples: Path, tmp_path: Path) -> None:
    sample = samples / "cp2k" / "cp2k_normal_output"
    template = """&GLOBAL
 RUN_TYPE ENERGY_FORCE
&END
&FORCE_EVAL
 STRESS_TENSOR ANALYTICAL
 &PRINT
  &FORCES ON
  &END
  &STRESS_TENSOR ON
  &END
 &END
 &SUBSYS
  @STRUCTURE@
  &KIND DEFAULT
  &END
 &END
&END
"""
    text = re.sub("Fe[12]", "Fe ", sample.read_text())  # two kinds of one element
    lines = text[text.rindex("ATOMIC COORDINATES IN angstrom") :].splitlines()
    rows = [line.split() for line in lines if len(line.split()) == 9 and line.split()[0].isdigit()]
    cell = [line.split()[4:7] for line in text.splitlines() if "CELL| Vector" in line][:3]
    asked = Atoms([r[2] for r in rows], np.array([r[4:7] for r in rows], float),
                  cell=np.array(cell, float), pbc=True)  # fmt: skip
    command = f"sed 's/Fe[12]/Fe /' {sample}"
    labeler = {"type": "cp2k", "template": template, "command": command}
    (task,) = run_sample(labeler, [asked], tmp_path)
    assert task["state"] == "labelled", task
    found = open_dataset(tmp_path / "l" / "labelled")[0]
    assert found.energy == pytest.approx(-48061.448464, abs=1e-5)
    assert np.abs(found.force).max() == pytest.approx(0.733, abs=1e-3)
    # -7.957 GPa (its STRESS TENSOR) times the volume; CP2K prints pressure as positive
    pressure = found.virial[0, 0] / asked.get_volume() * 160.21766208
    assert pressure == pytest.approx(-7.95728223, rel=1e-6)


# --- the command -------------------------------------------------------------------------------


def test_a_command_that_does_not_exist_stops_the_step(vasp, tmp_path: Path) -> None:
    asked = Atoms("OH", [[0, 0, 0], [0, 0, 1]], cell=np.eye(3) * 5, pbc=True)
    with pytest.raises(ConfigError, match="'no-such-vasp' cannot be run"):
        run_sample(vasp | {"command": "no-such-vasp"}, [asked], tmp_path / "a")
    assert not (tmp_path / "labels").exists()
    labeler = vasp | {"command": f"sleep {NAP} & sleep {NAP}", "timeout": 0.3}
    (task,) = run_sample(labeler, [asked], tmp_path / "b")
    assert task["reason"].startswith("not done after 0.3 s")
    assert not alive(NAP)


def test_a_killed_command_is_run_again_in_a_new_folder(vasp, tmp_path: Path) -> None:
    asked = Atoms("OH", [[0, 0, 0], [0, 0, 1]], cell=np.eye(3) * 5, pbc=True)
    note = tmp_path / "runs"
    labeler = vasp | {"command": f"ls | tr '\\n' ' ' >> {note}; echo >> {note}; kill -9 $$"}
    (task,) = run_sample(labeler, [asked], tmp_path / "a")
    assert task["state"] == "failed"
    assert "killed (exit code 137)" in task["reason"]
    fresh = "INCAR KPOINTS POSCAR POTCAR run.err run.out"
    assert [line.strip() for line in note.read_text().splitlines()] == [fresh] * 3


def alive(word: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if word in line and "pytest" not in line and process.info["status"] != "zombie":
            found.append(line)
    return found


def test_the_command_ends_with_who_started_it(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(
        target=run_command, args=(f"sleep {NAP} & sleep {NAP}; sleep {NAP}", tmp_path, None)
    )
    child.start()
    wait_for(lambda: len(alive(NAP)) >= 3)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    wait_for(lambda: not alive(NAP))


def wait_for(done: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.05)


# --- nothing is lost ---------------------------------------------------------------------------


def test_kills_at_any_moment_change_nothing(tmp_path: Path, monkeypatch) -> None:
    """Killed again and again: no label is computed twice but the one in progress."""
    source = """
        import os, time
        from pathlib import Path
        from ase.calculators.emt import EMT
        class Slow(EMT):
            def calculate(self, *args, **kwargs):
                with Path(os.environ["RUNS"]).open("a") as stream:
                    stream.write("run\\n")
                time.sleep(0.1)
                super().calculate(*args, **kwargs)
    """
    (tmp_path / "slow_emt.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    labeler = {"type": "ase", "calculator": "slow_emt:Slow"}
    frames = [alloy(k) for k in range(8)]
    frames[3].symbols[2] = "Fe"
    selected = select(frames, tmp_path / "sel", ("Al", "Cu", "Fe"))
    prepared = prepare(labeler, selected, tmp_path / "p")
    wanted = label(labeler, prepared, tmp_path / "undisturbed")
    monkeypatch.setenv("DPAFLOW_LABELS", str(tmp_path / "labels2"))
    (tmp_path / "runs").unlink()

    rng = np.random.default_rng(0)
    kills, code = 0, None
    while code != 0:
        child = multiprocessing.get_context("fork").Process(
            target=label, args=(labeler, prepared, tmp_path / "disturbed")
        )
        child.start()
        child.join(rng.uniform(0.05, 0.5))
        if child.is_alive():
            child.kill()
            kills += 1
        child.join()
        code = child.exitcode
        assert kills < 50
    assert kills >= 2
    assert contents(tmp_path / "disturbed" / "labelled") == contents(
        tmp_path / "undisturbed" / "labelled")  # fmt: skip
    found = json.loads((tmp_path / "disturbed" / "labels.json").read_text())["tasks"]
    for a, b in zip(found, wanted, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"}  # fmt: skip
    assert (tmp_path / "runs").read_text().count("run") <= 8 + kills


def test_a_full_disk_stops_the_step_and_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    selected = select([alloy(k) for k in range(3)], tmp_path / "sel")
    prepared = prepare(EMT_LABELER, selected, tmp_path / "p")
    savez, calls = np.savez, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(*args, **kwargs)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        label(EMT_LABELER, prepared, tmp_path / "l")
    tasks = label(EMT_LABELER, prepared, tmp_path / "l")
    assert [t["state"] for t in tasks] == ["labelled"] * 3
    assert len(calls) == 4  # the first label was not made again
    assert not list((tmp_path / "labels" / "labels").glob(".new*"))


def test_a_damaged_label_is_set_aside(tmp_path: Path, caplog) -> None:
    prepared = prepare(EMT_LABELER, select([alloy(0)], tmp_path / "sel"), tmp_path / "p")
    (task,) = label(EMT_LABELER, prepared, tmp_path / "l")
    good = contents(tmp_path / "l" / "labelled")
    file = tmp_path / "labels" / "labels" / task["id"] / "label.npz"
    file.write_bytes(file.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        (task,) = label(EMT_LABELER, prepared, tmp_path / "l2")
    assert "set aside" in caplog.text
    assert (task["state"], task["reused"]) == ("labelled", False)
    assert contents(tmp_path / "l2" / "labelled") == good


def test_a_label_is_stored_once(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "s")
    structure = Structure(("Al",), np.zeros((1, 3)), np.eye(3) * 3)
    frame = Frame(structure.coord, np.zeros(1, int), structure.box, 1.5, np.ones((1, 3)))
    store.put("a", structure, frame, {"n": 1})
    store.put("a", structure, frame._replace(energy=2.5), {"n": 2})
    stored = store.get("a", structure)
    assert stored is not None
    assert (stored.frame.energy, stored.frame.virial, stored.info) == (1.5, None, {"n": 1})
    assert store.get("b", structure) is None


# --- by hand -----------------------------------------------------------------------------------


def test_manual_waits_and_goes_on(samples: Path, vasp, tmp_path: Path) -> None:
    sample = samples / "vasp" / "OUTCAR.h2o.md.10"
    one = ase.io.read(sample, format="vasp-out", index=0)
    labeler = {"type": "manual", "inputs": vasp}
    selected = select([one, one[::-1], alloy_water(one)], tmp_path / "sel", ("H", "O"))
    prepared = prepare(labeler, selected, tmp_path / "p", groups=2, group_size=2)
    with pytest.raises(Paused) as caught:
        label(labeler, prepared, tmp_path / "l")
    message = str(caught.value)
    (place,) = (tmp_path / "labels" / "manual").iterdir()
    assert "2 of 2 labels must come from outside" in message
    assert str(place) in message
    assert "000001: OUTCAR is missing" in message
    # the inputs of the other group are there as well, and everything that VASP needs
    assert sorted(p.name for p in place.iterdir()) == ["000000", "000001", "000002", "README.txt"]
    assert {p.name for p in (place / "000002").iterdir()} == {"INCAR", "KPOINTS", "POSCAR",
                                                             "POTCAR"}  # fmt: skip
    text = sample.read_text()
    good = text[: text.index("Iteration    2(   1)")]
    (place / "000000" / "OUTCAR").write_text(good)
    (place / "000001" / "OUTCAR").write_text(good[: len(good) // 2])  # still being copied
    with pytest.raises(Paused, match=r"1 of 2 labels(.|\n)*000001: OUTCAR: not converged"):
        label(labeler, prepared, tmp_path / "l")
    (place / "000001" / "SKIP").touch()
    tasks = label(labeler, prepared, tmp_path / "l")
    assert [(t["state"], t["reason"]) for t in tasks] == [
        ("labelled", ""), ("failed", "left out by the file SKIP")]  # fmt: skip
    patient = prepare(labeler, select([one[::-1]], tmp_path / "s2", ("H", "O")), tmp_path / "p1")
    with pytest.raises(Paused):  # given up on earlier ones, these were only just handed out
        label(labeler | {"give_up": True}, patient, tmp_path / "l3")
    tasks = label(labeler | {"give_up": True}, prepared, tmp_path / "l1", group=1)
    assert [(t["state"], t["reason"]) for t in tasks] == [("failed", "OUTCAR is missing")]
    # the label is the same as if the program had been run here
    here = vasp | {"command": "false"}
    again = prepare(here, selected, tmp_path / "p2")
    states = [t["state"] for t in label(here, again, tmp_path / "l2")]
    assert states == ["labelled", "failed", "failed"]


def alloy_water(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.positions[0, 0] += 0.1
    return moved


def test_importing_the_settings_loads_no_torch() -> None:
    code = "import sys, ops.label; sys.exit(bool({'torch', 'dpdata', 'ase'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
