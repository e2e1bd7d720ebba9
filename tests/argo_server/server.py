"""The HTTP interfaces of the Argo server and, for pods, of the Kubernetes API, on loopback."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.argo_server.engine import Conflict, Engine
from tests.argo_server.nodes import Node
from tests.argo_server.pods import Cluster
from tests.argo_server.validate import NotHere, Refused, check

NAMESPACE = "dpaflow"
VERSION = "v4.1.4"
NAME = r"([a-z0-9][-.a-z0-9]*)"
WORKFLOWS, ARCHIVED = f"/api/v1/workflows/{NAME}", "/api/v1/archived-workflows"
CUSTOM = f"/apis/argoproj.io/v1alpha1/namespaces/{NAME}/workflows"
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 501: 12, 503: 14}
"""gRPC code that the server puts beside an HTTP status."""
TYPES = {".html": "text/html; charset=utf-8", ".png": "image/png", ".json": "application/json"}


class Answer(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Request:
    """A request, and where its answer goes."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    token: str


@dataclass
class Trouble:
    """Trouble with the next requests whose "METHOD /path" matches.

    `status` is an HTTP status, or 0 for a connection that breaks: before the request is done,
    or with `late` after it.
    """

    status: int
    times: int = 1
    match: str = ""
    late: bool = False


