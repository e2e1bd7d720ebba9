"""Record TensorFlow graphs and what DeePMD-kit's TensorFlow backend computes with them.

Needs an environment with deepmd-kit 3.2.0 and TensorFlow (CPU), and nothing of dpaflow:

    python tests/interchange/record_tensorflow.py tests/interchange/tensorflow [NAME...]

Every case trains a tiny model for a few steps on random data, freezes it and evaluates the
frozen graph on three structures. Graphs are then cut down to what gives the energy (TensorFlow's
own `extract_sub_graph`), except those in WHOLE. Cases named `old` have the LayerNorm of releases
before 3.0 and lack nodes that these lacked, `ancient` the operator of 1.x, `bare` only the script.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

THREADS = (
    "OMP_NUM_THREADS", "TF_INTRA_OP_PARALLELISM_THREADS", "TF_INTER_OP_PARALLELISM_THREADS",
    "DP_INTRA_OP_PARALLELISM_THREADS", "DP_INTER_OP_PARALLELISM_THREADS",
)  # fmt: skip
TYPE_MAP = ["O", "H", "Cu"]
DATA_TYPES = [0, 0, 1, 1, 1, 2, 2, 0]

ATTEN = {
    "type": "se_atten", "rcut": 4.0, "rcut_smth": 1.0, "sel": 12, "neuron": [3, 6],
    "axis_neuron": 2, "attn": 4, "attn_layer": 0, "type_one_side": False, "seed": 1,
    "set_davg_zero": True, "precision": "float64",
}  # fmt: skip
SE_A = {
    "type": "se_e2_a", "rcut": 4.0, "rcut_smth": 1.0, "sel": [6, 6, 4], "neuron": [3, 6],
    "axis_neuron": 2, "type_one_side": False, "seed": 1, "precision": "float64",
}  # fmt: skip
FITTING = {"neuron": [5, 5], "resnet_dt": True, "seed": 1, "precision": "float64"}


def case(base: dict, fitting: dict | None = None, **changes: Any) -> dict:
    """Model section; `tebd` among the changes is the type embedding."""
    tebd = changes.pop("tebd", {"neuron": [4], "seed": 1} if base is ATTEN else None)
    model = {
        "type_map": TYPE_MAP,
        "descriptor": base | changes,
        "fitting_net": FITTING | (fitting or {}),
    }
    if tebd is not None:
        model["type_embedding"] = tebd
    return model


V2 = {"type": "se_atten_v2"}
FLOAT32 = {"precision": "float32"}
OUR_DEFAULT = {"neuron": [3], "activation_function": "linear", "seed": 1}
CASES: dict[str, dict] = {
    # Attention off: DeepPot-SE with a type embedding.
    "attn0": case(ATTEN),
    "attn0_one_side": case(ATTEN, type_one_side=True),
    "attn0_davg": case(ATTEN, set_davg_zero=False),
    "attn0_f32": case(ATTEN, FLOAT32, **FLOAT32),
    "attn0_exclude_davg": case(ATTEN, set_davg_zero=False, exclude_types=[[0, 1]]),
    # Attention.
    "attn2": case(ATTEN, attn_layer=2),
    "attn2_one_side": case(ATTEN, attn_layer=2, type_one_side=True),
    "attn2_davg": case(ATTEN, attn_layer=2, set_davg_zero=False),
    "attn2_f32": case(ATTEN, FLOAT32, attn_layer=2, set_davg_zero=False, **FLOAT32),
    "attn2_exclude": case(ATTEN, attn_layer=2, exclude_types=[[0, 1], [2, 2]]),
    "attn2_exclude_davg": case(ATTEN, attn_layer=2, set_davg_zero=False, exclude_types=[[0, 1]]),
    "attn1_no_dotr": case(ATTEN, attn_layer=1, attn_dotr=False),
    "attn2_binding": case(ATTEN, attn_layer=2, sel=5, set_davg_zero=False),
    "attn1_radii": case(ATTEN, attn_layer=1, rcut=3.7, rcut_smth=0.3, set_davg_zero=False),
    # Smooth attention.
    "smooth2": case(ATTEN, attn_layer=2, smooth_type_embedding=True),
    "smooth2_davg": case(ATTEN, attn_layer=2, smooth_type_embedding=True, set_davg_zero=False),
    "smooth2_exclude_davg": case(
        ATTEN, attn_layer=2, smooth_type_embedding=True, set_davg_zero=False,
        exclude_types=[[0, 1]], sel=20,
    ),
    "smooth0_exclude_davg": case(
        ATTEN, smooth_type_embedding=True, set_davg_zero=False, exclude_types=[[0, 1]]
    ),
    # Separate net for the types.
    "strip0": case(ATTEN, tebd_input_mode="strip"),
    "strip0_one_side_davg": case(
        ATTEN, tebd_input_mode="strip", type_one_side=True, set_davg_zero=False
    ),
    "strip1": case(ATTEN, tebd_input_mode="strip", attn_layer=1),
    "v2_attn0": case(ATTEN, **V2, set_davg_zero=False),
    "v2_attn2": case(ATTEN, **V2, set_davg_zero=False, attn_layer=2),
    "v2_radii": case(
        ATTEN, **V2, set_davg_zero=False, rcut=3.7, rcut_smth=0.3, exclude_types=[[0, 2]],
        attn_layer=1,
    ),
    # Networks.
    "attn1_resnet_dt": case(
        ATTEN, {"neuron": [5, 5, 10]}, attn_layer=1, resnet_dt=True, neuron=[4, 8, 8]
    ),
    "attn1_gelu": case(ATTEN, {"activation_function": "silu"}, attn_layer=1,
                       activation_function="gelu_tf"),
    "attn0_gelu_op": case(ATTEN, {"activation_function": "silut:2.0"},
                          activation_function="gelu"),
    "attn0_relu": case(ATTEN, {"activation_function": "relu6"}, activation_function="softplus"),
    "attn0_fit_skip": case(ATTEN, {"neuron": [16, 32, 32]}),
    "tebd_layers": case(
        ATTEN, attn_layer=1, tebd={"neuron": [2, 4, 8], "resnet_dt": True, "seed": 1,
                                   "use_tebd_bias": True}),
    "tebd_default": case(ATTEN, tebd=None),
    "tebd_linear_same": case(ATTEN, tebd=OUR_DEFAULT),
    "tebd_double": case(ATTEN, tebd=OUR_DEFAULT | {"neuron": [6]}),
    "tebd_econf": case(ATTEN, tebd=OUR_DEFAULT | {"neuron": [4], "use_econf_tebd": True}),
    "params": case(ATTEN, {"numb_fparam": 2, "numb_aparam": 1}, attn_layer=1),
    "atom_ener": case(ATTEN, {"numb_fparam": 2, "atom_ener": [-1.0, None, 0.5]}),
    # DeepPot-SE.
    "se_a": case(SE_A),
    "se_a_one_side": case(SE_A, type_one_side=True),
    "se_a_davg_zero": case(SE_A, set_davg_zero=True),
    "se_a_f32": case(SE_A, FLOAT32, **FLOAT32),
    "se_a_exclude": case(SE_A, exclude_types=[[0, 1], [2, 2]]),
    "se_a_exclude_all": case(SE_A, exclude_types=[[0, 0], [0, 1], [0, 2]]),
    "se_a_one_side_exclude": case(SE_A, type_one_side=True, exclude_types=[[0, 1]]),
    "se_a_binding": case(SE_A, sel=[2, 3, 1], resnet_dt=True),
    "se_a_params": case(SE_A, {"numb_fparam": 1, "numb_aparam": 2}, type_one_side=True),
    "se_a_atom_ener": case(SE_A, {"atom_ener": [-1.0, None, 0.5]}),
    "se_a_radii": case(SE_A, rcut=3.7, rcut_smth=0.3, sel=[6, 0, 4]),
    # Graphs without the training script, and graphs as releases before 3.0 wrote them.
    "bare_attn2": case(ATTEN, attn_layer=2, set_davg_zero=False, exclude_types=[[0, 1]]),
    "bare_v2": case(ATTEN, **V2, set_davg_zero=False, attn_layer=1),
    "bare_se_a": case(SE_A, exclude_types=[[0, 1]]),
    "bare_se_a_one_side": case(SE_A, type_one_side=True, exclude_types=[[0, 1]]),
    "old_attn2": case(ATTEN, attn_layer=2, set_davg_zero=False,
                      tebd={"neuron": [2, 4, 8], "use_tebd_bias": True, "seed": 1}),
    "old_attn1_f32": case(ATTEN, FLOAT32, attn_layer=1, **FLOAT32),
    "old_se_a": case(SE_A),
    "ancient_se_a": case(SE_A, type_one_side=True),
    # What is refused.
    "no_compressed": case(SE_A),
    "no_se_a_tebd": case(SE_A, tebd={"neuron": [4], "seed": 1}),
    "no_se_r": case({k: v for k, v in SE_A.items() if k != "axis_neuron"}, type="se_e2_r"),
    "no_attn_mask": case(ATTEN, attn_layer=1, attn_mask=True),
}  # fmt: skip
WHOLE = ("attn0", "se_a_one_side")


def structures() -> list[dict[str, Any]]:
    """Skewed cell, a large cell with lone atoms and a pair just inside rcut, an open system."""
    rng = np.random.default_rng(7)
    grid = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)], float)
    dense = grid * 2.3 + rng.normal(0, 0.25, (8, 3))
    skewed = np.array([[4.7, 0.0, 0.0], [0.6, 4.9, 0.0], [0.4, -0.5, 5.1]])
    near = [[1, 1, 1], [2.1, 1.2, 0.8], [9, 9, 9], [12.69, 9, 9], [20, 3, 15], [9.6, 9.9, 9.2],
            [13.595, 9.9, 9.2]]  # fmt: skip
    free = rng.normal(0, 1.3, (5, 3))
    systems = [
        (dense, skewed, [0, 1, 2, 0, 1, 2, 1, 0]),
        (np.array(near, float), np.eye(3) * 26.0, [0, 1, 2, 0, 1, 2, 1]),
        (free, None, [2, 0, 1, 1, 0]),
    ]
    return [
        {"coord": np.round(x, 6).tolist(), "box": None if b is None else b.tolist(), "atype": t}
        for x, b, t in systems
    ]


def parameters(model: dict, natoms: int) -> dict[str, list]:
    """Frame and atom parameters of a structure."""
    net = model["fitting_net"]
    nf, na = net.get("numb_fparam", 0), net.get("numb_aparam", 0)
    values = {"fparam": np.linspace(0.2, 0.9, nf), "aparam": np.linspace(-1, 1, natoms * na)}
    return {k: v.round(6).tolist() for k, v in values.items() if v.size}


def write_data(folder: Path, model: dict) -> None:
    rng = np.random.default_rng(3)
    nframes, natoms = 3, len(DATA_TYPES)
    grid = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)], float)
    coord = grid.ravel() * 2.4 + rng.normal(0, 0.3, (nframes, 3 * natoms))
    arrays = {
        "coord": coord,
        "box": np.tile(np.diag([5.0, 5.1, 5.3]).ravel(), (nframes, 1)),
        "energy": rng.normal(-20, 3, nframes),
        "force": rng.normal(0, 1, coord.shape),
        "fparam": rng.normal(0, 1, (nframes, model["fitting_net"].get("numb_fparam", 0))),
        "aparam": rng.normal(0, 1, (nframes, natoms * model["fitting_net"].get("numb_aparam", 0))),
    }
    (folder / "set.000").mkdir(parents=True)
    for name, values in arrays.items():
        if values.size:
            np.save(folder / "set.000" / f"{name}.npy", values)
    np.savetxt(folder / "type.raw", DATA_TYPES, fmt="%d")
    (folder / "type_map.raw").write_text("\n".join(TYPE_MAP))


def as_before_3() -> None:
    """Make DeePMD-kit build the graphs of its 2.x releases."""
    import tensorflow.compat.v1 as tf
    from deepmd.tf.descriptor import se_atten
    from deepmd.tf.model.model import StandardModel

    def keras_like(x, width, precision, name, reuse=None, eps=1e-3, scope="", **_):
        # As tf.keras.layers.LayerNormalization, whose second layer has a number of its own.
        number = scope.strip("/").rpartition("_")[2]
        name += "" if number == "0" else f"_{number}"
        with tf.variable_scope(name, reuse=reuse):
            gamma = tf.get_variable("gamma", [width], precision, tf.ones_initializer())
            beta = tf.get_variable("beta", [width], precision, tf.zeros_initializer())
            if precision == tf.float32:
                # Keras has a fused operation for it: every row is a channel of its own.
                rows = tf.shape(x)[0]
                image = tf.reshape(x, [1, rows, width, 1])
                ones, zeros = tf.ones([rows]), tf.zeros([rows])
                fused = tf.nn.fused_batch_norm(image, ones, zeros, None, None, eps, "NCHW")[0]
                return tf.reshape(fused, tf.shape(x)) * gamma + beta
            mean, variance = tf.nn.moments(x, [-1], keepdims=True)
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, eps)

    se_atten.layernorm = keras_like
    StandardModel.init_out_stat = lambda self, suffix="": None
    StandardModel._apply_out_bias_std = lambda self, output, *_, **__: output


def train(name: str, work: Path) -> Path:
    """Train and freeze a case; return the frozen graph."""
    from deepmd.tf.entrypoints.freeze import freeze
    from deepmd.tf.entrypoints.train import train as deepmd_train

    model = copy.deepcopy(CASES[name])
    write_data(work / "data", model)
    settings = {
        "model": model,
        "learning_rate": {"type": "exp", "start_lr": 0.02, "stop_lr": 0.01, "decay_steps": 2},
        "loss": {"type": "ener"},
        "training": {
            "training_data": {"systems": ["data"], "batch_size": 1},
            "numb_steps": 4, "disp_freq": 2, "save_freq": 4, "seed": 1,
        },
    }  # fmt: skip
    (work / "input.json").write_text(json.dumps(settings))
    os.chdir(work)
    deepmd_train(
        INPUT="input.json", init_model=None, restart=None, output="out.json", init_frz_model=None,
        mpi_log="master", log_level=2, log_path=None, skip_neighbor_stat=name != "no_compressed",
    )  # fmt: skip
    import tensorflow.compat.v1 as tf

    tf.reset_default_graph()
    freeze(checkpoint_folder=".", output="frozen.pb")
    if name == "no_compressed":
        from deepmd.tf.entrypoints.compress import compress

        tf.reset_default_graph()
        compress(
            input="frozen.pb", output="small.pb", extrapolate=2, step=0.2, frequency=-1,
            checkpoint_folder="model-compression", training_script=None, mpi_log="master",
            log_path=None, log_level=2,
        )  # fmt: skip
        return work / "small.pb"
    return work / "frozen.pb"


def trim(name: str, source: Path, target: Path) -> None:
    import tensorflow.compat.v1 as tf

    graph = tf.GraphDef()
    graph.ParseFromString(source.read_bytes())
    names = {node.name for node in graph.node}
    before_3 = name.startswith(("old", "ancient"))
    bare = before_3 or name.startswith("bare")
    drop = {"train_attr/training_script"} if bare else set()
    attributes = {n for n in names if n.partition("/")[0].endswith("_attr")}
    wanted = {"o_energy", "o_atom_energy"} | attributes - drop
    if before_3:
        wanted -= {n for n in names if "original_sel" in n}
        for node in graph.node:
            if "^descrpt_attr/original_sel" in node.input:
                node.input.remove("^descrpt_attr/original_sel")
    if name not in WHOLE:
        graph = tf.graph_util.extract_sub_graph(graph, sorted(wanted & names))
    for node in graph.node:
        if before_3 and node.name == "model_attr/model_version":
            node.attr["value"].tensor.string_val[0] = b"1.0" if "f32" in name else b"1.1"
        if name.startswith("ancient") and node.op == "ProdEnvMatA":
            node.op = "DescrptSeA"
    target.write_bytes(graph.SerializeToString())


def evaluate(name: str, graph: Path) -> list[dict[str, Any]]:
    from deepmd.infer import DeepPot

    model, results = DeepPot(str(graph)), []
    for system in structures():
        natoms = len(system["atype"])
        e, f, v, ae, _ = model.eval(
            np.array([system["coord"]]),
            None if system["box"] is None else np.array([system["box"]]),
            system["atype"],
            atomic=True,
            **{k: np.array([x]) for k, x in parameters(CASES[name], natoms).items()},
        )
        results.append(
            {"energy": e.item(), "atom_energy": ae.ravel().tolist(),
             "force": f.ravel().tolist(), "virial": v.ravel().tolist()}
        )  # fmt: skip
    return results


def record(name: str, folder: Path) -> None:
    if name.startswith(("old", "ancient")):
        as_before_3()
    import tensorflow.compat.v1 as tf

    with tempfile.TemporaryDirectory() as scratch:
        tf.reset_default_graph()
        frozen = train(name, Path(scratch))
        tf.reset_default_graph()
        results = [] if name.startswith("no_") else evaluate(name, frozen)
        trim(name, frozen, folder / f"{name}.pb")
        os.chdir(folder)
    natoms = [len(s["atype"]) for s in structures()]
    entry = {
        "precision": CASES[name]["descriptor"]["precision"],
        "parameters": [parameters(CASES[name], n) for n in natoms],
        "results": results,
    }
    (folder / f"{name}.part.json").write_text(json.dumps(entry))


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    if sys.argv[2:3] == ["--here"]:
        for name in sys.argv[3:]:
            record(name, folder)
        return
    target = folder / "record.json"
    found = json.loads(target.read_text())["models"] if target.exists() else {}
    names = sys.argv[2:] or list(CASES)
    # Importing TensorFlow takes longest; but what changes DeePMD-kit needs a process of its own.
    late = [n for n in names if n.startswith(("old", "ancient"))]
    for some in ([n for n in names if n not in late], late):
        if some:
            command = [sys.executable, __file__, str(folder), "--here", *some]
            quiet = dict.fromkeys(THREADS, "1") | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            subprocess.run(command, env=os.environ | quiet, check=False)
    for part in folder.glob("*.part.json"):
        found[part.name.removesuffix(".part.json")] = json.loads(part.read_text())
        part.unlink()
    models = {name: found[name] for name in CASES if name in found}
    target.write_text(json.dumps({"systems": structures(), "models": models}))


if __name__ == "__main__":
    main()
