"""A chunked graph in memory: supervoxels, their parents at every layer through time, splits and merges.

Limit: what an object has in one chunk counts as connected, so that each object has one node a chunk of every layer.
Times are seconds since 1970 and count in whole milliseconds, as in the real server's database.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from voxelprobe.testing.graph_history import FOREVER_MS, Edit, History, to_milliseconds
from voxelprobe.testing.graph_layout import GraphLayout, Ids, Integers, Watershed, graphene_watershed

__all__ = ["ChunkedGraph", "GraphLayout", "Ids", "Watershed", "graphene_watershed"]


class ChunkedGraph:
    """Supervoxels with a history of roots; made by `from_supervoxels`.

    Edits may run while other threads ask; they go forward in time.
    """

    def __init__(self, layout: GraphLayout, supervoxels: Ids) -> None:
        if not len(supervoxels) or (layout.layers(supervoxels) != 1).any():
            raise ValueError("a graph has at least one supervoxel, each an id of layer 1")
        self.layout = layout
        self.supervoxels = supervoxels
        self.edits: list[Edit] = []
        # Column L - 2 is the node of layer L that holds each supervoxel now.
        self._chain: Ids = np.zeros((len(supervoxels), layout.n_layers - 1), np.uint64)
        self._segments: dict[int, int] = {}
        self._edges: list[tuple[Ids, Integers, Ids]] = []
        self._roots: list[tuple[Ids, Integers]] = []
        self._replaced: dict[int, int] = {}
        self._history: History | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_supervoxels(
        cls,
        ids: npt.ArrayLike,
        objects: npt.ArrayLike,
        *,
        layout: GraphLayout,
        created: float,
        layer2_created: float | None = None,
    ) -> ChunkedGraph:
        """Return a graph in which supervoxels of one object have one root.

        Parameters
        ----------
        ids, objects
            Shape (n,): supervoxels and the object of each, any numbers.
        created
            When the roots were made.
        layer2_created
            When the nodes of layer 2 were made: between the two times the graph is in the middle of its ingest.
        """
        unique, first = np.unique(np.asarray(ids, np.uint64), return_index=True)
        graph = cls(layout, unique)
        group = np.unique(np.asarray(objects)[first], return_inverse=True)[1]
        graph._regroup(np.arange(len(unique)), group, to_milliseconds(created),
                       to_milliseconds(created if layer2_created is None else layer2_created))
        return graph

    @property
    def roots(self) -> Ids:
        """Return the current roots, sorted."""
        return np.unique(self._chain[:, -1])

    def split(self, root: int, supervoxels: npt.ArrayLike, *, at: float) -> tuple[int, int]:
        """Cut supervoxels off a current root; return their new root and the new root of the rest."""
        with self._lock:
            rows = self._rows([root], at)
            off = np.isin(self.supervoxels[rows], np.asarray(supervoxels, np.uint64))
            if off.all() or not off.any() or np.count_nonzero(off) != len(np.unique(np.asarray(supervoxels))):
                raise ValueError(f"to split root {root} needs some of its supervoxels, not all, and no others")
            new = self._regroup(rows, np.where(off, 0, 1), to_milliseconds(at))
            self._record(at, [np.array([root], np.uint64)] * 2, new)
        return int(new[0]), int(new[1])

    def merge(self, roots: Sequence[int], *, at: float) -> int:
        """Join current roots; return the new one."""
        with self._lock:
            rows = self._rows(roots, at)
            new = self._regroup(rows, np.zeros(len(rows), np.int64), to_milliseconds(at))
            self._record(at, [np.array(roots, np.uint64)], new)
        return int(new[0])

    def roots_at(self, ids: npt.ArrayLike, timestamp: float, *, stop_layer: int | None = None,
                 keep_orphans: bool = False) -> Ids:
        """Return the node of `stop_layer` (the roots') that holds each id, 0 where there is none.

        Ids of that layer or above are returned as they are.

        Parameters
        ----------
        keep_orphans
            As version 2 of the server: where no id of those that are still below the layer has a parent, they are
            returned as they are.
        """
        stop = stop_layer or self.layout.n_layers
        if stop > self.layout.n_layers:
            raise ValueError(f"the graph has {self.layout.n_layers} layers, asked for layer {stop}")
        history, at_ms = self._compile(), to_milliseconds(timestamp)
        nodes = np.array(ids, np.uint64)
        below = (nodes != 0) & (self.layout.layers(nodes) < stop)
        while below.any():
            unique, inverse = np.unique(nodes[below], return_inverse=True)
            parents = history.parents(unique, at_ms)
            if keep_orphans and not parents.any():
                break
            nodes[below] = parents[inverse]
            below[below] = ((parents != 0) & (self.layout.layers(parents) < stop))[inverse]
        return nodes

    def is_root(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return which ids are, or were at some time, roots."""
        return self._compile().find_roots(np.asarray(ids, np.uint64))[0]

    def latest(self, ids: npt.ArrayLike, timestamp: float) -> npt.NDArray[np.bool_]:
        """Return which ids are roots that no edit **before** `timestamp` replaced.

        As its source reads, the server leaves the millisecond of `timestamp` itself out here; `roots_at` counts it.
        """
        history, at_ms = self._compile(), to_milliseconds(timestamp)
        known, row = history.find_roots(np.asarray(ids, np.uint64))
        return np.asarray(known & (history.root_since_ms[row] < at_ms) & (at_ms <= history.root_until_ms[row]))

    def delta(self, past: float, future: float, *, include_future: bool = True) -> tuple[Ids, Ids]:
        """Return the roots replaced and made by the edits of an interval; an old one stands once for each new one."""
        begin, end = to_milliseconds(past), to_milliseconds(future) + include_future
        edits = [edit for edit in self.edits if begin <= edit.at_ms < end]
        none: list[Ids] = [np.zeros(0, np.uint64)]
        return (np.concatenate(none + [roots for edit in edits for roots in edit.former]),
                np.concatenate(none + [edit.new for edit in edits]))

    def root_timestamps(self, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return when each root was made; KeyError if one was never there."""
        wanted, history = np.asarray(ids, np.uint64), self._compile()
        known, row = history.find_roots(wanted)
        if not known.all():
            raise KeyError(int(wanted[~known][0]))
        return np.asarray(history.root_since_ms[row] / 1000)

    def root_ends(self, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return when each root was replaced, infinity where it was not; KeyError if one was never there."""
        self.root_timestamps(ids)
        history = self._compile()
        ends = history.root_until_ms[history.find_roots(np.asarray(ids, np.uint64))[1]]
        return np.where(ends == FOREVER_MS, np.inf, ends / 1000)

    def oldest_timestamp(self) -> float | None:
        """Return half a second before the first edit, or None where there was none."""
        return (self.edits[0].at_ms - 500) / 1000 if self.edits else None

    def members(self, root: int) -> Ids:
        """Return the supervoxels of a root, current or not, sorted."""
        made = float(self.root_timestamps([root])[0])
        within: Ids = self.supervoxels[self.roots_at(self.supervoxels, made) == np.uint64(root)]
        return within

    def _rows(self, roots: Sequence[int], at: float) -> npt.NDArray[np.intp]:
        wanted = np.unique(np.asarray(roots, np.uint64))
        if len(wanted) != len(roots) or not np.isin(wanted, self._chain[:, -1]).all():
            raise ValueError(f"edits take distinct current roots, found {list(roots)}")
        earliest = max([*(edit.at_ms for edit in self.edits[-1:]), int(self._roots[0][1][0])])
        if to_milliseconds(at) <= earliest:
            raise ValueError(f"edits go forward in time: {at} is not after {earliest / 1000}")
        return np.flatnonzero(np.isin(self._chain[:, -1], wanted))

    def _record(self, at: float, former: list[Ids], new: Ids) -> None:
        self.edits.append(Edit(to_milliseconds(at), tuple(former), new))
        for root in np.unique(np.concatenate(former)):
            self._replaced[int(root)] = to_milliseconds(at)
        self._history = None

    def _regroup(self, rows: npt.NDArray[np.intp], group: npt.NDArray[np.intp], at_ms: int,
                 layer2_ms: int | None = None) -> Ids:
        """Give whole roots' supervoxels new roots, one a group (from 0), and new nodes only where something changed."""
        supervoxels, old = self.supervoxels[rows], self._chain[rows]
        below, changed_below = supervoxels, np.zeros(len(rows), bool)
        for column, layer in enumerate(range(2, self.layout.n_layers + 1)):
            chunks = self.layout.chunks_above(supervoxels, layer)
            unique_chunks, chunk = np.unique(chunks, return_inverse=True)
            keys, node = np.unique(chunk * (group.max() + 1) + group, return_inverse=True)
            before, members_before = np.unique(old[:, column], return_inverse=True)
            same = np.bincount(members_before)[members_before] == np.bincount(node)[node]
            fresh = np.zeros(len(keys), bool)
            # A node stays if it is one that was, with the same members, and those didn't change either.
            fresh[node[~same | changed_below | (before == 0)[members_before]]] = True
            if layer == self.layout.n_layers:
                fresh[:] = True
            ids = np.zeros(len(keys), np.uint64)
            ids[node] = old[:, column]
            ids[fresh] = self._new_ids(unique_chunks[(keys // (group.max() + 1))[fresh]])
            nodes, changed = ids[node], fresh[node]
            moved = changed | changed_below
            child, first = np.unique(below[moved], return_index=True)
            written = layer2_ms if layer == 2 and layer2_ms is not None else at_ms
            self._edges.append((child, np.full(len(child), written), nodes[moved][first]))
            self._chain[rows, column] = nodes
            below, changed_below = nodes, changed
        self._roots.append((ids, np.full(len(ids), at_ms)))
        return ids

    def _new_ids(self, chunks: Ids) -> Ids:
        """Return an unused id in each chunk, given as ids with segment 0, repeats allowed."""
        order = np.argsort(chunks, kind="stable")
        unique, first, counts = np.unique(chunks[order], return_index=True, return_counts=True)
        used = [self._segments.get(int(chunk), 0) for chunk in unique]
        for chunk, count, last in zip(unique, counts, used, strict=True):
            self._segments[int(chunk)] = last + int(count)
        segments = np.arange(len(chunks)) - np.repeat(first - np.array(used, np.int64), counts) + 1
        ids = np.empty(len(chunks), np.uint64)
        ids[order] = chunks[order] + segments.astype(np.uint64)
        return ids

    def _compile(self) -> History:
        with self._lock:
            if self._history is None:
                child, since, parent = (np.concatenate(parts) for parts in zip(*self._edges, strict=True))
                order = np.lexsort((since, child))
                roots, made = (np.concatenate(parts) for parts in zip(*self._roots, strict=True))
                rank = np.argsort(roots)
                until = np.full(len(roots), FOREVER_MS)
                replaced = np.array(list(self._replaced), np.uint64)
                until[rank[np.searchsorted(roots[rank], replaced)]] = list(self._replaced.values())
                self._edges = [(child[order], since[order], parent[order])]
                self._history = History(child[order], since[order], parent[order], roots[rank], made[rank], until[rank])
            return self._history
