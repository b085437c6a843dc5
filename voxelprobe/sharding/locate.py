"""In which shard file, and in which of its minishards, a chunk is stored.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md
With a murmur hash a shard is not a box of space: what belongs together is told by the numbers computed here, never by
neighbourhood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Int64, UInt64, Voxels
from voxelprobe.sharding.hashing import hash_codes, morton_codes
from voxelprobe.sharding.spec import Sharding


@dataclass(frozen=True, slots=True, eq=False)
class ChunkLocations:
    """Where a sharded volume stores some chunks; all of shape (n,), uint64, in one order.

    Attributes
    ----------
    chunk_ids
        What the minishard index calls the chunk: its compressed Morton code.
    shards
        Number of the shard file, see `shard_file_name`.
    minishards
        Row of the shard index.
    """

    chunk_ids: UInt64
    shards: UInt64
    minishards: UInt64


def locate_chunks(positions: Voxels, grid_shape: Sequence[int] | Int64, spec: Sharding) -> ChunkLocations:
    """Return where the chunks at some grid positions are stored.

    Parameters
    ----------
    positions
        Shape (n, 3), int64, x y z, in chunks from the grid's origin.
    grid_shape
        Chunks along x, y and z.

    Raises
    ------
    UnsupportedError
        If the grid needs ids of more than 64 bits.
    InputError
        If a position lies outside of the grid.
    """
    chunk_ids = morton_codes(positions, grid_shape)
    hashes = hash_codes(_shift_right(chunk_ids, spec.preshift_bits), spec.hash)
    return ChunkLocations(
        chunk_ids,
        shards=_low_bits(_shift_right(hashes, spec.minishard_bits), spec.shard_bits),
        minishards=_low_bits(hashes, spec.minishard_bits),
    )


def shard_file_name(shard: int, spec: Sharding) -> str:
    """Return the name of a shard's file, inside the folder of its scale.

    One hexadecimal digit for every four shard bits begun; with no shard bits at all it is `0.shard`, as Neuroglancer
    (`padStart`), TensorStore (`%0*x`) and CloudVolume (`zfill`) have it.
    """
    return f"{int(shard):x}".zfill(-(-spec.shard_bits // 4)) + ".shard"


def _shift_right(values: UInt64, bits: int) -> UInt64:
    # C leaves a shift by the full width undefined.
    return values >> np.uint64(bits) if bits < 64 else np.zeros_like(values)


def _low_bits(values: UInt64, bits: int) -> UInt64:
    return values & np.uint64(2**bits - 1)
