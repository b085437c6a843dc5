"""Points of `zfpc` chunks, of which only the zfp streams needed are decoded, and of those of a fixed rate only blocks.

Formats: https://github.com/seung-lab/zfpc#container-format and https://zfp.readthedocs.io (`zfp_write_header`).
header | sizes of the streams | zfp streams. There is a stream for each place along the axes that the writer called
uncorrelated: one of many is read for a z slice or a channel. A stream is blocks of 4 voxels an axis, and where the rate
is fixed all have the same number of bits. Of the blocks needed a small stream is made, which zfp decodes to just what
the whole one has there.

Values are zfp's own, in the volume's dtype. The package (so CloudVolume too) rounds them to float32 whatever the dtype:
in volumes of float64, int32 and int64 they are exact here, and equal to the package's where float32 holds them.

There are no checksums. All sizes are compared with the layout and each other: a truncated chunk is always a
`CorruptDataError`. Flipped bits among the blocks, or in a stream's rate or precision, go unnoticed and give other
numbers; gzip's checksum and the store's guard against those. Behind a stream lie as many zeros as zfp may read of
damaged bits, so that it stays inside of memory that is ours: of 30,240 reads of damaged chunks with a forbidden page
behind those zeros none touched it. Hence not `ISOLATED`.

Limits: volumes of float32, float64, int32 or int64, which is what zfp has.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import zfpy

from voxelprobe.arrays import Int64, Labels, Voxels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

ISOLATED = False

# Magic, version, type and mode and order, sizes (x, y, z, channels), axes that are correlated.
_HEADER = struct.Struct("<4sBB4IB")
_TYPES = {"<i4": 1, "<i8": 2, "<f4": 3, "<f8": 4}
# A block begins with so many bits at least, or its length isn't fixed.
_LEAST_BITS = {"<i4": 1, "<i8": 1, "<f4": 9, "<f8": 12}
# If it is coded without loss so many: zfp counts what is left of fewer as a huge number, and reads past the end.
_LEAST_LOSSLESS_BITS = {"<i4": 5, "<i8": 6, "<f4": 15, "<f8": 19}
# Of a zfp stream's header: magic, then type and dimensions, then the mode, short or long.
_MAGIC = int.from_bytes(b"zfp\x05", "little")
_MAGIC_BITS, _META_BITS, _SHORT_BITS, _LONG_BITS, _SIZE_BITS = 32, 52, 12, 64, 48
_LONG_MODE, _FIXED_RATES = (1 << _SHORT_BITS) - 1, 2048
# The long mode's smallest exponents, as it has them, that mean without loss: below -1074, from -16495 on.
_LOSSLESS_BELOW = 16495 - 1074
# Taking blocks out of a stream costs what decoding this number of values does, and a block then costs two.
_VALUES_FOR_BLOCKS = 8192
# Of more bytes, the pages of zeros that nobody reads are not made.
_LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Stream:
    """One zfp stream whose header was compared.

    Attributes
    ----------
    shape
        In voxels, along the correlated axes; the last is zfp's first.
    mode, header_bits
        How it was compressed, as the header has it, and where the blocks begin.
    block_bits
        Bits of each block, 0 where they differ.
    most_bits
        Of a block, whatever its bits are.
    """

    content: memoryview
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    mode: int
    header_bits: int
    block_bits: int
    most_bits: int


def read_points(payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the values of a few voxels, decoding the streams and blocks they are in; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume is of a dtype that zfp hasn't.
    """
    if layout.dtype.str not in _TYPES:
        raise UnsupportedError(f"zfpc holds float32, float64, int32 or int64, the volume has {layout.dtype.name}")
    correlated, bounds = _parse_container(payload, layout)
    if len(voxels) == 0:
        return np.empty((0, layout.num_channels), layout.dtype)
    size = (*layout.shape, layout.num_channels)
    # Each axis' places of all values wanted, voxels first and then channels.
    places = [np.repeat(axis, layout.num_channels) for axis in voxels.T]
    places.append(np.tile(np.arange(layout.num_channels), len(voxels)))
    number = np.zeros(len(places[0]), np.int64)
    for axis in range(3, -1, -1):
        if axis not in correlated:
            number = number * size[axis] + places[axis]
    shape = tuple(size[axis] for axis in correlated)
    inside = [places[axis] for axis in correlated]
    found = np.empty(len(number), layout.dtype)
    order = np.argsort(number, kind="stable")
    ordered = number[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(order)], strict=True):
        which = int(ordered[begin])
        content = memoryview(payload)[bounds[which]:bounds[which + 1]]
        stream = _parse_stream(content, layout.dtype, shape)
        here = order[begin:end]
        found[here] = _read_stream(stream, [axis[here] for axis in inside])
    return found.reshape(len(voxels), layout.num_channels)


