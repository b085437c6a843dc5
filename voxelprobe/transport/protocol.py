"""What a source of objects is, how many requests at once are made of it, and what it counts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from voxelprobe.errors import TransportError, VoxelProbeError


class StoredObject(NamedTuple):
    """An object, or a range of one, as it is stored: `encoding` (gzip, br, …) not undone.

    `size` is that of the whole stored object in bytes, where a range was asked for and given, and the answer told; else
    None, also from a server without ranges, which sent the whole object to have the range cut out of it.
    """

    content: bytes
    encoding: str | None
    size: int | None = None


class Request(NamedTuple):
    """An object below a source's folder, or its bytes [start, end), or with a `start` of -n its last n bytes."""

    path: str
    start: int | None = None
    end: int | None = None

    @property
    def is_ranged(self) -> bool:
        """Return whether less than the whole may be wanted."""
        return self.start is not None or self.end is not None

    @property
    def is_empty(self) -> bool:
        """Return whether no byte is wanted, so that there is nothing to ask a store for."""
        return self.end is not None and self.end <= (self.start or 0)


class RetryableError(TransportError):
    """A failure that another try may mend.

    Attributes
    ----------
    wait_seconds
        What the server asked to wait (`Retry-After`), or None.
    """

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds

    def __reduce__(self) -> tuple[type[RetryableError], tuple[str, float | None]]:
        return (type(self), (str(self), self.wait_seconds))


Outcome = StoredObject | VoxelProbeError | None
"""What became of a request: what `Source.fetch` would return, or the error that it would raise."""


class Transfers(Protocol):
    """Requests under way at once. It belongs to one thread; how many there are is for that thread to bound."""

    def start(self, key: Any, request: Request) -> None:
        """Begin a request. It may be sent no earlier than in the next `wait`."""
        ...

    def wait(self, timeout_seconds: float | None) -> list[tuple[Any, Outcome]]:
        """Return what has ended since the last call, each with its key, in no order.

        If nothing has, wait for something, no longer than `timeout_seconds` (None: however long it takes; at once if
        nothing is under way).
        """
        ...

    def close(self) -> None:
        """Give up what is under way, and release threads and connections."""
        ...


class Source(Protocol):
    """A folder of objects. Implementations make one attempt; `fetch` may be called from several threads."""

    url: str

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object below the folder, or its bytes [start, end); None if there is no such object.

        A range that reaches past the object's end gives fewer bytes than were asked. A `start` of -n, with no `end`,
        asks for the last n bytes, which are all of a shorter object.

        Raises
        ------
        RetryableError
            If the store gave no answer, or one that another try may mend.
        AuthorizationError
            If the store refused us.
        TransportError
            If it failed in a way that no other try will mend.
        CorruptDataError
            If the bytes aren't those that the store says it sent.
        """
        ...

    def open_transfers(self, *, limit: int) -> Transfers:
        """Return what makes up to `limit` requests at once, in the way that costs least here."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


@dataclass(slots=True)
class Traffic:
    """Requests made, bytes received, and tries repeated; counted from several threads."""

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, requests: int = 0, received: int = 0, retries: int = 0) -> None:
        """Count."""
        with self._lock:
            self.requests += requests
            self.bytes += received
            self.retries += retries
