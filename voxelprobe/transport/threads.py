"""Requests in threads, for sources that can do but one at a time: buckets through cloud-files, slow disks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

from voxelprobe.errors import VoxelProbeError
from voxelprobe.transport.protocol import Outcome, Request, StoredObject

Fetch = Callable[[str, int | None, int | None], StoredObject | None]


class ThreadTransfers:
    """A thread a request."""

    def __init__(self, fetch: Fetch, *, limit: int) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix="fetch")
        self._ended: SimpleQueue[tuple[Any, Outcome, BaseException | None]] = SimpleQueue()
        self._under_way = 0

    def start(self, key: Any, request: Request) -> None:
        """Begin a request in a thread."""
        self._under_way += 1
        self._pool.submit(self._run, key, request)

    def wait(self, timeout_seconds: float | None) -> list[tuple[Any, Outcome]]:
        """Return what has ended since the last call; see `Transfers.wait`."""
        ended: list[tuple[Any, Outcome]] = []
        while self._under_way:
            try:
                key, outcome, unforeseen = self._ended.get(not ended, timeout_seconds)
            except Empty:
                break
            self._under_way -= 1
            if unforeseen is not None:
                raise unforeseen
            ended.append((key, outcome))
        return ended

    def close(self) -> None:
        """Wait for the requests that were sent, and forget the others."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, key: Any, request: Request) -> None:
        try:
            self._ended.put((key, self._fetch(*request), None))
        except VoxelProbeError as error:
            self._ended.put((key, error, None))
        except BaseException as error:
            self._ended.put((key, None, error))
