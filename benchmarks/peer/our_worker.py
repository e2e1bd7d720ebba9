"""dpaflow's side of the comparison, run by the driver: python -m benchmarks.peer.our_worker."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dpa_core  # noqa: F401  before torch, as in `dpaflow`

# isort: split
import numpy as np
import torch

from benchmarks.peer import wire
from dpa_core.batch import NeighborCache
from dpa_core.committee import Committee
from dpa_core.config import TrainConfig
from dpa_core.deepmd_input import convert
from dpa_core.frames import Frame
from dpa_core.interchange.files import load_model, save_model
from dpa_core.kernels.build import keep_freed_memory
from dpa_core.model import Potential
from dpa_core.train.distributed import World
from dpa_core.train.loop import take_step
from dpa_core.train.prepare import Run, open_datasets, prepare

BARE = wire.memory("VmRSS")

logging.disable(logging.INFO)
warnings.simplefilter("ignore")


class Worker:
    """The commands; their names are the methods'."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._indices: list[int] = []
        self._model: Potential | None = None
        self._frame: Frame | None = None

    def hello(self, _: wire.Request) -> wire.Answer:
        """Say what runs here."""
        return {
            "code": f"dpaflow {version('dpaflow')}",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def train(self, request: wire.Request) -> wire.Answer:
        """Open a run on the frames of the first system as a batch; write its initial model."""
        keep_freed_memory()  # as `dpaflow model train` does
        content = json.loads(Path(request["input"]).read_text())
        config = with_heads(convert(content), request)
        began = time.perf_counter()
        folder = Path(request["out"])
        folder.mkdir(parents=True)
        datasets = open_datasets(config)
        self._run = prepare(config, folder, datasets, World())
        self._indices = list(range(content["training"]["training_data"]["batch_size"]))
        seconds = time.perf_counter() - began
        if "model" in request:
            save_model(self._run.model, Path(request["model"]))
        return {"seconds": seconds}

    def steps(self, request: wire.Request) -> wire.Answer:
        """Take optimizer steps; `cold` forgets the neighbour tables before each of them."""
        run = self._opened()
        losses: list[float] = []

        def step() -> None:
            losses.append(take_step(run, self._indices, run.schedule(run.step))[0])
            run.step += 1

        seconds: list[float] = []
        for _ in range(request["times"]):
            if request.get("cold"):
                run.data.train_cache = NeighborCache(run.model.spec)
            seconds += wire.timed(step, 1)[0]
        return {"seconds": seconds, "losses": losses}

    def load(self, request: wire.Request) -> wire.Answer:
        """Open a model file; with `heads`, a model like it with as many fitting nets."""
        began = time.perf_counter()
        self._model = load_model(request["model"])
        heads = request.get("heads", 1)
        if heads > 1:
            config = self._model.config.model_copy(update={"heads": heads})
            self._model = Potential(config)
        return {"seconds": time.perf_counter() - began}

    def system(self, request: wire.Request) -> wire.Answer:
        """Read the structure that `evaluate` and `committee` are about."""
        data = np.load(request["file"])
        self._frame = Frame(data["coord"], data["atype"].astype(np.int64), data["box"])
        return {}

    def evaluate(self, request: wire.Request) -> wire.Answer:
        """Energy, force and virial, some times over."""
        model, frame = self._asked()
        coord, box = frame.coord[None], None if frame.box is None else frame.box[None]
        seconds, found = wire.timed(
            lambda: model.evaluate(coord, box, frame.atype), request["times"]
        )
        force = found.force.ravel()[:12].tolist()
        return {"seconds": seconds, "energy": float(found.energy[0]), "force": force}

    def committee(self, request: wire.Request) -> wire.Answer:
        """Energy, force and virial of all heads, some times over."""
        model, frame = self._asked()
        committee = Committee([model])
        seconds, _ = wire.timed(lambda: committee.predict([frame]), request["times"])
        return {"seconds": seconds}

    def memory(self, _: wire.Request) -> wire.Answer:
        """Memory before anything was built, and at most."""
        return {"bare": BARE, "peak": wire.memory("VmHWM")}

    def _opened(self) -> Run:
        if self._run is None:
            raise ValueError("no training was opened")
        return self._run

    def _asked(self) -> tuple[Potential, Frame]:
        if self._model is None or self._frame is None:
            raise ValueError("no model or no structure was loaded")
        return self._model, self._frame


def with_heads(config: TrainConfig, request: wire.Request) -> TrainConfig:
    """Return the configuration with as many heads as asked for, which DeePMD-kit has not."""
    model = config.model.model_copy(update={"heads": request.get("heads", 1)})
    return config.model_copy(update={"model": model})


def main() -> None:
    line = wire.Line()
    worker = Worker()
    names = "hello train steps load system evaluate committee memory".split()
    commands: dict[str, Callable[[wire.Request], Any]] = {k: getattr(worker, k) for k in names}
    wire.serve(line, commands)


if __name__ == "__main__":
    main()
