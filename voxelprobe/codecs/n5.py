"""Points of the blocks of n5 datasets.

Format: https://github.com/saalfeldlab/n5#file-system-specification
mode (uint16be) | number of dimensions (uint16be) | size of each (uint32be) | of mode 1, number of values (uint32be) |
the values, big-endian, first dimension fastest, compressed as a whole

The sizes are the block's own: at the dataset's end it may be clipped or whole. Mode 0 is usual; mode 1 is for blocks of
another number of values than their sizes have, and is read if it is the same; mode 2 is of serialized objects, which a
dataset of numbers can't have.

What `ChunkLayout.codecs` has to say, sorted keys of a JSON object: see `parts.StoredChunk`; axes in n5's own order, `x`
first as a rule. The dataset's `compression` (or, of old, `compressionType`) becomes one numcodecs configuration in
`codecs`: raw none, gzip `{"id": "gzip"}`, with `useZlib` `{"id": "zlib"}`, bzip2 `{"id": "bz2"}`, xz
`{"id": "lzma", "format": 1}`, blosc `{"id": "blosc", "cname": ...}`, zstd `{"id": "zstd"}`. n5's lz4 is a stream of
lz4-java's own (LZ4Block) with xxHash checksums: no `{"id": "lz4"}`, to be refused as unsupported.
"""

from __future__ import annotations

import struct
from math import prod

import numpy as np

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.compression import read_values, require_numcodecs
from voxelprobe.codecs.parts import StoredChunk, parse_stored_chunk
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError

require_numcodecs()

ISOLATED = False

_DEFAULT, _VARLENGTH = 0, 1


def read_points(payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the labels of a few voxels; of blosc only the blocks that they are in are decoded. See `PointReader`.

    Raises
    ------
    UnsupportedError
        If the compression can't be undone here.
    """
    stored = parse_stored_chunk(layout.codecs)
    labels = np.empty((len(voxels), layout.num_channels), layout.dtype)
    if len(voxels) == 0:
        return labels
    for channels, part in stored.read_stored(payload, layout):
        if isinstance(part, np.generic):
            labels[:, channels] = part
        else:
            shape, content = _parse_header(memoryview(part), stored)
            num_channels = channels.stop - channels.start
            stored.check_shape(shape, layout, num_channels)
            places = stored.places(shape, voxels, num_channels)
            labels[:, channels] = read_values(content, stored.layers, stored.dtype, prod(shape), places)
    return labels


def _parse_header(block: memoryview, stored: StoredChunk) -> tuple[tuple[int, ...], memoryview]:
    """Return the size of a block and what follows its header."""
    rank = len(stored.chunk)
    if len(block) < 4 + 4 * rank:
        raise CorruptDataError(f"an n5 block of {rank} dimensions has a header of {4 + 4 * rank} bytes, found "
                               f"{len(block)} bytes")
    mode, found_rank = struct.unpack_from(">2H", block)
    if mode not in (_DEFAULT, _VARLENGTH) or found_rank != rank:
        raise CorruptDataError(f"expected an n5 block of mode 0 or 1 and {rank} dimensions, found mode {mode} and "
                               f"{found_rank}")
    shape = struct.unpack_from(f">{rank}I", block, 4)
    if any(size > most for size, most in zip(shape, stored.chunk, strict=True)):
        raise CorruptDataError(f"expected an n5 block of at most {stored.chunk} values, found {shape}")
    content = block[4 + 4 * rank :]
    if mode == _VARLENGTH:
        number = int.from_bytes(content[:4], "big")
        if number != prod(shape):
            raise CorruptDataError(f"expected {prod(shape)} values in an n5 block of {shape}, found {number}")
        content = content[4:]
    return shape, content
