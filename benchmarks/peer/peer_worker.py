"""DeePMD-kit's side of the comparison, run by the driver with the peer's Python.

    PYTHON_WITH_DEEPMD_KIT benchmarks/peer/peer_worker.py BACKEND [--keep-freed-memory]

BACKEND is pt, pt-expt or pt-expt-compile. Training steps are those of DeePMD-kit's own loop: it
is stopped at the start of each step, where it asks for a batch, until the driver wants more.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import wire

if "--keep-freed-memory" in sys.argv:
    wire.keep_freed_memory()
BACKEND = sys.argv[1]
EXPERIMENTAL = BACKEND.startswith("pt-expt")

import deepmd  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from deepmd.entrypoints.convert_backend import convert_backend  # noqa: E402
from deepmd.infer import DeepPot  # noqa: E402
from deepmd.utils.argcheck import normalize  # noqa: E402
from deepmd.utils.compat import update_deepmd_input  # noqa: E402

if EXPERIMENTAL:
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.pt_expt.entrypoints.main import get_trainer
    from deepmd.pt_expt.model import BaseModel
else:
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.pt.entrypoints.main import get_trainer
    from deepmd.pt.model.model import BaseModel

warnings.simplefilter("ignore")
logging.disable(logging.INFO)


class Gate:
    """Stops DeePMD-kit's training loop between two steps and times what lies between."""

    def __init__(self, line: wire.Line) -> None:
        self._line = line
        self._wanted = 0
        self._began = 0.0
        self._seconds: list[float] = []
        self.losses: list[torch.Tensor] = []

    def __call__(self) -> None:
        """Return when another step is wanted."""
        now = time.perf_counter()
        if self._wanted:
            self._seconds.append(now - self._began)
        if len(self._seconds) == self._wanted:
            self._ask()
        self._began = time.perf_counter()

    def _ask(self) -> None:
        if self._wanted:
            losses = [float(loss) for loss in self.losses]
            self._line.write({"seconds": self._seconds, "losses": losses})
        self._seconds, self.losses = [], []
        request = self._line.read()
        while request["do"] != "steps":
            self._line.write(peak() if request["do"] == "memory" else {"error": "training"})
            request = self._line.read()
        self._wanted = request["times"]


class Worker:
    """The commands; see `COMMANDS` at the end."""

    def __init__(self, line: wire.Line) -> None:
        self._line = line
        self._potential: DeepPot | None = None
        self._question: tuple[Any, ...] = ()

    def hello(self, _: wire.Request) -> wire.Answer:
        """Say what runs here."""
        return {
            "code": f"DeePMD-kit {deepmd.__version__}",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def train(self, request: wire.Request) -> wire.Answer:
        """Build a trainer with the given weights and enter its loop."""
        config = json.loads(Path(request["input"]).read_text())
        if BACKEND == "pt-expt-compile":
            config["training"]["enable_compile"] = True
        config = normalize(update_deepmd_input(config, warning=False))
        began = time.perf_counter()
        trainer = get_trainer(config)
        weights = BaseModel.deserialize(load_dp_model(request["model"])["model"]).state_dict()
        model = trainer.wrapper.model["Default"]
        getattr(model, "original_model", model).load_state_dict(weights)
        gate = Gate(self._line)
        trainer.wrapper.register_forward_hook(
            lambda module, given, found: gate.losses.append(found[1].detach())
        )
        self._hook(trainer, gate)
        self._line.write({"seconds": time.perf_counter() - began})
        trainer.run()
        return {"error": "the training ended"}

    def _hook(self, trainer: Any, gate: Gate) -> None:
        name = "get_data" if EXPERIMENTAL else "_next_training_batch"
        original = getattr(trainer, name)

        def gated(*given: Any, **named: Any) -> Any:
            gate()
            return original(*given, **named)

        setattr(trainer, name, gated)

    def freeze(self, request: wire.Request) -> wire.Answer:
        """Make a frozen model of a `.dp` file, as `dp convert-backend` does."""
        convert_backend(INPUT=request["model"], OUTPUT=request["frozen"])
        return {}

    def load(self, request: wire.Request) -> wire.Answer:
        """Open a frozen model as users do."""
        began = time.perf_counter()
        self._potential = DeepPot(request["frozen"])
        return {"seconds": time.perf_counter() - began}

    def system(self, request: wire.Request) -> wire.Answer:
        """Read the structure that `evaluate` is about."""
        data = np.load(request["file"])
        coord, box, types = data["coord"], data["box"], data["atype"]
        self._question = (coord.reshape(1, -1), box.reshape(1, 9), types.tolist())
        return {}

    def evaluate(self, request: wire.Request) -> wire.Answer:
        """Energy, force and virial, some times over."""
        assert self._potential is not None  # noqa: S101 the driver's mistake
        seconds, found = wire.timed(lambda: self._potential.eval(*self._question), request["times"])
        energy, force = found[0].ravel(), found[1].ravel()
        return {"seconds": seconds, "energy": float(energy[0]), "force": force[:12].tolist()}


def peak() -> wire.Answer:
    """Memory before anything was built, and at most."""
    return {"bare": BARE, "peak": wire.memory("VmHWM")}


BARE = wire.memory("VmRSS")

if __name__ == "__main__":
    connection = wire.Line()
    worker = Worker(connection)
    commands = ("hello", "train", "freeze", "load", "system", "evaluate")
    COMMANDS = {name: getattr(worker, name) for name in commands}
    wire.serve(connection, COMMANDS | {"memory": lambda _: peak()})
