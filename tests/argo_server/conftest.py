from tests.argo_server.fixtures import argo_server, certificate, s3_server, serve  # noqa: F401
