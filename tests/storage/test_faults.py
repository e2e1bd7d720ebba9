"""A server and a network that fail: nothing is lost, nothing is mixed, everything is said."""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpa_core.errors import ConfigError, DataError
from ops.storage import StorageError, fetch, upload
from ops.storage.downloads import expected
from ops.storage.lookup import Object
from tests.storage.conftest import SECRET
from tests.storage.helpers import (
    Zygote,
    fresh_cache,
    put,
    random_bytes,
    read_files,
    small_chunks,
    write_files,
)
from tests.storage.proxy import Asked, Proxy

FILES = {
    "type.raw": b"0 1\n",
    "set.000/coord.npy": random_bytes(30_000, 1),
    "set.000/force.npy": random_bytes(30_000, 2),
    "large": random_bytes(200_000, 3),  # four chunks
}
FAULTS = ("InternalError", "ServiceUnavailable", "SlowDown", "refuse", "drop", "short", "flip")


def some(step: int, offset: int, fault: str) -> Callable[[Asked], str | None]:
    """Let every `step`-th of all different requests fail twice; damaged answers come once."""
    seen: dict[tuple, int] = {}
    tries: Counter[tuple] = Counter()

    def plan(asked: Asked) -> str | None:
        key = (asked.method, asked.path, asked.range)
        number = seen.setdefault(key, len(seen))
        tries[key] += 1
        most = 1 if fault == "flip" else 2
        return fault if number % step == offset and tries[key] <= most else None

    return plan


def compare_download(proxy: Proxy, url: str, cache: Path, plan: Any) -> int:
    """Fetch under faults, and return how many there were."""
    proxy.reset(plan)
    assert read_files(fetch(url, cache)) == FILES
    return proxy.injected


