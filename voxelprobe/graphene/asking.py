"""Many ids in requests of bearable size: a few at once, halved and repeated as the server's answers want it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import UInt64
from voxelprobe.errors import TransportError
from voxelprobe.graphene.refusals import SilentError, TooLargeError
from voxelprobe.transport.protocol import RetryableError

# Two minutes in all: as long as a server takes to be replaced.
ATTEMPTS = 10
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 300.0
# So many requests in a row pass before a size that was too large is tried again.
GROW_AFTER = 32

Answers = npt.NDArray[Any]
Sleep = Callable[[float], object]
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


def with_retries(call: Callable[[], _Result], *, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep) -> _Result:
    """Return what a call returns, repeating it with growing waits where another try may mend a failure."""
    for attempt in range(1, attempts):
        try:
            return call()
        except RetryableError as error:
            _wait(error, attempt, sleep)
    try:
        return call()
    except RetryableError as error:
        raise TransportError(f"{error} (tried {attempts} times)") from error


def ask_in_batches(
    ids: UInt64,
    ask: Callable[[UInt64], Answers],
    *,
    dtype: npt.DTypeLike,
    batch_size: int,
    concurrency: int,
    attempts: int = ATTEMPTS,
    on_batch: Callable[[int, UInt64, Answers], None] | None = None,
    sleep: Sleep | None = None,
) -> Answers:
    """Return the answer for each id, in the ids' order; see `resolve_roots` for the parameters.

    The first failure that no other try mends ends the work: requests under way are waited for, and
    what they bring still goes to `on_batch`.
    """
    answers: Answers = np.zeros(len(ids), dtype)
    if not len(ids):
        return answers
    asker = _Asker(ask, batch_size, attempts, sleep)
    failures: dict[int, Exception] = {}
    under_way: dict[Future[tuple[Answers, Exception | None]], int] = {}
    begins = iter(range(0, len(ids), batch_size))
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="resolve")
    try:
        while True:
            # No further ahead than the threads are: what isn't with `on_batch` yet would be lost by a kill.
            for begin in islice(begins, 0 if asker.stop.is_set() else concurrency - len(under_way)):
                under_way[pool.submit(asker.answer_batch, ids[begin : begin + batch_size])] = begin
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                begin = under_way.pop(future)
                part, failure = future.result()
                if failure is not None:
                    failures[begin] = failure
                answers[begin : begin + len(part)] = part
                if on_batch is not None and len(part):
                    on_batch(begin, ids[begin : begin + len(part)], part)
    finally:
        asker.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    if failures:
        raise failures[min(failures)]
    return answers


class _Asker:
    """Asks for batches from several threads, with requests as large as the server is known to manage."""

    def __init__(self, ask: Callable[[UInt64], Answers], batch_size: int, attempts: int, sleep: Sleep | None) -> None:
        self.stop = threading.Event()
        self._ask = ask
        self._batch_size = batch_size
        self._attempts = attempts
        self._sleep = sleep or self.stop.wait
        self._lock = threading.Lock()
        self._largest = batch_size
        self._passed = 0

    def answer_batch(self, ids: UInt64) -> tuple[Answers, Exception | None]:
        """Return the answers for the first of the ids, and what kept the rest from being answered."""
        answers: list[Answers] = []
        done, failed, size = 0, 0, self._batch_size
        failure: Exception | None = None
        while done < len(ids) and failure is None and not self.stop.is_set():
            piece = ids[done : done + min(size, self._largest)]
            try:
                answer = self._ask(piece)
                if len(answer) != len(piece):
                    raise TransportError(f"expected an answer for each of {len(piece)} ids, found {len(answer)}")
            except RetryableError as error:
                halved = isinstance(error, TooLargeError) and len(piece) > 1
                if halved:
                    size = len(piece) // 2
                    self._shrink(size)
                # Each silence costs the whole timeout: down to a single id they would cost hours.
                if halved and not isinstance(error, SilentError):
                    _wait(error, 1, self._sleep)
                    continue
                failed += 1
                if failed < self._attempts:
                    _wait(error, failed, self._sleep)
                    continue
                failure = TransportError(f"{error} (tried {failed} times)")
                failure.__cause__ = error
            except Exception as error:
                failure = error
            else:
                answers.append(answer)
                done, failed, size = done + len(piece), 0, self._batch_size
                self._grow()
        if failure is not None:
            self.stop.set()
        return np.concatenate(answers) if answers else np.empty(0), failure

    def _shrink(self, size: int) -> None:
        with self._lock:
            self._largest, self._passed = min(self._largest, size), 0

    def _grow(self) -> None:
        # A server that was busy gets larger requests again; one that refuses them does so now and then.
        with self._lock:
            self._passed += 1
            if self._passed >= GROW_AFTER:
                self._largest, self._passed = min(self._batch_size, 2 * self._largest), 0


def _wait(error: RetryableError, failed: int, sleep: Sleep) -> None:
    # Jitter keeps many threads and workers from coming back at the same moment.
    seconds = min(FIRST_WAIT_SECONDS * 2 ** (failed - 1), LONGEST_WAIT_SECONDS)
    seconds *= random.uniform(0.5, 1.0)  # noqa: S311 (not for secrets)
    if error.wait_seconds is not None:
        seconds = max(seconds, min(error.wait_seconds, LONGEST_RETRY_AFTER_SECONDS))
    logger.debug("%s; asking again in %.1f s", error, seconds)
    sleep(seconds)
