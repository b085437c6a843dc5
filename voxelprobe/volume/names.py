"""What the objects are called that hold the chunks of a scale, in each kind of volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from voxelprobe.volume.boxes import Triple

if TYPE_CHECKING:
    from voxelprobe.volume.grid import ChunkGrid


class ChunkNames(Protocol):
    """Names of the objects of a chunk, relative to the scale's key. Frozen and comparable: scales hold it."""

    def of(self, grid: ChunkGrid, position: Triple) -> tuple[str, ...]:
        """Return the names of the objects that hold the chunk at a grid place.

        There are several where channels are chunked apart: in the order of the channels.
        """
        ...


@dataclass(frozen=True, slots=True)
class BoxNames:
    """Precomputed: the chunk's begin and end in voxels, as in `0-64_0-64_0-64`."""

    def of(self, grid: ChunkGrid, position: Triple) -> tuple[str, ...]:
        """Return the one name of a chunk."""
        return (grid.chunk_name(position),)


@dataclass(frozen=True, slots=True)
class GridNames:
    """Zarr and n5: a prefix, and the place in the grid along each stored axis, as in `c/0/3/1`.

    The grid is that of the stored objects: of the chunks, or of zarr v3's shards.

    Attributes
    ----------
    axes
        What each stored axis is, in the stored order: 0, 1, 2 for x, y, z, 3 for the channel; -1 for an axis that has
        one chunk only, whose number is 0.
    num_channel_chunks
        Objects along the channel axis.
    """

    prefix: str
    separator: str
    axes: tuple[int, ...]
    num_channel_chunks: int = 1

    def of(self, grid: ChunkGrid, position: Triple) -> tuple[str, ...]:
        """Return the names of a chunk's objects, one a chunk of channels."""
        return tuple(
            self.prefix + self.separator.join(str((*position, channel, 0)[axis]) for axis in self.axes)
            for channel in range(self.num_channel_chunks)
        )
