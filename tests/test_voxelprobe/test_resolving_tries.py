"""Resolving when requests fail: what is asked again, in halves and after which waits, and what ends the work."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.arrays import Bool, UInt64
from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.graphene import asking
from voxelprobe.graphene.asking import with_retries
from voxelprobe.graphene.refusals import SilentError, TooLargeError
from voxelprobe.resolving import find_latest_roots
from voxelprobe.testing.noted_graph import LAYERS, LAYOUT, Naps, NotedGraph, ids_at, resolve, supervoxels
from voxelprobe.transport.protocol import RetryableError


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 40))
@settings(deadline=None)
def test_halving(count: int, batch_size: int, bearable: int) -> None:
    """Whatever a server bears, everything is answered, in requests that never grow past the batch."""

    def answer(number: int, ids: UInt64) -> None:
        if len(ids) > bearable:
            raise TooLargeError("413")

    graph, naps = NotedGraph(answer=answer), Naps()
    ids = supervoxels(count, seed=count)
    found = resolve(ids, graph, batch_size=batch_size, sleep=naps)
    np.testing.assert_array_equal(found.roots, graph.root(ids))
    assert max(graph.sizes) <= batch_size
    answered = [size for size in graph.sizes if size <= bearable]
    assert sum(answered) == len(ids)
    # What was learnt holds for the batches that follow: few questions are asked in vain.
    assert len(naps.seconds) == len(graph.sizes) - len(answered) <= 6 + len(answered) // asking.GROW_AFTER


def test_sizes_grow_again() -> None:
    """After a busy spell requests get large again."""

    def answer(number: int, ids: UInt64) -> None:
        if number < 3:
            raise TooLargeError("504")

    graph = NotedGraph(answer=answer)
    resolve(supervoxels(3000), graph, batch_size=64)
    assert graph.sizes[:4] == [64, 32, 16, 8]
    assert 64 in graph.sizes[4:]


def test_one_id_too_large_is_given_up() -> None:
    """A single id that makes the server fail ends the work after all tries; its neighbours were answered."""
    ids = np.sort(supervoxels(20))

    def answer(number: int, asked: UInt64) -> None:
        if ids[13] in asked:
            raise TooLargeError("the server answered 500")

    graph, naps = NotedGraph(answer=answer), Naps()
    batches: list[tuple[int, list[int]]] = []
    with pytest.raises(TransportError, match=r"500 \(tried 4 times\)") as caught:
        resolve(ids, graph, attempts=4, sleep=naps, on_batch=lambda b, i, r: batches.append((b, i.tolist())))
    assert not isinstance(caught.value, RetryableError)
    assert isinstance(caught.value.__cause__, TooLargeError)
    assert batches == [(0, ids[:10].tolist()), (10, ids[10:13].tolist())]
    assert graph.sizes[-4:] == [1, 1, 1, 1]


def test_a_server_that_stays_silent() -> None:
    """A server that never answers is given up after as many tries as any other, not after one for each halving."""

    def answer(number: int, asked: UInt64) -> None:
        raise SilentError("no answer in time")

    graph = NotedGraph(answer=answer)
    with pytest.raises(TransportError, match=f"no answer in time .tried {asking.ATTEMPTS} times"):
        resolve(supervoxels(5000), graph, batch_size=5000, concurrency=1)
    assert len(graph.asked) == asking.ATTEMPTS
    assert graph.sizes[0] > graph.sizes[1] > graph.sizes[2]


def test_retries() -> None:
    """What another try may mend is asked again with growing, jittered waits, and counts anew for each request."""
    failures = {0, 1, 2, 4, 5, 6}

    def answer(number: int, ids: UInt64) -> None:
        if number in failures:
            raise RetryableError("503")

    graph, naps = NotedGraph(answer=answer), Naps()
    ids = supervoxels(20)
    found = resolve(ids, graph, attempts=4, sleep=naps)
    np.testing.assert_array_equal(found.roots, graph.root(ids))
    assert graph.sizes == [10] * 8
    for wait, full in zip(naps.seconds, [0.5, 1, 2, 0.5, 1, 2], strict=True):
        assert full / 2 <= wait <= full
    assert len(set(naps.seconds)) == 6


def test_tries_are_bounded() -> None:
    """A server that stays away ends the work after all tries; the waits stop growing."""

    def answer(number: int, ids: UInt64) -> None:
        raise RetryableError("graph: the server answered 502")

    graph, naps = NotedGraph(answer=answer), Naps()
    with pytest.raises(TransportError, match=r"graph: the server answered 502 \(tried 10 times\)"):
        resolve(supervoxels(5), graph, sleep=naps)
    assert len(graph.asked) == 10
    assert max(naps.seconds) <= asking.LONGEST_WAIT_SECONDS
    assert 45 <= sum(naps.seconds) <= 150


@pytest.mark.parametrize(("asked", "least", "most"), [(3.0, 3, 3), (0.0, 0.25, 0.5), (10**6, 300, 300)])
@pytest.mark.parametrize("kind", [RetryableError, TooLargeError])
def test_retry_after_is_honoured(kind: type[RetryableError], asked: float, least: float, most: float) -> None:
    """What the server asks to wait is waited, but not for days."""

    def answer(number: int, ids: UInt64) -> None:
        if number == 0:
            raise kind("429", asked)

    naps = Naps()
    resolve(supervoxels(2), NotedGraph(answer=answer), sleep=naps)
    assert len(naps.seconds) == 1
    assert least <= naps.seconds[0] <= most


@pytest.mark.parametrize("error", [AuthorizationError("1"), InputError("2"), TransportError("3"), KeyError("bug")])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_fatal_errors_end_the_work(error: Exception, concurrency: int) -> None:
    """What no other try mends is raised as it is after what is under way; what was answered went to `on_batch`."""

    def answer(number: int, ids: UInt64) -> None:
        if number == 2:
            raise error

    graph, naps = NotedGraph(answer=answer), Naps()
    ids = np.sort(supervoxels(1000))
    kept: dict[int, tuple[list[int], list[int]]] = {}

    def keep(begin: int, asked: UInt64, roots: UInt64) -> None:
        kept[begin] = (asked.tolist(), roots.tolist())

    with pytest.raises(type(error)) as caught:
        resolve(ids, graph, concurrency=concurrency, sleep=naps, on_batch=keep)
    assert caught.value is error
    assert not naps.seconds
    assert len(kept) == len(graph.asked) - 1
    for begin, (asked, roots) in kept.items():
        assert asked == ids[begin : begin + 10].tolist()
        assert roots == graph.root(ids[begin : begin + 10]).tolist()
    if concurrency == 1:
        assert len(graph.asked) == 3
    assert len(graph.asked) < 20


def test_waits_end_with_a_failure_elsewhere() -> None:
    """A thread that waits to try again doesn't hold up the end."""
    waiting = threading.Event()

    def answer(number: int, ids: UInt64) -> None:
        if number == 0:
            waiting.set()
            raise RetryableError("429", 250.0)
        waiting.wait(10)
        raise AuthorizationError("401")

    with pytest.raises(AuthorizationError):
        resolve(supervoxels(20), NotedGraph(answer=answer), concurrency=2, sleep=None)


