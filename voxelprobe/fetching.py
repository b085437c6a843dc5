"""Chunks from the store into the cache: indices once, neighbouring ranges together, many at a time."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from voxelprobe.arrays import Bool, Int64
from voxelprobe.cache.protocol import ABSENT, ChunkCache
from voxelprobe.codecs.parts import pack_parts, unpack_parts
from voxelprobe.errors import CorruptDataError, InputError
from voxelprobe.fetching_ranges import ChunkResult
from voxelprobe.fetching_shards import ShardFetcher
from voxelprobe.fetching_voxels import can_read_voxels, choose_reads, read_voxels
from voxelprobe.fetching_zarr_shards import ZarrShardFetcher
from voxelprobe.memory import keep_freed_memory
from voxelprobe.opening import Volume
from voxelprobe.planning import ChunkJobs
from voxelprobe.sharding.boxes import BoxSharding
from voxelprobe.transport.jobs import Done, Job, JobRunner
from voxelprobe.transport.protocol import Request, StoredObject
from voxelprobe.transport.sources import RetryingSource
from voxelprobe.transport.wrappers import check_encoding, strip_compression

# A commit is what a kill can't undo; many chunks share the cost of one.
COMMIT_CHUNKS = 256
COMMIT_BYTES = 32 << 20
# Payloads on their way to the disk: of usual chunks one batch is written while the next is collected. A disk that is
# slower than the store holds the store up.
_UNWRITTEN_BYTES = 24 << 20
# Asked of the cache at once; bounds what one query returns.
_QUERY_CHUNKS = 4_096
# Chunks of which it is tried whether single voxels can be read.
_PROBES = 4

Progress = Callable[[int, int], None]
"""Told of chunks done and bytes received since the last call."""


@dataclass(slots=True)
class FetchReport:
    """What fetching some jobs came to.

    Attributes
    ----------
    chunks, cached, fetched, absent
        Needed; found in the cache; asked of the store; of those asked for, what the store doesn't have.
    by_range
        Left for decoding to read just their voxels from the store; not fetched.
    requests, bytes, retries
        What went over the wire.
    corrupt
        Message by chunk number, for chunks that shards have no sound bytes for.
    """

    chunks: int = 0
    cached: int = 0
    fetched: int = 0
    absent: int = 0
    by_range: int = 0
    requests: int = 0
    bytes: int = 0
    retries: int = 0
    corrupt: dict[int, str] = field(default_factory=dict)


def fetch_chunks(
    volume: Volume, jobs: ChunkJobs, cache: ChunkCache, *, threads: int, missing_is_error: bool, progress: Progress
) -> FetchReport:
    """Bring every chunk of `jobs` that the cache lacks into it, and return what that took.

    Where single voxels may be read (`can_read_voxels`), jobs need their points, and chunks of which voxels are cheaper
    are left out.

    Raises
    ------
    InputError
        If the store lacks a chunk and `missing_is_error`.
    AuthorizationError, TransportError
        If the store refuses, or gives no answer after all tries. What was committed stays.
    """
    report = FetchReport(chunks=len(jobs.chunks))
    wanted = ~find_cached(cache, jobs)
    report.cached = len(wanted) - int(wanted.sum())
    if can_read_voxels(volume):
        wanted &= ~_find_ranged(volume, jobs, wanted, threads)
        report.by_range = len(wanted) - report.cached - int(wanted.sum())
    progress(report.cached + report.by_range, 0)
    lacking = jobs.chunks[wanted]
    if not len(lacking):
        return report
    regions = dict(zip(lacking.tolist(), jobs.regions[wanted].tolist(), strict=True))
    with closing(volume.open_source(threads=threads)) as source:
        writer = _BatchWriter(cache, regions)
        try:
            for chunk, fetched in stream_chunks(volume, source, lacking, threads=threads):
                received = source.traffic.bytes - report.bytes
                report.bytes += received
                report.fetched += 1
                progress(1, received)
                if isinstance(fetched, CorruptDataError):
                    report.corrupt[chunk] = str(fetched)
                    continue
                if not fetched.content:
                    report.absent += 1
                if missing_is_error and lacks_object(volume, fetched.content):
                    raise_missing(volume, chunk)
                writer.add(chunk, fetched)
        finally:
            # Also after an error: what came is not fetched again.
            writer.close()
            traffic = source.traffic
            report.requests, report.bytes, report.retries = traffic.requests, traffic.bytes, traffic.retries
    return report


def find_cached(cache: ChunkCache, jobs: ChunkJobs) -> Bool:
    """Return which chunks of `jobs` the cache has, shape (m,)."""
    found = np.zeros(len(jobs.chunks), np.bool_)
    for region, begin, end in jobs.by_region(_QUERY_CHUNKS):
        chunks = jobs.chunks[begin:end].tolist()
        known = cache.known(region, chunks)
        found[begin:end] = [chunk in known for chunk in chunks]
    return found


def _find_ranged(volume: Volume, jobs: ChunkJobs, wanted: Bool, threads: int) -> Bool:
    """Return which of the wanted chunks are cheaper to read by voxel, shape (m,); none if the store says otherwise."""
    reads = choose_reads(volume, jobs)
    which = np.flatnonzero(wanted[reads.rows])
    ranged = np.zeros(len(jobs.chunks), np.bool_)
    if len(which):
        probes = which[:: -(-len(which) // _PROBES)].tolist()
        with closing(volume.open_source(threads=threads)) as source:
            answers = [found for _, found in read_voxels(volume, source, jobs, reads, probes, threads=threads)]
        # Chunks are compressed, or servers without ranges, all or none.
        ranged[reads.rows[which]] = any(found is not None for found in answers)
    return ranged


def stream_chunks(
    volume: Volume, source: RetryingSource, chunks: Int64, *, threads: int
) -> Iterator[ChunkResult]:
    """Yield each chunk's number with the chunk as stored, `ABSENT` or what is wrong with it, as they arrive."""
    keep_freed_memory()
    sharding = volume.scale.sharding
    jobs: Iterator[Job[ChunkResult]]
    most = max_payload_bytes(volume)
    if sharding is None:
        jobs = (_fetch_chunk(volume, names, chunk, most) for chunk, names in _chunk_names(volume, chunks))
    elif isinstance(sharding, BoxSharding):
        jobs = ZarrShardFetcher(source, volume, sharding, most).jobs(chunks)
    else:
        jobs = ShardFetcher(source, volume, sharding, most).jobs(chunks)
    # Segmentations are compressed at least so much.
    usual_bytes = volume.scale.chunk_bytes // 8
    with closing(source.open_transfers(limit=threads)) as transfers:
        yield from JobRunner[ChunkResult](transfers, limit=threads, usual_bytes=usual_bytes).run(jobs)


