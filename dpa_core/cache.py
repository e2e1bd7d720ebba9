"""Where this machine keeps what is costly to get again: data fetched, kernels compiled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = "DPAFLOW_CACHE"
_DEFAULT = "~/.cache/dpaflow"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that $DPAFLOW_CACHE names, else ~/.cache/dpaflow."""
    return Path(environment.get(FOLDER) or _DEFAULT).expanduser().absolute()
