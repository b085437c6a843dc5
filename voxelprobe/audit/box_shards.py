"""A chunk out of a shard of zarr v3, found one at a time in Python's integers.

Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from voxelprobe.audit.places import Part
from voxelprobe.errors import CorruptDataError
from voxelprobe.transport.sources import RetryingSource

_NONE = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Shards:
    """Zarr v3's `sharding_indexed`: the size of shards, in values, and where and how their index stands."""

    shape: tuple[int, ...]
    index_at_end: bool
    has_checksum: bool


class BoxShardReader:
    """The shards of one array. The indices that it has read it keeps."""

    def __init__(self, shards: Shards, chunk: Sequence[int], object_name: Callable[[Sequence[int]], str],
                 max_bytes: int, source: RetryingSource) -> None:
        self._shards, self._object_name, self._max_bytes, self._source = shards, object_name, max_bytes, source
        self._counts = [whole // inner for whole, inner in zip(shards.shape, chunk, strict=True)]
        self._indices: dict[str, bytes | None] = {}

    def read(self, place: Sequence[int]) -> Part | None:
        """Return the chunk at a position of the array's grid of chunks, or None if no shard has it.

        Raises
        ------
        CorruptDataError
            If the shard contradicts its format.
        """
        name = self._object_name([p // count for p, count in zip(place, self._counts, strict=True)])
        if name not in self._indices:
            self._indices[name] = self._read_index(name)
        index = self._indices[name]
        if index is None:
            return None
        number = 0
        for position, count in zip(place, self._counts, strict=True):
            number = number * count + position % count
        start, size = struct.unpack_from("<2Q", index, 16 * number)
        if start == size == _NONE:
            return None
        if not 0 < size <= self._max_bytes or start >= 2**62:
            raise CorruptDataError(f"shard {name}: chunk {number} begins at {start} and has {size} bytes")
        answer = self._source.fetch(name, start, start + size)
        if answer is None or len(answer.content) != size:
            raise CorruptDataError(f"shard {name}: expected bytes {start} to {start + size}, found fewer")
        return answer.content, None

    def _read_index(self, name: str) -> bytes | None:
        size = 16 * math.prod(self._counts)
        whole = size + (4 if self._shards.has_checksum else 0)
        place = (-whole, None) if self._shards.index_at_end else (0, whole)
        answer = self._source.fetch(name, *place)
        if answer is None:
            return None
        index = answer.content
        if len(index) != whole:
            raise CorruptDataError(f"shard {name}: expected an index of {whole} bytes, found {len(index)}")
        if self._shards.has_checksum:
            import google_crc32c

            if google_crc32c.value(index[:size]) != int.from_bytes(index[size:], "little"):
                raise CorruptDataError(f"shard {name}: the index's checksum doesn't match")
        return index[:size]
