"""Layout of a published model: complete versions that never change, and a pointer to one.

PREFIX/latest.json                    the pointer: which version is the current one
PREFIX/versions/HASH/manifest.json    names, sizes and SHA-256 of the version's files
PREFIX/versions/HASH/...              the files
"""

from __future__ import annotations

import json
from typing import Any

from dpa_core.errors import DataError
from ops.storage.client import read_small
from ops.storage.urls import Place

POINTER, MANIFEST, CARD = "latest.json", "manifest.json", "model.json"
FORMAT = "dpaflow-published"
VERSION = 1


def version_key(key: str, version: str) -> str:
    """Return the key of a version's folder."""
    return "/".join(filter(None, (key, "versions", version)))


def pointer_text(version: str) -> str:
    """Return the content of the pointer."""
    return json.dumps({"format": FORMAT, "format_version": VERSION, "version": version}) + "\n"


def read_pointer(client: Any, place: Place) -> str | None:
    """Return the current version of a published model; None if the pointer is another file.

    Raises
    ------
    DataError
        It was written by a newer dpaflow.
    """
    try:
        document = json.loads(read_small(client, place.bucket, place.below(POINTER).key))
        if document["format"] != FORMAT:
            return None
    except (ValueError, KeyError, TypeError):
        return None
    if document.get("format_version") != VERSION:
        raise DataError(f"{place}: published by another version of dpaflow; use a newer one here")
    return str(document["version"])
