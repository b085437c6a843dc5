"""Single voxels out of uncompressed chunks, by byte ranges of their objects, where that is cheaper than the chunks.

Only `raw` chunks that are objects of their own can be read so. What is read is not kept in the chunk cache: it is of no
use to other points. Whether an object is compressed after all, or of a wrong size, shows in the answers; such a chunk
is left to be fetched whole. A range can't be held against a checksum of the object: its size is what is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64, Labels
from voxelprobe.errors import TransportError
from voxelprobe.opening import Volume
from voxelprobe.planning import ChunkJobs
from voxelprobe.transport.jobs import Done, Job, JobRunner
from voxelprobe.transport.protocol import Request
from voxelprobe.transport.sources import RetryingSource

# What a request costs, in bytes of a chunk, which are received, written to the cache and read from it. Measured on
# chunks of 2 MB: about 18 KB of CPU time for a request to a store, and 16 KB for a read of a local file. At a store,
# latency adds to that: 50 ms, shared by 64 requests under way, are 80 KB at 100 MB/s.
REQUEST_BYTES = 64 << 10
LOCAL_REQUEST_BYTES = 16 << 10
# Chunks with more points than this many for each request that a chunk is worth are taken whole, unless points are few.
_POINTS_A_REQUEST = 4


@dataclass(frozen=True, slots=True)
class VoxelReads:
    """The byte ranges to read for the points of some chunks, all of it sorted by chunk and then by byte.

    Attributes
    ----------
    rows
        Shape (m,): the chunks' indices in their jobs.
    first_span
        Shape (m + 1,): the spans of chunk i are [first_span[i], first_span[i + 1]).
    begins, ends
        Shape (s,): bytes of the chunk's object.
    first_value
        Shape (m + 1,): the values of chunk i are [first_value[i], first_value[i + 1]).
    places
        Shape (v,): where each value is in the joined bytes of its chunk's spans, in values.
    targets
        Shape (v,): which value it is, flat: point * channels + channel, points counted from the chunk's first.
    """

    rows: Int64
    first_span: Int64
    begins: Int64
    ends: Int64
    first_value: Int64
    places: Int64
    targets: Int64


def can_read_voxels(volume: Volume) -> bool:
    """Return whether the chunks of a volume are such that single voxels may be cheaper than a chunk."""
    scale = volume.scale
    chunk_bytes = math.prod(scale.chunk_size) * scale.num_channels * scale.dtype.itemsize
    return scale.encoding == "raw" and scale.sharding is None and chunk_bytes > _request_bytes(volume)


def choose_reads(volume: Volume, jobs: ChunkJobs) -> VoxelReads:
    """Return the reads for those chunks of `jobs` of which ranges are cheaper than the whole."""
    scale, cost = volume.scale, _request_bytes(volume)
    shapes = np.minimum(scale.chunk_size, scale.size - volume.grid.positions(jobs.chunks) * np.array(scale.chunk_size))
    chunk_bytes = shapes.prod(axis=1) * (scale.num_channels * scale.dtype.itemsize)
    counts = np.diff(jobs.first)
    rows = np.flatnonzero(counts <= _POINTS_A_REQUEST * (chunk_bytes // cost))
    # Points, by chunk.
    counts = counts[rows]
    row = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    x, y, z = volume.grid.voxels_of(jobs.places[jobs.first[rows][row] + within]).T
    sx, sy, sz = shapes[rows][row].T
    # Values, by chunk: channels lie one after the other.
    channels = np.arange(scale.num_channels)
    value = (x + sx * (y + sy * z))[:, None] + (sx * sy * sz)[:, None] * channels
    target = within[:, None] * scale.num_channels + channels
    row = np.repeat(row, scale.num_channels)
    order = np.lexsort((value.ravel(), row))
    row, value, target = row[order], value.ravel()[order], target.ravel()[order]
    # Spans: a gap that costs more than a request begins another.
    size = scale.dtype.itemsize
    opens = np.ones(len(value), np.bool_)
    opens[1:] = (row[1:] != row[:-1]) | ((value[1:] - value[:-1] - 1) * size > cost)
    span = np.cumsum(opens) - 1
    begin = value[opens]
    end = value[np.append(np.flatnonzero(opens)[1:], len(value)) - 1] + 1 if len(value) else value
    span_row = row[opens]
    lengths = np.bincount(span_row, end - begin, len(rows)) * size + np.bincount(span_row, minlength=len(rows)) * cost
    chosen = lengths < chunk_bytes[rows] + cost
    # Joined, the spans of a chunk follow each other.
    joined = np.cumsum(end - begin) - (end - begin)
    num_spans = np.bincount(span_row, minlength=len(rows))
    base = joined[np.cumsum(num_spans) - num_spans] if len(rows) else joined
    place = value - begin[span] + joined[span] - base[row]
    kept_spans, kept_values = chosen[span_row], chosen[row]
    return VoxelReads(
        rows[chosen], _offsets(num_spans[chosen]), begin[kept_spans] * size, end[kept_spans] * size,
        _offsets(counts[chosen] * scale.num_channels), place[kept_values], target[kept_values],
    )


def read_voxels(
    volume: Volume, source: RetryingSource, jobs: ChunkJobs, reads: VoxelReads, which: Iterable[int], *, threads: int
) -> Iterator[tuple[int, Labels | None]]:
    """Yield the labels, shape (points, channels), of chunks of `reads`, with their index in `jobs`, as they arrive.

    `which` are places in `reads.rows`. None stands for a chunk whose voxels can't be read so: absent, compressed, of a
    wrong size, or from a server without ranges. After an error of the store nothing more is yielded: fetched whole, the
    chunks will get through or meet it again.
    """
    todo = (_read_chunk(volume, jobs, reads, i) for i in which)
    with closing(source.open_transfers(limit=threads)) as transfers, suppress(TransportError):
        yield from JobRunner[tuple[int, "Labels | None"]](transfers, limit=threads, usual_bytes=1).run(todo)


def _read_chunk(volume: Volume, jobs: ChunkJobs, reads: VoxelReads, i: int) -> Job[tuple[int, Labels | None]]:
    scale, grid = volume.scale, volume.grid
    row = int(reads.rows[i])
    x, y, z = grid.positions(jobs.chunks[row : row + 1])[0].tolist()
    (name,) = scale.names.of(grid, (x, y, z))
    spans = slice(reads.first_span[i], reads.first_span[i + 1])
    begins, ends = reads.begins[spans].tolist(), reads.ends[spans].tolist()
    answers = yield [Request(scale.path(name), begin, end) for begin, end in zip(begins, ends, strict=True)]
    expected = math.prod(grid.chunk_shape((x, y, z))) * scale.num_channels * scale.dtype.itemsize
    contents = []
    for answer, begin, end in zip(answers, begins, ends, strict=True):
        if (answer is None or answer.encoding is not None or answer.size != expected
                or len(answer.content) != end - begin):
            return Done([(row, None)])
        contents.append(answer.content)
    stored: npt.NDArray[Any] = np.frombuffer(b"".join(contents), scale.dtype)
    values = slice(reads.first_value[i], reads.first_value[i + 1])
    labels = np.empty(int(jobs.first[row + 1] - jobs.first[row]) * scale.num_channels, scale.dtype)
    labels[reads.targets[values]] = stored[reads.places[values]]
    return Done([(row, labels.reshape(-1, scale.num_channels))])


def _request_bytes(volume: Volume) -> int:
    return REQUEST_BYTES if volume.cloudpath.location.path is None else LOCAL_REQUEST_BYTES


def _offsets(counts: npt.NDArray[Any]) -> Int64:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
