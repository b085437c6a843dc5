"""Resolving: which ids are asked for, in which requests, and which answers count."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.arrays import Bool, UInt64
from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.graphene import asking
from voxelprobe.graphene.asking import ask_in_batches, with_retries
from voxelprobe.graphene.ids import GraphLayout
from voxelprobe.graphene.refusals import SilentError, TooLargeError
from voxelprobe.resolving import find_latest_roots, resolve_roots, wanted_layer
from voxelprobe.transport.protocol import RetryableError

LAYERS = 6
LAYOUT = GraphLayout((64, 64, 64), LAYERS, 8, (10, 10, 9, 8, 7, 6), 0, True, False, "gs://b/ws")


def at(layer: int, *numbers: int) -> UInt64:
    """Return ids of a layer."""
    return np.array([(layer << 56) | number for number in numbers], np.uint64)


def supervoxels(count: int, seed: int = 0) -> UInt64:
    """Return different supervoxels in no order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.unique(rng.integers(1, 2**55, count, dtype=np.uint64))) | np.uint64(1 << 56)


class Graph:
    """A graph in which the parent of an id is of the wanted layer and keeps its low bits; it notes what it was asked.

    `answer` may give another answer, or raise, for the number of the request and its ids.
    """

    def __init__(
        self, layer: int = LAYERS, answer: Callable[[int, UInt64], UInt64 | None] = lambda number, ids: None
    ) -> None:
        self.layer = layer
        self.asked: list[UInt64] = []
        self._answer = answer
        self._lock = threading.Lock()

    def root(self, ids: UInt64) -> UInt64:
        """Return the parents."""
        return (ids & np.uint64(2**56 - 1)) | np.uint64(self.layer << 56)

    def fetch(self, ids: UInt64) -> UInt64:
        """Return the answers of a request."""
        with self._lock:
            number = len(self.asked)
            self.asked.append(ids.copy())
        other = self._answer(number, ids)
        return self.root(ids) if other is None else other

    @property
    def sizes(self) -> list[int]:
        """Return how many ids each request had."""
        return [len(ids) for ids in self.asked]


class Naps:
    """A sleep that notes the seconds instead of waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        """Note the seconds."""
        self.seconds.append(seconds)


def resolve(ids: UInt64, graph: Graph, **options: Any) -> Any:
    """Return `resolve_roots` with the knobs that a test doesn't turn."""
    knobs: dict[str, Any] = {"stop_layer": None, "batch_size": 10, "concurrency": 1, "sleep": Naps()}
    return resolve_roots(ids, fetch=graph.fetch, layout=LAYOUT, **(knobs | options))


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_roots_in_the_order_of_the_ids(batch_size: int, concurrency: int) -> None:
    """Each id gets its root whatever the order, the repeats, the batches and the threads; each is asked for once."""
    different = supervoxels(200)
    ids = np.random.default_rng(1).choice(different, 1000)
    graph = Graph()
    found = resolve(ids, graph, batch_size=batch_size, concurrency=concurrency)
    np.testing.assert_array_equal(found.roots, graph.root(ids))
    assert found.roots.dtype == np.uint64
    assert found.resolved.all()
    sent = np.concatenate(graph.asked)
    np.testing.assert_array_equal(np.sort(sent), np.unique(ids))
    assert found.asked == len(sent)
    assert max(graph.sizes) <= batch_size
    assert all((request[:-1] < request[1:]).all() for request in graph.asked)
    if concurrency == 1:
        assert (sent[:-1] < sent[1:]).all()


def test_what_is_not_asked_for() -> None:
    """Zeros and ids of the wanted layer or above are their own roots; ids of no layer have none; none is asked for."""
    ids = np.concatenate([at(0, 0, 0), at(LAYERS, 5, 5), at(LAYERS + 1, 7), at(0, 9), at(255, 1), at(1, 3)])
    graph = Graph()
    found = resolve(ids, graph)
    assert [request.tolist() for request in graph.asked] == [at(1, 3).tolist()]
    assert found.roots.tolist() == [0, 0, *at(LAYERS, 5, 5).tolist(), 0, 0, 0, *at(LAYERS, 3).tolist()]
    assert found.resolved.tolist() == [True, True, True, True, False, False, False, True]
    assert found.asked == 1


