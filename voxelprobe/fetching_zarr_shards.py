"""Chunks out of zarr v3's shards: each index once, and neighbouring chunks in one request."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Int64, Voxels
from voxelprobe.cache.protocol import ABSENT
from voxelprobe.codecs.parts import pack_parts
from voxelprobe.errors import CorruptDataError
from voxelprobe.fetching_ranges import MAX_GAP_BYTES, MAX_SPAN_BYTES, MAX_WASTE, ChunkResult, check_plain, fetch_ranges
from voxelprobe.opening import Volume
from voxelprobe.sharding.boxes import BoxSharding, parse_box_index
from voxelprobe.transport.jobs import Answer, Done, Job
from voxelprobe.transport.protocol import Request, StoredObject
from voxelprobe.transport.ranges import coalesce_ranges
from voxelprobe.transport.sources import RetryingSource


@dataclass(frozen=True, slots=True)
class BoxPart:
    """The wanted chunks of one place in the grid of shards.

    Attributes
    ----------
    names
        Of the shards there, in the order of the channels.
    chunks, places
        Numbers, shape (n,), and places in the shard, shape (n, 3).
    """

    names: Sequence[str]
    chunks: Int64
    places: Voxels


class ZarrShardFetcher:
    """Finds and fetches chunks in the shards of one scale."""

    def __init__(self, source: RetryingSource, volume: Volume, spec: BoxSharding, max_bytes: int) -> None:
        self._source = source
        self._volume = volume
        self._spec = spec
        self._max_bytes = max_bytes

    def jobs(self, chunks: Int64) -> Iterator[Job[ChunkResult]]:
        """Yield a job a place in the grid of shards, that brings those of `chunks` that are there."""
        scale, grid = self._volume.scale, self._volume.grid
        positions = grid.positions(chunks)
        shards = positions // self._spec.shape
        order = np.lexsort(shards.T)
        cuts = np.flatnonzero(np.diff(shards[order], axis=0).any(axis=1)) + 1
        for members in np.split(order, cuts) if len(order) else []:
            x, y, z = shards[members[0]].tolist()
            names = [scale.path(name) for name in scale.names.of(grid, (x, y, z))]
            yield self._fetch_part(BoxPart(names, chunks[members], positions[members] % self._spec.shape))

    def _fetch_part(self, part: BoxPart) -> Job[ChunkResult]:
        """Find the wanted chunks, reading each index once, and leave jobs that fetch them."""
        try:
            starts, ends = yield from self._find(part)
        except CorruptDataError as error:
            return Done([(chunk, error) for chunk in part.chunks.tolist()])
        stored = (starts >= 0).any(axis=1)
        sizes = (ends - starts).sum(axis=1)
        # A damaged index must not make us ask for, or allocate, what it promises.
        too_long = sizes > self._max_bytes
        known: list[ChunkResult] = [(chunk, ABSENT) for chunk in part.chunks[~stored].tolist()]
        known += [
            (int(part.chunks[i]), CorruptDataError(
                f"shard {self._source.url}/{part.names[0]}: expected a chunk of at most {self._max_bytes} bytes, found "
                f"an index that says {sizes[i]}"))
            for i in np.flatnonzero(stored & too_long)
        ]
        rows = np.flatnonzero(stored & ~too_long)
        first = np.where(starts < 0, np.iinfo(np.int64).max, starts)[rows].min(axis=1)
        rows = rows[np.argsort(first, kind="stable")]
        # Sorted as they lie in the shard, so that neighbours are in one batch.
        batch = np.cumsum(sizes[rows]) // MAX_SPAN_BYTES
        cuts = np.flatnonzero(np.diff(batch)) + 1
        return Done(known, [
            self._fetch_chunks(part.names, part.chunks[some].tolist(), starts[some], ends[some])
            for some in (np.split(rows, cuts) if len(rows) else [])
        ])

    def _find(self, part: BoxPart) -> Generator[list[Request], list[Answer], tuple[Int64, Int64]]:
        """Find where the parts of chunks begin and end in their shards; both shape (n, parts), -1 where absent."""
        spec = self._spec
        starts = np.full((len(part.chunks), spec.parts), -1, np.int64)
        ends = starts.copy()
        whole = [Request(name, -spec.index_bytes) if spec.index_at_end else Request(name, 0, spec.index_bytes)
                 for name in part.names]
        answers = yield whole
        for shard, (name, answer) in enumerate(zip(part.names, answers, strict=True)):
            if answer is None:
                continue
            check_plain(self._source.url, name, answer)
            try:
                begins, stops = parse_box_index(answer.content, spec, answer.size)
            except CorruptDataError as error:
                raise CorruptDataError(f"index of shard {self._source.url}/{name}: {error}") from error
            first = shard * spec.channel_chunks
            for index in range(first, min(first + spec.channel_chunks, spec.parts)):
                rows = spec.rows(part.places, index)
                starts[:, index], ends[:, index] = begins[rows], stops[rows]
        return starts, ends

    def _fetch_chunks(
        self, names: Sequence[str], chunks: list[int], starts: Int64, ends: Int64
    ) -> Job[ChunkResult]:
        """Fetch chunks whose parts begin and end there, both shape (n, parts): neighbours in one request."""
        requests: list[Request] = []
        members: list[list[tuple[int, int]]] = []
        for shard, name in enumerate(names):
            columns = slice(shard * self._spec.channel_chunks, (shard + 1) * self._spec.channel_chunks)
            rows, parts = np.nonzero(starts[:, columns] >= 0)
            parts += columns.start
            spans = coalesce_ranges(starts[rows, parts], ends[rows, parts], max_gap_bytes=MAX_GAP_BYTES,
                                    max_span_bytes=MAX_SPAN_BYTES, max_waste=MAX_WASTE)
            requests += [Request(name, span.start, span.end) for span in spans]
            members += [[(int(rows[m]), int(parts[m])) for m in span.members] for span in spans]
        try:
            contents = yield from fetch_ranges(self._source.url, requests)
        except CorruptDataError as error:
            return Done([(chunk, error) for chunk in chunks])
        pieces: list[list[bytes | None]] = [[None] * self._spec.parts for _ in chunks]
        for request, content, inside in zip(requests, contents, members, strict=True):
            for row, part in inside:
                begin = int(starts[row, part]) - (request.start or 0)
                pieces[row][part] = content[begin : begin + int(ends[row, part] - starts[row, part])]
        return Done([(chunk, StoredObject(_join(parts), None)) for chunk, parts in zip(chunks, pieces, strict=True)])


def _join(parts: list[bytes | None]) -> bytes:
    if len(parts) == 1:
        return parts[0] or b""
    return pack_parts(parts)
