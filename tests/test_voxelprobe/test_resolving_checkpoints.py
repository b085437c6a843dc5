"""Resolving in steps: what is handed over to be kept, and what isn't asked for again with what was kept."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from voxelprobe.arrays import UInt64
from voxelprobe.errors import AuthorizationError
from voxelprobe.testing.noted_graph import LAYERS, NotedGraph, ids_at, resolve, supervoxels


def test_failing_checkpoint_ends_the_work() -> None:
    """What `on_batch` raises (a full disk) comes through, and nothing further is begun."""
    graph = NotedGraph()

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

    graph = NotedGraph()
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
        roots = NotedGraph().root(asked)
        roots[::7] = 0
        return roots

    def same(number: int, asked: UInt64) -> UInt64:
        return np.where(np.isin(asked, unrooted), np.uint64(0), NotedGraph().root(asked))

    with pytest.raises(AuthorizationError):
        resolve(ids, NotedGraph(answer=answer), on_batch=lambda b, i, r: kept.append((i, r)))
    kept.reverse()
    known = (np.concatenate([i for i, _ in kept] or [ids[:0]]), np.concatenate([r for _, r in kept] or [ids[:0]]))
    unrooted = known[0][known[1] == 0]
    graph = NotedGraph(answer=same)
    found = resolve(ids, graph, known=known)
    assert found.asked == 95 - len(known[0]) == sum(graph.sizes)
    assert not np.isin(np.concatenate([*graph.asked, ids[:0]]), known[0]).any()
    np.testing.assert_array_equal(found.roots, same(0, ids))
    np.testing.assert_array_equal(found.resolved, found.roots != 0)


def test_known_answers_are_checked_too() -> None:
    """A known root of a wrong layer is no root; ids that nobody wants do no harm."""
    graph = NotedGraph()
    known = (ids_at(1, 9, 3, 5), np.concatenate([ids_at(LAYERS, 1), ids_at(2, 4), ids_at(LAYERS, 5)]))
    found = resolve(ids_at(1, 5, 3, 4), graph, known=known)
    assert found.roots.tolist() == [*ids_at(LAYERS, 5).tolist(), 0, *ids_at(LAYERS, 4).tolist()]
    assert found.asked == 1
