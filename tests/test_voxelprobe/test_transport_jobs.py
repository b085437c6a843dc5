"""Many requests at once: each job gets its answers, within the bounds, and an error loses nothing that came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from voxelprobe import AuthorizationError, TransportError
from voxelprobe.transport.jobs import MAX_BYTES_UNDER_WAY, Done, Job, JobRunner
from voxelprobe.transport.protocol import Outcome, Request, RetryableError, StoredObject
from voxelprobe.transport.sources import RetryingSource
from voxelprobe.transport.threads import ThreadTransfers

pytestmark = pytest.mark.usefixtures("quick_retries")


class Recorder:
    """A source that answers a path with its own name, or with what it is told, and notes what is under way."""

    url = "test://x"

    def __init__(self, size: int = 1, **said: list[Outcome]) -> None:
        self.size, self.said = size, said
        self.started: list[str] = []
        self.open: list[tuple[Any, Request]] = []
        self.peak = 0

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Fail: these tests ask through transfers only."""
        raise AssertionError(path)

    def open_transfers(self, *, limit: int) -> Recorder:
        """Return itself."""
        return self

    def start(self, key: Any, request: Request) -> None:
        """Note a request."""
        self.started.append(request.path)
        self.open.append((key, request))
        self.peak = max(self.peak, len(self.open))

    def wait(self, timeout_seconds: float | None) -> list[tuple[Any, Outcome]]:
        """Return what became of the two oldest requests."""
        if timeout_seconds == 0.0:
            return []
        ended, self.open = self.open[:2], self.open[2:]
        return [(key, self.said[request.path].pop(0) if self.said.get(request.path)
                 else StoredObject(request.path.encode() * self.size, None)) for key, request in ended]

    def close(self) -> None:
        """Do nothing."""


def simple(path: str) -> Job[str]:
    (answer,) = yield [Request(path)]
    return Done([path if answer is None else answer.content.decode()])


def run(source: Recorder, jobs: Iterator[Job[str]], limit: int = 4) -> Iterator[str]:
    retrying = RetryingSource(source, attempts=3)
    with closing(retrying.open_transfers(limit=limit)) as transfers:
        yield from JobRunner[str](transfers, limit=limit, usual_bytes=1).run(jobs)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_every_job_is_done_with_a_bounded_number_under_way(limit: int) -> None:
    """Results come once each, jobs are taken no further ahead than twice the limit, and requests up to the limit."""
    source, given, taken = Recorder(), [], []

    def jobs() -> Iterator[Job[str]]:
        for number in range(40):
            taken.append(number)
            assert len(taken) - len(given) <= 2 * limit + 1
            yield simple(str(number))

    for result in run(source, jobs(), limit):
        given.append(result)
    assert sorted(given, key=int) == [str(number) for number in range(40)]
    assert source.peak <= limit


def test_large_objects_are_fewer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once objects have shown to be large, only as many are under way as the bytes allow, and one at least."""
    monkeypatch.setattr("voxelprobe.transport.jobs.MAX_BYTES_UNDER_WAY", 100)
    for size, most in ((30, 4), (1000, 1)):
        source = Recorder(size)
        results = run(source, (simple("x") for _ in range(100)), limit=8)
        for _ in range(20):
            next(results)
        source.peak = len(source.open)
        assert len(list(results)) == 80
        assert source.peak <= most
    assert MAX_BYTES_UNDER_WAY >= 8 << 20


def test_ranges_count_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests for ranges the bytes under way are known, and are bounded from the first."""
    monkeypatch.setattr("voxelprobe.transport.jobs.MAX_BYTES_UNDER_WAY", 100)
    source = Recorder()

    def ranged(request: Request) -> Job[str]:
        yield [request]
        return Done([])

    for request in (Request("x", 10, 50), Request("x", -40)):
        source.peak = 0
        list(run(source, (ranged(request) for _ in range(10)), limit=8))
        assert source.peak == 2


def test_what_comes_of_a_job_goes_first() -> None:
    """The jobs that a job leaves are begun before jobs not yet begun, and jobs without requests cost none."""
    source = Recorder()

    def parent(name: str) -> Job[str]:
        answers = yield [Request(f"{name}{part}") for part in "ab"]
        assert [answer.content.decode() for answer in answers if answer] == [f"{name}a", f"{name}b"]
        answers = yield []
        assert answers == []
        return Done([name], [simple(f"{name}c"), nothing(f"{name}d")])

    def nothing(name: str) -> Job[str]:
        return Done([name])
        yield []

    given = list(run(source, (parent(name) for name in "xyz"), limit=2))
    assert sorted(given) == ["x", "xc", "xd", "y", "yc", "yd", "z", "zc", "zd"]
    # While the answers of x are worked on, y is under way already.
    assert source.started.index("xc") < source.started.index("za")


def test_failures_are_repeated_without_holding_up_the_others() -> None:
    """A request that waits for its next try leaves the rest to go on; after all tries its error ends the run."""
    busy = RetryableError("busy", 0.01)
    source = Recorder(b=[busy, busy])
    assert sorted(run(source, (simple(name) for name in "abcdef"), limit=2)) == list("abcdef")
    assert source.started.count("b") == 3
    with pytest.raises(TransportError, match=r"^busy \(tried 3 times\)$"):
        list(run(Recorder(b=[busy] * 3), (simple(name) for name in "ab")))


def test_what_came_with_an_error_is_given_first() -> None:
    """Answers that arrived before or beside an error are results; nothing is begun after it."""
    source = Recorder(c=[AuthorizationError("no")])
    given: list[str] = []
    with pytest.raises(AuthorizationError, match=r"^no$"):
        given.extend(run(source, (simple(name) for name in "abcdefghij")))
    assert given == ["a", "b", "d"]
    assert len(source.started) <= 8


def test_none_for_what_is_absent() -> None:
    """An absent object is an answer of None."""
    assert list(run(Recorder(b=[None]), iter([simple("b")]))) == ["b"]


@pytest.mark.parametrize("limit", [1, 3])
def test_threads_do_what_transfers_do(limit: int) -> None:
    """In threads: as many at once as the limit, each outcome with its key, errors as outcomes, no thread left."""
    barrier = threading.Barrier(limit)

    def fetch(path: str, start: int | None, end: int | None) -> StoredObject | None:
        barrier.wait(10)
        if path == "bad":
            raise TransportError("bad")
        return StoredObject(path.encode(), None)

    transfers = ThreadTransfers(fetch, limit=limit)
    assert transfers.wait(None) == []
    for key in range(limit):
        transfers.start(key, Request("bad" if key == 2 else str(key)))
    ended: dict[Any, Outcome] = {}
    while len(ended) < limit:
        ended |= dict(transfers.wait(None))
    assert transfers.wait(None) == []
    transfers.close()
    assert [ended[key] for key in range(min(limit, 2))] == [StoredObject(b"%d" % n, None) for n in range(min(limit, 2))]
    assert limit < 3 or isinstance(ended[2], TransportError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_what_nobody_foresaw_is_raised() -> None:
    """An exception of no kind of ours ends the fetch as it is, and is no outcome."""
    def fetch(path: str, start: int | None, end: int | None) -> StoredObject | None:
        raise KeyError(path)

    with closing(ThreadTransfers(fetch, limit=1)) as transfers:
        transfers.start(1, Request("x"))
        with pytest.raises(KeyError):
            transfers.wait(None)
