"""The physics suite has teeth: models that break a law, and sabotaged code, are caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dpa_core.derivatives
import dpa_core.descriptor
import dpa_core.model
from dpa_core.frames import Prediction
from dpa_core.kernels import Engine, find
from dpa_core.testing import PhysicsSuite
from tests.physics.test_models import SE, _Small


class Leaky(_Small, PhysicsSuite):
    changes = {"set_davg_zero": False}


class NotSmooth(_Small, PhysicsSuite):
    changes = {"smooth_type_embedding": False}


class Proper(_Small, PhysicsSuite):
    changes = {"attn_layer": 1}


class ProperSE(_Small, PhysicsSuite):
    base = SE


@pytest.mark.parametrize(
    "law",
    [
        Leaky().test_permutation,
        Leaky().test_atom_crosses_the_cutoff,
        Leaky().test_virtual_atoms,
        NotSmooth().test_atom_crosses_the_cutoff,
    ],
    ids=lambda law: f"{type(law.__self__).__name__}-{law.__name__}",
)
def test_what_does_not_hold_by_definition(law: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        law()


def _scaled(**factors: float) -> Callable[[Prediction], Prediction]:
    return lambda p: p._replace(**{k: getattr(p, k) * f for k, f in factors.items()})


@pytest.mark.parametrize(
    ("sabotage", "law"),
    [
        (_scaled(force=2.0), Proper().test_force),
        (_scaled(virial=-1.0), Proper().test_virial),
        (_scaled(atom_energy=2.0), Proper().test_sums),
        (_scaled(force=0.0, virial=0.0), Proper().test_forces_are_not_trivial),
        (lambda p: p._replace(force=p.force + 1e-6), Proper().test_sums),
        (lambda p: p._replace(virial=p.virial.triu()), Proper().test_rotation_and_reflection),
    ],
    ids=["force", "virial", "atomic energy", "nothing", "drift", "triangle"],
)
def test_wrong_results(
    sabotage: Callable[[Prediction], Prediction],
    law: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = dpa_core.derivatives.predict
    monkeypatch.setattr(dpa_core.model, "predict", lambda *a, **k: sabotage(right(*a, **k)))
    with pytest.raises(AssertionError):
        law()


def test_detached_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch that is a constant to autograd: the forces are wrong, the energies right."""
    right = dpa_core.descriptor.env_rows

    def detached(*args, **kwargs):
        rows, sw, direction = right(*args, **kwargs)
        return rows, sw.detach(), direction

    monkeypatch.setenv("DPAFLOW_KERNELS", "0")
    monkeypatch.setattr(dpa_core.descriptor, "env_rows", detached)
    with pytest.raises(AssertionError):
        Proper().test_force()


@pytest.mark.parametrize("suite", [Proper, ProperSE])
def test_wrong_images(suite: type[PhysicsSuite], monkeypatch: pytest.MonkeyPatch) -> None:
    """Periodic images on the wrong side; a transposed cell."""
    vectors, by_kernels = dpa_core.derivatives.neighbor_vectors, Engine.predict
    for wrong in (lambda b: b._replace(shift=-b.shift), lambda b: b._replace(box=b.box.mT)):
        for module in (dpa_core.derivatives, dpa_core.model):
            monkeypatch.setattr(
                module, "neighbor_vectors", lambda b, wrong=wrong: vectors(wrong(b))
            )
        monkeypatch.setattr(
            Engine, "predict", lambda e, b, wrong=wrong, **more: by_kernels(e, wrong(b), **more)
        )
        with pytest.raises(AssertionError):
            suite().test_wrapping()


@pytest.mark.parametrize("path", ["kernels", "torch"], indirect=True)
def test_forgotten_parameter_gradient(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces that a loss takes for constants are noticed."""
    right = dpa_core.derivatives.loss_gradient

    def half(model, batch, loss):
        return right(
            model,
            batch,
            lambda p: loss(p._replace(force=p.force.detach() + 0 * p.energy.sum())),
        )

    monkeypatch.setattr("dpa_core.testing.loss_gradient", half)
    with pytest.raises(AssertionError):
        Proper().test_second_order_in_parameters()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("sign", [0.0, 2.0])
def test_kernels_with_a_wrong_direction(sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second derivatives of the kernels: lost, or twice as large."""
    right = Engine.learn

    def learn(self, batch):
        prediction, differentiate = right(self, batch)
        return prediction, lambda bar: differentiate(bar._replace(force=sign * bar.force))

    monkeypatch.setattr(Engine, "learn", learn)
    if find((Proper().make_model(),)) is None:
        pytest.skip("no C++ compiler")
    with pytest.raises(AssertionError):
        Proper().test_second_order_in_parameters()
