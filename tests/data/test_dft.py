"""Outputs of DFT codes against the recorded reference values; what is not converged is refused."""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dpa_core.data import Dataset, find_systems, open_dataset
from dpa_core.errors import DataError

from .helpers import message

# Rows of the manifest that hold reference values; read here by name, so that a row that is
# missing from the data shows as a failure and not as fewer tests.
REFERENCED = (
    "vasp/OUTCAR.h2o.md.10", "vasp/OUTCAR.ch4.ml", "vasp/OUTCAR.Ge.vdw",
    "vasp/vasprun.h2o.md.novirial.xml", "vasp/6362_OUTCAR", "vasp/Ti-aimd-nwrite0/OUTCAR",
    "vasp/Ti-aimd-nwrite0/vasprun.xml", "vasp/AgAc_relax/OUTCAR", "vasp/oc20_27998_vasprun.xml",
    "abacus/scf/INPUT", "abacus/md/INPUT", "abacus/md_Sn/INPUT", "qe/scf/01.out", "qe/scf/na.out",
    "qe/cp_traj/oh-md.pos", "qe/cp_traj_si/si.pos", "cp2k/cp2k_normal_output",
    "cp2k/cp2k_output_duplicate_header", "cp2k/cp2k_2025_output", "cp2k/aimd_stress/cp2k.log",
    "gaussian/methane.gaussianlog", "gaussian/aimd_gaussian_CH4_output",
    "gaussian/oxygen.gaussianlog", "gaussian/waterfreq.gaussianlog", "fhi_aims/out_scf",
    "fhi_aims/out_md", "siesta/scf_siesta_output", "siesta/aimd_output", "pwmat/MOVEMENT_1",
    "pwmat/OUT.MLMD", "orca/orca.spout", "psi4/psi4.out", "n2p2/input.data",
)  # fmt: skip

UNCONVERGED = (
    "vasp/OUTCAR.ch4.1step", "abacus/scf/OUT.ch4fail/running_scf.log", "abacus/scf/OUT.ch4fail",
    "gaussian/noncoveraged.gaussianlog",
)  # fmt: skip


@pytest.fixture(scope="module")
def samples(shared: Path) -> Path:
    return shared / "data" / "raw_samples"


