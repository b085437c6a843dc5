"""Points of `compressed_segmentation` chunks, looked up in the encoded words without decoding a block.

Format: https://github.com/google/neuroglancer/blob/master/src/sliceview/compressed_segmentation/README.md
A payload is little-endian 32-bit words. Word c is where channel c begins. A channel begins with two words a block
(x fastest): the offset of the block's table of labels (low 24 bits) with the bits a value (high 8 bits), and the offset
of its packed values. Values index the table; they lie x fastest over the whole block, also where the chunk's end clips
it. Labels are uint32 or uint64.

Tables have to begin below word 2^24 of their channel. TensorStore writes chunks beyond that, too: the offset then runs
over into the bits a value. It doesn't read them back, and neither do we (`_check_all_bits`). Blocks of more than 65,536
labels have 32 bits a value. The package `compressed_segmentation`, and so CloudVolume, reads those wrongly.

There is no checksum. Every offset is checked, so damaged bytes raise `CorruptDataError` or give what they say; a
flipped bit inside a table or a value can't be noticed.
"""

from __future__ import annotations

import struct
from math import prod

import numpy as np

from voxelprobe.arrays import Int64, Labels, Voxels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

ISOLATED = False

# Up to this many labels the loop is faster than numpy's cost a call. Measured by benchmarks/crossovers: 30 labels
# take 23 microseconds in the loop and 28 in numpy, 100 take 78 and 29.
_FEW_LABELS = 32
_VALID_BITS = (0, 1, 2, 4, 8, 16, 32)
# Where tables can begin: their offsets have 24 bits.
_WORDS_OF_TABLES = 1 << 24
# The mask of a packed value for every number of bits; where the number isn't valid, one that no value can have.
_NO_MASK = 1 << 40
_MASKS = np.array([(1 << bits) - 1 if bits in _VALID_BITS else _NO_MASK for bits in range(256)])
_ONE_WORD = struct.Struct("<I").unpack_from
_TWO_WORDS = struct.Struct("<II").unpack_from
_LABEL_OF_SIZE = {4: struct.Struct("<I").unpack_from, 8: struct.Struct("<Q").unpack_from}