def test_latest_roots_are_asked_again() -> None:
    """Large requests are halved and failures repeated as for roots."""
    failures = iter([TooLargeError("413"), RetryableError("503")])

    def ask(ids: UInt64) -> Bool:
        for error in failures:
            raise error
        return ids % np.uint64(2) == 1

    latest = find_latest_roots(ids_at(LAYERS, *range(9)), ask=ask, layout=LAYOUT, batch_size=9, concurrency=1,
                               sleep=Naps())
    assert latest.tolist() == [False, True] * 4 + [False]


def test_a_call_with_retries() -> None:
    """A single call is repeated too, a bounded number of times; other errors come through at once."""
    for fails, kind in ((3, None), (4, TransportError)):
        calls, naps = [0], Naps()

        def call(calls: list[int] = calls, fails: int = fails) -> str:
            calls[0] += 1
            if calls[0] <= fails:
                raise RetryableError("503")
            return "info"

        if kind is None:
            assert with_retries(call, attempts=4, sleep=naps) == "info"
        else:
            with pytest.raises(TransportError, match="tried 4 times"):
                with_retries(call, attempts=4, sleep=naps)
        assert (calls[0], len(naps.seconds)) == (4, 3)

    def refuse() -> None:
        raise AuthorizationError("401")

    with pytest.raises(AuthorizationError):
        with_retries(refuse, sleep=Naps())
