import struct
import zlib
from math import prod

import imagecodecs
import numpy as np
import pyspng
import pytest

from voxelprobe.codecs import png
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, flip_bits, make_segments, read_damaged
from voxelprobe.testing.encoding_pictures import encode_png, lay_out

LAYOUT = ChunkLayout((23, 19, 7), 1, np.dtype("u1"))
VOXELS = every_voxel(LAYOUT.shape)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
LAYOUTS = [ChunkLayout((20, 17, 6), channels, np.dtype(dtype)) for channels in (1, 2, 3, 4) for dtype in ("u1", "<u2")]


def part(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(layout, **other):
    fields = {"width": layout.shape[0], "height": prod(layout.shape[1:]), "depth": 8 * layout.dtype.itemsize,
              "color": COLOR_TYPES[layout.num_channels], "compression": 0, "filter": 0, "interlace": 0}
    return part(b"IHDR", struct.pack(">2I5B", *(fields | other).values()))


def rows(array):
    """Return the picture's rows as stored, without differences."""
    picture = lay_out(array)
    stored = picture.astype(picture.dtype.newbyteorder(">")).reshape(len(picture), -1).view(np.uint8)
    return np.pad(stored, ((0, 0), (1, 0))).tobytes()


def by_hand(array, layout, *between, **other):
    """Return a picture written here: no other package's opinion is in it."""
    data = part(b"IDAT", zlib.compress(rows(array)))
    return SIGNATURE + header(layout, **other) + b"".join(between) + data + part(b"IEND")


def mend(payload):
    """Return the payload with every CRC put right, as far as its chunks can be followed."""
    mended, at = bytearray(payload), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at:at + 4], "big")
        if end + 4 <= len(mended):
            mended[end:end + 4] = struct.pack(">I", zlib.crc32(mended[at + 4:end]))
        at = end + 4
    return bytes(mended)


class TestPngReader(PointReaderTests):
    reader = png
    layouts = (ChunkLayout((9, 8, 5), 1, np.dtype("u1")), *LAYOUTS, ChunkLayout((1, 1, 1), 1, np.dtype("<u2")),
               ChunkLayout((300, 3, 2), 3, np.dtype("u1")))

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_png(array)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("some", [VOXELS[:1], VOXELS[500:502], VOXELS[VOXELS[:, 2] < 3], VOXELS[::-1]], ids=len)
def test_rows_up_to_the_last_needed(layout, some):
    """Whichever rows are needed, values are those of libpng's full decode of the same bytes, and the array's."""
    some = some[(some < layout.shape).all(axis=1)]
    array = make_segments(layout, 1)
    payload = encode_png(array)
    picture = imagecodecs.png_decode(payload).reshape(*layout.shape[::-1], -1)
    values = png.read_points(payload, layout, some)
    assert np.array_equal(values, picture[some[:, 2], some[:, 1], some[:, 0]])
    assert np.array_equal(values, array[tuple(some.T)])


def test_every_filter():
    """Rows of all five filters, cut at any row, have the values of the full decode."""
    layout = ChunkLayout((40, 16, 16), 1, np.dtype("u1"))
    smooth = np.cumsum(np.random.default_rng(0).integers(-3, 4, (256, 40)), axis=1).astype(np.uint8)
    smooth[50:99] = smooth[50]
    payload = pyspng.encode(smooth[..., None])
    at = payload.index(b"IDAT")
    size = int.from_bytes(payload[at - 4:at], "big")
    used = np.frombuffer(zlib.decompress(payload[at + 4:at + 4 + size]), np.uint8).reshape(256, 41)[:, 0]
    mixed = bytearray(zlib.decompress(payload[at + 4:at + 4 + size]))
    mixed[::41] = bytes(np.where(np.arange(256) % 7 == 0, np.arange(256) % 5, used).astype(np.uint8))
    payload = SIGNATURE + header(layout) + part(b"IDAT", zlib.compress(mixed)) + part(b"IEND")
    assert set(mixed[::41]) == set(range(5))
    picture = imagecodecs.png_decode(payload)
    for row in range(0, 256, 5):
        z, y = divmod(row, 16)
        voxels = np.array([(x, y, z) for x in range(40)])
        assert np.array_equal(png.read_points(payload, layout, voxels)[:, 0], picture[row]), row


