"""Whether the bucket can be written and read from this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ops.storage import is_url
from ops.storage.client import error_code, explain
from workflows.backends.argo.preflight.steps import local_files
from workflows.backends.argo.scene import Scene
from workflows.doctor import Check
from workflows.schema import inline_templates
from workflows.schema_cluster import Storage
from workflows.schema_paths import map_paths


def check_bucket(scene: Scene) -> Iterator[Check]:
    """Write, read and delete a small object."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    storage = scene.cluster.storage
    name = f"bucket {storage.bucket}"
    quick = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 1})
    try:
        session = boto3.Session()
        if not _has_credentials(session):
            advice = ("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY here, or AWS_PROFILE "
                      "(docs/storage.md)")  # fmt: skip
            yield _without(scene, name, "no credentials for S3 on this machine", advice)
            return
        client = session.client(
            "s3", endpoint_url=endpoint(storage), config=quick, region_name=storage.region
        )
    except (BotoCoreError, ValueError) as error:
        advice = "look at AWS_PROFILE, AWS_ENDPOINT_URL and ~/.aws/config"
        yield Check(name, "error", f"S3 cannot be set up ({type(error).__name__})", advice)
        return
    yield _try(scene, name, client)


def endpoint(storage: Storage) -> str | None:
    """Return the server's address as seen from here, which may be another than pods see."""
    if "AWS_ENDPOINT_URL_S3" in os.environ or "AWS_ENDPOINT_URL" in os.environ:
        return None  # boto3 reads these itself
    return storage.endpoint


def _has_credentials(session: Any) -> bool:
    """Look for credentials; the address that only machines of a cloud have is not waited for."""
    session._session.set_config_variable("metadata_service_timeout", 1)
    session._session.set_config_variable("metadata_service_num_attempts", 1)
    return session.get_credentials() is not None


def _try(scene: Scene, name: str, client: Any) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    storage = scene.cluster.storage
    bucket, key = storage.bucket, f"{storage.prefix}/.check-{secrets.token_hex(8)}"
    text = secrets.token_bytes(64)
    where = client.meta.endpoint_url
    try:
        client.head_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=text)
        back = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        return Check(name, "error", _refused(f"s3://{bucket}", where, error, client))
    except BotoCoreError as error:
        return _unreachable(scene, name, where, error)
    if back != text:
        return Check(name, "error", f"{where}: other bytes came back", "ask who runs the server")
    return Check(name, "ok", f"{where}: written, read back, deleted")


def _refused(url: str, where: str, error: Any, client: Any) -> str:
    if error_code(error) == "404":  # the bucket was asked for, not an object
        return f"{url}: there is no such bucket at {where}; make it, or correct cluster.storage"
    return str(explain(error, url, client))


def _unreachable(scene: Scene, name: str, where: str, error: Exception) -> Check:
    parts = urlsplit(where)
    host = parts.hostname or ""
    if host.endswith((".svc", ".cluster.local")):
        service, _, rest = host.partition(".")
        space = rest.partition(".")[0] or scene.context.namespace
        port = parts.port or 80
        advice = (
            f"to reach it from here: kubectl -n {space} port-forward svc/{service} {port}:{port}  "
            f"and  export AWS_ENDPOINT_URL={parts.scheme}://localhost:{port}"
        )
        return _without(scene, name, f"{where} is an address within the cluster", advice)
    advice = "check cluster.storage.endpoint, or AWS_ENDPOINT_URL if it has another name here"
    return Check(name, "error", f"{where}: no connection ({type(error).__name__})", advice)


def _without(scene: Scene, name: str, found: str, advice: str) -> Check:
    """Judge storage out of reach: submit copies local files, and looks what s3:// paths hold."""
    files, urls = local_files(scene), _urls(scene)
    if files:
        found = f"{found}, but local files are to be copied to the bucket ({len(files)} paths)"
        return Check(name, "error", found, advice)
    if urls:
        found = f"{found}, but submit has to look at {urls[0]}"
        return Check(name, "error", found, advice)
    return Check(name, "unknown", found, f"the probe checks it from inside: --probe; {advice}")


def _urls(scene: Scene) -> list[str]:
    """Return the s3:// paths that the pipeline reads."""
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    if scene.pipeline is not None:
        map_paths(inline_templates(scene.pipeline), note)
    return [path for path in found if is_url(path)]
