"""Chunks out of shards: each index once, and neighbouring chunks in one request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from voxelprobe.arrays import Int64, UInt64
from voxelprobe.cache.protocol import ABSENT
from voxelprobe.errors import CorruptDataError
from voxelprobe.opening import Volume
from voxelprobe.sharding.index import (
    MAX_MINISHARD_INDEX_BYTES,
    parse_minishard_index,
    parse_shard_index,
    shard_index_bytes,
)
from voxelprobe.sharding.locate import locate_chunks, shard_file_name
from voxelprobe.sharding.spec import Sharding
from voxelprobe.transport.protocol import StoredObject
from voxelprobe.transport.ranges import Span, coalesce_ranges
from voxelprobe.transport.sources import RetryingSource
from voxelprobe.transport.wrappers import strip_compression

# A request costs about as much as these bytes (1 ms of CPU, or a share of a connection).
MAX_GAP_BYTES = 32 << 10
MAX_SPAN_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ShardPart:
    """The wanted chunks of one shard: numbers, ids and minishards, all shape (n,)."""

    name: str
    chunks: Int64
    chunk_ids: UInt64
    minishards: UInt64


@dataclass(frozen=True, slots=True)
class SpanJob:
    """One request of a shard: chunk, start and end of each piece in the span; or what needs no request."""

    name: str
    span: Span | None
    known: list[tuple[int, bytes | CorruptDataError]]
    pieces: list[tuple[int, int, int]] = field(default_factory=list)


class ShardFetcher:
    """Finds and fetches chunks in the shards of one scale."""

    def __init__(self, source: RetryingSource, volume: Volume, spec: Sharding, max_bytes: int) -> None:
        self._source = source
        self._volume = volume
        self._spec = spec
        self._max_bytes = max_bytes

    def shards(self, chunks: Int64) -> Iterator[ShardPart]:
        """Yield the wanted chunks shard by shard, not yet looked up."""
        where = locate_chunks(self._volume.grid.positions(chunks), self._volume.grid.shape, self._spec)
        order = np.lexsort((where.minishards, where.shards))
        cuts = np.flatnonzero(np.diff(where.shards[order])) + 1
        for members in np.split(order, cuts):
            name = f"{self._volume.scale.key}/{shard_file_name(int(where.shards[members[0]]), self._spec)}"
            yield ShardPart(name, chunks[members], where.chunk_ids[members], where.minishards[members])

    def find_spans(self, part: ShardPart) -> list[SpanJob]:
        """Return what to ask one shard for, to have every wanted chunk; reads each of its indices once."""
        try:
            starts, ends = self._find(part)
        except CorruptDataError as error:
            return [SpanJob(part.name, None, [(chunk, error) for chunk in part.chunks.tolist()])]
        too_long = ends - starts > self._max_bytes
        stored = np.flatnonzero((starts >= 0) & ~too_long)
        known: list[tuple[int, bytes | CorruptDataError]]
        known = [(chunk, ABSENT) for chunk in part.chunks[starts < 0].tolist()]
        # A damaged index must not make us ask for, or allocate, what it promises.
        known += [
            (int(part.chunks[i]), CorruptDataError(
                f"shard {self._source.url}/{part.name}: expected a chunk of at most {self._max_bytes} bytes, "
                f"found an index that says {ends[i] - starts[i]}"))
            for i in np.flatnonzero(too_long)
        ]
        jobs = [SpanJob(part.name, None, known)] if known else []
        chunks, starts, ends = part.chunks[stored].tolist(), starts[stored], ends[stored]
        for span in coalesce_ranges(starts, ends, max_gap_bytes=MAX_GAP_BYTES, max_span_bytes=MAX_SPAN_BYTES):
            pieces = [(chunks[m], int(starts[m]) - span.start, int(ends[m]) - span.start) for m in span.members]
            jobs.append(SpanJob(part.name, span, [], pieces))
        return jobs

    def fetch_span(self, job: SpanJob) -> list[tuple[int, bytes | CorruptDataError]]:
        """Return the stripped payloads of a span's chunks, or what is wrong with each."""
        if job.span is None:
            return job.known
        try:
            content = self._fetch_range(job.name, job.span.start, job.span.end)
        except CorruptDataError as error:
            return [(chunk, error) for chunk, _, _ in job.pieces]
        results: list[tuple[int, bytes | CorruptDataError]] = []
        for chunk, start, end in job.pieces:
            payload: bytes | CorruptDataError = content[start:end]
            if self._spec.data_encoding == "gzip":
                try:
                    payload = strip_compression(content[start:end], "gzip", max_bytes=self._max_bytes)
                except CorruptDataError as error:
                    payload = error
            results.append((chunk, payload))
        return results

    def _find(self, part: ShardPart) -> tuple[Int64, Int64]:
        """Return where the chunks of a part begin and end; both shape (n,), -1 where absent."""
        name, ids = part.name, part.chunk_ids
        starts = np.full(len(ids), -1, np.int64)
        ends = np.full(len(ids), -1, np.int64)
        index_bytes = shard_index_bytes(self._spec)
        answer = self._source.fetch(name, 0, index_bytes)
        if answer is None:
            return starts, ends
        self._check_plain(name, answer)
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
        for span in coalesce_ranges(
            ranges[stored, 0], ranges[stored, 1], max_gap_bytes=MAX_GAP_BYTES, max_span_bytes=MAX_SPAN_BYTES
        ):
            content = self._fetch_range(name, span.start, span.end)
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

    def _fetch_range(self, name: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of a shard; a shorter answer is asked for once more, then it is damage."""
        if start == end:
            return b""
        for _ in range(2):
            answer = self._source.fetch(name, start, end)
            if answer is not None:
                self._check_plain(name, answer)
                if len(answer.content) == end - start:
                    return answer.content
        found = 0 if answer is None else len(answer.content)
        raise CorruptDataError(
            f"shard {self._source.url}/{name}: expected {end - start} bytes from {start}, found {found}"
        )

    def _check_plain(self, name: str, answer: StoredObject) -> None:
        """Raise if a shard is stored compressed as a whole: ranges of that are ranges of something else."""
        if answer.encoding is not None:
            raise CorruptDataError(
                f"shard {self._source.url}/{name}: expected bytes as they are, found them sent as {answer.encoding}"
            )
