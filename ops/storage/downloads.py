"""One object into one file: in ranges side by side, going on where an earlier attempt stopped.

Every request carries If-Match with the ETag of the listing, so bytes of two versions of an
object can never come together. The folder of a download holds

    data        the file, as long as the object, filled where `progress` says so
    progress    for each chunk, how many of its bytes have arrived (64-bit integers)

so even a killed process loses no more than the block it was just writing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpa_core.errors import DataError
from ops.storage.client import (
    MISSING,
    Changed,
    StorageError,
    error_code,
    in_parallel,
    pause,
    stream_errors,
)

if TYPE_CHECKING:
    from ops.storage.lookup import Object

CHUNK = 16 * 2**20
BLOCK = 128 * 2**10
THREADS = 8
FRUITLESS = 6
"""Attempts in a row that bring not one byte before a download is given up."""
TIMES_DAMAGED = 3
"""How often an object is downloaded that arrives with a wrong checksum."""
SHA256 = "dpaflow-sha256"
"""Name of the metadata that hold the SHA-256 of what this package uploaded."""
log = logging.getLogger(__name__)


class _Damaged(Exception):
    """What arrived is not what the server has."""


class _Download(NamedTuple):
    client: Any
    bucket: str
    item: Object
    data: Path
    progress: Any

    def length(self, chunk: int) -> int:
        return min(CHUNK, self.item.size - chunk * CHUNK)

    @property
    def match(self) -> dict[str, str]:
        """Arguments that every request has."""
        return {
            "Bucket": self.bucket,
            "Key": self.item.key,
            "IfMatch": self.item.etag,
            "ChecksumMode": "ENABLED",
        }


def download(client: Any, bucket: str, item: Object, folder: Path) -> Path:
    """Return a file with the content of an object, its checksum compared.

    Parameters
    ----------
    client
        From `connect`.
    bucket, item
        What to download.
    folder
        Where the file is made; what an earlier attempt left there is used.

    Raises
    ------
    Changed
        The object is another one by now, or gone.
    StorageError
        The connection breaks off again and again.
    DataError
        The object on the server does not have the checksum it should have.
    """
    for _ in range(TIMES_DAMAGED):
        try:
            return _download(client, bucket, item, folder)
        except _Damaged as error:
            log.warning("s3://%s/%s: %s; once more", bucket, item.key, error)
            shutil.rmtree(folder)
    raise DataError(
        f"s3://{bucket}/{item.key}: the content does not have its checksum, {TIMES_DAMAGED} times; "
        "it is damaged on the server, upload it again"
    )


def _download(client: Any, bucket: str, item: Object, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    if item.size == 0:
        data.write_bytes(b"")
        return data
    task = _Download(client, bucket, item, data, _progress(folder, item))
    todo = [k for k in range(len(task.progress)) if task.progress[k] < task.length(k)]
    answers: list[dict[str, Any]] = []
    with data.open("r+b") as file:
        file.truncate(item.size)
        in_parallel(lambda k: answers.append(_chunk(task, k, file.fileno())), todo, THREADS)
        os.fsync(file.fileno())
    whole = len(answers) == 1 and "ContentRange" not in answers[0]
    _verify(data, answers[0] if whole else _ask(task), item)
    return data


def _progress(folder: Path, item: Object) -> Any:
    """Return the counters, mapped to their file; without the file that they count, zeros."""
    chunks = -(-item.size // CHUNK)
    data, path = folder / "data", folder / "progress"
    if not (data.exists() and path.exists() and path.stat().st_size == 8 * chunks):
        data.touch()
        path.write_bytes(bytes(8 * chunks))
    return np.memmap(path, dtype=np.int64, mode="r+", shape=(chunks,))


def _chunk(task: _Download, chunk: int, file: int) -> dict[str, Any]:
    """Fetch what is missing of a chunk, and return the server's last answer."""
    from botocore.exceptions import ClientError

    failures, length, answer = 0, task.length(chunk), {}
    while (before := int(task.progress[chunk])) < length:
        try:
            answer = _ask(task, chunk)
            _receive(task, chunk, answer, file)
        except ClientError as error:
            if error_code(error) in ("PreconditionFailed", "412", "InvalidRange", *MISSING):
                raise Changed from error
            raise
        except stream_errors() as error:
            failures = failures + 1 if task.progress[chunk] == before else 0
            if failures == FRUITLESS:
                raise StorageError(
                    f"s3://{task.bucket}/{task.item.key}: broke off {FRUITLESS} times in a row "
                    f"({type(error).__name__}); the same command goes on from here"
                ) from error
            pause(failures)
    return answer


