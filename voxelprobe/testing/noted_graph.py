"""A graph that notes which ids it is asked for and answers as a test says, and a sleep that doesn't wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from voxelprobe.arrays import UInt64
from voxelprobe.graphene.ids import GraphLayout
from voxelprobe.resolving import ResolvedRoots, resolve_roots

LAYERS = 6
LAYOUT = GraphLayout((64, 64, 64), LAYERS, 8, (10, 10, 9, 8, 7, 6), 0, True, False, "gs://b/ws")


def ids_at(layer: int, *numbers: int) -> UInt64:
    """Return ids of a layer."""
    return np.array([(layer << 56) | number for number in numbers], np.uint64)


def supervoxels(count: int, seed: int = 0) -> UInt64:
    """Return different supervoxels in no order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.unique(rng.integers(1, 2**55, count, dtype=np.uint64))) | np.uint64(1 << 56)


class NotedGraph:
    """A graph in which the parent of an id is of the wanted layer and keeps its low bits; it notes what it was asked.

    `answer` may give another answer, or raise, for the number of the request and its ids.

    Attributes
    ----------
    asked
        The ids of each request, in the order in which they came.
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


def resolve(ids: UInt64, graph: NotedGraph, **options: Any) -> ResolvedRoots:
    """Return `resolve_roots` of a graph of `LAYOUT`, with the knobs that a test doesn't turn."""
    knobs: dict[str, Any] = {"stop_layer": None, "batch_size": 10, "concurrency": 1, "sleep": Naps()}
    return resolve_roots(ids, fetch=graph.fetch, layout=LAYOUT, **(knobs | options))
