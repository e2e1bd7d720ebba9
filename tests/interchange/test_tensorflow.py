"""Frozen TensorFlow graphs: energies as TensorFlow recorded them, and what is refused.

Graphs and values are made by record_tensorflow.py with DeePMD-kit 3.2.0's TensorFlow backend.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dpa_core.batch import make_batch
from dpa_core.config import TrainConfig, parse_config
from dpa_core.data import write_mixed
from dpa_core.derivatives import loss_gradient
from dpa_core.errors import ModelFileError
from dpa_core.finetune import remap_types
from dpa_core.frames import Frame
from dpa_core.interchange import protobuf, tensorflow_check
from dpa_core.interchange.files import load_model, read_content, read_header, save_model
from dpa_core.interchange.tensorflow_graph import Graph
from dpa_core.interchange.tensorflow_pb import read
from dpa_core.model import build_model
from dpa_core.tensorflow import as_pytorch, operator_radii
from dpa_core.train import train

FOLDER = Path(__file__).parent / "tensorflow"
RECORD = json.loads((FOLDER / "record.json").read_text())
REFUSED = [name for name in RECORD["models"] if name.startswith("no_")]
MODELS = [name for name in RECORD["models"] if name not in REFUSED]
# Relative to the largest entry of the tensor; float32 networks round at 1e-7.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
# The second structure has a pair 0.005 Å inside rcut. There TensorFlow's gate of the attention
# divides rows by 1e-6, and so the rounding of the switch, 1e-16, in TensorFlow itself.
NEAR, NEAR_TOLERANCE = 1, {"float64": 5e-7, "float32": 5e-5}
# Below this a component is a cancelled sum: eV, eV/Å.
FLOOR = 1e-3


def graph(name: str) -> Path:
    return FOLDER / f"{name}.pb"


def errors(model, name: str) -> list[float]:
    """Largest deviation of every structure, relative to the largest entry of its tensor."""
    case, found = RECORD["models"][name], []
    for system, parameters, wanted in zip(
        RECORD["systems"], case["parameters"], case["results"], strict=True
    ):
        worst = 0.0
        result = model.evaluate(
            [system["coord"]],
            None if system["box"] is None else [system["box"]],
            system["atype"],
            **{key: [value] for key, value in parameters.items()},
        )
        for key, values in wanted.items():
            expected = np.array(values).reshape(-1)
            error = np.abs(getattr(result, key)[0].reshape(-1) - expected).max()
            worst = max(worst, error / max(np.abs(expected).max(), FLOOR))
        found.append(worst)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_energies_forces_virials(name):
    precision = RECORD["models"][name]["precision"]
    for k, error in enumerate(errors(load_model(graph(name)), name)):
        assert error < (NEAR_TOLERANCE if k == NEAR else TOLERANCE)[precision]


@pytest.mark.parametrize("name", ["attn0", "attn1_no_dotr", "strip0", "attn0_f32", "tebd_default"])
def test_what_both_backends_agree_on_has_pytorchs_formulas(name):
    config = read_content(graph(name)).config
    assert config.descriptor.convention == "pytorch"
    assert config.fitting_net.convention == "pytorch"


@pytest.mark.parametrize("name", ["attn2", "smooth2", "v2_attn0", "attn0_davg", "se_a_exclude"])
def test_what_they_differ_in_has_tensorflows(name):
    """Without the convention the record is missed, so the record can tell."""
    content = read_content(graph(name))
    assert content.config.descriptor.convention == "tensorflow"
    model = load_model(graph(name))
    plain = model.config.descriptor.model_copy(update={"convention": "pytorch"})
    other = build_model(model.config.model_copy(update={"descriptor": plain}))
    other.load_state_dict(model.state_dict())
    assert max(errors(other, name)) > 1e-6


def test_deep_pot_se_agrees_with_pytorch_where_sel_is_not_full():
    model = load_model(graph("se_a"))
    plain = as_pytorch(model.config, davg_zero=False)
    assert plain is not None
    assert plain.descriptor.convention == "pytorch"
    other = build_model(plain)
    other.load_state_dict(model.state_dict())
    full, *room = errors(other, "se_a")
    assert full > 1e-7
    assert max(room) < 1e-10
    exclusions = load_model(graph("se_a_exclude")).config
    assert as_pytorch(exclusions, davg_zero=False) is None
    assert as_pytorch(exclusions, davg_zero=True) is not None
    assert as_pytorch(load_model(graph("attn2")).config, davg_zero=True) is None
    assert as_pytorch(load_model(graph("attn0")).config, davg_zero=True) is not None


def test_settings_come_from_the_graph():
    header = read_header(graph("bare_attn2"))
    descriptor = header["config"]["descriptor"]
    expected = {
        "rcut": 4.0, "rcut_smth": 1.0, "sel": 12, "neuron": [3, 6], "axis_neuron": 2, "attn": 4,
        "attn_layer": 2, "temperature": 1.0, "ln_eps": 1e-3, "exclude_types": [[0, 1]],
        "type_one_side": False, "smooth_type_embedding": False, "precision": "float64",
    }  # fmt: skip
    assert {key: descriptor[key] for key in expected} == expected
    assert header["type_map"] == ["O", "H", "Cu"]
    origin = header["provenance"]["origin"]
    assert origin["format"] == "TensorFlow .pb"
    assert origin["file"] == "bare_attn2.pb"
    assert "input" not in origin
    json.dumps(header)


def test_the_training_script_is_kept():
    origin = read_content(graph("v2_attn2")).provenance["origin"]
    assert origin["input"]["model"]["descriptor"]["type"] == "se_atten_v2"
    assert origin["model_version"] == "1.1"
    old = read_content(graph("old_attn1_f32")).provenance["origin"]
    assert old["software"] == "DeePMD-kit 2.0, TensorFlow backend"


@pytest.mark.parametrize("name", ["tebd_layers", "tebd_linear_same", "tebd_double", "tebd_econf"])
def test_type_embeddings_become_an_exact_table(name):
    table = Graph(graph(name)).value("t_typeebd")
    ours = load_model(graph(name)).descriptor.type_embedding().detach().numpy()
    assert np.abs(ours - table[:-1]).max() < 2e-16
    assert not table[-1].any()


def test_radii_are_those_of_the_operator():
    """TensorFlow's operator takes 3.7 and 0.3 in single precision, and so their difference."""
    end, start = operator_radii(3.7, 0.3)
    assert start == float(np.float32(0.3))
    assert end - start == pytest.approx(float(np.float32(3.7) - np.float32(0.3)), abs=1e-15)
    assert operator_radii(6.0, 0.5) == (6.0, 0.5)
    assert load_model(graph("v2_radii")).config.descriptor.rcut == 3.7


