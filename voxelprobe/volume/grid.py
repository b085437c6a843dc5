"""Where a voxel is: the chunk grid of a scale, and the regions its chunks are cached by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Bool, Int64, Voxels
from voxelprobe.errors import UnsupportedError
from voxelprobe.sharding.locate import locate_chunks
from voxelprobe.sharding.spec import Sharding
from voxelprobe.volume.info import Scale, Triple

# A region is what one cache file holds. Small enough to be evicted alone, large enough that opening
# the file is cheap beside fetching its chunks; few enough that a folder can hold them all.
MAX_BLOCK_EDGE = 8
MIN_REGIONS = 16
MAX_REGIONS = 65_536
MAX_CHUNKS_OF_SHARD_REGION = 4_096


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """The chunks of a scale: a grid that starts at the voxel offset and is clipped at the volume's end.

    A chunk is known by its number: x + shape_x * (y + shape_y * z) of its place in the grid.
    """

    voxel_offset: Triple
    size: Triple
    chunk_size: Triple

    @classmethod
    def of(cls, scale: Scale) -> ChunkGrid:
        """Return the grid of a scale."""
        grid = cls(scale.voxel_offset, scale.size, scale.chunk_size)
        if math.prod(grid.shape) >= 2**62:
            raise UnsupportedError(f"scale {scale.key}: a grid of {grid.shape} chunks is beyond 64-bit numbers")
        return grid

    @property
    def shape(self) -> Triple:
        """Return the number of chunks along x, y, z."""
        x, y, z = (-(-s // c) for s, c in zip(self.size, self.chunk_size, strict=True))
        return (x, y, z)

    def contains(self, voxels: Voxels) -> Bool:
        """Return which voxels, shape (n, 3), lie inside the volume; shape (n,)."""
        begin = np.array(self.voxel_offset, np.int64)
        end = begin + np.array(self.size, np.int64)
        inside = (voxels >= begin) & (voxels < end)
        return inside[:, 0] & inside[:, 1] & inside[:, 2]

    def locate(self, voxels: Voxels) -> tuple[Int64, Int64]:
        """Return each voxel's chunk number and its flat place in a whole chunk (x fastest), both shape (n,).

        All `voxels`, shape (n, 3), have to lie inside the volume.
        """
        chunk = np.zeros(len(voxels), np.int64)
        place = np.zeros(len(voxels), np.int64)
        chunk_stride = place_stride = 1
        for axis in range(3):
            quotient, remainder = np.divmod(voxels[:, axis] - self.voxel_offset[axis], self.chunk_size[axis])
            chunk += quotient * chunk_stride
            place += remainder * place_stride
            chunk_stride *= self.shape[axis]
            place_stride *= self.chunk_size[axis]
        return chunk, place

    def positions(self, chunks: Int64) -> Voxels:
        """Return the grid places (n, 3) of chunk numbers (n,)."""
        return unravel(chunks, self.shape)

    def voxels_of(self, places: Int64) -> Voxels:
        """Return voxels (n, 3) from a chunk's own origin for the flat places that `locate` gave."""
        return unravel(places, self.chunk_size)

    def chunk_shape(self, position: Triple) -> Triple:
        """Return the size in voxels of the chunk at a grid place; the last of an axis may be smaller."""
        x, y, z = (min(c, s - p * c) for p, c, s in zip(position, self.chunk_size, self.size, strict=True))
        return (x, y, z)

    def chunk_name(self, position: Triple) -> str:
        """Return a chunk's name, its begin and end in voxels of the scale: `0-64_64-128_0-20`."""
        parts = []
        for place, offset, extent in zip(position, self.voxel_offset, self.chunk_size, strict=True):
            parts.append(offset + place * extent)
        shape = self.chunk_shape(position)
        return "_".join(f"{b}-{b + s}" for b, s in zip(parts, shape, strict=True))


@dataclass(frozen=True, slots=True)
class Regions:
    """How the chunks of a scale are cut into regions, the same for every run over the volume.

    Unsharded, a region is a block of `block` chunks; sharded, a shard, cut by the leading `cut_bits`
    of the minishard number when a shard is large. With a murmur hash a shard is no box, so
    sharded regions come from the computed numbers only.
    """

    grid: ChunkGrid
    sharding: Sharding | None
    block: Triple
    cut_bits: int

    @classmethod
    def of(cls, scale: Scale) -> Regions:
        """Return the regions of a scale."""
        grid = ChunkGrid.of(scale)
        if (spec := scale.sharding) is None:
            return cls(grid, None, _block_shape(grid.shape), 0)
        chunks = math.prod(grid.shape)
        if spec.hash == "identity":
            chunks_a_shard = min(chunks, 1 << min(spec.preshift_bits + spec.minishard_bits, 62))
        else:
            chunks_a_shard = -(-chunks // (1 << min(spec.shard_bits, 62)))
        excess = -(-chunks_a_shard // MAX_CHUNKS_OF_SHARD_REGION)
        return cls(grid, spec, (1, 1, 1), min(max(excess - 1, 0).bit_length(), spec.minishard_bits))

    def numbers(self, chunks: Int64) -> Int64:
        """Return the region number of each chunk number; both shape (n,)."""
        positions = self.grid.positions(chunks)
        if self.sharding is None:
            blocks = [-(-s // b) for s, b in zip(self.grid.shape, self.block, strict=True)]
            x, y, z = (positions[:, axis] // self.block[axis] for axis in range(3))
            numbers: Int64 = x + blocks[0] * (y + blocks[1] * z)
            return numbers
        where = locate_chunks(positions, self.grid.shape, self.sharding)
        cut = np.uint64(self.cut_bits)
        kept = np.uint64(self.sharding.minishard_bits - self.cut_bits)
        return ((where.shards << cut) | (where.minishards >> kept)).astype(np.int64)


def unravel(numbers: Int64, shape: Triple) -> Voxels:
    """Return (n, 3) places x y z for flat numbers (n,) in a box of `shape`, x fastest."""
    places = np.empty((len(numbers), 3), np.int64)
    rest, places[:, 0] = np.divmod(numbers, shape[0])
    places[:, 2], places[:, 1] = np.divmod(rest, shape[1])
    return places


def _block_shape(shape: Triple) -> Triple:
    """Return a region's extent in chunks: 8 a side, less in a small volume, more in a huge one."""
    block = [min(MAX_BLOCK_EDGE, s) for s in shape]

    def regions() -> int:
        return math.prod(-(-s // b) for s, b in zip(shape, block, strict=True))

    # Several workers need several regions, also in a volume of a few dozen chunks.
    while regions() < MIN_REGIONS and max(block) > 1:
        axis = block.index(max(block))
        block[axis] = -(-block[axis] // 2)
    while regions() > MAX_REGIONS:
        axis = max(range(3), key=lambda a: -(-shape[a] // block[a]))
        block[axis] *= 2
    return (block[0], block[1], block[2])
