"""A small HTTP server that answers as the Kubernetes API does, to look and to ask for rights.

Every object is checked against Kubernetes' own schema before it is served. Secrets hold data
here, and leave the server unless a request asks for metadata only, as with the real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kubernetes_validate

VERSION = "1.34"
PLURALS = {
    "Node": "nodes", "Namespace": "namespaces", "Secret": "secrets", "ConfigMap": "configmaps",
    "ServiceAccount": "serviceaccounts", "PersistentVolumeClaim": "persistentvolumeclaims",
    "ResourceQuota": "resourcequotas", "LimitRange": "limitranges",
    "PriorityClass": "priorityclasses",
}  # fmt: skip
REVIEWS = "/apis/authorization.k8s.io/v1/"
Answer = tuple[int, dict[str, Any]]


@contextmanager
def serving(
    answer: Callable[[BaseHTTPRequestHandler, Any], Answer], tls: Any = None
) -> Iterator[str]:
    """Serve on loopback; `answer(request, body)` returns (status, document)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # otherwise every answer waits 40 ms

        def handle_any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, document = answer(self, body)
            headers = document.pop("_headers", {})
            data = b"" if self.command == "HEAD" else json.dumps(document).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def refusal(status: int, reason: str, message: str) -> Answer:
    """Return an error as Kubernetes words it."""
    return status, {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                    "reason": reason, "code": status, "message": message}  # fmt: skip


_VALID: set[str] = set()


def _validate(document: dict[str, Any]) -> None:
    """Check against Kubernetes' schema; the same document only once, as it takes 0.1 s."""
    text = json.dumps(document, sort_keys=True)
    if text not in _VALID:
        kubernetes_validate.validate(document, VERSION, strict=True)
        _VALID.add(text)


class KubernetesAPI:
    """Objects, users and their rights.

    Attributes
    ----------
    tokens
        Token -> user.
    denied
        (user, verb, resource) that the access reviews refuse.
    forbidden
        Resources that may not be read at all.
    requests
        What was asked: (method, path, Accept).
    """

    def __init__(self, namespace: str, tokens: dict[str, str]) -> None:
        self.namespace, self.tokens = namespace, tokens
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.denied: set[tuple[str, str, str]] = set()
        self.forbidden: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        self.version = {"major": "1", "minor": "34", "gitVersion": "v1.34.2", "gitCommit": "",
                        "gitTreeState": "clean", "buildDate": "", "goVersion": "go1.24",
                        "compiler": "gc", "platform": "linux/amd64"}  # fmt: skip
        self.argo = True

    def put(self, item: dict[str, Any]) -> dict[str, Any]:
        """Keep an object; return it."""
        _validate(item)
        self.objects[PLURALS[item["kind"]], item["metadata"]["name"]] = item
        return item

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.objects[PLURALS[kind], name]

    def drop(self, kind: str, name: str) -> None:
        del self.objects[PLURALS[kind], name]

    def answer(self, request: BaseHTTPRequestHandler, body: Any) -> Answer:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Accept", "")))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.tokens.get(token)
        if user is None:
            return refusal(401, "Unauthorized", "Unauthorized")
        if path == "/version/":
            return 200, dict(self.version)
        if path.startswith("/apis/argoproj.io/v1alpha1"):
            found = {"kind": "APIResourceList", "apiVersion": "v1",
                     "groupVersion": "argoproj.io/v1alpha1", "resources": []}  # fmt: skip
            return (200, found) if self.argo else refusal(404, "NotFound", "not found")
        if request.command == "POST":
            return self._review(path, user, body)
        return self._read(path, request.headers.get("Accept", ""), user)

    def _review(self, path: str, user: str, body: dict[str, Any]) -> Answer:
        _validate(body)
        what = body["spec"]["resourceAttributes"]
        if path == f"{REVIEWS}selfsubjectaccessreviews":
            subject = user
        elif path == f"{REVIEWS}namespaces/{self.namespace}/localsubjectaccessreviews":
            if "localsubjectaccessreviews" in self.forbidden:
                return refusal(403, "Forbidden", f"User {user!r} cannot create resource")
            if body["metadata"]["namespace"] != what["namespace"]:
                return refusal(400, "BadRequest", "spec.resourceAttributes.namespace must match")
            subject = body["spec"]["user"]
        else:
            return refusal(404, "NotFound", path)
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        allowed = (subject, what["verb"], resource) not in self.denied
        review = {**body, "metadata": {}, "status": {"allowed": allowed}}
        _validate(review)
        return 201, review

    def _read(self, path: str, accept: str, user: str) -> Answer:
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[0] == "namespaces" and len(parts) > 2:
            if parts[1] != self.namespace:
                return refusal(404, "NotFound", f"namespaces {parts[1]!r} not found")
            parts = parts[2:]
        plural, name = parts[0], parts[1] if len(parts) > 1 else None
        if plural in self.forbidden:
            return refusal(403, "Forbidden", f"User {user!r} cannot get resource {plural!r}")
        if name is None:
            kind = next(kind for kind, known in PLURALS.items() if known == plural)
            items = [item for (known, _), item in self.objects.items() if known == plural]
            found = {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}
            for item in items:
                _validate(item)
            return 200, found
        item = self.objects.get((plural, name))
        if item is None:
            return refusal(404, "NotFound", f"{plural} {name!r} not found")
        _validate(item)
        if "as=PartialObjectMetadata" in accept:
            return 200, {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                         "metadata": item["metadata"]}  # fmt: skip
        return 200, item
