"""Fetching files, folders and patterns, and what the cache keeps."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from dpa_core.errors import ConfigError, DataError
from ops.storage import (
    content_url,
    fetch,
    is_url,
    listing,
    localize,
    signature,
    upload,
    upload_content,
    with_urls,
)
from ops.storage.cache import size_limit
from ops.storage.urls import parse
from tests.storage.helpers import Zygote, matches, put, random_bytes, read_files, write_files
from tests.storage.proxy import Proxy

FILES = {
    "type.raw": b"0 1\n",
    "empty": b"",
    "set.000/coord.npy": random_bytes(5000, 1),
    "set.000/odd name [1]*é.npy": random_bytes(300, 2),
}


def gets(proxy: Proxy) -> list[str]:
    return [a.path for a in proxy.asked if a.method == "GET" and "list-type" not in a.path]


def test_what_a_url_is() -> None:
    assert is_url("s3://b/k")
    assert is_url(Path("s3://b/k"))
    assert not any(map(is_url, ("/s3://b", "s3:/b", "b/k", Path("/a/s3:/b"), "http://a/b")))
    assert str(parse(Path("s3://b/k/x.xyz"))) == "s3://b/k/x.xyz"
    place = parse("s3://b/data/sys-*/set.0??/x")
    assert (place.key, place.pattern) == ("data", ("sys-*", "set.0??", "x"))
    for bad in ("s3://", "s3:///k", "s3://b//k", "s3://b/../k", "s3://b*/k", "/a"):
        with pytest.raises(ConfigError, match="s3://bucket/folder/name"):
            parse(bad)


def test_round_trip(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "data", FILES)
    upload(folder, f"s3://{bucket}/sets/water")
    found = fetch(f"s3://{bucket}/sets/water")
    assert found.name == "water"
    assert read_files(found) == FILES
    assert read_files(fetch(f"s3://{bucket}/sets/water/")) == FILES
    assert fetch(f"s3://{bucket}/sets/water/type.raw").read_bytes() == b"0 1\n"
    assert read_files(fetch(f"s3://{bucket}")) == {f"sets/water/{k}": v for k, v in FILES.items()}
    listed = {o.key.removeprefix("sets/water/"): o.size for o in listing(f"s3://{bucket}/sets")}
    assert listed == {name: len(content) for name, content in FILES.items()}
    puts = [a for a in proxy.asked if a.method == "PUT"]
    upload(folder, f"s3://{bucket}/sets/water")
    assert [a for a in proxy.asked if a.method == "PUT"] == puts  # all of it was there


def test_patterns(proxy: Proxy, s3: Any, bucket: str) -> None:
    files = {"a-1.xyz": b"1", "a-2.xyz": b"2", "b.xyz": b"3", ".a-9.xyz": b"9"}
    folders = {"sys-1/type.raw": b"0", "sys-2/set.000/x": b"x", "other/x": b"y"}
    put(s3, bucket, "d", {**files, **folders})

    def found(pattern: str) -> list[Path]:
        return matches(fetch(f"s3://{bucket}/d/{pattern}"))

    assert [path.name for path in found("a-*.xyz")] == ["a-1.xyz", "a-2.xyz"]
    assert len(found("*.xyz")) == 3
    one, two = found("sys-?")
    assert read_files(one) == {"type.raw": b"0"}
    assert read_files(two) == {"set.000/x": b"x"}
    assert [path.read_bytes() for path in found("*/x")] == [b"y"]
    with pytest.raises(DataError, match="nothing is there"):
        fetch(f"s3://{bucket}/d/*.npy")


def test_second_fetch_downloads_nothing(proxy: Proxy, s3: Any, bucket: str) -> None:
    put(s3, bucket, "d", FILES)
    first = fetch(f"s3://{bucket}/d")
    assert len(gets(proxy)) == 3  # the empty one needs no request
    assert fetch(f"s3://{bucket}/d") == first
    assert fetch(f"s3://{bucket}/d/type.raw").read_bytes() == b"0 1\n"
    assert len(gets(proxy)) == 3  # the empty one needs no request
    before = signature(f"s3://{bucket}/d")
    put(s3, bucket, "d", {"type.raw": b"1 0\n"})
    assert signature(f"s3://{bucket}/d") != before
    assert fetch(f"s3://{bucket}/d").joinpath("type.raw").read_bytes() == b"1 0\n"
    assert first.joinpath("type.raw").read_bytes() == b"0 1\n"
    assert gets(proxy)[3:] == [f"/{bucket}/d/type.raw"]


def test_messages_name_urls(proxy: Proxy, s3: Any, bucket: str, tmp_path: Path) -> None:
    """The user knows URLs, not the paths of their copies; both, alone and in a pattern."""
    del proxy, tmp_path
    put(s3, bucket, "d", {"a.xyz": b"1", "b.xyz": b"2"})
    one = localize(f"s3://{bucket}/d/a.xyz")
    assert with_urls(f"{one} frame 0: wrong") == f"s3://{bucket}/d/a.xyz frame 0: wrong"
    pattern = Path(localize(f"s3://{bucket}/d/*.xyz"))
    assert with_urls(f"{pattern}: none") == f"s3://{bucket}/d/*.xyz: none"
    assert with_urls(f"{pattern.parent}/b.xyz: wrong") == f"s3://{bucket}/d/b.xyz: wrong"
    assert with_urls("/elsewhere/b.xyz: wrong") == "/elsewhere/b.xyz: wrong"


def test_localize(proxy: Proxy, s3: Any, bucket: str, tmp_path: Path) -> None:
    assert localize("data/x") == "data/x"
    assert localize(tmp_path) == tmp_path
    put(s3, bucket, "d", {"a": b"1"})
    first = localize(f"s3://{bucket}/d/a")
    put(s3, bucket, "d", {"a": b"2"})
    assert localize(Path(f"s3://{bucket}/d/a")) == first  # one process sees one state


@pytest.mark.parametrize("key", ["d/../../etc/x", "d//x", "d/./x", "d/a\\b"])
def test_keys_that_lead_elsewhere(key: str, proxy: Proxy, bucket: str, s3: Any) -> None:
    proxy.reset()
    page = {"Contents": [{"Key": key, "Size": 1, "ETag": '"e"'}]}

    class Server:
        def get_paginator(self, _: str) -> Any:
            return self

        def paginate(self, **_: str) -> list:
            return [page]

    from ops.storage.lookup import _below

    with pytest.raises(DataError, match="no file can have this name"):
        list(_below(Server(), parse("s3://b/d"), "d"))


def test_nothing_there(proxy: Proxy, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="folder/", Body=b"")
    put(s3, bucket, "data", {"x": b""})
    for url in (f"s3://{bucket}/nix", f"s3://{bucket}/folder", f"s3://{bucket}/dat"):
        for call in (fetch, listing, signature):
            with pytest.raises(DataError, match=f"{url}: nothing is there; check bucket and name"):
                call(url)


def test_content_url(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    proxy.reset(lambda asked: "refuse")
    folder = write_files(tmp_path / "one" / "water", FILES)
    url = content_url(str(folder), bucket, "pre/fix")
    assert re.fullmatch(f"s3://{bucket}/pre/fix/inputs/[0-9a-f]{{16}}/water", url)
    os.utime(folder / "type.raw", (1, 1))
    write_files(tmp_path / "two" / "water", FILES)
    write_files(tmp_path / "two" / "water", {".DS_Store": b"x"})
    assert content_url(str(tmp_path / "two" / "water"), bucket, "pre/fix") == url
    (folder / "type.raw").write_bytes(b"1 0\n")
    assert content_url(str(folder), bucket, "pre/fix") != url
    with pytest.raises(DataError, match="no such file"):
        content_url(str(tmp_path / "nix*"), bucket, "p")
    assert not proxy.asked  # offline
    proxy.reset()
    (tmp_path / "a[1].xyz").write_bytes(b"a")
    patterns = (folder, folder / "type.raw", folder / "*", tmp_path / "*/water/set.*/*.npy",
                tmp_path / "a[1].xyz")  # fmt: skip
    for pattern in map(str, patterns):
        url = content_url(pattern, bucket, "p")
        upload_content(pattern, url)
        n = sum(a.method == "PUT" for a in proxy.asked)
        upload_content(pattern, url)
        assert sum(a.method == "PUT" for a in proxy.asked) == n
        here, there = matches(pattern), matches(fetch(url))
        assert here
        for a, b in zip(here, there, strict=True):
            assert (read_files(a) if a.is_dir() else a.read_bytes()) == (
                read_files(b) if b.is_dir() else b.read_bytes()
            )


def test_size_limit() -> None:
    assert size_limit({}) == 50 * 10**9
    assert [size_limit({"DPAFLOW_CACHE_SIZE": t}) for t in ("5000", "1.5 GB", "2TiB", "7m")] == [
        5000, 1_500_000_000, 2 * 10**12, 7_000_000,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="DPAFLOW_CACHE_SIZE: 'much' is no size"):
        size_limit({"DPAFLOW_CACHE_SIZE": "much"})


FETCH = "import sys; from ops.storage import fetch; fetch(argument)"


def test_eviction(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, workers: tuple[Zygote, Zygote]
) -> None:
    """The least recently used goes; what is in use stays, whatever its age."""
    size = 200_000
    put(s3, bucket, "d", {name: random_bytes(size, k) for k, name in enumerate("abcde")})
    cache = tmp_path / "cache"

    def there() -> set[str]:
        return {p.name for p in cache.glob("views/*/*") if p.is_file()}

    limit = {"DPAFLOW_CACHE_SIZE": str(3 * size + 100_000)}
    hold = (
        "import time; from ops.storage import fetch\n"
        "fetch(argument[0]); open(argument[1], 'w').close(); time.sleep(60)"
    )
    one, two = workers
    pid = one.start(hold, [f"s3://{bucket}/d/a", str(tmp_path / "held")], **limit)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    for name in "bc":
        assert two.run(FETCH, f"s3://{bucket}/d/{name}", **limit) == 0
    assert there() == {"a", "b", "c"}
    assert two.run(FETCH, f"s3://{bucket}/d/b", **limit) == 0  # c is now the oldest unused
    assert two.run(FETCH, f"s3://{bucket}/d/d", **limit) == 0
    assert there() == {"a", "b", "d"}
    os.kill(pid, 9)
    assert one.wait() == -9
    assert two.run(FETCH, f"s3://{bucket}/d/e", **limit) == 0
    assert there() == {"b", "d", "e"}
    assert len(list(cache.glob("objects/*/*"))) == 3
    assert all(p.stat().st_nlink == 2 for p in cache.glob("objects/*/*"))


def test_processes_share_downloads(
    proxy: Proxy, s3: Any, bucket: str, workers: tuple[Zygote, Zygote]
) -> None:
    """Two processes that want the same at once download it once, and all get it whole."""
    files = {f"f{k}": random_bytes(30_000, k) for k in range(12)}
    put(s3, bucket, "d", files)
    code = (
        "import json, sys; from ops.storage import fetch\n"
        "found = {p.name: p.read_bytes().hex() for p in fetch(argument[0]).iterdir()}\n"
        "assert found == json.load(open(argument[1]))"
    )
    expected = Path(os.environ["DPAFLOW_CACHE"]).parent / "expected.json"
    expected.write_text(json.dumps({k: v.hex() for k, v in files.items()}))
    proxy.delay = 0.002
    for worker in workers:
        worker.start(code, [f"s3://{bucket}/d", str(expected)])
    assert [worker.wait() for worker in workers] == [0, 0]
    assert sorted(gets(proxy)) == sorted(f"/{bucket}/d/{name}" for name in files)


def test_one_model_of_a_file(proxy: Proxy, s3: Any, bucket: str) -> None:
    """URL#NAME is a copy of URL with #NAME behind it, unless there is an object called so."""
    put(s3, bucket, "m", {"model.pt": b"many", "other#x": b"called so"})
    url = f"s3://{bucket}/m/model.pt"
    path = str(localize(f"{url}#Al"))
    assert path == f"{localize(url)}#Al"
    assert Path(path.removesuffix("#Al")).read_bytes() == b"many"
    assert with_urls(f"{path}: no branch") == f"{url}#Al: no branch"
    assert Path(localize(f"s3://{bucket}/m/other#x")).read_bytes() == b"called so"
    assert str(localize(Path(f"{url}#Cu"))).endswith("model.pt#Cu")
    before = signature(url)
    assert signature(f"{url}#Al") == before
    put(s3, bucket, "m", {"model.pt": b"more"})
    assert signature(f"{url}#Al") != before
    with pytest.raises(DataError, match=r"m/none\.pt: nothing is there"):
        localize(f"s3://{bucket}/m/none.pt#Al")
