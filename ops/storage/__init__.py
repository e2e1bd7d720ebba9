"""Data and models on S3: any path of a pipeline may be `s3://bucket/key`.

    is_url(path)          whether it is one
    localize(path)        the local path of what is there; OPs call it on paths of their settings
    fetch(url)            the same, always anew: file, folder or files that match a pattern
    listing(url)          names, sizes and ETags; signature(url) is a hash of them
    upload(path, url)     a file or folder
    publish_folder(...)   a folder, so that readers see all of it or nothing
    content_url(pattern)  where a copy of local files belongs; upload_content puts it there
    split_part(path)      FILE#NAME, one model of a file, as FILE and #NAME

Endpoint, region and credentials are found by boto3's own rules (environment, profiles, roles).
What was fetched is kept in a cache ($DPAFLOW_CACHE) which all processes of a machine share.
"""

from __future__ import annotations

from ops.storage.client import StorageError, Unreachable
from ops.storage.local import fetch, localize, with_urls
from ops.storage.lookup import Object, listing, signature
from ops.storage.published import publish_folder
from ops.storage.uploads import content_url, upload, upload_content
from ops.storage.urls import is_outside, is_url, split_part

__all__ = [
    "Object",
    "StorageError",
    "Unreachable",
    "content_url",
    "fetch",
    "is_outside",
    "is_url",
    "listing",
    "localize",
    "publish_folder",
    "signature",
    "split_part",
    "upload",
    "upload_content",
    "with_urls",
]