@pytest.mark.parametrize("ids", [np.empty(0, np.uint64), np.zeros(4, np.uint64), at(LAYERS, 1, 2)])
def test_nothing_to_ask(ids: UInt64) -> None:
    """Without a supervoxel there is no request, no batch and no thread."""
    graph = Graph()
    batches: list[object] = []
    found = resolve(ids, graph, on_batch=lambda *batch: batches.append(batch))
    assert found.roots.tolist() == ids.tolist()
    assert found.resolved.all()
    assert (graph.asked, batches, found.asked) == ([], [], 0)


@pytest.mark.parametrize("stop_layer", [1, 2, 4, LAYERS, None])
def test_stop_layers(stop_layer: int | None) -> None:
    """Ids below the wanted layer are asked for, others are their own; layer 1 asks for nothing, as in CloudVolume."""
    ids = np.concatenate([at(layer, 11) for layer in range(1, LAYERS + 1)])
    layer = stop_layer or LAYERS
    graph = Graph(layer)
    found = resolve(ids, graph, stop_layer=stop_layer)
    assert np.concatenate([*graph.asked, ids[:0]]).tolist() == ids[: layer - 1].tolist()
    assert found.roots.tolist() == [*graph.root(ids[: layer - 1]).tolist(), *ids[layer - 1 :].tolist()]
    assert found.resolved.all()


@pytest.mark.parametrize("stop_layer", [-1, 0, LAYERS + 1, 255])
def test_layers_that_are_not(stop_layer: int) -> None:
    """A layer that the graph hasn't is an InputError before anything is asked."""
    graph = Graph()
    with pytest.raises(InputError, match=f"1 to {LAYERS}"):
        resolve(at(1, 1), graph, stop_layer=stop_layer)
    assert not graph.asked
    assert wanted_layer(LAYOUT, None) == LAYERS


@pytest.mark.parametrize(
    ("stop_layer", "answer", "counts"),
    [
        (None, 0, False),
        (None, (1 << 56) | 5, False),
        (None, (1 << 56) | 6, False),
        (None, (2 << 56) | 5, False),
        (None, ((LAYERS - 1) << 56) | 5, False),
        (None, ((LAYERS + 1) << 56) | 5, False),
        (None, 2**64 - 1, False),
        (None, 5, False),
        (None, LAYERS << 56, True),
        (3, 0, False),
        (3, (1 << 56) | 5, False),
        (3, (2 << 56) | 5, False),
        (3, (3 << 56) | 5, True),
        (3, (4 << 56) | 5, True),
        (3, (LAYERS << 56) | 5, True),
        (3, ((LAYERS + 1) << 56) | 5, False),
    ],
)
def test_which_answers_count(stop_layer: int | None, answer: int, counts: bool) -> None:
    """Zero, an echo, a low layer and a layer of no graph are no root; a skipped layer's parent above it is one."""
    graph = Graph(answer=lambda number, ids: np.full(len(ids), answer, np.uint64))
    batches: list[list[int]] = []
    found = resolve(at(1, 5, 7), graph, stop_layer=stop_layer, on_batch=lambda b, i, r: batches.append(r.tolist()))
    assert found.resolved.tolist() == [counts, counts]
    assert found.roots.tolist() == [answer if counts else 0] * 2
    assert batches == [[answer if counts else 0] * 2]


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 1, 1, 2, 3, LAYERS, LAYERS + 1]), st.integers(0, 30)), max_size=60),
    st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, LAYERS + 1), st.integers(0, 5))),
    st.sampled_from([None, 1, 2, 3, LAYERS]),
    st.integers(1, 9),
    st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_against_a_slow_oracle(
    parts: list[tuple[int, int]],
    parents: dict[int, tuple[int, int]],
    stop_layer: int | None,
    batch_size: int,
    concurrency: int,
) -> None:
    """One id at a time, with Python's integers, gives the same roots, marks and questions."""
    ids = np.array([(layer << 56) | number for layer, number in parts], np.uint64)
    wanted = stop_layer or LAYERS

    def parent(number: int) -> int:
        layer, rest = parents.get(number & (2**56 - 1), (0, 0))
        return (layer << 56) | rest

    graph = Graph(answer=lambda _, asked: np.array([parent(int(i)) for i in asked], np.uint64))
    found = resolve(ids, graph, stop_layer=stop_layer, batch_size=batch_size, concurrency=concurrency)
    questions = set()
    for number, root, resolved in zip(ids.tolist(), found.roots.tolist(), found.resolved.tolist(), strict=True):
        layer = number >> 56
        if number == 0 or wanted <= layer <= LAYERS:
            expected = (number, True)
        elif layer == 0 or layer > LAYERS:
            expected = (0, False)
        else:
            questions.add(number)
            answer = parent(number)
            good = wanted <= answer >> 56 <= LAYERS
            expected = (answer if good else 0, good)
        assert (root, resolved) == expected
    assert sorted(i for request in graph.asked for i in request.tolist()) == sorted(questions)
    assert found.asked == len(questions)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 40))
