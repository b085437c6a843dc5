"""An array in a store as zarr and n5 describe one, and the scale of a volume that it makes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.sharding.boxes import BoxSharding
from voxelprobe.volume.boxes import Triple
from voxelprobe.volume.names import GridNames
from voxelprobe.volume.scale import Scale

CHANNEL, OTHER = 3, -1
MAX_CHANNELS = 1 << 16
# A shard's index has 16 bytes a chunk and is read whole.
MAX_CHUNKS_OF_SHARD = 1 << 22
DTYPES = {"bool": "u1"} | {f"{kind}{8 * size}": f"{letter}{size}" for kind, letter, sizes in (
    ("uint", "u", (1, 2, 4, 8)), ("int", "i", (1, 2, 4, 8)), ("float", "f", (2, 4, 8))) for size in sizes}

Fill = int | float | None


@dataclass(frozen=True, slots=True)
class ShardedChunks:
    """What zarr v3's `sharding_indexed` adds: `chunk` is then the size of the chunks inside of the shards."""

    shard: tuple[int, ...]
    index_at_end: bool
    has_checksum: bool


@dataclass(frozen=True, slots=True)
class StoredArray:
    """What the metadata of an array say, each tuple in the order of its own axes.

    Attributes
    ----------
    where
        Where they stand, for messages.
    encoding
        The point reader of its chunks.
    dtype
        Of the stored values, with their byte order.
    order
        The axes from the slowest to the fastest in a chunk's bytes.
    fill_value
        Of chunks that aren't stored; None if the metadata don't say.
    codecs
        What was done to a chunk's bytes, in that order: numcodecs configurations.
    prefix, separator
        Of the names of its objects.
    axis_names
        What the metadata call the axes, if anything.
    """

    where: str
    encoding: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, ...]
    fill_value: Fill
    codecs: Sequence[Mapping[str, Any]]
    prefix: str
    separator: str
    axis_names: Sequence[Any] | None = None
    sharded: ShardedChunks | None = None


