"""Compressed models: the physics suite on them, and how far off the original they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpa_core.batch import make_batch
from dpa_core.compress import compress
from dpa_core.config import CompressionConfig, ModelConfig
from dpa_core.data import open_dataset
from dpa_core.derivatives import predict
from dpa_core.errors import ConfigError
from dpa_core.frames import Frame
from dpa_core.model import Potential, build_model
from dpa_core.stats import compute_env_stats
from dpa_core.tables import EmbeddingTables, quintics
from dpa_core.testing import Bookkeeping, FiniteDifferences, PhysicsSuite, Symmetries, evaluate
from tests.physics.test_models import SE, _Small

OPTIONS: dict[str, dict[str, Any]] = {
    "concat": {},
    "concat one-sided": {"type_one_side": True, "attn_layer": 0},
    "concat davg": {"set_davg_zero": False, "exclude_types": [[0, 2]]},
    "strip": {"tebd_input_mode": "strip"},
    "strip one-sided davg": {
        "tebd_input_mode": "strip", "type_one_side": True, "set_davg_zero": False,
    },
    "other": {
        "activation_function": "gelu_tf", "resnet_dt": True, "env_protection": 0.2,
        "concat_output_tebd": False, "tebd_dim": 3, "use_econf_tebd": True, "use_tebd_bias": True,
    },
    "tensorflow": {"convention": "tensorflow", "exclude_types": [[0, 2]]},
    "tensorflow strip": {
        "convention": "tensorflow", "tebd_input_mode": "strip", "set_davg_zero": False,
    },
    "DeepPot-SE": SE,
    "DeepPot-SE one-sided": {**SE, "type_one_side": True, "neuron": [5, 10], "resnet_dt": True},
    "DeepPot-SE tensorflow": {**SE, "convention": "tensorflow", "exclude_types": [[0, 2]]},
}  # fmt: skip


FRAMES = PhysicsSuite().frames


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("path", ["kernels", "torch"], indirect=True)
@pytest.mark.usefixtures("path")
class _Compressed(_Small):
    """The same small models, compressed; once for all tests of a class."""

    def make_model(self) -> Potential:
        made = vars(type(self)).get("made")
        if made is None:
            made = type(self).made = compress(super().make_model())[0]
        return copy.deepcopy(made)


class TestCompressedAttention(_Compressed, PhysicsSuite):
    """Concat, two-sided: a table for each pair of types; attention on top."""


class TestCompressedNoAttentionOneSided(_Compressed, PhysicsSuite):
    changes = {"attn_layer": 0, "type_one_side": True, "exclude_types": [[0, 2]]}


class TestCompressedStrip(_Compressed, PhysicsSuite):
    changes = {"tebd_input_mode": "strip", "attn_layer": 1}


class TestCompressedStripDavg(_Compressed, PhysicsSuite):
    changes = {"tebd_input_mode": "strip", "type_one_side": True, "set_davg_zero": False}


class TestCompressedPaddingLeak(_Compressed, Symmetries, Bookkeeping, FiniteDifferences):
    """See TestPaddingLeak: a law of the model, not of its tables."""

    changes = {"set_davg_zero": False}


class TestCompressedFloat32(_Compressed, PhysicsSuite):
    changes = {"precision": "float32"}
    exact = 2e-5
    difference = 5e-3
    step = 1e-2
    jump = 2e-5


class TestCompressedDeepPotSE(_Compressed, PhysicsSuite):
    base = SE


class TestCompressedDeepPotSEOneSided(_Compressed, PhysicsSuite):
    base = SE
    changes = {"type_one_side": True, "set_davg_zero": True, "resnet_dt": True}


def small(changes: dict[str, Any], **keys: Any) -> Potential:
    case = _Small()
    case.changes, case.model_keys = changes, keys
    if changes.get("type") == "se_e2_a":
        case.base = SE
    return case.make_model()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("path", ["kernels", "torch"], indirect=True)
@pytest.mark.usefixtures("path")
def test_compressed_is_the_same_model(name: str, precision: str) -> None:
    model = small({**OPTIONS[name], "precision": precision})
    compressed, report = compress(model)
    limit = 1e-9 if precision == "float64" else 2e-6
    assert report.value_error < (1e-8 if precision == "float64" else 1e-6)
    for what, frame in FRAMES(model):
        one, other = evaluate(model, frame), evaluate(compressed, frame)
        scale = max(1.0, float(np.abs(one.force).max()))
        for key in ("atom_energy", "force"):
            off = np.abs(getattr(one, key) - getattr(other, key)).max()
            assert off < limit * scale, f"{what}: {key} is {off:.1e} off"


def test_all_heads_and_the_bias_stay() -> None:
    model = small({}, heads=2)
    compressed, _ = compress(model)
    frame = dict(FRAMES(model))["cell"]
    for one, other in zip(model.heads(), compressed.heads(), strict=True):
        assert abs(evaluate(one, frame).energy - evaluate(other, frame).energy).max() < 1e-9
    assert torch.equal(model.out_bias, compressed.out_bias)


def polynomial(x: torch.Tensor, derivative: int) -> torch.Tensor:
    """Two quintic polynomials and their derivatives."""
    p = np.polynomial.Polynomial([0.3, -1.0, 0.5, 0.25, -0.125, 0.0625])
    q = np.polynomial.Polynomial([1.0, 2.0, -0.7, 0.1, 0.05, -0.02])
    pair = [f.deriv(derivative) if derivative else f for f in (p, q)]
    return torch.stack([torch.from_numpy(f(x.numpy())) for f in pair], 1)


def tables_of(function: Any, lower: float, stride: float, nbins: int) -> EmbeddingTables:
    """One table of `function(s, derivative)`."""
    config = CompressionConfig(lower=lower, stride=stride, nbins=nbins, min_distance=0.5)
    tables = EmbeddingTables(config, torch.zeros(1, 1, dtype=torch.int64), 2).double()
    nodes = lower + stride * torch.arange(nbins + 1, dtype=torch.float64)
    tables.table[0] = quintics(torch.stack([function(nodes, k) for k in range(3)]), stride)
    return tables


def derivatives(tables: EmbeddingTables, s: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Value and derivatives by autograd, each (B, 2)."""
    s = s.clone().requires_grad_()
    found = [tables.evaluate(s, torch.zeros(len(s), dtype=torch.int64))]
    for _ in range(count):
        columns = [
            torch.autograd.grad(found[-1][:, c].sum(), s, create_graph=True)[0] for c in (0, 1)
        ]
        found.append(torch.stack(columns, 1))
    return [f.detach() for f in found]