@settings(deadline=None)
def test_halving(count: int, batch_size: int, bearable: int) -> None:
    """Whatever a server bears, everything is answered, in requests that never grow past the batch."""

    def answer(number: int, ids: UInt64) -> None:
        if len(ids) > bearable:
            raise TooLargeError("413")

    graph, naps = Graph(answer=answer), Naps()
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

    graph = Graph(answer=answer)
    resolve(supervoxels(3000), graph, batch_size=64)
    assert graph.sizes[:4] == [64, 32, 16, 8]
    assert 64 in graph.sizes[4:]


def test_one_id_too_large_is_given_up() -> None:
    """A single id that makes the server fail ends the work after all tries; its neighbours were answered."""
    ids = np.sort(supervoxels(20))

    def answer(number: int, asked: UInt64) -> None:
        if ids[13] in asked:
            raise TooLargeError("the server answered 500")

    graph, naps = Graph(answer=answer), Naps()
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

    graph = Graph(answer=answer)
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

    graph, naps = Graph(answer=answer), Naps()
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

    graph, naps = Graph(answer=answer), Naps()
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
    resolve(supervoxels(2), Graph(answer=answer), sleep=naps)
    assert len(naps.seconds) == 1
    assert least <= naps.seconds[0] <= most


@pytest.mark.parametrize("error", [AuthorizationError("1"), InputError("2"), TransportError("3"), KeyError("bug")])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_fatal_errors_end_the_work(error: Exception, concurrency: int) -> None:
    """What no other try mends is raised as it is after what is under way; what was answered went to `on_batch`."""

    def answer(number: int, ids: UInt64) -> None:
        if number == 2:
            raise error

    graph, naps = Graph(answer=answer), Naps()
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
        resolve(supervoxels(20), Graph(answer=answer), concurrency=2, sleep=None)


def test_failing_checkpoint_ends_the_work() -> None:
    """What `on_batch` raises (a full disk) comes through, and nothing further is begun."""
    graph = Graph()

    def full(begin: int, ids: UInt64, roots: UInt64) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        resolve(supervoxels(5000), graph, batch_size=1, concurrency=2, on_batch=full)
    assert len(graph.asked) <= 2


def test_checkpoints_cover_every_id_once() -> None:
    """The batches handed over are the sorted different ids, cut at multiples of the batch size, in this thread."""
    here = threading.get_ident()
    ids = supervoxels(95)
    different = np.sort(ids)
    begins = []

    def check(begin: int, asked: UInt64, roots: UInt64) -> None:
        assert threading.get_ident() == here
        assert asked.tolist() == different[begin : begin + 10].tolist()
        assert roots.tolist() == graph.root(asked).tolist()
        begins.append(begin)

    graph = Graph()
    resolve(np.tile(ids, 3), graph, concurrency=3, on_batch=check)
    assert sorted(begins) == list(range(0, 95, 10))


@pytest.mark.parametrize("stop_at", [0, 1, 5, 9])
def test_known_answers_are_not_asked_again(stop_at: int) -> None:
    """With what `on_batch` was given before a failure, the rest is asked for and the roots are the same."""
    ids = np.tile(supervoxels(95), 2)
    kept: list[tuple[UInt64, UInt64]] = []

    def answer(number: int, asked: UInt64) -> UInt64 | None:
        if number == stop_at:
            raise AuthorizationError("401")
        roots = Graph().root(asked)
        roots[::7] = 0
        return roots

    def same(number: int, asked: UInt64) -> UInt64:
        return np.where(np.isin(asked, unrooted), np.uint64(0), Graph().root(asked))

    with pytest.raises(AuthorizationError):
        resolve(ids, Graph(answer=answer), on_batch=lambda b, i, r: kept.append((i, r)))
    kept.reverse()
    known = (np.concatenate([i for i, _ in kept] or [ids[:0]]), np.concatenate([r for _, r in kept] or [ids[:0]]))
    unrooted = known[0][known[1] == 0]
    graph = Graph(answer=same)
    found = resolve(ids, graph, known=known)
    assert found.asked == 95 - len(known[0]) == sum(graph.sizes)
    assert not np.isin(np.concatenate([*graph.asked, ids[:0]]), known[0]).any()
    np.testing.assert_array_equal(found.roots, same(0, ids))
    np.testing.assert_array_equal(found.resolved, found.roots != 0)


