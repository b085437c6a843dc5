"""Points of `png` chunks, of which only the rows up to the last one needed are decoded.

Format: https://www.w3.org/TR/png-3/ for the picture; of `volume.md`, what `pictures` says.
signature | IHDR | ancillary chunks | IDATs, together one zlib stream | IEND; each with its length and a CRC-32.
A row is stored as differences to the row above, so rows are decoded from the first; those up to the last needed are
inflated here, which is faster than the package does it, and handed to the package as a picture of so many rows.
Interlaced pictures are decoded as a whole.

Grey, grey with opacity, RGB and RGBA (one to four channels) of 8 bits in volumes of uint8, of 16 in volumes of uint16.
Palettes and fewer bits are refused. Samples are read as stored: gamma, profiles and transparent colours aren't applied,
and the chunks that hold them are not given to the package.

The package compares neither IHDR's nor ancillary chunks' CRC and doesn't look for IEND, so all CRCs are compared here,
and damage is an error wherever it is. Adler-32, zlib's own checksum, is compared where all rows are needed: a writer's
fault in rows after the last one needed isn't noticed.

Not isolated: the package is given bytes whose CRCs are right; no crash in the fuzzing of docs/design/010-pictures.md
with the CRCs mended after each flip.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pyspng
from isal import isal_zlib

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.pictures import check_size, place_voxels, take_pixels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

ISOLATED = False

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
# Channels of the volume -> IHDR's colour type.
_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
# The pictures that are stored one after the other: their first pixel (x, y) and the steps between pixels.
_WHOLE = ((0, 0, 1, 1),)
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture whose CRCs are right, and whose header suits the layout.

    Attributes
    ----------
    data
        What the IDATs hold, together one zlib stream.
    """

    width: int
    height: int
    data: bytes
    is_interlaced: bool


