"""A real object server on the loopback, which serves a folder as a bucket would, and fails when told to.

Objects stored as `NAME.gz`, `.br`, `.zstd`, `.xz` or `.bz2` are served as `NAME` with `Content-Encoding`, as a bucket
has them. The ETag is the MD5 of the stored bytes, also when a fault damages the body.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from voxelprobe.testing.faults import Fault, FaultPlan
from voxelprobe.testing.loopback import Served, parse_range, reset_connection

__all__ = ["Fault", "HttpStore", "Request"]

ENCODINGS = {".gz": "gzip", ".br": "br", ".zstd": "zstd", ".xz": "xz", ".bz2": "bzip2"}


class Request(NamedTuple):
    """What a client asked for: `path` is relative to the folder, `range` the header's text or None."""

    method: str
    path: str
    range: str | None


class HttpStore(Served):
    """Serve `folder` at `url` inside a `with` block.

    Parameters
    ----------
    ranges
        False: `Range` is ignored, as simple servers do, and the whole object comes with 200.
    content_encoding
        `Content-Encoding` of objects stored compressed under their own names; `info`, shards and objects of zero
        bytes are taken as plain.
    checksums
        Whether the MD5 comes as `Content-MD5` too, which says what it is; only right for whole objects.
    latency_seconds
        Waited before each answer; may be set at any time.
    require_basic_auth
        User and password without which every answer is 401.
    fault_for
        Asked at each request; where it returns None, the faults planned by `fail` are looked at.

    Attributes
    ----------
    requests
        Every `Request` so far, in order of arrival.
    bytes_sent
        Bytes of bodies.
    peak_in_flight
        The most requests that were being answered at one time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ranges: bool = True,
        content_encoding: str | None = None,
        checksums: bool = False,
        latency_seconds: float = 0.0,
        require_basic_auth: tuple[str, str] | None = None,
        fault_for: Callable[[Request], Fault | None] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.ranges = ranges
        self.content_encoding = content_encoding
        self.checksums = checksums
        self.latency_seconds = latency_seconds
        self.require_basic_auth = require_basic_auth
        self.fault_for = fault_for
        self.requests: list[Request] = []
        self.bytes_sent = self.peak_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._plan = FaultPlan()

    def fail(self, path: str, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Plan a fault for the next `times` requests of `path` after `skip` good ones; see `FaultPlan.add`."""
        self._plan.add(path, fault, times=times, skip=skip)

    def heal(self) -> None:
        """Forget every planned fault."""
        self._plan.clear()

    def clear(self) -> None:
        """Begin counting anew."""
        with self._lock:
            self.requests.clear()
            self.bytes_sent = self.peak_in_flight = 0

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return a handler that answers for this store."""
        return type("StoreHandler", (_Handler,), {"store": self})

    def begin(self, request: Request) -> Fault | None:
        """Count a request and return the fault that it meets."""
        with self._lock:
            self.requests.append(request)
            self._in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        chosen = self.fault_for(request) if self.fault_for is not None else None
        return chosen or self._plan.take(request.path)

    def count(self, *, ended: int = 0, sent: int = 0) -> None:
        """Count answered requests and the bytes of their bodies."""
        with self._lock:
            self._in_flight -= ended
            self.bytes_sent += sent

    def find(self, name: str) -> tuple[Path, str | None] | None:
        """Return the file that holds an object and its `Content-Encoding`, or None if there is no such object."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            return None
        if path.is_file():
            plain = path.name == "info" or path.suffix == ".shard" or path.stat().st_size == 0
            return path, None if plain else self.content_encoding
        for suffix, encoding in ENCODINGS.items():
            if (packed := path.with_name(path.name + suffix)).is_file():
                return packed, encoding
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # Head and body leave together; flushed after each answer.
    store: HttpStore

    def do_GET(self) -> None:
        self.ended = False
        name = unquote(urlsplit(self.path).path).lstrip("/")
        fault = self.store.begin(Request(self.command, name, self.headers.get("Range")))
        try:
            self._answer(name, fault)
        finally:
            self._end()
        self.wfile.flush()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _end(self) -> None:
        # Before the last bytes leave: a client that has them may look at the counters, or ask again elsewhere.
        if not self.ended:
            self.ended = True
            self.store.count(ended=1)

    def _answer(self, name: str, fault: Fault | None) -> None:
        stall = fault.seconds if fault and fault.kind == "stall" else 0.0
        if self.store.wait(self.store.latency_seconds + stall) or (fault and fault.kind == "reset"):
            reset_connection(self)
        elif fault and fault.kind == "status":
            retry = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self._send(fault.status, retry, f"planned fault {fault.status}\n".encode(), None)
        elif self.store.require_basic_auth and self.headers.get("Authorization") != _basic(
                self.store.require_basic_auth):
            self._send(401, {"WWW-Authenticate": 'Basic realm="volumes"'}, b"who are you?\n", None)
        elif (found := self.store.find(name)) is None:
            self._send(404, {}, b"no such object\n", None)
        else:
            self._send_object(*found, fault)

    def _send_object(self, path: Path, encoding: str | None, fault: Fault | None) -> None:
        size, modified_ns = path.stat().st_size, path.stat().st_mtime_ns
        digest = _md5(path, size, modified_ns)
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{digest.hex()}"'}
        if self.store.checksums:
            headers["Content-MD5"] = base64.b64encode(digest).decode()
        if encoding is not None:
            headers["Content-Encoding"] = encoding
        begin, end, status = 0, size, 200
        if self.store.ranges:
            headers["Accept-Ranges"] = "bytes"
            if (span := parse_range(self.headers.get("Range"), size)) is not None:
                begin, end = span
                if begin >= size:
                    self._send(416, {"Content-Range": f"bytes */{size}"}, b"", None)
                    return
                status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{size}"
        with path.open("rb") as file:
            file.seek(begin)
            self._send(status, headers, file.read(end - begin), fault)

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None) -> None:
        kind, half = fault.kind if fault else None, len(body) // 2
        if kind == "truncated":
            body = body[:half]
        elif kind == "flipped" and body:
            body = body[:half] + bytes([body[half] ^ 0xFF]) + body[half + 1:]
        self.send_response(status)
        said = half if kind == "wrong_length" else len(body)
        for name, value in (headers | {"Content-Length": str(said)}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("short_body", "stall_body"):
            self._write(body[:half])
            self.wfile.flush()
            if kind == "short_body":
                self.close_connection = True
                return
            if self.store.wait(fault.seconds if fault else 0.0):
                reset_connection(self)
                return
            body = body[half:]
        self._end()
        self._write(body)

    def _write(self, data: bytes) -> None:
        self.store.count(sent=len(data))
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        """Say nothing: `requests` is the record."""


@lru_cache(maxsize=4096)
def _md5(path: Path, size: int, modified_ns: int) -> bytes:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).digest()


def _basic(user_and_password: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(user_and_password).encode()).decode()
