"""URLs of the form s3://bucket/key, and what a pattern in them means."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import NamedTuple

from dpa_core.errors import ConfigError

SCHEME = "s3://"
MAGIC = re.compile(r"[*?\[]")


class Place(NamedTuple):
    """A bucket and what is meant in it.

    Attributes
    ----------
    bucket
        Name of the bucket.
    key
        The key up to the first part with a wildcard, without slashes at its ends.
    pattern
        The parts from there on; empty without a wildcard.
    """

    bucket: str
    key: str
    pattern: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Last part of the key; that of the bucket where there is none."""
        return self.key.rpartition("/")[2] or self.bucket

    def below(self, *parts: str) -> Place:
        """Return the place of something below this one."""
        return Place(self.bucket, "/".join(filter(None, (self.key, *parts))))

    def __str__(self) -> str:
        return SCHEME + "/".join(filter(None, (self.bucket, self.key, *self.pattern)))

    def matches(self, parts: tuple[str, ...]) -> bool:
        """Tell whether a path below `key` is one of those meant, or lies in one."""
        pairs = zip(parts, self.pattern)
        return len(parts) >= len(self.pattern) and all(_matches(*pair) for pair in pairs)


def _matches(name: str, pattern: str) -> bool:
    hidden = name.startswith(".") and not pattern.startswith(".")  # as in a shell
    return not hidden and fnmatch.fnmatchcase(name, pattern)


def is_url(path: str | Path) -> bool:
    """Tell whether a path is one of an object store: s3://bucket/key.

    A `Path` made of a URL has lost one of its slashes; it is still taken for one.
    """
    return as_url(path).startswith(SCHEME)


def is_outside(path: str | Path) -> bool:
    """Tell whether an input of a step comes from no other step: an absolute path or a URL."""
    return Path(path).is_absolute() or is_url(path)


def as_url(path: str | Path) -> str:
    """Return a path as text, a URL that was a `Path` with both of its slashes."""
    text = str(path)
    return re.sub(r"^s3:/(?=[^/])", SCHEME, text) if isinstance(path, Path) else text


def split_part(path: str | Path) -> tuple[str, str]:
    """Cut off what names one model in a local file: FILE#NAME is FILE and "#NAME".

    A file that is really called so comes first. A URL stays whole: only its server knows
    whether there is an object of that name, see `lookup.part_of`.
    """
    text = as_url(path)
    file, mark, name = text.rpartition("#")
    if not mark or is_url(text) or Path(text).exists() or not Path(file).is_file():
        return text, ""
    return file, mark + name


def parse(url: str | Path) -> Place:
    """Take a URL apart.

    Raises
    ------
    ConfigError
        If it names no bucket, or has empty parts.
    """
    text = as_url(url)
    if not text.startswith(SCHEME):
        raise ConfigError(f"{text}: expected a URL of the form s3://bucket/folder/name")
    bucket, *parts = text.removeprefix(SCHEME).rstrip("/").split("/")
    if not bucket or not all(parts) or MAGIC.search(bucket) or {".", ".."} & set(parts):
        raise ConfigError(f"{text}: not usable; write s3://bucket/folder/name, without empty parts")
    first = next((n for n, part in enumerate(parts) if MAGIC.search(part)), len(parts))
    return Place(bucket, "/".join(parts[:first]), tuple(parts[first:]))


def parse_target(url: str | Path) -> Place:
    """Take a URL apart that is written to.

    Raises
    ------
    ConfigError
        As for `parse`, or there are wildcards in it.
    """
    place = parse(url)
    if place.pattern:
        raise ConfigError(f"{place}: has wildcards, so nothing can be written there")
    return place
