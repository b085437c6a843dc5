"""A scale whose chunks are those of an array of zarr or n5, read one stored object at a time.

A chunk of the volume is as many stored objects, its parts, as the array has chunks along its channels. One that the
store doesn't have is the fill value. Formats: see `zarr_metadata` and `n5`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.audit.array_codecs import Step, explain_steps, undo_steps
from voxelprobe.audit.box_shards import BoxShardReader, Shards
from voxelprobe.audit.places import FetchChunk, Part, Ratios, Triple, clip_chunk, name_box
from voxelprobe.audit.stripping import strip
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.transport.sources import RetryingSource

_MOST_VALUES = 1 << 32
_MOST_CHUNKS_OF_SHARD = 1 << 22


@dataclass(frozen=True, slots=True)
class StoredArray:
    """What the metadata of an array say, in the order of its own axes.

    Attributes
    ----------
    chunk
        Values of a chunk; of one inside of a shard where there are shards.
    dtype
        Of the values, little-endian.
    steps
        What was done to a chunk, in that order.
    fill
        The value of chunks that aren't stored; None where there is none.
    prefix, separator
        Of the names of its objects.
    axis_names
        As the metadata have them, if they do.
    has_header
        Whether chunks begin with n5's header.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    steps: tuple[Step, ...]
    fill: int | float | None
    prefix: str
    separator: str
    axis_names: Sequence[Any] | None = None
    shards: Shards | None = None
    has_header: bool = False


