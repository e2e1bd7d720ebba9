"""What was fetched from S3, kept on this machine; all its processes share one cache.

    objects/AB/ADDRESS      content of one version of one object; the address is a hash of
                            server, key, size and ETag, so another version has another address
    views/HASH/...          what a URL meant at a time: hard links to objects, under their names
    views/HASH.lock         shared while a process uses the view; its time is the last use
    partial/ADDRESS/        a download that is not complete
    locks/ABC               held by who downloads or removes an object whose address begins so
    kernels/                compiled code (dpa_core.kernels.build), which has nothing to do with it

A view that is in use is never removed; an object is removed when no view has it any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dpa_core.cache import FOLDER, cache_folder
from dpa_core.errors import ConfigError

SIZE, DEFAULT_SIZE = "DPAFLOW_CACHE_SIZE", "50G"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Cache(NamedTuple):
    """A cache in the folder `root`."""

    root: Path

    @property
    def views(self) -> Path:
        """Folder of the views."""
        return self.root / "views"

    def object(self, address: str) -> Path:
        """Return where an object's content is kept."""
        return self.root / "objects" / address[:2] / address

    def partial(self, address: str) -> Path:
        """Return the folder of an unfinished download."""
        return self.root / "partial" / address

    @contextmanager
    def object_lock(self, address: str) -> Iterator[None]:
        """Keep other processes from downloading or removing an object."""
        with lock(self.root / "locks" / address[:3], fcntl.LOCK_EX):
            yield

    def hold(self, digest: str) -> Path:
        """Return the place of a view; until this process ends, nobody removes it."""
        place = self.views / digest
        path = place.with_suffix(".lock")
        _hold(path, os.getpid())
        os.utime(path)
        return place

    def add_view(self, digest: str, staging: Path) -> None:
        """Put a complete view in its place, where another process has not done so already."""
        try:
            staging.rename(self.views / digest)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staging)

    @contextmanager
    def staging(self, digest: str) -> Iterator[Path]:
        """Give a folder to build a view in; what is left of it is removed."""
        self.views.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{digest}.new-", dir=self.views))
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def link(self, address: str, target: Path) -> None:
        """Put an object into a view."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.object(address), target)
        except OSError as error:  # a file system without hard links
            if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENOSPC):
                raise
            shutil.copyfile(self.object(address), target)

    def make_room(self, needed: int, limit: int | None = None) -> None:
        """Remove what was not used for longest until the cache, and the disk, hold `needed` more.

        Parameters
        ----------
        needed
            Bytes.
        limit
            Size of the whole cache; $DPAFLOW_CACHE_SIZE when left out.
        """
        limit = size_limit(os.environ) if limit is None else limit
        for path in sorted(self._removable(), key=_last_use):
            free = shutil.disk_usage(self.root).free
            if self._used() + needed <= limit and needed <= free:
                return
            if path.parent == self.views:
                self._remove_view(path)
            else:
                with self._try(self.root / "locks" / path.name[:3]) as mine:
                    if mine:
                        shutil.rmtree(path, ignore_errors=True)
            self._remove_unused()

    def _removable(self) -> list[Path]:
        views = [path for path in self.views.glob("*.lock") if any(self._of(path))]
        return [*views, *(self.root / "partial").glob("*")]

    def _of(self, view_lock: Path) -> Iterator[Path]:
        """Yield a view, and what processes that were killed left of attempts to build it."""
        yield from (p for p in self.views.glob(f"{view_lock.stem}*") if p.is_dir())

    def _remove_view(self, view_lock: Path) -> None:
        with self._try(view_lock) as mine:
            for path in self._of(view_lock) if mine else ():
                shutil.rmtree(path, ignore_errors=True)

    def _remove_unused(self) -> None:
        for path in (self.root / "objects").glob("*/*"):
            if path.stat().st_nlink == 1:
                with self._try(self.root / "locks" / path.name[:3]) as mine:
                    if mine and path.exists() and path.stat().st_nlink == 1:
                        path.unlink()

    @contextmanager
    def _try(self, path: Path) -> Iterator[bool]:
        """Hold a lock, or find out that another one holds it."""
        try:
            with lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield True
        except BlockingIOError:
            yield False

    def _used(self) -> int:
        """Bytes on disk; a file with several names counts once."""
        sizes = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    stat = (Path(folder) / name).lstat()
                    sizes[stat.st_ino] = stat.st_blocks * 512
        return sum(sizes.values())


def open_cache(folder: Path | None, environment: Mapping[str, str] = os.environ) -> Cache:
    """Return the cache in `folder`, by default that of the environment."""
    return Cache((folder or cache_folder(environment)).expanduser().absolute())


def size_limit(environment: Mapping[str, str]) -> int:
    """Return the size in bytes that the environment allows.

    Raises
    ------
    ConfigError
        It is no size.
    """
    text = environment.get(SIZE) or DEFAULT_SIZE
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ConfigError(f"{SIZE}: {text!r} is no size; write 500M, 50G or 2T")
    return round(float(found[1]) * UNITS[found[2].upper()])


@contextmanager
def lock(path: Path, mode: int) -> Iterator[None]:
    """Hold a lock file; `mode` is one of `fcntl.flock`."""
    file = _open_locked(path, mode)
    try:
        yield
    finally:
        os.close(file)


def _open_locked(path: Path, mode: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, mode)
    except OSError as error:
        os.close(file)
        if error.errno in NO_LOCKS:
            raise ConfigError(
                f"{path.parent}: this file system has no file locks; set {FOLDER} to a folder on "
                "a disk of this machine"
            ) from error
        raise
    return file


@functools.cache
def _hold(path: Path, _process: int) -> int:
    """Share a lock until the process ends; a forked one takes its own."""
    return _open_locked(path, fcntl.LOCK_SH)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
