"""Other ways to the same table, each a whole process: `python -m benchmarks.peers NAME --volume URL --points FILE …`.

Reads the Parquet table of points, asks the library for the label under each, writes the table with a `label` column.

`tensorstore`: as a good engineer would write it, in one of several ways (`WAYS`); `benchmarks.cases` says which
was the fastest where, and what was measured.
`cloudvolume`: `scattered_points` with a cache of decoded chunks; meant for thousands of points.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IN_FLIGHT = 64


def open_tensorstore(url: str, cache_bytes: int, concurrency: int) -> Any:
    import tensorstore as ts

    context = ts.Context({
        "http_request_concurrency": {"limit": concurrency},
        "cache_pool": {"total_bytes_limit": cache_bytes},
    })
    return ts.open({"driver": "neuroglancer_precomputed", "kvstore": url.rstrip("/") + "/"},
                   context=context, read=True).result()[..., 0]


def sort_by_chunk(store: Any, voxels: Any) -> tuple[Any, Any, Any]:
    """Return the order of points by chunk, where each chunk's begin in it, and the chunks' positions (n, 3)."""
    shape = np.array(store.chunk_layout.read_chunk.shape[:3])
    grid = -(-np.array(store.shape) // shape)
    x, y, z = (voxels[:, axis] // shape[axis] for axis in range(3))
    chunks = (z * grid[1] + y) * grid[0] + x
    if grid.prod() <= 1 << 16:
        chunks = chunks.astype(np.uint16)  # numpy sorts these in linear time
    order = np.argsort(chunks, kind="stable")
    ordered = chunks[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    number = ordered[first].astype(np.int64)
    positions = np.stack([number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1])], 1)
    return order, np.append(first, len(order)), positions


def read_at_once(store: Any, voxels: Any) -> Any:
    return store.vindex[tuple(voxels.T)].read().result()


def read_at_once_sorted(store: Any, voxels: Any) -> Any:
    order, _, _ = sort_by_chunk(store, voxels)
    labels = np.empty(len(voxels), np.uint64)
    labels[order] = read_at_once(store, voxels[order])
    return labels


def read_blocks(store: Any, voxels: Any, *, chunks: int = 1, batch: bool = False) -> Any:
    """Ask for the points of some chunks at a time, with as many chunks under way as requests."""
    import tensorstore as ts

    order, first, _ = sort_by_chunk(store, voxels)
    voxels = voxels[order]
    cuts = np.append(first[:-1:chunks], len(order))
    ordered = np.empty(len(voxels), np.uint64)
    waiting: deque[tuple[int, int, Any]] = deque()

    def take() -> None:
        begin, end, future = waiting.popleft()
        ordered[begin:end] = future.result()

    for begin, end in itertools.pairwise(cuts):
        group = ts.Batch() if batch else None
        waiting.append((begin, end, store.vindex[tuple(voxels[begin:end].T)].read(batch=group)))
        if group is not None:
            group.submit()
        if len(waiting) * chunks >= 2 * IN_FLIGHT:
            take()
    while waiting:
        take()
    labels = np.empty(len(voxels), np.uint64)
    labels[order] = ordered
    return labels


def read_chunks(store: Any, voxels: Any, *, batch: int = 0) -> Any:
    """Read every chunk that has points, as many at a time as requests, and index it in numpy."""
    import tensorstore as ts

    order, first, positions = sort_by_chunk(store, voxels)
    shape = np.array(store.chunk_layout.read_chunk.shape[:3])
    corners = positions * shape
    ends = np.minimum(corners + shape, store.shape)
    labels = np.empty(len(voxels), np.uint64)
    waiting: deque[tuple[int, Any]] = deque()

    def take() -> None:
        number, future = waiting.popleft()
        points = order[first[number]:first[number + 1]]
        x, y, z = (voxels[points] - corners[number]).T
        labels[points] = future.result()[x, y, z]

    for begin in range(0, len(corners), batch or 1):
        group = ts.Batch() if batch else None
        for number in range(begin, min(begin + (batch or 1), len(corners))):
            (x, y, z), (x_end, y_end, z_end) = corners[number], ends[number]
            chunk = store[x:x_end, y:y_end, z:z_end]
            waiting.append((number, chunk.read(batch=group)))
        if group is not None:
            group.submit()
        while len(waiting) >= IN_FLIGHT:
            take()
    while waiting:
        take()
    return labels


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "vindex": read_at_once,
    "vindex-sorted": read_at_once_sorted,
    "blocks-1": read_blocks,
    "blocks-16": lambda store, voxels: read_blocks(store, voxels, chunks=16),
    "blocks-64": lambda store, voxels: read_blocks(store, voxels, chunks=64),
    "blocks-256": lambda store, voxels: read_blocks(store, voxels, chunks=256),
    "blocks-64-batch": lambda store, voxels: read_blocks(store, voxels, chunks=64, batch=True),
    "blocks-256-batch": lambda store, voxels: read_blocks(store, voxels, chunks=256, batch=True),
    "chunks": read_chunks,
    "chunks-batch": lambda store, voxels: read_chunks(store, voxels, batch=IN_FLIGHT),
}


def read_scattered(url: str, voxels: Any) -> Any:
    import cloudvolume

    volume = cloudvolume.CloudVolume(f"precomputed://{url}", progress=False, lru_bytes=4 << 30)
    found = volume.scattered_points(voxels)
    return np.array([found[point] for point in map(tuple, voxels.tolist())], np.uint64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("tensorstore", "cloudvolume"))
    parser.add_argument("--volume", required=True)
    parser.add_argument("--points", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS, default="vindex")
    parser.add_argument("--cache-bytes", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=IN_FLIGHT)
    options = parser.parse_args()
    table = pq.read_table(options.points)
    voxels = np.stack([table[name].to_numpy() for name in "xyz"], 1)
    started = time.perf_counter()
    if options.name == "tensorstore":
        labels = WAYS[options.way](open_tensorstore(options.volume, options.cache_bytes, options.concurrency), voxels)
    else:
        labels = read_scattered(options.volume, voxels)
    print(f"sampled in {time.perf_counter() - started:.3f} s")
    pq.write_table(table.append_column("label", pa.array(labels)), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
