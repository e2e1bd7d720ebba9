"""Whether this machine is fit to run a pipeline."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

Verdict = Literal["ok", "warning", "error", "unknown"]
"""unknown: could not be found out from here."""

REQUIRED = (
    "dpaflow", "torch", "numpy", "pydantic", "PyYAML", "typer", "rich", "ase", "boto3", "dpdata",
    "h5py", "vesin", "safetensors", "pydflow", "kubernetes", "filelock", "psutil", "matplotlib",
    "jinja2",
)  # fmt: skip
OPTIONAL = ("tensorboard", "lmdb")
LOW_DISK, NO_DISK = 5e9, 0.5e9
LOW_MEMORY = 2e9


class Check(NamedTuple):
    """One finding and, if it is not fine, what to do."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def check(folder: Path) -> list[Check]:
    """Look at versions, torch, dflow, threads, memory and the disk of `folder`."""
    checks = [_python()]
    checks += [_package(name, required=True) for name in REQUIRED]
    checks += [_package(name, required=False) for name in OPTIONAL]
    return [*checks, *_dflow(), *_torch(), _kernels(), _deepmd(), _memory(), *_disk(folder)]


def lines(checks: list[Check], width: int = 0) -> list[str]:
    """Return the findings as text, one a line, problems marked; names at least `width` wide."""
    marks = {"ok": "  ok", "warning": "warn", "error": "FAIL", "unknown": "   ?"}
    width = max(width, *(len(item.name) for item in checks))
    return [
        f"{marks[item.verdict]}  {item.name:<{width}}  {item.found}"
        + (f"  -> {item.advice}" if item.advice else "")
        for item in checks
    ]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _package(name: str, *, required: bool) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        verdict: Verdict = "error" if required else "warning"
        return Check(name, verdict, "missing", f"pip install {name}")


def _dflow() -> list[Check]:
    """Look at dflow: it calls an interface that kubernetes 36 took away."""
    try:
        major = int(version("kubernetes").partition(".")[0])
    except PackageNotFoundError:
        return []
    if major >= 36:
        return [Check("dflow", "warning", f"kubernetes {major}", 'pip install "kubernetes<36"')]
    try:
        import dflow
    except Exception as error:  # noqa: BLE001  (any failure of the import is the finding)
        return [Check("dflow", "error", f"import fails: {error}", "reinstall pydflow")]
    return [Check("dflow", "ok", f"imports from {Path(dflow.__file__).parent}")]


def _torch() -> list[Check]:
    try:
        import torch
    except Exception as error:  # noqa: BLE001  (any failure of the import is the finding)
        return [Check("torch works", "error", f"import fails: {error}", "reinstall torch")]
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"{torch.get_num_threads()} torch threads, {cores} cores"
    return [
        Check("torch works", "ok", device),
        Check("threads", "ok", f"{threads}; execution.parallel x threads should not exceed cores"),
    ]


def _kernels() -> Check:
    """Look at the compiled kernels that evaluate models on CPUs."""
    from dpa_core.kernels.build import library

    missing = [precision for precision in ("float32", "float64") if library(precision) is None]
    if missing:
        advice = "install a C++ compiler (Debian: apt install g++)"
        return Check("kernels", "warning", "none: models on CPU run several times slower", advice)
    return Check("kernels", "ok", "compiled for this processor")


def _deepmd() -> Check:
    """Look for DeePMD-kit, which nothing but files for LAMMPS needs."""
    from dpa_core.errors import ConfigError
    from ops.deepmd_kit import find_dp

    try:
        command = find_dp()
    except ConfigError as error:
        return Check("DeePMD-kit", "warning", str(error))
    found = "not installed; only model files for LAMMPS need it" if command is None else command[0]
    return Check("DeePMD-kit", "ok", found)


def _memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available
    found = f"{free / 1e9:.1f} GB available"
    if free < LOW_MEMORY:
        return Check("memory", "warning", found, "set execution.parallel: 1")
    return Check("memory", "ok", found)


def _disk(folder: Path) -> list[Check]:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    verdict: Verdict = "error" if free < NO_DISK else "warning" if free < LOW_DISK else "ok"
    advice = "" if verdict == "ok" else "free some space"
    checks = [Check("disk", verdict, found, advice)]
    if not os.access(place, os.W_OK):
        checks.append(Check("folder", "error", f"{place} is not writable", "choose another"))
    return checks
