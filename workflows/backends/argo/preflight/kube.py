"""The Kubernetes API, as far as a kubeconfig at hand allows; nothing is changed there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from dpa_core.errors import ConfigError

if TYPE_CHECKING:
    from workflows.backends.argo.context import Context

TIMEOUT = (5, 20)
"""Seconds to connect, and to wait for an answer."""
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class NotAllowed(Exception):
    """What this user of Kubernetes may not ask; the text is that of the server."""


class KubeError(Exception):
    """Kubernetes does not answer, or not sensibly; the text says why."""


class Kube(NamedTuple):
    """A connection.

    Attributes
    ----------
    client
        `kubernetes.client.ApiClient`.
    namespace
        Where the workflows run.
    """

    client: Any
    namespace: str

    @property
    def host(self) -> str:
        """Address of the API server."""
        return str(self.client.configuration.host)

    @property
    def core(self) -> Any:
        """Nodes, secrets, volumes, ..."""
        from kubernetes.client import CoreV1Api

        return CoreV1Api(self.client)

    def with_token(self, token: str) -> Kube:
        """Return the same server, asked as the owner of another token."""
        from kubernetes.client import ApiClient, Configuration

        old, new = self.client.configuration, Configuration()
        new.host, new.ssl_ca_cert, new.verify_ssl = old.host, old.ssl_ca_cert, old.verify_ssl
        new.proxy, new.no_proxy, new.retries = old.proxy, old.no_proxy, False
        new.api_key = {"authorization": f"Bearer {token.removeprefix('Bearer ')}"}
        return self._replace(client=ApiClient(new))

    def metadata(self) -> Any:
        """Return the core API for names and labels only: a Secret arrives without its data."""
        from kubernetes.client import ApiClient, CoreV1Api

        client = ApiClient(self.client.configuration)
        client.set_default_header("Accept", METADATA_ONLY)
        return CoreV1Api(client)


def connect(context: Context) -> Kube | None:
    """Connect as kubectl would; None where there is no kubeconfig.

    Raises
    ------
    ConfigError
        If the kubeconfig named in the context file is of no use.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    path = None if context.kubeconfig is None else str(context.kubeconfig)
    try:
        config.load_kube_config(
            path, context.kube_context, client_configuration=settings, persist_config=False
        )
    except (config.ConfigException, OSError) as error:
        if context.kubeconfig is None and context.kube_context is None:
            return None
        named = f"kubeconfig {path or 'default'}, kube_context {context.kube_context or 'current'}"
        raise ConfigError(f"{named}: {error}; correct these keys of the context file, or leave "
                          "them out") from error  # fmt: skip
    settings.client_side_validation = (
        False  # a newer server may send what this client does not know
    )
    settings.retries = False
    return Kube(client.ApiClient(settings), context.namespace)


def ask(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a method of a `kubernetes.client` API; None means that there is no such object.

    Raises
    ------
    NotAllowed
        If this user may not ask.
    KubeError
        If there is no answer, or an error.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return call(*arguments, **options, _request_timeout=TIMEOUT)
    except ApiException as error:
        if error.status == 404:
            return None
        if error.status in (401, 403):
            raise NotAllowed(_message(error)) from error
        raise KubeError(f"HTTP {error.status}: {_message(error)}") from error
    except HTTPError as error:
        raise KubeError(str(getattr(error, "reason", None) or error)) from error


def _message(error: Any) -> str:
    """Return what the server said about an error, its headers left out."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
