"""The demo's data: repeatable, labels consistent, the ternary set is new to the others."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.io import read


@pytest.fixture(scope="module")
def frames(root, tmp_path_factory):
    def make(name):
        out = tmp_path_factory.mktemp(name)
        script = root / "examples/demo/make_data.py"
        command = [sys.executable, "-W", "error", str(script), str(out), "--scale", "0.1"]
        subprocess.run(command, check=True, capture_output=True)
        return out

    one, two = make("one"), make("two")
    for name in ("unary", "binary", "ternary"):
        assert (one / f"{name}.extxyz").read_bytes() == (two / f"{name}.extxyz").read_bytes()
    return {name: read(one / f"{name}.extxyz", ":") for name in ("unary", "binary", "ternary")}


def test_sets_have_as_many_elements_as_their_name_says(frames):
    for count, name in enumerate(("unary", "binary", "ternary"), start=1):
        assert {len(set(atoms.symbols)) for atoms in frames[name]} == {count}


def test_labels_are_those_of_emt(frames):
    for atoms in [some[-1] for some in frames.values()]:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        again = atoms.copy()
        again.calc = EMT()
        assert energy == pytest.approx(again.get_potential_energy(), abs=1e-5)
        # extxyz keeps eight decimals of the positions
        np.testing.assert_allclose(forces, again.get_forces(), atol=1e-5)
