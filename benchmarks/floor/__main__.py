"""Where a training step's time goes, and what part of the matrix-product floor is reached.

    python -m benchmarks.floor [--data FOLDER] [--threads 1] [--outdir FOLDER]

The floor is the time the matrix products of a step would take at the rate of one large product
(1024 x 1024 float32) on the same threads: 6 times those of an energy, over real neighbours only.
Before: torch evaluates the model (DPAFLOW_KERNELS=0). After: the compiled kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dpa_core.batch import make_batch
from dpa_core.config import DPA1Config, FittingConfig, ModelConfig
from dpa_core.data import open_dataset
from dpa_core.derivatives import loss_gradient, predict
from dpa_core.frames import Batch, Frame
from dpa_core.kernels.build import keep_freed_memory
from dpa_core.model import Potential, build_model

HERE = Path(__file__).parent
DATA = Path(os.environ.get("DPAFLOW_SHARED", HERE.parents[2] / "shared")) / "data"
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--outdir", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    frame = water(options.data)
    rate = product_rate()
    rows = []
    for layers in (2, 0):
        for nframes in (1, 4):
            rows.append(row(frame, layers, nframes, rate))
            print(line(rows[-1]), flush=True)
    table = ["| model | atoms | floor | torch: step, of the floor | kernels: step, of the floor | "
             "pass 1 | loss | pass 2 |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    table += [line(found) for found in rows]
    about = f"{options.threads} thread(s), large products at {rate / 1e9:.0f} GFLOP/s, float32\n"
    options.outdir.mkdir(parents=True, exist_ok=True)
    (options.outdir / "results.md").write_text("\n".join([about, *table]) + "\n")
    document = {"threads": options.threads, "product_rate": rate, "rows": rows}
    (options.outdir / "results.json").write_text(json.dumps(document, indent=1) + "\n")


def water(data: Path) -> Frame:
    """Return a frame of 192 atoms."""
    dataset = open_dataset([data / "water_pbe0ts" / "train"], type_map=("O", "H"))
    return dataset[0]


def product_rate() -> float:
    """FLOP/s of one large product on the threads of this run."""
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(15):
        began = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(times)


def forward_flops(model: Potential, batch: Batch) -> float:
    """Operations of the matrix products of an energy, real neighbours only."""
    descriptor, net = model.config.descriptor, model.config.fitting_net
    if not isinstance(descriptor, DPA1Config):
        raise TypeError(descriptor.type)
    counts = batch.mask.sum(1).double()
    widths = descriptor.neuron
    total = 2 * counts * sum(a * b for a, b in pairwise(widths))
    c, d = widths[-1], descriptor.attn
    layer = 2 * counts * (c * 3 * d + d * c) + 2 * counts**2 * 2 * d
    total = total + descriptor.attn_layer * layer
    total = total + 2 * counts * 4 * c + 2 * 4 * c * descriptor.axis_neuron
    ins = (model.descriptor.dim_out, *net.neuron)
    total = total + 2 * sum(a * b for a, b in zip(ins, (*net.neuron, 1), strict=True))
    return float(total.sum())


def row(frame: Frame, layers: int, nframes: int, rate: float) -> dict[str, Any]:
    """Measure one case."""
    descriptor = DPA1Config(attn_layer=layers, type_one_side=True)
    config = ModelConfig(type_map=("O", "H"), descriptor=descriptor, fitting_net=FittingConfig())
    model = build_model(config)
    batch = make_batch([frame] * nframes, model.spec)
    floor = 6 * forward_flops(model, batch) / rate
    found: dict[str, Any] = {
        "attn_layer": layers,
        "atoms": len(batch.atype),
        "mean_neighbors": float(batch.mask.sum(1).double().mean()),
        "floor": floor,
    }
    for name, switch in (("torch", "0"), ("kernels", "1")):
        os.environ["DPAFLOW_KERNELS"] = switch
        found[name] = steps(model, batch)
    return found


def steps(model: Potential, batch: Batch) -> dict[str, float]:
    """Median seconds of a step and of its parts."""
    whole, first, loss = [], [], []

    def force_loss(found: Any) -> tuple[torch.Tensor, None]:
        began = time.perf_counter()
        value = found.force.square().mean() + found.energy.square().mean()
        loss.append(time.perf_counter() - began)
        return value, None

    for repeat in range(REPEATS + 1):
        began = time.perf_counter()
        predict(model, batch)
        middle = time.perf_counter()
        loss_gradient(model, batch, force_loss)
        if repeat:  # the first one warms up
            first.append(middle - began)
            whole.append(time.perf_counter() - middle)
    step, forces = statistics.median(whole), statistics.median(first)
    loss_time = statistics.median(loss)
    return {"step": step, "pass_1": forces, "loss": loss_time, "pass_2": step - forces - loss_time}


def line(found: dict[str, Any]) -> str:
    """One row of the table."""
    old, new = found["torch"], found["kernels"]
    return (
        f"| {found['attn_layer']} attention layers | {found['atoms']} | {found['floor']:.3f} s "
        f"| {old['step']:.3f} s, {found['floor'] / old['step']:.0%} "
        f"| {new['step']:.3f} s, {found['floor'] / new['step']:.0%} "
        f"| {new['pass_1']:.3f} s | {new['loss']:.4f} s | {new['pass_2']:.3f} s |"
    )


if __name__ == "__main__":
    main()
