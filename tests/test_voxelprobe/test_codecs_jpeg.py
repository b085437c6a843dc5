import base64
import json
import struct
from math import prod

import imagecodecs
import numpy as np
import pytest
import simplejpeg

from voxelprobe.codecs import jpeg
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, flip_bits, read_damaged
from voxelprobe.testing.encoding_pictures import encode_jpeg, lay_out

GREY, COLOR = (ChunkLayout((16, 12, 5), channels, np.dtype("u1")) for channels in (1, 3))
VOXELS = every_voxel(GREY.shape)
# Pictures of width 16 and height 60 that no package at hand writes; two are grey, two of 4:2:0.
WRITTEN_BY_PILLOW = {
    "progressive": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTm"
        "CNl4x9lnN+gXz/wgALCAA8ABABAREA/8QAFwABAQEBAAAAAAAAAAAAAAAAAAMCBP/aAAgBAQAAAAGrDlSWdTSL/8QAFhABAQEAAAAAAAAA"
        "AAAAAAAAAQAC/9oACAEBAAEFAmJYZYZicxmSCYmL/8QAFBABAAAAAAAAAAAAAAAAAAAAQP/aAAgBAQAGPwIH/8QAFhABAQEAAAAAAAAAAA"
        "AAAAAAAQAw/9oACAEBAAE/IRDNVAVSkyb/2gAIAQEAAAAQ/A//xAAYEAADAQEAAAAAAAAAAAAAAAAAARExIf/aAAgBAQABPxBVFUVdFXTv"
        "p30ul07YdsFUVRdF0u0u0//Z"
    ),
    "progressive colour": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTm"
        "CNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHz/"
        "wgARCAA8ABADASIAAhEBAxEB/8QAFwABAQEBAAAAAAAAAAAAAAAAAAMCBP/EABcBAAMBAAAAAAAAAAAAAAAAAAIDBAH/2gAMAwEAAhADEA"
        "AAAasNPlSGdnUbPpFK/wD/xAAWEAEBAQAAAAAAAAAAAAAAAAABAAL/2gAIAQEAAQUCYlhlhmJzGZIJiYv/xAAYEQADAQEAAAAAAAAAAAAA"
        "AAAAAgMhMf/aAAgBAwEBPwGqYVbCvCq4f//EABcRAQEBAQAAAAAAAAAAAAAAAAIAIQH/2gAIAQIBAT8BCyAyCyHcv//EABQQAQAAAAAAAA"
        "AAAAAAAAAAAED/2gAIAQEABj8CB//EABYQAQEBAAAAAAAAAAAAAAAAAAEAMP/aAAgBAQABPyEQzVQFUpMm/9oADAMBAAIAAwAAABDzAD3/"
        "xAAWEQEBAQAAAAAAAAAAAAAAAAAAARH/2gAIAQMBAT8QCJoif//EABYRAQEBAAAAAAAAAAAAAAAAAAEAEP/aAAgBAgEBPxBcsKl//8QAGB"
        "AAAwEBAAAAAAAAAAAAAAAAAAERMSH/2gAIAQEAAT8QVRVFXRV076d9LpdO2HbBVFUXRdLtLtP/2Q=="
    ),
    "restarts": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTm"
        "CNl4x9lnN+gXz/wAALCAA8ABABAREA/8QAGAAAAwEBAAAAAAAAAAAAAAAAAAQFAwH/xAAbEAACAwEBAQAAAAAAAAAAAAAAAwECETEhBP/d"
        "AAQAA//aAAgBAQAAPwBttY0FVjTFro3p/9DVTo3pLa/3oKf70//Rit3QVujjfn94f//SRV8/vCo1MaCkxp//0223jQVeNE23tvT/1OKvbe"
        "n/2Q=="
    ),
    "restarts, colour": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTm"
        "CNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHz/"
        "wAARCAA8ABADASIAAhEBAxEB/8QAFwABAQEBAAAAAAAAAAAAAAAAAAQDBf/EABsQAAIDAQEBAAAAAAAAAAAAAAADAQIRMSEE/8QAFwEAAw"
        "EAAAAAAAAAAAAAAAAAAgMEBf/EABsRAAIDAQEBAAAAAAAAAAAAAAADAQQSIgIR/90ABAAB/9oADAMBAAIRAxEAPwCttY0KrGmLXRvQp0b0"
        "JLZwOtJ5P//Qga/3oU/3pI3dCt0oSjgstNjJ/9GFvz+8Cvn94dRqY0KTGmklkYF2vuT/0q23jQq8aRtvbehV7b0FPqcFdpUZP//Z"
    ),
}
PROGRESSIVE, PROGRESSIVE_COLOR, RESTARTS, RESTARTS_COLOR = (
    base64.b64decode(text) for text in WRITTEN_BY_PILLOW.values())


def decode(payload, layout):
    """Return what another package's libjpeg-turbo makes of a picture: shape (x, y, z, channels)."""
    space = "GRAYSCALE" if layout.num_channels == 1 else "RGB"
    return imagecodecs.jpeg8_decode(payload, outcolorspace=space).reshape(*layout.shape[::-1], -1).transpose(2, 1, 0, 3)


