"""What is compared: models, data, batches, and the goals; nothing here runs anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_NETS = {"rcut": 6.0, "rcut_smth": 0.5, "neuron": [25, 50, 100], "axis_neuron": 16, "seed": 1}
_DPA1 = _NETS | {
    "type": "dpa1", "sel": 120, "attn": 128, "attn_dotr": True, "attn_mask": False,
    "tebd_input_mode": "concat", "type_one_side": True, "smooth_type_embedding": True,
}  # fmt: skip
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "L2": _DPA1 | {"attn_layer": 2},
    "L0": _DPA1 | {"attn_layer": 0},
    "se_e2_a": _NETS | {"type": "se_e2_a", "type_one_side": True},
}
"""DPA-1 of the paper's size with 2 and 0 attention layers, DeepPot-SE."""

TITLES = {"L2": "DPA-1, 2 layers", "L0": "DPA-1, 0 layers", "se_e2_a": "DeepPot-SE"}


class Source(NamedTuple):
    """Where frames of one size come from.

    Attributes
    ----------
    folder
        Below the data folder.
    natoms
        Of every frame.
    sel
        Neighbours of each type that DeepPot-SE needs; empty where it has too many types.
    frames
        Batches of about 200, 800 and 3,000 atoms.
    """

    folder: str
    natoms: int
    sel: tuple[int, ...]
    frames: tuple[int, int, int]


SOURCES = {
    "water": Source("water_pbe0ts/train/data_0/O64H128", 192, (46, 92), (1, 4, 16)),
    "alloy54": Source("nbmotaw/mixed/train/unary/0054", 54, (64,) * 4, (4, 15, 56)),
    "alloy16": Source("nbmotaw/mixed/train/binary/0016", 16, (64,) * 4, (13, 50, 188)),
    "elements": Source(
        "mattersim_bench_89elements/random_tp/train/0016", 16, (), (13, 48, 188)
    ),
}  # fmt: skip


class Case(NamedTuple):
    """One comparison.

    Attributes
    ----------
    kind
        train, evaluate, start, committee or large.
    model, data
        Keys of DESCRIPTORS and SOURCES.
    sizes
        Frames of the batch (one number), or repetitions of the water cell, (n, n, n) each.
    precision, threads
        float32 or float64; of torch.
    seconds
        About how long it takes on two cores, for --quick.
    """

    kind: str
    model: str
    data: str = "water"
    sizes: tuple[Any, ...] = ()
    precision: str = "float32"
    threads: int = 2
    seconds: float = 60

    @property
    def atoms(self) -> int:
        """Atoms of the largest batch or cell."""
        largest = self.sizes[-1] if self.sizes else 1
        copies = largest if isinstance(largest, int) else largest[0] * largest[1] * largest[2]
        return int(SOURCES[self.data].natoms * copies)

    @property
    def name(self) -> str:
        """What `--cases` looks at."""
        bits = self.precision.removeprefix("float")
        return f"{self.kind} {self.model} {self.data} {self.atoms} f{bits} t{self.threads}"

    @property
    def alone(self) -> bool:
        """Whether both codes together may not fit into memory: they then take turns as a whole."""
        wide = 2 if self.precision == "float64" else 1
        most = {"L2": 2000, "L0": 20_000, "se_e2_a": 10_000}[self.model]
        return self.kind != "start" and wide * self.atoms > most


def copies(*numbers: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((n, n, n) for n in numbers)


QUICK = (
    Case("train", "L2", "water", (1,), seconds=90),
    Case("train", "L0", "water", (4,), seconds=60),
    Case("train", "L2", "alloy54", (4,), seconds=75),
    Case("evaluate", "L2", "water", copies(1), seconds=50),
    Case("evaluate", "L0", "water", copies(2), seconds=60),
    Case("start", "L2", "water", (1,), seconds=80),
    Case("train", "se_e2_a", "water", (4,), seconds=60),
    Case("committee", "L2", "water", (4,), seconds=60),
)


def full() -> Iterator[Case]:
    """All cases of the full record, those that matter most first."""
    for data, source in SOURCES.items():
        for frames in source.frames:
            for model in DESCRIPTORS:
                if model != "se_e2_a" or source.sel:
                    yield Case("train", model, data, (frames,))
    for data in ("water", "alloy54"):
        for frames in SOURCES[data].frames[:2]:
            for model in DESCRIPTORS:
                yield Case("train", model, data, (frames,), "float64")
                yield Case("train", model, data, (frames,), "float32", 1)
    for model in DESCRIPTORS:
        yield Case("train", model, "water", (1,), "float64", 1)
        yield Case("evaluate", model, "water", copies(1, 2))
        yield Case("evaluate", model, "water", copies(3, 4))
        yield Case("evaluate", model, "water", copies(1, 2), "float64")
        yield Case("evaluate", model, "water", copies(1, 2), "float32", 1)
        yield Case("start", model, "water", (1,))
        yield Case("committee", model, "water", (4,))
        yield Case("large", model, "water", ((8, 8, 9),))


def deepmd_input(
    case: Case, type_map: list[str], systems: list[str], frames: int, *, steps: int | None = None
) -> dict[str, Any]:
    """Input file that both codes read; energy and force loss.

    Parameters
    ----------
    case
        Model and precision.
    type_map, systems
        Of the data.
    frames
        In a batch.
    steps
        Length of the run; None: the driver ends it.
    """
    descriptor = DESCRIPTORS[case.model] | {"precision": case.precision}
    if case.model == "se_e2_a":
        descriptor = descriptor | {"sel": list(SOURCES[case.data].sel)}
    fitting = {
        "neuron": [240, 240, 240], "resnet_dt": True, "seed": 1, "precision": case.precision,
    }  # fmt: skip
    prefactors = {"start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 1,
                  "start_pref_v": 0, "limit_pref_v": 0}  # fmt: skip
    rate = {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-8, "decay_steps": 5000}
    every = 1 if steps else 1_000_000
    training = {
        "training_data": {"systems": systems, "batch_size": frames},
        "numb_steps": steps or 1_000_000, "disp_freq": every, "save_freq": 1_000_000, "seed": 1,
    }  # fmt: skip
    return {
        "model": {"type_map": type_map, "descriptor": descriptor, "fitting_net": fitting},
        "learning_rate": rate if steps is None else rate | {"decay_steps": 1},
        "loss": {"type": "ener", **prefactors},
        "training": training,
    }


def goal(case: Case) -> tuple[float, float] | None:
    """Ratios to reach against the peer as users run it, and tuned; None: none was set."""
    dpa1 = case.model == "L2"
    if case.kind == "evaluate":
        return (4, 3) if dpa1 else (3, 2)
    if case.kind == "start":
        return (2, 2)
    if case.kind != "train":
        return None
    if case.data.startswith("alloy"):
        return {"L2": (8.0, 4.0), "L0": (3.0, 2.0), "se_e2_a": (2.5, 2.0)}[case.model]
    if case.atoms < 400:
        return (3, 2.5) if dpa1 else (2, 1.5)
    return (8, 3) if dpa1 else (2.5, 2)


def memory_goal(case: Case) -> float:
    """Peer's peak memory over ours."""
    if case.kind == "evaluate":
        return 4
    return 3 if case.model == "L2" else 2