@pytest.fixture(scope="module")
def manifest(samples: Path) -> dict[str, dict[str, str]]:
    with (samples / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return {row["file"]: row for row in csv.DictReader(stream)}


def largest_force(data: Dataset) -> float:
    return max(float(np.abs(data[k].force).max()) for k in range(len(data)))


@pytest.mark.parametrize("name", REFERENCED)
def test_reference_values(name: str, samples: Path, manifest: dict[str, dict[str, str]]) -> None:
    row = manifest[name]
    # one row has an unquoted comma in its note, which moves its values by one column
    values = [row["frames"], row["natoms"], row["E0_eV"], row["maxF_eV_per_A"], row["labels"]]
    if not values[0].strip().isdigit():
        values = [*values[1:], row[None][0]]  # type: ignore[index]
    data = open_dataset([samples / name])
    assert len(data) == int(values[0])
    assert data.natoms.tolist() == [int(values[1])] * len(data)
    assert data.energies([0])[0] == pytest.approx(float(values[2]), abs=2e-6)
    assert largest_force(data) == pytest.approx(float(values[3]), abs=6e-5)
    assert all((data[k].virial is None) == (values[4] == "no virial") for k in range(len(data)))


@pytest.mark.parametrize("name", UNCONVERGED)
def test_unconverged_output_is_refused_by_name(name: str, samples: Path) -> None:
    with pytest.raises(DataError, match="not converged") as error:
        open_dataset([samples / name])
    assert Path(name).name in message(error.value)


def altered(source: Path, target: Path, pattern: str, replacement: str, count: int = 0) -> Path:
    text, number = re.subn(pattern, replacement, source.read_text(), count=count)
    assert number > 0
    target.write_text(text)
    return target


def test_vasp_drops_frames_that_hit_nelm(samples: Path, tmp_path: Path) -> None:
    path = altered(
        samples / "vasp/OUTCAR.h2o.md.10", tmp_path / "OUTCAR", r"NELM   =     60", "NELM = 8"
    )
    whole, part = open_dataset([samples / "vasp/OUTCAR.h2o.md.10"]), open_dataset([path])
    assert 0 < len(part) < len(whole)
    assert set(part.energies()) < set(whole.energies())
    path = altered(path, tmp_path / "OUTCAR2", r"NELM = 8", "NELM = 1")
    with pytest.raises(DataError, match="OUTCAR2: not converged"):
        open_dataset([path])


def test_vasprun_that_hits_nelm(samples: Path, tmp_path: Path) -> None:
    source = samples / "vasp/oc20_27998_vasprun.xml"
    path = altered(source, tmp_path / "vasprun.xml", r'(name="NELM">) *\d+', r"\g<1> 2")
    with pytest.raises(DataError, match=r"vasprun\.xml: not converged"):
        open_dataset([path])


def test_cp2k_that_did_not_converge(samples: Path, tmp_path: Path) -> None:
    path = altered(
        samples / "cp2k/cp2k_normal_output", tmp_path / "out", "SCF run converged",
        "SCF run NOT converged",
    )  # fmt: skip
    with pytest.raises(DataError, match="out: not converged"):
        open_dataset([path])


def test_cp2k_md_leaves_out_the_step_that_failed(tmp_path: Path) -> None:
    from dpa_core.data.dft import _cp2k_converged, _cp2k_outcomes
    from dpa_core.frames import Frame

    frames = [Frame(np.zeros((1, 3)), np.zeros(1, dtype=np.int64), energy=float(k)) for k in (0, 1)]
    log = "*** SCF run converged in 9 steps ***\n*** SCF run NOT converged ***\n"
    assert _cp2k_outcomes(log) == [True, False]
    kept = _cp2k_converged(tmp_path / "log", frames, _cp2k_outcomes(log))
    assert [f.energy for f in kept] == [0.0]
    with pytest.raises(DataError, match="1 of 3 MD steps"):
        _cp2k_converged(tmp_path / "log", frames, [True, False, True])
    outer = log + "outer SCF loop converged in 2 iterations or 99 steps\n"
    assert _cp2k_outcomes(outer) == [True]
    outer = log + "outer SCF loop FAILED to converge after 5 iterations\n"
    assert _cp2k_outcomes(outer) == [False]


def test_gaussian_that_did_not_converge(samples: Path, tmp_path: Path) -> None:
    source = samples / "gaussian/methane.gaussianlog"
    line = " >>>>>>>>>> Convergence criterion not met.\n"
    (tmp_path / "a.log").write_text(source.read_text() + line)
    with pytest.raises(DataError, match=r"a\.log: not converged"):
        open_dataset([tmp_path / "a.log"])


def test_compressed_output(samples: Path, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "OUTCAR.gz", "wb") as stream:
        stream.write((samples / "vasp/OUTCAR.Ge.vdw").read_bytes())
    with pytest.raises(DataError, match=r"OUTCAR\.gz: compressed output.*unpack"):
        open_dataset([tmp_path])


def test_pw_that_did_not_converge(samples: Path, tmp_path: Path) -> None:
    path = altered(
        samples / "qe/scf/01.out", tmp_path / "pw.out", r"!(    total energy)", r" \1"
    )  # pw.x marks a converged energy by "!"
    path = altered(path, path, "convergence has been achieved", "convergence NOT achieved")
    with pytest.raises(DataError, match=r"pw\.out: not converged"):
        open_dataset([path])


def test_broken_output(samples: Path, tmp_path: Path) -> None:
    text = (samples / "vasp/vasprun.h2o.md.novirial.xml").read_text()
    (tmp_path / "vasprun.xml").write_text(text[: len(text) // 3])
    with pytest.raises(DataError, match=r"vasprun\.xml: cannot be read as vasp/xml") as error:
        open_dataset([tmp_path])
    message(error.value)


def test_pw_md_pairs_energy_and_force_of_each_step(samples: Path) -> None:
    """Force along the path equals the fall of the energy, which fails if steps are shifted."""
    data = open_dataset([samples / "qe/nomad_Si_md/out.out"])
    frames = [data[k] for k in range(len(data))]
    assert len(frames) == 50
    work, fall = [], []
    for a, b in itertools.pairwise(frames):
        move = b.coord - a.coord
        move -= np.round(move @ np.linalg.inv(a.box)) @ a.box
        work.append(float(np.sum(0.5 * (a.force + b.force) * move)))
        fall.append(float(a.energy - b.energy))
    np.testing.assert_allclose(work, fall, atol=0.02 * np.abs(fall).max())


# file, pattern of the printed pressure of the first frame, kbar per printed unit
PRESSURES = (
    ("qe/scf/01.out", r"P= *(-?[\d.]+)", 1.0),
    ("qe/cp_traj_si/si.pos", r"\n +20 +[\d.E+-]+(?: +[\d.E+-]+){7} +[\d.E+]+ +([\d.-]+)", 10.0),
    ("vasp/OUTCAR.h2o.md.10", r"external pressure = *(-?[\d.]+) kB", 1.0),
    ("vasp/OUTCAR.Ge.vdw", r"external pressure = *(-?[\d.]+) kB", 1.0),
    ("cp2k/aimd_stress/cp2k.log", r"1/3 Trace\(stress tensor\): *(-?[\d.E+-]+)", 10.0),
    ("siesta/aimd_output", r"Pressure \(static\): *(-?[\d.]+) *kBar", 1.0),
)


@pytest.mark.parametrize(("name", "pattern", "unit"), PRESSURES)
def test_virial_is_the_printed_pressure(
    name: str, pattern: str, unit: float, samples: Path
) -> None:
    """tr(virial) = 3 P |V| with the pressure the code prints, positive under compression."""
    text = (samples / name.replace("si.pos", "si.evp")).read_text()
    match = re.search(pattern, text)
    assert match is not None
    frame = open_dataset([samples / name])[0]
    pressure = np.trace(frame.virial) / (3 * abs(np.linalg.det(frame.box))) * 1602.1766208
    assert pressure == pytest.approx(float(match.group(1)) * unit, abs=0.006)


def test_left_handed_cell_keeps_the_virial(samples: Path, tmp_path: Path) -> None:
    """Exchanging two lattice vectors describes the same crystal."""
    source = samples / "vasp/OUTCAR.Ge.vdw"
    rows = r"(direct lattice vectors[^\n]*\n)([^\n]*\n)([^\n]*\n)"
    path = altered(source, tmp_path / "OUTCAR", rows, r"\1\3\2")
    frame, mirrored = open_dataset([source])[0], open_dataset([path])[0]
    assert np.linalg.det(frame.box) > 0 > np.linalg.det(mirrored.box)
    # the right-handed cell has been turned, so compare what no rotation changes
    for tensor in ("virial", "force", "coord"):
        a, b = getattr(frame, tensor), getattr(mirrored, tensor)
        np.testing.assert_allclose(b @ b.T, a @ a.T, atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(mirrored.virial), np.linalg.eigvalsh(frame.virial), rtol=1e-9
    )


def test_left_handed_abacus_structure(samples: Path, tmp_path: Path) -> None:
    """dpdata inverts a left-handed STRU but not the forces; both must stay as they were."""
    shutil.copytree(samples / "abacus/scf", tmp_path / "scf")
    rows = r"(LATTICE_VECTORS[^\n]*\n)([^\n]*\n)([^\n]*\n)"
    altered(tmp_path / "scf/STRU.ch4", tmp_path / "scf/STRU.ch4", rows, r"\1\3\2")
    frame = open_dataset([samples / "abacus/scf/INPUT"])[0]
    mirrored = open_dataset([tmp_path / "scf/INPUT"])[0]
    np.testing.assert_allclose(mirrored.box, frame.box[[1, 0, 2]])
    cartesian = "Cartesian" in (tmp_path / "scf/STRU.ch4").read_text()
    expected = frame.coord if cartesian else frame.coord[:, [1, 0, 2]]
    np.testing.assert_allclose(mirrored.coord, expected, atol=1e-9)
    np.testing.assert_allclose(mirrored.force, frame.force)
    np.testing.assert_allclose(mirrored.virial, frame.virial)


def test_folders(samples: Path, tmp_path: Path) -> None:
    assert len(open_dataset([samples / "abacus/scf"])) == 1  # the failed run is another INPUT's
    assert len(open_dataset([samples / "vasp/Ti-aimd-nwrite0"])) == 10  # OUTCAR is the same run
    assert len(open_dataset([samples / "qe/cp_traj_si"])) == 2
    assert len(open_dataset([samples / "cp2k/aimd_stress"])) == 1
    vasp = {Path(name).name for name, _ in find_systems(samples / "vasp")}
    assert {"OUTCAR.Ge.vdw", "6362_OUTCAR", "vasprun.h2o.md.novirial.xml"} < vasp
    qe = open_dataset([samples / "qe"])
    assert [s.nframes for s in qe.systems] == [2, 2, 50, 1, 1]


def test_unsupported_codes_are_named(samples: Path) -> None:
    for name, code in {
        "castep/Si8-md-NPT.castep": "CASTEP",
        "nwchem/molecular_dynamics.out": "NWChem",
        "dftbplus/detailed.out": "DFTB",
    }.items():
        with pytest.raises(DataError, match=f"output of {code}.*not supported; supported are"):
            open_dataset([samples / name])


def test_extxyz_and_database_samples(samples: Path) -> None:
    gap = open_dataset([samples / "xyz/quip_gap_unittest.xyz"])
    assert len(gap) == 3
    assert gap.energies([0])[0] == 2.397023
    assert gap[0].virial[0, 0] == 159.582203018
    gpa = open_dataset([samples / "xyz/variants/stress_gpa.xyz"])[0]
    np.testing.assert_allclose(gpa.virial, -125 / 160.21766208 * np.eye(3))
    assert open_dataset([samples / "xyz/variants/nopbc.xyz"])[0].box is None
    qm9 = open_dataset([samples / "xyz/metatrain_qm9_reduced_100.xyz"])
    assert len(qm9) == 100
    assert np.isnan(qm9.energies()).all()
    mptrj = open_dataset([samples / "ase_db/10_mptraj_systems.db"])
    assert len(mptrj) == 10
    assert mptrj[0].virial is not None
    oc20 = open_dataset([samples / "oc20_format"])
    vasp = open_dataset([samples / "vasp/oc20_27998_vasprun.xml"])
    assert oc20.energies() == pytest.approx([-140.07469344])
    np.testing.assert_allclose(oc20[0].force, vasp[0].force, atol=1e-6)