def _chunk_names(volume: Volume, chunks: Int64) -> Iterator[tuple[int, tuple[str, ...]]]:
    scale = volume.scale
    for begin in range(0, len(chunks), _QUERY_CHUNKS):
        part = chunks[begin : begin + _QUERY_CHUNKS]
        for chunk, (x, y, z) in zip(part.tolist(), volume.grid.positions(part).tolist(), strict=True):
            yield chunk, tuple(map(scale.path, scale.names.of(volume.grid, (x, y, z))))


def _fetch_chunk(volume: Volume, names: tuple[str, ...], chunk: int, max_bytes: int) -> Job[ChunkResult]:
    """Fetch a chunk that is an object, or several of them.

    What nobody could decode is refused here: in the cache it would outlive its being mended in the store.
    """
    answers = yield [Request(name) for name in names]
    stored = [answer for answer in answers if answer is not None]
    for part in stored:
        check_encoding(part.encoding)
    if not stored or (len(stored) < len(names) and volume.scale.fill_value is None):
        return Done([(chunk, ABSENT)])
    if len(names) == 1:
        (answer,) = stored
    else:
        try:
            answer = StoredObject(pack_parts([
                None if part is None else bytes(strip_compression(part.content, part.encoding, max_bytes=max_bytes))
                for part in answers
            ]), None)
        except CorruptDataError as error:
            return Done([(chunk, error)])
    if not answer.content and volume.scale.fill_value is None:
        return Done([(chunk, ABSENT)])
    if not 0 < (size := len(answer.content)) <= max_bytes:
        return Done([(chunk, CorruptDataError(f"expected a chunk of at most {max_bytes} bytes, found {size}"))])
    return Done([(chunk, answer)])


def max_payload_bytes(volume: Volume) -> int:
    """Return how large an encoded chunk can honestly be: a bound on what damaged bytes make us allocate."""
    return 4 * volume.scale.chunk_bytes + (1 << 20)


def lacks_object(volume: Volume, payload: bytes | bytearray) -> bool:
    """Return whether the store lacks a chunk of this payload, or an object of those that make it.

    Raises
    ------
    CorruptDataError
        If the payload isn't those objects.
    """
    return not payload or None in unpack_parts(payload, volume.scale.num_parts)


def raise_missing(volume: Volume, chunk: int) -> None:
    """Raise the error for a chunk that the store lacks when missing chunks are errors."""
    fill = volume.scale.fill_value
    given = "no label and the status missing_chunk" if fill is None else f"the volume's fill value {fill}"
    raise InputError(
        f"{volume.chunk_label(chunk)} is not in the store; with --missing-chunks null its points get {given}"
    )


class _BatchWriter:
    """Collects chunks by region, and commits them in batches while more are fetched.

    One thread writes, and holds the interpreter lock for little of that time.
    """

    def __init__(self, cache: ChunkCache, regions: dict[int, int]) -> None:
        self._cache = cache
        self._regions = regions
        self._left: dict[int, int] = defaultdict(int)
        for region in regions.values():
            self._left[region] += 1
        self._pending: dict[int, dict[int, StoredObject]] = defaultdict(dict)
        self._bytes: dict[int, int] = defaultdict(int)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fetch-write")
        self._written: deque[tuple[Future[None], int]] = deque()
        self._unwritten_bytes = 0

    def add(self, chunk: int, stored: StoredObject) -> None:
        """Keep a chunk.

        Raises
        ------
        TransportError
            If an earlier one couldn't be written.
        """
        region = self._regions[chunk]
        batch = self._pending[region]
        batch[chunk] = stored
        self._left[region] -= 1
        self._bytes[region] += len(stored.content)
        if len(batch) >= COMMIT_CHUNKS or self._bytes[region] >= COMMIT_BYTES or not self._left[region]:
            self._flush(region)

    def close(self) -> None:
        """Write what is left; everything is committed when this returns."""
        try:
            for region in list(self._pending):
                self._flush(region)
            self._wait(0)
        finally:
            self._pool.shutdown()

    def _flush(self, region: int) -> None:
        batch, size = self._pending.pop(region), self._bytes.pop(region)
        self._unwritten_bytes += size
        self._written.append((self._pool.submit(self._cache.write, region, batch), size))
        self._wait(_UNWRITTEN_BYTES)

    def _wait(self, most_bytes: int) -> None:
        """Wait until at most so many bytes are to be written, and raise what went wrong."""
        while self._written and (self._unwritten_bytes > most_bytes or not most_bytes or self._written[0][0].done()):
            future, size = self._written.popleft()
            self._unwritten_bytes -= size
            future.result()
