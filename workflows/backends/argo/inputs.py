"""Files on the user's machine that pods need: where in the bucket they go, and what is there."""

from __future__ import annotations

from typing import NamedTuple

from ops.storage import content_url, is_url, signature, split_part
from workflows.schema import Pipeline, inline_templates
from workflows.schema_paths import is_seen_by_pods, map_paths


class Upload(NamedTuple):
    """A file, folder or pattern on this machine, and the URL its content belongs to."""

    path: str
    url: str


def externalise(pipeline: Pipeline) -> tuple[Pipeline, list[Upload]]:
    """Return the pipeline with URLs for local paths, and what has to be copied there.

    A URL contains the hash of the content: other data get another one, the same data are
    copied once. Nothing is copied here, and no network is used.

    Parameters
    ----------
    pipeline
        As loaded; paths are absolute.
    """
    uploads: dict[str, Upload] = {}
    storage = pipeline.cluster.storage

    def change(path: str) -> str:
        if is_seen_by_pods(path, pipeline):
            return path
        path, part = split_part(path)
        if path not in uploads:
            url = content_url(path, storage.bucket, storage.prefix)
            uploads[path] = Upload(path, url)
        return uploads[path].url + part

    return map_paths(inline_templates(pipeline), change), list(uploads.values())


def signatures(pipeline: Pipeline, known: list[Upload]) -> dict[str, str]:
    """Return a hash of what is behind every URL of the pipeline; asks the storage server.

    URLs of `known` copies are left out: their names say what is there.
    """
    ours = {upload.url for upload in known}
    found: dict[str, str] = {}

    def note(path: str) -> str:
        if is_url(path) and path not in ours and path.rpartition("#")[0] not in ours:
            found[path] = signature(path)
        return path

    map_paths(pipeline, note)
    return found
