"""Frozen graphs (.pb) of DeePMD-kit's TensorFlow backend, read without TensorFlow.

The graph decides: attributes, constants and operations give the model; the training script,
where the file holds it, must not contradict them. What has been read is then asked for the
energies of a few atoms, and the graph itself too (`tensorflow_check`), so a graph of another
version that means something else is refused instead of misread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dpa_core.config import ModelConfig, parse_config
from dpa_core.errors import ConfigError, ModelFileError
from dpa_core.interchange.content import Content
from dpa_core.interchange.tensorflow_check import check_energies
from dpa_core.interchange.tensorflow_descriptor import (
    TABLE,
    Read,
    read_dpa1,
    read_operator,
    read_se_a,
)
from dpa_core.interchange.tensorflow_graph import Graph
from dpa_core.interchange.tensorflow_nets import ENERGY, Forward, read_net, tensor, tensors_of
from dpa_core.interchange.tensorflow_ops import OPS
from dpa_core.interchange.tensorflow_script import check_script
from dpa_core.tensorflow import own_skips

SUPPORTED = "supported are energy models of se_atten, se_atten_v2 and se_e2_a, not compressed"
OPERATORS = ("ProdEnvMatA", "ProdEnvMatAMix", "DescrptSeA")
# Operations of models that are not read -> what they are.
FOREIGN = {
    "Tabulate": "a compressed model; use the graph from before `dp compress`",
    "ProdEnvMatR": "descriptor se_e2_r", "DescrptSeR": "descriptor se_e2_r",
    "Descrpt": "an old or local-frame descriptor", "ProdEnvMatAMask": "descriptor se_a_mask",
    "SoftMin": "a short-range table (use_srtab)", "PairTab": "a short-range table (use_srtab)",
    "MatrixDiag": "attn_mask", "MatrixSetDiag": "attn_mask", "MatrixBandPart": "attn_mask",
    "Nvnmd": "an NVNMD model", "MulFltNvnmd": "an NVNMD model",
    "DprcPairwise": "a DPRc model", "ConvertForwardMap": "a DPRc model",
}  # fmt: skip


def read(path: str | Path, name: str | None = None) -> Content:
    """Read a frozen graph.

    Parameters
    ----------
    path
        The `.pb` file.
    name
        Of one model among several; a graph holds one, so it must be None.

    Raises
    ------
    ModelFileError
        If the file is damaged, holds a model of another kind, or anything that cannot be
        represented exactly.
    """
    graph = Graph(path)
    if name is not None:
        raise graph.error(f"a .pb file holds one model, so there is no {name!r}; name none")
    forward = _forward(graph)
    op = read_operator(forward, _operator(forward))
    descriptor = read_dpa1(forward, op) if op.mixed else read_se_a(forward, op)
    fitting, tensors = _fitting(forward, descriptor, op.ntypes)
    tensors |= descriptor.tensors | _output(forward, op.ntypes)
    if rest := forward.leftover():
        raise graph.error(
            f"the energy depends on constants that are not known: {', '.join(rest[:3])}"
            f"{' and more' if len(rest) > 3 else ''}; {SUPPORTED}"
        )
    script = _script(graph)
    type_map = _type_map(graph, script, op.ntypes)
    data = {"type_map": type_map, "descriptor": descriptor.config, "fitting_net": fitting}
    check_script(script, data, path)
    config = _config(data, path)
    content = Content(config, tensors, {"origin": _origin(graph, script)})
    check_energies(forward, op, content)
    return content


def _forward(graph: Graph) -> Forward:
    """Return the part that leads to the energy, if there is one and its operations are known."""
    kind = graph.text("model_attr/model_type") or "ener"
    if kind != "ener":
        raise graph.error(f"a model of type {kind!r}; {SUPPORTED}")
    if ENERGY not in graph.nodes:
        similar = sorted(n for n in graph.nodes if n.startswith("o_"))[:5]
        raise graph.error(
            f"there is no node {ENERGY!r} (outputs: {', '.join(similar) or 'none'}); {SUPPORTED}"
        )
    for prefix, what in (
        ("spin_attr/", "a model with spin (DeepSPIN)"),
        ("modifier_attr/", "a model with long-range electrostatics (DPLR modifier)"),
    ):
        if any(n.startswith(prefix) for n in graph.nodes):
            raise graph.error(f"{what}; {SUPPORTED}")
    forward = Forward(graph)
    for node in forward.order:
        op = forward.op(node)
        if op not in OPS and op not in ("Const", "Placeholder", *OPERATORS):
            what = next((text for key, text in FOREIGN.items() if op.startswith(key)), "unknown")
            raise graph.error(f"node {node!r} has operation {op!r}: {what}; {SUPPORTED}")
    return forward


def _operator(forward: Forward) -> str:
    found = forward.with_op(*OPERATORS)
    if len(found) != 1:
        what = "a hybrid of descriptors" if found else "no descriptor that is known"
        raise forward.graph.error(f"{what} ({len(found)} environment matrices); {SUPPORTED}")
    if forward.op(found[0]) != "ProdEnvMatAMix" and TABLE in forward.names:
        raise forward.graph.error(f"se_e2_a with a type embedding (se_a_tebd); {SUPPORTED}")
    return found[0]


def _fitting(
    forward: Forward, descriptor: Read, ntypes: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the fitting nets, their bias, and the statistics of fparam and aparam."""
    graph = forward.graph
    mixed = descriptor.dim_type > 0
    tails = [""] if mixed else [f"_type_{t}" for t in range(ntypes)]
    nets = [
        read_net(forward, f"layer_{{n}}{tail}/{{kind}}", f"final_layer{tail}/{{kind}}")
        for tail in tails
    ]
    found = [net for net in nets if net is not None]
    first = found[0] if len(found) == len(tails) else None
    if first is None or any(
        (n.widths, n.width_in, n.activation, n.precision)
        != (first.widths, first.width_in, first.activation, first.precision)
        for n in found
    ):
        raise graph.error("the fitting nets of some types are missing or differ in widths")
    tensors = {
        k: v for t, net in enumerate(found) for k, v in tensors_of(net, f"fitting.nets.{t}").items()
    }
    counts = [_parameters(forward, kind, tensors) for kind in ("fparam", "aparam")]
    axis, rest = divmod(first.width_in - sum(counts) - descriptor.dim_type, descriptor.width)
    if rest or axis < 1 or first.widths[-1] != 1:
        raise graph.error(
            f"the fitting net reads {first.width_in} numbers and gives {first.widths[-1]}; "
            f"expected a multiple of {descriptor.width} + {descriptor.dim_type} + {sum(counts)}"
        )
    descriptor.config["axis_neuron"] = axis
    bias = forward.take("fitting_attr/t_bias_atom_e")
    tensors["fitting.bias_atom_e"] = tensor(np.zeros(ntypes) if bias is None else bias, "float64")
    vacuum = [_is_used_twice(forward, f"layer_0{tail}/matrix") for tail in tails]
    widths = first.widths[:-1]
    own = own_skips(first.width_in, widths) or (mixed and any(vacuum)) or first.own_gelu
    config = {
        "neuron": widths,
        "activation_function": first.activation,
        "resnet_dt": any(layer.idt is not None for layer in first.layers),
        "precision": first.precision,
        "numb_fparam": counts[0],
        "numb_aparam": counts[1],
        "atom_ener": [0.0 if v else None for v in vacuum * (ntypes if mixed else 1)]
        if any(vacuum)
        else None,
        "convention": "tensorflow" if own else "pytorch",
    }  # fmt: skip
    return config, tensors