def _parse_container(payload: bytes | bytearray, layout: ChunkLayout) -> tuple[list[int], list[int]]:
    """Return which axes are correlated, and where each stream begins and the last ends."""
    if len(payload) < _HEADER.size or payload[:4] != b"zfpc" or payload[4] > 0:
        raise CorruptDataError(f"a zfpc chunk begins with b'zfpc' and format 0 in a header of {_HEADER.size} bytes, "
                               f"found {bytes(payload[:5])!r} in {len(payload)} bytes")
    _, _, kind, *size, flags = _HEADER.unpack_from(payload)
    expected = (*layout.shape, layout.num_channels)
    # An array without an axis for channels has 0 of them.
    axes = 3 if size[3] == 0 else 4
    if (*size[:3], size[3] or 1) != expected or kind & 0b111 != _TYPES[layout.dtype.str]:
        raise CorruptDataError(f"zfpc: expected {layout.dtype.name} of {expected}, the header has type {kind & 0b111} "
                               f"of {tuple(size)}")
    correlated = [axis for axis in range(axes) if flags >> axis & 1]
    if not correlated:
        raise CorruptDataError("zfpc: the header has no correlated axis, of which a stream is made")
    number = prod(expected[axis] for axis in range(4) if axis not in correlated)
    begin = _HEADER.size + 8 * (1 + number)
    if begin > len(payload):
        raise CorruptDataError(f"zfpc: the index of {number} streams ends at byte {begin}, found {len(payload)} bytes")
    index = np.frombuffer(payload, "<u8", 1 + number, _HEADER.size)
    if index.max() > len(payload) or index[0] < begin:
        raise CorruptDataError(f"zfpc: streams begin at byte {index[0]} and have up to {index[1:].max()} bytes, "
                               f"expected {begin} or more and no more than the chunk's {len(payload)}")
    bounds = np.cumsum(index.astype(np.int64))
    if bounds[-1] != len(payload):
        raise CorruptDataError(f"zfpc: {number} streams end at byte {bounds[-1]}, found {len(payload)} bytes")
    return correlated, bounds.tolist()


