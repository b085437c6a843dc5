"""A threaded HTTP server on the loopback that ends at once, whatever its clients keep open."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class LoopbackServer(ThreadingHTTPServer):
    """A server of 127.0.0.1, on a port that the system chooses where none is named.

    Attributes
    ----------
    closing
        Set when the server ends: handlers wait on it instead of sleeping.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        self.closing = threading.Event()
        self._connections: dict[Any, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), handler)
        # Without a poll the end of a test would wait half a second.
        self._loop = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._loop.start()

    @property
    def url(self) -> str:
        """Return the server's address, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """End the server, its waits and what clients kept alive, so that no thread or socket is left."""
        self.closing.set()
        self.shutdown()
        self._loop.join()
        self.server_close()
        with self._lock:
            open_now = list(self._connections.items())
        for connection, _ in open_now:
            with contextlib.suppress(OSError):  # The client was quicker.
                connection.shutdown(socket.SHUT_RDWR)
        for _, thread in open_now:
            thread.join(5)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread that `stop` knows of."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, without a good-bye if `reset_connection` was called on it."""
        with self._lock:
            self._connections.pop(request, None)
        linger = request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        if struct.unpack("ii", linger)[0]:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is no concern of a test's output."""


class Served(ABC):
    """Something that is served on the loopback while its with block lasts.

    Attributes
    ----------
    port
        To serve at, set before the with block; 0 for one that the system chooses.
    """

    port: int = 0
    _server: LoopbackServer | None = None

    @abstractmethod
    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the handler that answers for this object."""

    @property
    def url(self) -> str:
        """Return the server's address, without a slash at the end."""
        assert self._server is not None, "served only inside the with block"
        return self._server.url

    def __enter__(self) -> Self:
        self._server = LoopbackServer(self.handler(), self.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = None

    def wait(self, seconds: float) -> bool:
        """Return after `seconds`, or True at once when the server closes."""
        server = self._server
        return server is None or (server.closing.wait(seconds) if seconds > 0 else server.closing.is_set())


def reset_connection(handler: BaseHTTPRequestHandler) -> None:
    """Make the end of a handler's connection a reset, and let it come now."""
    handler.close_connection = True
    # Lingering for no time at all: closing sends RST.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return begin and end of a single byte range, or None where the whole object is to be sent."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").replace(" ", ""))
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if first == "":
        return (max(0, size - int(last)), size) if int(last) > 0 else (size, size)
    if last != "" and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last != "" else size