@dataclass(frozen=True, slots=True)
class ArrayScale:
    """An array as one scale of a volume; see `AuditableScale`.

    Attributes
    ----------
    axes
        What each axis of the array is: x, y, z, c, or nothing for one of which only index 0 is read.
    """

    key: str
    array: StoredArray
    axes: tuple[str, ...]
    voxel_offset: Triple
    ratios: Ratios

    def __post_init__(self) -> None:
        array = self.array
        if not len(self.axes) == len(array.shape) == len(array.chunk):
            raise UnsupportedError(f"an array of shape {array.shape} and axes {self.axes}")
        if any(not axis and size != 1 for axis, size in zip(self.axes, array.shape, strict=True)):
            raise UnsupportedError(f"an axis that is neither x, y, z nor a channel in an array of {array.shape}")
        if math.prod(array.chunk) >= _MOST_VALUES or self._chunks_of_shard() > _MOST_CHUNKS_OF_SHARD:
            raise UnsupportedError(f"chunks of {array.chunk} values, {self._chunks_of_shard()} a shard")

    @property
    def size(self) -> Triple:
        """Return the volume's size in voxels."""
        return self._along(self.array.shape)

    @property
    def chunk_size(self) -> Triple:
        """Return a chunk's size in voxels."""
        return self._along(self.array.chunk)

    @property
    def encoding(self) -> str:
        """Return what the product calls it."""
        return "n5" if self.array.has_header else "zarr"

    @property
    def data_type(self) -> str:
        """Return the name of the labels' dtype."""
        return self.array.dtype.name

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return self.array.shape[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def max_bytes(self) -> int:
        """Return the most that an encoded chunk may take: generously more than its values."""
        return 4 * math.prod(self.array.chunk) * self.array.dtype.itemsize * self._num_parts + (1 << 20)

    def chunk_name(self, grid: Triple) -> str:
        """Return what a message calls a chunk: where it is, since a shard's name says too little."""
        return f"{self.key}/{name_box(self, grid)}".lstrip("/")

    def explain(self) -> str:
        """Return what undoes the codecs."""
        return explain_steps(self.array.steps)

    def open_chunks(self, source: RetryingSource) -> FetchChunk:
        """Return what fetches all parts of a chunk: objects, or what stands in shards."""
        read = self._open_objects(source)
        if (shards := self.array.shards) is not None:
            read = BoxShardReader(shards, self.array.chunk, self.object_name, self.max_bytes, source).read
        return lambda grid: [read(self._place(grid, number)) for number in range(self._num_parts)]

    def decode(self, grid: Triple, parts: Sequence[Part | None]) -> npt.NDArray[Any] | None:
        """Return a chunk's voxels; what is beyond the end of the volume is 0."""
        fill = self.array.fill
        if fill is None:
            if all(part is None for part in parts):
                return None
            if None in parts:
                raise CorruptDataError("some of its channels are missing, and there is no fill value")
        chunk = np.zeros((*self.chunk_size, self.channels), self.array.dtype)
        for number, part in enumerate(parts):
            first = number * self._channels_a_part
            channels = slice(first, min(first + self._channels_a_part, self.channels))
            if part is None:
                chunk[..., channels] = fill
                continue
            values = self._decode_part(strip(*part, self.max_bytes), clip_chunk(self, grid), channels)
            x, y, z, _ = values.shape
            chunk[:x, :y, :z, channels] = values
        return chunk

    def _decode_part(self, content: bytes, clip: Triple, channels: slice) -> npt.NDArray[Any]:
        """Return the values of one stored object, shape (x, y, z, channels)."""
        array, count = self.array, channels.stop - channels.start
        shape = array.chunk
        if array.has_header:
            shape, content = _read_header(content, len(shape))
            needed = dict(zip("xyzc", (*clip, count), strict=True))
            if not all(needed.get(axis, 1) <= size <= most
                       for axis, size, most in zip(self.axes, shape, array.chunk, strict=True)):
                raise CorruptDataError(f"expected a block of {clip} to {array.chunk}, found {shape}")
        values = undo_steps(content, array.steps, shape, array.dtype, self.max_bytes)
        others = [axis for axis, name in enumerate(self.axes) if not name]
        if "c" not in self.axes:
            values = values[..., np.newaxis]
        names = [*self.axes, "c"]
        values = values.transpose(*others, *(names.index(name) for name in "xyzc"))
        for _ in others:
            values = values[0]
        return values[..., :count]

    def _place(self, grid: Triple, number: int) -> list[int]:
        """Return the position of a part in the array's grid of chunks."""
        along = dict(zip("xyzc", (*grid, number), strict=True))
        return [along.get(axis, 0) for axis in self.axes]

    def _open_objects(self, source: RetryingSource) -> Callable[[Sequence[int]], Part | None]:
        def read(place: Sequence[int]) -> Part | None:
            answer = source.fetch(self.object_name(place))
            return None if answer is None else (answer.content, answer.encoding)

        return read

    def object_name(self, place: Sequence[int]) -> str:
        """Return the name below the volume's folder of what is stored at a position of the grid."""
        name = self.array.prefix + self.array.separator.join(map(str, place))
        return f"{self.key}/{name}" if self.key else name

    @property
    def _channels_a_part(self) -> int:
        return self.array.chunk[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def _num_parts(self) -> int:
        return -(-self.channels // self._channels_a_part)

    def _chunks_of_shard(self) -> int:
        shards = self.array.shards
        return 1 if shards is None else math.prod(shards.shape) // math.prod(self.array.chunk)

    def _along(self, values: Sequence[int]) -> Triple:
        return (values[self.axes.index("x")], values[self.axes.index("y")], values[self.axes.index("z")])


def _read_header(block: bytes, rank: int) -> tuple[tuple[int, ...], bytes]:
    """Return the size of an n5 block and what follows its header: mode, rank, a size an axis, all big-endian."""
    if len(block) < 4 + 4 * rank:
        raise CorruptDataError(f"expected the header of an n5 block, found {len(block)} bytes")
    mode, found, *shape = struct.unpack_from(f">2H{rank}I", block)
    content = block[4 + 4 * rank:]
    if found != rank or mode not in (0, 1):
        raise CorruptDataError(f"expected an n5 block of {rank} axes, found mode {mode} and {found}")
    if mode == 1:  # the number of values, which may be another for what isn't numbers
        if int.from_bytes(content[:4], "big") != math.prod(shape):
            raise CorruptDataError(f"expected a block of {shape}, found {int.from_bytes(content[:4], 'big')} values")
        content = content[4:]
    return tuple(shape), content
