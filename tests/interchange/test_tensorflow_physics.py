"""The physics suite on models with the formulas of DeePMD-kit's TensorFlow backend."""

from __future__ import annotations

from dpa_core.testing import Bookkeeping, FiniteDifferences, Locality, PhysicsSuite, Symmetries
from tests.physics.test_models import SE, _Small

TENSORFLOW = {"convention": "tensorflow", "temperature": 1.0, "ln_eps": 1e-3}


class TestSmooth(_Small, PhysicsSuite):
    """Smooth attention: the other switch is as continuous."""

    changes = TENSORFLOW


class TestStripSmoothDavg(_Small, PhysicsSuite):
    """se_atten_v2, whose empty slots leak nothing."""

    changes = TENSORFLOW | {"tebd_input_mode": "strip", "set_davg_zero": False}


class TestExclusions(_Small, PhysicsSuite):
    changes = TENSORFLOW | {"exclude_types": [[0, 1], [2, 2]], "activation_function": "gelu_tf"}
    model_keys = {"pair_exclude_types": [[1, 1]], "atom_exclude_types": [2]}

    def test_one_atom(self) -> None:
        """Types without energy have their own test in tests/physics."""


class TestNotSmooth(_Small, Symmetries, Bookkeeping, FiniteDifferences, Locality):
    changes = TENSORFLOW | {"smooth_type_embedding": False}


class TestDavg(_Small, Symmetries, Bookkeeping, FiniteDifferences):
    """Empty slots have a type of their own, so the order of atoms does not matter."""

    changes = TENSORFLOW | {"set_davg_zero": False}


class TestDeepPotSE(_Small, PhysicsSuite):
    base = SE
    changes = {"convention": "tensorflow", "exclude_types": [[0, 1]]}


class TestFitting(_Small, PhysicsSuite):
    """Skips between equal widths only, and an atom in vacuum that keeps its type."""

    changes = TENSORFLOW
    model_keys = {
        "fitting_net": {
            "neuron": [10, 20, 20], "precision": "float64", "convention": "tensorflow",
            "activation_function": "gelu_tf", "atom_ener": [1.0, None, 0.0],
        }
    }  # fmt: skip