@pytest.mark.parametrize("size", [(23, 133), (133, 23), (1, 3059), (3059, 1), (161, 19)])
def test_other_sizes(size):
    """A picture of any width and height with the chunk's number of pixels reads the same: only the order counts."""
    array = make_segments(LAYOUT)
    payload = pyspng.encode(np.ascontiguousarray(lay_out(array).reshape(size[1], size[0], 1)))
    for some in (VOXELS, VOXELS[:40], VOXELS[1500:1501]):
        assert np.array_equal(png.read_points(payload, LAYOUT, some), array[tuple(some.T)])


@pytest.mark.parametrize("layout", [
    layout for layout in LAYOUTS if layout.dtype.itemsize == 1 or layout.num_channels in (2, 4)  # as pyspng writes them
], ids=str)
def test_interlaced(layout):
    """Interlaced pictures read like others, whichever voxels are asked for."""
    array = make_segments(layout)
    picture = lay_out(array)
    payload = pyspng.encode(picture, progressive=pyspng.ProgressiveMode.INTERLACED)
    assert payload[28] == 1
    voxels = every_voxel(layout.shape)
    for width in range(1, 10):  # some passes are empty
        narrow = ChunkLayout((width, 3, 2), layout.num_channels, layout.dtype)
        small = picture[:6, :width].copy()
        read = png.read_points(pyspng.encode(small, progressive=pyspng.ProgressiveMode.INTERLACED), narrow,
                               every_voxel(narrow.shape))
        assert np.array_equal(read, small.reshape(2, 3, width, -1).transpose(2, 1, 0, 3).reshape(6 * width, -1))
    for some in (voxels, voxels[:5]):
        assert np.array_equal(png.read_points(payload, layout, some), array[tuple(some.T)])


@pytest.mark.parametrize("between", [
    part(b"gAMA", struct.pack(">I", 20000)), part(b"sRGB", b"\0"), part(b"tRNS", b"\0\1"), part(b"sBIT", b"\5"),
    part(b"tEXt", b"Orientation\0turned"), part(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 20))),
    part(b"vpAg", bytes(9)),
], ids=lambda between: between[4:8].decode())
def test_samples_are_read_as_stored(between):
    """Gamma, profiles, transparent colours and comments change no value; CloudVolume's decode is the same."""
    from cloudvolume import chunks
    array = make_segments(LAYOUT)
    payload = by_hand(array, LAYOUT, between)
    for some in (VOXELS, VOXELS[:40]):
        assert np.array_equal(png.read_points(payload, LAYOUT, some), array[tuple(some.T)])
    assert np.array_equal(chunks.decode(payload, "png", array.shape, "uint8"), array)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_big_endian_samples(layout):
    """Samples of a picture written by hand, of 16 bits with the high byte first, are the array's."""
    array = make_segments(layout, 1)
    voxels = every_voxel(layout.shape)
    for some in (voxels, voxels[:7]):
        assert np.array_equal(png.read_points(by_hand(array, layout), layout, some), array[tuple(some.T)])


def test_several_idats():
    """One zlib stream cut into many IDATs, empty ones too, is read; with another chunk between them it is refused."""
    array = make_segments(LAYOUT)
    data = zlib.compress(rows(array))
    pieces = [part(b"IDAT", data[at:at + 100]) for at in range(0, len(data), 100)]
    pieces.insert(1, part(b"IDAT"))
    begin = SIGNATURE + header(LAYOUT)
    for some in (VOXELS, VOXELS[:40]):
        values = png.read_points(begin + b"".join(pieces) + part(b"IEND"), LAYOUT, some)
        assert np.array_equal(values, array[tuple(some.T)])
    pieces.insert(2, part(b"tIME", bytes(7)))
    with pytest.raises(CorruptDataError, match="expected all IDATs together, found b'tIME'"):
        png.read_points(begin + b"".join(pieces) + part(b"IEND"), LAYOUT, VOXELS)


