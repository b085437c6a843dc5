"""Chunks from the store into the cache: indices once, neighbouring ranges together, many at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from voxelprobe.arrays import Int64
from voxelprobe.cache.protocol import ABSENT, ChunkCache
from voxelprobe.errors import CorruptDataError, InputError
from voxelprobe.fetching_shards import ShardFetcher
from voxelprobe.opening import Volume
from voxelprobe.planning import ChunkJobs
from voxelprobe.transport.sources import RetryingSource

# A commit is what a kill can't undo; many chunks share the cost of one.
COMMIT_CHUNKS = 64
COMMIT_BYTES = 32 << 20
# Asked of the cache at once; bounds what one query returns.
_QUERY_CHUNKS = 4_096

Payload = bytes | CorruptDataError
Progress = Callable[[int, int], None]
"""Told of chunks done and bytes received since the last call."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(slots=True)
class FetchReport:
    """What fetching some jobs came to.

    Attributes
    ----------
    chunks, cached, fetched, absent
        Needed; found in the cache; asked of the store; of those asked for, what the store doesn't have.
    requests, bytes, retries
        What went over the wire.
    corrupt
        Message by chunk number, for chunks that came damaged twice.
    """

    chunks: int = 0
    cached: int = 0
    fetched: int = 0
    absent: int = 0
    requests: int = 0
    bytes: int = 0
    retries: int = 0
    corrupt: dict[int, str] = field(default_factory=dict)


def fetch_chunks(
    volume: Volume, jobs: ChunkJobs, cache: ChunkCache, *, threads: int, missing_is_error: bool, progress: Progress
) -> FetchReport:
    """Bring every chunk of `jobs` that the cache lacks into it, and return what that took.

    Raises
    ------
    InputError
        If the store lacks a chunk and `missing_is_error`.
    AuthorizationError, TransportError
        If the store refuses, or gives no answer after all tries. What was committed stays.
    """
    report = FetchReport(chunks=len(jobs.chunks))
    lacking: list[int] = []
    regions: dict[int, int] = {}
    for region, begin, end in jobs.by_region(_QUERY_CHUNKS):
        chunks = jobs.chunks[begin:end].tolist()
        known = cache.known(region, chunks)
        report.cached += len(known)
        progress(len(known), 0)
        wanted = [chunk for chunk in chunks if chunk not in known]
        lacking += wanted
        regions.update(dict.fromkeys(wanted, region))
    if not lacking:
        return report
    writer = _BatchWriter(cache, regions)
    with closing(volume.open_source(threads=threads)) as source:
        try:
            for chunk, payload in stream_chunks(volume, source, np.array(lacking, np.int64), threads=threads):
                received = source.traffic.bytes - report.bytes
                report.bytes += received
                report.fetched += 1
                progress(1, received)
                if isinstance(payload, CorruptDataError):
                    report.corrupt[chunk] = str(payload)
                    continue
                if payload == ABSENT:
                    report.absent += 1
                    if missing_is_error:
                        raise_missing(volume, chunk)
                writer.add(chunk, payload)
        finally:
            # Also after an error: what came is not fetched again.
            writer.flush_all()
            traffic = source.traffic
            report.requests, report.bytes, report.retries = traffic.requests, traffic.bytes, traffic.retries
    return report


def stream_chunks(
    volume: Volume, source: RetryingSource, chunks: Int64, *, threads: int
) -> Iterator[tuple[int, Payload]]:
    """Yield each chunk's number and its stripped payload, `ABSENT` or what is wrong with it, as they arrive."""
    max_bytes = max_payload_bytes(volume)
    if volume.scale.sharding is not None:
        fetcher = ShardFetcher(source, volume, volume.scale.sharding, max_bytes)
        # Indices of the next shards are read while the chunks of these arrive.
        parts = stream(fetcher.find_spans, fetcher.shards(chunks), threads=min(threads, 8))
        for results in stream(fetcher.fetch_span, (job for jobs in parts for job in jobs), threads=threads):
            yield from results
        return
    positions = volume.grid.positions(chunks).tolist()

    def fetch_one(item: tuple[int, list[int]]) -> tuple[int, Payload]:
        chunk, (x, y, z) = item
        name = f"{volume.scale.key}/{volume.grid.chunk_name((x, y, z))}"
        try:
            return chunk, source.fetch_stripped(name, max_bytes=max_bytes) or ABSENT
        except CorruptDataError as error:
            return chunk, error

    yield from stream(fetch_one, zip(chunks.tolist(), positions, strict=True), threads=threads)


def stream(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int
) -> Iterator[_Result]:
    """Yield `work(item)` for every item as they get done, with a bounded number under way.

    The first exception ends it: nothing further is started, and the exception is raised.
    """
    results: SimpleQueue[tuple[_Result | None, BaseException | None]] = SimpleQueue()

    def run(item: _Item) -> None:
        try:
            results.put((work(item), None))
        except BaseException as error:
            results.put((None, error))

    def take() -> _Result:
        result, error = results.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # a result of None is one of _Result

    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        under_way = 0
        for item in items:
            pool.submit(run, item)
            under_way += 1
            if under_way >= 2 * threads:
                yield take()
                under_way -= 1
        while under_way:
            yield take()
            under_way -= 1
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def max_payload_bytes(volume: Volume) -> int:
    """Return how large an encoded chunk can honestly be: a bound on what damaged bytes make us allocate."""
    scale = volume.scale
    return 4 * math.prod(scale.chunk_size) * scale.dtype.itemsize * scale.num_channels + (1 << 20)


def raise_missing(volume: Volume, chunk: int) -> None:
    """Raise the error for a chunk that the store lacks when missing chunks are errors."""
    raise InputError(
        f"{volume.chunk_label(chunk)} is not in the store; with --missing-chunks null its points "
        "get no label and the status missing_chunk"
    )


class _BatchWriter:
    """Collects payloads by region and commits them in batches."""

    def __init__(self, cache: ChunkCache, regions: dict[int, int]) -> None:
        self._cache = cache
        self._regions = regions
        self._left: dict[int, int] = defaultdict(int)
        for region in regions.values():
            self._left[region] += 1
        self._pending: dict[int, dict[int, bytes]] = defaultdict(dict)
        self._bytes: dict[int, int] = defaultdict(int)

    def add(self, chunk: int, payload: bytes) -> None:
        region = self._regions[chunk]
        batch = self._pending[region]
        batch[chunk] = payload
        self._left[region] -= 1
        self._bytes[region] += len(payload)
        if len(batch) >= COMMIT_CHUNKS or self._bytes[region] >= COMMIT_BYTES or not self._left[region]:
            self._flush(region)

    def flush_all(self) -> None:
        for region in list(self._pending):
            self._flush(region)

    def _flush(self, region: int) -> None:
        if batch := self._pending.pop(region, None):
            self._bytes.pop(region)
            self._cache.write(region, batch)


