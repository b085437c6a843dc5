"""A source for any cloudpath, with retries and counters."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from voxelprobe.errors import CorruptDataError, TransportError
from voxelprobe.locations import Location
from voxelprobe.transport.cloud import CloudFilesSource
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.local import LocalSource
from voxelprobe.transport.protocol import RetryableError, Source, StoredObject, Traffic
from voxelprobe.transport.wrappers import strip_compression

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 30.0

logger = logging.getLogger(__name__)


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
        for attempt in range(1, self._attempts + 1):
            self.traffic.add(requests=1)
            try:
                answer = self._source.fetch(path, start, end)
            except RetryableError as error:
                if attempt == self._attempts:
                    raise TransportError(f"{error} (tried {attempt} times)") from error
                wait = min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS)
                # Jitter keeps many threads from coming back at the same moment.
                wait *= random.uniform(0.5, 1.0)  # noqa: S311 (not for secrets)
                if error.wait_seconds is not None:
                    wait = max(wait, min(error.wait_seconds, LONGEST_WAIT_SECONDS))
                logger.debug("%s; trying again in %.1f s", error, wait)
                self.traffic.add(retries=1)
                self._sleep(wait)
            else:
                self.traffic.add(received=len(answer.content) if answer else 0)
                return answer
        raise AssertionError("the last attempt returns or raises")

    def fetch_stripped(self, path: str, *, max_bytes: int | None = None) -> bytes | None:
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
                return strip_compression(answer.content, answer.encoding, max_bytes=max_bytes)
            except CorruptDataError:
                if last:
                    raise
                self.traffic.add(retries=1)
        raise AssertionError("the second round returns or raises")

    def close(self) -> None:
        """Release connections."""
        self._source.close()


def open_source(location: Location, *, threads: int, attempts: int = ATTEMPTS) -> RetryingSource:
    """Return the source that serves a location best.

    Raises
    ------
    InputError
        If nothing serves its scheme.
    """
    if location.path is not None:
        return RetryingSource(LocalSource(location.path), attempts=attempts)
    if location.url.startswith(("http://", "https://")):
        return RetryingSource(HttpSource(location.url, threads=threads), attempts=attempts)
    return RetryingSource(CloudFilesSource(location.url, threads=threads), attempts=attempts)
