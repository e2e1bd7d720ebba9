"""Descriptors in a frozen graph: se_atten(_v2) and se_e2_a, from constants and operations alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dpa_core.interchange.tensorflow_graph import Graph
from dpa_core.interchange.tensorflow_nets import Forward, Net, read_net, tensor, tensors_of
from dpa_core.tensorflow import operator_radii

TABLE = "t_typeebd"
STRIP = "_two_side_ebd"
# More neighbours than any model has.
MAX_SEL = 20_000


class Operator(NamedTuple):
    """The node that makes the environment matrix, and its statistics.

    Attributes
    ----------
    name, mixed
        The node; whether one list of neighbours holds all types.
    rcut, rcut_smth, sel
        Its attributes; the radii are in single precision.
    davg, dstd
        (ntypes, 4).
    """

    name: str
    mixed: bool
    rcut: float
    rcut_smth: float
    sel: list[int]
    davg: NDArray[Any]
    dstd: NDArray[Any]

    @property
    def ntypes(self) -> int:
        """Number of types."""
        return len(self.davg)


class Read(NamedTuple):
    """A descriptor: its configuration, its tensors, and numbers per atom of D and of the type."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    width: int
    dim_type: int


def read_operator(forward: Forward, name: str) -> Operator:
    """Read attributes and statistics of the operator that makes the environment matrix."""
    graph = forward.graph
    node = graph.nodes[name]
    rcut, rcut_smth, sel = (node.attr(k) for k in ("rcut_r", "rcut_r_smth", "sel_a"))
    if not all(isinstance(r, float) and np.isfinite(r) for r in (rcut, rcut_smth)):
        raise graph.error(f"node {name!r} has no radii rcut_r, rcut_r_smth")
    if not isinstance(sel, list) or not sel or min(sel) < 0 or not 0 < sum(sel) <= MAX_SEL:
        raise graph.error(f"node {name!r} has sel_a {sel!r}; expected numbers of neighbours")
    statistics = []
    for k, what in ((5, "t_avg"), (6, "t_std")):
        values = forward.take(graph.source(graph.input(name, k)))
        if (
            values is None
            or values.size == 0
            or values.ndim != 2
            or values.shape[1] != 4 * sum(sel)
        ):
            raise graph.error(f"node {name!r}: {what} does not fit sel {sel}")
        rows = values.reshape(len(values), -1, 4)
        if (rows != rows[:, :1]).any():
            raise graph.error(
                f"{what} differs between the slots of an atom; supported is one for all"
            )
        statistics.append(rows[:, 0].astype(np.float64))
    original = "descrpt_attr/original_sel"
    if original in graph.nodes and graph.array(original).tolist() != sel:
        raise graph.error(
            f"sel is {sel}, but the descriptor is divided by the sum of {original} "
            f"{graph.array(original).tolist()}; use the model as it was before sel changed"
        )
    davg, dstd = statistics
    if davg.shape != dstd.shape or (dstd == 0).any():
        raise graph.error("t_avg and t_std have other shapes, or t_std is 0")
    return Operator(name, node.op == "ProdEnvMatAMix", rcut, rcut_smth, sel, davg, dstd)