def test_quintics_are_reproduced_with_all_derivatives() -> None:
    tables = tables_of(polynomial, -1.0, 0.25, 12)
    s = torch.linspace(-1.0, 2.0, 101, dtype=torch.float64)
    for order, got in enumerate(derivatives(tables, s, 6)):
        torch.testing.assert_close(got, polynomial(s, order), rtol=1e-9, atol=1e-9)


def wave(x: torch.Tensor, derivative: int) -> torch.Tensor:
    phase = np.pi / 2 * derivative
    return torch.stack([3.0**derivative * torch.sin(3 * x + phase), torch.cos(x + phase)], 1)


def test_the_error_between_the_nodes_is_the_one_of_theory() -> None:
    stride = 0.125
    s = torch.linspace(0.0, 2.0, 1601, dtype=torch.float64)
    value, slope = derivatives(tables_of(wave, 0.0, stride, 16), s, 1)
    bound = stride**6 / 46080 * 3**6  # of sin(3 x)
    worst = float((value - wave(s, 0)).abs().max())
    assert 0.7 * bound < worst < 1.01 * bound
    assert float((slope - wave(s, 1)).abs().max()) < 50 * bound


@pytest.mark.parametrize("where", ["node", "lower", "upper"])
def test_continuous_with_two_derivatives(where: str) -> None:
    """At nodes, and where the domain ends."""
    tables = tables_of(wave, -0.5, 0.125, 8)
    at = {"node": -0.25, "lower": -0.5, "upper": 0.5}[where]
    gap = 1e-7
    left, right = (torch.tensor([at + d], dtype=torch.float64) for d in (-gap, gap))
    for order, (a, b) in enumerate(
        zip(derivatives(tables, left, 2), derivatives(tables, right, 2), strict=True)
    ):
        assert float((a - b).abs().max()) < 2e3 * gap, f"derivative {order}"


def test_outside_the_domain_it_levels_off() -> None:
    tables = tables_of(wave, -0.5, 0.125, 8)
    for end, sign in ((-0.5, -1.0), (0.5, 1.0)):
        s = end + sign * torch.tensor([0.0, 0.1, 1.0, 50.0, 1e6], dtype=torch.float64)
        value, slope, curvature = derivatives(tables, s, 2)
        # It leaves the border's value by no more than a bin's worth, and then stays.
        assert float((value - value[0]).abs().max()) < 1.5 * 3 * 0.125
        assert float(slope[-1].abs().max()) < 1e-12
        assert bool(torch.isfinite(curvature).all())
    s = torch.linspace(-1.0, 1.0, 23, dtype=torch.float64, requires_grad=True)
    which = torch.zeros(23, dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda x: tables.evaluate(x, which), s)
    assert torch.autograd.gradgradcheck(lambda x: tables.evaluate(x, which), s)


