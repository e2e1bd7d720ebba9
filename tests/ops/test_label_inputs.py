"""Inputs of the codes: the committed references, read back by other programs, and what is refused.

REGEN=1 rewrites the references.
"""

from __future__ import annotations

import os
from pathlib import Path

import ase.io
import dpdata
import numpy as np
import pytest

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError, DataError
from ops.label import PrepareConfig
from ops.labelers import BaseLabeler, Structure, check_labeler
from ops.labelers.base import mesh
from ops.labelers.cp2k import sections

REFERENCE = Path(__file__).parent / "label_reference"
INCAR = "ENCUT = 400 ! eV\nEDIFF = 1E-6; ISMEAR = 1\nSIGMA = 0.1\n"
ABACUS = "INPUT_PARAMETERS\necutwfc 60 # Ry\nscf_thr 1e-7\ncal_force 1\ncal_stress 1\nsuffix mine\n"
QE = """&control
  calculation = 'scf'
  tprnfor = .true.
  tstress = .true.
/
&system
  ibrav = 1, celldm(1) = 7.6
  ecutwfc = 40
  occupations = 'smearing', degauss = 0.02
  nspin = 2
  starting_magnetization(1) = 0.5
  starting_magnetization(2) = 0.1
  starting_magnetization(3) = 0.3
/
&electrons
  conv_thr = 1d-8
/
K_POINTS automatic
3 3 3 1 1 1
ATOMIC_SPECIES
X 1.0 old.upf
"""
CP2K = """@SET LEVEL MEDIUM
&GLOBAL
  RUN_TYPE ENERGY_FORCE   ! a comment
  PRINT_LEVEL ${LEVEL}
&END GLOBAL
&FORCE_EVAL
  STRESS_TENSOR ANALYTICAL
  &DFT
    &KPOINTS
      SCHEME MONKHORST-PACK @MESH@
    &END
  &END DFT
  &PRINT
    &FORCES ON
    &END
    &STRESS_TENSOR ON
    &END STRESS_TENSOR
  &END PRINT
  &SUBSYS
    &CELL
      ABC 1 1 1
    &END CELL
    &KIND Al
      POTENTIAL GTH-PBE-q3
    &END KIND
    &KIND Mg
      POTENTIAL GTH-PBE-q2
    &END KIND
    &COORD
      H 0 0 0
    &END COORD
  &END SUBSYS
&END FORCE_EVAL
"""


