"""DeePMD-kit input files become ours: same defaults, nothing ignored in silence."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa_core.config import TrainConfig
from dpa_core.deepmd_input import convert, is_deepmd_input
from dpa_core.deepmd_output import training_input
from dpa_core.errors import ConfigError
from dpa_core.yaml_file import read_yaml
from tests.config.deepmd_inputs import INPUTS, TENSORFLOW, VERSION_1, VERSION_31

RECORD = json.loads((Path(__file__).parents[1] / "reference" / "deepmd.json").read_text())
ARGCHECK = json.loads((Path(__file__).parent / "argcheck.json").read_text())
# The water example that DeePMD-kit's documentation of DPA-1 starts from.
WATER: dict[str, Any] = {
    "_comment": "that's all",
    "model": {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "dpa1", "sel": 120, "rcut_smth": 0.5, "rcut": 6.0, "neuron": [25, 50, 100],
            "resnet_dt": False, "axis_neuron": 16, "seed": 1, "attn": 128, "attn_layer": 2,
            "attn_dotr": True, "attn_mask": False, "activation_function": "tanh",
            "scaling_factor": 1.0, "normalize": False, "temperature": 1.0, "precision": "float64",
            "type_one_side": True, "_comment": "here, too",
        },
        "fitting_net": {"neuron": [240, 240, 240], "resnet_dt": True, "seed": 1},
    },
    "learning_rate": {
        "type": "exp", "decay_steps": 5000, "start_lr": 0.001, "stop_lr": 3.51e-8,
    },
    "loss": {
        "type": "ener", "start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000,
        "limit_pref_f": 1, "start_pref_v": 0, "limit_pref_v": 0, "start_pref_pf": 0,
    },
    "training": {
        "stat_file": "./dpa1", "training_data": {"systems": ["../data/data_0"], "batch_size": 1},
        "validation_data": {"systems": "../data/data_3", "batch_size": "auto", "numb_btch": 3},
        "stop_batch": 1000000, "seed": 10, "disp_file": "lcurve.out", "disp_freq": 100,
        "save_freq": 100, "time_training": True, "gradient_max_norm": None,
    },
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(WATER)
    *parents, last = path.split(".")
    section = data
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value
    return data


def test_water_example() -> None:
    before = copy.deepcopy(WATER)
    config = convert(WATER)
    assert before == WATER
    descriptor, training = config.model.descriptor, config.training
    assert descriptor.type == "dpa1"
    assert (descriptor.sel, descriptor.temperature, descriptor.type_one_side) == (120, 1.0, True)
    assert not descriptor.smooth_type_embedding  # DeePMD's JSON default, not ours
    assert config.model.fitting_net.precision == "float64"
    assert training.numb_steps == 1_000_000
    assert training.training_data.batch_size == 1
    assert training.validation_data.systems == ("../data/data_3",)
    assert training.validation_data.batch_size == "auto:32"
    assert config.learning_rate.stop_lr == 3.51e-8


@pytest.mark.parametrize(
    "case", RECORD["inputs"], ids=lambda c: c["given"]["model"]["descriptor"]["type"]
)
def test_defaults_are_deepmds(case: dict) -> None:
    """What DeePMD-kit itself fills in (recorded) is what we fill in."""
    ours = convert(case["given"]).model_dump(mode="json")
    normal = case["normal"]
    translated = {
        "type": {"se_atten": "dpa1", "se_atten_v2": "dpa1"},
        "precision": {"default": "float64"},
    }
    pairs = [
        (ours["model"]["descriptor"], normal["model"]["descriptor"]),
        (ours["model"]["fitting_net"], normal["model"]["fitting_net"]),
        (ours["model"], normal["model"]),
        (ours["loss"], normal["loss"]),
        (ours["learning_rate"], normal["learning_rate"]),
        (ours["training"], normal["training"]),
    ]
    compared = 0
    for mine, theirs in pairs:
        for key, value in theirs.items():
            if key in mine and not isinstance(value, dict):
                expected = translated.get(key, {}).get(value) if isinstance(value, str) else None
                expected = value if expected is None else expected
                expected = {"ln_eps": 1e-5}.get(key, expected) if value is None else expected
                if value in ([], None) and mine[key] in (None, {}, []):
                    continue
                assert mine[key] == expected, key
                compared += 1
    assert compared > 45


def test_se_atten_v2_is_smooth_strip() -> None:
    data = changed("model.descriptor", {"type": "se_atten_v2", "sel": [20, 40]})
    descriptor = convert(data).model.descriptor
    assert (descriptor.tebd_input_mode, descriptor.smooth_type_embedding) == ("strip", True)
    assert (descriptor.set_davg_zero, descriptor.sel) == (False, 60)
    with pytest.raises(ConfigError, match=r"model\.descriptor\.tebd_input_mode: unknown key"):
        convert(changed("model.descriptor", {"type": "se_atten_v2", "tebd_input_mode": "concat"}))


def test_aliases() -> None:
    descriptor = {
        "type": "se_atten", "sel": "auto:1.1", "n_neuron": [8, 16], "n_axis_neuron": 4,
        "smooth_type_embdding": True, "stripped_type_embedding": True,
    }  # fmt: skip
    converted = convert(changed("model.descriptor", descriptor)).model.descriptor
    assert (converted.neuron, converted.axis_neuron, converted.sel) == ((8, 16), 4, "auto")
    assert converted.smooth_type_embedding
    assert converted.tebd_input_mode == "strip"
    se = convert(changed("model.descriptor", {"type": "se_a", "sel": [46, 92]})).model.descriptor
    assert (se.type, se.sel, se.neuron, se.set_davg_zero) == (
        "se_e2_a",
        (46, 92),
        (10, 20, 40),
        False,
    )


def test_version_1() -> None:
    config = convert(VERSION_1)
    assert config.model.descriptor.type == "se_e2_a"
    assert config.training.training_data.systems == ("../data",)
    assert config.training.numb_steps == 1_000_000
    assert config.learning_rate.decay_rate is None
    assert config.learning_rate.stop_lr == pytest.approx(0.005 * 0.95**200)


def test_numbers_without_a_point_are_text_to_yaml(tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    rate = {"start_lr": 1e-3, "stop_lr_ratio": 1e-3, "warmup_ratio": 1e-1}
    text = json.dumps(changed("learning_rate", rate)).replace("0.001", "1e-3")
    assert text.count("1e-3") == 2
    path.write_text(text)
    assert convert(read_yaml(path)).learning_rate.stop_lr == pytest.approx(1e-6)
    path.write_text(json.dumps(VERSION_1).replace("0.005", "5e-3"))
    assert convert(read_yaml(path)) == convert(VERSION_1)


def test_version_31_has_optimizer_and_warmup_in_training() -> None:
    config = convert(VERSION_31)
    assert (config.optimizer.type, config.optimizer.beta1) == ("AdamW", 0.8)
    assert config.optimizer.weight_decay == 0.01
    assert config.learning_rate.warmup_steps == 20
    assert config.training.gradient_max_norm == 5.0


def test_tensorflows_type_embedding() -> None:
    assert convert(TENSORFLOW).model.descriptor.tebd_dim == 16


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"neuron": [4, 8]}, r"type_embedding\.neuron: the type embedding has one layer"),
        ({"resnet_dt": True}, r"type_embedding\.resnet_dt: True is not supported"),
        ({"activation_function": "relu"}, r"type_embedding\.activation_function: 'relu'"),
        ({"trainable": False}, r"type_embedding\.trainable: .*freeze the descriptor"),
        ({"neurons": [8]}, r"type_embedding\.neurons: unknown key.*'neuron'"),
    ],
)
def test_other_type_embeddings_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(changed("model.type_embedding", section))
    data = changed("model.descriptor", {"type": "se_e2_a"})
    data["model"]["type_embedding"] = {}
    with pytest.raises(ConfigError, match="se_e2_a has none in dpaflow"):
        convert(data)


def test_derived_values() -> None:
    rate = {"start_lr": 0.002, "stop_lr_ratio": 0.01, "warmup_ratio": 0.1}
    config = convert(changed("learning_rate", rate))
    assert config.learning_rate.stop_lr == pytest.approx(2e-5)
    assert config.learning_rate.warmup_steps == 100_000
    huber = convert(changed("loss", {"use_huber": True, "huber_delta": [0.1, 0.2, 0.3]})).loss
    assert (huber.loss_func, huber.huber_delta) == ("huber", (0.1, 0.2, 0.3))
    preset = changed("model.preset_out_bias", {"energy": [None, [-3.1]]})
    assert convert(preset).model.preset_out_bias == {"H": -3.1}
    listed = changed("model.fitting_net.trainable", [True, False, False, False])
    assert not convert(listed).model.fitting_net.trainable
    ratio = changed("training.ckpt_keep_ratio", 0.001)
    assert convert(ratio).training.max_ckpt_keep == 10
    ema = changed("validating", {"ema_full_validation": True, "validation_freq": 70})
    assert convert(ema).training.valid_freq == 1000
    ema["training"]["enable_ema"] = True
    assert convert(ema).training.valid_freq == 70
    full = changed("validating", {"full_validation": True, "validation_freq": 70})
    assert convert(full).training.valid_freq == 70


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (4, 4),
        ([2, 2], 2),
        ("auto", "auto:32"),
        ("auto:128", "auto:128"),
        ("mixed:8", 8),
        ("max:64", "max:64"),
        ("mix:64", "max:64"),
    ],
)
def test_batch_size(given: Any, expected: Any) -> None:
    config = convert(changed("training.training_data.batch_size", given))
    assert config.training.training_data.batch_size == expected


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.descriptor.rcutt", 6, r"model\.descriptor\.rcutt: unknown key.*'rcut'"),
        ("model.descriptor.attn_mask", True, r"attn_mask: True is not supported.*False"),
        ("model.descriptor.type", "dpa2", r"descriptor\.type: 'dpa2'.*se_e2_a"),
        ("model.descriptor.lmax", 2, r"lmax: 2 is not supported"),
        ("model.descriptor.sel", "auto:2.0", "sel: the automatic margin"),
        ("model.fitting_net.dim_case_embd", 3, "dim_case_embd: 3 is not supported"),
        ("model.fitting_net.type", "dipole", r"fitting_net\.type: 'dipole'"),
        ("model.spin", {"use_spin": [True]}, r"model\.spin: .* is not supported"),
        ("model.shared_dict", {}, r"model\.shared_dict"),
        ("loss.start_pref_pf", 1.0, r"loss\.start_pref_pf: 1\.0 is not supported"),
        ("loss.relative_f", -1.0, r"loss\.relative_f: .*greater than 0"),
        ("optimizer", {"type": "LKF"}, r"optimizer\.type: 'LKF'.*Adam, AdamW"),
        ("training.zero_stage", 2, r"training\.zero_stage"),
        ("training.training_data.batch_size", "filter:64", r'batch_size: allowed.*"auto:N"'),
        ("training.training_data.batch_size", "max:", "batch_size: .*string should match"),
        ("training.training_data.sys_probs", [0.5], r"sys_probs: .*list a system twice"),
        ("training.ckpt_keep_ratio", "x", "ckpt_keep_ratio: must be a number"),
        ("learning_rate", {"stop_lr": 1e-8}, r"learning_rate\.start_lr: missing"),
        ("learning_rate", {"start_lr": 1.0}, "exactly one of stop_lr and stop_lr_ratio"),
        ("nvnmd", {"enable": True}, "nvnmd: .* is not supported"),
        ("trainingg", {}, "trainingg: unknown key.*'training'"),
        ("model.descriptor.rcut", -1, r"model\.descriptor.*rcut: input should be greater than 0"),
        ("training", 3, r"training: must be a mapping \(got 3\)"),
    ],
)
def test_what_we_cannot_honour(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        convert(changed(path, value), "water/input.json")
    assert str(error.value).startswith("water/input.json: ")


def test_all_mistakes_at_once() -> None:
    data = changed("model.descriptor.rcutt", 6) | {"nvnmd": {}}
    with pytest.raises(ConfigError, match="3 mistakes"):
        convert(data | {"optimizer": {"typo": 1}})


def test_result_is_a_plain_config() -> None:
    config = convert(WATER)
    assert TrainConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("data", "deepmd"),
    [
        ({"model": {"descriptor": {"type": "se_atten"}}}, True),
        ({"model": {"descriptor": {"type": "dpa1", "n_neuron": [8]}}}, True),
        ({"model": {"type_embedding": {}}}, True),
        ({"loss": {"type": "ener"}}, True),
        ({"learning_rate": {"stop_lr_ratio": 0.1}}, True),
        ({"optimizer": {"adam_beta1": 0.9}}, True),
        ({"training": {"disp_file": "lcurve.out"}}, True),
        ({"training": {"stop_batch": 10}}, True),
        ({"training": {"systems": ["a"]}}, True),
        ({"training": {"validation_data": {"numb_btch": 1}}}, True),
        ({"validating": {}}, True),
        ({"_comment": "x"}, True),
        ({"model": {"descriptor": {"type": "dpa1"}}, "learning_rate": {"type": "exp"}}, False),
        ({"training": None, "model": []}, False),
        ([], False),
    ],
)
def test_deepmd_input_is_recognised(data: Any, deepmd: bool) -> None:
    assert is_deepmd_input(data) is deepmd


def test_what_is_written_is_recognised() -> None:
    ours = json.loads(convert(WATER).model_dump_json())
    assert not is_deepmd_input(ours)
    assert is_deepmd_input(training_input(convert(WATER)))
    assert all(is_deepmd_input(case["prepared"]) for case in ARGCHECK["inputs"])


JUNK = st.sampled_from(
    [None, True, 0, -1, 1e400, "x", "1", "nan", "1e999", [], [None], {}, {"a": {}}, [[1]]]
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_junk_is_a_config_error(data: st.DataObject) -> None:
    """Whatever stands in a file, either it is converted or the message is ours."""
    document = json.loads(json.dumps(data.draw(st.sampled_from(INPUTS))))
    place = document
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JUNK)
    with contextlib.suppress(ConfigError):
        convert(document)
