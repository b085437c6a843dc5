"""What resolving a million supervoxels costs, by batch size: `python benchmarks/graphene.py [IDS]`.

The graph server (`voxelprobe.testing.graph_server`) is in a process of its own, and so is each measurement, whose peak
memory is thus its own. Supervoxels are as a watershed has them: a few hundred a graph chunk, sorted. The double answers
from memory, in about a microsecond an id; so each batch size is measured with waits before the answers too: a round
trip, and what a server that reads a store may take an id. Ratios are to the best of the column. `lost` is the seconds
of work that a kill throws away at most. `rise` is what resolving adds to the process: answers and the checks of them.
All roots are compared with the graph's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from voxelprobe.graphene.table import fetch_table
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.resolving import resolve_roots
from voxelprobe.testing.graph_layout import GraphLayout
from voxelprobe.testing.graph_model import ChunkedGraph
from voxelprobe.testing.graph_server import GraphServer

BATCH_SIZES = (5_000, 10_000, 20_000, 50_000, 100_000)
CONCURRENCY = 2
LIMIT_MB = 500
CREATED = 1_600_000_000.0
A_CHUNK = 400
# Seconds before an answer, and for each id in it.
SERVERS = {"loopback": (0.0, 0.0), "50 ms away": (0.05, 0.0), "and 20 us an id": (0.05, 20e-6)}


def make_supervoxels(count: int) -> tuple[GraphLayout, np.ndarray]:
    """Return a layout and supervoxels of it, sorted and each once."""
    side = int(np.ceil((count / A_CHUNK) ** (1 / 3)))
    layout = GraphLayout((512, 512, 128), max(3, side.bit_length() + 2))
    rng = np.random.default_rng(1)
    chunks = np.argwhere(np.ones((side, side, side)))
    segments = np.sort(rng.permuted(np.tile(np.arange(1, 4 * A_CHUNK, dtype=np.uint64), (len(chunks), 1)), axis=1)
                       [:, :A_CHUNK], axis=1)
    ids = np.unique(layout.encode(1, chunks.repeat(A_CHUNK, axis=0), segments.ravel()))
    return layout, ids[:count]


def serve(count: int, connection: Any) -> None:
    """Serve a graph of `count` supervoxels until the other side says to stop."""
    layout, ids = make_supervoxels(count)
    graph = ChunkedGraph.from_supervoxels(ids, np.random.default_rng(2).integers(0, count // 100 + 1, len(ids)),
                                          layout=layout, created=CREATED)
    expected = graph.roots_at(ids, CREATED)
    with GraphServer(graph, data_dir="gs://bucket/ws", watershed_info={"scales": []}) as server:
        connection.send((server.cloudpath, ids, expected))
        while (latency := connection.recv()) is not None:
            server.latency_seconds = latency
            server.clear()
            connection.send(None)


def measure(cloudpath: str, file: str, batch_size: int, connection: Any) -> None:
    """Resolve the supervoxels of a file and send how that went, checkpoints as in a run included."""
    ids, expected = np.load(file)
    table, _ = fetch_table(cloudpath)
    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder, closing(table.open_client(connections=CONCURRENCY)) as client:
        def keep(begin: int, asked: np.ndarray, roots: np.ndarray) -> None:
            np.save(Path(folder, f"{begin}.npy"), np.stack([asked, roots]))

        begun, spent = time.perf_counter(), time.process_time()
        found = resolve_roots(
            ids, fetch=lambda some: client.fetch_roots(some, timestamp=Timestamp(int(CREATED * 1000))),
            layout=table.layout, stop_layer=None, batch_size=batch_size, concurrency=CONCURRENCY, on_batch=keep,
        )
        seconds, cpu = time.perf_counter() - begun, time.process_time() - spent
        requests = client.traffic.requests
    assert np.array_equal(found.roots, expected)
    connection.send({"seconds": seconds, "cpu": cpu, "requests": requests, "peak_mb": peak_mb(),
                     "rise_mb": peak_mb() - before})


def peak_mb() -> float:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def running(function: Any, *arguments: Any) -> Iterator[Any]:
    """Give the connection to a function in a new process, of which nothing is inherited."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=function, args=(*arguments, there))
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(30)
        process.kill()


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rows: dict[tuple[str, int], dict[str, float]] = {}
    with running(serve, count) as server, tempfile.TemporaryDirectory() as folder:
        cloudpath, ids, expected = server.recv()
        file = os.path.join(folder, "ids.npy")
        np.save(file, np.stack([ids, expected]))
        for name, (latency, per_id) in SERVERS.items():
            for batch_size in BATCH_SIZES:
                server.send(latency + per_id * batch_size)
                server.recv()
                with running(measure, cloudpath, file, batch_size) as measured:
                    rows[name, batch_size] = measured.recv()
        server.send(None)
    print(f"{len(ids):,} supervoxels, {CONCURRENCY} requests at once; ids a second, times slower than the best")
    print(f"{'batch':>8}{'requests':>10}" + "".join(f"{name:>22}" for name in SERVERS)
          + f"{'lost s':>8}{'CPU s':>8}{'peak MB':>9}{'rise MB':>9}")
    best = {name: min(rows[name, size]["seconds"] for size in BATCH_SIZES) for name in SERVERS}
    slowest = list(SERVERS)[-1]
    for size in BATCH_SIZES:
        row = rows[slowest, size]
        seconds = {name: rows[name, size]["seconds"] for name in SERVERS}
        cells = "".join(f"{len(ids) / seconds[name]:14,.0f} {seconds[name] / best[name]:6.2f}x" for name in SERVERS)
        lost = row["seconds"] / row["requests"] * CONCURRENCY
        print(f"{size:8,}{row['requests']:10.0f}{cells}{lost:8.1f}{row['cpu']:8.2f}{row['peak_mb']:9.0f}"
              f"{row['rise_mb']:9.0f}")
    peak = max(row["peak_mb"] for row in rows.values())
    print(f"peak of all: {peak:.0f} MB, of at most {LIMIT_MB}")
    return 0 if peak < LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
