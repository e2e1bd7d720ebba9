"""Data sets: readers for many formats behind one lazy `Dataset`, and one writer."""

from __future__ import annotations

from dpa_core.data.dataset import Dataset, SystemInfo, open_dataset
from dpa_core.data.detect import FORMATS, find_systems
from dpa_core.data.elements import formula, merge_type_maps
from dpa_core.data.write import write_mixed

__all__ = [
    "FORMATS",
    "Dataset",
    "SystemInfo",
    "find_systems",
    "formula",
    "merge_type_maps",
    "open_dataset",
    "write_mixed",
]