def read_points(payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the labels of a few voxels, looked up in the encoded words; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume's labels are neither uint32 nor uint64, or it gives no block size.
    """
    if layout.dtype.kind != "u" or layout.dtype.itemsize not in _LABEL_OF_SIZE:
        raise UnsupportedError(f"compressed_segmentation holds uint32 or uint64, the volume has {layout.dtype.name}")
    if layout.block_size is None:
        raise UnsupportedError("compressed_segmentation needs the volume's compressed_segmentation_block_size")
    if len(payload) % 4 or len(payload) < 4 * layout.num_channels:
        raise CorruptDataError(f"a compressed_segmentation chunk is 32-bit words, one a channel at least "
                               f"({layout.num_channels}), found {len(payload)} bytes")
    if len(payload) > _WORDS_OF_TABLES * 4:
        _check_all_bits(payload, layout, layout.block_size)
    if len(voxels) * layout.num_channels <= _FEW_LABELS:
        return _read_one_by_one(payload, layout, layout.block_size, voxels)
    try:
        return _read_together(payload, layout, layout.block_size, voxels)
    except IndexError:
        return _read_one_by_one(payload, layout, layout.block_size, voxels)  # says which block is wrong


def _read_together(
    payload: bytes | bytearray, layout: ChunkLayout, block_size: tuple[int, int, int], voxels: Voxels
) -> Labels:
    """Return the labels of all voxels by numpy; raise IndexError for any offset that can't be."""
    words = np.frombuffer(payload, "<u4")
    labels = np.empty((len(voxels), layout.num_channels), layout.dtype)
    block, position, num_blocks = _locate_voxels(layout.shape, block_size, voxels)
    for channel in range(layout.num_channels):
        start = int(words[channel])
        _check_channel(start, channel, num_blocks, layout.num_channels, len(words))
        headers = np.frombuffer(payload, "<i8", count=num_blocks, offset=4 * start).take(block)
        table, bits, values = headers & 0xFFFFFF, headers >> 24 & 0xFF, headers >> 32 & 0xFFFFFFFF
        mask = _MASKS.take(bits)
        bit = position * bits
        # bits = 0 reads no value, and its values offset may point at the end: the first word after the headers exists.
        word = np.where(bits, values + (bit >> 5), 2 * num_blocks)
        if np.minimum(table, word).min() < 2 * num_blocks or mask.max() == _NO_MASK:
            raise IndexError
        index = words.take(start + word).astype(np.int64) >> (bit & 31) & mask
        # `take` raises where an offset is past the end.
        if layout.dtype.itemsize == 4:
            labels[:, channel] = words.take(start + table + index)
        else:
            entry = start + table + 2 * index
            labels[:, channel] = words.take(entry + 1)
            labels[:, channel] <<= np.uint64(32)
            labels[:, channel] |= words.take(entry)
    return labels


def _locate_voxels(
    shape: tuple[int, int, int], block_size: tuple[int, int, int], voxels: Voxels
) -> tuple[Int64, Int64, int]:
    """Return each voxel's block, its position in that block, and how many blocks there are."""
    block, position = np.zeros((2, len(voxels)), np.int64)
    num_blocks = place_stride = 1
    for axis, extent in enumerate(block_size):
        coordinate = voxels[:, axis]
        if extent & (extent - 1):
            along, inside = np.divmod(coordinate, extent)
        else:
            along, inside = coordinate >> (extent.bit_length() - 1), coordinate & (extent - 1)  # 5 times as fast
        block += along * num_blocks
        position += inside * place_stride
        num_blocks *= -(-shape[axis] // extent)
        place_stride *= extent
    return block, position, num_blocks


def _read_one_by_one(
    payload: bytes | bytearray, layout: ChunkLayout, block_size: tuple[int, int, int], voxels: Voxels
) -> Labels:
    """Return the same, one label at a time, with a message for what is wrong."""
    (sx, sy, sz), (bx, by, bz) = layout.shape, block_size
    across, down = -(-sx // bx), -(-sy // by)
    num_blocks = across * down * -(-sz // bz)
    width = layout.dtype.itemsize // 4
    label_at = _LABEL_OF_SIZE[layout.dtype.itemsize]
    num_channels, num_words = layout.num_channels, len(payload) // 4
    starts = struct.unpack_from(f"<{num_channels}I", payload)
    for channel, start in enumerate(starts):
        _check_channel(start, channel, num_blocks, num_channels, num_words)
    after_headers = 2 * num_blocks
    labels = []
    for x, y, z in voxels.tolist():
        block = x // bx + across * (y // by + down * (z // bz))
        position = x % bx + bx * (y % by + by * (z % bz))
        for start in starts:
            first, values = _TWO_WORDS(payload, 4 * (start + 2 * block))
            table, bits = first & 0xFFFFFF, first >> 24
            index = 0
            if bits:
                bit = position * bits
                word = values + (bit >> 5)
                if bits not in _VALID_BITS:
                    raise CorruptDataError(f"compressed_segmentation: block {block} has {bits} bits a value, "
                                           f"expected 0, 1, 2, 4, 8, 16 or 32")
                if not after_headers <= word < num_words - start:
                    raise CorruptDataError(_say_outside("a value", block, word, after_headers, num_words - start))
                index = _ONE_WORD(payload, 4 * (start + word))[0] >> (bit & 31) & ((1 << bits) - 1)
            entry = table + width * index
            if table < after_headers or entry + width > num_words - start:
                raise CorruptDataError(_say_outside("a label", block, entry, after_headers, num_words - start))
            labels.append(label_at(payload, 4 * (start + entry))[0])
    return np.array(labels, layout.dtype).reshape(-1, num_channels)


def _check_all_bits(payload: bytes | bytearray, layout: ChunkLayout, block_size: tuple[int, int, int]) -> None:
    """Make sure that no offset of a table ran over, as far as a full decode notices: that no block has odd bits."""
    words = np.frombuffer(payload, "<u4")
    num_blocks = prod(-(-size // extent) for size, extent in zip(layout.shape, block_size, strict=True))
    for channel in range(layout.num_channels):
        start = int(words[channel])
        _check_channel(start, channel, num_blocks, layout.num_channels, len(words))
        bits = words[start:start + 2 * num_blocks:2] >> 24
        if not np.isin(bits, _VALID_BITS).all():
            raise CorruptDataError(
                f"compressed_segmentation: channel {channel} has a block of {bits.max()} bits a value, expected 0, 1, "
                f"2, 4, 8, 16 or 32; its tables may begin beyond word 2^24"
            )


def _check_channel(start: int, channel: int, num_blocks: int, num_channels: int, num_words: int) -> None:
    """Make sure that a channel's block headers are inside the payload."""
    if not num_channels <= start <= num_words - 2 * num_blocks:
        raise CorruptDataError(
            f"compressed_segmentation: channel {channel} with {num_blocks} blocks begins at word {start}, expected one "
            f"from {num_channels} to {num_words - 2 * num_blocks}: the chunk has {num_words} words"
        )


def _say_outside(what: str, block: int, word: int, first: int, end: int) -> str:
    """Return what to say of an offset that isn't between the block headers and the payload's end."""
    return (f"compressed_segmentation: block {block} has {what} at word {word} of its channel, expected one from "
            f"{first}, after the block headers, to {end}, where the chunk ends")
