"""A look at a pod from inside: `python -m ops.probe REQUEST.json`.

Are the GPUs there and do they compute, is there the memory, the scratch space and the bucket
that was asked for; do results travel to the next step. Findings go to `out/result.json`.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpa_core.config import Config, parse_config
from ops.files import write_json, write_text
from ops.pod import DEFAULTS, IN, WORK

ROOT = Path("/")
CGROUP = "sys/fs/cgroup"
UNLIMITED = 2**60
"""Bytes; old kernels write a huge number where there is no limit."""
MARK = "mark.txt"
"""File that the first pod leaves for the second."""
SIZE = 512
"""Rows of the matrices that are multiplied."""


class ProbeRequest(Config):
    """What to look at; sizes in bytes."""

    mark: str
    """Text that the next pod must find."""
    version: str
    """Version of dpaflow that submitted it."""
    gpu: int = 0
    """GPUs that were asked for."""
    cpu: float
    """Cores that were asked for."""
    memory: float
    """Memory that was asked for."""
    shm: float | None = None
    """Size of /dev/shm that was asked for."""
    disk: float
    """Scratch space that was asked for."""
    bucket: str | None = None
    """URL of a place in the bucket to write to, if pods have its credentials."""
    reads: str | None = None
    """Folder in $DPAFLOW_IN that the pod before has left; then only results and bucket matter."""


class Finding(NamedTuple):
    """One line of the result."""

    name: str
    verdict: Literal["ok", "warning", "error"]
    found: str
    advice: str = ""


def main() -> int:
    """Look, write down what was found, leave something for the next pod."""
    source = Path(sys.argv[1])
    request = parse_config(ProbeRequest, json.loads(source.read_text("utf-8")), str(source))
    work = Path(os.environ.get(WORK, DEFAULTS[WORK]))
    findings = list(look(request, work))
    write_json(work / "out" / "result.json", [finding._asdict() for finding in findings])
    write_text(work / "out" / "folder" / MARK, request.mark)
    for finding in findings:
        sys.stdout.write(f"{finding.verdict}: {finding.name}: {finding.found}\n")
    return 0


def look(request: ProbeRequest, work: Path, root: Path = ROOT) -> Iterator[Finding]:
    """Yield what a pod finds.

    Parameters
    ----------
    request
        What was asked for.
    work
        The scratch folder.
    root
        Instead of "/", for tests.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "dpaflow": lambda: _versions(request),
        "torch": lambda: _torch(request),
        "limits": lambda: _limits(request, root / CGROUP),
        "/dev/shm": lambda: _shared_memory(request, root / "dev" / "shm"),
        "scratch": lambda: _scratch(request, work),
        "user": _user,
        "bucket": lambda: _bucket(request),
    }
    if request.reads is not None:
        checks = {"results": lambda: _results(request), "bucket": checks["bucket"]}
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001  (whatever fails here is the finding)
            yield Finding(name, "error", f"{type(error).__name__}: {error}")


def _versions(request: ProbeRequest) -> Iterator[Finding]:
    here = version("dpaflow")
    found = f"{here}, Python {platform.python_version()}"
    if here != request.version:
        advice = f"use an image with dpaflow {request.version}, or install {here} where you submit"
        found = f"{found}; submitted with {request.version}"
        yield Finding("dpaflow", "error", found, advice)
        return
    yield Finding("dpaflow", "ok", found)


def _torch(request: ProbeRequest) -> Iterator[Finding]:
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices < request.gpu:
        yield _no_gpu(request.gpu, devices, torch.version.cuda)
        return
    if devices > request.gpu:
        found = f"sees {devices} GPUs, asked for {request.gpu}"
        advice = "others may use them, too; ask who runs the cluster about the device plugin"
        yield Finding("GPU", "warning", found, advice)
    names = [torch.device("cuda", k) for k in range(request.gpu)] or [torch.device("cpu")]
    for device in names:
        yield _multiply(torch, device)


def _no_gpu(asked: int, there: int, cuda: str | None) -> Finding:
    found = f"torch sees {there} GPUs, asked for {asked}"
    if cuda is None:
        advice = "torch of this image is made for CPUs; use one built with Dockerfile.cuda"
        return Finding("GPU", "error", found, advice)
    return Finding(
        "GPU", "error", f"{found} (torch with CUDA {cuda})",
        "the node's driver may be older than the image's CUDA (nvidia-smi there says), or the "
        "runtime of its containers is not NVIDIA's",
    )  # fmt: skip


def _multiply(torch: Any, device: Any) -> Finding:
    """Compare a product of the device with the same of the processor in double precision."""
    made = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=made) for _ in range(2))
    exact = a.double() @ b.double()
    got = (a.to(device) @ b.to(device)).cpu().double()
    error = float((got - exact).abs().max() / exact.abs().max())
    gpu = device.type == "cuda"
    name = f"GPU {device.index}" if gpu else "torch"
    what = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    found = f"torch {torch.__version__}, {what}: matrix product right to {error:.0e}"
    if error > 1e-2:  # TF32 is right to 1e-3
        advice = "this device computes wrongly; ask who runs the cluster"
        return Finding(name, "error", found, advice)
    return Finding(name, "ok", found)