@pytest.mark.parametrize(("other", "message"), [
    ({"width": 65500, "height": 65500}, "expected a picture of 3059 pixels.*the header has 65500 x 65500"),
    ({"width": 2**31 - 1, "height": 2**31 - 1}, "the header has 2147483647 x 2147483647"),
    ({"height": 132}, "the header has 23 x 132"),
    ({"width": 0}, "the header has 0 x 133"),
    ({"depth": 16}, "expected 8 bits of color type 0, .*1 of uint8.*, the header has 16 of color type 0"),
    *(({"depth": depth}, f"the header has {depth} of color type 0") for depth in (1, 2, 4)),
    *(({"color": color}, f"the header has 8 of color type {color}") for color in (2, 3, 4, 6)),
    ({"compression": 1}, "the header has 1, 0 and 0"),
    ({"filter": 1}, "the header has 0, 1 and 0"),
    ({"interlace": 2}, "the header has 0, 0 and 2"),
], ids=str)
def test_header_that_contradicts_the_layout(other, message, monkeypatch):
    """Another size, depth, colour (palettes too) or method than the volume's is refused before anything is decoded."""
    monkeypatch.setattr(pyspng, "load", None)
    payload = by_hand(make_segments(LAYOUT), LAYOUT, part(b"PLTE", bytes(768)), **other)
    with pytest.raises(CorruptDataError, match=message):
        png.read_points(payload, LAYOUT, VOXELS)


@pytest.mark.parametrize("layout", [
    ChunkLayout(LAYOUT.shape, 5, np.dtype("u1")), ChunkLayout(LAYOUT.shape, 1, np.dtype("<u4")),
    ChunkLayout(LAYOUT.shape, 1, np.dtype("i1")), ChunkLayout(LAYOUT.shape, 1, np.dtype("<f4")),
], ids=str)
def test_unsupported_layouts(layout):
    """Volumes of other dtypes or more channels than a picture has are refused as unsupported."""
    with pytest.raises(UnsupportedError, match="png holds one to four channels of uint8 or uint16"):
        png.read_points(encode_png(make_segments(LAYOUT)), layout, VOXELS)


@pytest.mark.parametrize("layout", [LAYOUT, ChunkLayout((9, 8, 5), 3, np.dtype("<u2"))], ids=str)
@pytest.mark.parametrize("between", [b"", part(b"gAMA", struct.pack(">I", 20000))], ids=["", "gAMA"])
def test_flipped_bits(layout, between):
    """A flipped bit anywhere, in ancillary chunks and IEND too, is a CorruptDataError, whichever rows are read."""
    payload = by_hand(make_segments(layout, 1), layout, between)
    voxels = every_voxel(layout.shape)
    damaged = flip_bits(payload, 400)
    for place in (*range(60), *range(len(payload) - 20, len(payload))):
        damaged.append(bytes(byte ^ (0x10 if at == place else 0) for at, byte in enumerate(payload)))
    for some in (voxels, voxels[:2]):
        for flipped, outcome in zip(damaged, read_damaged(png, layout, damaged, some), strict=True):
            assert isinstance(outcome, CorruptDataError) or flipped == payload, outcome


def test_damage_that_crcs_do_not_show():
    """With the CRCs right, a damaged picture is a CorruptDataError, or has the rows that libpng decodes of it.

    The latter where not all rows are needed: else zlib's own checksum tells.
    """
    payload = encode_png(make_segments(LAYOUT, 1))
    payloads = [payload[:33] + mend(SIGNATURE + damaged)[8:] for damaged in flip_bits(payload[33:], 600)]
    payloads = [damaged for damaged in payloads if damaged != payload]
    for some, fewest, most in ((VOXELS, len(payloads), len(payloads)), (VOXELS[:3], 100, 300)):
        outcomes = read_damaged(png, LAYOUT, payloads, some)
        for damaged, outcome in zip(payloads, outcomes, strict=True):
            if not isinstance(outcome, CorruptDataError):
                assert isinstance(outcome, np.ndarray), outcome
                number = int((some[:, 1] + 19 * some[:, 2]).max()) + 1
                assert np.array_equal(outcome, decode_rows(damaged, number)[tuple(some.T)])
        assert fewest <= sum(isinstance(outcome, CorruptDataError) for outcome in outcomes) <= most


