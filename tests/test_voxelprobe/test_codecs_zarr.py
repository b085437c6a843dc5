"""Chunks of zarr as numcodecs writes them: every compressor and filter, every layout, and codecs that are refused."""

import struct
import subprocess
import sys

import numcodecs
import numpy as np
import pytest

from voxelprobe.codecs import zarr
from voxelprobe.codecs.compression import make_layers
from voxelprobe.codecs.parts import pack_parts, unpack_parts
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, make_segments
from voxelprobe.testing.zarr_chunks import COMPRESSORS, encode_zarr, make_layout

DTYPES = ("u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f4", "<f8")


class TestZarrReader(PointReaderTests):
    reader = zarr
    layouts = (
        make_layout((7, 5, 3), codecs=[COMPRESSORS["blosc zlib"]], dtype="<u4"),
        *(make_layout((7, 6, 5), dtype=dtype) for dtype in DTYPES),
        *(make_layout((7, 6, 5), dtype=dtype.replace("<", ">"), codecs=[COMPRESSORS["zstd"]]) for dtype in DTYPES),
        *(make_layout((19, 9, 7), codecs=[codec]) for codec in COMPRESSORS.values()),
        make_layout((19, 9, 7), order=(2, 1, 0), codecs=[COMPRESSORS["blosc lz4hc"]]),
        make_layout((19, 9, 7), order=(1, 2, 0)),
        make_layout((4, 3, 2), axes=(0, 1, 2), chunk=(8, 8, 8)),
        make_layout((4, 3, 1), axes=(0, 1), chunk=(8, 8), dtype=">u2"),
        make_layout((4, 3, 2), 3, axes=(-1, 3, 2, 1, 0), chunk=(1, 3, 4, 8, 8), codecs=[COMPRESSORS["gzip"]]),
        make_layout((4, 3, 2), 3, axes=(0, 1, 2, 3), chunk=(8, 8, 4, 4), order=(3, 0, 2, 1)),
        make_layout((4, 3, 2), 3, axes=(3, 2, 1, 0), chunk=(1, 4, 8, 8), parts=3, codecs=[COMPRESSORS["zlib"]]),
        make_layout((4, 3, 2), 5, axes=(3, -1, 2, 1, 0), chunk=(2, 3, 4, 8, 8), parts=3, dtype=">f4"),
        make_layout((7, 6, 5), codecs=[{"id": "delta", "dtype": "<u8"}, {"id": "shuffle", "elementsize": 8},
                                       COMPRESSORS["blosc lz4"], {"id": "crc32c"}]),
        make_layout((7, 6, 5), codecs=[{"id": "shuffle", "elementsize": 8}, {"id": "crc32"}, {"id": "adler32"},
                                       COMPRESSORS["lz4"], {"id": "fletcher32"}]),
        make_layout((1, 1, 1), codecs=[COMPRESSORS["gzip"]]),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_zarr(array, layout)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_large_chunks(name):
    """A chunk of many blosc blocks, which all dtypes share out differently, reads as it was written at any points."""
    rng = np.random.default_rng(0)
    for dtype in ("u1", ">u2", "<u8"):
        layout = make_layout((50, 40, 9), dtype=dtype, chunk=(10, 40, 64), codecs=[COMPRESSORS[name]])
        for seed in (0, 1):
            array = make_segments(layout, seed)
            payload = encode_zarr(array, layout)
            for number in (1, 3, 30, 1000):
                voxels = rng.integers(0, layout.shape, (number, 3))
                labels = zarr.read_points(payload, layout, voxels)
                assert np.array_equal(labels, array[tuple(voxels.T)]), (dtype, number)
            for corner in ((0, 0, 0), (49, 39, 8)):
                assert zarr.read_points(payload, layout, np.array([corner])) == array[corner], (dtype, corner)


def test_blosc_blocks_in_another_order():
    """Blocks stored in any order, as several threads leave them, read the same."""
    layout = make_layout((32, 32, 8), codecs=[{"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1,
                                               "blocksize": 512}])
    array = make_segments(layout)
    frame = encode_zarr(array, layout)
    starts = np.frombuffer(frame, "<u4", 128, 16)
    assert (np.diff(starts) > 0).all()
    ends = np.append(starts[1:], len(frame))
    order = np.random.default_rng(0).permutation(128)
    places = np.empty(128, "<u4")
    places[order] = 528 + np.append(0, np.cumsum((ends - starts)[order])[:-1])
    moved = frame[:16] + places.tobytes() + b"".join(frame[starts[i]:ends[i]] for i in order)
    assert numcodecs.blosc.decompress(moved) == numcodecs.blosc.decompress(frame)
    for number in (1, 4, 5000):
        voxels = np.random.default_rng(number).integers(0, layout.shape, (number, 3))
        assert np.array_equal(zarr.read_points(moved, layout, voxels), array[tuple(voxels.T)])


@pytest.mark.parametrize("place", [0, 2, 3])
def test_headers_of_stored_values_are_held_to_blosc_s_own(place):
    """Values stored as they are read as blosc reads them: a format or a flag that it refuses is refused here, too."""
    layout = make_layout((7, 5, 3), codecs=[COMPRESSORS["blosc stored"]])
    frame = bytearray(numcodecs.get_codec(COMPRESSORS["blosc stored"]).encode(make_segments(layout).tobytes("F")))
    assert frame[2] & 2
    refused = set()
    for value in range(256):
        frame[place] = value
        try:
            numcodecs.blosc.decompress(bytes(frame))
        except RuntimeError:
            refused.add(value)
            with pytest.raises(CorruptDataError, match="blosc"):
                zarr.read_points(bytes(frame), layout, every_voxel(layout.shape))
    assert 0 < len(refused) < 256


def test_few_points_of_blosc_decode_few_blocks():
    """A point is answered though the blocks that it isn't in are rubbish, which a full decode refuses."""
    layout = make_layout((32, 32, 8), codecs=[{"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1,
                                               "blocksize": 512}])
    array = make_segments(layout)
    frame = bytearray(encode_zarr(array, layout))
    begin, = struct.unpack_from("<I", frame, 20)
    frame[begin:] = b"\xff" * (len(frame) - begin)
    assert zarr.read_points(bytes(frame), layout, np.array([[3, 0, 0]])) == array[3, 0, 0]
    with pytest.raises(CorruptDataError, match="blosc"):
        zarr.read_points(bytes(frame), layout, np.array([[3, 0, 0], [0, 0, 7]]))


FILTERS = {
    "delta": ([{"id": "delta", "dtype": "<i4", "astype": "<i8"}], "<i4"),
    "delta of bytes": ([{"id": "delta", "dtype": "|u1"}], "|u1"),
    "fixedscaleoffset": ([{"id": "fixedscaleoffset", "offset": -5, "scale": 10, "dtype": "<f8", "astype": "|u1"}],
                         "<f8"),
    "quantize": ([{"id": "quantize", "digits": 2, "dtype": "<f8", "astype": "<f4"}], "<f8"),
    "astype": ([{"id": "astype", "encode_dtype": "|u1", "decode_dtype": "<u2"}], "<u2"),
    "bitround": ([{"id": "bitround", "keepbits": 9}], "<f4"),
    "two": ([{"id": "delta", "dtype": ">i4"}, {"id": "astype", "encode_dtype": "<i2", "decode_dtype": ">i4"}], ">i4"),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("compressor", [None, "zlib", "blosc lz4"])
def test_filters(name, compressor):
    """Filters that change the values' size are undone as numcodecs does it."""
    filters, dtype = FILTERS[name]
    codecs = [*filters, *([COMPRESSORS[compressor]] if compressor else [])]
    layout = make_layout((11, 8, 5), dtype=dtype, codecs=codecs)
    array = np.random.default_rng(0).integers(0, 17, (*layout.shape, 1)).astype(layout.dtype) + layout.dtype.type(1) / 4
    array = array.astype(layout.dtype)
    payload = encode_zarr(array, layout)
    content = payload
    for codec in reversed(codecs):
        if codec["id"] != "bitround":
            content = numcodecs.get_codec(codec).decode(content)
    expected = np.frombuffer(content, dtype).reshape(5, 8, 11).transpose(2, 1, 0)
    voxels = every_voxel(layout.shape)
    labels = zarr.read_points(payload, layout, voxels)
    assert np.array_equal(labels[:, 0], expected[tuple(voxels.T)])
    assert np.allclose(labels, array[tuple(voxels.T)], atol=0.06)


@pytest.mark.parametrize(("codec", "match"), [
    ({"id": "vlen-utf8"}, "vlen-utf8"), ({"id": "pickle"}, "pickle"), ({"id": "json2"}, "json2"), ({}, "None"),
    ({"id": "msgpack2"}, "msgpack2"), ({"id": "categorize", "labels": ["a"], "dtype": "<u4"}, "categorize"),
    ({"id": "blosc", "cname": "snappy"}, "snappy"), ({"id": "lzma", "format": 3}, "lzma"),
    ({"id": "delta", "dtype": "|O"}, "delta"), ({"id": "delta"}, "delta"),
    ({"id": "astype", "decode_dtype": "<u2"}, "astype"),
    ({"id": "shuffle", "size": 4}, "shuffle"), ({"id": "delta", "dtype": "|V3"}, "delta"),
])
def test_unsupported_codecs(codec, match):
    """A codec that isn't of numbers, or is set up as it can't be, is refused by its name; nothing is unpickled."""
    layout = make_layout((4, 4, 4), codecs=[codec])
    with pytest.raises(UnsupportedError, match=match):
        zarr.read_points(bytes(512), layout, every_voxel((1, 1, 1)))


def test_filter_of_other_values_than_the_chunk():
    """A filter of values that don't fill the chunk is refused as unsupported, not taken for damage."""
    layout = make_layout((3, 3, 3), dtype="u1", codecs=[{"id": "delta", "dtype": "<u4"}])
    with pytest.raises(UnsupportedError, match="27 bytes are not"):
        zarr.read_points(bytes(27), layout, every_voxel((1, 1, 1)))


@pytest.mark.parametrize("fill_value", [7, "NaN", "-Infinity", None])
def test_missing_parts(fill_value):
    """A part that the store doesn't have has the fill value; without one it is a CorruptDataError that says which."""
    layout = make_layout((4, 3, 2), 3, axes=(3, 2, 1, 0), chunk=(1, 2, 4, 4), parts=3, dtype="<f4",
                         fill_value=fill_value)
    array = make_segments(layout)
    parts = unpack_parts(encode_zarr(array, layout), 3)
    payload = pack_parts([bytes(parts[0]), None, bytes(parts[2])])
    voxels = every_voxel(layout.shape)
    if fill_value is None:
        with pytest.raises(CorruptDataError, match="part 1 of 3 is missing"):
            zarr.read_points(payload, layout, voxels)
        return
    labels = zarr.read_points(payload, layout, voxels)
    array[..., 1] = float(fill_value)
    assert np.array_equal(labels, array[tuple(voxels.T)], equal_nan=True)


def test_parts():
    """Parts come back as they were packed, absent and empty ones too, and what isn't so many parts is refused."""
    parts = [b"ab", None, b"", b"c"]
    packed = pack_parts(parts)
    assert [None if part is None else bytes(part) for part in unpack_parts(packed, 4)] == parts
    for payload, number in ((packed[:-1], 4), (packed + b"x", 4), (packed, 3), (packed, 5), (b"", 2), (packed[:20], 4)):
        with pytest.raises(CorruptDataError, match="parts"):
            unpack_parts(payload, number)


def test_metadata_can_be_checked_without_the_package():
    """Codecs can be judged without numcodecs, so that metadata are read where it isn't installed."""
    program = ("import sys; sys.modules['numcodecs'] = None\n"
               "from voxelprobe.codecs.parts import pack_parts\n"
               "from voxelprobe.codecs.compression import make_layers\n"
               "print(len(make_layers([{'id': 'delta', 'dtype': '<u4'}, {'id': 'blosc'}])))")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "2\n"
    assert len(make_layers([])) == 0


@pytest.mark.parametrize(("setup", "match"), [
    ("sys.modules['numcodecs'] = None",
     "v: encoding 'zarr' needs a package that is not installed: pip install numcodecs\n"),
    ("import importlib.metadata as m; old = m.version; m.version = lambda n: '1.0.1.post0' if n == 'zfpy' else old(n)",
     "v: encoding 'zarr' needs numcodecs, which is installed but can't be loaded: invalid literal for int() with base "
     "10: 'post0' (if that is of zfpy's version: pip install 'zfpy!=1.0.1.post0')\n"),
])
def test_package_that_cannot_be_loaded(setup, match):
    """Where numcodecs is missing, or stumbles over zfpy's version, loading the reader says what to install."""
    pytest.importorskip("zfpy")
    program = (f"import sys; {setup}\n"
               "from voxelprobe.codecs import load_reader\nfrom voxelprobe.errors import UnsupportedError\n"
               "try: load_reader('zarr', 'v')\nexcept UnsupportedError as error: print(error)")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == match
