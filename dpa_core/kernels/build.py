"""Compile the kernels for this machine's processor, once, and keep the library on disk."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

SOURCE = Path(__file__).parent / "source"
_OPTIONS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-fPIC", "-shared")


@cache
def library(precision: str) -> ctypes.CDLL | None:
    """Return the compiled kernels for "float32" or "float64"; None where no compiler works.

    The library is kept in $DPAFLOW_CACHE, or $XDG_CACHE_HOME/dpaflow (~/.cache/dpaflow), under
    a name made of everything it depends on: sources, compiler, options and the processor, so
    that machines with one home folder do not take each other's.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    if compiler is None:
        log.info("no C++ compiler (g++): models run without compiled kernels, several times slower")
        return None
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"kernels-{precision}-{_fingerprint(compiler)}.so"
        if not path.exists():
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    _compile(compiler, precision, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or error
        log.warning("compiled kernels are not used, models run several times slower: %s", text)
        return None


def _folder() -> Path:
    own = os.environ.get("DPAFLOW_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpaflow"


def _fingerprint(compiler: str) -> str:
    """Name of everything that the machine code depends on."""
    digest = hashlib.sha256(" ".join(_OPTIONS).encode())
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.read_bytes())
    stat = Path(compiler).resolve().stat()
    digest.update(f"{compiler} {stat.st_size} {stat.st_mtime_ns} {platform.machine()}".encode())
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text(errors="replace").splitlines()
        known = ("model name", "flags", "Features", "CPU part")
        digest.update("".join(sorted({x for x in lines if x.startswith(known)})).encode())
    return digest.hexdigest()[:16]


def _compile(compiler: str, precision: str, path: Path) -> None:
    log.info("compiling kernels for %s (once per machine, about 10 s)", precision)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    command = [
        compiler, *_OPTIONS, f"-DPRECISION={'float' if precision == 'float32' else 'double'}",
        str(SOURCE / "kernel.cpp"), "-o", str(new), "-pthread",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