def read_points(payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the values of a few voxels, decoding the rows up to the last of them; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume isn't of uint8 or uint16, or has more than four channels.
    """
    if layout.dtype.str[1:] not in ("u1", "u2") or layout.num_channels not in _COLOR_TYPES:
        raise UnsupportedError(f"png holds one to four channels of uint8 or uint16, the volume has "
                               f"{layout.num_channels} of {layout.dtype.name}")
    picture = _parse_picture(payload, layout)
    if len(voxels) == 0:
        return np.empty((0, layout.num_channels), layout.dtype)
    places = place_voxels(layout, voxels)
    rows = picture.height if picture.is_interlaced else int(places.max()) // picture.width + 1
    size = _count_bytes(picture, rows, layout.num_channels * layout.dtype.itemsize)
    data = zlib.compress(_inflate(picture.data, size, is_all=rows == picture.height), 0)  # 0: copied, not compressed
    # Of grey with 16 bits the package leaves half of its array as it was. Rows of grey and opacity with 8 bits are
    # stored alike, as differences of bytes two apart, so it is asked for those: the high and the low byte.
    is_deep_grey = layout.num_channels == 1 and layout.dtype.itemsize == 2
    kind = (8, 4) if is_deep_grey else (8 * layout.dtype.itemsize, _COLOR_TYPES[layout.num_channels])
    header = _HEADER.pack(picture.width, rows, *kind, 0, 0, picture.is_interlaced)
    small = b"".join((_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")))
    try:
        samples = pyspng.load(small)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise CorruptDataError(f"png: the package can't decode the picture: {error}") from error
    if is_deep_grey:
        samples = samples.view(">u2")
    # With 16 bits it knows RGB only with opacity, and adds that.
    if samples.dtype.itemsize != layout.dtype.itemsize or samples.shape[:2] != (rows, picture.width):
        raise CorruptDataError(f"png: expected {picture.width} x {rows} of {layout.dtype.name}, the package decodes "
                               f"{samples.shape} of {samples.dtype.name}")
    return take_pixels(samples, layout, places)


def _parse_picture(payload: bytes | bytearray, layout: ChunkLayout) -> _Picture:
    """Return the picture's header and its compressed data, after every CRC was compared."""
    view = memoryview(payload)
    if view[:16] != _SIGNATURE + b"\0\0\0\rIHDR" or len(view) < 33:
        raise CorruptDataError(f"a png chunk begins with {_SIGNATURE!r} and an IHDR of 13 bytes, found "
                               f"{bytes(view[:16])!r} in {len(view)} bytes")
    header = bytes(view[16:29])
    _check_header(header, layout)
    data: list[memoryview] = []
    at, kind, last = 8, b"", b""
    while kind != b"IEND":
        last = kind
        if at + 12 > len(view):
            raise CorruptDataError(f"png: expected chunks up to IEND, the {len(view)} bytes end before it")
        size, = struct.unpack_from(">I", view, at)
        kind = bytes(view[at + 4:at + 8])
        end = at + 12 + size
        if end > len(view):
            raise CorruptDataError(f"png: a chunk of {size} bytes begins at byte {at}, the picture has {len(view)}")
        if isal_zlib.crc32(view[at + 4:end - 4]) != int.from_bytes(view[end - 4:end], "big"):
            raise CorruptDataError(f"png: the CRC-32 of the chunk {kind!r} at byte {at} doesn't match")
        if kind == b"IDAT":
            if data and last != b"IDAT":
                raise CorruptDataError(f"png: expected all IDATs together, found {last!r} between them")
            data.append(view[at + 8:end - 4])
        elif (kind == b"IHDR") != (at == 8) or (not kind[0] & 32 and kind not in (b"IHDR", b"PLTE", b"IEND")):
            raise CorruptDataError(f"png: unexpected chunk {kind!r} at byte {at}")
        at = end
    width, height = struct.unpack_from(">II", header)
    return _Picture(width, height, b"".join(data), bool(header[12]))


def _check_header(header: bytes, layout: ChunkLayout) -> None:
    """Make sure that IHDR is a picture of the layout's size, channels and dtype."""
    width, height, depth, color_type, compression, filtering, interlacing = _HEADER.unpack(header)
    check_size("png", width, height, layout)
    expected = (8 * layout.dtype.itemsize, _COLOR_TYPES[layout.num_channels])
    if (depth, color_type) != expected:
        raise CorruptDataError(f"png: expected {expected[0]} bits of color type {expected[1]}, for the channels "
                               f"({layout.num_channels} of {layout.dtype.name}), the header has {depth} of color type "
                               f"{color_type}")
    if compression or filtering or interlacing > 1:
        raise CorruptDataError(f"png: expected compression 0, filter 0 and interlacing 0 or 1, the header has "
                               f"{compression}, {filtering} and {interlacing}")


def _count_bytes(picture: _Picture, rows: int, pixel_bytes: int) -> int:
    """Return how many bytes of the zlib stream the first rows are, each with its filter's byte."""
    size = 0
    for x, y, step_x, step_y in _PASSES if picture.is_interlaced else _WHOLE:
        width, height = -(-(picture.width - x) // step_x), -(-(rows - y) // step_y)
        if width > 0 and height > 0:
            size += height * (1 + width * pixel_bytes)
    return size


def _inflate(data: bytes, size: int, *, is_all: bool) -> bytes:
    """Return the first `size` bytes of a zlib stream; if they are all, after its checksum was compared."""
    inflater = isal_zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, size)
        surplus = inflater.decompress(inflater.unconsumed_tail, 1) if is_all and not inflater.eof else b""
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub has an instance for the class
        raise CorruptDataError(f"png: the IDATs can't be inflated: {error}") from error
    if len(inflated) != size or surplus or (is_all and not inflater.eof):
        raise CorruptDataError(f"png: expected {'' if is_all else 'at least '}{size} bytes of rows, the IDATs hold "
                               f"{'more' if surplus else len(inflated)}, or end early")
    return inflated


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", crc)))
