"""Several stored objects as one payload: a chunk of a volume whose channels are chunked apart."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from voxelprobe.errors import CorruptDataError

_ABSENT = 0xFFFF_FFFF_FFFF_FFFF


def pack_parts(parts: Sequence[bytes | None]) -> bytes:
    """Return one payload for the parts of a chunk; None for a part that the store doesn't have."""
    sizes = [_ABSENT if part is None else len(part) for part in parts]
    return struct.pack(f"<{len(parts)}Q", *sizes) + b"".join(part for part in parts if part is not None)


def unpack_parts(payload: bytes | bytearray, number: int) -> list[memoryview | None]:
    """Return the parts that `pack_parts` was given.

    Raises
    ------
    CorruptDataError
        If the payload isn't `number` parts.
    """
    if number == 1:
        return [memoryview(payload)]
    if len(payload) < 8 * number:
        raise CorruptDataError(f"expected {number} parts of a chunk, found {len(payload)} bytes")
    sizes = struct.unpack_from(f"<{number}Q", payload)
    if sum(size for size in sizes if size != _ABSENT) != len(payload) - 8 * number:
        raise CorruptDataError(f"expected parts of {sizes} bytes, found {len(payload) - 8 * number}")
    parts: list[memoryview | None] = []
    begin = 8 * number
    for size in sizes:
        parts.append(None if size == _ABSENT else memoryview(payload)[begin : begin + size])
        begin += 0 if size == _ABSENT else size
    return parts