def _ask(task: _Download, chunk: int | None = None) -> dict[str, Any]:
    """Ask for what is missing of a chunk; without a chunk, for the object's head alone."""
    from botocore.exceptions import ClientError

    if chunk is None:
        try:
            head: dict[str, Any] = task.client.head_object(**task.match)
        except ClientError as error:
            if error_code(error) in ("412", *MISSING):
                raise Changed from error
            raise
        return head
    start = chunk * CHUNK + int(task.progress[chunk])
    end = chunk * CHUNK + task.length(chunk) - 1
    if (start, end) == (0, task.item.size - 1):
        answer: dict[str, Any] = task.client.get_object(**task.match)
        return answer
    answer = task.client.get_object(**task.match, Range=f"bytes={start}-{end}")
    if answer.get("ContentRange") != f"bytes {start}-{end}/{task.item.size}":
        raise StorageError(
            f"s3://{task.bucket}/{task.item.key}: asked for bytes {start}-{end}, the server sends "
            f"{answer.get('ContentRange') or 'all'}; a proxy in between may be the reason"
        )
    return answer


def _receive(task: _Download, chunk: int, answer: dict[str, Any], file: int) -> None:
    """Write an answer's body block by block, and count."""
    left = task.length(chunk) - int(task.progress[chunk])
    for block in answer["Body"].iter_chunks(BLOCK):
        if len(block) > left:
            raise StorageError(f"s3://{task.bucket}/{task.item.key}: more bytes than asked for")
        os.pwrite(file, block, chunk * CHUNK + int(task.progress[chunk]))
        task.progress[chunk] += len(block)
        left -= len(block)


def _verify(path: Path, head: dict[str, Any], item: Object) -> None:
    """Compare the file with the best checksum that the server gives of the whole object."""
    algorithm, wanted = expected(head, item)
    if algorithm and (found := digest(path, algorithm)) != wanted:
        raise _Damaged(f"{algorithm} is {found}, should be {wanted}")


def expected(head: dict[str, Any], item: Object) -> tuple[str, str]:
    """Return algorithm and checksum of an object; empty if the server gives none of all of it.

    Our own SHA-256 goes first, then what the server computed. The ETag is an MD5 unless it was
    uploaded in parts ("-" in it) or is encrypted with a key of the user's.
    """
    sha = head.get("Metadata", {}).get(SHA256, "")
    if re.fullmatch("[0-9a-f]{64}", sha):
        return "sha256", sha
    for algorithm in ("SHA256", "CRC32"):
        value = head.get(f"Checksum{algorithm}", "")
        if value and "-" not in value and head.get("ChecksumType") != "COMPOSITE":
            return algorithm.lower(), base64.b64decode(value).hex()
    plain = head.get("ServerSideEncryption") in (None, "AES256")
    if plain and "SSECustomerAlgorithm" not in head:
        etag = item.etag.strip('"')
        if re.fullmatch("[0-9a-f]{32}", etag):
            return "md5", etag
    return "", ""


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the checksum of a file as hexadecimal digits."""
    with path.open("rb") as file:
        if algorithm != "crc32":
            known = {"md5": lambda: hashlib.md5(usedforsecurity=False)}
            return hashlib.file_digest(file, known.get(algorithm, algorithm)).hexdigest()
        value = 0
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
        return f"{value:08x}"
