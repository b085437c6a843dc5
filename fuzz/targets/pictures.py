"""Chunks stored as pictures: png and jpeg as a whole, of jxl the header, which is what we read of it ourselves."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
from isal import isal_zlib

from fuzz.target import Target, attempt, is_refused
from voxelprobe.codecs import jpeg, jxl, png
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.contracts import every_voxel, make_segments
from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.encoding_pictures import encode_jpeg, encode_jxl

_PNG = [ChunkLayout((5, 4, 3), channels, np.dtype(name)) for name in ("u1", "<u2") for channels in (1, 3, 2, 4)]
_JPEG = [ChunkLayout((16, 10, 3), channels, np.dtype("u1")) for channels in (1, 3)]
_JXL = [ChunkLayout((12, 5, 3), channels, np.dtype("u1")) for channels in (1, 3)]
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


# png


def _decode_png(payload: bytes, layout: ChunkLayout) -> np.ndarray:
    """Return the samples of a png, shape (voxels, channels), by zlib and the five filters of the specification."""
    at, data, header = 8, b"", b""
    while at < len(payload):
        size, kind = struct.unpack_from(">I4s", payload, at)
        body = payload[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + body) == int.from_bytes(payload[at + 8 + size : at + 12 + size], "big")
        header = body if kind == b"IHDR" else header
        data += body if kind == b"IDAT" else b""
        at += 12 + size
        if kind == b"IEND":
            break
    width, height, depth, _, _, _, interlacing = struct.unpack(">IIBBBBB", header)
    pixel = depth // 8 * layout.num_channels
    stream = _inflate(data)
    picture = np.zeros((height, width, pixel), np.uint8)
    at = 0
    for x, y, step_x, step_y in _PASSES if interlacing else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns <= 0 or rows <= 0:
            continue
        above = [0] * (columns * pixel)
        for row in range(rows):
            above = _unfilter(stream[at], stream[at + 1 : at + 1 + len(above)], above, pixel)
            picture[y + row * step_y, x::step_x] = np.array(above, np.uint8).reshape(columns, pixel)
            at += 1 + len(above)
    assert at == len(stream)
    return picture.reshape(-1, pixel).view(f">u{depth // 8}")


def _inflate(data: bytes) -> bytes:
    """Return what a zlib stream holds; ISA-L reads on where a table has a gap that isn't used, if the sum is right."""
    try:
        return zlib.decompress(data)
    except zlib.error:
        stream = isal_zlib.decompress(data)
        assert zlib.adler32(stream).to_bytes(4, "big") in data
        return stream


