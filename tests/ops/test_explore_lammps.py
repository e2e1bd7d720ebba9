"""LAMMPS: inputs against committed references, output of a real LAMMPS, stops, missing programs.

The references and the output in tests/ops/lammps are made by tests/ops/record_lammps.py.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from ase.io.lammpsdata import read_lammps_data

from dpa_core.committee import Deviation, read_model_devi, write_model_devi
from dpa_core.config import parse_config
from dpa_core.data import open_dataset
from dpa_core.errors import ConfigError, DataError
from ops.base import Paused
from ops.explore import ExploreConfig, ExploreInputs, run_explore
from ops.explorers.lammps_output import read_dump, read_trajectory
from tests.ops.record_lammps import CASES, FOLDER, SEED, settings, structure, task, write_inputs

TYPE_MAP = ("O", "Al", "Cu")


def numbers(text):
    return np.array([float(word) for word in text.split() if word.lstrip("-")[:1].isdigit()])


@pytest.mark.parametrize("case", list(CASES))
def test_inputs_are_the_committed_ones(case, tmp_path):
    write_inputs(settings(case), task(case), TYPE_MAP, SEED, tmp_path)
    expected = FOLDER / case
    assert (tmp_path / "in.lammps").read_text() == (expected / "in.lammps").read_text()
    data, reference = ((p / "data.lammps").read_text() for p in (tmp_path, expected))
    assert np.allclose(numbers(data), numbers(reference), atol=1e-9)


def test_data_file_holds_the_same_crystal(tmp_path):
    """Independent of the frame that LAMMPS wants: distances, elements and volume agree."""
    write_inputs(settings("nve"), task("nve"), TYPE_MAP, SEED, tmp_path)
    atoms, start = read_lammps_data(tmp_path / "data.lammps", units="metal"), structure()
    assert start.cell.handedness == -1
    assert atoms.cell.handedness == 1
    assert atoms.get_chemical_symbols() == start.get_chemical_symbols()
    assert np.allclose(atoms.get_all_distances(mic=True), start.get_all_distances(mic=True))
    assert atoms.get_volume() == pytest.approx(start.get_volume())


def with_deviation(case, tmp_path, values=(0.1, 0.2, 0.3, 0.4)):
    """A folder as LAMMPS leaves it; the deviation by hand, without devi_e as LAMMPS has it."""
    folder = tmp_path / case
    shutil.copytree(FOLDER / case, folder)
    columns = [np.array(values) * (1 + k) for k in range(7)]
    write_model_devi(folder / "full", np.arange(len(values)) * 10, Deviation(*columns))
    rows = [line[: 12 + 6 * 19] for line in (folder / "full").read_text().splitlines()]
    (folder / "model_devi.out").write_text("\n".join(rows) + "\n")
    return folder


def test_output_of_lammps_is_read(tmp_path):
    folder = with_deviation("npt-full", tmp_path)
    found = read_trajectory(settings("npt-full"), task("npt-full"), TYPE_MAP, folder)
    assert (found.stop, found.done, found.steps) == (None, 30, [0, 10, 20, 30])
    assert found.deviation.max_devi_f.tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert np.isnan(found.deviation.devi_e).all()
    first, last = found.frames[0], found.frames[-1]
    assert first.atype.tolist() == [2, 1, 2, 2, 1, 2, 1, 2]
    start = structure()
    # numbers of the dump itself: bounds with tilts, Å
    assert first.box is not None
    assert last.box is not None
    assert abs(np.linalg.det(first.box)) == pytest.approx(start.get_volume())
    assert first.box[1] == pytest.approx([2.7310682705, 4.4655633857, 0.0], abs=1e-9)
    assert last.coord[1] == pytest.approx([-1.17772837621, -0.638253035203, -2.02719498109])
    assert first.energy is None


def test_halt_of_lammps_is_the_stop(tmp_path):
    """Recorded: "Fix halt condition for fix-id temperature met on step 30"."""
    folder = with_deviation("halted", tmp_path)
    found = read_trajectory(settings("halted"), task("halted"), TYPE_MAP, folder)
    assert found.stop is not None
    assert (found.stop.reason, found.stop.step, found.steps) == ("temperature", 30, [0, 10, 20])


def test_limits_are_applied_to_what_lammps_wrote(tmp_path):
    folder = with_deviation("npt-full", tmp_path)
    config = settings("npt-full")
    config = config.model_copy(update={"stop": config.stop.model_copy(update={"max_devi_f": 0.7})})
    found = read_trajectory(config, task("npt-full"), TYPE_MAP, folder)
    assert found.stop is not None
    assert (found.stop.reason, found.steps) == ("deviation", [0, 10])


def test_killed_lammps(tmp_path):
    folder = with_deviation("npt-full", tmp_path)
    (folder / "finished").unlink()
    dump = (folder / "dump.lammpstrj").read_text()
    for cut in (3, 40, 500):
        (folder / "dump.lammpstrj").write_text(dump[:-cut])
        assert len(read_dump(folder / "dump.lammpstrj")) == 3
    found = read_trajectory(settings("npt-full"), task("npt-full"), TYPE_MAP, folder)
    assert found.stop is not None
    assert (found.stop.reason, found.steps) == ("error", [0, 10, 20])
    (folder / "dump.lammpstrj").unlink()
    (folder / "lammps.out").write_text("ERROR: Unrecognized pair style 'deepmd'\n")
    with pytest.raises(DataError, match="Unrecognized pair style 'deepmd'"):
        read_trajectory(settings("npt-full"), task("npt-full"), TYPE_MAP, folder)


def explore_config(tmp_path, **explorer):
    models = [tmp_path / "m0.pth", tmp_path / "m1.pth"]
    for path in models:
        path.touch()
    explorer = {"type": "lammps", "model_files": [str(m) for m in models], "ensemble": "npt",
                "cell": "full", "pressures": [2.5], "temperatures": [300],
                "steps": 30} | explorer  # fmt: skip
    source = {"type": "generate", "lattice": "fcc", "element": "Cu", "supercell": [2, 2, 2],
              "composition": {"Cu": 5, "Al": 3}}  # fmt: skip
    return parse_config(
        ExploreConfig,
        {"sources": {"alloy": source}, "type_map": TYPE_MAP,
         "stages": [{"structures": ["alloy"], "explorer": explorer}]},
        "test",
    )  # fmt: skip


def test_what_is_missing_is_said_at_the_start(tmp_path):
    def refused(match, **explorer):
        with pytest.raises(ConfigError, match=match):
            run_explore(ExploreInputs([]), explore_config(tmp_path, **explorer), tmp_path / "out")
        assert not (tmp_path / "out" / "lammps").exists()

    refused("model_files is empty", model_files=[])
    refused("only for two or more", model_files=["none.pth"])
    refused("none.pth does not exist", model_files=[str(tmp_path / "m0.pth"), "none.pth"])
    refused("command is not set")
    refused("'no-such-lmp' of command is not found", command="no-such-lmp -sf omp")


def test_write_only_pauses_and_takes_up_the_results(tmp_path):
    config = explore_config(tmp_path, write_only=True)
    out = tmp_path / "out"
    with pytest.raises(Paused, match=r"1 LAMMPS runs .*000000.*resume"):
        run_explore(ExploreInputs([]), config, out)
    folder = out / "lammps" / "000000"
    before = (folder / "in.lammps").read_text()
    for name in ("dump.lammpstrj", "log.lammps", "model_devi.out"):
        shutil.copy(with_deviation("npt-full", tmp_path / name) / name, folder / name)
    with pytest.raises(Paused):  # not until LAMMPS said that it is done
        run_explore(ExploreInputs([]), config, out)
    shutil.copy(FOLDER / "npt-full" / "finished", folder / "finished")
    document = run_explore(ExploreInputs([]), config, out)
    assert (folder / "in.lammps").read_text() == before
    entry = document["trajectories"][0]
    assert (entry["frames"], entry["stop"], entry["pressure"]) == (4, None, 2.5)
    dataset = open_dataset(out / "trajectories" / "000000")
    assert len(dataset) == 4
    steps, _ = read_model_devi(out / "trajectories" / "000000" / "model_devi.out")
    assert steps.tolist() == [0, 10, 20, 30]
    json.loads((out / "explore.json").read_text())


def test_command_is_run_in_the_folder(tmp_path):
    """A stand-in program that behaves as LAMMPS: reads -in, writes dump and deviation."""
    recorded = with_deviation("npt-full", tmp_path)
    program = tmp_path / "lmp"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1" = -sf ] && [ "$3" = -in ] && [ "$4" = in.lammps ] || exit 9\n'
        "grep -q deepmd in.lammps || exit 8\n"
        f"cp {recorded}/dump.lammpstrj {recorded}/model_devi.out {recorded}/finished .\n"
    )
    program.chmod(0o755)
    config = explore_config(tmp_path, command=f"{program} -sf omp")
    document = run_explore(ExploreInputs([]), config, tmp_path / "out")
    assert document["trajectories"][0]["frames"] == 4
    program.write_text("#!/bin/sh\necho no licence today\nexit 1\n")
    with pytest.raises(DataError, match="no licence today"):
        run_explore(ExploreInputs([]), config, tmp_path / "other")
