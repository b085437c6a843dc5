"""Chunk ids and their hashes, for whole arrays at a time.

Compressed Morton code: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
Hash functions: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md and
https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp (x86_128).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64, UInt64, Voxels
from voxelprobe.errors import InputError, UnsupportedError

UInt32 = npt.NDArray[np.uint32]

# Bits of a coordinate that are spread by one look-up: a table of 2^11 codes (16 KB) stays in the first-level cache.
_TABLE_BITS = 11


def morton_codes(positions: Voxels, grid_shape: Sequence[int] | Int64) -> UInt64:
    """Return the compressed Morton code of each grid position, which is its chunk id.

    The bits of x, y and z are interleaved, x lowest; an axis contributes only as many bits as its largest position
    needs.

    Parameters
    ----------
    positions
        Shape (n, 3), int64, x y z, in chunks from the grid's origin.
    grid_shape
        Chunks along x, y and z.

    Returns
    -------
    Shape (n,), in the order of `positions`.

    Raises
    ------
    UnsupportedError
        If the grid has more positions than 64-bit ids can tell apart.
    InputError
        If a position lies outside of the grid: its code would be another chunk's.
    """
    shape = [int(size) for size in grid_shape]
    bits = [max(size - 1, 0).bit_length() for size in shape]
    if sum(bits) > 64:
        raise UnsupportedError(f"a grid of {' x '.join(map(str, shape))} chunks needs chunk ids of {sum(bits)} bits; "
                               "sharded volumes have 64")
    targets = _target_bits(bits)
    codes = np.zeros(len(positions), np.uint64)
    for axis, size in enumerate(shape):
        # Taken as unsigned, a negative coordinate is beyond every grid: one comparison finds both kinds.
        column = np.ascontiguousarray(positions[:, axis], np.int64).view(np.uint64)
        if len(column) and (largest := int(column.max())) >= size:
            found = largest - 2**64 if largest >= 2**63 else largest
            raise InputError(f"a chunk at {'xyz'[axis]} = {found} lies outside of a grid of "
                             f"{' x '.join(map(str, shape))} chunks")
        for low in range(0, bits[axis], _TABLE_BITS):
            part = targets[axis][low : low + _TABLE_BITS]
            codes |= _spread_table(part)[(column >> np.uint64(low)) & np.uint64(2 ** len(part) - 1)]
    return codes


def hash_codes(values: UInt64, hash_name: str) -> UInt64:
    """Return the hash of each value, as the sharding specification's `hash` names it.

    Parameters
    ----------
    values
        Shape (n,), chunk ids already shifted by `preshift_bits`.
    hash_name
        `identity`, or `murmurhash3_x86_128`: the low 8 bytes, seed 0, of the value's 8 little-endian bytes.

    Raises
    ------
    UnsupportedError
        If there is no such hash.
    """
    if hash_name == "identity":
        return values
    if hash_name == "murmurhash3_x86_128":
        return _murmurhash3_x86_128(values)
    raise UnsupportedError(f"hash {hash_name!r} is not identity or murmurhash3_x86_128")


def _target_bits(bits: Sequence[int]) -> list[list[int]]:
    """Return, for each axis, where each bit of its coordinate goes in the code, lowest first."""
    targets: list[list[int]] = [[] for _ in bits]
    free = 0
    for bit in range(max(bits)):
        for axis, count in enumerate(bits):
            if bit < count:
                targets[axis].append(free)
                free += 1
    return targets


def _spread_table(targets: Sequence[int]) -> UInt64:
    """Return the code of every number of `len(targets)` bits; bit i of the number goes to `targets[i]`."""
    table = np.zeros(1, np.uint64)
    for target in targets:
        table = np.concatenate([table, table | np.uint64(1 << target)])
    return table


def _murmurhash3_x86_128(values: UInt64) -> UInt64:
    """Return the low 8 bytes of MurmurHash3_x86_128 of 8-byte messages, written out for that length and seed 0.

    Such a message has no 16-byte block, only a tail: its two words enter h1 and h2, and h3 = h4 = the length.
    """
    words = np.ascontiguousarray(values, "<u8").view("<u4").reshape(-1, 2).astype(np.uint32, copy=False)
    c1, c2, c3 = np.uint32(0x239B961B), np.uint32(0xAB0E9789), np.uint32(0x38B34AE5)
    length = np.uint32(8)
    h1 = (_rotate_left(words[:, 0] * c1, 15) * c2) ^ length
    h2 = (_rotate_left(words[:, 1] * c2, 16) * c3) ^ length
    h1 = h1 + h2 + length + length
    h2 = h2 + h1
    h3 = h1 + length
    h1, h2, h3 = _mix(h1), _mix(h2), _mix(h3)
    h1 = h1 + h2 + h3 + h3
    h2 = h2 + h1
    return h1.astype(np.uint64) | (h2.astype(np.uint64) << np.uint64(32))


def _rotate_left(words: UInt32, bits: int) -> UInt32:
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))


def _mix(words: UInt32) -> UInt32:
    """Return MurmurHash3's final mix (`fmix32`) of each word."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))
