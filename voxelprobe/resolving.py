"""Supervoxels to roots: which ids are asked for, in which requests, and which answers count.

The graph server is a function of ids here, as `GraphClient.fetch_roots` with its timestamp is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Bool, UInt64
from voxelprobe.errors import InputError
from voxelprobe.graphene.asking import ATTEMPTS, Sleep, ask_in_batches
from voxelprobe.graphene.ids import GraphLayout

OnBatch = Callable[[int, UInt64, UInt64], None]


@dataclass(frozen=True, slots=True)
class ResolvedRoots:
    """The root of each id.

    Attributes
    ----------
    roots
        Shape (n,), uint64, in the order of the ids; 0 where the id is 0 or has no root.
    resolved
        Shape (n,): false where the graph has no root for the id at that time.
    asked
        How many ids the server was asked for.
    """

    roots: UInt64
    resolved: Bool
    asked: int


def resolve_roots(
    ids: UInt64,
    *,
    fetch: Callable[[UInt64], UInt64],
    layout: GraphLayout,
    stop_layer: int | None,
    batch_size: int,
    concurrency: int,
    on_batch: OnBatch | None = None,
    known: tuple[UInt64, UInt64] | None = None,
    attempts: int = ATTEMPTS,
    sleep: Sleep | None = None,
) -> ResolvedRoots:
    """Return the root of each id, or its parent at a lower layer, asking for each different id once.

    The id 0 is its own root, and so is an id at the wanted layer or above: neither is asked for, as
    in CloudVolume's `get_roots`. An answer counts if it is at the wanted layer or, where the graph
    skips that layer, above it; else (0, the id echoed, a layer below) the id has no root.

    Parameters
    ----------
    ids
        Shape (n,), uint64, in any order, repeats allowed.
    fetch
        Returns the server's answers for ids, in their order; called from several threads.
    stop_layer
        The wanted layer, as in CloudVolume: 1 gives the supervoxels themselves, None the roots.
    batch_size, concurrency
        How many ids a request carries at most, and how many requests are made at once.
    on_batch
        Called in the caller's thread for each finished batch with the place of its first id among
        the sorted ids that are asked for, those ids, and their roots (0: none). When a batch fails
        half way, it is called for the answered ones. What it raises ends the work.
    known
        Ids and roots that `on_batch` was called with in an earlier try at the same timestamp and
        layer, in any order: these aren't asked for.
    sleep
        How to wait. Without it, a failure elsewhere ends the wait.

    Raises
    ------
    InputError
        If the graph has no such layer, or the server says so.
    AuthorizationError
        If the server refuses us.
    TransportError
        If it doesn't answer after all tries.
    """
    wanted = wanted_layer(layout, stop_layer)
    layers = layout.layers_of(ids)
    own = (ids == 0) | ((layers >= wanted) & (layers <= layout.n_layers))
    # Ids of a layer that no graph has are no one's: the server need not be asked (and may answer 500).
    below = ~own & (layers >= 1) & (layers < wanted)
    different = np.unique(ids[below])
    table_ids, table_roots = known if known is not None else (different[:0], different[:0])
    table_roots = _keep_valid(table_roots, layout, wanted)
    to_ask = different[~np.isin(different, table_ids)] if len(table_ids) else different

    def ask(piece: UInt64) -> UInt64:
        return _keep_valid(fetch(piece), layout, wanted)

    answers = ask_in_batches(
        to_ask, ask, dtype=np.uint64, batch_size=batch_size, concurrency=concurrency, on_batch=on_batch,
        attempts=attempts, sleep=sleep,
    )
    table_ids, table_roots = np.concatenate([to_ask, table_ids]), np.concatenate([answers, table_roots])
    order = np.argsort(table_ids, kind="stable")
    roots = np.where(own, ids, np.uint64(0))
    if len(different):
        roots[below] = table_roots[order[np.searchsorted(table_ids, ids[below], sorter=order)]]
    return ResolvedRoots(roots, own | (roots != 0), len(to_ask))


def find_latest_roots(
    roots: UInt64,
    *,
    ask: Callable[[UInt64], Bool],
    layout: GraphLayout,
    batch_size: int,
    concurrency: int,
    attempts: int = ATTEMPTS,
    sleep: Sleep | None = None,
) -> Bool:
    """Return which ids are roots that no edit has replaced, asking for each different one once; shape (n,).

    Ids that aren't of the root layer (0 too) are false without being asked for. See `resolve_roots`.
    """
    rooted = layout.layers_of(roots) == layout.n_layers
    different, place = np.unique(roots[rooted], return_inverse=True)
    latest = np.zeros(len(roots), np.bool_)
    latest[rooted] = ask_in_batches(
        different, ask, dtype=np.bool_, batch_size=batch_size, concurrency=concurrency, attempts=attempts, sleep=sleep
    )[place]
    return latest


def wanted_layer(layout: GraphLayout, stop_layer: int | None) -> int:
    """Return the layer that is resolved to: the roots' for None.

    Raises
    ------
    InputError
        If the graph has no such layer.
    """
    if stop_layer is None:
        return layout.n_layers
    if not 1 <= stop_layer <= layout.n_layers:
        raise InputError(f"stop layer {stop_layer}: expected 1 to {layout.n_layers}, the layers of this graph")
    return stop_layer


def _keep_valid(roots: UInt64, layout: GraphLayout, wanted: int) -> UInt64:
    """Return roots with 0 in place of what isn't at the wanted layer or above."""
    layers = layout.layers_of(roots)
    return np.where((layers >= wanted) & (layers <= layout.n_layers), roots, np.uint64(0))
