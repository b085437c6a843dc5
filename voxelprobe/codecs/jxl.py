"""Points of `jxl` (JPEG XL) chunks: one decode of the picture serves all points of a chunk.

Format: ISO/IEC 18181; neuroglancer's specification doesn't have this encoding, CloudVolume writes it. Of one channel it
is a grey picture like those of `pictures`. Of three it is a film of three grey frames, one a channel, and not a colour
picture. The exception is CloudVolume's chunks that are 1 to 4 voxels wide (the last ones of a volume): its package
takes the frames' array of shape (3, y * z, x) for one picture of height 3, width y * z and x samples a pixel, and so
stores it. Both are read; other pictures, of which nobody says how they were meant, are refused. uint8 only.

There is no checksum. A truncated picture is an error. A flipped bit that leaves a picture gives that picture's values:
they equal every other full decode of the same bytes. Values of lossy pictures are libjxl's, as CloudVolume's are.

Isolated: frames have sizes of their own, which aren't checked here, and only a process can be given up. There is no
decoding of a part: all parts of a picture are needed for its filters, and no package offers it.
"""

from __future__ import annotations

from math import prod

import imagecodecs
import numpy as np

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.pictures import check_size, place_voxels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

ISOLATED = True

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
# Of the header's ratio field, from 1 on: width = height * numerator // denominator.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
# The widest chunks whose rows of x CloudVolume's package takes for the samples of a pixel.
_MOST_SAMPLES = 4


def read_points(payload: bytes, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the values of a few voxels, out of the decoded picture; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume isn't of uint8, or has neither one channel nor three.
    """
    if layout.dtype != np.uint8 or layout.num_channels not in (1, 3):
        raise UnsupportedError(f"jxl holds one channel or three of uint8, the volume has {layout.num_channels} of "
                               f"{layout.dtype.name}")
    width, height, orientation = _parse_header(_find_codestream(payload))
    if orientation != 1:
        raise CorruptDataError(f"jxl: expected a picture that isn't turned, the header has orientation {orientation}")
    sx, sy, sz = layout.shape
    if layout.num_channels == 3 and sx <= _MOST_SAMPLES and (width, height) == (sy * sz, 3):
        shape: tuple[int, ...] = (3, sy * sz, sx) if sx > 1 else (3, sy * sz)
    else:
        check_size("jxl", width, height, layout)
        shape = (3, height, width) if layout.num_channels == 3 else (height, width)
    if len(voxels) == 0:
        return np.empty((0, layout.num_channels), layout.dtype)
    samples = np.zeros(shape, layout.dtype)
    try:
        # Given the array, the package compares samples, frames and dtype before it decodes, and makes none itself.
        imagecodecs.jpegxl_decode(payload, numthreads=1, out=samples)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise CorruptDataError(f"jxl: expected samples of shape {shape} and {layout.dtype.name}; the package can't "
                               f"decode the picture: {error}") from error
    places = place_voxels(layout, voxels)
    return samples.reshape(layout.num_channels, prod(layout.shape))[:, places].T


def _find_codestream(payload: bytes) -> bytes:
    """Return the picture's first bytes, its header among them, out of a container if it is in one."""
    if payload[:2] == _CODESTREAM:
        return payload[2:32]
    at = len(_CONTAINER)
    if payload[:at] == _CONTAINER:
        while at + 8 <= len(payload):
            size, kind = int.from_bytes(payload[at:at + 4], "big"), payload[at + 4:at + 8]
            begin = at + (16 if size == 1 else 8)
            if kind in (b"jxlc", b"jxlp"):
                begin += 4 * (kind == b"jxlp")
                if payload[begin:begin + 2] == _CODESTREAM:
                    return payload[begin + 2:begin + 32]
                break
            size = int.from_bytes(payload[at + 8:at + 16], "big") if size == 1 else size or len(payload)
            at += max(size, 8)
    raise CorruptDataError(f"a jxl chunk begins with {_CODESTREAM!r} or is a container with that, found "
                           f"{payload[:12]!r} in {len(payload)} bytes")


def _parse_header(data: bytes) -> tuple[int, int, int]:
    """Return the picture's width, height and orientation (1: as stored)."""
    bits, used = int.from_bytes(data, "little"), 0

    def read(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    def read_size(is_small: int) -> int:
        return 8 * (read(5) + 1) if is_small else read((9, 13, 18, 30)[read(2)]) + 1

    is_small = read(1)
    height = read_size(is_small)
    ratio = read(3)
    width = height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else read_size(is_small)
    is_default = read(1)
    has_more = not is_default and read(1)
    orientation = read(3) + 1 if has_more else 1
    if used > 8 * len(data):
        raise CorruptDataError(f"jxl: the header ends after {len(data)} bytes")
    return width, height, orientation
