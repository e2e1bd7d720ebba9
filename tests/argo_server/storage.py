"""Artifacts of pods, saved and loaded as the executor of Argo does."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class ArtifactError(Exception):
    """An artifact could not be saved or loaded."""


class Store(Protocol):
    """Where objects are kept by key."""

    def put(self, key: str, content: bytes) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def keys(self, prefix: str) -> list[str]: ...


class FolderStore:
    """Objects as files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, key: str, content: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def get(self, key: str) -> bytes | None:
        path = self.root / key
        return path.read_bytes() if path.is_file() else None

    def keys(self, prefix: str) -> list[str]:
        found = (str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())
        return sorted(key for key in found if key.startswith(prefix))


class S3Store:
    """Objects in a bucket of an S3 server."""

    def __init__(self, endpoint: str, bucket: str, access: str, secret: str) -> None:
        import boto3

        self.bucket = bucket
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1",
            aws_access_key_id=access, aws_secret_access_key=secret,
        )  # fmt: skip

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def get(self, key: str) -> bytes | None:
        try:
            return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))


def key_of(artifact: Mapping[str, Any], default: str) -> str:
    """Return the key of an artifact; without one, what the repository's key format says."""
    key = artifact.get("s3", {}).get("key")
    if key:
        return str(key)
    name = Path(artifact["path"]).name if _plain(artifact) else f"{artifact['name']}.tgz"
    return f"{default}/{name}"


def _plain(artifact: Mapping[str, Any]) -> bool:
    return "none" in artifact.get("archive", {})


def save(artifact: Mapping[str, Any], path: Path, key: str, store: Store) -> bool:
    """Save what lies at `path`; False if an optional artifact is not there."""
    if not path.exists():
        if artifact.get("optional"):
            return False
        raise ArtifactError(f"failed to save artifact {artifact['name']}: path not found: "
                            f"{artifact['path']}")  # fmt: skip
    if not _plain(artifact):
        store.put(key, _tgz(path, artifact.get("archive", {}).get("tar", {})))
    elif path.is_file():
        store.put(key, path.read_bytes())
    else:
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            store.put(f"{key}/{file.relative_to(path)}", file.read_bytes())
    return True


def _tgz(path: Path, tar: Mapping[str, Any]) -> bytes:
    """A folder is one entry with its base name, and so is a file."""
    memory = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=memory, mode="wb", compresslevel=tar.get("compressionLevel", 6)) as z,
        tarfile.open(fileobj=z, mode="w") as archive,
    ):
        archive.add(path, arcname=path.name)
    return memory.getvalue()


def load(artifact: Mapping[str, Any], target: Path, store: Store) -> None:
    """Put an artifact at `target`; leave it out if it is optional and not there."""
    name = artifact["name"]
    key = artifact.get("s3", {}).get("key")
    if "raw" in artifact:
        _fresh(target).write_text(artifact["raw"]["data"], encoding="utf-8")
        return
    if not key:
        if artifact.get("optional"):
            return
        raise ArtifactError(f"required artifact '{name}' not supplied")
    content = store.get(key)
    if content is not None:
        # what is a tarball is unpacked unless the artifact says that it is not archived
        if not _plain(artifact) and content[:2] == b"\x1f\x8b":
            _untar(content, _fresh(target))
        else:
            _fresh(target).write_bytes(content)
        return
    keys = store.keys(f"{key.rstrip('/')}/")
    if not keys and not artifact.get("optional"):
        raise ArtifactError(f"artifact {name} failed to load: failed to get file: "
                            "The specified key does not exist.")  # fmt: skip
    for found in keys:
        path = target / found.removeprefix(f"{key.rstrip('/')}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(found) or b"")


def _fresh(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _untar(content: bytes, target: Path) -> None:
    """A single entry takes the place, and with it the name, of the target."""
    temporary = target.with_name(f"{target.name}.tmpdir")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        archive.extractall(temporary, filter="data")
    entries = list(temporary.iterdir())
    source = entries[0] if len(entries) == 1 else temporary
    source.rename(target)
    shutil.rmtree(temporary, ignore_errors=True)
