"""One step each: a plain function `f(inputs, config, outdir)`, wrapped as a dflow OP.

    function          inputs            config            does
    run_structures    StructuresInputs  StructuresConfig  starting structures
    run_train         TrainInputs       RunTrainConfig    train, or finetune a pretrained model
    run_explore       ExploreInputs     ExploreConfig     make structures, watched by a committee
    run_select        SelectInputs      SelectConfig      choose what is worth a label
    prepare_labels    PrepareInputs     PrepareConfig     inputs of the electronic-structure code
    run_labels        LabelInputs       LabelConfig       run it, keep labels in the store
    run_collect       CollectInputs     CollectConfig     filter, deduplicate, split, write
    run_bias          BiasInputs        BiasConfig        change the energy bias
    run_test          TestInputs        RunTestConfig     errors on labelled data
    run_decide        DecideInputs      DecideConfig      go on, next stage, or end

Each can be called again on its own `outdir`, after an interruption too: it goes on or starts anew
(`run_collect` alone wants a new folder, since it will not remove data).
All names, and `make_structures`, `frame_of`, `atoms_of`, are imported from `ops` on first use,
so that importing this package stays instant. As steps of a dflow workflow: `ops.step_op`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ops.bias import BiasConfig, BiasInputs, run_bias
    from ops.collect import CollectConfig, CollectInputs, run_collect
    from ops.decide import DecideConfig, DecideInputs, run_decide
    from ops.explore import ExploreConfig, ExploreInputs, run_explore
    from ops.label import (
        LabelConfig,
        LabelInputs,
        PrepareConfig,
        PrepareInputs,
        prepare_labels,
        run_labels,
    )
    from ops.select import SelectConfig, SelectInputs, run_select
    from ops.structures import (
        StructuresConfig,
        StructuresInputs,
        atoms_of,
        frame_of,
        make_structures,
        run_structures,
    )
    from ops.test import RunTestConfig, TestInputs, run_test
    from ops.train import RunTrainConfig, TrainInputs, run_train

__all__ = [
    "BiasConfig",
    "BiasInputs",
    "CollectConfig",
    "CollectInputs",
    "DecideConfig",
    "DecideInputs",
    "ExploreConfig",
    "ExploreInputs",
    "LabelConfig",
    "LabelInputs",
    "PrepareConfig",
    "PrepareInputs",
    "RunTestConfig",
    "RunTrainConfig",
    "SelectConfig",
    "SelectInputs",
    "StructuresConfig",
    "StructuresInputs",
    "TestInputs",
    "TrainInputs",
    "atoms_of",
    "frame_of",
    "make_structures",
    "prepare_labels",
    "run_bias",
    "run_collect",
    "run_decide",
    "run_explore",
    "run_labels",
    "run_select",
    "run_structures",
    "run_test",
    "run_train",
]

_NAMES = {
    "bias": "BiasConfig BiasInputs run_bias",
    "collect": "CollectConfig CollectInputs run_collect",
    "decide": "DecideConfig DecideInputs run_decide",
    "explore": "ExploreConfig ExploreInputs run_explore",
    "label": "LabelConfig LabelInputs PrepareConfig PrepareInputs prepare_labels run_labels",
    "select": "SelectConfig SelectInputs run_select",
    "structures": "StructuresConfig StructuresInputs atoms_of frame_of make_structures "
    "run_structures",
    "test": "RunTestConfig TestInputs run_test",
    "train": "RunTrainConfig TrainInputs run_train",
}
_HOME = {name: f"ops.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