def _limits(request: ProbeRequest, cgroup: Path) -> Iterator[Finding]:
    memory, cores = memory_limit(cgroup), core_limit(cgroup)
    if memory is None:
        yield Finding("memory", "warning", "no limit is seen", "a step could take the whole node")
    elif memory < 0.99 * request.memory:
        found = f"{_gib(memory)} allowed, asked for {_gib(request.memory)}"
        yield Finding("memory", "error", found, "a rule of the cluster cuts it; ask who runs it")
    else:
        yield Finding("memory", "ok", f"{_gib(memory)} allowed")
    if cores is None:
        yield Finding("cpu", "warning", "no limit is seen", "steps may take more cores than asked")
    elif cores < 0.99 * request.cpu:
        found = f"{cores:g} cores allowed, asked for {request.cpu:g}"
        yield Finding("cpu", "error", found, "a rule of the cluster cuts it; ask who runs it")
    else:
        yield Finding("cpu", "ok", f"{cores:g} cores allowed")


def memory_limit(cgroup: Path) -> float | None:
    """Return the memory a container may use, in bytes; None if there is no limit."""
    text = _first(cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes")
    if text in (None, "max") or float(text) > UNLIMITED:
        return None
    return float(text)


def core_limit(cgroup: Path) -> float | None:
    """Return the cores a container may use; None if there is no limit."""
    text = _first(cgroup / "cpu.max")
    if text is None:
        quota = _first(cgroup / "cpu" / "cpu.cfs_quota_us")
        period = _first(cgroup / "cpu" / "cpu.cfs_period_us")
        text = None if quota is None or period is None else f"{quota} {period}"
    if text is None or text.startswith(("max", "-1")):
        return None
    quota, period = text.split()
    return float(quota) / float(period)


def _first(*paths: Path) -> str | None:
    for path in paths:
        if path.exists():
            return path.read_text(encoding="ascii").strip()
    return None


def _shared_memory(request: ProbeRequest, folder: Path) -> Iterator[Finding]:
    size = shutil.disk_usage(folder).total
    found = f"{_gib(size)}"
    if request.shm is not None and size < 0.99 * request.shm:
        found += f", asked for {_gib(request.shm)}"
        yield Finding("/dev/shm", "error", found, "a rule of the cluster cuts it; ask who runs it")
    elif request.shm is None and request.gpu > 1 and size < 2**30:
        advice = "several processes exchange batches there; set shm: 8Gi for this step"
        yield Finding("/dev/shm", "warning", found, advice)
    else:
        yield Finding("/dev/shm", "ok", found)


def _scratch(request: ProbeRequest, work: Path) -> Iterator[Finding]:
    path = work / f".probe-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    text = secrets.token_bytes(2**20)
    path.write_bytes(text)
    back = path.read_bytes()
    path.unlink()
    free = shutil.disk_usage(work).free
    if back != text:
        yield Finding("scratch", "error", f"{work}: other bytes came back", "the disk is broken")
    elif free < request.disk:
        found = f"{work}: {_gib(free)} free, asked for {_gib(request.disk)}"
        yield Finding("scratch", "warning", found, "the node's disk is nearly full, or small")
    else:
        yield Finding("scratch", "ok", f"{work}: can be written, {_gib(free)} free")


def _user() -> Iterator[Finding]:
    user = os.getuid()
    if user == 0:
        yield Finding("user", "warning", "root", "the cluster overrides cluster.user; ask why")
    else:
        yield Finding("user", "ok", f"{user}, not root")


def _results(request: ProbeRequest) -> Iterator[Finding]:
    """Look for what the pod before has left."""
    path = Path(os.environ.get(IN, DEFAULTS[IN])) / str(request.reads) / MARK
    found = path.read_text(encoding="utf-8") if path.exists() else None
    if found == request.mark:
        yield Finding("results", "ok", "those of an earlier step arrive in the next one")
    else:
        what = "nothing came" if found is None else "something else came"
        advice = "the artifact repository loses or mixes up results; ask who runs the cluster"
        yield Finding("results", "error", what, advice)


def _bucket(request: ProbeRequest) -> Iterator[Finding]:
    """Write to the bucket with the pods' credentials, read it back, and clean up."""
    if request.bucket is None:
        return
    from ops.storage.client import connect, plain_errors

    name, _, prefix = request.bucket.removeprefix("s3://").partition("/")
    client = connect()
    with plain_errors(request.bucket, client):
        key = f"{prefix}/{os.getpid()}-{secrets.token_hex(4)}"
        client.put_object(Bucket=name, Key=key, Body=request.mark.encode())
        back = client.get_object(Bucket=name, Key=key)["Body"].read().decode()
        client.delete_object(Bucket=name, Key=key)
        if request.reads is not None:  # the last pod: nothing of the probe is needed any more
            for item in client.list_objects_v2(Bucket=name, Prefix=prefix).get("Contents", []):
                client.delete_object(Bucket=name, Key=item["Key"])
    same = back == request.mark
    found = f"{request.bucket}: written, read back, deleted" if same else "other bytes came back"
    yield Finding("bucket", "ok" if same else "error", found)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


if __name__ == "__main__":
    sys.exit(main())
