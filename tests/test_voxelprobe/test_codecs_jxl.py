import struct
from math import prod

import imagecodecs
import numpy as np
import pytest

from voxelprobe.codecs import jxl
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, flip_bits, make_segments, read_damaged
from voxelprobe.testing.encoding_pictures import encode_jxl, lay_out

GREY, COLOR = (ChunkLayout((16, 12, 5), channels, np.dtype("u1")) for channels in (1, 3))
VOXELS = every_voxel(GREY.shape)
SIGNATURE = b"\xff\x0a"


class TestJxlReader(PointReaderTests):
    reader = jxl
    layouts = (
        ChunkLayout((9, 8, 5), 1, np.dtype("u1")),
        *(ChunkLayout((20, 17, 6), channels, np.dtype("u1")) for channels in (1, 3)),
        ChunkLayout((1, 1, 1), 1, np.dtype("u1")),
        ChunkLayout((300, 3, 2), 3, np.dtype("u1")),
        ChunkLayout((3, 8, 8), 3, np.dtype("u1")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_jxl(array)


def decode(payload, layout):
    """Return the package's full decode of three frames or one, of what CloudVolume writes: (x, y, z, channels)."""
    picture = imagecodecs.jpegxl_decode(payload)
    assert picture.size == prod(layout.shape) * layout.num_channels
    return picture.reshape(layout.num_channels, *layout.shape[::-1]).T


@pytest.mark.parametrize("level", [None, 100, 85, 30])
@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("layout", [GREY, COLOR, ChunkLayout((15, 11, 5), 3, np.dtype("u1"))], ids=str)
def test_kinds_of_pictures(layout, container, level):
    """Lossless or not, bare or in a container, values are those of a full decode of the same bytes."""
    array = make_segments(layout)
    payload = encode_jxl(array, level=level, container=container)
    voxels = every_voxel(layout.shape)
    values = jxl.read_points(payload, layout, voxels)
    assert np.array_equal(values, decode(payload, layout)[tuple(voxels.T)])
    assert np.array_equal(jxl.read_points(payload, layout, voxels[[5, 77, 5]]), values[[5, 77, 5]])
    if level is None:
        assert np.array_equal(values, array[tuple(voxels.T)])


@pytest.mark.parametrize("level", [85, 100])
def test_grey_is_cloudvolumes(level):
    """Of one channel, CloudVolume's pictures have the values that CloudVolume decodes of the same bytes."""
    from cloudvolume import chunks
    array = make_segments(GREY)
    payload = chunks.encode(array, "jxl", compression_params={"level": level})
    expected = chunks.decode(payload, "jxl", array.shape, "uint8")
    assert np.array_equal(jxl.read_points(payload, GREY, VOXELS), expected[tuple(VOXELS.T)])
    assert (expected == array).all() == (level == 100)


@pytest.mark.parametrize("width", range(1, 7))
@pytest.mark.parametrize("rest", [(1, 1), (3, 1), (1, 4), (12, 5)], ids=str)
def test_cloudvolumes_three_channels(width, rest):
    """What CloudVolume writes of three channels is read as it was, though its package takes narrow chunks for colours.

    Chunks 1 to 4 voxels wide become one picture of height 3; wider ones three frames.
    """
    from cloudvolume import chunks
    layout = ChunkLayout((width, *rest), 3, np.dtype("u1"))
    array = make_segments(layout, 1)
    payload = chunks.encode(array, "jxl", compression_params={"level": 100})
    voxels = every_voxel(layout.shape)
    assert np.array_equal(jxl.read_points(payload, layout, voxels), array[tuple(voxels.T)])
    found = imagecodecs.jpegxl_decode(payload, index=0).shape
    assert found == ((3, prod(rest), width)[:2 if width == 1 else 3] if width <= 4 else (prod(rest), width))


def test_cloudvolume_scrambles_channels():
    """CloudVolume writes three frames, as neuroglancer reads them, and reads them back in another order.

    The day this fails, CloudVolume's decode is an oracle for three channels too: see docs/design/010-pictures.md.
    """
    from cloudvolume import chunks
    array = make_segments(COLOR)
    payload = chunks.encode(array, "jxl", compression_params={"level": 100})
    assert np.array_equal(imagecodecs.jpegxl_decode(payload), lay_out(array).transpose(2, 0, 1))
    assert np.array_equal(jxl.read_points(payload, COLOR, VOXELS), array[tuple(VOXELS.T)])
    theirs = chunks.decode(payload, "jxl", array.shape, "uint8")
    assert not np.array_equal(theirs, array)
    assert np.array_equal(theirs.ravel("F"), lay_out(array).ravel())  # r g b r g b ..., taken for all r, all g, all b


@pytest.mark.parametrize("size", [(60, 16), (1, 960), (960, 1), (192, 5), (40, 24), (32, 30), (31, 31)])
@pytest.mark.parametrize("layout", [GREY, COLOR], ids=str)
def test_other_sizes(layout, size):
    """Pictures of any width and height (all ways a header says them) are read; those of other sizes are refused."""
    frames = np.resize(lay_out(make_segments(layout)).transpose(2, 0, 1), (layout.num_channels, *size[::-1]))
    payload = imagecodecs.jpegxl_encode(frames if layout is COLOR else frames[0], photometric="GRAY", lossless=True)
    if prod(size) == 960:
        assert np.array_equal(jxl.read_points(payload, layout, VOXELS), decode(payload, layout)[tuple(VOXELS.T)])
        return
    with pytest.raises(CorruptDataError, match=r"expected a picture of 960 pixels.*has 31 x 31"):
        jxl.read_points(payload, layout, VOXELS)


@pytest.mark.parametrize(("width", "height"), [
    (8, 8), (256, 256), (8, 264), (10, 12), (48, 40), (64, 48), (48, 32), (16, 9), (50, 40), (80, 40), (1, 511),
    (2, 513), (9000, 1), (1, 300000),
])
def test_every_form_of_the_size(width, height):
    """Sizes in eighths, in 9 to 19 bits, and as each of the ratios are those that were encoded."""
    picture = np.zeros((height, width), np.uint8)
    picture[-1, -1] = 1
    payload = imagecodecs.jpegxl_encode(picture, photometric="GRAY", lossless=True, effort=1)
    values = jxl.read_points(payload, ChunkLayout((width, height, 1), 1, picture.dtype),
                             np.array([(width - 1, height - 1, 0), (0, 0, 0)]))
    assert values.tolist() == [[1], [0]]


@pytest.mark.parametrize(("layout", "picture"), [
    (COLOR, np.zeros((60, 16, 3), np.uint8)), (COLOR, np.zeros((60, 16), np.uint8)),
    (COLOR, np.zeros((2, 60, 16), np.uint8)), (COLOR, np.zeros((4, 60, 16), np.uint8)),
    (GREY, np.zeros((60, 16, 3), np.uint8)), (GREY, np.zeros((60, 16, 2), np.uint8)),
    (GREY, np.zeros((3, 60, 16), np.uint8)), (GREY, np.zeros((60, 16), np.uint16)),
    (GREY, np.zeros((60, 16), np.float32)),
], ids=lambda value: f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else str(value.num_channels))
def test_other_channels(layout, picture):
    """Other frames, samples or dtypes than the volume's channels are CorruptDataErrors that say both."""
    samples = picture.shape[-1] if picture.shape[-1] < 4 else 1
    payload = imagecodecs.jpegxl_encode(picture, photometric={1: "GRAY", 2: None, 3: "RGB"}[samples], planar=False,
                                        lossless=True)
    expected = r"\(3, 60, 16\)" if layout is COLOR else r"\(60, 16\)"
    with pytest.raises(CorruptDataError, match=rf"expected samples of shape {expected} and uint8.*invalid out"):
        jxl.read_points(payload, layout, VOXELS)


@pytest.mark.parametrize("layout", [
    ChunkLayout(GREY.shape, 2, np.dtype("u1")), ChunkLayout(GREY.shape, 1, np.dtype("<u2")),
], ids=str)
def test_unsupported_layouts(layout):
    """Volumes that nobody writes in this encoding are refused as unsupported."""
    with pytest.raises(UnsupportedError, match="jxl holds one channel or three of uint8"):
        jxl.read_points(encode_jxl(make_segments(GREY)), layout, VOXELS)


def test_size_that_contradicts_the_layout(monkeypatch):
    """A picture that claims 2^30 x 2^30 pixels, bare or in a container, is refused before it is decoded."""
    monkeypatch.setattr(imagecodecs, "jpegxl_decode", None)
    # Large form, 30 bits of height less 1, no ratio, 30 bits of width less 1.
    claim = 3 << 1 | ((1 << 30) - 1) << 3 | 3 << 36 | ((1 << 30) - 1) << 38
    bare = SIGNATURE + claim.to_bytes(30, "little")
    boxed = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I", 8 + len(bare)) + b"jxlc" + bare
    partial = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">IQ", 1, 0)[:4] + b"jxlp" + struct.pack(">QI", 99, 0) + bare
    for payload in (bare, boxed, partial):
        with pytest.raises(CorruptDataError, match="the header has 1073741824 x 1073741824"):
            jxl.read_points(payload, GREY, VOXELS)


def test_turned_pictures():
    """A picture that is to be shown turned is refused: it isn't known whether it was meant so."""
    # Eighths: height 8, width 8 by ratio 1; metadata not default, with more fields, orientation 6.
    turned = SIGNATURE + (1 | 1 << 6 | 0 << 9 | 1 << 10 | 5 << 11).to_bytes(30, "little")
    with pytest.raises(CorruptDataError, match="orientation 6"):
        jxl.read_points(turned, ChunkLayout((8, 8, 1), 1, np.dtype("u1")), VOXELS[:1])


@pytest.mark.parametrize("kind", ["lossy", "three frames", "three lossy frames", "container", "narrow"])
def test_every_truncation_of_other_kinds(kind):
    """Every kind of picture, cut anywhere, is a CorruptDataError: between two frames too."""
    layout = ChunkLayout((3, 20, 5), 3, np.dtype("u1")) if kind == "narrow" else COLOR if "three" in kind else GREY
    payload = encode_jxl(make_segments(layout), level=85 if "lossy" in kind else None, container=kind == "container")
    damaged = [payload[:end] for end in range(len(payload))]
    for outcome in read_damaged(jxl, layout, damaged, every_voxel(layout.shape)):
        assert isinstance(outcome, CorruptDataError), outcome


@pytest.mark.parametrize("layout", [GREY, COLOR], ids=str)
def test_flipped_bits(layout):
    """Flipped bits raise CorruptDataError or give what a full decode of the same bytes gives. None crashes."""
    payload = encode_jxl(make_segments(layout), level=85)
    damaged = flip_bits(payload, 500)
    outcomes = read_damaged(jxl, layout, damaged, VOXELS)
    for flipped, outcome in zip(damaged, outcomes, strict=True):
        if not isinstance(outcome, CorruptDataError):
            assert isinstance(outcome, np.ndarray), outcome
            assert np.array_equal(outcome, decode(flipped, layout)[tuple(VOXELS.T)])
    assert 400 < sum(isinstance(outcome, CorruptDataError) for outcome in outcomes) < 500
