"""Labels of points out of encoded chunks, and nothing else of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Bool, Labels
from voxelprobe.cache.protocol import ChunkCache
from voxelprobe.errors import CorruptDataError
from voxelprobe.fetching import Progress, find_cached, lacks_object, max_payload_bytes, raise_missing, stream_chunks
from voxelprobe.fetching_voxels import can_read_voxels, choose_reads, read_voxels
from voxelprobe.memory import keep_freed_memory
from voxelprobe.opening import Volume
from voxelprobe.planning import ChunkJobs
from voxelprobe.processes import run_isolated, shared_array
from voxelprobe.records import Status
from voxelprobe.transport.protocol import StoredObject
from voxelprobe.transport.wrappers import strip_compression

# Chunks held at once, as stored. They are counted by their decoded size, which bounds them all.
BATCH_BYTES = 512 << 20
BATCH_CHUNKS = 512

Fetched = StoredObject | CorruptDataError


@dataclass(frozen=True, slots=True)
class DecodedPoints:
    """Labels and statuses in the order of the jobs' points.

    Attributes
    ----------
    labels
        Shape (n, channels), the volume's dtype; meant only where status is OK.
    status
        Shape (n,), values of `Status`.
    corrupt
        Message by chunk number.
    fetched
        Chunks that the cache had lost or never had.
    by_range
        Chunks of which just the voxels were read, from the store.
    """

    labels: Labels
    status: npt.NDArray[np.uint8]
    corrupt: dict[int, str]
    fetched: int
    by_range: int = 0


def decode_points(
    volume: Volume, jobs: ChunkJobs, cache: ChunkCache, *, threads: int, missing_is_error: bool, progress: Progress
) -> DecodedPoints:
    """Read every point of `jobs` from the cached chunks; fetch the chunks that the cache lacks.

    A chunk that contradicts its format is fetched and read once more, since the cache or the way
    may have damaged it; then its points are `CORRUPT_CHUNK`.

    Raises
    ------
    InputError
        If the store lacks a chunk and `missing_is_error`.
    TransportError
        If a lacking chunk can't be fetched.
    """
    decoder = _Decoder(volume, cache, threads, missing_is_error)
    if can_read_voxels(volume):
        labels, is_read = decoder.read_voxels(jobs, progress)
        rest, of_points = jobs.select(~is_read)
        decoded = _decode_chunks(decoder, rest, progress)
        labels[of_points] = decoded.labels
        status = np.full(len(jobs.points), Status.OK, np.uint8)
        status[of_points] = decoded.status
        return DecodedPoints(labels, status, decoded.corrupt, decoded.fetched, int(is_read.sum()))
    return _decode_chunks(decoder, jobs, progress)


def _decode_chunks(decoder: _Decoder, jobs: ChunkJobs, progress: Progress) -> DecodedPoints:
    decoded = decoder.decode(jobs, progress)
    if not decoded.corrupt:
        return decoded
    again, of_points = jobs.select(np.isin(jobs.chunks, list(decoded.corrupt)))
    for region, begin, end in again.by_region(BATCH_CHUNKS):
        decoder.cache.discard(region, again.chunks[begin:end].tolist())
    second = decoder.decode(again, lambda chunks, received: None)
    decoded.labels[of_points] = second.labels
    decoded.status[of_points] = second.status
    return DecodedPoints(decoded.labels, decoded.status, second.corrupt, decoded.fetched + second.fetched)


class _Decoder:
    """What stays the same from batch to batch."""

    def __init__(self, volume: Volume, cache: ChunkCache, threads: int, missing_is_error: bool) -> None:
        self._volume = volume
        self.cache = cache
        self._threads = threads
        self._missing_is_error = missing_is_error
        self._reader = volume.load_reader()
        self._max_bytes = max_payload_bytes(volume)
        keep_freed_memory()

    def read_voxels(self, jobs: ChunkJobs, progress: Progress) -> tuple[Labels, Bool]:
        """Return the labels of the points of some chunks, read by byte ranges, and which chunks, shape (m,)."""
        scale = self._volume.scale
        labels = np.zeros((len(jobs.points), scale.num_channels), scale.dtype)
        is_read = np.zeros(len(jobs.chunks), np.bool_)
        reads = choose_reads(self._volume, jobs)
        cached = find_cached(self.cache, jobs)
        which = np.flatnonzero(~cached[reads.rows]).tolist()
        if which:
            with closing(self._volume.open_source(threads=self._threads)) as source:
                for row, found in read_voxels(self._volume, source, jobs, reads, which, threads=self._threads):
                    if found is not None:
                        labels[jobs.first[row] : jobs.first[row + 1]] = found
                        is_read[row] = True
                        progress(1, 0)
        return labels, is_read

    def decode(self, jobs: ChunkJobs, progress: Progress) -> DecodedPoints:
        scale = self._volume.scale
        # What a forked process fills in, this one has to see.
        allocate = shared_array if self._reader.ISOLATED else np.zeros
        labels = allocate((len(jobs.points), scale.num_channels), scale.dtype)
        status = allocate((len(jobs.points),), np.dtype(np.uint8))
        status.fill(Status.OK)
        corrupt: dict[int, str] = {}
        fetched = 0
        for begin, batch, lacked in self._batches(jobs):
            wrong = self._read_batch(jobs, begin, batch, labels, status)
            for index, message in wrong.items():
                status[jobs.first[index] : jobs.first[index + 1]] = Status.CORRUPT_CHUNK
                corrupt[int(jobs.chunks[index])] = message
            fetched += lacked
            progress(len(batch), 0)
        return DecodedPoints(labels, status, corrupt, fetched)

    def _batches(self, jobs: ChunkJobs) -> Iterator[tuple[int, list[Fetched], int]]:
        """Yield the jobs' chunks in runs: the index of the first, the chunks, and how many had to be fetched."""
        scale = self._volume.scale
        limit = max(1, min(BATCH_CHUNKS, BATCH_BYTES // scale.chunk_bytes))
        batch: list[Fetched] = []
        first = lacked = 0
        with ExitStack() as stack:
            source = None
            for region, begin, end in jobs.by_region(limit):
                chunks = jobs.chunks[begin:end].tolist()
                found: dict[int, Fetched] = dict(self.cache.read(region, chunks))
                lacking = [chunk for chunk in chunks if chunk not in found]
                if lacking:
                    lacked += len(lacking)
                    if source is None:
                        source = stack.enter_context(closing(self._volume.open_source(threads=self._threads)))
                    wanted = np.array(lacking, np.int64)
                    fresh = dict(stream_chunks(self._volume, source, wanted, threads=self._threads))
                    self.cache.write(region, {c: s for c, s in fresh.items() if isinstance(s, StoredObject)})
                    found.update(fresh)
                batch += [found[chunk] for chunk in chunks]
                if len(batch) >= limit:
                    yield first, batch, lacked
                    batch, first, lacked = [], end, 0
            if batch:
                yield first, batch, lacked

    def _read_batch(
        self, jobs: ChunkJobs, begin: int, batch: list[Fetched], labels: npt.NDArray[Any],
        status: npt.NDArray[np.uint8],
    ) -> dict[int, str]:
        """Fill in the labels and statuses of a batch's points; return what was wrong, by the chunk's index in `jobs`.

        Compression is taken off here and not before: one chunk at a time is held without it.
        """
        grid, scale = self._volume.grid, self._volume.scale
        positions = grid.positions(jobs.chunks[begin : begin + len(batch)]).tolist()
        bounds = jobs.first[begin : begin + len(batch) + 1].tolist()

        def read(item: int) -> None:
            fetched = batch[item]
            if isinstance(fetched, CorruptDataError):
                raise fetched
            points = slice(bounds[item], bounds[item + 1])
            payload = strip_compression(fetched.content, fetched.encoding, max_bytes=self._max_bytes)
            if self._missing_is_error and lacks_object(self._volume, payload):
                raise_missing(self._volume, int(jobs.chunks[begin + item]))
            # By zarr and n5 an object without a byte is damage, and not a chunk that isn't there.
            if not payload and (scale.fill_value is None or not fetched.content):
                if scale.fill_value is None:
                    status[points] = Status.MISSING_CHUNK
                else:
                    labels[points] = scale.fill_value
                return
            if self._reader.ISOLATED:
                payload = bytes(payload)  # those packages take nothing else
            x, y, z = positions[item]
            layout = scale.chunk_layout(grid.chunk_shape((x, y, z)))
            labels[points] = self._reader.read_points(payload, layout, grid.voxels_of(jobs.places[points]))

        if self._reader.ISOLATED:
            wrong = run_isolated(read, len(batch), what=f"the {scale.encoding} decoder")
            return {begin + item: message for item, message in wrong.items()}
        wrong = {}
        for item in range(len(batch)):
            try:
                read(item)
            except CorruptDataError as error:
                wrong[begin + item] = str(error)
        return wrong