class ArgoServer:
    """An Argo server for one namespace, with the Kubernetes API that its pods see.

    Parameters
    ----------
    cluster
        What pods find around them; the token of account "user" opens the server.
    certificate
        PEM file with key and certificate for 127.0.0.1; the Kubernetes API speaks TLS only.
    tls
        Whether the Argo server does, too.
    """

    def __init__(self, cluster: Cluster, certificate: Path, *, tls: bool = False) -> None:
        self.cluster, self.engine = cluster, Engine(cluster)
        self.requests: list[tuple[str, str, str]] = []
        """Method, path with query, and body of every request."""
        self.trouble: list[Trouble] = []
        self.namespace = NAMESPACE
        self.allowed = {"user": {"get", "list", "create", "update", "delete"},
                        "dpaflow-advance": {"get", "create"}}  # fmt: skip
        self.certificate = certificate
        cluster.accounts.setdefault("user", "token-of-the-user")
        cluster.accounts.setdefault("dpaflow-advance", "token-of-advance")
        cluster.authority = certificate.read_text().partition("-----BEGIN PRIVATE")[0]
        self._servers = [
            self._listen(tls=tls, routes=ARGO),
            self._listen(tls=True, routes=KUBERNETES),
        ]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._servers[0].server_address[1]}"
        cluster.environment |= {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._servers[1].server_address[1]),
        }

    @property
    def token(self) -> str:
        """Token that opens the server."""
        return self.cluster.accounts["user"]

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig of the user for the Kubernetes API."""
        port = self.cluster.environment["KUBERNETES_SERVICE_PORT"]
        authority = path.with_suffix(".crt")
        authority.write_text(self.cluster.authority)
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority)}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": self.token}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "user"}}],
        }  # fmt: skip
        path.write_text(json.dumps(document))
        return path

    def _listen(self, *, tls: bool, routes: Routes) -> ThreadingHTTPServer:
        handler = type("Handler", (Handler,), {"argo": self, "routes": routes})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            # the handshake belongs to the thread of the connection, not to the one that accepts
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def close(self) -> None:
        """End all workflows and stop listening."""
        self.engine.close()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def controller(self, namespace: str, name: str) -> Any:
        """Return a workflow that is there, 404 otherwise."""
        found = self.engine.workflows.get(name) if namespace == self.namespace else None
        if found is None:
            raise Answer(404, f'workflows.argoproj.io "{name}" not found')
        return found

    def require(self, request: Request, verb: str) -> None:
        """Refuse who has no token, or not the right."""
        account = next((a for a, t in self.cluster.accounts.items() if t == request.token), None)
        if account is None or not request.token:
            raise Answer(401, "token not valid. see "
                         "https://argo-workflows.readthedocs.io/en/latest/faq/")  # fmt: skip
        if verb not in self.allowed.get(account, ()):
            raise Answer(403, f'workflows.argoproj.io is forbidden: User "system:serviceaccount:'
                         f'{self.namespace}:{account}" cannot {verb} resource "workflows" in API '
                         f'group "argoproj.io" in the namespace "{self.namespace}"')  # fmt: skip


Route = Callable[..., Any]
Routes = dict[str, tuple[str, Route]]
ARGO: Routes = {}
KUBERNETES: Routes = {}


def route(table: Routes, method: str, pattern: str, verb: str = "") -> Callable[[Route], Route]:
    """Register a function for a path; `verb` is the right that it takes."""

    def register(function: Route) -> Route:
        table[f"{method} {pattern}"] = (verb, function)
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; `argo` and `routes` are given by subclasses."""

    protocol_version = "HTTP/1.1"
    argo: ArgoServer
    routes: Routes

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(size).decode()
        self.argo.requests.append((self.command, self.path, text))
        trouble = _next_trouble(self.argo, f"{self.command} {self.path}")
        if trouble is not None and not trouble.late:
            self._fail(trouble.status)
            return
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        bearer = self.headers.get("Authorization", "").partition(" ")[2].strip()
        request = Request(self.command, unquote(parts.path), query, _parsed(text), bearer)
        status, kind, content = _answer(self.argo, self.routes, request)
        if trouble is not None:
            self._fail(trouble.status)
        elif isinstance(content, bytes):
            self._head(status, kind, len(content))
            self.wfile.write(content)
        else:
            self._head(200, kind, None)
            for part in (*content, b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _head(self, status: int, kind: str, size: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if size is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _fail(self, status: int) -> None:
        self.close_connection = True
        if status:
            text = b"upstream connect error" if status != 500 else b'{"message": "etcd"}'
            self._head(status, "text/plain", len(text))
            self.wfile.write(text)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            super().handle()

    def log_message(self, *_: Any) -> None: ...


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return None


def _next_trouble(server: ArgoServer, line: str) -> Trouble | None:
    for trouble in server.trouble:
        if trouble.times > 0 and re.search(trouble.match, line):
            trouble.times -= 1
            return trouble
    return None


def _answer(server: ArgoServer, routes: Routes, request: Request) -> tuple[int, str, Any]:
    try:
        for key, (verb, function) in routes.items():
            method, _, pattern = key.partition(" ")
            match = re.fullmatch(pattern, request.path)
            if match is None or method != request.method:
                continue
            if request.body is None:
                raise Answer(400, "invalid character in the body: no JSON")
            server.require(request, verb)
            found = function(server, request, *match.groups())
            if isinstance(found, tuple):
                return 200, *found
            return 200, "application/json", json.dumps(found).encode()
        raise Answer(501, f"the stub has no {request.method} {request.path}")
    except Answer as error:
        status, message = error.status, str(error)
    except Refused as error:
        status, message = 400 if routes is ARGO else 422, str(error)
    except NotHere as error:
        status, message = 501, f"not in the stub: {error}"
    except Conflict as error:
        status, message = 409 if "exists" in str(error) else 400, str(error)
    document: dict[str, Any] = {"code": CODES.get(status, 2), "message": message}
    if routes is KUBERNETES:
        document = {"kind": "Status", "status": "Failure", "code": status, "message": message}
    return status, "application/json", json.dumps(document).encode()


def accepted(server: ArgoServer, workflow: Node, namespace: str) -> Node:
    """Check a workflow and start it."""
    if namespace != server.namespace:
        raise Answer(403, f'cannot create workflows in the namespace "{namespace}"')
    check(workflow)
    return server.engine.create(workflow)


def selected(server: ArgoServer, selector: str) -> list[Node]:
    """Return workflows with labels such as "a=b,c!=d,e", newest first, archived ones too."""
    live = [c.snapshot() for c in list(server.engine.workflows.values())]
    uids = {item["metadata"]["uid"] for item in live}
    found = live + [w for uid, w in server.engine.archive.items() if uid not in uids]
    for term in filter(None, selector.split(",")):
        name, operation, value = re.fullmatch(r"([^=!]+)(!=|==?)?(.*)", term).groups()
        if operation is None:
            found = [w for w in found if name in w["metadata"]["labels"]]
        else:
            wanted = operation != "!="
            found = [w for w in found if (w["metadata"]["labels"].get(name) == value) is wanted]
    return sorted(found, key=lambda w: w["metadata"]["creationTimestamp"], reverse=True)


def cleaned(document: Any, fields: str) -> Any:
    """Keep the fields "a.b,c", or with a minus in front drop them; lists are looked into."""
    exclude, wanted = fields.startswith("-"), fields.removeprefix("-").split(",")

    def visit(value: Any, place: str) -> Any:
        if isinstance(value, list):
            return [visit(item, place) for item in value]
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, item in value.items():
            spot = f"{place}.{name}".strip(".")
            if spot in wanted:
                if not exclude:
                    kept[name] = item
            elif exclude or any(w.startswith(f"{spot}.") for w in wanted):
                kept[name] = visit(item, spot)
        return kept

    return visit(document, "") if fields else document
