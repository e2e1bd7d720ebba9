"""Layout of a published model: complete versions that never change, and a pointer to one.

    PREFIX/latest.json                    the pointer: which version is the current one
    PREFIX/versions/HASH/manifest.json    names, sizes and SHA-256 of the version's files
    PREFIX/versions/HASH/...              the files

A version's name is a hash of its files, and the pointer is written last, in one request: who
reads at any time finds all of one version. A publication that is interrupted changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dpa_core.errors import DataError
from ops.files import write_text
from ops.storage.client import MISSING, connect, error_code, plain_errors, read_small
from ops.storage.downloads import digest
from ops.storage.uploads import upload_files
from ops.storage.urls import Place, parse_target

POINTER, MANIFEST, CARD = "latest.json", "manifest.json", "model.json"
VERSIONS = "versions"
FORMAT = "dpaflow-published"
FORMAT_VERSION = 1


def publish_folder(folder: Path, url: str) -> str:
    """Make the files of a folder the current version of what is published at a URL.

    Parameters
    ----------
    folder
        The files; `manifest.json` is added to them.
    url
        Where. The same files again change nothing.

    Returns
    -------
    str
        The version.

    Raises
    ------
    ConfigError, StorageError
        As for `upload`; readers then go on with the version they had.
    """
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    files.pop(MANIFEST, None)
    manifest = _manifest(files)
    version = hashlib.sha256(manifest.encode()).hexdigest()[:16]
    place, client = parse_target(url), connect()
    base = place.below(VERSIONS, version)
    upload_files(client, files, base)
    upload_files(client, {MANIFEST: write_text(folder / MANIFEST, manifest)}, base)
    with plain_errors(url, client):
        if read_pointer(client, place) != version:
            body = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": version}
            client.put_object(
                Bucket=place.bucket,
                Key=place.below(POINTER).key,
                Body=json.dumps(body).encode() + b"\n",
                ContentType="application/json",
                CacheControl="no-cache",
            )
    return version


def _manifest(files: dict[str, Path]) -> str:
    table = {
        name: {"size": path.stat().st_size, "sha256": digest(path)}
        for name, path in sorted(files.items())
    }
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": table}
    return json.dumps(document, indent=1) + "\n"


def read_pointer(client: Any, place: Place) -> str | None:
    """Return the current version of a published model; None if there is no pointer of ours.

    Raises
    ------
    DataError
        It was written by a newer dpaflow.
    """
    from botocore.exceptions import ClientError

    try:
        document = json.loads(read_small(client, place.bucket, place.below(POINTER).key))
        if document["format"] != FORMAT:
            return None
    except ClientError as error:
        if error_code(error) in MISSING:
            return None
        raise
    except (ValueError, KeyError, TypeError):
        return None
    if document.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{place}: published by another version of dpaflow; use a newer one here")
    return str(document["version"])


def check_version(folder: Path, name: str) -> None:
    """Compare the copy of a published version with its manifest.

    Raises
    ------
    DataError
        A file is missing, too many, or not what was published.
    """
    path = folder / MANIFEST
    files = json.loads(path.read_text(encoding="utf-8"))["files"] if path.is_file() else {}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    wrong = sorted((there ^ set(files)) - {MANIFEST})
    wrong += [n for n in files if n in there and digest(folder / n) != files[n]["sha256"]]
    if wrong or not files:
        raise DataError(
            f"{name}: {', '.join(wrong[:3]) or MANIFEST} of the published version is missing or "
            "not what was published; publish it again"
        )