def read_dpa1(forward: Forward, op: Operator) -> Read:
    """Read se_atten or se_atten_v2."""
    graph, ntypes = forward.graph, op.ntypes
    table = _type_table(forward, ntypes)
    tebd = table.shape[1]
    net = read_net(forward, "filter_type_all/{kind}_{k}")
    if net is None:
        raise graph.error("there is no embedding net filter_type_all/matrix_1")
    strip = read_net(forward, "filter_type_all/{kind}_{k}" + STRIP)
    inputs = strip.width_in if strip else net.width_in - 1
    if inputs not in (tebd, 2 * tebd) or (strip and net.width_in != 1):
        raise graph.error(
            f"the embedding net reads {net.width_in} numbers and type embeddings have {tebd}; "
            f"expected 1, {1 + tebd} or {1 + 2 * tebd}"
        )
    attention, tensors = read_attention(forward, net)
    smooth = any(_is_real(graph, n) for n in forward.with_op("Minimum"))
    excluded = _mask_pairs(forward, (ntypes, ntypes + 1))
    if excluded:
        smooth |= _fills_with_average(forward, op)
    davg_zero = not op.davg.any()
    gated = bool(attention["attn_layer"]) and (attention["attn_dotr"] or smooth)
    tensorflow = not davg_zero or gated or (smooth and strip is not None) or net.own_gelu
    config = (
        _common(op, net, excluded, tensorflow=tensorflow)
        | attention
        | {
            "type": "dpa1",
            "sel": op.sel[0],
            "tebd_dim": tebd,
            "tebd_input_mode": "strip" if strip else "concat",
            "type_one_side": inputs == tebd,
            "smooth_type_embedding": smooth,
        }
    )
    if tensorflow:
        config["rcut"], config["rcut_smth"] = _exact_radii(forward, op, smooth=smooth)
    tensors["descriptor.type_embedding.layer.weight"] = tensor(
        table - _identity(ntypes, tebd), net.precision
    )
    tensors |= tensors_of(net, "descriptor.embedding")
    if strip:
        if (strip.widths, strip.precision) != (net.widths, net.precision):
            raise graph.error(f"the nets of distances and of types differ: {net.widths}")
        tensors |= tensors_of(strip, "descriptor.embedding_strip")
    return Read(config, tensors | _statistics(op), net.widths[-1], tebd)


def read_se_a(forward: Forward, op: Operator) -> Read:
    """Read se_e2_a: a net for every pair of types, or for every type of neighbour."""
    graph, ntypes = forward.graph, op.ntypes
    if len(op.sel) != ntypes:
        raise graph.error(f"sel has {len(op.sel)} numbers for {ntypes} types")
    one_side, nets = _se_a_nets(forward, ntypes)
    first = next(iter(nets.values()))
    shape = (first.widths, first.width_in, first.activation, first.precision)
    if any((n.widths, n.width_in, n.activation, n.precision) != shape for n in nets.values()):
        raise graph.error("the embedding nets of the pairs of types differ in widths or activation")
    count = ntypes if one_side else ntypes**2
    missing = {divmod(k, ntypes)[::-1] for k in range(count) if k not in nets}
    excluded = sorted(p for p in missing if p[0] <= p[1])
    if one_side:
        excluded = _mask_pairs(forward, (ntypes, ntypes))
    if first.width_in != 1 or (missing and (one_side or missing != {p[::-1] for p in missing})):
        raise graph.error("nets of some pairs of types are missing, or read more than a distance")
    # With several types the backends choose neighbours otherwise where sel is full.
    config = _common(op, first, excluded, tensorflow=ntypes > 1 or bool(excluded)) | {
        "type": "se_e2_a",
        "sel": op.sel,
        "type_one_side": one_side,
    }
    if config["convention"] == "tensorflow":
        config["rcut"], config["rcut_smth"] = _exact_radii(forward, op, smooth=False)
    tensors = _statistics(op)
    # Excluded pairs have no net in the graph; ours is never asked and holds zeros.
    empty = {k: v * 0 for k, v in tensors_of(first, "").items()}
    for k in range(count):
        prefix = f"descriptor.embedding.{k}"
        own = tensors_of(nets[k], "") if k in nets else empty
        tensors |= {prefix + name: value for name, value in own.items()}
    return Read(config, tensors, first.widths[-1], 0)


def _se_a_nets(forward: Forward, ntypes: int) -> tuple[bool, dict[int, Net]]:
    """Whether nets are for types of neighbours only, and the nets there are under our numbers."""
    one_side = bool(forward.matching(r"filter_type_all/matrix_1_\d+"))
    centres = ["all"] if one_side else [str(t) for t in range(ntypes)]
    nets: dict[int, Net] = {}
    for c, centre in enumerate(centres):
        for n in range(ntypes):
            net = read_net(forward, f"filter_type_{centre}/{{kind}}_{{k}}_{n}")
            if net is not None:
                nets[c + len(centres) * n] = net
    if not nets:
        raise forward.graph.error("there are no embedding nets filter_type_0/matrix_1_0")
    return one_side, nets


