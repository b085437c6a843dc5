"""A source for any cloudpath, with retries and counters."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from voxelprobe.errors import CorruptDataError, TransportError, VoxelProbeError
from voxelprobe.locations import Location
from voxelprobe.transport.addresses import parse_address
from voxelprobe.transport.cloud import CloudFilesSource
from voxelprobe.transport.gcs import GcsSource
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.local import LocalSource
from voxelprobe.transport.protocol import Outcome, Request, RetryableError, Source, StoredObject, Traffic, Transfers
from voxelprobe.transport.s3 import S3Source
from voxelprobe.transport.wrappers import strip_compression

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 30.0

logger = logging.getLogger(__name__)


def wait_after(error: RetryableError, attempt: int, attempts: int = ATTEMPTS) -> float:
    """Return the seconds to wait after a failed attempt, counted from 1, of so many.

    Raises
    ------
    TransportError
        If there are to be no more.
    """
    if attempt == attempts:
        raise TransportError(f"{error} (tried {attempt} times)") from error
    wait = min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS)
    # Jitter keeps many requests from coming back at the same moment.
    wait *= random.uniform(0.5, 1.0)  # noqa: S311 (not for secrets)
    if error.wait_seconds is not None:
        wait = max(wait, min(error.wait_seconds, LONGEST_WAIT_SECONDS))
    logger.debug("%s; trying again in %.1f s", error, wait)
    return wait


class RetryingSource:
    """A source that repeats what another try may mend, with growing and jittered waits.

    Attributes
    ----------
    traffic
        What it has asked for and received so far.
    """

    def __init__(
        self, source: Source, *, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = source.url
        self.traffic = Traffic()
        self._source = source
        self._attempts = attempts
        self._sleep = sleep

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object or a range of it, or None; see `Source.fetch`."""
        for attempt in itertools.count(1):
            self.traffic.add(requests=1)
            try:
                answer = self._source.fetch(path, start, end)
            except RetryableError as error:
                self._sleep(self.wait_after(error, attempt))
            else:
                self.traffic.add(received=len(answer.content) if answer else 0)
                return answer
        raise AssertionError("the last attempt returns or raises")

    def wait_after(self, error: RetryableError, attempt: int) -> float:
        """Return the seconds to wait after a failed attempt, counted from 1; see `wait_after`."""
        wait = wait_after(error, attempt, self._attempts)
        self.traffic.add(retries=1)
        return wait

    def open_transfers(self, *, limit: int) -> RetryingTransfers:
        """Return what makes up to `limit` requests at once, each repeated as by `fetch`."""
        return RetryingTransfers(self, self._source.open_transfers(limit=limit))

    def fetch_stripped(self, path: str) -> bytes | None:
        """Return a whole object with its compression undone, or None if there is none.

        A body that contradicts its compression's checks is fetched once more: it may have been
        damaged on the way.

        Raises
        ------
        CorruptDataError
            If it does so twice.
        """
        for last in (False, True):
            answer = self.fetch(path)
            if answer is None:
                return None
            try:
                return bytes(strip_compression(answer.content, answer.encoding))
            except CorruptDataError:
                if last:
                    raise
                self.traffic.add(retries=1)
        raise AssertionError("the second round returns or raises")

    def close(self) -> None:
        """Release connections."""
        self._source.close()


class RetryingTransfers:
    """Requests of a `RetryingSource` under way at once; one that waits for its next try counts as under way."""

    def __init__(self, source: RetryingSource, transfers: Transfers) -> None:
        self._source = source
        self._transfers = transfers
        self._sent = 0
        # When, and a number that settles ties; then the key, the request, and the attempts so far.
        self._waiting: list[tuple[float, int, Any, Request, int]] = []
        self._numbers = itertools.count()

    def start(self, key: Any, request: Request) -> None:
        """Begin a request; see `Transfers.start`."""
        self._send(key, request, 1)

    def wait(self, timeout_seconds: float | None) -> list[tuple[Any, Outcome]]:
        """Return what has ended for good since the last call; see `Transfers.wait`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self._waiting:
                until_due = max(0.0, self._send_due() - time.monotonic())
                left = until_due if left is None else min(left, until_due)
            if self._waiting and not self._sent:
                time.sleep(left or 0.0)
            ended = self._take_ended(left)
            idle = not self._sent and not self._waiting
            if ended or idle or (deadline is not None and time.monotonic() >= deadline):
                return ended

    def close(self) -> None:
        """Give up what is under way."""
        self._transfers.close()

    def _send(self, key: Any, request: Request, attempt: int) -> None:
        self._source.traffic.add(requests=1)
        self._sent += 1
        self._transfers.start((key, request, attempt), request)

    def _send_due(self) -> float:
        """Send again what has waited long enough, and return when the next will have."""
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, key, request, attempt = heapq.heappop(self._waiting)
            self._send(key, request, attempt)
        return self._waiting[0][0] if self._waiting else now + LONGEST_WAIT_SECONDS

    def _take_ended(self, timeout_seconds: float | None) -> list[tuple[Any, Outcome]]:
        ended: list[tuple[Any, Outcome]] = []
        for sent, answer in self._transfers.wait(timeout_seconds):
            self._sent -= 1
            key, request, attempt = sent  # the key that `_send` made
            outcome = answer
            if isinstance(answer, RetryableError):
                try:
                    due = time.monotonic() + self._source.wait_after(answer, attempt)
                except VoxelProbeError as error:
                    outcome = error
                else:
                    heapq.heappush(self._waiting, (due, next(self._numbers), key, request, attempt + 1))
                    continue
            elif isinstance(answer, StoredObject):
                self._source.traffic.add(received=len(answer.content))
            ended.append((key, outcome))
        return ended


def open_source(
    location: Location, *, threads: int, attempts: int = ATTEMPTS, named_by_user: bool = True
) -> RetryingSource:
    """Return the source that serves a location best; where a request takes a thread, it is for at most `threads`.

    Parameters
    ----------
    named_by_user
        False for a location that is from the metadata of somebody else; see `HttpSource`.

    Raises
    ------
    InputError
        If nothing serves its scheme.
    AuthorizationError
        If its secret can't be understood.
    """
    return RetryingSource(_open_single(location, threads, named_by_user), attempts=attempts)


def _open_single(location: Location, threads: int, named_by_user: bool) -> Source:
    if location.path is not None:
        return LocalSource(location.path)
    if location.url.startswith(("http://", "https://")):
        return HttpSource(location.url, named_by_user=named_by_user)
    if location.url.startswith("mem://"):
        return CloudFilesSource(location.url, threads=threads)
    address = parse_address(location.url)
    if address.protocol == "s3":
        return S3Source(location.url, address, named_by_user=named_by_user)
    if address.protocol == "gs":
        return GcsSource(location.url, address)
    if address.protocol in ("http", "https"):  # an alias for a web server
        return HttpSource(f"{address.endpoint}/{address.folder}")
    return CloudFilesSource(location.url, threads=threads)
