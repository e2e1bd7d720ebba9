"""One HTTP request to an Argo server through its Python client, and what can go wrong with it.

The client's models are those of Argo 3.0; what is sent and received here is plain JSON, which
all versions understand.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from dpa_core.errors import DPAError
from workflows.backends.argo.context import Context

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two packets of an answer."""
WAITS = (0.5, 2.0, 5.0)
"""Seconds before the second, third and fourth attempt."""
TRANSIENT = (429, 500, 502, 503, 504)
"""What a server or proxy answers that is just starting, or has too much to do."""
MAX_TEXT = 400
"""Characters of a server's own message that are quoted."""

log = logging.getLogger(__name__)


class ServerError(DPAError):
    """The Argo server cannot be reached, refuses or fails.

    Attributes
    ----------
    status
        HTTP status of the answer, 0 without one.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Transport:
    """Sends requests to one server, with retries, and says in words what went wrong.

    Parameters
    ----------
    context
        The server and who asks.
    """

    def __init__(self, context: Context) -> None:
        import urllib3
        from argo.workflows.client import ApiClient, Configuration

        self.context = context
        settings = Configuration(host=context.server)
        settings.verify_ssl = context.verify
        settings.ssl_ca_cert = str(context.ca_file) if context.ca_file else None
        # retries are ours; a redirect leads to a login page, not to an answer
        settings.retries = urllib3.Retry(0, redirect=0, raise_on_redirect=False)
        if not context.verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            log.warning("the certificate of %s is not checked (verify: false)", context.server)
        if context.ca_file and not context.ca_file.is_file():
            raise ServerError(f"ca_file {context.ca_file}: no such file; it holds the certificates "
                              f"that {context.server} is checked with")  # fmt: skip
        self._api = ApiClient(settings)

    def json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON object that the server answers.

        Raises
        ------
        ServerError
            If there is no answer, or none that an Argo server gives.
        """
        response = self.stream(method, path, query, body)
        data = response.read()
        response.release_conn()
        try:
            found = json.loads(data or b"{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self._not_argo(response)
        return found

    def stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> BaseHTTPResponse:
        """Return the answer before its content is read; see `json`."""
        for wait in (*WAITS, None):
            try:
                return self._once(method, path, query, body)
            except ServerError as error:
                if wait is None or error.status not in (0, *TRANSIENT) or _is_final(error):
                    raise
                log.debug("%s %s: %s; trying again in %g s", method, path, error, wait)
            time.sleep(wait)
        raise AssertionError  # the last attempt returns or raises

    def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
    ) -> BaseHTTPResponse:
        import urllib3
        from argo.workflows.client import ApiException

        token = self.context.bearer()
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            response: BaseHTTPResponse = self._api.call_api(
                path, method, query_params=list((query or {}).items()), header_params=headers,
                body=body, _preload_content=False, _request_timeout=TIMEOUT,
                _return_http_data_only=True,
            )  # fmt: skip
        except ApiException as error:
            self._refused(error)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerError(self._unreachable(error)) from error
        if "html" in response.headers.get("Content-Type", "") and path.startswith("/api/"):
            self._not_argo(response)
        return response

    def _refused(self, error: Any) -> NoReturn:
        """Translate an answer that is not 2xx."""
        status, server = int(error.status or 0), self.context.server
        text = _message(error.body)
        location = str((error.headers or {}).get("Location", ""))
        namespace = self.context.namespace
        if 300 <= status < 400:
            raise ServerError(f"{server} sends us on to {location.partition('?')[0]}: that is a "
                              "login page or another address; set `server` to the address of the "
                              "Argo server itself", status)  # fmt: skip
        if status == 400 and "HTTPS server" in text:
            raise ServerError(f"{server} wants https; set server: "
                              f"{server.replace('http://', 'https://')}", status)  # fmt: skip
        if status == 401:
            raise ServerError(
                f"{server}: {self._token()}. Put one into the environment variable ARGO_TOKEN "
                f"or the file `token_file`, e.g. export ARGO_TOKEN=$(kubectl -n {namespace} create "
                "token dpaflow-user); your administrator knows whose token you may use", status,
            )  # fmt: skip
        if status == 403:
            raise ServerError(
                f"{server}: your token may not do this in namespace {namespace}: {text}. Ask your "
                "administrator for the role, or set another `namespace`", status,
            )  # fmt: skip
        if status == 404 and "namespaces" in text:
            raise ServerError(
                f"{server}: there is no namespace {namespace}; set `namespace`, or create it: "
                f"kubectl create namespace {namespace}", status,
            )  # fmt: skip
        raise ServerError(f"{server} answers {status}: {text or error.reason}", status)

    def _token(self) -> str:
        """Say what is wrong with the token that was sent, and where it is from."""
        context = self.context
        if context.bearer() is None:
            return "the token is missing"
        source = "ARGO_TOKEN" if context.token is not None else context.token_file
        return f"the token is not accepted (that of {source}; expired?)"

    def _not_argo(self, response: BaseHTTPResponse) -> NoReturn:
        kind = response.headers.get("Content-Type", "nothing known")
        response.close()
        raise ServerError(
            f"{self.context.server} answers, but not as an Argo server does ({kind}): most often "
            "the login page of a proxy. Set `server` to the address of the Argo server itself, "
            "or forward its port: kubectl -n argo port-forward svc/argo-server 2746:2746",
            response.status,
        )

    def _unreachable(self, error: Exception) -> str:
        """Say what a failure below HTTP means, and what to do."""
        server, text = self.context.server, str(getattr(error, "reason", None) or error)
        if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
            return (
                f"{server}: its certificate is not trusted. Name the certificate of whoever signed "
                "it (ca_file: PATH); for a server behind `kubectl port-forward` on your own "
                "machine, verify: false will do"
            )
        if "NO_CERTIFICATE" in text or "X509" in text:
            return f"{server}: ca_file {self.context.ca_file} holds no certificate (PEM)"
        if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
            return f"{server} does not speak https; set server: {server.replace('https', 'http')}"
        if "SSL" in text:
            return f"{server}: no secure connection: {text[:MAX_TEXT]}"
        if "Name or service not known" in text or "resolve" in text or "getaddrinfo" in text:
            return f"{server}: no such host; check `server` in the context file, or ARGO_SERVER"
        if "refused" in text:
            return (
                f"no Argo server answers at {server} (connection refused). If it is in a cluster: "
                "kubectl -n argo port-forward svc/argo-server 2746:2746 in another terminal; else "
                "set `server` in the context file, or ARGO_SERVER"
            )
        if "timed out" in text:
            return f"{server} does not answer in time; is it up, is there a firewall between?"
        hint = "; if it speaks https, set server: https://..." if "http://" in server else ""
        return f"{server}: the connection broke: {text[:MAX_TEXT]}{hint}"


def _is_final(error: ServerError) -> bool:
    """Return whether trying again cannot help although nothing answered."""
    told = ("certificate", "does not speak https", "no such host", "connection refused",
            "no secure connection")  # fmt: skip
    return error.status == 0 and any(text in str(error) for text in told)


def _message(body: Any) -> str:
    """Return the message in the body of an error."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        found = json.loads(text)
        text = str(found.get("message") or found.get("error") or text)
    except (ValueError, AttributeError):
        pass
    if "<html" in text.lower():
        return "a page of HTML"
    return " ".join(text.split())[:MAX_TEXT]
