"""A chunk out of a shard, found one at a time in Python's integers.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from voxelprobe.audit.stripping import strip
from voxelprobe.errors import CorruptDataError

FetchRange = Callable[[str, int, int], bytes | None]
"""Gives the bytes [start, end) of an object by its name; None where there is no object."""

_MASK = 0xFFFFFFFF


class ShardReader:
    """The shards of one scale. What it has read of indices it keeps."""

    def __init__(self, key: str, sharding: Mapping[str, Any], grid_shape: Sequence[int], fetch: FetchRange) -> None:
        self._key = key
        self._sharding = sharding
        self._grid_shape = grid_shape
        self._fetch = fetch
        self._minishards: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}

    def read(self, grid: Sequence[int], max_bytes: int) -> bytes | None:
        """Return the encoded chunk at a grid position, or None if no shard has it.

        Raises
        ------
        CorruptDataError
            If the shard contradicts its format.
        """
        number = morton_code(grid, self._grid_shape)
        shard, minishard = find_shard(number, self._sharding)
        if (shard, minishard) not in self._minishards:
            self._minishards[shard, minishard] = self._read_minishard(shard, minishard)
        where = self._minishards[shard, minishard].get(number)
        if where is None:
            return None
        return self._unpack(self._range(shard, *where), "data_encoding", max_bytes)

    def _read_minishard(self, shard: int, minishard: int) -> dict[int, tuple[int, int]]:
        """Return the byte range in the shard's file of each chunk of a minishard."""
        head = 16 << self._sharding["minishard_bits"]
        entry = self._fetch(self._name(shard), 16 * minishard, 16 * minishard + 16)
        if entry is None:
            return {}
        if len(entry) != 16:
            raise CorruptDataError(f"shard {self._name(shard)}: expected an index of {head} bytes, found it cut short")
        start, end = struct.unpack("<2Q", entry)
        if start == end:
            return {}
        content = self._unpack(self._range(shard, head + start, head + end), "minishard_index_encoding", 1 << 30)
        count = len(content) // 24
        if len(content) != 24 * count:
            raise CorruptDataError(f"minishard {minishard} of {self._name(shard)}: expected 24 bytes a chunk, found "
                                   f"{len(content)}")
        numbers = struct.unpack(f"<{3 * count}Q", content)
        chunks: dict[int, tuple[int, int]] = {}
        number, place = 0, head
        for more, gap, size in zip(numbers[:count], numbers[count : 2 * count], numbers[2 * count :], strict=True):
            number, place = (number + more) % 2**64, (place + gap) % 2**64
            chunks[number] = (place, place + size)
            place += size
        return chunks

    def _range(self, shard: int, start: int, end: int) -> bytes:
        if start == end:
            return b""
        content = self._fetch(self._name(shard), start, end) if 0 <= start < end < 2**62 else None
        if content is None or len(content) != end - start:
            raise CorruptDataError(f"shard {self._name(shard)}: expected bytes {start} to {end}, found fewer")
        return content

    def _unpack(self, content: bytes, field: str, max_bytes: int) -> bytes:
        return strip(content, self._sharding.get(field, "raw").replace("raw", ""), max_bytes)

    def _name(self, shard: int) -> str:
        digits = -(-self._sharding["shard_bits"] // 4)
        return f"{self._key}/{shard:0{digits}x}.shard"


def morton_code(grid: Sequence[int], grid_shape: Sequence[int]) -> int:
    """Return the compressed Morton code of a grid position: the chunk's number in the shards."""
    code = target = 0
    for bit in range(64):
        for position, count in zip(grid, grid_shape, strict=True):
            if count > 1 << bit:  # one of its positions has this bit
                code |= (position >> bit & 1) << target
                target += 1
    return code


def find_shard(number: int, sharding: Mapping[str, Any]) -> tuple[int, int]:
    """Return the shard and the minishard that a chunk is in."""
    hashed = number >> sharding["preshift_bits"]
    if sharding["hash"] == "murmurhash3_x86_128":
        hashed = _murmurhash(hashed)
    minishard = hashed & ((1 << sharding["minishard_bits"]) - 1)
    shard = hashed >> sharding["minishard_bits"] & ((1 << sharding["shard_bits"]) - 1)
    return shard, minishard


def _murmurhash(value: int) -> int:
    """Return the low 8 bytes of MurmurHash3_x86_128, seed 0, of 8 little-endian bytes.

    Source: https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp
    """
    k1, k2 = value & _MASK, value >> 32
    h1 = _rotate(k1 * 0x239B961B & _MASK, 15) * 0xAB0E9789 & _MASK ^ 8
    h2 = _rotate(k2 * 0xAB0E9789 & _MASK, 16) * 0x38B34AE5 & _MASK ^ 8
    h3 = h4 = 8
    h1 = h1 + h2 + h3 + h4 & _MASK
    h2, h3, h4 = h2 + h1 & _MASK, h3 + h1 & _MASK, h4 + h1 & _MASK
    h1, h2, h3, h4 = _mix(h1), _mix(h2), _mix(h3), _mix(h4)
    h1 = h1 + h2 + h3 + h4 & _MASK
    return (h2 + h1 & _MASK) << 32 | h1


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & _MASK


def _mix(word: int) -> int:
    word = (word ^ word >> 16) * 0x85EBCA6B & _MASK
    word = (word ^ word >> 13) * 0xC2B2AE35 & _MASK
    return word ^ word >> 16