@pytest.mark.usefixtures("path")
def test_atoms_closer_than_the_tables_reach() -> None:
    """Energy and force stay finite, smooth and conservative through min_distance."""
    model = small({"attn_layer": 1})
    compressed, _ = compress(model, min_distance=0.9)

    def pair(r: float) -> Frame:
        return Frame(np.array([[0.0, 0, 0], [r, 0, 0]]), np.array([0, 1]))

    far, near = (evaluate(compressed, pair(r)) for r in (0.9 + 1e-7, 0.9 - 1e-7))
    assert np.abs(far.force - near.force).max() < 1e-3 * np.abs(far.force).max()
    for r in (0.85, 0.5, 0.1, 1e-3):
        step = 1e-5 * r
        energy = [evaluate(compressed, pair(r + d)).energy[0] for d in (-step, step)]
        force = evaluate(compressed, pair(r)).force
        assert np.isfinite(force).all()
        slope = (energy[1] - energy[0]) / (2 * step)
        assert abs(force[0, 0, 0] - slope) < 1e-4 * max(1.0, abs(slope))


def test_what_is_refused() -> None:
    model = small({})
    with pytest.raises(ConfigError, match=r"min_distance is 4 Å.*below rcut \(3.5 Å\)"):
        compress(model, min_distance=4)
    with pytest.raises(ConfigError, match=r"compressed.*use the model it was made from"):
        compress(compress(model)[0])
    with pytest.raises(ConfigError, match=r"relu.*may have a kink"):
        compress(small({"activation_function": "relu"}))


def test_too_large_is_said_before_memory_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"9 for 3 elements.*allowed: 0.0001 GiB.*\"strip\""):
        compress(small({}), max_bytes=1e-4 * 2**30)
    names = [f"E{k}" for k in range(700)]
    huge = _Small()
    huge.changes = {"neuron": [25, 50, 100]}
    huge.model_keys = {"type_map": names, "atom_exclude_types": []}
    model = huge.make_model()
    with pytest.raises(ConfigError, match=r"GiB: 490,000 for 700 elements.*fewer elements"):
        compress(model)
    strip, report = compress(small({"tebd_input_mode": "strip"}), max_bytes=2**20)
    assert report.ntables == 1
    assert report.nbytes == strip.get_buffer("descriptor.tables.table").nbytes


def test_a_kinked_activation_can_be_had_with_a_larger_tolerance() -> None:
    _, report = compress(small({"activation_function": "silut:2.0"}), tolerance=1e-5)
    assert report.slope_error < 1e-5


@pytest.mark.parametrize("data", ["water_pbe0ts/test", "nbmotaw/mixed/test"])
@pytest.mark.parametrize("name", ["concat", "strip", "DeepPot-SE"])
def test_real_data_and_large_weights(shared: Path, data: str, name: str) -> None:
    """1e-5 eV/atom and 1e-4 eV/Å, with forces up to 5 eV/Å and steep embeddings."""
    dataset = open_dataset([shared / "data" / data])
    model = paper_size(OPTIONS[name], dataset.type_map)
    compute_env_stats(model, dataset.subset(range(4)), 1, 1)
    spread = np.linspace(0, len(dataset) - 1, 6).astype(int).tolist()
    batches = [make_batch([dataset[k]], model.spec) for k in spread]
    with torch.no_grad():
        largest = max(float(predict(model, batch).force.abs().max()) for batch in batches)
        for net in model.fitting.nets:
            net.get_submodule("layers")[-1].weight *= 5 / largest
    compressed, _ = compress(model)
    for batch in batches:
        one, other = predict(model, batch), predict(compressed, batch)
        assert float((one.energy - other.energy).abs()) < 1e-5 * len(batch.atype)
        assert float((one.force - other.force).abs().max()) < 1e-4


def paper_size(changes: dict[str, Any], type_map: tuple[str, ...]) -> Potential:
    """The sizes of the paper with a thinner fitting net, float32, embedding weights doubled."""
    sel = {"sel": [120] * len(type_map)} if changes.get("type") == "se_e2_a" else {"attn_layer": 1}
    sizes = {"rcut": 6.0, "neuron": [25, 50, 100], "axis_neuron": 16, "precision": "float32"}
    document = {
        "type_map": type_map,
        "descriptor": {"type": "dpa1", **changes, **sizes, **sel},
        "fitting_net": {"neuron": [40, 40], "precision": "float32"},
    }
    model = build_model(ModelConfig.model_validate(document), seed=2)
    with torch.no_grad():
        for name, weight in model.descriptor.named_parameters():
            if name.startswith("embedding") and name.endswith("weight"):
                weight *= 2
    return model
