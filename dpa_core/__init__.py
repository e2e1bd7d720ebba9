"""The potential: data, model, training, evaluation.

`load_model`, `DPACalculator` and `Committee` are what most users need; all are imported on
first use, so that importing this package stays instant.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpa_core.calculator import CommitteeCalculator, DPACalculator
    from dpa_core.committee import Committee
    from dpa_core.interchange.files import load_model, save_model

__all__ = ["Committee", "CommitteeCalculator", "DPACalculator", "load_model", "save_model"]

_HOME = {
    "Committee": "dpa_core.committee",
    "CommitteeCalculator": "dpa_core.calculator",
    "DPACalculator": "dpa_core.calculator",
    "load_model": "dpa_core.interchange.files",
    "save_model": "dpa_core.interchange.files",
}


# After each of torch's operations on CPU the threads of libgomp wait for the next one, busily and
# for up to 20 ms, on the processors that the kernels' threads need. A millisecond saves torch
# from waking them as well. libgomp reads it when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
