"""The compiled kernels themselves: who may use them, where they come from, same bits again.

That their numbers are right is what the tests with the fixture `path` show.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from dpa_core import kernels
from dpa_core.batch import make_batch
from dpa_core.config import ModelConfig
from dpa_core.derivatives import loss_gradient, predict
from dpa_core.frames import Frame
from dpa_core.kernels import build
from dpa_core.kernels.job import JobArgs
from dpa_core.model import Potential, build_model

DPA1 = {
    "type": "dpa1", "sel": 60, "attn": 6, "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 3,
    "precision": "float64",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")


def small(fitting: dict[str, Any] | None = None, **descriptor: Any) -> Potential:
    return build_model(
        ModelConfig.model_validate(
            {
                "type_map": ["O", "H"],
                "descriptor": DPA1 | descriptor,
                "fitting_net": {"neuron": [6, 6], "precision": "float64"} | (fitting or {}),
            }
        )
    )


def batch_of(model: Potential, nframes: int = 40) -> Any:
    rng = np.random.default_rng(2)
    frames = [
        Frame(rng.uniform(0, 5, (n, 3)), rng.integers(0, 2, n), 5 * np.eye(3))
        for n in rng.integers(1, 12, nframes)
    ]
    return make_batch(frames, model.spec)


@pytest.mark.parametrize(
    ("descriptor", "fitting", "known"),
    [
        ({}, {}, True),
        ({"attn_dotr": False, "smooth_type_embedding": False}, {}, True),
        ({"tebd_input_mode": "strip", "resnet_dt": True}, {"numb_fparam": 1}, True),
        ({"type": "se_e2_a", "sel": [30, 30]}, {}, True),
        ({"activation_function": "gelu"}, {}, False),
        ({}, {"activation_function": "silu"}, False),
        ({"normalize": False}, {}, False),
        ({"temperature": 200.0}, {}, False),
        ({"convention": "tensorflow"}, {}, False),
        ({}, {"atom_ener": [1.0, None]}, False),
        ({}, {"precision": "float32"}, False),
    ],
)
def test_which_models_are_known(
    descriptor: dict[str, Any], fitting: dict[str, Any], known: bool
) -> None:
    if descriptor.get("type") == "se_e2_a":
        descriptor = {"type": "se_e2_a", "sel": [30, 30], "rcut": 4.0, "neuron": [4, 8],
                      "axis_neuron": 3, "precision": "float64"}  # fmt: skip
        config = {"type_map": ["O", "H"], "descriptor": descriptor}
        net = {"neuron": [6, 6], "precision": "float64"}
        model = build_model(ModelConfig.model_validate({**config, "fitting_net": net}))
    else:
        model = small(fitting, **descriptor)
    assert (kernels.find((model,)) is not None) == known


def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPAFLOW_KERNELS", "0")
    assert kernels.find((small(),)) is None


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """Libraries are looked for anew, in an empty folder."""
    monkeypatch.setenv("DPAFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "prebuilt")
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


def test_without_a_compiler_torch_evaluates(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert build.library("float64") is None
    assert "apt install g++" in caplog.text
    model = small()
    assert kernels.find((model,)) is None
    assert predict(model, batch_of(model, 2)).force.abs().max() > 0


def test_a_compiler_that_fails_is_no_error(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = fresh / "g++"
    broken.write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert build.library("float64") is None
    assert "no space left on device" in caplog.text
    assert not list((fresh / "cache" / "kernels").glob("*.so*.new"))


def test_prebuilt_libraries_serve_where_there_is_no_compiler(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LEVELS", {"native": set()})
    monkeypatch.setattr(build, "NUMBERS", {"float64": "double"})
    made = build.prebuild(build.PREBUILT)
    assert [path.name for path in made] == ["kernels-float64-native.so"]
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.library("float64") is not None
    model = small()
    assert predict(model, batch_of(model, 2)).force.abs().max() > 0


def test_a_processor_without_the_instructions_gets_no_prebuilt_library(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.PREBUILT.mkdir()
    for level in build.LEVELS:
        (build.PREBUILT / f"kernels-float64-{level}.so").touch()
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "_processor", lambda: "flags : sse2 avx")
    assert build.library("float64") is None
    monkeypatch.setattr(build, "_processor", lambda: "flags : avx2 bmi1 bmi2 f16c fma movbe")
    assert build._prebuilt("float64") == build.PREBUILT / "kernels-float64-x86-64-v3.so"


def test_python_and_c_agree_on_the_layout(tmp_path: Any) -> None:
    """The size of the structure, as the compiler sees it."""
    program = tmp_path / "size.cpp"
    program.write_text('#include "job.hpp"\n#include <cstdio>\n'
                       'int main() { std::printf("%zu", sizeof(JobArgs)); }\n')  # fmt: skip
    subprocess.run(
        ["g++", f"-I{build.SOURCE}", str(program), "-o", str(tmp_path / "size")], check=True
    )
    size = subprocess.run([str(tmp_path / "size")], check=True, capture_output=True, text=True)
    assert int(size.stdout) == ctypes.sizeof(JobArgs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_every_time(threads: int) -> None:
    """Sums of gradients come in the same order, whatever the threads' luck."""
    model = small()
    batch = batch_of(model)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kept = []
        for _ in range(4):
            model.zero_grad()
            found, _ = loss_gradient(
                model, batch, lambda p: (p.force.square().sum() + p.energy.sum(), None)
            )
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            kept.append([found.energy, found.force, *(g.clone() for g in gradients)])
    finally:
        torch.set_num_threads(before)
    for again in kept[1:]:
        assert all(torch.equal(a, b) for a, b in zip(kept[0], again, strict=True))


