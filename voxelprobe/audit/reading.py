"""Points read the plain way: each chunk fetched whole, decoded whole, and indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.audit.places import AuditableScale, Part, Place, Triple
from voxelprobe.errors import CorruptDataError
from voxelprobe.processes import run_isolated, shared_array
from voxelprobe.records import Status
from voxelprobe.transport.sources import ATTEMPTS, RetryingSource

# Chunks held at once, by what they may take.
_BATCH_BYTES = 256 << 20
_BATCH_CHUNKS = 64

_Fetched = Sequence[Part | None] | CorruptDataError


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
    scale: AuditableScale, source: RetryingSource, places: Sequence[Place | Status], *, threads: int
) -> AuditedPoints:
    """Return the labels at some places, from the store alone.

    A chunk that can't be read is fetched again some times: it may have been damaged on the way.

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
    unread: dict[Triple, str] = dict.fromkeys(sorted(of_chunk), "")
    for _ in range(ATTEMPTS):
        left, unread = list(unread), {}
        for grids, fetched in _fetch_batches(scale, source, left, threads):

            def read(item: int, grids: list[Triple] = grids, fetched: list[_Fetched] = fetched) -> None:
                points, parts = of_chunk[grids[item]], fetched[item]
                if isinstance(parts, CorruptDataError):
                    raise parts
                chunk = scale.decode(grids[item], parts)
                if chunk is not None:
                    for point in points:
                        place = places[point]
                        assert isinstance(place, Place)
                        labels[point] = chunk[place.voxel]
                status[points] = Status.MISSING_CHUNK if chunk is None else Status.OK

            for item, message in run_isolated(read, len(grids), what="the reference decoder").items():
                status[of_chunk[grids[item]]] = Status.CORRUPT_CHUNK
                unread[grids[item]] = message
    return AuditedPoints(labels, status, {scale.chunk_name(grid): why for grid, why in unread.items()}, len(of_chunk))


def _fetch_batches(
    scale: AuditableScale, source: RetryingSource, grids: Sequence[Triple], threads: int
) -> Iterator[tuple[list[Triple], list[_Fetched]]]:
    size = max(1, min(_BATCH_CHUNKS, _BATCH_BYTES // scale.max_bytes))
    # Anew each time: an index of a shard that was kept may be what was damaged.
    chunks = scale.open_chunks(source)

    def fetch(grid: Triple) -> _Fetched:
        try:
            return chunks(grid)
        except CorruptDataError as error:
            return error

    with ThreadPoolExecutor(max(1, min(threads, len(grids), 16))) as pool:
        for start in range(0, len(grids), size):
            part = list(grids[start : start + size])
            yield part, list(pool.map(fetch, part))
