"""Hostile and broken model files give one clear error, at once, in little memory; no code runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpa_core.interchange.files import FORMATS, load_model
from tests.interchange.fuzz import check
from tests.interchange.hostile_cases import CASES, MARKER

ROOT = Path(__file__).parents[2]
TORCH = Path(__file__).parent / "torch"
# Below a second on an idle machine.
SECONDS, BYTES = 3.0, 250 << 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Any]:
    """What happened with every case, in a process of its own: a crash is a failure here."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-m", "tests.interchange.hostile_cases", str(folder)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    results = dict(json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == 0, f"died after {list(results)[-1:]}: {done.stderr[-2000:]}"
    assert not done.stderr
    assert not (folder / MARKER).exists(), "code was run"
    return results


@pytest.mark.xdist_group("hostile")  # so that the cases are run once, not in every worker
@pytest.mark.parametrize("name", CASES)
def test_hostile_file(name: str, outcomes: dict[str, Any]) -> None:
    result = outcomes[name]
    assert result["error"] == "ModelFileError", result["text"]
    assert re.match(r"(#\S+)?: \S", result["text"]), "the message does not begin with the path"
    assert re.search(CASES[name][2], result["text"])
    assert len(result["text"]) < 2200
    assert result["seconds"] < SECONDS
    assert result["bytes"] < BYTES


HEADS = [
    b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x10\0\0\0\0\0\0\0{", b"\n\x0f\n\x04node",
    b"'@variables':\n", b'{"@variables": ', b"\x80\x02",
]  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=300))
def test_any_bytes(head: bytes, tail: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(head + tail)
    assert check(path) in ("refused", "model")


def fuzz(kind: str, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.interchange.fuzz", "--formats", kind, *options],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_mutations() -> None:
    """A few inputs of the fuzzer, the same in every run."""
    fuzz("native,yaml,pt,pth,pb", "--inputs", "60")
    fuzz("dp", "--inputs", "12")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_many_mutations(kind: str) -> None:
    fuzz(kind, "--seconds", "300", "--first", "100000")


RECORD = json.loads((TORCH / "record.json").read_text())


@pytest.mark.parametrize("name", RECORD["files"])
def test_deepmd_torch_files(name: str) -> None:
    """What all this leaves alone: frozen models and branches, with DeePMD-kit's own numbers."""
    expected = RECORD["files"][name]
    coord, box = np.array(RECORD["coord"]), np.array(RECORD["box"])
    model = load_model(f"{TORCH}/{name}")
    found = model.evaluate(coord, box, np.array(RECORD["atype"]))
    tolerance = 1e-5 if name.startswith("se_e2_a") else 1e-12  # its descriptor is float32
    for key in ("energy", "force", "virial"):
        numbers = np.array(expected[key])
        difference = np.abs(getattr(found, key).reshape(numbers.shape) - numbers).max()
        assert difference < tolerance * np.abs(numbers).max(), key
