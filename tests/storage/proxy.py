"""A small HTTP proxy that stands before an S3 server and misbehaves at chosen requests."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

ERROR = (
    '<?xml version="1.0"?><Error><Code>{}</Code><Message>injected</Message></Error>'  # as S3 does
)
STATUS = {"InternalError": 500, "ServiceUnavailable": 503, "SlowDown": 503}
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect"}


class Asked(NamedTuple):
    """One request that arrived."""

    number: int
    method: str
    path: str
    range: str | None
    length: int
    if_match: str | None


class Proxy:
    """Forwards to a server; `plan` maps a request to a fault, None for none.

    Faults: a code of STATUS (an error instead of an answer), "refuse" (the connection is closed
    without an answer), "drop" (closed in the middle of the body), "short" (the server's length,
    half of the body, then an orderly end), "flip" (a byte of the body is another one), or a
    function called with the request before it is forwarded.
    """

    def __init__(self, target: str) -> None:
        self.host, _, port = target.removeprefix("http://").partition(":")
        self.port = int(port)
        self.plan: Callable[[Asked], object] = lambda asked: None
        self.asked: list[Asked] = []
        self.injected = 0
        self.sent = 0
        self.delay = 0.0
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()

            def log_message(self, *_: object) -> None:
                pass

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", lambda handler: proxy.handle(handler))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self, plan: Callable[[Asked], object] = lambda asked: None) -> None:
        self.plan, self.asked, self.injected, self.sent = plan, [], 0, 0

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        with self.lock:
            asked = Asked(len(self.asked), handler.command, handler.path,
                          handler.headers.get("Range"), length,
                          handler.headers.get("If-Match"))  # fmt: skip
            self.asked.append(asked)
        fault = self.plan(asked)
        if callable(fault):
            fault(asked)
            fault = None
        elif fault is not None:
            with self.lock:
                self.injected += 1
        if fault == "refuse":
            return self.close(handler)
        body = self.body(handler, length)
        if fault in STATUS:
            return self.answer(handler, STATUS[fault], [], ERROR.format(fault).encode(), None)
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in HOP}
        connection.request(handler.command, handler.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        kept = [(k, v) for k, v in response.getheaders() if k.lower() not in HOP]
        return self.answer(handler, response.status, kept, content, fault)

    @staticmethod
    def body(handler: BaseHTTPRequestHandler, length: int) -> bytes:
        if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return handler.rfile.read(length)
        parts = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)

    def answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: Sequence[tuple[str, str]],
        content: bytes,
        fault: object,
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or handler.command == "HEAD":
                handler.send_header(name, value)
        if handler.command != "HEAD":
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == "flip" and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        self.send(handler, content[: len(content) // 2] if fault in ("drop", "short") else content)
        if fault == "drop":
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )  # a reset instead of an orderly end
        if fault in ("drop", "short"):
            self.close(handler)

    def send(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        """Send slowly, if asked for, and count what was sent."""
        block = 32 * 2**10 if self.delay else len(content) or 1
        for start in range(0, len(content), block):
            part = content[start : start + block]
            handler.wfile.write(part)
            with self.lock:
                self.sent += len(part)
            if self.delay:
                threading.Event().wait(self.delay)

    @staticmethod
    def close(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)
        handler.connection.close()