def make_scale(
    array: StoredArray, key: str, axes: tuple[int, ...], resolution: tuple[float, float, float], voxel_offset: Triple
) -> Scale:
    """Return the scale that an array makes.

    Parameters
    ----------
    axes
        What each of its axes is: 0, 1, 2 for x, y, z, 3 for the channel, -1 for another.

    Raises
    ------
    InputError, UnsupportedError
        If the array has another number of axes, a time axis that is longer than 1, too many channels, or chunks beyond
        32-bit numbers.
    """
    if len(axes) != len(array.shape):
        raise InputError(f"{array.where}: expected {len(axes)} axes, found an array of shape {list(array.shape)}")
    for axis, size in zip(axes, array.shape, strict=True):
        if axis == OTHER and size != 1:
            raise UnsupportedError(f"{array.where}: an array of shape {list(array.shape)} has an axis of {size} that "
                                   "is neither x, y, z nor a channel; expected 1")
    if math.prod(array.chunk) >= 2**32:
        raise UnsupportedError(f"{array.where}: chunks of {list(array.chunk)}; fewer than 2^32 values a chunk are "
                               "supported")
    place = {axis: stored for stored, axis in enumerate(axes) if axis != OTHER}
    channels = array.shape[place[CHANNEL]] if CHANNEL in place else 1
    if channels > MAX_CHANNELS:
        raise UnsupportedError(f"{array.where}: {channels} channels; at most {MAX_CHANNELS} are supported")
    parts = -(-channels // array.chunk[place[CHANNEL]]) if CHANNEL in place else 1
    sharding, objects = None, parts
    if array.sharded is not None:
        sharding = _box_sharding(array, array.sharded, axes, parts)
        objects = -(-parts // sharding.channel_chunks)
    fill = array.fill_value
    facts: dict[str, Any] = {
        "chunk": array.chunk, "axes": axes, "order": array.order, "dtype": array.dtype.str, "parts": parts,
        "fill_value": fill if fill is None or math.isfinite(fill) else _name_of(fill), "codecs": list(array.codecs),
    }
    if array.encoding == "n5":
        del facts["order"]  # the first axis is the fastest, always

    def along(values: Sequence[int]) -> Triple:
        return (values[place[0]], values[place[1]], values[place[2]])

    return Scale(
        key=key,
        size=along(array.shape),
        voxel_offset=voxel_offset,
        resolution=resolution,
        chunk_size=along(array.chunk),
        encoding=array.encoding,
        dtype=array.dtype.newbyteorder("<"),
        num_channels=channels,
        sharding=sharding,
        names=GridNames(array.prefix, array.separator, axes, objects),
        codecs=json.dumps(facts, sort_keys=True),
        fill_value=fill,
        num_parts=parts,
        raw_bytes=math.prod(array.chunk) * array.dtype.itemsize * parts,
    )


def _box_sharding(array: StoredArray, sharded: ShardedChunks, axes: tuple[int, ...], parts: int) -> BoxSharding:
    counts = tuple(whole // inner for whole, inner in zip(sharded.shard, array.chunk, strict=True))
    if any(whole % inner for whole, inner in zip(sharded.shard, array.chunk, strict=True)):
        raise InputError(f"{array.where}: expected shards of whole chunks, found shards of {list(sharded.shard)} and "
                         f"chunks of {list(array.chunk)}")
    if math.prod(counts) > MAX_CHUNKS_OF_SHARD:
        raise UnsupportedError(f"{array.where}: shards of {math.prod(counts)} chunks; at most {MAX_CHUNKS_OF_SHARD} "
                               "are supported")
    of_axis = dict(zip(axes, counts, strict=True))
    return BoxSharding((of_axis[0], of_axis[1], of_axis[2]), of_axis.get(CHANNEL, 1), parts, axes, counts,
                       sharded.index_at_end, sharded.has_checksum)


def choose_axes(names: Sequence[Any] | None, rank: int, where: str) -> tuple[int, ...]:
    """Return what each axis of an array is, by its name.

    Without names the last three are z, y, x; before them is the channel, and before that something of size 1.

    Raises
    ------
    UnsupportedError
        If there isn't one x, y and z, or there are several channels.
    """
    if names is None or not any(names):
        if not 3 <= rank <= 5:
            raise UnsupportedError(f"{where}: an array of {rank} axes; expected x, y and z, and perhaps a channel")
        return (OTHER, CHANNEL, 2, 1, 0)[5 - rank:]
    if len(names) != rank:
        raise InputError(f"{where}: expected the names of {rank} axes, found {list(names)!r}")
    known = {"x": 0, "y": 1, "z": 2, "c": CHANNEL, "channel": CHANNEL}
    axes = tuple(known.get(name.lower(), OTHER) if isinstance(name, str) else OTHER for name in names)
    if any(axes.count(axis) != 1 for axis in range(3)) or axes.count(CHANNEL) > 1:
        raise UnsupportedError(f"{where}: axes {list(names)!r}; expected x, y and z, and at most one channel")
    return axes


def parse_fill(value: object, dtype: np.dtype[Any], where: str) -> Fill:
    """Return the fill value of an array as exactly as its metadata have it: a number, the name of one, or its bits.

    Raises
    ------
    InputError
        If it isn't a value of `dtype`, which may be that of stored booleans, uint8.
    """
    wrong = InputError(f"{where}: expected a fill_value of {dtype.name}, found {value!r}")
    if isinstance(value, bool):
        value = int(value)
    if dtype.kind == "f":
        if isinstance(value, str):
            if value in ("NaN", "Infinity", "-Infinity"):
                return float(value)
            if re.fullmatch(f"0x[0-9a-fA-F]{{{2 * dtype.itemsize}}}", value):
                bits = np.array(int(value, 16), f"u{dtype.itemsize}")
                return float(bits.view(f"f{dtype.itemsize}"))
        if not isinstance(value, int | float):
            raise wrong
        try:
            return float(value)
        except OverflowError:
            raise wrong from None
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    limits = np.iinfo(dtype)
    if not isinstance(value, int) or not limits.min <= value <= limits.max:
        raise wrong
    return value


def _name_of(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
