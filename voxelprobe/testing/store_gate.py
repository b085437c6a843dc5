"""A proxy on the loopback before an object store's own server: it records every request, and fails when told to."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from voxelprobe.testing.loopback import Served, reset_connection

Verdict = Literal["pass", "refuse", "throttle", "reset", "stall", "flip", "short"]

_ERRORS = {"refuse": (403, "AccessDenied"), "throttle": (503, "SlowDown")}
_STALL_SECONDS = 600.0
_HOP_FIELDS = ("connection", "transfer-encoding", "content-length", "keep-alive", "expect")


class Request(NamedTuple):
    """What a client asked for: `path` unquoted, with the bucket, and the query; its fields, and how much it sent."""

    method: str
    path: str
    query: str
    fields: dict[str, str]
    size: int


class StoreGate(Served):
    """Stand before the server at `address` (`host:port`) inside a `with` block.

    Parameters
    ----------
    address
        Of the server that answers.

    Attributes
    ----------
    requests
        Every `Request` so far, in order of arrival, those that failed here too.
    judge
        Asked before a request is passed on; None: all pass. It may also do something of its own, as ending a process.
        `stall`: no answer; `flip`: with the byte in the middle of the body inverted; `short`: half of the body.
    see
        Told of a request that was answered, before the client is.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[Request] = []
        self.judge: Callable[[Request], Verdict] | None = None
        self.see: Callable[[Request], None] | None = None
        self._lock = threading.Lock()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return a handler that passes on for this gate."""
        return type("GateHandler", (_Handler,), {"gate": self})

    def writes(self) -> list[Request]:
        """Return the requests that change something, in order of arrival."""
        return [request for request in self.requests if request.method not in ("GET", "HEAD")]

    def clear(self) -> None:
        """Begin recording anew, and let all pass."""
        with self._lock:
            self.requests, self.judge, self.see = [], None, None

    def begin(self, request: Request) -> Verdict:
        """Record a request, and return what is to become of it."""
        with self._lock:
            self.requests.append(request)
            return self.judge(request) if self.judge is not None else "pass"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    gate: StoreGate

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        url = urlsplit(self.path)
        fields = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(url.path), url.query, fields, size)
        verdict = self.gate.begin(request)
        if verdict == "reset" or (verdict == "stall" and self.gate.wait(_STALL_SECONDS)):
            self.rfile.read(size // 2)
            reset_connection(self)
            return
        body = self.rfile.read(size)
        if verdict in _ERRORS:
            status, code = _ERRORS[verdict]
            said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self._send(status, {"Content-Type": "application/xml"}, said)
            return
        server = http.client.HTTPConnection(self.gate.address, timeout=60)
        try:
            server.request(self.command, self.path, body, {name: value for name, value in self.headers.items()
                                                           if name.lower() not in _HOP_FIELDS})
            answer = server.getresponse()
            content = answer.read()
            if self.gate.see is not None:
                self.gate.see(request)
            sent = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_FIELDS}
            half = len(content) // 2
            if verdict == "flip" and content:
                content = content[:half] + bytes([content[half] ^ 0xFF]) + content[half + 1 :]
            self._send(answer.status, sent, content, answer.getheader("Content-Length"), cut=verdict == "short")
        finally:
            server.close()

    def handle_expect_100(self) -> bool:
        """Let the body come at once: clients wait a second for this word, which else lies in our buffer."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 (names of the base class)

    def _send(self, status: int, fields: dict[str, str], content: bytes, length: str | None = None, *,
              cut: bool = False) -> None:
        self.send_response_only(status)
        said = length if self.command == "HEAD" and length is not None else str(len(content))
        for name, value in (fields | {"Content-Length": said}).items():
            self.send_header(name, value)
        self.end_headers()
        if cut:
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        """Say nothing: `requests` is the record."""
