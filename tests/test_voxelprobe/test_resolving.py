"""Resolving: which ids are asked for, in which requests, and which answers count."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.arrays import Bool, UInt64
from voxelprobe.errors import InputError, TransportError
from voxelprobe.graphene.asking import ask_in_batches
from voxelprobe.resolving import find_latest_roots, resolve_roots, wanted_layer
from voxelprobe.testing.noted_graph import LAYERS, LAYOUT, Naps, NotedGraph, ids_at, resolve, supervoxels


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_roots_in_the_order_of_the_ids(batch_size: int, concurrency: int) -> None:
    """Each id gets its root whatever the order, the repeats, the batches and the threads; each is asked for once."""
    different = supervoxels(200)
    ids = np.random.default_rng(1).choice(different, 1000)
    graph = NotedGraph()
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
    ids = np.concatenate([ids_at(0, 0, 0), ids_at(LAYERS, 5, 5), ids_at(LAYERS + 1, 7), ids_at(0, 9), ids_at(255, 1),
                          ids_at(1, 3)])
    graph = NotedGraph()
    found = resolve(ids, graph)
    assert [request.tolist() for request in graph.asked] == [ids_at(1, 3).tolist()]
    assert found.roots.tolist() == [0, 0, *ids_at(LAYERS, 5, 5).tolist(), 0, 0, 0, *ids_at(LAYERS, 3).tolist()]
    assert found.resolved.tolist() == [True, True, True, True, False, False, False, True]
    assert found.asked == 1


@pytest.mark.parametrize("ids", [np.empty(0, np.uint64), np.zeros(4, np.uint64), ids_at(LAYERS, 1, 2)])
def test_nothing_to_ask(ids: UInt64) -> None:
    """Without a supervoxel there is no request, no batch and no thread."""
    graph = NotedGraph()
    batches: list[object] = []
    found = resolve(ids, graph, on_batch=lambda *batch: batches.append(batch))
    assert found.roots.tolist() == ids.tolist()
    assert found.resolved.all()
    assert (graph.asked, batches, found.asked) == ([], [], 0)


@pytest.mark.parametrize("stop_layer", [1, 2, 4, LAYERS, None])
def test_stop_layers(stop_layer: int | None) -> None:
    """Ids below the wanted layer are asked for, others are their own; layer 1 asks for nothing, as in CloudVolume."""
    ids = np.concatenate([ids_at(layer, 11) for layer in range(1, LAYERS + 1)])
    layer = stop_layer or LAYERS
    graph = NotedGraph(layer)
    found = resolve(ids, graph, stop_layer=stop_layer)
    assert np.concatenate([*graph.asked, ids[:0]]).tolist() == ids[: layer - 1].tolist()
    assert found.roots.tolist() == [*graph.root(ids[: layer - 1]).tolist(), *ids[layer - 1 :].tolist()]
    assert found.resolved.all()


@pytest.mark.parametrize("stop_layer", [-1, 0, LAYERS + 1, 255])
def test_layers_that_are_not(stop_layer: int) -> None:
    """A layer that the graph hasn't is an InputError before anything is asked."""
    graph = NotedGraph()
    with pytest.raises(InputError, match=f"1 to {LAYERS}"):
        resolve(ids_at(1, 1), graph, stop_layer=stop_layer)
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
    graph = NotedGraph(answer=lambda number, ids: np.full(len(ids), answer, np.uint64))
    batches: list[list[int]] = []
    found = resolve(ids_at(1, 5, 7), graph, stop_layer=stop_layer, on_batch=lambda b, i, r: batches.append(r.tolist()))
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

    graph = NotedGraph(answer=lambda _, asked: np.array([parent(int(i)) for i in asked], np.uint64))
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


def test_answer_of_another_length() -> None:
    """An answer that isn't one root an id is an error, never shifted rows."""
    with pytest.raises(TransportError, match="each of 3 ids"):
        resolve(supervoxels(3), NotedGraph(answer=lambda number, ids: ids[:2]))


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

    resolve(supervoxels(120), NotedGraph(answer=answer), concurrency=concurrency)
    assert most[0] == concurrency


def test_a_million_fits() -> None:
    """A million supervoxels take a small part of 500 MB."""
    ids = np.arange(1_000_000, dtype=np.uint64) * np.uint64(7919) + np.uint64(1 << 56)
    graph = NotedGraph()
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

    roots = np.concatenate([ids_at(LAYERS, 5, 4, 5, 7), ids_at(0, 0, 3), ids_at(1, 5), ids_at(LAYERS + 1, 5),
                            ids_at(LAYERS, 4)])
    latest = find_latest_roots(roots, ask=ask, layout=LAYOUT, batch_size=2, concurrency=1, sleep=Naps())
    assert latest.tolist() == [True, False, True, True, False, False, False, False, False]
    assert latest.dtype == np.bool_
    assert asked == [ids_at(LAYERS, 4, 5).tolist(), ids_at(LAYERS, 7).tolist()]
    none = find_latest_roots(roots[:0], ask=ask, layout=LAYOUT, batch_size=2, concurrency=1)
    assert none.tolist() == []


@pytest.mark.parametrize("dtype", [np.uint64, np.bool_])
def test_answers_keep_their_dtype(dtype: type) -> None:
    """Answers come in the dtype that was named, also if there are none."""
    for count in (0, 5):
        answers = ask_in_batches(np.arange(count, dtype=np.uint64), lambda ids: np.ones(len(ids), dtype), dtype=dtype,
                                 batch_size=2, concurrency=1)
        assert (answers.dtype, len(answers)) == (dtype, count)