def test_native_file_keeps_the_convention(tmp_path):
    path = save_model(load_model(graph("smooth2_exclude_davg")), tmp_path / "m.safetensors")
    assert max(errors(load_model(path), "smooth2_exclude_davg")) < 1e-10


@pytest.mark.parametrize("name", ["attn2_exclude_davg", "se_a_exclude", "tebd_double"])
def test_other_type_maps(name):
    """Finetuning reorders types; all that belongs to a type moves with it."""
    model = load_model(graph(name))
    new = ("Cu", "H", "O") if name.startswith("se_a") else ("Cu", "He", "H", "O")
    system, wanted = RECORD["systems"][2], RECORD["models"][name]["results"][2]
    atype = [new.index(model.type_map[t]) for t in system["atype"]]
    # Of the free cluster, whose first atom decides nothing in TensorFlow's formulas.
    result = remap_types(model, new).evaluate([system["coord"]], None, atype)
    assert np.abs(result.atom_energy[0] - wanted["atom_energy"]).max() < 1e-12


REASONS = {
    "no_compressed": "compressed model",
    "no_se_a_tebd": "type embedding",
    "no_se_r": "se_e2_r",
    "no_attn_mask": "attn_mask",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name):
    with pytest.raises(ModelFileError, match=REASONS[name]) as error:
        load_model(graph(name))
    assert str(graph(name)) in str(error.value)