def read_attention(forward: Forward, net: Net) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the attention layers: settings, and tensors under our names."""
    graph = forward.graph
    numbers = {int(m[1]) for m in forward.matching(r"attention_layer_(\d+)/c_query/matrix")}
    count = len(numbers)
    if numbers != set(range(count)):
        raise graph.error(f"the attention layers are numbered {sorted(numbers)}")
    tensors: dict[str, Tensor] = {}
    settings = []
    for i in range(count):
        scope = f"attention_layer_{i}/"
        parts = {
            (part, kind): forward.need(f"{scope}c_{part}/{kind}")
            for part in ("query", "key", "value", "out")
            for kind in ("matrix", "bias")
        }
        ours = f"descriptor.attention.layers.{i}."
        for kind, name, axis in (("matrix", "weight", 1), ("bias", "bias", 0)):
            three = [parts[part, kind] for part in ("query", "key", "value")]
            if len({a.shape for a in three}) != 1:
                raise graph.error(f"{scope}: query, key and value have different shapes")
            tensors[f"{ours}in_{name}"] = tensor(np.concatenate(three, axis=axis))
            tensors[f"{ours}out_{name}"] = tensor(parts["out", kind])
        for kind, name in (("gamma", "weight"), ("beta", "bias")):
            found = forward.matching(rf"{scope}layer_normalization(_\d+)?/{kind}")
            if len(found) != 1:
                raise graph.error(f"{scope}: expected one layer_normalization/{kind}")
            tensors[f"{ours}norm_{name}"] = tensor(forward.need(found[0][0]))
        settings.append(
            {
                "attn": int(parts["query", "bias"].size),
                "attn_dotr": len(_products(forward, scope)) > 2,
                "temperature": _temperature(forward, scope),
                "ln_eps": _epsilon(forward, scope),
            }
        )
    if any(s != settings[0] for s in settings):
        raise graph.error(f"the attention layers differ: {settings}")
    if any(t.dtype != tensor(net.layers[0].matrix).dtype for t in tensors.values()):
        raise graph.error("attention and embedding net are of different precision")
    config = settings[0] if settings else {"attn_dotr": True}
    return config | {"attn_layer": count}, tensors


def _products(forward: Forward, scope: str) -> list[str]:
    batched = forward.with_op("BatchMatMul", "BatchMatMulV2")
    return [n for n in batched if n.startswith(scope)]


def _temperature(forward: Forward, scope: str) -> float:
    """Multiplier of q·k: the graph divides the queries."""
    product = _products(forward, scope)
    if not product:
        raise forward.graph.error(f"{scope}: queries and keys are not multiplied")
    left = forward.graph.input(product[0], 0)
    if forward.op(left) != "RealDiv":
        return 1.0
    divisor = forward.graph.scalar(forward.graph.input(left, 1))
    if divisor == 0:
        raise forward.graph.error(f"{scope}: queries are divided by 0")
    return 1.0 / divisor


def _epsilon(forward: Forward, scope: str) -> float:
    """Epsilon of the LayerNorm: what is added to the variance under the root."""
    graph = forward.graph
    for name in forward.order:
        if not name.startswith(scope):
            continue
        if forward.op(name).startswith("FusedBatchNorm"):
            return float(str(np.float32(graph.nodes[name].attr("epsilon") or 1e-4)))
        if forward.op(name) in ("Sqrt", "Rsqrt"):
            source = graph.input(name, 0)
            for value, _ in graph.inputs(source) if forward.op(source).startswith("Add") else []:
                if forward.op(value) == "Const":
                    return graph.scalar(value)
    raise graph.error(f"{scope}: no epsilon of the layer normalisation is found")


def _type_table(forward: Forward, ntypes: int) -> NDArray[Any]:
    """Type embeddings, whatever net they come from, (ntypes, tebd_dim)."""
    graph = forward.graph
    if TABLE not in forward.names:
        raise graph.error(f"there is no type embedding {TABLE!r}")
    forward.take_all(TABLE)
    table = np.asarray(graph.value(TABLE))
    if table.ndim != 2 or len(table) != ntypes + 1 or table.shape[1] < 1 or table[-1].any():
        raise graph.error(
            f"the table of type embeddings has shape {table.shape}; expected {ntypes + 1} rows, "
            "the last of zeros"
        )
    return table[:-1]


def _identity(ntypes: int, width: int) -> NDArray[Any]:
    """Return what our type embedding's skip connection adds to its weights."""
    if width in (ntypes, 2 * ntypes):
        return np.tile(np.eye(ntypes), (1, width // ntypes))
    return np.zeros((ntypes, width))


def _mask_pairs(forward: Forward, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Excluded pairs of types, from the table of zeros and ones the rows are multiplied by."""
    graph = forward.graph
    for name in forward.leftover():
        values = graph.array(name)
        gathered = any(forward.op(u).startswith("Gather") for u in forward.behind(name))
        if values.shape != shape or not gathered or not np.isin(values, (0, 1)).all():
            continue
        forward.take(name)
        square = values[:, : shape[0]]
        if (square != square.T).any() or (values[:, shape[0] :] == 0).any():
            raise graph.error(f"the excluded pairs in {name!r} are not symmetric")
        return [(int(a), int(b)) for a, b in np.argwhere(square == 0) if a <= b]
    return []


def _fills_with_average(forward: Forward, op: Operator) -> bool:
    """Whether rows of excluded neighbours are replaced by davg, as smooth attention does."""
    graph = forward.graph
    average = graph.source(graph.input(op.name, 5))
    return any(
        average in graph.order(graph.input(n, 2), stop=[op.name])
        for n in forward.with_op("Select", "SelectV2")
    )


def _is_real(graph: Graph, name: str) -> bool:
    return graph.nodes[name].attr("T") in (1, 2)


def _exact_radii(forward: Forward, op: Operator, *, smooth: bool) -> tuple[float, float]:
    """Radii in double precision, as the script had them.

    The operator rounds them, but the switch of smooth attention multiplies by the exact one.
    """
    graph = forward.graph
    rcut, start = (float(str(np.float32(r))) for r in (op.rcut, op.rcut_smth))
    if "descrpt_attr/rcut" in graph.nodes:
        exact = graph.scalar("descrpt_attr/rcut")
        rcut = exact if np.float32(exact) == np.float32(op.rcut) else rcut
    for name in forward.with_op("Mul") if smooth else []:
        for source, _ in graph.inputs(name):
            if forward.op(source) == "Const" and graph.array(source).shape == ():
                value = graph.array(source)
                if value.dtype.kind == "f" and np.float32(value) == np.float32(op.rcut_smth):
                    return rcut, float(value)
    return rcut, start


def _common(
    op: Operator, net: Net, excluded: list[tuple[int, int]], *, tensorflow: bool
) -> dict[str, Any]:
    rcut, rcut_smth = operator_radii(op.rcut, op.rcut_smth)
    return {
        "rcut": rcut,
        "rcut_smth": rcut_smth,
        "neuron": net.widths,
        "activation_function": net.activation,
        "resnet_dt": any(layer.idt is not None for layer in net.layers),
        "exclude_types": excluded,
        "set_davg_zero": not op.davg.any(),
        "precision": net.precision,
        "convention": "tensorflow" if tensorflow or net.own_gelu else "pytorch",
    }


def _statistics(op: Operator) -> dict[str, Tensor]:
    return {"descriptor.davg": tensor(op.davg), "descriptor.dstd": tensor(op.dstd)}
