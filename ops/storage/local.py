"""From a URL to a local path, through the cache."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dpa_core.errors import DataError
from ops.storage.cache import Cache, open_cache
from ops.storage.client import Changed, connect, in_parallel, pause, plain_errors
from ops.storage.downloads import CHUNK, download
from ops.storage.lookup import Found, Object, find, part_of
from ops.storage.published import CARD, check_version
from ops.storage.urls import as_url, is_url, parse

FILES_AT_ONCE = 16
CHANGES = 6
"""How often data may change while they are read before this is an error."""
log = logging.getLogger(__name__)


def fetch(url: str | Path, cache: Path | None = None) -> Path:
    """Return a local copy of what is behind a URL now.

    Parameters
    ----------
    url
        `s3://bucket/key` of an object, of a folder or with wildcards (`*`, `?`, `[...]`).
    cache
        Folder of the cache; $DPAFLOW_CACHE, else ~/.cache/dpaflow.

    Returns
    -------
    Path
        A file or folder; for wildcards a pattern that matches the copies. Only to be read; it
        stays until this process ends. Of a published model, the folder of its current version.

    Raises
    ------
    DataError
        Nothing is there, or it is damaged, or changes all the time.
    ConfigError
        Credentials, rights, bucket, connection.
    StorageError
        The server fails again and again; what has arrived is used next time.
    """
    place, client, store = parse(url), connect(), open_cache(cache)
    for attempt in range(CHANGES):
        with plain_errors(str(place), client):
            found = find(client, place)
            try:
                view = _view(_Task(client, store, found))
            except Changed:
                log.info("%s: changed while it was being read; once more", place)
                pause(attempt)
                continue
        return view.joinpath(*place.pattern) if place.pattern else view / place.name
    raise DataError(
        f"{place}: changed {CHANGES} times while it was being read; wait until it is complete"
    )


_copies: dict[str, Path] = {}
"""What this process has asked for: URL -> local path."""


def _copy(url: str) -> Path:
    url, part = part_of(connect(), url)
    path = fetch(url)
    card = path / CARD
    if card.is_file():
        model = json.loads(card.read_text(encoding="utf-8")).get("model")
        path = path / model if model else path
    return path.with_name(path.name + part)


def localize(path: str | Path) -> Path | str:
    """Return a local path: the one given, or that of a copy of a URL.

    A process asks the server once for each URL, so that it sees one state of the data. The URL
    of a published model means the model file; `#NAME` behind a URL, which names one model in a
    file, stays behind the path.
    """
    if not is_url(path):
        return path if isinstance(path, Path) else str(path)
    url = as_url(path)
    if url not in _copies:
        _copies[url] = _copy(url)
    return _copies[url]


def with_urls(text: str) -> str:
    """Return a message with URLs in place of the paths of their copies, which nobody knows."""
    for url, path in _copies.items():
        text = text.replace(str(path), url)
        text = text.replace(str(path.parent), url.rpartition("/")[0])  # of a pattern's files
    return text


class _Task(NamedTuple):
    client: Any
    cache: Cache
    found: Found

    def address(self, item: Object) -> str:
        """Return the address of an object in the cache."""
        server = self.client.meta.endpoint_url
        parts = [server, self.found.place.bucket, item.key, item.size, item.etag]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _view(task: _Task) -> Path:
    """Return the folder that holds what was found, from the cache or the server."""
    server = [task.client.meta.endpoint_url, task.found.place.bucket, task.found.digest()]
    name = hashlib.sha256(json.dumps(server).encode()).hexdigest()
    place = task.cache.hold(name)
    if place.is_dir():
        return place
    files = task.found.files
    missing = [f for f in files.values() if not task.cache.object(task.address(f)).exists()]
    _need_disk(task, sum(item.size for item in missing))
    if missing:
        size = sum(item.size for item in missing) / 1e6
        log.info("%s: fetching %d files, %.1f MB", task.found.place, len(missing), size)
    with task.cache.staging(name) as staging:
        large = [f for f in files.items() if f[1].size > CHUNK]  # these use all threads themselves
        small = [f for f in files.items() if f[1].size <= CHUNK]
        in_parallel(lambda item: _get(task, item, staging), small, FILES_AT_ONCE)
        in_parallel(lambda item: _get(task, item, staging), large, 1)
        if len(files) > 1 and find(task.client, task.found.place) != task.found:
            raise Changed  # a set of files, each of its own time
        if task.found.published:
            check_version(staging / task.found.place.name, str(task.found.place))
        task.cache.add_view(name, staging)
    return place


def _need_disk(task: _Task, size: int) -> None:
    """Make room for what will be fetched."""
    task.cache.root.mkdir(parents=True, exist_ok=True)
    task.cache.make_room(size)
    free = shutil.disk_usage(task.cache.root).free
    if size > free:
        text = f"{task.found.place} has {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, text, str(task.cache.root))


def _get(task: _Task, file: tuple[str, Object], staging: Path) -> None:
    """Put one object into the cache and into a view."""
    name, item = file
    address = task.address(item)
    with task.cache.object_lock(address):
        place = task.cache.object(address)
        if not place.exists():
            partial = task.cache.partial(address)
            complete = download(task.client, task.found.place.bucket, item, partial)
            complete.chmod(0o444)  # views share it
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(complete, place)  # noqa: PTH105  (beside os.link of the cache)
            shutil.rmtree(partial, ignore_errors=True)
        task.cache.link(address, staging / name)
