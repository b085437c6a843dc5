"""What a source of objects is, and what it counts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

from voxelprobe.errors import TransportError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object, or a range of one, as it is stored: `encoding` (gzip, br, …) not undone."""

    content: bytes
    encoding: str | None


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


class Source(Protocol):
    """A folder of objects. Implementations make one attempt and may be called from several threads."""

    url: str

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object below the folder, or its bytes [start, end); None if there is no such object.

        A range that reaches past the object's end gives fewer bytes than were asked.

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
