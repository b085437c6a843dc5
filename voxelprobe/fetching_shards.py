"""Chunks out of shards: each index once, and neighbouring chunks in one request."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Int64, UInt64
from voxelprobe.cache.protocol import ABSENT
from voxelprobe.errors import CorruptDataError
from voxelprobe.fetching_ranges import MAX_GAP_BYTES, MAX_SPAN_BYTES, MAX_WASTE, ChunkResult, check_plain, fetch_ranges
from voxelprobe.opening import Volume
from voxelprobe.sharding.index import (
    MAX_MINISHARD_INDEX_BYTES,
    parse_minishard_index,
    parse_shard_index,
    shard_index_bytes,
)
from voxelprobe.sharding.locate import locate_chunks, shard_file_name
from voxelprobe.sharding.spec import Sharding
from voxelprobe.transport.jobs import Answer, Done, Job
from voxelprobe.transport.protocol import Request, StoredObject
from voxelprobe.transport.ranges import Span, coalesce_ranges
from voxelprobe.transport.sources import RetryingSource


@dataclass(frozen=True, slots=True)
class ShardPart:
    """The wanted chunks of one shard: numbers, ids and minishards, all shape (n,)."""

    name: str
    chunks: Int64
    chunk_ids: UInt64
    minishards: UInt64


class ShardFetcher:
    """Finds and fetches chunks in the shards of one scale."""

    def __init__(self, source: RetryingSource, volume: Volume, spec: Sharding, max_bytes: int) -> None:
        self._source = source
        self._volume = volume
        self._spec = spec
        self._max_bytes = max_bytes

    def jobs(self, chunks: Int64) -> Iterator[Job[ChunkResult]]:
        """Yield a job a shard, that brings those of `chunks` that it holds."""
        where = locate_chunks(self._volume.grid.positions(chunks), self._volume.grid.shape, self._spec)
        order = np.lexsort((where.minishards, where.shards))
        cuts = np.flatnonzero(np.diff(where.shards[order])) + 1
        for members in np.split(order, cuts):
            name = self._volume.scale.path(shard_file_name(int(where.shards[members[0]]), self._spec))
            part = ShardPart(name, chunks[members], where.chunk_ids[members], where.minishards[members])
            yield self._fetch_part(part)

    def _fetch_part(self, part: ShardPart) -> Job[ChunkResult]:
        """Find the wanted chunks of one shard, reading each of its indices once, and leave a job for each request."""
        try:
            starts, ends = yield from self._find(part)
        except CorruptDataError as error:
            return Done([(chunk, error) for chunk in part.chunks.tolist()])
        too_long = ends - starts > self._max_bytes
        stored = np.flatnonzero((starts >= 0) & ~too_long)
        known: list[ChunkResult] = [(chunk, ABSENT) for chunk in part.chunks[starts < 0].tolist()]
        # A damaged index must not make us ask for, or allocate, what it promises.
        known += [
            (int(part.chunks[i]), CorruptDataError(
                f"shard {self._source.url}/{part.name}: expected a chunk of at most {self._max_bytes} bytes, "
                f"found an index that says {ends[i] - starts[i]}"))
            for i in np.flatnonzero(too_long)
        ]
        chunks, starts, ends = part.chunks[stored].tolist(), starts[stored], ends[stored]
        spans = coalesce_ranges(
            starts, ends, max_gap_bytes=MAX_GAP_BYTES, max_span_bytes=MAX_SPAN_BYTES, max_waste=MAX_WASTE
        )
        return Done(known, [
            self._fetch_span(part.name, span, [(chunks[m], int(starts[m]), int(ends[m])) for m in span.members])
            for span in spans
        ])

    def _fetch_span(self, name: str, span: Span, pieces: list[tuple[int, int, int]]) -> Job[ChunkResult]:
        """Fetch the chunks of a span, each with its number, start and end."""
        try:
            (content,) = yield from fetch_ranges(self._source.url, [Request(name, span.start, span.end)])
        except CorruptDataError as error:
            return Done([(chunk, error) for chunk, _, _ in pieces])
        encoding = None if self._spec.data_encoding == "raw" else self._spec.data_encoding
        return Done([
            (chunk, StoredObject(content[start - span.start : end - span.start], encoding))
            for chunk, start, end in pieces
        ])

    def _find(self, part: ShardPart) -> Generator[list[Request], list[Answer], tuple[Int64, Int64]]:
        """Find where the chunks of a part begin and end; both shape (n,), -1 where absent."""
        name, ids = part.name, part.chunk_ids
        starts = np.full(len(ids), -1, np.int64)
        ends = np.full(len(ids), -1, np.int64)
        (answer,) = yield [Request(name, 0, shard_index_bytes(self._spec))]
        if answer is None:
            return starts, ends
        check_plain(self._source.url, name, answer)
        try:
            index = parse_shard_index(answer.content, self._spec)
        except CorruptDataError as error:
            raise CorruptDataError(f"index of shard {self._source.url}/{name}: {error}") from error
        needed, where = np.unique(part.minishards, return_inverse=True)
        ranges = index[needed.astype(np.int64)]
        lengths = ranges[:, 1] - ranges[:, 0]
        if (longest := int(lengths.max())) > MAX_MINISHARD_INDEX_BYTES:
            raise CorruptDataError(
                f"index of shard {self._source.url}/{name}: expected minishard indices of at most "
                f"{MAX_MINISHARD_INDEX_BYTES} bytes, found one of {longest}"
            )
        stored = np.flatnonzero(lengths)
        spans = coalesce_ranges(
            ranges[stored, 0], ranges[stored, 1], max_gap_bytes=MAX_GAP_BYTES, max_span_bytes=MAX_SPAN_BYTES
        )
        contents = yield from fetch_ranges(
            self._source.url, [Request(name, span.start, span.end) for span in spans])
        for span, content in zip(spans, contents, strict=True):
            for member in span.members:
                minishard = stored[member]
                begin, end = (int(edge) - span.start for edge in ranges[minishard])
                try:
                    table = parse_minishard_index(content[begin:end], self._spec)
                except CorruptDataError as error:
                    raise CorruptDataError(
                        f"minishard {int(needed[minishard])} of shard {self._source.url}/{name}: {error}"
                    ) from error
                mine = np.flatnonzero(where == minishard)
                begins, stops, found = table.find(ids[mine])
                starts[mine[found]], ends[mine[found]] = begins[found], stops[found]
        return starts, ends
