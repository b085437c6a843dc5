"""The shards of zarr v3, `sharding_indexed`: a box of chunks in an object, and the index of where they are in it.

Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
The index has a pair (offset, size), uint64le, for each place in the box, also for chunks beyond the array's end; all
bits set is a chunk that isn't stored. It is at the object's end or begin, as it is or followed by its CRC32C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Int64, Voxels
from voxelprobe.errors import CorruptDataError

_ABSENT = 2**64 - 1
_CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class BoxSharding:
    """How the chunks of a scale lie in its shards.

    Attributes
    ----------
    shape
        Chunks a shard along x, y, z.
    channel_chunks
        Chunks a shard along the channels.
    parts
        Chunks along the channels in all, of one place: in one shard, or in several.
    axes, counts
        The box as the index has it, from its slowest axis to its fastest: what each axis is (0, 1, 2 for x, y, z; 3 for
        the channel; -1 for one of which index 0 is read), and how many chunks it has.
    index_at_end
        Where the index is.
    has_checksum
        Whether its CRC32C follows it.
    """

    shape: tuple[int, int, int]
    channel_chunks: int
    parts: int
    axes: tuple[int, ...]
    counts: tuple[int, ...]
    index_at_end: bool
    has_checksum: bool

    @property
    def index_bytes(self) -> int:
        """Return the size of the index, with its checksum."""
        return 16 * math.prod(self.counts) + _CHECKSUM_BYTES * self.has_checksum

    def rows(self, places: Voxels, part: int) -> Int64:
        """Return the entries in the index of a shard for chunks at `places` in it, shape (n, 3): their `part`.

        Parts are counted through all the shards of one place.
        """
        rows = np.zeros(len(places), np.int64)
        for axis, count in zip(self.axes, self.counts, strict=True):
            rows *= count
            if axis >= 0:
                rows += places[:, axis] if axis < 3 else part % self.channel_chunks
        return rows


def parse_box_index(payload: bytes, spec: BoxSharding, object_bytes: int | None = None) -> tuple[Int64, Int64]:
    """Return where the chunks of a shard begin and end in its object, both shape (chunks,); -1 for one not stored.

    Parameters
    ----------
    payload
        The `spec.index_bytes` bytes of the index.
    object_bytes
        Size of the whole object, where it is known.

    Raises
    ------
    CorruptDataError
        If `payload` contradicts the format, or names bytes that the object doesn't have.
    """
    if len(payload) != spec.index_bytes:
        raise CorruptDataError(f"the index of a shard of {math.prod(spec.counts)} chunks has {spec.index_bytes} bytes, "
                               f"found {len(payload)}")
    if spec.has_checksum:
        import google_crc32c

        payload, stored = payload[:-_CHECKSUM_BYTES], int.from_bytes(payload[-_CHECKSUM_BYTES:], "little")
        if (found := google_crc32c.value(payload)) != stored:
            raise CorruptDataError(f"expected an index with the checksum {stored:08x}, found {found:08x}")
    table = np.frombuffer(payload, "<u8").reshape(-1, 2)
    starts, sizes = table[:, 0], table[:, 1]
    absent = (starts == _ABSENT) & (sizes == _ABSENT)
    limit = 2**63 - 1 if object_bytes is None else object_bytes
    # No sum that could wrap.
    wrong = ~absent & ((sizes == 0) | (starts > limit) | (sizes > limit - np.minimum(starts, np.uint64(limit))))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise CorruptDataError(f"entry {row}: expected a chunk within {limit} bytes, found {int(sizes[row])} bytes "
                               f"from {int(starts[row])}")
    begins = np.where(absent, np.uint64(0), starts).astype(np.int64)
    ends = begins + np.where(absent, np.uint64(0), sizes).astype(np.int64)
    begins[absent] = ends[absent] = -1
    return begins, ends
