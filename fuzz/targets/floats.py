"""zfpc chunks, against zfp given whole streams with zeros behind them."""

from __future__ import annotations

import struct
from itertools import product
from math import prod

import numpy as np

from fuzz.target import Target, attempt, is_refused
from voxelprobe.codecs import zfpc
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.contracts import every_voxel, make_segments
from voxelprobe.testing.encoding_floats import encode_zfpc

_LAYOUTS = [
    ChunkLayout((6, 5, 4), channels, np.dtype(name)) for channels in (1, 2) for name in ("<f4", "<f8", "<i4", "<i8")
] + [ChunkLayout((32, 32, 10), 1, np.dtype("<f4"))]
# What a zfp block can make the decoder read beyond its end, for every block; generously.
_SPARE_A_BLOCK = 8 + 256 * 8 * 2


def _decode(payload: bytes, layout: ChunkLayout) -> np.ndarray:
    """Return all values of a container, shape (x, y, z, channels), stream by stream."""
    import zfpy

    *size, flags = struct.unpack_from("<4IB", payload, 6)
    shape = (*layout.shape, layout.num_channels)
    inside = [axis for axis in range(4) if flags >> axis & 1 and (axis < 3 or size[3])]
    outside = [axis for axis in range(4) if axis not in inside]
    at = 23
    sizes = struct.unpack_from(f"<{1 + prod(shape[axis] for axis in outside)}Q", payload, at)
    values = np.empty(shape, layout.dtype)
    begin = sizes[0]
    # The first of the axes outside is the fastest.
    places = [place[::-1] for place in product(*(range(shape[axis]) for axis in reversed(outside)))]
    blocks = prod(-(-shape[axis] // 4) for axis in inside)
    for place, length in zip(places, sizes[1:], strict=True):
        index: list[slice | int] = [slice(None)] * 4
        for axis, number in zip(outside, place, strict=True):
            index[axis] = number
        stream = payload[begin : begin + length] + bytes(_SPARE_A_BLOCK * blocks)
        values[tuple(index)] = zfpy.decompress_numpy(stream)
        begin += length
    assert begin == len(payload)
    return values


def _check(data: bytes) -> bool:
    layout = _LAYOUTS[data[0] % len(_LAYOUTS)] if data else _LAYOUTS[0]
    payload, voxels = data[1:], every_voxel(layout.shape)
    one = voxels[[len(data) % len(voxels), 0]]
    few = attempt(zfpc.read_points, payload, layout, one)
    if is_refused(few):
        # Streams that aren't needed aren't looked at, so what few voxels have refused all of them have.
        if layout.shape[0] < 32:
            assert is_refused(attempt(zfpc.read_points, payload, layout, voxels))
        return False
    found = attempt(zfpc.read_points, payload, layout, voxels)
    if is_refused(found):
        return False
    values = _decode(payload, layout)
    assert np.array_equal(found.view(np.uint8), np.ascontiguousarray(values[tuple(voxels.T)]).view(np.uint8))
    assert np.array_equal(few.view(np.uint8), np.ascontiguousarray(values[tuple(one.T)]).view(np.uint8))
    return True


def _seeds() -> list[bytes]:
    seeds = []
    for index, layout in enumerate(_LAYOUTS):
        # Values of about one size: zfp's own way with others is nobody's business here.
        chunk = (make_segments(layout) % 1000).astype(layout.dtype)
        for mode in ({}, {"rate": 8}, {"precision": 12}, {"tolerance": 0.1}):
            if layout.dtype.kind == "f" or mode.keys() != {"tolerance"}:
                for correlated in ((True,) * 4, (True, True, False, False), (True, False, True, True)):
                    if layout.shape[0] < 32 or (mode.keys() == {"rate"} and all(correlated)):
                        used = {"rate": 1} if layout.shape[0] == 32 else mode
                        seeds.append(bytes([index]) + encode_zfpc(chunk, correlated, **used))
    return seeds


TARGETS = {"zfpc": Target(_seeds, _check, most_bytes=6000)}
