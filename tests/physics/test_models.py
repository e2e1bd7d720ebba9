"""The physics suite of dpa_core.testing on every kind of model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpa_core.config import ModelConfig
from dpa_core.model import Potential, build_model
from dpa_core.testing import Bookkeeping, FiniteDifferences, Locality, PhysicsSuite, Symmetries

pytestmark = pytest.mark.usefixtures("path")

DPA1 = {
    "type": "dpa1", "rcut": 3.5, "rcut_smth": 0.5, "sel": 60, "neuron": [6, 12, 12],
    "axis_neuron": 4, "tebd_dim": 5, "attn": 8, "attn_layer": 2, "precision": "float64",
}  # fmt: skip
SE = {
    "type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.5, "sel": [60, 60, 60],
    "neuron": [6, 12, 12], "axis_neuron": 4, "precision": "float64",
}  # fmt: skip


class _Small:
    """A small model of three elements whose statistics resemble those of real data."""

    base: dict[str, Any] = DPA1
    changes: dict[str, Any] = {}
    model_keys: dict[str, Any] = {}

    def make_model(self) -> Potential:
        descriptor = self.base | self.changes
        config = ModelConfig.model_validate(
            {
                "type_map": ["Cu", "O", "H"],
                "descriptor": descriptor,
                "fitting_net": {"neuron": [10, 10], "precision": descriptor["precision"]},
                **self.model_keys,
            }
        )
        model = build_model(config, seed=3)
        for t in range(3):
            model.descriptor.dstd[t] = torch.tensor([0.10 + 0.01 * t] + 3 * [0.07 + 0.01 * t])
            if not config.descriptor.set_davg_zero:
                model.descriptor.davg[t, 0] = 0.03 + 0.01 * t
            model.out_bias[t] = 0.5 - t
        return model


class TestAttention(_Small, PhysicsSuite):
    """DPA-1 as in the paper: concat, two-sided, two smooth attention layers."""


class TestNoAttention(_Small, PhysicsSuite):
    changes = {"attn_layer": 0}


class TestStrip(_Small, PhysicsSuite):
    changes = {"attn_layer": 0, "tebd_input_mode": "strip"}


class TestStripOneSidedDavg(_Small, PhysicsSuite):
    """Strip with smooth type embedding is free of the padding leak, davg or not."""

    changes = {"tebd_input_mode": "strip", "type_one_side": True, "set_davg_zero": False}


class TestElectronConfigurations(_Small, PhysicsSuite):
    changes = {"use_econf_tebd": True, "use_tebd_bias": True, "type_one_side": True}


class TestOtherOptions(_Small, PhysicsSuite):
    changes = {
        "attn_layer": 1, "attn_dotr": False, "normalize": False, "temperature": 0.5,
        "resnet_dt": True, "activation_function": "silut:2.0", "env_protection": 0.2,
        "concat_output_tebd": False, "exclude_types": [[0, 2]],
    }  # fmt: skip


class TestModelExclusions(_Small, PhysicsSuite):
    model_keys = {"pair_exclude_types": [[1, 1], [0, 2]], "atom_exclude_types": [2]}

    def test_one_atom(self) -> None:
        model = self.make_model()
        frame = dict(self.frames(model))["one atom without box"]
        silent = frame._replace(atype=frame.atype * 0 + 2)
        energy = model.evaluate(silent.coord[None], None, silent.atype).energy
        assert energy[0] == 0.0


class TestNotSmooth(_Small, Symmetries, Bookkeeping, FiniteDifferences, Locality):
    """Attention without the switch: neighbours vanish at rcut with a jump."""

    changes = {"smooth_type_embedding": False}


class TestNotSmoothNoAngles(_Small, Symmetries, Bookkeeping, FiniteDifferences, Locality):
    """Attention that depends on the embeddings alone."""

    changes = {"smooth_type_embedding": False, "attn_dotr": False, "attn_layer": 1}


class TestPaddingLeak(_Small, Symmetries, Bookkeeping, FiniteDifferences):
    """Concat with davg != 0: empty slots take the first atom's type (DeePMD's formulas)."""

    changes = {"set_davg_zero": False}


class TestFloat32(_Small, PhysicsSuite):
    changes = {"precision": "float32"}
    exact = 2e-5
    difference = 5e-3
    step = 1e-2
    jump = 2e-5


class TestDeepPotSE(_Small, PhysicsSuite):
    base = SE


class TestDeepPotSEOneSided(_Small, PhysicsSuite):
    base = SE
    changes = {"type_one_side": True, "set_davg_zero": True, "resnet_dt": True}
