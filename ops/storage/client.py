"""The connection to an S3 server, and its errors in plain words."""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from dpa_core.errors import ConfigError, DataError

ATTEMPTS = 6
"""Of every request; the pauses between them grow to 16 s."""
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
CONNECTIONS = 32
PAUSE = 0.5
"""Seconds before the second attempt to read a body."""

Item = TypeVar("Item")

BAD_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "TokenRefreshRequired", "ExpiredTokenException", "UnrecognizedClientException",
    "InvalidClientTokenId",
}  # fmt: skip
DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
OTHER_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed"}
MISSING = {"404", "NoSuchKey", "NotFound"}
NO_HEAD = {*MISSING, "301", "400", "403"}
"""Answers to HEAD that may mean anything: they have no text."""


class StorageError(OSError):
    """The server did not answer as it should, however often it was asked; later it may."""


class Unreachable(ConfigError):
    """No connection: the address may be wrong, or the network or the server down for a while."""


class Changed(Exception):
    """An object is no longer the one that was listed."""


def connect() -> Any:
    """Return an S3 client made by boto3's own rules for endpoint, region and credentials.

    Raises
    ------
    ConfigError
        If these settings cannot be used.
    """
    settings = ((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))
    return _client(os.getpid(), tuple(sorted(settings)))


@functools.lru_cache(maxsize=4)
def _client(_process: int, _settings: tuple[tuple[str, str], ...]) -> Any:
    """Make a client: that takes longer than a request, and one serves all threads."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, PartialCredentialsError

    config = Config(
        # mode standard stops trying when many of a client's requests have failed before, as those
        # for the thousands of files of a data set may
        retries={"mode": "legacy", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
    except PartialCredentialsError:
        raise ConfigError("S3: of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set; set "
                          "both (docs/storage.md)") from None  # fmt: skip
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"S3: the connection is not set up ({type(error).__name__}); look at AWS_PROFILE, "
            "AWS_REGION and AWS_ENDPOINT_URL, which starts with http:// or https://, or at "
            "~/.aws/config"
        ) from None  # the reason may quote an address with a password in it
    if "@" in client.meta.endpoint_url:
        raise ConfigError(
            "S3: the endpoint holds a user name or password; give them as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and the address alone as AWS_ENDPOINT_URL"
        )
    return client


@contextmanager
def plain_errors(url: str, client: Any = None) -> Iterator[None]:
    """Turn what boto3 raises within into a ConfigError, DataError or StorageError."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except S3UploadFailedError as error:
        cause = error.__cause__ or error.__context__ or error
        raise explain(cause, url, client) from cause
    except (BotoCoreError, ClientError) as error:
        raise explain(error, url, client) from error


def explain(error: BaseException, url: str, client: Any = None) -> Exception:
    """Return the error to raise for one of boto3; it holds no text of the server's.

    Servers put keys and signatures into their messages.
    """
    from botocore import exceptions as known

    credentials = (
        known.NoCredentialsError, known.PartialCredentialsError, known.CredentialRetrievalError,
        known.TokenRetrievalError, known.SSOError, known.MetadataRetrievalError,
    )  # fmt: skip
    unreachable = (
        known.EndpointConnectionError, known.ConnectTimeoutError, known.SSLError,
        known.ProxyConnectionError,
    )  # fmt: skip
    where = "the server" if client is None else client.meta.endpoint_url
    if isinstance(error, known.ClientError):
        return _explain_code(error, url, where)
    if isinstance(error, credentials):
        return ConfigError(
            f"{url}: no credentials for S3 were found; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile of ~/.aws (docs/storage.md)"
        )
    if isinstance(error, unreachable):
        return Unreachable(
            f"{url}: no connection to {where} ({type(error).__name__}); check AWS_ENDPOINT_URL, "
            "your network, proxy (HTTPS_PROXY) and certificates (AWS_CA_BUNDLE)"
        )
    if isinstance(error, known.ParamValidationError):
        return ConfigError(f"{url}: no bucket or key can have this name; check the URL")
    return StorageError(f"{url}: {where} broke off ({type(error).__name__}); try again later")


def _explain_code(error: Any, url: str, where: str) -> Exception:
    code = error_code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in BAD_CREDENTIALS:
        return ConfigError(
            f"{url}: {where} does not accept the credentials ({code}); check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or log in again"
        )
    if code == "RequestTimeTooSkewed":
        return ConfigError(f"{url}: the clock of this machine is wrong, so {where} refuses it")
    if code == "NoSuchBucket":
        return ConfigError(
            f"{url}: there is no such bucket at {where}; check its name, AWS_ENDPOINT_URL and "
            "AWS_REGION, or have it made"
        )
    if code in OTHER_REGION:
        return ConfigError(f"{url}: the bucket is in another region; set AWS_REGION")
    if code in MISSING:
        return DataError(f"{url}: there is nothing at {where}; check bucket and name")
    if code == "InvalidObjectState":
        return DataError(f"{url}: it is archived; restore it first")
    if code in DENIED or status == 403:
        return ConfigError(
            f"{url}: access denied by {where}; ask the owner of the bucket for s3:GetObject and "
            "s3:ListBucket (and s3:PutObject to write), or use other credentials"
        )
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return StorageError(f"{url}: {where} answers {code} after {ATTEMPTS} attempts; try later")
    return ConfigError(f"{url}: {where} refuses the request ({code})")


def error_code(error: Any) -> str:
    """Return the server's code of a ClientError, such as NoSuchKey."""
    return str(error.response.get("Error", {}).get("Code", ""))


def stream_errors() -> tuple[type[Exception], ...]:
    """Return what is raised when the body of an answer breaks off or is damaged."""
    from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError

    return HTTPClientError, IncompleteReadError, FlexibleChecksumError, ConnectionError


def pause(failures: int) -> None:
    """Wait before another attempt: longer each time, never all processes at once."""
    time.sleep(random.uniform(0.5, 1.0) * min(20.0, PAUSE * 2.0**failures))


def read_small(client: Any, bucket: str, key: str) -> bytes:
    """Return the content of a small object."""
    for failures in range(ATTEMPTS):
        try:
            body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except stream_errors():
            if failures == ATTEMPTS - 1:
                raise
            pause(failures)
        else:
            return body
    raise AssertionError


def in_parallel(function: Callable[[Item], object], items: Iterable[Item], threads: int) -> None:
    """Call a function on every item; the first error ends it, and is raised."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