def decode_by_tensorstore(folder, payload, layout):
    """Return what TensorStore reads of a volume with one chunk: shape (x, y, z, channels)."""
    import tensorstore
    scale = {"key": "s", "size": layout.shape, "resolution": [1, 1, 1], "voxel_offset": [0, 0, 0],
             "chunk_sizes": [layout.shape], "encoding": "jpeg"}
    (folder / "s").mkdir()
    (folder / "s" / "_".join(f"0-{size}" for size in layout.shape)).write_bytes(payload)
    (folder / "info").write_text(json.dumps({
        "@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": layout.dtype.name,
        "num_channels": layout.num_channels, "scales": [scale]}))
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}"}
    return tensorstore.open(spec).result().read().result()


def smooth(layout):
    """Return a chunk like an image, whose channels differ: shape (x, y, z, channels)."""
    x, y, z = np.indices(layout.shape)
    waves = [np.sin(x / 7 + c) + np.cos(y / 5 + 2 * c) + np.sin(z / 3) for c in range(layout.num_channels)]
    return np.asfortranarray((np.stack(waves, -1) * 40 + 128).astype(np.uint8))


class TestJpegReader(PointReaderTests):
    reader = jpeg
    layouts = (
        ChunkLayout((9, 8, 5), 1, np.dtype("u1")),
        *(ChunkLayout((20, 17, 6), channels, np.dtype("u1")) for channels in (1, 3)),
        ChunkLayout((1, 1, 1), 1, np.dtype("u1")),
        ChunkLayout((1, 1, 1), 3, np.dtype("u1")),
        ChunkLayout((300, 3, 2), 3, np.dtype("u1")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_jpeg(array)

    def decoded(self, array, layout):  # noqa: D102  # the contract's
        return decode(encode_jpeg(array), layout)


KINDS = {
    "grey": (GREY, encode_jpeg(smooth(GREY))),
    "colour": (COLOR, encode_jpeg(smooth(COLOR))),
    **{subsampling: (COLOR, encode_jpeg(smooth(COLOR), subsampling=subsampling))
       for subsampling in ("422", "420", "440", "411")},
    "stored as RGB": (COLOR, imagecodecs.jpeg8_encode(lay_out(smooth(COLOR)), 85, colorspace="RGB",
                                                      outcolorspace="RGB")),
    "progressive": (GREY, PROGRESSIVE),
    "progressive, colour": (COLOR, PROGRESSIVE_COLOR),
    "restarts": (GREY, RESTARTS),
    "restarts, colour": (COLOR, RESTARTS_COLOR),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pictures(kind, tmp_path):
    """Every kind of picture has the values that libjpeg-turbo elsewhere and TensorStore decode of the same bytes."""
    layout, payload = KINDS[kind]
    values = jpeg.read_points(payload, layout, VOXELS)
    assert np.array_equal(values, decode(payload, layout)[tuple(VOXELS.T)])
    assert np.array_equal(values, decode_by_tensorstore(tmp_path, payload, layout)[tuple(VOXELS.T)])
    some = VOXELS[[5, 77, 5, 959]]
    assert np.array_equal(jpeg.read_points(payload, layout, some), values[[5, 77, 5, 959]])


@pytest.mark.parametrize("kind", KINDS)
def test_grey_out_of_any_picture_is_cloudvolumes(kind):
    """In a volume of one channel, grey and colour pictures (which others refuse) have the values of CloudVolume."""
    from cloudvolume import chunks
    payload = KINDS[kind][1]
    expected = chunks.decode(payload, "jpeg", (*GREY.shape, 1), "uint8")
    assert np.array_equal(jpeg.read_points(payload, GREY, VOXELS), expected[tuple(VOXELS.T)])


def test_grey_stored_as_three_equal_colours():
    """A grey chunk stored in three equal colours reads as the grey that it was, but for rounding."""
    array = smooth(GREY)
    values = jpeg.read_points(encode_jpeg(array.repeat(3, axis=3)), GREY, VOXELS)
    assert np.abs(values.astype(int) - array[tuple(VOXELS.T)]).max() <= 6


def test_cloudvolume_scrambles_channels(tmp_path):
    """CloudVolume writes colours as the specification has them, and reads them back in another order.

    The day this fails, CloudVolume's decode is an oracle for three channels too: see docs/design/010-pictures.md.
    """
    from cloudvolume import chunks
    array = smooth(COLOR)
    payload = chunks.encode(array, "jpeg", compression_params={"level": 100})
    values = jpeg.read_points(payload, COLOR, every_voxel(COLOR.shape[::-1])[:, ::-1])  # x fastest
    stored = values.reshape(*COLOR.shape[::-1], 3).transpose(2, 1, 0, 3)
    assert np.abs(stored.astype(int) - array).max() <= 3
    assert np.array_equal(stored, decode_by_tensorstore(tmp_path, payload, COLOR))
    theirs = chunks.decode(payload, "jpeg", array.shape, "uint8")
    assert np.abs(theirs.astype(int) - array).max() > 100
    assert np.array_equal(theirs.ravel("F"), values.ravel())  # r g b r g b ... taken for all r, then all g, then all b


def test_orientation_is_not_applied():
    """A mark that the picture is to be shown turned changes no value."""
    payload = KINDS["grey"][1]
    mark = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)
    turned = payload[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(mark)) + mark + payload[2:]
    assert np.array_equal(jpeg.read_points(turned, GREY, VOXELS), jpeg.read_points(payload, GREY, VOXELS))


@pytest.mark.parametrize("size", [(60, 16), (1, 960), (960, 1), (192, 5), (31, 31)])
def test_other_sizes(size):
    """A picture of any width and height with the chunk's number of pixels is read in its order; another is refused."""
    picture = np.ascontiguousarray(np.resize(lay_out(smooth(GREY)), (size[1], size[0], 1)))
    payload = simplejpeg.encode_jpeg(picture, 100, colorspace="GRAY", colorsubsampling="GRAY")
    if prod(size) == 960:
        expected = imagecodecs.jpeg8_decode(payload).reshape(5, 12, 16).T
        assert np.array_equal(jpeg.read_points(payload, GREY, VOXELS)[:, 0], expected[tuple(VOXELS.T)])
        return
    with pytest.raises(CorruptDataError, match=r"expected a picture of 960 pixels.*16 x 12 x 5.*has 31 x 31"):
        jpeg.read_points(payload, GREY, VOXELS)


@pytest.mark.parametrize(("layout", "space", "found"), [
    (COLOR, "GRAY", "Gray"), (GREY, "CMYK", "YCCK"), (COLOR, "CMYK", "YCCK"),
], ids=str)
def test_other_channels(layout, space, found):
    """A grey picture in a volume of three channels, and four colours in any, are CorruptDataErrors that say so."""
    picture = np.zeros((60, 16, {"GRAY": 1, "CMYK": 4}[space]), np.uint8)
    payload = simplejpeg.encode_jpeg(picture, colorspace=space, colorsubsampling="GRAY" if space == "GRAY" else "444")
    with pytest.raises(CorruptDataError, match=rf"a picture of {layout.num_channels} channels.*the header has {found}"):
        jpeg.read_points(payload, layout, VOXELS)


@pytest.mark.parametrize("layout", [
    ChunkLayout(GREY.shape, 2, np.dtype("u1")), ChunkLayout(GREY.shape, 1, np.dtype("<u2")),
    ChunkLayout(GREY.shape, 1, np.dtype("i1")),
], ids=str)
def test_unsupported_layouts(layout):
    """Volumes that the format doesn't allow in this encoding are refused as unsupported."""
    with pytest.raises(UnsupportedError, match="jpeg holds one channel or three of uint8"):
        jpeg.read_points(KINDS["grey"][1], layout, VOXELS)


def test_size_that_contradicts_the_layout(monkeypatch):
    """A picture that claims 65500 x 65500 pixels is refused before it is decoded."""
    payload = bytearray(KINDS["grey"][1])
    at = payload.index(b"\xff\xc0")
    struct.pack_into(">HH", payload, at + 5, 65500, 65500)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(CorruptDataError, match="the header has 65500 x 65500"):
        jpeg.read_points(bytes(payload), GREY, VOXELS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "grey"])
def test_every_truncation_of_other_kinds(kind):
    """Every kind of picture, cut anywhere, is a CorruptDataError: at the end of a scan or a restart interval too."""
    layout, payload = KINDS[kind]
    for outcome in read_damaged(jpeg, layout, [payload[:end] for end in range(len(payload))], VOXELS):
        assert isinstance(outcome, CorruptDataError), outcome


@pytest.mark.parametrize("kind", ["grey", "colour", "420", "progressive, colour", "restarts"])
def test_flipped_bits(kind):
    """Flipped bits raise CorruptDataError or give what another full decode of the same bytes gives. None crashes."""
    layout, payload = KINDS[kind]
    damaged = flip_bits(payload, 300)
    outcomes = read_damaged(jpeg, layout, damaged, VOXELS)
    for flipped, outcome in zip(damaged, outcomes, strict=True):
        if not isinstance(outcome, CorruptDataError):
            assert isinstance(outcome, np.ndarray), outcome
            assert np.array_equal(outcome, decode(flipped, layout)[tuple(VOXELS.T)])
    assert 60 < sum(isinstance(outcome, CorruptDataError) for outcome in outcomes) < 300


def test_components_sampled_in_any_way():
    """However a damaged header says colours are sampled, what the package complains of, in any class, is the chunk."""
    payload = bytearray(encode_jpeg(np.zeros((*COLOR.shape, 3), "u1")))
    sampling = payload.index(b"\xff\xc0") + 11
    assert payload[sampling] == 0x11
    outcomes = set()
    for value in range(256):
        payload[sampling] = value
        try:
            jpeg.read_points(bytes(payload), COLOR, VOXELS[:3])
        except CorruptDataError as error:
            outcomes.add(type(error.__cause__))
    assert {ValueError, KeyError} <= outcomes
