"""What is behind a URL: one object, a folder of objects, or those that match a pattern."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from dpa_core.errors import DataError
from ops.storage.client import NO_HEAD, connect, error_code, plain_errors
from ops.storage.published import POINTER, VERSIONS, read_pointer
from ops.storage.urls import Place, parse


class Object(NamedTuple):
    """One object: its key, size in bytes and ETag, which changes with its content."""

    key: str
    size: int
    etag: str


class Found(NamedTuple):
    """What a URL means now.

    Attributes
    ----------
    place
        The URL.
    files
        Path -> object; a path begins with the name of the file or folder, of a pattern with
        the first part that the pattern matches.
    published
        Whether it is the current version of a published model.
    """

    place: Place
    files: dict[str, Object]
    published: bool = False

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(item.size for item in self.files.values())

    def digest(self) -> str:
        """Hash of names, sizes and ETags."""
        items = [[name, item.size, item.etag] for name, item in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def listing(url: str) -> list[Object]:
    """Return the objects behind a URL, by key.

    Of a published model, the objects of its current version.

    Raises
    ------
    DataError
        There are none.
    ConfigError
        The server cannot be asked: credentials, rights, bucket, connection.
    """
    return sorted(find(connect(), parse(url)).files.values())


def signature(url: str) -> str:
    """Return a hash that changes when the data behind a URL (URL#NAME: behind URL) change."""
    client = connect()
    return find(client, parse(part_of(client, url)[0])).digest()


def part_of(client: Any, url: str) -> tuple[str, str]:
    """Cut off what names one model in an object: URL#NAME is URL and "#NAME".

    An object or folder that is really called so comes first; the server is asked. Errors of
    the server as for `listing`.
    """
    file, mark, name = url.rpartition("#")
    if not mark or "/" in name:  # a bucket's name and a folder above have no such part
        return url, ""
    place = parse(url)
    with plain_errors(str(place), client):
        if place.pattern or _head(client, place) or any(_below(client, place, place.key)):
            return url, ""
    return file, mark + name


def find(client: Any, place: Place) -> Found:
    """Ask the server what is behind a URL; errors as for `listing`."""
    with plain_errors(str(place), client):
        if place.key and not place.pattern and (item := _head(client, place)) is not None:
            return Found(place, {place.name: item})
        found = dict(_below(client, place, place.key))
        if not place.pattern and POINTER in found:
            version = read_pointer(client, place)
            if version is not None:
                below = dict(_below(client, place, place.below(VERSIONS, version).key))
                return Found(place, _named(place, below), published=True)
    if not found:
        raise DataError(
            f"{place}: nothing is there; check bucket and name (upper and lower case count), and "
            "that the upload is complete"
        )
    return Found(place, found if place.pattern else _named(place, found))


def _named(place: Place, files: dict[str, Object]) -> dict[str, Object]:
    return {f"{place.name}/{name}": item for name, item in files.items()}


def _head(client: Any, place: Place) -> Object | None:
    """Return the object of exactly this key; None if there is none, or it is a folder's mark."""
    from botocore.exceptions import ClientError

    try:
        answer = client.head_object(Bucket=place.bucket, Key=place.key)
    except ClientError as error:
        if error_code(error) in NO_HEAD:  # the listing that follows will say what is wrong
            return None
        raise
    return Object(place.key, answer["ContentLength"], answer["ETag"])


def _below(client: Any, place: Place, key: str) -> Iterator[tuple[str, Object]]:
    """Objects in a folder that the pattern matches, with their paths in it."""
    prefix = f"{key}/" if key else ""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=prefix)
    for page in pages:
        for entry in page.get("Contents", ()):
            name = entry["Key"].removeprefix(prefix)
            parts = tuple(name.split("/"))
            if not parts[-1] or not place.matches(parts):  # a key that ends with / marks a folder
                continue
            if {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name:
                raise DataError(
                    f"s3://{place.bucket}/{entry['Key']}: no file can have this name; rename it"
                )
            yield name, Object(entry["Key"], entry["Size"], entry["ETag"])
