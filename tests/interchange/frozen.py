"""What the recording scripts do with `.pth` files; needs nothing of dpaflow."""

from __future__ import annotations

import zipfile
from pathlib import Path


def without_code(path: Path) -> None:
    """Empty the TorchScript code in a `.pth`: it is DeePMD-kit's, and no reader of ours needs it.

    The members with parameters and hyperparameters stay as they are.
    """
    source = path.rename(path.with_suffix(".whole"))
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if "/code/" in info.filename:
                if info.filename.endswith(".debug_pkl"):
                    continue
                data = b""
            new.writestr(zipfile.ZipInfo(info.filename), data, info.compress_type)
    source.unlink()
