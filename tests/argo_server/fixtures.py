"""pytest fixtures: import what a test module needs."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tests.argo_server.routes  # noqa: F401  (fills the tables)
from tests.argo_server.pods import Cluster
from tests.argo_server.server import ArgoServer
from tests.argo_server.storage import FolderStore, S3Store

ACCESS, SECRET = "stub-access", "stub-secret-key"
BUCKET = "dpaflow"
Serve = Callable[..., ArgoServer]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate for 127.0.0.1, its own authority, and its key, in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=2))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )  # fmt: skip
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem += key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(pem)
    return path


@pytest.fixture
def serve(tmp_path: Path, certificate: Path) -> Iterator[Serve]:
    """Function that starts a server: artifacts in a folder, or with `s3` on that S3 server."""
    servers: list[ArgoServer] = []

    def start(*, s3: str | None = None, tls: bool = False) -> ArgoServer:
        root = tmp_path / f"argo{len(servers)}"
        store = S3Store(s3, BUCKET, ACCESS, SECRET) if s3 else FolderStore(root / "bucket")
        secrets = {"dpaflow-s3": {"accessKey": ACCESS, "secretKey": SECRET}}
        servers.append(ArgoServer(Cluster(root, store, secrets), certificate, tls=tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def argo_server(serve: Serve) -> ArgoServer:
    """A server with artifacts in a folder."""
    return serve()


@pytest.fixture
def s3_server(moto_server: str) -> str:
    """Address of an S3 server with an empty bucket."""
    import boto3

    client = boto3.resource("s3", endpoint_url=moto_server, region_name="us-east-1",
                            aws_access_key_id=ACCESS, aws_secret_access_key=SECRET)  # fmt: skip
    bucket = client.Bucket(BUCKET)
    bucket.create()  # there already: all servers of moto in a process have the same buckets
    bucket.objects.delete()
    return moto_server
