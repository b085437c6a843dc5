"""What K voxels of a raw chunk cost by byte ranges, against the whole chunk: `python -m benchmarks.crossovers.ranges`.

Prints microseconds of CPU a chunk for both ways, by turns, from a local disk and from a store on the loopback, and
their ratio. Whole chunks go through the cache on a disk, as in a run. The points are random: about one range each.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.store import serve
from voxelprobe import fetching_voxels
from voxelprobe.cache.disk import DiskCache
from voxelprobe.decoding import decode_points
from voxelprobe.fetching import fetch_chunks
from voxelprobe.opening import Volume, open_volume
from voxelprobe.planning import ChunkJobs, order_by_chunk
from voxelprobe.testing.volumes import write_volume

CHUNKS = ((32, 32, 32), (64, 64, 64), (128, 128, 64))
NUMBERS = (1, 4, 16, 64)
THREADS = 64
TURNS = 3


def make_jobs(volume: Volume, points_a_chunk: int) -> ChunkJobs:
    rng = np.random.default_rng(0)
    grid = volume.grid
    chunks = np.repeat(np.arange(np.prod(grid.shape)), points_a_chunk)
    places = rng.integers(0, np.prod(grid.chunk_size), len(chunks))
    return order_by_chunk(np.arange(len(chunks)), chunks, places, volume.regions)


def spend(volume: Volume, jobs: ChunkJobs, *, by_range: bool) -> float:
    """Return the seconds of CPU of fetching and decoding with an empty cache."""
    cost = 1 if by_range else 1 << 40
    fetching_voxels.REQUEST_BYTES = fetching_voxels.LOCAL_REQUEST_BYTES = cost
    with tempfile.TemporaryDirectory() as folder:
        cache = DiskCache(Path(folder), budget_bytes=1 << 40).of_scale(volume.url, volume.scale.fingerprint)
        begin = time.process_time()
        report = fetch_chunks(volume, jobs, cache, threads=THREADS, missing_is_error=True, progress=lambda *_: None)
        decode_points(volume, jobs, cache, threads=THREADS, missing_is_error=True, progress=lambda *_: None)
        spent = time.process_time() - begin
    expected = len(jobs.chunks) if by_range else 0
    if report.by_range != expected:
        raise RuntimeError(f"expected {expected} chunks to be read by range, found {report.by_range}")
    return spent


def main() -> int:
    print(f"{'chunk':>14} {'MB':>5} {'from':>6} {'points':>7} {'whole us':>9} {'ranges us':>10} {'ratio':>6}")
    for chunk in CHUNKS:
        with tempfile.TemporaryDirectory() as folder:
            size = tuple(extent * times for extent, times in zip(chunk, (4, 4, 2), strict=True))
            labels = np.random.default_rng(0).integers(0, 2**63, size, np.uint64)
            write_volume(Path(folder), labels, chunk_size=chunk)
            with serve(Path(folder)) as store:
                for name, url in (("disk", folder), ("store", store.url)):
                    volume = open_volume(url)
                    for number in NUMBERS:
                        jobs = make_jobs(volume, number)
                        turns = [[spend(volume, jobs, by_range=way) for way in (False, True)] for _ in range(TURNS)]
                        whole, ranges = (min(way) / len(jobs.chunks) * 1e6 for way in zip(*turns, strict=True))
                        print(f"{'x'.join(map(str, chunk)):>14} {np.prod(chunk) * 8 / 2**20:5.2f} {name:>6} "
                              f"{number:7} {whole:9.0f} {ranges:10.0f} {ranges / whole:6.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
