"""Labels of points out of encoded chunks, and nothing else of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Labels
from voxelprobe.cache.protocol import ABSENT, ChunkCache
from voxelprobe.errors import CorruptDataError
from voxelprobe.fetching import Payload, Progress, raise_missing, stream_chunks
from voxelprobe.opening import Volume
from voxelprobe.planning import ChunkJobs
from voxelprobe.processes import run_isolated, shared_array
from voxelprobe.records import Status

# Encoded chunks held at once. They are counted by their decoded size, which bounds them all.
BATCH_BYTES = 512 << 20
BATCH_CHUNKS = 512


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
    """

    labels: Labels
    status: npt.NDArray[np.uint8]
    corrupt: dict[int, str]
    fetched: int


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
    decoded = decoder.decode(jobs, progress)
    if not decoded.corrupt:
        return decoded
    again, of_points = jobs.select(np.isin(jobs.chunks, list(decoded.corrupt)))
    for region, begin, end in again.by_region(BATCH_CHUNKS):
        cache.discard(region, again.chunks[begin:end].tolist())
    second = decoder.decode(again, lambda chunks, received: None)
    decoded.labels[of_points] = second.labels
    decoded.status[of_points] = second.status
    return DecodedPoints(decoded.labels, decoded.status, second.corrupt, decoded.fetched + second.fetched)


class _Decoder:
    """What stays the same from batch to batch."""

    def __init__(self, volume: Volume, cache: ChunkCache, threads: int, missing_is_error: bool) -> None:
        self._volume = volume
        self._cache = cache
        self._threads = threads
        self._missing_is_error = missing_is_error
        self._reader = volume.load_reader()

    def decode(self, jobs: ChunkJobs, progress: Progress) -> DecodedPoints:
        scale = self._volume.scale
        allocate = shared_array if self._reader.ISOLATED else np.zeros
        labels = allocate((len(jobs.points), scale.num_channels), scale.dtype)
        status = np.full(len(jobs.points), Status.OK, np.uint8)
        corrupt: dict[int, str] = {}
        fetched = 0
        for batch, lacked in self._batches(jobs):
            wrong = self._read_batch(jobs, batch, labels)
            for index, payload in batch:
                points = slice(jobs.first[index], jobs.first[index + 1])
                if index in wrong:
                    status[points] = Status.CORRUPT_CHUNK
                    corrupt[int(jobs.chunks[index])] = wrong[index]
                elif payload == ABSENT:
                    status[points] = Status.MISSING_CHUNK
            fetched += lacked
            progress(len(batch), 0)
        return DecodedPoints(labels, status, corrupt, fetched)

    def _batches(self, jobs: ChunkJobs) -> Iterator[tuple[list[tuple[int, Payload]], int]]:
        """Yield runs of (index of a chunk in `jobs`, its payload), and how many had to be fetched."""
        scale = self._volume.scale
        chunk_bytes = math.prod(scale.chunk_size) * scale.dtype.itemsize * scale.num_channels
        limit = max(1, min(BATCH_CHUNKS, BATCH_BYTES // chunk_bytes))
        batch: list[tuple[int, Payload]] = []
        lacked = 0
        with ExitStack() as stack:
            source = None
            for region, begin, end in jobs.by_region(limit):
                chunks = jobs.chunks[begin:end].tolist()
                payloads: dict[int, Payload] = dict(self._cache.read(region, chunks))
                lacking = [chunk for chunk in chunks if chunk not in payloads]
                if lacking:
                    lacked += len(lacking)
                    if source is None:
                        source = stack.enter_context(closing(self._volume.open_source(threads=self._threads)))
                    wanted = np.array(lacking, np.int64)
                    fresh = dict(stream_chunks(self._volume, source, wanted, threads=self._threads))
                    self._cache.write(region, {c: p for c, p in fresh.items() if isinstance(p, bytes)})
                    payloads.update(fresh)
                batch += [(begin + offset, payloads[chunk]) for offset, chunk in enumerate(chunks)]
                if len(batch) >= limit:
                    yield batch, lacked
                    batch, lacked = [], 0
            if batch:
                yield batch, lacked

    def _read_batch(
        self, jobs: ChunkJobs, batch: list[tuple[int, Payload]], labels: npt.NDArray[Any]
    ) -> dict[int, str]:
        """Fill in the labels of a batch's points; return what was wrong, by the chunk's index in `jobs`."""
        grid, scale = self._volume.grid, self._volume.scale
        wrong: dict[int, str] = {}
        sound: list[tuple[int, bytes]] = []
        for index, payload in batch:
            if isinstance(payload, CorruptDataError):
                wrong[index] = str(payload)
            elif payload == ABSENT:
                if self._missing_is_error:
                    raise_missing(self._volume, int(jobs.chunks[index]))
            else:
                sound.append((index, payload))
        # A batch is a run of the jobs' chunks, so its points are one slice too.
        base, last = batch[0][0], batch[-1][0] + 1
        bounds = jobs.first[base : last + 1].tolist()
        voxels = grid.voxels_of(jobs.places[bounds[0] : bounds[-1]])
        positions = grid.positions(jobs.chunks[base:last]).tolist()

        def read(item: int) -> None:
            index, payload = sound[item]
            x, y, z = positions[index - base]
            start, stop = bounds[index - base], bounds[index - base + 1]
            layout = scale.chunk_layout(grid.chunk_shape((x, y, z)))
            labels[start:stop] = self._reader.read_points(payload, layout, voxels[start - bounds[0] : stop - bounds[0]])

        if self._reader.ISOLATED:
            found = run_isolated(read, len(sound), what=f"the {scale.encoding} decoder")
            wrong.update((sound[item][0], message) for item, message in found.items())
            return wrong
        for item in range(len(sound)):
            try:
                read(item)
            except CorruptDataError as error:
                wrong[sound[item][0]] = str(error)
        return wrong
