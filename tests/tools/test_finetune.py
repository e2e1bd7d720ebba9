"""Type maps: nothing physical changes for kept elements; what new ones get; who is trainable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpa_core.config import TrainConfig, parse_config
from dpa_core.errors import ConfigError
from dpa_core.finetune import merge_config, prepare_finetune, remap_types, set_trainable
from dpa_core.interchange.files import save_model
from dpa_core.stats import compute_env_stats
from tests.tools.conftest import TYPE_MAP, config, dataset, frame, labelled

MAPS = {
    "same": ("O", "H", "Cu"),
    "permutation": ("Cu", "O", "H"),
    "subset": ("H", "O"),
    "superset": ("Ni", "Cu", "H", "O", "He", "Li"),
    "one": ("O",),
}


def trained(make_model, descriptor=None, **rest):
    """A model whose per-type state is all distinct."""
    model = make_model(descriptor, **rest)
    rows = torch.arange(3, dtype=torch.float64)[:, None]
    model.descriptor.dstd.copy_(0.2 + 0.1 * rows + 0.01 * torch.arange(4))
    model.out_bias.copy_(torch.tensor([1.0, -2.0, 3.5]))
    model.fitting.bias_atom_e.copy_(torch.tensor([0.5, 0.25, 0.125]))
    return model


def energies(model, one, type_map):
    names = np.array(TYPE_MAP)[one.atype]
    atype = [list(model.type_map).index(n) for n in names]
    result = model.evaluate(one.coord[None], one.box[None], atype)
    return result.atom_energy[0], result.force[0]


@pytest.mark.parametrize("new", MAPS)
@pytest.mark.parametrize(
    "descriptor",
    [
        {"tebd_dim": 3}, {"tebd_dim": 6}, {"tebd_dim": 4, "use_tebd_bias": True},
        {"tebd_dim": 2, "tebd_input_mode": "strip"}, {"use_econf_tebd": True},
        {"tebd_dim": 6, "exclude_types": [[0, 2], [1, 1]], "precision": "float32"},
    ],
)  # fmt: skip
def test_kept_elements_keep_their_energies(make_model, rng, descriptor, new):
    model = trained(make_model, descriptor, fitting_net={"atom_ener": [None, None, 1.0]})
    kept = [t for t, name in enumerate(TYPE_MAP) if name in MAPS[new]]
    one = frame(rng, [kept[k % len(kept)] for k in range(5)])
    mapped = remap_types(model, MAPS[new])
    assert mapped.type_map == MAPS[new]
    tolerance = 1e-6 if descriptor.get("precision") == "float32" else 1e-12
    for before, after in zip(energies(model, one, TYPE_MAP), energies(mapped, one, MAPS[new])):
        assert after == pytest.approx(before, abs=tolerance)


def test_pairs_and_types_follow_their_names(make_model):
    model = make_model(
        {"exclude_types": [[0, 1], [2, 2]]}, pair_exclude_types=[[0, 2]],
        atom_exclude_types=[1], preset_out_bias={"O": 1.0, "Cu": 2.0},
    )  # fmt: skip
    mapped = remap_types(model, ("Cu", "H", "O")).config
    assert {frozenset(p) for p in mapped.descriptor.exclude_types} == {
        frozenset({2, 1}), frozenset({0})
    }  # fmt: skip
    assert mapped.pair_exclude_types == ((2, 0),)
    assert mapped.atom_exclude_types == (1,)
    reduced = remap_types(model, ("H", "Cu")).config
    assert reduced.descriptor.exclude_types == ((1, 1),)
    assert reduced.pair_exclude_types == ()
    assert reduced.atom_exclude_types == (0,)
    assert reduced.preset_out_bias == {"Cu": 2.0}


@pytest.mark.parametrize("tebd_dim", [3, 4, 5, 8, 10])
def test_new_rows(make_model, tebd_dim):
    model = trained(make_model, {"tebd_dim": tebd_dim})
    mapped = remap_types(model, ("He", "O", "Li", "H", "Cu"), seed=5)
    old, new = model.descriptor.type_embedding(), mapped.descriptor.type_embedding()
    assert new[[1, 3, 4]].detach().numpy() == pytest.approx(old.detach().numpy(), abs=1e-14)
    fresh = new[[0, 2]].detach()
    generator = torch.Generator().manual_seed(5)
    drawn = torch.rand(5, tebd_dim, generator=generator, dtype=torch.float64)
    assert fresh.numpy() == pytest.approx(drawn[[0, 2]].numpy(), abs=1e-14)
    assert mapped.out_bias.tolist() == [0.0, 1.0, 0.0, -2.0, 3.5]
    assert mapped.fitting.bias_atom_e.tolist() == [0.0, 0.5, 0.0, 0.25, 0.125]
    assert mapped.out_std.tolist() == [1.0] * 5
    assert mapped.descriptor.dstd[0].tolist() == [1.0] * 4
    assert mapped.descriptor.dstd[3].tolist() == model.descriptor.dstd[1].tolist()
    other = remap_types(model, ("He", "O", "Li", "H", "Cu"), seed=6)
    assert not torch.equal(other.descriptor.type_embedding()[0], new[0])


@pytest.mark.parametrize("one_side", [False, True])
def test_se_e2_a_can_be_reordered_only(make_model, rng, one_side):
    descriptor = {"type": "se_e2_a", "sel": [20, 30, 40], "type_one_side": one_side}
    model = trained(make_model, descriptor)
    model.descriptor.davg[:, 0] = torch.tensor([0.1, 0.2, 0.3])
    mapped = remap_types(model, ("Cu", "O", "H"))
    assert mapped.config.descriptor.sel == (40, 20, 30)
    one = frame(rng, [0, 1, 2, 1, 0])
    for before, after in zip(energies(model, one, None), energies(mapped, one, None)):
        assert after == pytest.approx(before, abs=1e-12)
    with pytest.raises(ConfigError, match="one net per element"):
        remap_types(model, ("O", "H"))
    with pytest.raises(ConfigError, match="once"):
        remap_types(model, ("O", "O", "H"))


def run_config(path, type_map, finetune=None, **model):
    return parse_config(
        TrainConfig,
        {
            "model": {"type_map": list(type_map), **model},
            "training": {"training_data": {"systems": ["x"]}, "numb_steps": 1, "seed": 3},
            "finetune": {"model": str(path), **(finetune or {})},
        },
        "test",
    )


@pytest.fixture
def pretrained(make_model, tmp_path):
    model = trained(make_model)
    model.provenance = {"steps": 100}
    return model, save_model(model, tmp_path / "pre.safetensors")


def test_prepare_shifts_the_bias_and_measures_new_elements(pretrained, rng):
    model, path = pretrained
    type_map = ("Ni", "H", "O")
    old = labelled(model, [frame(rng, t) for t in ([0, 1], [0, 0, 1], [1, 1, 0])])
    data = dataset(
        [f._replace(atype=2 - f.atype, energy=f.energy - 4.0 * np.sum(f.atype == 0)) for f in old],
        type_map=type_map,
    )
    ready = prepare_finetune(run_config(path, type_map), data)
    assert ready.type_map == type_map
    assert ready.out_bias.tolist() == pytest.approx([0.0, -1.75, -2.5], abs=1e-9)
    assert ready.descriptor.dstd[0].tolist() == [0.1] * 4  # Ni: in no frame
    assert torch.equal(ready.descriptor.dstd[2], model.descriptor.dstd[0])
    assert ready.provenance["finetuned_from"]["provenance"] == {"steps": 100}
    assert ready.config.descriptor == model.config.descriptor
    weights = zip(model.fitting.parameters(), ready.fitting.parameters())
    assert all(torch.equal(a, b) for a, b in weights)

    nickel = dataset([frame(rng, [0, 0, 1], energy=-1.0)], type_map=type_map)
    ready = prepare_finetune(run_config(path, type_map, {"bias": "none"}), nickel)
    expected = remap_types(model, type_map, 3)
    compute_env_stats(expected, nickel, 3)
    assert torch.equal(ready.descriptor.dstd[0], expected.descriptor.dstd[0])
    assert torch.equal(ready.descriptor.dstd[1], model.descriptor.dstd[1])
    assert ready.out_bias.tolist() == [0.0, -2.0, 1.0]


def test_new_fitting_net_starts_over(pretrained, rng):
    model, path = pretrained
    data = dataset([frame(rng, [0], energy=-3.0), frame(rng, [1], energy=-1.0)])
    settings = {"new_fitting": True}
    ready = prepare_finetune(run_config(path, TYPE_MAP, settings), data)
    assert ready.out_bias.tolist() == pytest.approx([-3.0, -1.0, 0.0])
    assert not ready.fitting.bias_atom_e.any()
    weights = zip(model.fitting.parameters(), ready.fitting.parameters())
    assert not any(torch.equal(a, b) for a, b in weights)
    kept = zip(model.descriptor.parameters(), ready.descriptor.parameters())
    assert all(torch.equal(a, b) for a, b in kept)
    wide = run_config(path, TYPE_MAP, settings, fitting_net={"neuron": [9]})
    assert prepare_finetune(wide, data).config.fitting_net.neuron == (9,)


def test_the_pretrained_architecture_wins():
    have = config()
    free = config({"precision": "float32", "trainable": False, "seed": 9, "sel": "auto"})
    merged = merge_config(have, free)
    assert merged.descriptor.precision == "float32"
    assert not merged.descriptor.trainable
    assert merged.descriptor.sel == 60
    wanted = config({"rcut": 4.0, "attn_layer": 0}, fitting_net={"neuron": [5]})
    with pytest.raises(ConfigError) as error:
        merge_config(have, wanted)
    for key in ("descriptor.rcut: 4.0", "descriptor.attn_layer: 0", "fitting_net.neuron: (5,)"):
        assert key in str(error.value)
    assert "3.5" in str(error.value)
    with pytest.raises(ConfigError, match=r"descriptor\.type"):
        merge_config(have, config({"type": "se_e2_a"}))
    with pytest.raises(ConfigError, match="atom_exclude_types"):
        merge_config(have, config(atom_exclude_types=[1]))
    bare = parse_config(type(have), {"type_map": ["H", "O"]}, "test")
    merged = merge_config(have, bare)
    assert merged.descriptor == have.descriptor
    assert merged.fitting_net == have.fitting_net
    preset = config(preset_out_bias={"H": 1.0})
    assert merge_config(have, preset).preset_out_bias == {"H": 1.0}
    assert merge_config(preset, bare).preset_out_bias == {"H": 1.0}
    excluded = config({"exclude_types": [[0, 1]]})
    swapped = config({"exclude_types": [[1, 2]]}, type_map=("Cu", "H", "O"))
    assert merge_config(excluded, swapped).descriptor.exclude_types == ((2, 1),)


def names(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_trainable(make_model):
    model = make_model({"trainable_ln": False})
    everything = {n for n, _ in model.named_parameters()}
    norms = {n for n in everything if "norm_" in n}
    assert norms
    set_trainable(model, "last_layer")
    assert names(model) == {"fitting.nets.0.layers.2.weight", "fitting.nets.0.layers.2.bias"}
    set_trainable(model, "fitting")
    assert names(model) == {n for n in everything if n.startswith("fitting.")}
    set_trainable(model, "all")
    assert names(model) == everything - norms
    frozen = make_model({"trainable": False})
    set_trainable(frozen, "all")
    assert names(frozen) == {n for n in everything if n.startswith("fitting.")}
    with pytest.raises(ConfigError, match="last_layer"):
        set_trainable(model, "some")  # type: ignore[arg-type]
