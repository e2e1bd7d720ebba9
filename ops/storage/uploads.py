"""Local files to S3: skipped where they are there already, never seen incomplete."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpa_core.errors import DataError
from ops.storage.client import NO_HEAD, connect, error_code, in_parallel, plain_errors
from ops.storage.downloads import SHA256, digest
from ops.storage.urls import MAGIC, SCHEME, Place, parse_target

PART = 16 * 2**20
FILES_AT_ONCE = 8


def upload(path: str | Path, url: str) -> None:
    """Copy a file to the object `url`, or a folder's files below it.

    The SHA-256 of each file is kept with its object; one that is there with the same is left
    alone. An object appears when all of it has arrived, and the server compares checksums.

    Raises
    ------
    DataError
        There is no such file, or it changes while it is read.
    ConfigError, StorageError
        As for `fetch`.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder to upload")
    files = dict(_files(path)) if path.is_dir() else {"": path}
    if not files:
        raise DataError(f"{path}: an empty folder cannot be uploaded")
    upload_files(connect(), files, parse_target(url))


def upload_files(client: Any, files: Mapping[str, Path], base: Place) -> None:
    """Copy files, given by their paths below `base`."""
    with plain_errors(str(base), client):
        targets = [(file, base.below(name)) for name, file in files.items()]
        in_parallel(lambda item: upload_file(client, *item), targets, FILES_AT_ONCE)


def upload_file(client: Any, path: Path, place: Place) -> None:
    """Copy one file, unless the object has this content already."""
    from boto3.s3.transfer import TransferConfig

    before = path.stat()
    sha = digest(path)
    if _is_there(client, place, before.st_size, sha):
        return
    config = TransferConfig(multipart_threshold=2 * PART, multipart_chunksize=PART)
    client.upload_file(
        str(path), place.bucket, place.key, ExtraArgs={"Metadata": {SHA256: sha}}, Config=config
    )
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        client.delete_object(Bucket=place.bucket, Key=place.key)
        raise DataError(f"{path}: changed while it was being uploaded; wait until it is complete")


def _is_there(client: Any, place: Place, size: int, sha: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=place.bucket, Key=place.key)
    except ClientError as error:
        if error_code(error) in NO_HEAD:  # the upload will say what is wrong
            return False
        raise
    return bool(head["ContentLength"] == size and head["Metadata"].get(SHA256) == sha)


def content_url(pattern: str, bucket: str, prefix: str) -> str:
    """Return the URL where a copy of local files belongs; nothing is copied or asked.

    Parameters
    ----------
    pattern
        A file, a folder, or a pattern with wildcards.
    bucket, prefix
        Where copies are kept.

    Returns
    -------
    str
        s3://BUCKET/PREFIX/inputs/HASH/NAME; the hash is one of names and contents alone.

    Raises
    ------
    DataError
        Nothing is there.
    """
    lines = [f"{name}\0{digest(path)}\n" for name, path in sorted(_copies(pattern).items())]
    found = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    return SCHEME + "/".join(filter(None, (bucket, prefix, "inputs", found, _name(pattern))))


def upload_content(pattern: str, url: str) -> None:
    """Copy local files to the URL that `content_url` gave them; what is there is skipped.

    Raises
    ------
    DataError, ConfigError, StorageError
        As for `upload`.
    """
    base = parse_target(url.removesuffix(_name(pattern)))
    upload_files(connect(), _copies(pattern), base)


def _name(pattern: str) -> str:
    """Return the last part of a URL for a path, or the parts from its first wildcard on."""
    path = Path(pattern)
    if path.exists():  # whatever is in its name, it is one file or folder
        return MAGIC.sub("_", path.name)
    parts = path.parts
    first = next((n for n, part in enumerate(parts) if MAGIC.search(part)), len(parts) - 1)
    return "/".join(parts[first:])


def _copies(pattern: str) -> dict[str, Path]:
    """Path below the content's folder -> file, of all files that a pattern means."""
    path = Path(pattern)
    if path.exists():
        found = {_name(pattern): path}
    else:
        depth = len(path.parts) - len(Path(_name(pattern)).parts)
        matches = sorted(map(Path, glob.glob(pattern)))  # noqa: PTH207  (absolute)
        found = {"/".join(match.parts[depth:]): match for match in matches}
    copies: dict[str, Path] = {}
    for name, match in found.items():
        if match.is_dir():
            copies |= {f"{name}/{below}": file for below, file in _files(match)}
        else:
            copies[name] = match
    if not copies:
        raise DataError(f"{pattern}: no such file, or a folder without files; check the path")
    return copies


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder; hidden ones are none of the data. Links are followed."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and real not in seen)
        seen.add(real)
        for name in sorted(names):
            path = Path(place) / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix(), path