def _is_used_twice(forward: Forward, matrix: str) -> bool:
    """Whether the net is also asked about an atom in vacuum (atom_ener)."""
    products = [n for n in forward.behind(matrix) if forward.op(n) == "MatMul"]
    if len(products) > 2:
        raise forward.graph.error(f"{matrix!r} is used {len(products)} times")
    return len(products) == 2


def _parameters(forward: Forward, kind: str, tensors: dict[str, Tensor]) -> int:
    """Read the statistics of fparam or aparam; return how many numbers there are."""
    graph = forward.graph
    attribute = f"fitting_attr/d{kind}"
    average = forward.take(f"fitting_attr/t_{kind}_avg")
    inverse = forward.take(f"fitting_attr/t_{kind}_istd")
    stated = graph.scalar(attribute) if attribute in graph.nodes else None
    count = 0 if average is None else int(average.size)
    if stated not in (None, count) or (inverse is None) != (average is None):
        raise graph.error(
            f"{attribute} is {stated}, but the energy depends on {count}; a {kind} that is no "
            "plain input of the fitting net (use_aparam_as_mask) is not supported"
        )
    for name, value in (("avg", average), ("inv_std", inverse)):
        values = np.zeros(0) if value is None else np.asarray(value).reshape(-1)
        tensors[f"fitting.{kind}_{name}"] = tensor(values, "float64")
    return count


def _output(forward: Forward, ntypes: int) -> dict[str, Tensor]:
    """Bias and scale of the output (DeePMD-kit 3.1 and later)."""
    values = {}
    for kind, default in (("bias", 0.0), ("std", 1.0)):
        found = forward.matching(rf"(.*/)?t_out_{kind}")
        value = forward.need(found[0][0]) if found else np.full(ntypes, default)
        values[kind] = tensor(value.reshape(-1), "float64")
    if bool((values["std"] != 1).any()):
        raise forward.graph.error(
            "energies are scaled (t_out_std is not 1), which is not supported"
        )
    return {"out_bias": values["bias"], "out_std": values["std"]}


def _script(graph: Graph) -> dict[str, Any] | None:
    """Return the training script, if the file holds it."""
    text = graph.text("train_attr/training_script")
    if text is None:
        return None
    try:
        script = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise graph.error("train_attr/training_script is not JSON") from error
    if not isinstance(script, dict) or not isinstance(script.get("model"), dict):
        raise graph.error("train_attr/training_script has no section 'model'")
    return script


def _type_map(graph: Graph, script: dict[str, Any] | None, ntypes: int) -> list[str]:
    """Names of the types; TYPE_0, TYPE_1, ... where the file names none."""
    names = (graph.text("model_attr/tmap") or "").split()
    if not names and script is not None:
        names = [str(n) for n in script["model"].get("type_map") or []]
    if names and len(names) != ntypes:
        raise graph.error(f"the type map is {names}, but the model has {ntypes} types")
    return names or [f"TYPE_{t}" for t in range(ntypes)]


def _config(data: dict[str, Any], path: str | Path) -> ModelConfig:
    try:
        return parse_config(ModelConfig, data, "model in the graph")
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _origin(graph: Graph, script: dict[str, Any] | None) -> dict[str, Any]:
    version = graph.text("model_attr/model_version")
    releases = {None: "1.x", "1.0": "2.0", "1.1": "2.1 or later"}
    origin: dict[str, Any] = {
        "format": "TensorFlow .pb",
        "file": Path(graph.path).name,
        "software": f"DeePMD-kit {releases.get(version, '')}, TensorFlow backend".replace(
            " ,", ","
        ),
        "model_version": version,
    }
    distance = "train_attr/min_nbor_dist"
    if distance in graph.nodes:
        origin["trained"] = {"min_nbor_dist": graph.scalar(distance)}
    if script is not None:
        origin["input"] = script
    return origin
