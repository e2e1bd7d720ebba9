"""The kernels' libraries: compiled for this machine's processor once, or brought along."""

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

from dpa_core.cache import cache_folder

log = logging.getLogger(__name__)

SOURCE = Path(__file__).parent / "source"
PREBUILT = Path(__file__).parent / "prebuilt"
"""Libraries for kinds of processors, made by `python -m dpa_core.kernels.build`."""

NUMBERS = {"float32": "float", "float64": "double"}
# Best first: names of the compiler, and what /proc/cpuinfo calls the instructions they need.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
}
_OPTIONS = ("-O3", "-ffp-contract=fast", "-std=c++17", "-fPIC", "-shared", "-pthread")


@cache
def library(precision: str) -> ctypes.CDLL | None:
    """Return the kernels for "float32" or "float64"; None where there are none.

    With a C++ compiler they are compiled for this machine and kept in the cache's folder
    (`dpa_core.cache`), under a name made of everything they depend on: sources, compiler, options
    and the processor, so that machines with one home folder do not take each other's. Without a
    compiler prebuilt ones serve, where the package has them.
    """
    for source in (_compiled, _prebuilt):
        try:
            path = source(precision)
            if path is not None:
                loaded = ctypes.CDLL(str(path))
                keep_freed_memory()
                return loaded
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("no compiled kernels: %s", getattr(error, "stderr", None) or error)
    log.warning(
        "models are evaluated by torch, several times slower than by compiled kernels, for which "
        "a C++ compiler is needed (Debian: apt install g++)"
    )
    return None


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the kernel.

    Every large temporary of a step would otherwise be mapped, page-faulted and unmapped
    again, which doubles the time of a step on CPU. Without glibc nothing happens.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def _compiled(precision: str) -> Path | None:
    """Library for this machine, compiled if it is not there yet."""
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    if compiler is None:
        return None
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"kernels-{precision}-{_fingerprint(compiler)}.so"
    if not path.exists():
        with FileLock(f"{path}.lock"):
            if not path.exists():
                log.info("compiling kernels for %s (once per machine, about 10 s)", precision)
                compile_kernels(compiler, precision, "native", path)
    return path


def _prebuilt(precision: str) -> Path | None:
    flags = set(_processor().split())
    for level, needed in LEVELS.items():
        path = PREBUILT / f"kernels-{precision}-{level}.so"
        if needed <= flags and path.exists():
            return path
    return None


def _processor() -> str:
    """Read what Linux says of the processor's instructions; empty where it says nothing."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(errors="replace").splitlines() if cpu.exists() else []
    known = ("model name", "flags", "Features", "CPU part")
    return " ".join(sorted({line for line in lines if line.startswith(known)}))


def _fingerprint(compiler: str) -> str:
    """Name of everything that the machine code depends on."""
    digest = hashlib.sha256(" ".join(_OPTIONS).encode())
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.read_bytes())
    stat = Path(compiler).resolve().stat()
    digest.update(f"{compiler} {stat.st_size} {stat.st_mtime_ns} {platform.machine()}".encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def compile_kernels(compiler: str, precision: str, processor: str, path: Path) -> None:
    """Compile the kernels for a kind of processor ("native": this one) to a shared library."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    command = [
        compiler, *_OPTIONS, f"-march={processor}", f"-DPRECISION={NUMBERS[precision]}",
        str(SOURCE / "kernel.cpp"), "-o", str(new),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def prebuild(folder: Path = PREBUILT) -> list[Path]:
    """Compile the kernels for all kinds of x86-64 processors into a folder.

    For images and packages whose users have no compiler.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for level in LEVELS:
        for precision in NUMBERS:
            made.append(folder / f"kernels-{precision}-{level}.so")
            compile_kernels(os.environ.get("CXX") or "g++", precision, level, made[-1])
    return made


if __name__ == "__main__":
    prebuild()