def _parse_stream(content: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> _Stream:
    """Return a zfp stream whose header fits the container's, and its length what the header says."""
    header = int.from_bytes(content[:24], "little")
    magic, meta = header % (1 << _MAGIC_BITS), header >> _MAGIC_BITS & (1 << _META_BITS) - 1
    kind, axes = (meta & 3) + 1, (meta >> 2 & 3) + 1
    width = _SIZE_BITS // axes
    # zfp's first axis, in the lowest bits, is numpy's last.
    size = tuple((meta >> 4 + width * axis & (1 << width) - 1) + 1 for axis in reversed(range(axes)))
    if len(content) % 8 or magic != _MAGIC or kind != _TYPES[dtype.str] or size != shape:
        raise CorruptDataError(f"zfpc: expected a zfp stream of {dtype.name}, {shape}, found type {kind}, {size} in "
                               f"{len(content)} bytes that begin with {bytes(content[:4])!r}")
    header_bits = _MAGIC_BITS + _META_BITS + _SHORT_BITS
    mode = header >> _MAGIC_BITS + _META_BITS & (1 << _SHORT_BITS) - 1
    values = 4 ** axes
    begin_bits = _LEAST_BITS[dtype.str]
    least, most = 0, begin_bits + 8 + values + values * 8 * dtype.itemsize
    if mode < _FIXED_RATES:
        least = most = mode + 1
    elif mode == _LONG_MODE:
        header_bits = _MAGIC_BITS + _META_BITS + _LONG_BITS
        mode = header >> _MAGIC_BITS + _META_BITS & (1 << _LONG_BITS) - 1
        least, limit = (mode >> 12 & 0x7FFF) + 1, (mode >> 27 & 0x7FFF) + 1
        most = limit if least == limit else max(most, least)
        if mode >> 49 & 0x7FFF < _LOSSLESS_BELOW:
            begin_bits = _LEAST_LOSSLESS_BITS[dtype.str]
    block_bits = least if least == most else 0
    blocks = prod(-(-extent // 4) for extent in shape)
    most_bytes = -(-(header_bits + blocks * most) // 64) * 8
    if most < begin_bits or len(content) > most_bytes or (block_bits and len(content) != most_bytes):
        limit_name = "" if block_bits else "at most "
        raise CorruptDataError(f"zfpc: expected {limit_name}{most_bytes} bytes of {blocks} blocks of {most} bits in a "
                               f"zfp stream, found {len(content)}")
    return _Stream(content, dtype, shape, mode, header_bits, block_bits, most)


def _read_stream(stream: _Stream, places: list[Int64]) -> npt.NDArray[Any]:
    """Return the values at places along the stream's axes."""
    grid = tuple(-(-extent // 4) for extent in stream.shape)
    values_a_block = 4 ** len(grid)
    spare_values = prod(grid) * values_a_block - _VALUES_FOR_BLOCKS
    if stream.block_bits and spare_values > 0:
        wanted = np.ravel_multi_index([axis >> 2 for axis in places], grid)
        is_needed = np.zeros(prod(grid), np.bool_)
        is_needed[wanted] = True
        blocks = np.flatnonzero(is_needed)
        if 2 * values_a_block * len(blocks) < spare_values:
            rank = np.searchsorted(blocks, wanted)
            return _read_blocks(stream, blocks, rank, [axis & 3 for axis in places])
    values = _decode(stream.content, prod(grid) * stream.most_bits // 8, stream.shape)
    return np.asarray(values[tuple(places)])


def _read_blocks(stream: _Stream, blocks: Int64, rank: Int64, places: list[Int64]) -> npt.NDArray[Any]:
    """Return the values at places inside of blocks; blocks ascend, and `rank` says in which of them each place is."""
    axes = len(stream.shape)
    found = np.empty(len(rank), stream.dtype)
    # As many blocks as the header can say, side by side along zfp's first axis.
    at_once = (1 << _SIZE_BITS // axes) // 4
    for begin in range(0, len(blocks), at_once):
        some = blocks[begin:begin + at_once]
        shape = (*(4,) * (axes - 1), 4 * len(some))
        values = _decode(_join_blocks(stream, some, shape), 0, shape)
        here = np.flatnonzero((rank >= begin) & (rank < begin + len(some)))
        *others, last = (axis[here] for axis in places)
        found[here] = values[(*others, last + 4 * (rank[here] - begin))]
    return found


def _join_blocks(stream: _Stream, blocks: Int64, shape: tuple[int, ...]) -> bytes:
    """Return a zfp stream of some blocks of a stream of fixed rate."""
    width = _SIZE_BITS // len(shape)
    meta = _TYPES[stream.dtype.str] - 1 | len(shape) - 1 << 2
    for axis, extent in enumerate(reversed(shape)):
        meta |= extent - 1 << 4 + width * axis
    header = _MAGIC | meta << _MAGIC_BITS | stream.mode << _MAGIC_BITS + _META_BITS
    begins = stream.header_bits + blocks * stream.block_bits
    # Eight bits from any place are in two bytes; one more byte is read than a block has, and none past the end.
    where = (begins >> 3)[:, None] + np.arange(-(-stream.block_bits // 8) + 1)[None]
    picked = np.frombuffer(stream.content, np.uint8).take(where, mode="clip")
    shift = (begins & 7).astype(np.uint8)[:, None]
    if shift.any():
        picked = picked[:, :-1] >> shift | (picked[:, 1:].astype(np.uint16) << 8 - shift).astype(np.uint8)
    else:
        picked = picked[:, :-1]
    if stream.block_bits % 8 == stream.header_bits % 8 == 0:
        return b"".join((header.to_bytes(stream.header_bits // 8, "little"), picked.tobytes()))
    bits = np.unpackbits(picked, axis=1, count=stream.block_bits, bitorder="little")
    first = np.unpackbits(np.frombuffer(header.to_bytes(24, "little"), np.uint8), count=stream.header_bits,
                          bitorder="little")
    return np.packbits(np.concatenate((first, bits.ravel())), bitorder="little").tobytes()


def _decode(content: bytes | memoryview, spare_bytes: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return all values of a zfp stream: shape `shape`."""
    size = len(content) + spare_bytes + 64
    memory: bytes | mmap.mmap
    if size < _LARGE:
        memory = b"".join((content, bytes(size - len(content))))
    else:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[:len(content)] = content
    try:
        values: npt.NDArray[Any] = zfpy.decompress_numpy(memory)
    except (ValueError, RuntimeError) as error:
        raise CorruptDataError(f"zfpc: zfp can't decode a stream of {shape}: {error}") from error
    if values.shape != shape:
        raise CorruptDataError(f"zfpc: expected a stream of {shape}, found {values.shape}")
    return values
