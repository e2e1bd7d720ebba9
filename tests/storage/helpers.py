"""Folders to store, and processes that are forked from a clean one and can be killed."""

from __future__ import annotations

import glob
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ops.storage import downloads

ROOT = Path(__file__).resolve().parents[2]
SERVE = """
import json, os, sys, traceback
import boto3, ops.storage
from ops.storage import cache, client, downloads, local, uploads
import botocore.retryhandler
client.PAUSE = 0.001
botocore.retryhandler.delay_exponential = lambda **_: 0.001
for line in sys.stdin:
    job = json.loads(line)
    os.environ.update(job["environment"])
    made = client.connect()  # takes longer than most jobs; no connection is open yet
    pid = os.fork()
    if pid == 0:
        client._client = lambda *_: made
        for name, value in job["constants"].items():
            setattr(downloads, name, value)
        try:
            print(json.dumps({"pid": os.getpid()}), flush=True)
            exec(job["code"], {"argument": job["argument"]})
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
"""


class Zygote:
    """A process with everything imported; each job runs in a fork of it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.environment: dict[str, str] = {}
        self.constants: dict[str, int] = {}

    def start(self, code: str, argument: Any, **environment: str) -> int:
        """Start a job and return the number of its process."""
        job = {"code": code, "argument": argument, "constants": self.constants,
               "environment": {**self.environment, **environment}}  # fmt: skip
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.read()["pid"]

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, "the process that forks is gone"
        return json.loads(line)

    def wait(self) -> int:
        """Return the exit code of the job, negative for a signal."""
        return self.read()["status"]

    def run(self, code: str, argument: Any, **environment: str) -> int:
        self.start(code, argument, **environment)
        return self.wait()

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@contextmanager
def zygotes(count: int) -> Iterator[list[Zygote]]:
    found = [Zygote() for _ in range(count)]
    try:
        yield found
    finally:
        for zygote in found:
            zygote.stop()


def random_bytes(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def put(s3: Any, bucket: str, prefix: str, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


def small_chunks(monkeypatch: Any) -> None:
    """Let a few hundred kilobytes be as many chunks as gigabytes would be."""
    from ops.storage import local

    monkeypatch.setattr(downloads, "CHUNK", 64 * 2**10)
    monkeypatch.setattr(downloads, "BLOCK", 8 * 2**10)
    monkeypatch.setattr(local, "CHUNK", 64 * 2**10)


def fresh_cache(tmp_path: Path, name: object) -> Path:
    folder = tmp_path / "caches" / str(name)
    folder.mkdir(parents=True)
    return folder


def matches(pattern: object) -> list[Path]:
    """What OPs find at a local path or pattern."""
    if Path(str(pattern)).exists():
        return [Path(str(pattern))]
    return sorted(map(Path, glob.glob(str(pattern))))  # noqa: PTH207  (absolute patterns)