def test_a_graph_holds_one_model():
    with pytest.raises(ModelFileError, match="one model"):
        load_model(f"{graph('attn0')}#water")


def replaced(tmp_path: Path, name: str, old: bytes, new: bytes) -> Path:
    data = graph(name).read_bytes()
    assert old in data
    assert len(old) == len(new)
    path = tmp_path / "changed.pb"
    path.write_bytes(data.replace(old, new))
    return path


CHANGES = {
    "script rcut": (b'"rcut":4.0', b'"rcut":4.5', r"descriptor.rcut: script 4.5, graph 4.0"),
    "script neuron": (b'"neuron":[3,6]', b'"neuron":[3,7]', r"descriptor.neuron"),
    "script fitting": (b'"neuron":[5,5]', b'"neuron":[5,6]', r"fitting_net.neuron"),
    "script layers": (b'"attn_layer":2', b'"attn_layer":1', r"attn_layer: script 1, graph 2"),
    "script types": (b'["O","H","Cu"]', b'["O","N","Cu"]', "type_map"),
    "script no json": (b'{"model":{"type_map"', b'{"model"={"type_map"', "not JSON"),
    "model type": (b"\x04ener", b"\x04dipo", "model of type 'dipo'"),
    "output": (b"o_atom_energy", b"o_atom_dipole", "no node 'o_atom_energy'"),
    "weights": (b"layer_1/idt", b"layer_1/xxx", "not known: layer_1/xxx"),
    "attention": (b"_0/c_value/", b"_0/c_valve/", "c_value/matrix"),
    "operation": (b"\x12\x07Softmax", b"\x12\x07Sobtmax", "operation 'Sobtmax'"),
    # A square root in place of the softmax's input: read, and caught by the energies.
    "meaning": (b"\x12\x07Softmax", b"\x12\x07Sigmoid", "other energies than the model"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_contradictions_and_unknown_graphs_are_refused(tmp_path, kind):
    old, new, reason = CHANGES[kind]
    with pytest.raises(ModelFileError, match=reason):
        load_model(replaced(tmp_path, "attn2", old, new))


def test_every_option_is_seen_by_the_check_of_energies(monkeypatch):
    """The made-up atoms tell apart models that differ in any one setting."""
    for name, changes in {
        "attn2": [{"temperature": 0.9}, {"attn_dotr": False}, {"convention": "pytorch"},
                  {"ln_eps": 1e-5}, {"rcut_smth": 1.1}, {"sel": 13}, {"rcut": 4.1}],
        "smooth2_exclude_davg": [{"exclude_types": []}, {"smooth_type_embedding": False},
                                 {"convention": "pytorch"}],
        "attn0_davg": [{"convention": "pytorch"}],
        "se_a_one_side_exclude": [{"convention": "pytorch"}],
    }.items():  # fmt: skip
        seen = []
        monkeypatch.setattr(
            "dpa_core.interchange.tensorflow_pb.check_energies", lambda *a, s=seen: s.append(a)
        )
        content = read_content(graph(name))
        forward, op, _ = seen[0]
        tensorflow_check.check_energies(forward, op, content)
        for change in changes:
            descriptor = content.config.descriptor
            other = type(descriptor).model_validate(descriptor.model_dump() | change)
            config = content.config.model_copy(update={"descriptor": other})
            with pytest.raises(ModelFileError, match="other energies"):
                tensorflow_check.check_energies(forward, op, content._replace(config=config))


# Protocol buffers written by hand.
def number(value: int) -> bytes:
    value &= 2**64 - 1
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def field(key: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return number(key << 3) + number(value)
    return number(key << 3 | 2) + number(len(value)) + value


def attribute(key: bytes, value: bytes) -> bytes:
    return field(5, field(1, key) + field(2, value))


def node(name: bytes, op: bytes, *inputs: bytes, rest: bytes = b"") -> bytes:
    text = b"".join(field(3, i) for i in inputs)
    return field(1, field(1, name) + field(2, op) + text + rest)


def constant(name: bytes, tensor: bytes) -> bytes:
    return node(name, b"Const", rest=attribute(b"value", field(8, tensor)))


def shape(*sizes: int) -> bytes:
    return field(2, b"".join(field(2, field(1, s)) for s in sizes))


DOUBLE = field(1, 2)
ONE = np.float64(1.5).tobytes()


def read_constant(tmp_path: Path, tensor: bytes):
    path = tmp_path / "one.pb"
    path.write_bytes(constant(b"c", tensor))
    return protobuf.GraphFile(path).nodes()["c"].attr("value")


def test_all_ways_to_write_a_tensor(tmp_path):
    values = np.arange(6.0)
    whole = read_constant(tmp_path, DOUBLE + shape(2, 3) + field(4, values.tobytes()))
    assert whole.tolist() == [[0, 1, 2], [3, 4, 5]]
    packed = read_constant(tmp_path, DOUBLE + shape(6) + field(6, values.tobytes()))
    assert packed.tolist() == values.tolist()
    single = b"".join(number(6 << 3 | 1) + v.tobytes() for v in values)
    assert read_constant(tmp_path, DOUBLE + shape(6) + single).tolist() == values.tolist()
    filled = read_constant(tmp_path, DOUBLE + shape(1000, 10) + field(6, ONE))
    assert filled.shape == (1000, 10)
    assert filled.strides == (0, 0)
    tail = read_constant(tmp_path, DOUBLE + shape(4) + field(6, values[:2].tobytes()))
    assert tail.tolist() == [0, 1, 1, 1]
    assert read_constant(tmp_path, DOUBLE + shape(3)).tolist() == [0, 0, 0]
    minus = field(1, 3) + shape(2) + field(7, number(-1) + number(7))
    assert read_constant(tmp_path, minus).tolist() == [-1, 7]
    assert read_constant(tmp_path, field(1, 3) + field(7, 5)).tolist() == 5
    assert read_constant(tmp_path, field(1, 7) + field(8, b"a b")) == [b"a b"]
    boolean = read_constant(tmp_path, field(1, 10) + shape(2) + field(11, b"\x01\x00"))
    assert boolean.tolist() == [True, False]


TENSORS = {
    "absurd shape": DOUBLE + shape(2**39, 2**39) + field(6, ONE),
    "negative shape": DOUBLE + shape(-1) + field(6, ONE),
    "many axes": DOUBLE + shape(*[1] * 99) + field(6, ONE),
    "filled": DOUBLE + shape(2**20, 2**20) + field(6, ONE),
    "short": DOUBLE + shape(4) + field(4, ONE),
    "long": DOUBLE + shape(1) + field(6, ONE + ONE),
    "type": field(1, 77) + shape(1),
    "torn value": DOUBLE + shape(1) + field(6, ONE[:5]),
    "integers": field(1, 3) + shape(200_000) + field(7, b"\x01" * 200_000),
    "unknown rank": DOUBLE + field(2, field(3, 1)),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_hostile_tensors(tmp_path, kind):
    with pytest.raises(ModelFileError, match="damaged"):
        read_constant(tmp_path, TENSORS[kind])


def nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = field(1, value)
    return value


HARM = {
    "length": field(1, b"ab") + b"\x0a\xff\xff\xff\xff\x0f",
    "varint": b"\x0a\x04" + b"\xff" * 20,
    "cut varint": b"\x0a\xff",
    "group": b"\x0b",
    "no name": field(1, field(2, b"Const")),
    "not text": node(b"\xff\xfe", b"Const"),
    "twice": node(b"a", b"Const") * 2,
    "deep": nested(3000),
    "number for text": field(1, field(1, 7)),
    "empty": node(b"a", b"Const"),
    "cycle": node(b"o_atom_energy", b"Identity", b"b") + node(b"b", b"Identity", b"o_atom_energy"),
    "self": node(b"o_atom_energy", b"Identity", b"o_atom_energy"),
    "dangling": node(b"o_atom_energy", b"Identity", b"b"),
    "zeros": b"\0" * 5000,
    "nothing": node(b"o_atom_energy", b"Placeholder"),
    "nodes": b"".join(node(b"%d" % k, b"X") for k in range(protobuf.MAX_NODES + 1)),
}


@pytest.mark.parametrize("kind", HARM)
def test_hostile_files(tmp_path, kind):
    path = tmp_path / "bad.pb"
    path.write_bytes(HARM[kind])
    with pytest.raises(ModelFileError, match=r"bad\.pb"):
        read(path)


def test_damage_anywhere_is_one_error(tmp_path):
    """Cut and overwritten files: refused, or read as a model (a digit of a weight changed)."""
    data = graph("attn0_one_side").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "bad.pb"
    for k in range(120):
        changed = bytearray(data[: rng.integers(len(data))] if k % 2 else data)
        for position in rng.integers(0, len(changed), 3):
            changed[position] = rng.integers(256)
        path.write_bytes(bytes(changed))
        with contextlib.suppress(ModelFileError):
            read(path)


def test_huge_products_are_not_computed(tmp_path):
    """A small file whose type table asks for 10^12 numbers."""
    path = tmp_path / "bad.pb"
    size = field(1, 3) + shape(2) + field(7, number(1_000_000) * 2)
    fill = constant(b"one", DOUBLE + field(6, ONE)) + constant(b"size", size)
    path.write_bytes(fill + node(b"t", b"Fill", b"size", b"one"))
    with pytest.raises(ModelFileError, match="cannot be computed"):
        Graph(path).value("t")


def test_training_a_model_of_tensorflow():
    """Gradients reach every weight, with the second derivatives that forces need."""
    model = load_model(graph("smooth2_davg"))
    system = RECORD["systems"][0]
    one = Frame(np.array(system["coord"]), np.array(system["atype"]), np.array(system["box"]))
    loss_gradient(
        model,
        make_batch([one], model.spec),
        lambda found: (found.force.square().sum() + found.energy.sum(), None),
    )
    lost = [n for n, p in model.named_parameters() if p.grad is None or not torch.any(p.grad)]
    assert not lost


@pytest.mark.parametrize("name", ["attn2_davg", "v2_attn2", "se_a", "atom_ener"])
def test_finetuning_a_model_of_tensorflow(tmp_path, name):
    """The whole road: graph -> bias -> training -> native file, with TensorFlow's formulas."""
    rng = np.random.default_rng(2)
    nf = load_model(graph(name)).config.fitting_net.numb_fparam
    frames = [
        Frame(
            rng.uniform(0, 5, (4, 3)), np.array([0, 1, 2, 1]), 5 * np.eye(3), float(rng.normal()),
            rng.normal(size=(4, 3)), fparam=rng.normal(size=nf) if nf else None,
        )
        for _ in range(4)
    ]  # fmt: skip
    write_mixed(frames, ("O", "H", "Cu"), tmp_path / "data")
    data = {"systems": [str(tmp_path / "data")], "batch_size": 2}
    config = {
        "model": {"type_map": ["O", "H", "Cu"]},
        "training": {"training_data": data, "numb_steps": 3},
        "finetune": {"model": str(graph(name))},
    }
    summary = train(parse_config(TrainConfig, config, "test"), tmp_path / "run")
    tuned, before = load_model(summary.model), load_model(graph(name))
    assert tuned.config.descriptor == before.config.descriptor
    assert tuned.config.fitting_net == before.config.fitting_net
    weights = zip(before.named_parameters(), tuned.parameters(), strict=True)
    kept = [weight for (weight, old), new in weights if torch.equal(old, new)]
    # What an atom in vacuum shares with every other is subtracted.
    assert kept == (["fitting.nets.0.layers.2.bias"] if name == "atom_ener" else [])
