"""Code that runs on any device: every tensor made on the way is told where it belongs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from dpa_core.batch import make_batch, make_labels
from dpa_core.config import LossConfig, ModelConfig
from dpa_core.derivatives import loss_gradient, predict_heads
from dpa_core.frames import Frame
from dpa_core.loss import EnergyLoss
from dpa_core.model import build_model
from dpa_core.train.distributed import World
from dpa_core.train.optimizer import join_gradients

FACTORIES = (
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace,
    torch.ones, torch.rand, torch.randn, torch.randperm, torch.tensor, torch.zeros,
)  # fmt: skip


class NamedDevices(TorchFunctionMode):
    """Refuses to make a tensor without `device`: on a GPU it would lie on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES and kwargs.get("device") is None:
            raise AssertionError(f"{func.__name__}{args} names no device")
        return func(*args, **kwargs)


DPA1 = {"type": "dpa1", "sel": 30, "attn": 6, "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2}
SE = {"type": "se_e2_a", "sel": [20, 20], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attention": (DPA1, {}),
    "not smooth, angles off": (
        {**DPA1, "smooth_type_embedding": False, "attn_dotr": False, "exclude_types": [[0, 1]]},
        {"numb_fparam": 1, "default_fparam": [0.5]},
    ),
    "strip": ({**DPA1, "tebd_input_mode": "strip", "set_davg_zero": False}, {"atom_ener": [1, 0]}),
    "electrons": ({**DPA1, "use_econf_tebd": True}, {}),
    "tensorflow": ({**DPA1, "convention": "tensorflow", "attn_layer": 1}, {}),
    "DeepPot-SE": (SE, {}),
}


def frames() -> list[Frame]:
    rng = np.random.default_rng(3)
    return [
        Frame(rng.uniform(0, 4, (n, 3)), rng.integers(0, 2, n), 4 * np.eye(3), 1.0, np.ones((n, 3)))
        for n in (4, 6)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_made_on_the_models_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPAFLOW_KERNELS", "0")
    descriptor, net = MODELS[name]
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "heads": 2}
    fitting = {"neuron": [6, 6], **net}
    model = build_model(ModelConfig.model_validate({**config, "fitting_net": fitting}))
    model.descriptor.davg += 0.1
    batch, labels = make_batch(frames(), model.spec), make_labels(frames())
    batch = batch._replace(head=torch.tensor([0, 1]))
    loss = EnergyLoss(LossConfig(start_pref_v=1.0))
    alone = World()
    with NamedDevices():
        loss_gradient(model, batch, lambda found: loss(found, labels, batch, 0.5, alone))
        join_gradients(list(model.parameters()), alone, 1.0)
        for found in predict_heads(model.heads(), batch._replace(head=None), atom_virial=True):
            loss.sums(found, labels, batch)


def test_the_check_can_fail() -> None:
    with NamedDevices(), pytest.raises(AssertionError, match="names no device"):
        torch.zeros(3)