def test_download_survives_faults(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other request fails, in every way, whichever half."""
    small_chunks(monkeypatch)
    write_files(tmp_path / "data", FILES)
    upload(tmp_path / "data", f"s3://{bucket}/d")
    cases = injected = 0
    for fault, offset in itertools.product(FAULTS, range(2)):
        cache = fresh_cache(tmp_path, f"{fault}-{offset}")
        injected += compare_download(proxy, f"s3://{bucket}/d", cache, some(2, offset, fault))
        cases += 1
    assert cases == 14
    assert injected > 100


@pytest.mark.slow
def test_download_survives_a_fault_at_every_request(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    write_files(tmp_path / "data", FILES)
    upload(tmp_path / "data", f"s3://{bucket}/d")
    compare_download(proxy, f"s3://{bucket}/d", fresh_cache(tmp_path, "clean"), lambda _: None)
    requests = len(proxy.asked)
    cases = injected = 0
    for fault, number, length in itertools.product(FAULTS, range(requests), (1, 3)):
        if fault == "flip":  # what arrives damaged three times is an error
            length = min(length, 2)
        cache = fresh_cache(tmp_path, cases)
        end = number + length

        def plan(asked: Asked, f: str = fault, n: int = number, e: int = end) -> str | None:
            return f if n <= asked.number < e else None

        injected += compare_download(proxy, f"s3://{bucket}/d", cache, plan)
        cases += 1
    assert cases == len(FAULTS) * requests * 2
    assert injected >= cases * 3 // 2


def test_upload_survives_faults(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / "data", FILES)
    injected = 0
    for number, (fault, offset) in enumerate(itertools.product(FAULTS[:4], range(2))):
        proxy.reset(some(2, offset, fault))
        upload(folder, f"s3://{bucket}/{number}")
        injected += proxy.injected
        for name, content in FILES.items():
            answer = s3.get_object(Bucket=bucket, Key=f"{number}/{name}")
            assert answer["Body"].read() == content
    assert injected >= 2 * 4 * 2 * len(FILES)


def test_upload_in_parts_survives_faults(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ops.storage import uploads

    monkeypatch.setattr(uploads, "PART", 5 * 2**20)
    content = random_bytes(12 * 2**20, 4)
    (tmp_path / "huge").write_bytes(content)
    faults = itertools.cycle(FAULTS[:4])
    plan = some(1, 0, "")
    proxy.reset(lambda asked: None if plan(asked) is None else next(faults))
    upload(tmp_path / "huge", f"s3://{bucket}/huge")
    assert proxy.injected >= 2 * (1 + 1 + 3 + 1)  # look, begin, three parts, complete
    answer = s3.get_object(Bucket=bucket, Key="huge")
    assert answer["ETag"].endswith('-3"')
    assert answer["Body"].read() == content


def test_gives_up_and_goes_on(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is down for good is an error to try again after; the rest is asked for then."""
    small_chunks(monkeypatch)
    content = random_bytes(1_000_000, 6)
    put(s3, bucket, "d", {"large": content})
    proxy.reset(lambda _: "refuse" if proxy.sent > 100_000 else None)
    with pytest.raises(StorageError, match=f"s3://{bucket}/d/large.*goes on from here"):
        fetch(f"s3://{bucket}/d/large")
    (progress,) = Path(os.environ["DPAFLOW_CACHE"]).glob("partial/*/progress")
    arrived = _counted(progress)
    assert arrived >= 100_000
    proxy.reset()
    assert fetch(f"s3://{bucket}/d/large").read_bytes() == content
    assert sum(_length(a.range) for a in proxy.asked if a.range) == 1_000_000 - arrived


def test_object_replaced_in_the_middle(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever request the data are replaced: all old or all new, never of both."""
    small_chunks(monkeypatch)
    sizes = {name: len(content) for name, content in FILES.items()}
    versions = [
        {name: random_bytes(size, 10 * k + n) for n, (name, size) in enumerate(sizes.items())}
        for k in range(2)
    ]
    seen = {0: 0, 1: 0}
    for number in range(1, 14, 2):
        put(s3, bucket, "d", versions[0])

        def replace(asked: Asked) -> None:
            put(s3, bucket, "d", versions[1])

        proxy.reset(lambda a, n=number, r=replace: r if a.number == n else None)
        found = read_files(fetch(f"s3://{bucket}/d", fresh_cache(tmp_path, number)))
        assert found in versions
        seen[versions.index(found)] += 1
    assert seen[1] >= 5
    put(s3, bucket, "d", versions[0])
    seeds = itertools.count(100)  # none of versions[0], whose chunks would still fit
    proxy.reset(
        lambda a: (
            (lambda _: put(s3, bucket, "d", {"large": random_bytes(200_000, next(seeds))}))
            if a.range
            else None
        )
    )
    # An empty cache: the last one may hold versions[0] already, and nothing would be read.
    with pytest.raises(DataError, match="changed 6 times while it was being read"):
        fetch(f"s3://{bucket}/d", fresh_cache(tmp_path, "changing"))


def test_every_byte_asked_for_with_the_etag(
    proxy: Proxy, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    put(s3, bucket, "d", FILES)
    fetch(f"s3://{bucket}/d")
    asked = [a for a in proxy.asked if a.method == "GET" and "list-type" not in a.path]
    assert len(asked) == 3 + 4
    assert all(a.if_match for a in asked)


def test_damaged_on_the_server(proxy: Proxy, s3: Any, bucket: str) -> None:
    """Our checksum is compared even where the server sees nothing wrong."""
    from ops.storage.downloads import SHA256

    s3.put_object(Bucket=bucket, Key="x", Body=b"abc", Metadata={SHA256: "0" * 64})
    with pytest.raises(DataError, match=f"s3://{bucket}/x: the content does not have its checksum"):
        fetch(f"s3://{bucket}/x")


@pytest.mark.parametrize(
    ("head", "etag", "found"),
    [
        ({}, '"900150983cd24fb0d6963f7d28e17f72"', ("md5", "900150983cd24fb0d6963f7d28e17f72")),
        ({}, '"900150983cd24fb0d6963f7d28e17f72-2"', ("", "")),
        ({"ServerSideEncryption": "aws:kms"}, '"900150983cd24fb0d6963f7d28e17f72"', ("", "")),
        ({"ChecksumCRC32": "NSRBwg=="}, '"e-2"', ("crc32", "352441c2")),
        ({"ChecksumCRC32": "NSRBwg==", "ChecksumType": "COMPOSITE"}, '"e-2"', ("", "")),
        ({"Metadata": {"dpaflow-sha256": "a" * 64}}, '"e"', ("sha256", "a" * 64)),
    ],
)
def test_which_checksum(head: dict, etag: str, found: tuple[str, str], tmp_path: Path) -> None:
    from ops.storage.downloads import digest

    assert expected(head, Object("k", 3, etag)) == found
    (tmp_path / "x").write_bytes(b"abc")
    if found[0] in ("md5", "crc32"):
        assert digest(tmp_path / "x", found[0]) == found[1]


FETCH = "from ops.storage import fetch; fetch(argument)"


def test_killed_download_goes_on(
    proxy: Proxy, s3: Any, bucket: str, workers: tuple[Zygote, Zygote]
) -> None:
    """kill -9 in the middle, three times; no byte that had arrived is asked for again."""
    size, block = 4_000_000, 128 * 2**10
    content = random_bytes(size, 5)
    put(s3, bucket, "d", {"large": content})
    worker = workers[0]
    worker.constants = {"CHUNK": 2**20}
    url, arrived = f"s3://{bucket}/d/large", 0
    for kill in range(3):
        proxy.reset()
        proxy.delay = 0.01
        pid = worker.start(FETCH, url)
        while proxy.sent < 600_000:
            time.sleep(0.002)
        os.kill(pid, 9)
        assert worker.wait() == -9
        wanted = sum(_length(a.range) for a in proxy.asked if a.range)
        assert wanted <= size - arrived
        (progress,) = Path(os.environ["DPAFLOW_CACHE"]).glob("partial/*/progress")
        before, arrived = arrived, _counted(progress)
        # what was sent has arrived, but for a block of each of the four chunks and the sockets
        assert arrived > before + 600_000 - 4 * (block + 64 * 2**10) or kill
    proxy.delay = 0
    proxy.reset()
    assert worker.run(FETCH, url) == 0
    assert sum(_length(a.range) for a in proxy.asked if a.range) == size - arrived
    assert fetch(url).read_bytes() == content


def _length(header: str) -> int:
    start, end = header.removeprefix("bytes=").split("-")
    return int(end) - int(start) + 1


def _counted(progress: Path) -> int:
    import numpy as np

    return int(np.fromfile(progress, dtype=np.int64).sum())


def refused(proxy: Proxy, code: str, status: int) -> Any:
    from tests.storage import proxy as module

    module.STATUS[code] = status
    return lambda asked: code


@pytest.mark.parametrize(
    ("code", "status", "kind", "text"),
    [
        ("InvalidAccessKeyId", 403, ConfigError, "does not accept the credentials"),
        ("SignatureDoesNotMatch", 403, ConfigError, "check AWS_ACCESS_KEY_ID"),
        ("ExpiredToken", 400, ConfigError, "does not accept the credentials"),
        ("AccessDenied", 403, ConfigError, "access denied .* s3:GetObject"),
        ("NoSuchBucket", 404, ConfigError, "no such bucket .* AWS_ENDPOINT_URL"),
        ("PermanentRedirect", 301, ConfigError, "another region; set AWS_REGION"),
        ("RequestTimeTooSkewed", 403, ConfigError, "the clock of this machine is wrong"),
        ("SlowDown", 503, StorageError, "answers .* after 6 attempts; try later"),
        ("Whatever", 400, ConfigError, r"refuses the request \(Whatever\)"),
    ],
)
def test_refusals_in_plain_words(
    code: str, status: int, kind: type, text: str, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for call in (fetch, lambda url: upload(tmp_path / "x", url)):
        proxy.reset(refused(proxy, code, status))
        if code == "PermanentRedirect":  # boto3 itself follows that of a HEAD
            proxy.reset(lambda asked: code if asked.method != "HEAD" else "AccessDenied")
        with pytest.raises(kind, match=f"s3://{bucket}/x: .*{text}") as caught:
            call(f"s3://{bucket}/x")
        _holds_no_secret(caught.value)


def test_no_credentials(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="no credentials for S3 were found; set AWS_ACCESS_KEY"):
        fetch("s3://bucket/x")


def test_unreachable(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        ConfigError, match=r"s3://bucket/x: no connection to http://127\.0\.0\.1:9 "
    ):
        fetch("s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(ConfigError, match="the endpoint holds a user name or password") as caught:
        fetch("s3://bucket/x")
    _holds_no_secret(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(ConfigError, match="which starts with http"):
        fetch("s3://bucket/x")
    monkeypatch.setenv("AWS_PROFILE", "nix")
    with pytest.raises(ConfigError, match="look at AWS_PROFILE"):
        fetch("s3://bucket/x")


def test_which_failures_may_go_away() -> None:
    from ops.run import classify
    from ops.storage import Unreachable

    assert classify(StorageError("busy"))[0] == "transient"
    assert classify(Unreachable("no connection"))[0] == "transient"
    assert classify(ConfigError("denied"))[0] == "config"
    assert classify(DataError("nothing"))[0] == "config"


def _holds_no_secret(error: BaseException) -> None:
    """Neither the message nor the traceback of --debug."""
    assert "planted" not in str(error)
    assert SECRET not in "".join(traceback.format_exception(error))