def _unfilter(kind: int, row: bytes, above: list[int], pixel: int) -> list[int]:
    assert kind <= 4
    found: list[int] = []
    for i, value in enumerate(row):
        left, up, corner = (found[i - pixel], above[i], above[i - pixel]) if i >= pixel else (0, above[i], 0)
        if kind == 4:
            guess = left + up - corner
            _, _, value_before = min(
                (abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner)
            )
        else:
            value_before = (0, left, up, (left + up) // 2)[kind]
        found.append((value + value_before) & 255)
    return found


def _check_png(data: bytes) -> bool:
    layout = _PNG[data[0] % len(_PNG)] if data else _PNG[0]
    payload, voxels = data[1:], every_voxel(layout.shape)
    some = voxels[[0, len(data) % len(voxels)]] * np.array([1, 1, 0])
    few = attempt(png.read_points, payload, layout, some)
    found = attempt(png.read_points, payload, layout, voxels)
    if is_refused(found):
        return False
    expected = _decode_png(payload, layout)
    sx, sy, _ = layout.shape
    places = voxels @ np.array([1, sx, sx * sy])
    assert np.array_equal(found, expected[places])
    assert np.array_equal(few, expected[some @ np.array([1, sx, sx * sy])])
    return True


def _png_seeds() -> list[bytes]:
    import imagecodecs

    seeds = [
        bytes([i]) + encode_chunk(make_segments(layout, seed), "png")
        for i, layout in enumerate(_PNG)
        for seed in (0, 1)
    ]
    # Interlaced, and every filter, by hand: the packages write neither.
    for i, interlacing in ((0, 1), (1, 1), (1, 0)):
        pixel = _PNG[i].num_channels
        rows = b""
        for x, y, step_x, step_y in _PASSES if interlacing else ((0, 0, 1, 1),):
            columns, height = -(-(5 - x) // step_x), -(-(12 - y) // step_y)
            rows += (
                b"".join(bytes([row % 5]) + bytes(range(columns * pixel)) for row in range(height))
                if columns > 0
                else b""
            )
        parts = [
            (b"IHDR", struct.pack(">IIBBBBB", 5, 12, 8, 0 if pixel == 1 else 2, 0, 0, interlacing)),
            (b"tEXt", b"a\0b"),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
        body = b"".join(len(b).to_bytes(4, "big") + k + b + zlib.crc32(k + b).to_bytes(4, "big") for k, b in parts)
        seeds.append(bytes([i]) + b"\x89PNG\r\n\x1a\n" + body)
    seeds.append(bytes([0]) + bytes(imagecodecs.png_encode(make_segments(_PNG[0])[:, :, :, 0].T.reshape(12, 5), 0)))
    return seeds


def _mend_png(data: bytes, rng: random.Random) -> bytes:
    """Return a png with its CRCs mended, its rows changed under a right Adler-32, or none of that."""
    if rng.random() < 0.2:
        return data
    payload = bytearray(data[1:])
    at = 8
    while at + 12 <= len(payload):
        size = int.from_bytes(payload[at : at + 4], "big")
        if at + 12 + size > len(payload):
            break
        if payload[at + 4 : at + 8] == b"IDAT" and rng.random() < 0.5:
            try:
                rows = bytearray(zlib.decompress(bytes(payload[at + 8 : at + 8 + size])))
            except zlib.error:
                rows = bytearray()
            if 0 < len(rows) < 4000:
                rows[rng.randrange(len(rows))] = rng.choice((0, 1, 2, 3, 4, 5, 255))
                packed = zlib.compress(bytes(rows), rng.choice((0, 6)))
                payload[at : at + 8 + size] = len(packed).to_bytes(4, "big") + b"IDAT" + packed
                size = len(packed)
        payload[at + 8 + size : at + 12 + size] = zlib.crc32(payload[at + 4 : at + 8 + size]).to_bytes(4, "big")
        at += 12 + size
    return data[:1] + bytes(payload)


# jpeg


def _check_jpeg(data: bytes) -> bool:
    import imagecodecs

    layout = _JPEG[data[0] % len(_JPEG)] if data else _JPEG[0]
    payload, voxels = data[1:], every_voxel(layout.shape)
    found = attempt(jpeg.read_points, payload, layout, voxels)
    if is_refused(found):
        return False
    assert found.shape == (len(voxels), layout.num_channels)
    few = jpeg.read_points(payload, layout, voxels[::17])
    assert np.array_equal(few, found[::17])
    # Another binding of the same library; it refuses what has no place in the file formats that it knows.
    try:
        picture = imagecodecs.jpeg8_decode(payload, outcolorspace="GRAYSCALE" if layout.num_channels == 1 else "RGB")
    except (imagecodecs.Jpeg8Error, ValueError, NotImplementedError):
        return True
    sx, sy, _ = layout.shape
    pixels = picture.reshape(-1, layout.num_channels)[voxels @ np.array([1, sx, sx * sy])]
    assert np.array_equal(found, pixels)
    return True


def _jpeg_seeds() -> list[bytes]:
    return [
        bytes([i]) + encode_jpeg(make_segments(layout, seed), quality=quality, subsampling=subsampling)
        for i, layout in enumerate(_JPEG)
        for seed in (0, 1)
        for quality, subsampling in ((85, "444"), (30, "420"))
    ]


# jxl


def _parse_jxl(data: bytes) -> tuple[int, int, int]:
    """Return width, height and orientation, of a text of the header's bits."""
    bits = "".join(f"{byte:08b}"[::-1] for byte in data)
    place = 0

    def number(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place][::-1] or "0", 2)

    def size(is_small: int) -> int:
        return (number(5) + 1) * 8 if is_small else 1 + number({0: 9, 1: 13, 2: 18, 3: 30}[number(2)])

    is_small = number(1)
    height = size(is_small)
    ratio = number(3)
    top, bottom = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    width = height * top // bottom if ratio else size(is_small)
    orientation = 1 if number(1) or not number(1) else 1 + number(3)
    assert place <= len(bits)
    return width, height, orientation


def _check_jxl(data: bytes) -> bool:
    stream = attempt(jxl._find_codestream, data)
    if is_refused(stream):
        assert data[:2] != b"\xff\x0a"
        return False
    at = data.find(b"\xff\x0a" + stream)
    assert at >= 0
    found = attempt(jxl._parse_header, stream)
    if is_refused(found):
        return False
    assert found == _parse_jxl(stream)
    return True


def _jxl_seeds() -> list[bytes]:
    return [
        encode_jxl(make_segments(layout), level=level, container=container)
        for layout in _JXL
        for level in (None, 60)
        for container in (False, True)
    ]


TARGETS = {
    "png": Target(_png_seeds, _check_png, _mend_png, most_bytes=1500),
    "jpeg": Target(_jpeg_seeds, _check_jpeg, most_bytes=3000),
    "jxl": Target(_jxl_seeds, _check_jxl, most_bytes=400),
}
