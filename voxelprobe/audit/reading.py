"""Points read the plain way: each chunk fetched whole, decoded whole, and indexed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.audit.decoders import decode_chunk
from voxelprobe.audit.places import AuditedScale, Place, Triple
from voxelprobe.audit.shards import ShardReader
from voxelprobe.audit.stripping import strip
from voxelprobe.errors import CorruptDataError
from voxelprobe.processes import run_isolated, shared_array
from voxelprobe.records import Status
from voxelprobe.transport.sources import RetryingSource

# Chunks held at once, by what they may take.
_BATCH_BYTES = 256 << 20
_BATCH_CHUNKS = 64

_Fetched = tuple[bytes, str | None] | CorruptDataError | None


@dataclass(frozen=True, slots=True)
class AuditedPoints:
    """What the plain way found.

    Attributes
    ----------
    labels
        Shape (n, channels), the volume's dtype; meant only where the status is OK.
    status
        Shape (n,), values of `Status`; CORRUPT_CHUNK where the reference can't read the chunk.
    unread
        What was wrong, by chunk name.
    chunks
        How many chunks were asked for.
    """

    labels: npt.NDArray[Any]
    status: npt.NDArray[np.uint8]
    unread: dict[str, str]
    chunks: int


def read_places(
    scale: AuditedScale, source: RetryingSource, places: Sequence[Place | Status], *, threads: int
) -> AuditedPoints:
    """Return the labels at some places, from the store alone.

    Raises
    ------
    AuthorizationError, TransportError
        If the store refuses or doesn't answer.
    """
    dtype = np.dtype(scale.data_type).newbyteorder("<")
    labels = shared_array((len(places), scale.channels), dtype)
    status = shared_array((len(places),), np.uint8)
    of_chunk: dict[Triple, list[int]] = {}
    for point, place in enumerate(places):
        if isinstance(place, Place):
            of_chunk.setdefault(place.grid, []).append(point)
        else:
            status[point] = place
    unread: dict[str, str] = {}
    for grids, fetched in _fetch_batches(scale, source, sorted(of_chunk), threads):

        def read(item: int, grids: list[Triple] = grids, fetched: list[_Fetched] = fetched) -> None:
            points = of_chunk[grids[item]]
            chunk = _decode(scale, grids[item], fetched[item])
            if chunk is None:
                status[points] = Status.MISSING_CHUNK
                return
            for point in points:
                place = places[point]
                assert isinstance(place, Place)
                labels[point] = chunk[place.voxel]

        for item, message in run_isolated(read, len(grids), what="the reference decoder").items():
            status[of_chunk[grids[item]]] = Status.CORRUPT_CHUNK
            unread[scale.chunk_name(grids[item])] = message
    return AuditedPoints(labels, status, unread, len(of_chunk))


def _fetch_batches(
    scale: AuditedScale, source: RetryingSource, grids: Sequence[Triple], threads: int
) -> Iterator[tuple[list[Triple], list[_Fetched]]]:
    size = max(1, min(_BATCH_CHUNKS, _BATCH_BYTES // max_bytes(scale)))
    shards = None
    if scale.sharding is not None:
        def fetch_range(name: str, start: int, end: int) -> bytes | None:
            answer = source.fetch(name, start, end)
            return None if answer is None else answer.content

        counts = [-(-s // c) for s, c in zip(scale.size, scale.chunk_size, strict=True)]
        shards = ShardReader(scale.key, scale.sharding, counts, fetch_range)

    def fetch(grid: Triple) -> _Fetched:
        for last in (False, True):
            try:
                if shards is not None:
                    content = shards.read(grid, max_bytes(scale))
                    return None if content is None else (content, None)
                answer = source.fetch(scale.chunk_name(grid))
                return None if answer is None else (answer.content, answer.encoding)
            except CorruptDataError as error:
                if last:
                    return error
        raise AssertionError("the second round returns")

    with ThreadPoolExecutor(max(1, min(threads, len(grids), 16))) as pool:
        for start in range(0, len(grids), size):
            part = list(grids[start : start + size])
            yield part, list(pool.map(fetch, part))


def _decode(scale: AuditedScale, grid: Triple, fetched: _Fetched) -> npt.NDArray[Any] | None:
    """Return a chunk's voxels, None where the store has none."""
    if isinstance(fetched, CorruptDataError):
        raise fetched
    if fetched is None:
        return None
    payload = strip(fetched[0], fetched[1], max_bytes(scale))
    return decode_chunk(payload, scale, scale.chunk_shape(grid)) if payload else None


def max_bytes(scale: AuditedScale) -> int:
    """Return the most that an encoded chunk may take: generously more than its voxels."""
    voxels = math.prod(scale.chunk_size) * scale.channels
    return 4 * voxels * np.dtype(scale.data_type).itemsize + (1 << 20)
