"""What chunks of zarr and n5 have in common: the objects they are made of, and the axes of what is stored in one.

A chunk of a volume whose channels are chunked apart is several stored objects, its parts, carried as one payload.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelprobe.arrays import Int64, Voxels
from voxelprobe.codecs.compression import Layer, make_layers
from voxelprobe.codecs.decompressors import Content
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

CHANNEL = 3

_ABSENT = 0xFFFF_FFFF_FFFF_FFFF


def pack_parts(parts: Sequence[bytes | None]) -> bytes:
    """Return one payload for the parts of a chunk, two or more; None for a part that the store doesn't have.

    The sizes of all parts (uint64le), then the parts.
    """
    sizes = [_ABSENT if part is None else len(part) for part in parts]
    return struct.pack(f"<{len(parts)}Q", *sizes) + b"".join(part for part in parts if part is not None)


def unpack_parts(payload: bytes | bytearray, number: int) -> Sequence[Content | None]:
    """Return the parts that `pack_parts` was given, or the payload itself where a chunk is one part.

    Raises
    ------
    CorruptDataError
        If the payload isn't `number` parts.
    """
    if number == 1:
        return [payload]
    if len(payload) < 8 * number:
        raise CorruptDataError(f"expected {number} parts of a chunk, found {len(payload)} bytes")
    sizes = struct.unpack_from(f"<{number}Q", payload)
    total = sum(size for size in sizes if size != _ABSENT)
    if total != len(payload) - 8 * number:
        raise CorruptDataError(f"expected {number} parts of {total} bytes together, found {len(payload) - 8 * number}")
    parts: list[memoryview | None] = []
    begin = 8 * number
    for size in sizes:
        parts.append(None if size == _ABSENT else memoryview(payload)[begin : begin + size])
        begin += 0 if size == _ABSENT else size
    return parts


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """`ChunkLayout.codecs` of zarr and n5: how the values of a chunk are stored.

    Attributes
    ----------
    chunk
        Size of a part along each stored axis; n5: at most.
    axes
        What each stored axis is: 0, 1, 2 for x, y, z, `CHANNEL`, or -1 where only index 0 is read.
    order
        The axes from the slowest to the fastest.
    dtype
        Of the stored values, with their byte order.
    fill_value
        The value of a part that isn't stored; None if there has to be one.
    parts
        How many there are, each with the same number of channels.
    layers
        What was done to the bytes, in the order of doing.
    """

    chunk: tuple[int, ...]
    axes: tuple[int, ...]
    order: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: int | float | None
    parts: int
    layers: tuple[Layer, ...]

    @property
    def channels_a_part(self) -> int:
        """Channels that a part holds."""
        return self.chunk[self.axes.index(CHANNEL)] if CHANNEL in self.axes else 1

    def read_stored(
        self, payload: bytes | bytearray, layout: ChunkLayout
    ) -> Iterator[tuple[slice, Content | np.generic]]:
        """Yield for each part its channels, and its bytes or, where the store has none, the value to fill in.

        Raises
        ------
        CorruptDataError
            If the payload isn't so many parts, or one is missing that has to be there.
        """
        for index, part in enumerate(unpack_parts(payload, self.parts)):
            begin = index * self.channels_a_part
            channels = slice(begin, min(begin + self.channels_a_part, layout.num_channels))
            if part is not None:
                yield channels, part
            elif self.fill_value is not None:
                yield channels, layout.dtype.type(self.fill_value)
            else:
                raise CorruptDataError(f"part {index} of {self.parts} is missing, and there is no fill value")

    def places(self, shape: Sequence[int], voxels: Voxels, num_channels: int) -> Int64:
        """Return where values are among those of a part of `shape`: shape (n, `num_channels`) for n voxels."""
        steps = dict.fromkeys(range(-1, CHANNEL + 1), 0)
        step = 1
        for axis in reversed(self.order):
            steps[self.axes[axis]] = step
            step *= shape[axis]
        place = voxels[:, 0] * steps[0] + voxels[:, 1] * steps[1] + voxels[:, 2] * steps[2]
        return place[:, None] + steps[CHANNEL] * np.arange(num_channels)

    def check_shape(self, shape: Sequence[int], layout: ChunkLayout, num_channels: int) -> None:
        """Raise CorruptDataError if a part of `shape` doesn't hold the voxels and channels asked for."""
        needed = {**dict(enumerate(layout.shape)), CHANNEL: num_channels}
        # Of an axis that there isn't, there is index 0.
        absent = [size for axis, size in needed.items() if axis not in self.axes]
        if any(size > 1 for size in absent) or any(
                size < needed.get(axis, 1) for axis, size in zip(self.axes, shape, strict=True)):
            raise CorruptDataError(f"expected {layout.shape} voxels in {num_channels} channels, found the axes "
                                   f"{self.axes} (0 is x) with {tuple(shape)} values")


@functools.lru_cache(maxsize=16)
def parse_stored_chunk(text: str) -> StoredChunk:
    """Return what `ChunkLayout.codecs` says.

    Raises
    ------
    UnsupportedError
        If a codec can't be undone here.
    """
    facts = json.loads(text)
    axes = tuple(facts["axes"])
    dtype = np.dtype(facts["dtype"])
    if dtype.kind not in "biuf":
        raise UnsupportedError(f"values of dtype {dtype.str} can't be read")
    fill_value = facts["fill_value"]
    return StoredChunk(
        tuple(facts["chunk"]), axes, tuple(facts.get("order", reversed(range(len(axes))))), dtype,
        float(fill_value) if isinstance(fill_value, str) else fill_value, facts["parts"],
        make_layers(facts["codecs"]),
    )