def test_forces_do_not_depend_on_the_number_of_threads() -> None:
    model = small()
    batch = batch_of(model)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(predict(model, batch, atom_virial=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "20000"), ({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_how_torch_waits_is_set_before_it_is_loaded(given: dict[str, str], expected: str) -> None:
    """libgomp reads it when torch is loaded; what a user has set stays."""
    program = """if True:
        import os, sys

        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    print(os.environ.get("GOMP_SPINCOUNT"))

        sys.meta_path.insert(0, Watch())
        import dpa_core.model
    """
    mine = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=mine | given,
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == [expected]


def test_packed_weights_follow_the_model() -> None:
    """Weights are kept packed between calls; a number changed behind torch's back is seen."""
    models = [small(), small({"neuron": [6, 6], "resnet_dt": False}), small(attn=8), small()]
    models[3].load_state_dict(models[0].state_dict())
    batch = batch_of(models[0], 3)

    def forces() -> list[torch.Tensor]:
        return [predict(model, batch).force for model in models]

    before = forces()
    assert torch.equal(before[0], before[3])
    assert not torch.equal(before[0], before[1])
    for name, parameter in models[0].named_parameters():
        flat = parameter.data.view(-1).numpy()
        kept, flat[-1] = flat[-1], flat[-1] + 0.3
        after = forces()
        moved = not torch.equal(after[0], before[0])
        assert moved or name.endswith(f"{len(models[0].fitting.nets[0].layers) - 1}.bias"), name
        assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
        flat[-1] = kept
        assert torch.equal(forces()[0], before[0])


def test_frozen_weights_get_no_gradient() -> None:
    model = small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fitting.nets.0.layers.2"))
    loss_gradient(model, batch_of(model, 3), lambda p: (p.force.square().sum(), None))
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == {"fitting.nets.0.layers.2.weight", "fitting.nets.0.layers.2.bias"}


def test_an_empty_neighbourhood_and_virtual_atoms_only() -> None:
    model = small()
    lonely = Frame(np.array([[0.0, 0.0, 0.0], [50.0, 50.0, 50.0]]), np.array([0, -1]), None)
    nobody = Frame(np.zeros((1, 3)), np.array([-1]), None)
    found = predict(model, make_batch([lonely, nobody], model.spec))
    assert torch.equal(found.force, torch.zeros(3, 3, dtype=torch.float64))
    assert found.atom_energy[0] != 0
    assert torch.equal(found.atom_energy[1:], torch.zeros(2, dtype=torch.float64))