@pytest.fixture
def structure() -> Structure:
    """Al and Mg in turn, in a skewed, left-handed cell."""
    box = np.array([[4.1, 0.2, 0.0], [0.3, 0.1, 8.0], [-0.1, 4.0, 0.2]])
    assert np.linalg.det(box) < 0
    coord = np.array([[0.1, 0.0, 0.0], [2.0, 2.1, 0.1], [2.1, 0.1, 2.0], [0.0, 2.0, 6.12345678901]])
    return Structure(("Mg", "Al", "Mg", "Al"), coord, box)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, dict[str, object]]:
    for name in ("Al", "Mg_pv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "POTCAR").write_text(f"PAW_PBE {name}\nEnd of Dataset\n")
    for name in ("Al.upf", "Mg.upf", "Fe.upf", "Al.orb", "Mg.orb"):
        (tmp_path / name).write_text(name)
    return {
        "cp2k": {"template": CP2K, "kspacing": 0.5},
        "vasp": {"incar": INCAR, "kspacing": 0.5, "potcars": str(tmp_path),
                 "potentials": {"Mg": "Mg_pv"}, "per_element": {"MAGMOM": {"Al": 0.6, "Mg": 0}}},
        "abacus": {"input": ABACUS, "kspacing": 0.5, "pseudo_dir": str(tmp_path),
                   "pseudos": {"Al": "Al.upf", "Mg": "Mg.upf"},
                   "orbitals": {"Al": "Al.orb", "Mg": "Mg.orb"},
                   "magnetism": {"Mg": 1.5}},
        "qe": {"template": QE, "pseudo_dir": str(tmp_path),
               "pseudos": {"Al": "Al.upf", "Fe": "Fe.upf", "Mg": "Mg.upf"}},
    }  # fmt: skip


def make(kind: str, values: dict[str, object]) -> BaseLabeler:
    return parse_config(PrepareConfig, {"labeler": {"type": kind, **values}}, "test").labeler


@pytest.fixture
def written(settings, structure, tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for kind, values in settings.items():
        labeler = make(kind, values)
        assert [m for m in check_labeler(labeler) if not m.startswith("warning")] == []
        folders[kind] = tmp_path / "written" / kind
        folders[kind].mkdir(parents=True)
        labeler.write(structure, folders[kind])
        labeler.finish(structure.elements, folders[kind])
    return folders


@pytest.mark.parametrize("kind", ["cp2k", "vasp", "abacus", "qe"])
def test_committed_references(kind: str, written, tmp_path: Path) -> None:
    found = {
        path.name: path.read_text().replace(str(tmp_path), "/folder")
        for path in sorted(written[kind].iterdir())
    }
    place = REFERENCE / kind
    if os.environ.get("REGEN"):
        place.mkdir(parents=True, exist_ok=True)
        for name, text in found.items():
            (place / name).write_text(text)
    assert found == {path.name: path.read_text() for path in sorted(place.iterdir())}


def same_structure(found: ase.Atoms, wanted: Structure, order: list[int]) -> None:
    """The lattice is the one asked for (c may be turned round), atoms are in `order`."""
    assert found.get_chemical_symbols() == [wanted.elements[k] for k in order]
    np.testing.assert_allclose(found.positions, wanted.coord[order], atol=1e-9)
    np.testing.assert_allclose(np.abs(found.cell.array), np.abs(wanted.box), atol=1e-9)
    assert np.linalg.det(found.cell.array) > 0


def test_other_programs_read_the_structure(written, structure: Structure) -> None:
    vasp = ase.io.read(written["vasp"] / "POSCAR", format="vasp")
    same_structure(vasp, structure, [0, 2, 1, 3])  # potentials names Mg first
    qe = ase.io.read(written["qe"] / "input.in", format="espresso-in")
    same_structure(qe, structure, [0, 1, 2, 3])
    cp2k = ase.io.read(written["cp2k"] / "input.inp", format="cp2k-restart")
    same_structure(cp2k, structure, [0, 1, 2, 3])
    abacus = dpdata.System(str(written["abacus"] / "STRU"), fmt="abacus/stru")
    assert np.array(abacus["atom_names"])[abacus["atom_types"]].tolist() == ["Al", "Al", "Mg", "Mg"]
    # dpdata turns the cell to lower triangular: compare distances
    box, coord = abacus["cells"][0], abacus["coords"][0]
    wanted = structure.coord[[1, 3, 0, 2]]
    np.testing.assert_allclose(
        np.linalg.norm(coord[:, None] - coord, axis=-1),
        np.linalg.norm(wanted[:, None] - wanted, axis=-1), atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(box, axis=1),
                               np.linalg.norm(structure.box, axis=1), atol=1e-6)  # fmt: skip


def test_species_keys_follow_their_element(written) -> None:
    text = (written["qe"] / "input.in").read_text()
    values = {line.split("=")[0].strip(): line.split("=")[1] for line in text.splitlines()
              if "magnetization" in line}  # fmt: skip
    # Fe, the second of `pseudos`, does not occur: Mg, the third, becomes species 2
    assert {k: float(v) for k, v in values.items()} == {
        "starting_magnetization(1)": 0.5,
        "starting_magnetization(2)": 0.3,
    }
    assert "celldm" not in text
    assert "old.upf" not in text


def test_mesh_is_vasps_rule() -> None:
    # |b| = 2π/a = 1.5708, 0.7854, 6.2832 1/Å
    assert mesh(np.diag([4.0, 8.0, 1.0]), 0.5) == (4, 2, 13)
    assert mesh(np.diag([4.0, 8.0, 1.0]), 10.0) == (1, 1, 1)


BAD = [
    ("cp2k", {"template": CP2K.replace("&FORCES ON", "&FORCES OFF")}, "&FORCES ON is needed"),
    ("cp2k", {"template": CP2K.replace("  STRESS_TENSOR ANALYTICAL\n", "")}, "ANALYTICAL"),
    ("cp2k", {"template": CP2K.replace("ENERGY_FORCE", "GEO_OPT")}, "found GEO_OPT"),
    ("cp2k", {"template": CP2K.replace("${LEVEL}", "LOW")}, "PRINT_LEVEL MEDIUM"),
    ("cp2k", {"template": CP2K.replace("@MESH@", "3 3 3")}, "@MESH@ and labeler.kspacing"),
    ("cp2k", {"template": CP2K.replace("&END PRINT", "")}, "closes &PRINT"),
    ("cp2k", {"template": "/no/such/file.inp"}, "No such file"),
    ("vasp", {"incar": INCAR + "NSW = 100\n"}, "NSW = 100"),
    ("vasp", {"incar": INCAR + "LDAUU = 4 0\n"}, "move it to per_element"),
    ("vasp", {"kspacing": None}, "give kpoints or kspacing"),
    ("vasp", {"potentials": {"Nb": "Nb_pv"}}, "Nb_pv/POTCAR does not exist"),
    ("abacus", {"input": ABACUS.replace("cal_stress 1", "")}, "cal_stress 1 is needed"),
    ("abacus", {"input": ABACUS + "calculation md\n"}, "found md"),
    ("abacus", {"pseudos": {"Nb": "Nb.upf"}}, "Nb.upf does not exist"),
    ("qe", {"template": QE.replace("tprnfor = .true.", "")}, "tprnfor = .true. is needed"),
    ("qe", {"kspacing": 0.3}, "give k-points once"),
    ("qe", {"template": QE.replace("ization(3)", "ization(4)")}, "pseudos, which has 3 elements"),
    ("qe", {"template": QE.replace("ization(3)", "ization(0)")}, "pseudos, which has 3 elements"),
    ("qe", {"template": QE.replace("nspin", "Hubbard_J(2,1)")}, "hubbard_j(2,1) cannot be"),
    ("qe", {"retry": {"template": QE.replace("'scf'", "'relax'")}}, "retry: template"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "message"), BAD)
def test_mistakes_are_found(kind: str, change, message: str, settings) -> None:
    found = check_labeler(make(kind, settings[kind] | change))
    assert any(message in line for line in found), found


def test_an_unknown_command_is_a_warning(settings) -> None:
    found = check_labeler(make("qe", settings["qe"] | {"command": "OMP=1 no-such-pw.x -in x"}))
    assert found == ["warning: command 'no-such-pw.x' is not found on this machine"]


@pytest.mark.parametrize("kind", ["cp2k", "vasp", "abacus", "qe"])
def test_elements_and_cells_that_cannot_be(kind: str, settings, structure, tmp_path: Path) -> None:
    labeler = make(kind, settings[kind])
    with pytest.raises(ConfigError, match="Nb"):
        labeler.write(structure._replace(elements=("Nb", "Al", "Mg", "Al")), tmp_path)
    with pytest.raises(DataError, match="no cell"):
        labeler.write(structure._replace(box=None), tmp_path)


def test_only_what_decides_a_label_is_in_its_identity(settings, tmp_path: Path) -> None:
    for kind, values in settings.items():
        first = make(kind, values).identity(["Al", "Mg"])
        same = make(kind, values | {"command": "srun x", "timeout": 9.0, "keep": ["*"]})
        assert same.identity(["Al", "Mg"]) == first
    vasp = make("vasp", settings["vasp"])
    before = vasp.identity(["Al"])
    (tmp_path / "Mg_pv" / "POTCAR").write_text("another one")
    assert vasp.identity(["Al"]) == before
    (tmp_path / "Al" / "POTCAR").write_text("another one")
    assert vasp.identity(["Al"]) != before


def test_templates_by_path_or_text(settings, tmp_path: Path) -> None:
    (tmp_path / "mine.inp").write_text(CP2K)
    by_path = {"template": "mine.inp", "kspacing": 0.5, "retry": {"template": "mine.inp"}}
    placed = make("cp2k", by_path).mapped(lambda path: str(tmp_path / path))
    assert placed.retry == {"template": str(tmp_path / "mine.inp")}
    inlined = placed.inlined()
    assert inlined.template == inlined.retry["template"] == CP2K
    assert placed.identity(["Al"]) == inlined.identity(["Al"]) == make(
        "cp2k", settings["cp2k"]).identity(["Al"])  # fmt: skip


def test_sections_of_cp2k() -> None:
    found = {s.path: s for s in sections(CP2K)}
    assert found["FORCE_EVAL", "SUBSYS", "KIND"].argument == "Mg"
    assert found["FORCE_EVAL", "PRINT", "FORCES"].argument == "ON"
    with pytest.raises(ConfigError, match="&GLOBAL is never closed"):
        list(sections("&GLOBAL\n RUN_TYPE X\n"))
