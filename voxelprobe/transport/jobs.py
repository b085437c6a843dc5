"""Many jobs of a few requests each, at once and in the calling thread.

A job is a generator: it yields the requests that it needs answered, is sent their answers, and returns its results and
the jobs that come of them. While it waits it costs no thread.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from voxelprobe.errors import VoxelProbeError
from voxelprobe.transport.protocol import Outcome, Request, StoredObject
from voxelprobe.transport.sources import RetryingTransfers

# Bytes asked for that no job has taken yet: what bounds memory where chunks are large.
MAX_BYTES_UNDER_WAY = 64 << 20
# How many answers are worked on before the connections are looked after again.
ANSWERS_A_TURN = 8

Answer = StoredObject | None
Result = TypeVar("Result")


@dataclass(slots=True)
class Done(Generic[Result]):
    """What a job ends with: its results, and the jobs that come of it."""

    results: list[Result]
    jobs: list[Job[Result]] = field(default_factory=list)


Job = Generator[list[Request], list[Answer], Done[Result]]


@dataclass(slots=True)
class _Waiting(Generic[Result]):
    """A job that waits for the answers to what it asked last."""

    job: Job[Result]
    answers: list[Answer]
    left: int


class JobRunner(Generic[Result]):
    """Runs jobs over one set of transfers.

    Parameters
    ----------
    limit
        Most requests under way.
    usual_bytes
        How large a whole object is taken to be until some have come.
    """

    def __init__(self, transfers: RetryingTransfers, *, limit: int, usual_bytes: int) -> None:
        self._transfers = transfers
        self._limit = limit
        self._seen, self._seen_bytes = 1, usual_bytes
        self._unsent: deque[tuple[_Waiting[Result], int, Request]] = deque()
        self._arrived: deque[tuple[_Waiting[Result], int, Outcome, int]] = deque()
        self._results: deque[Result] = deque()
        self._follow: deque[Job[Result]] = deque()
        self._under_way = self._bytes = 0

    def run(self, jobs: Iterable[Job[Result]]) -> Iterator[Result]:
        """Yield the results of jobs, and of the jobs that come of them, as they get done.

        What comes of a job goes before jobs not yet begun. After an error nothing more is sent; the results of what
        had arrived come first, then it is raised.
        """
        fresh = iter(jobs)
        while True:
            self._fill(fresh)
            while self._results:
                yield self._results.popleft()
            if not self._arrived:
                if not self._under_way:
                    return
                self._receive(None)
                self._fill(fresh)
            self._receive(0.0)  # also sends what was begun: the store works while we do
            try:
                for _ in range(min(len(self._arrived), ANSWERS_A_TURN)):
                    self._take(*self._arrived.popleft())
            except VoxelProbeError:
                while self._arrived:
                    with contextlib.suppress(VoxelProbeError):
                        self._take(*self._arrived.popleft())
                yield from self._results
                raise

    def _fill(self, fresh: Iterator[Job[Result]]) -> None:
        """Begin requests, of jobs that wait and then of new ones, until there are enough under way."""
        while self._under_way < self._limit and self._under_way + len(self._arrived) < 2 * self._limit:
            if not self._unsent:
                job = self._follow.popleft() if self._follow else next(fresh, None)
                if job is None:
                    return
                self._resume(job, None)
                continue
            waiting, place, request = self._unsent[0]
            expected = self._expect(request)
            if self._bytes and self._bytes + expected > MAX_BYTES_UNDER_WAY:
                return
            self._unsent.popleft()
            self._under_way += 1
            self._bytes += expected
            self._transfers.start((waiting, place, expected), request)

    def _expect(self, request: Request) -> int:
        """Return how many bytes a request will probably bring."""
        if request.end is not None:
            return request.end - (request.start or 0)
        if request.start is not None and request.start < 0:
            return -request.start
        return self._seen_bytes // self._seen

    def _receive(self, timeout_seconds: float | None) -> None:
        """Take answers off the transfers, for the jobs to work on in their turn."""
        if not self._under_way:
            return
        for key, outcome in self._transfers.wait(timeout_seconds):
            waiting, place, expected = key  # the key that `_fill` made
            self._under_way -= 1
            size = len(outcome.content) if isinstance(outcome, StoredObject) else 0
            self._bytes += size - expected
            self._seen, self._seen_bytes = self._seen + 1, self._seen_bytes + size
            self._arrived.append((waiting, place, outcome, size))

    def _take(self, waiting: _Waiting[Result], place: int, outcome: Outcome, size: int) -> None:
        """Give an answer to its job, which goes on when it has all that it asked for."""
        self._bytes -= size
        if isinstance(outcome, VoxelProbeError):
            raise outcome
        waiting.answers[place] = outcome
        waiting.left -= 1
        if not waiting.left:
            self._resume(waiting.job, waiting.answers)

    def _resume(self, job: Job[Result], answers: list[Answer] | None) -> None:
        """Let a job go on until it asks for something or ends."""
        requests: list[Request] = []
        try:
            while not requests:
                requests = job.send(answers)  # type: ignore[arg-type]  # a generator is begun by sending None
                answers = []
        except StopIteration as end:
            done: Done[Result] = end.value
            self._results += done.results
            self._follow += done.jobs
            return
        waiting = _Waiting(job, [None] * len(requests), len(requests))
        self._unsent += [(waiting, place, request) for place, request in enumerate(requests)]