def test_known_answers_are_checked_too() -> None:
    """A known root of a wrong layer is no root; ids that nobody wants do no harm."""
    graph = Graph()
    known = (at(1, 9, 3, 5), np.concatenate([at(LAYERS, 1), at(2, 4), at(LAYERS, 5)]))
    found = resolve(at(1, 5, 3, 4), graph, known=known)
    assert found.roots.tolist() == [*at(LAYERS, 5).tolist(), 0, *at(LAYERS, 4).tolist()]
    assert found.asked == 1


def test_answer_of_another_length() -> None:
    """An answer that isn't one root an id is an error, never shifted rows."""
    with pytest.raises(TransportError, match="each of 3 ids"):
        resolve(supervoxels(3), Graph(answer=lambda number, ids: ids[:2]))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_at_once(concurrency: int) -> None:
    """As many requests are under way at once as were asked for, and no more."""
    lock, under_way, most = threading.Lock(), [0], [0]
    together = threading.Barrier(concurrency)

    def answer(number: int, ids: UInt64) -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        together.wait(10)
        with lock:
            under_way[0] -= 1

    resolve(supervoxels(120), Graph(answer=answer), concurrency=concurrency)
    assert most[0] == concurrency


def test_a_million_fits() -> None:
    """A million supervoxels take a small part of 500 MB."""
    ids = np.arange(1_000_000, dtype=np.uint64) * np.uint64(7919) + np.uint64(1 << 56)
    graph = Graph()
    graph.asked = Counting()  # type: ignore[assignment]
    tracemalloc.start()
    found = resolve_roots(ids, fetch=graph.fetch, layout=LAYOUT, stop_layer=None, batch_size=20_000, concurrency=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.asked == 1_000_000
    np.testing.assert_array_equal(found.roots, graph.root(ids))
    assert peak < 150 << 20


class Counting(list[Any]):
    """A list that keeps nothing."""

    def append(self, item: object) -> None:
        """Keep nothing."""


def test_latest_roots() -> None:
    """Each different root is asked for once; ids of other layers are false without being asked for."""
    asked: list[list[int]] = []

    def ask(ids: UInt64) -> Bool:
        asked.append(ids.tolist())
        return ids % np.uint64(2) == 1

    roots = np.concatenate([at(LAYERS, 5, 4, 5, 7), at(0, 0, 3), at(1, 5), at(LAYERS + 1, 5), at(LAYERS, 4)])
    latest = find_latest_roots(roots, ask=ask, layout=LAYOUT, batch_size=2, concurrency=1, sleep=Naps())
    assert latest.tolist() == [True, False, True, True, False, False, False, False, False]
    assert latest.dtype == np.bool_
    assert asked == [at(LAYERS, 4, 5).tolist(), at(LAYERS, 7).tolist()]
    none = find_latest_roots(roots[:0], ask=ask, layout=LAYOUT, batch_size=2, concurrency=1)
    assert none.tolist() == []


def test_latest_roots_are_asked_again() -> None:
    """Large requests are halved and failures repeated as for roots."""
    failures = iter([TooLargeError("413"), RetryableError("503")])

    def ask(ids: UInt64) -> Bool:
        for error in failures:
            raise error
        return ids % np.uint64(2) == 1

    latest = find_latest_roots(at(LAYERS, *range(9)), ask=ask, layout=LAYOUT, batch_size=9, concurrency=1, sleep=Naps())
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


@pytest.mark.parametrize("dtype", [np.uint64, np.bool_])
def test_answers_keep_their_dtype(dtype: type) -> None:
    """Answers come in the dtype that was named, also if there are none."""
    for count in (0, 5):
        answers = ask_in_batches(np.arange(count, dtype=np.uint64), lambda ids: np.ones(len(ids), dtype), dtype=dtype,
                                 batch_size=2, concurrency=1)
        assert (answers.dtype, len(answers)) == (dtype, count)