def decode_rows(payload, number):
    """Return the voxels of the first rows of a picture, whatever follows them."""
    at, data = 8, b""
    while at + 12 <= len(payload):
        size = int.from_bytes(payload[at:at + 4], "big")
        data += payload[at + 8:at + 8 + size] if payload[at + 4:at + 8] == b"IDAT" else b""
        at += 12 + size
    stored = zlib.decompressobj().decompress(data, 24 * number)
    assert len(stored) == 24 * number
    whole = SIGNATURE + header(LAYOUT) + part(b"IDAT", zlib.compress(stored.ljust(133 * 24, b"\0"))) + part(b"IEND")
    return imagecodecs.png_decode(whole).reshape(7, 19, 23).T[..., None]


def test_too_few_rows():
    """A stream that ends before the picture does is a CorruptDataError, unless it holds the rows asked for."""
    array = make_segments(LAYOUT)
    short = SIGNATURE + header(LAYOUT) + part(b"IDAT", zlib.compress(rows(array)[:24 * 50])) + part(b"IEND")
    top = VOXELS[(VOXELS[:, 1] + 19 * VOXELS[:, 2]) < 50]
    assert np.array_equal(png.read_points(short, LAYOUT, top), array[tuple(top.T)])
    for some in (VOXELS, np.array([(0, 12, 2)])):
        with pytest.raises(CorruptDataError, match="png"):
            png.read_points(short, LAYOUT, some)


@pytest.mark.parametrize("data", [
    zlib.compress(rows(make_segments(LAYOUT)))[:-1] + b"?", zlib.compress(rows(make_segments(LAYOUT)))[:-4],
    zlib.compress(rows(make_segments(LAYOUT)))[:-1], zlib.compress(rows(make_segments(LAYOUT)) + b"?"),
    zlib.compress(rows(make_segments(LAYOUT))[:-1]), b"",
], ids=["wrong", "missing", "cut", "more", "less", "nothing"])
def test_end_of_the_stream(data):
    """Where all rows are read, the stream has to hold just them and to end with its checksum."""
    payload = SIGNATURE + header(LAYOUT) + part(b"IDAT", data) + part(b"IEND")
    with pytest.raises(CorruptDataError, match=r"png: (the IDATs can't be inflated|expected 3192 bytes of rows)"):
        png.read_points(payload, LAYOUT, VOXELS)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.num_channels > 1
                                    and (layout.dtype.itemsize, layout.num_channels) != (2, 3)], ids=str)
def test_cloudvolume_scrambles_samples(layout):
    """CloudVolume writes a voxel's channels as a pixel's samples, and reads them back in another order.

    The day this fails, CloudVolume's decode is an oracle for several channels too: see docs/design/010-pictures.md.
    """
    from cloudvolume import chunks
    array = make_segments(layout, 1)
    payload = chunks.encode(array, "png")
    voxels = every_voxel(layout.shape)
    assert np.array_equal(png.read_points(payload, layout, voxels), array[tuple(voxels.T)])
    theirs = chunks.decode(payload, "png", array.shape, layout.dtype.name)
    assert not np.array_equal(theirs, array)
    assert np.array_equal(theirs.ravel("F"), lay_out(array).ravel())  # r g b r g b ..., taken for all r, all g, all b


@pytest.mark.parametrize("kind", [b"IHDR", b"CgBI"])
def test_unexpected_critical_chunk(kind):
    """A second header, or a critical chunk that nobody knows, is a CorruptDataError."""
    payload = by_hand(make_segments(LAYOUT), LAYOUT, part(kind, bytes(13)))
    with pytest.raises(CorruptDataError, match=f"unexpected chunk {kind!r} at byte 33"):
        png.read_points(payload, LAYOUT, VOXELS)


def test_uninitialised_memory_is_not_taken():
    """16 bits of grey, of which the package leaves half its array uninitialised, read alike again and again."""
    layout = ChunkLayout(LAYOUT.shape, 1, np.dtype("<u2"))
    array = make_segments(layout, 1)
    payload = encode_png(array)
    assert pyspng.load(payload).shape == (133, 23, 2)  # the day it is (133, 23), the detour can go
    for some in (VOXELS, VOXELS[:9]):
        for _ in range(5):
            np.full(1 << 16, 0xABCD, np.uint16)
            assert np.array_equal(png.read_points(payload, layout, some), array[tuple(some.T)])
