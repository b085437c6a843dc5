"""Where a voxel is: the chunk grid of a scale, and the regions its chunks are cached by."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Bool, Int64, UInt64, Voxels
from voxelprobe.errors import UnsupportedError
from voxelprobe.sharding.boxes import BoxSharding
from voxelprobe.sharding.locate import locate_chunks
from voxelprobe.sharding.spec import Sharding
from voxelprobe.volume.boxes import BLOCK, Integers, Triple, UInt32, Unsigned, divide, flatten, unravel
from voxelprobe.volume.scale import Scale

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

    def offsets(self, voxels: Int64, axis: int) -> UInt64:
        """Return how far voxels, shape (n,), are from the volume's begin along an axis; shape (n,).

        What lies before the begin wraps round, to beyond every volume's end: any int64 is inside exactly if its
        offset is below the size.
        """
        return voxels.astype(np.int64, copy=False).view(np.uint64) - np.uint64(self.voxel_offset[axis] % 2**64)

    def contain(self, offsets: Sequence[UInt64]) -> Bool:
        """Return which voxels lie inside the volume, shape (n,), from their three `offsets`."""
        inside = offsets[0] < np.uint64(self.size[0])
        inside &= offsets[1] < np.uint64(self.size[1])
        inside &= offsets[2] < np.uint64(self.size[2])
        return inside

    def split(self, offsets: Sequence[UInt64]) -> tuple[list[Unsigned], UInt32]:
        """Return the chunks' three positions in the grid, and the flat places in a whole chunk (x fastest).

        All of shape (n,). All `offsets` have to be inside the volume.
        """
        narrow = np.uint32 if max(self.size) <= 2**32 else np.uint64
        x, y, z = (divide(axis.astype(narrow), size) for axis, size in zip(offsets, self.chunk_size, strict=True))
        places = flatten((x[1], y[1], z[1]), self.chunk_size)
        return [x[0], y[0], z[0]], places.astype(np.uint32, copy=False)

    def contains(self, voxels: Voxels) -> Bool:
        """Return which voxels, shape (n, 3), lie inside the volume; shape (n,)."""
        return self.contain([self.offsets(voxels[:, axis], axis) for axis in range(3)])

    def locate(self, voxels: Voxels) -> tuple[Int64, Int64]:
        """Return each voxel's chunk number and its flat place in a whole chunk (x fastest), both shape (n,).

        All `voxels`, shape (n, 3), have to lie inside the volume.
        """
        positions, places = self.split([self.offsets(voxels[:, axis], axis) for axis in range(3)])
        return self.chunk_numbers(positions).astype(np.int64, copy=False), places.astype(np.int64)

    def chunk_numbers(self, positions: Sequence[Unsigned]) -> Unsigned:
        """Return the numbers of the chunks at three positions, shape (n,) each, in the smallest type that fits."""
        return flatten(positions, self.shape)

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

    Unsharded, a region is a block of `block` chunks; so it is where shards are boxes, of whole shards unless a shard
    is large. Of hashed shards, those in `sharding`, it is one, cut by the leading `cut_bits` of the minishard number
    when it is large: with a murmur hash a shard is no box, so those regions come from the computed numbers only.
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
            return cls(grid, None, _block_shape(grid.shape, (1, 1, 1)), 0)
        if isinstance(spec, BoxSharding):
            return cls(grid, None, _block_shape(grid.shape, spec.shape), 0)
        chunks = math.prod(grid.shape)
        if spec.hash == "identity":
            chunks_a_shard = min(chunks, 1 << min(spec.preshift_bits + spec.minishard_bits, 62))
        else:
            chunks_a_shard = -(-chunks // (1 << min(spec.shard_bits, 62)))
        excess = -(-chunks_a_shard // MAX_CHUNKS_OF_SHARD_REGION)
        return cls(grid, spec, (1, 1, 1), min(max(excess - 1, 0).bit_length(), spec.minishard_bits))

    def numbers(self, chunks: Integers) -> Int64:
        """Return the region number of each chunk number; both shape (n,)."""
        if self.sharding is not None and math.prod(self.grid.shape) <= len(chunks):
            return _numbers_of_all(self)[chunks]
        return self._compute_numbers(chunks)

    def cells(self, positions: Sequence[Unsigned]) -> tuple[Unsigned | None, Unsigned]:
        """Return the region number and the cell of the chunks at three positions, shape (n,) each.

        A cell tells the chunks of a region apart, and sorts them as chunk numbers do. Sharded, it is the chunk's
        number, and the regions are None: `numbers` finds them for many points at a time.
        """
        if self.sharding is not None:
            return None, self.grid.chunk_numbers(positions)
        x, y, z = (divide(axis, size) for axis, size in zip(positions, self.block, strict=True))
        return flatten((x[0], y[0], z[0]), self._blocks), flatten((x[1], y[1], z[1]), self.block)

    def chunks(self, regions: Integers, cells: Integers) -> Int64:
        """Return the chunk numbers of `cells` of `regions`; all shape (n,)."""
        if self.sharding is not None:
            return cells.astype(np.int64)
        begins = unravel(regions, self._blocks) * np.array(self.block, np.int64)
        x, y, z = (begins + unravel(cells, self.block)).T
        numbers: Int64 = x + self.grid.shape[0] * (y + self.grid.shape[1] * z)
        return numbers

    def capacity(self) -> int:
        """Return how many chunks a region has at most; with a hash, about how many."""
        if self.sharding is None:
            return math.prod(self.block)
        chunks, spec = math.prod(self.grid.shape), self.sharding
        region_bits = spec.shard_bits + self.cut_bits
        if spec.hash != "identity":
            return -(-chunks // (1 << region_bits))
        # The bits of a chunk's id that its region doesn't tell: those below the region's, and those above.
        id_bits = sum((size - 1).bit_length() for size in self.grid.shape)
        below = min(spec.preshift_bits + spec.minishard_bits - self.cut_bits, id_bits)
        return min(chunks, 1 << (below + max(id_bits - below - region_bits, 0)))

    @property
    def _blocks(self) -> Triple:
        x, y, z = (-(-s // b) for s, b in zip(self.grid.shape, self.block, strict=True))
        return (x, y, z)

    def _compute_numbers(self, chunks: Integers) -> Int64:
        numbers = np.empty(len(chunks), np.int64)
        for start in range(0, len(chunks), BLOCK):
            positions = self.grid.positions(chunks[start : start + BLOCK])
            if self.sharding is None:
                x, y, z = (divide(positions[:, axis], self.block[axis])[0] for axis in range(3))
                numbers[start : start + BLOCK] = x + self._blocks[0] * (y + self._blocks[1] * z)
                continue
            where = locate_chunks(positions, self.grid.shape, self.sharding)
            cut = np.uint64(self.cut_bits)
            kept = np.uint64(self.sharding.minishard_bits - self.cut_bits)
            numbers[start : start + BLOCK] = ((where.shards << cut) | (where.minishards >> kept)).view(np.int64)
        return numbers


@functools.lru_cache(maxsize=2)
def _numbers_of_all(regions: Regions) -> Int64:
    """Return the region number of every chunk of the grid."""
    return regions._compute_numbers(np.arange(math.prod(regions.grid.shape)))


def _block_shape(chunks: Triple, shard: Triple) -> Triple:
    """Return a region's extent in chunks: 8 a side, less in a small volume, more in a huge one; whole shards.

    Of shards with very many chunks, a half, a quarter, ….
    """
    unit = [min(s, c) for s, c in zip(shard, chunks, strict=True)]
    edges = [max(1, MAX_BLOCK_EDGE // u) for u in unit]
    while math.prod(unit) > MAX_CHUNKS_OF_SHARD_REGION and not all(u % 2 for u in unit):
        axis = max(range(3), key=lambda a: (unit[a] % 2 == 0, unit[a]))
        unit[axis] //= 2
        edges = [1, 1, 1]
    shape = [-(-c // u) for c, u in zip(chunks, unit, strict=True)]
    block = [min(e, s) for e, s in zip(edges, shape, strict=True)]

    def regions() -> int:
        return math.prod(-(-s // b) for s, b in zip(shape, block, strict=True))

    # Several workers need several regions, also in a volume of a few dozen chunks.
    while regions() < MIN_REGIONS and max(block) > 1:
        axis = block.index(max(block))
        block[axis] = -(-block[axis] // 2)
    while regions() > MAX_REGIONS:
        axis = max(range(3), key=lambda a: -(-shape[a] // block[a]))
        block[axis] *= 2
    return (block[0] * unit[0], block[1] * unit[1], block[2] * unit[2])
