import json
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numcodecs
import numpy as np
import pytest

from voxelprobe.codecs import zarr
from voxelprobe.codecs.compression import make_layers
from voxelprobe.codecs.parts import pack_parts, unpack_parts
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import (
    PointReaderTests,
    call_in_children,
    every_voxel,
    flip_bits,
    make_segments,
    read_damaged,
)

DTYPES = ("u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f4", "<f8")
COMPRESSORS = {
    "blosc lz4": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    "blosc zstd, bits": {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 2, "blocksize": 512},
    "blosc zlib": {"id": "blosc", "cname": "zlib", "clevel": 5, "shuffle": 0, "blocksize": 1024},
    "blosc lz4hc": {"id": "blosc", "cname": "lz4hc", "clevel": 9, "shuffle": 1, "blocksize": 2048},
    "blosc blosclz": {"id": "blosc", "cname": "blosclz", "clevel": 5, "shuffle": 1, "blocksize": 256},
    "blosc stored": {"id": "blosc", "cname": "lz4", "clevel": 0, "shuffle": 0, "blocksize": 0},
    "zstd": {"id": "zstd", "level": 3},
    "zstd checksum": {"id": "zstd", "level": 1, "checksum": True},
    "gzip": {"id": "gzip", "level": 5},
    "zlib": {"id": "zlib", "level": 1},
    "lz4": {"id": "lz4", "acceleration": 1},
    "bz2": {"id": "bz2", "level": 1},
    "xz": {"id": "lzma", "format": 1, "check": -1, "preset": 1, "filters": None},
    "lzma": {"id": "lzma", "format": 2, "check": -1, "preset": 1, "filters": None},
}


def describe(chunk, axes=(2, 1, 0), *, order=None, dtype="<u8", codecs=(), parts=1, fill_value=0):
    """Return `ChunkLayout.codecs` as the metadata have it."""
    return json.dumps({
        "axes": list(axes), "chunk": list(chunk), "codecs": list(codecs), "dtype": dtype, "fill_value": fill_value,
        "order": list(range(len(axes)) if order is None else order), "parts": parts,
    }, sort_keys=True)


def make_layout(shape, num_channels=1, dtype="<u8", **facts):
    """Return the layout of a chunk; unless the facts say else, as large as it is and in z y x order."""
    facts = {"chunk": shape[::-1], "dtype": dtype} | facts
    return ChunkLayout(shape, num_channels, np.dtype(dtype).newbyteorder("<"), codecs=describe(**facts))


def encode(array, layout):
    """Return a chunk written by numpy and numcodecs; what the layout doesn't have is filled with rubbish."""
    facts = json.loads(layout.codecs)
    payloads = []
    channels = facts["chunk"][facts["axes"].index(3)] if 3 in facts["axes"] else 1
    for part in range(facts["parts"]):
        whole = np.full(facts["chunk"], 77, np.dtype(facts["dtype"]))
        some = array[..., part * channels:(part + 1) * channels]
        kept = [axis for axis in facts["axes"] if axis >= 0]
        some = some[tuple(slice(None) if axis in kept else 0 for axis in range(4))]
        some = some.transpose([sorted(kept).index(axis) for axis in kept])
        sizes = iter(some.shape)
        whole[tuple(0 if axis < 0 else slice(next(sizes)) for axis in facts["axes"])] = some
        content = np.ascontiguousarray(whole.transpose(facts["order"])).reshape(-1)
        for config in facts["codecs"]:
            if config["id"] == "crc32c":
                import google_crc32c
                content = bytes(content) + google_crc32c.value(bytes(content)).to_bytes(4, "little")
            else:
                content = numcodecs.get_codec(config).encode(content)
        payloads.append(bytes(np.ascontiguousarray(content).view("u1").data))
    return payloads[0] if len(payloads) == 1 else pack_parts(payloads)


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
        return encode(array, layout)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_large_chunks(name):
    """A chunk of many blosc blocks, which all dtypes share out differently, reads as it was written at any points."""
    rng = np.random.default_rng(0)
    for dtype in ("u1", ">u2", "<u8"):
        layout = make_layout((50, 40, 9), dtype=dtype, chunk=(10, 40, 64), codecs=[COMPRESSORS[name]])
        for seed in (0, 1):
            array = make_segments(layout, seed)
            payload = encode(array, layout)
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
    frame = encode(array, layout)
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
    frame = bytearray(encode(array, layout))
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
    payload = encode(array, layout)
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
    parts = unpack_parts(encode(array, layout), 3)
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


def claim(payload, place, form, value):
    """Return a payload with a number in it changed."""
    changed = bytearray(payload)
    struct.pack_into(form, changed, place, value)
    return bytes(changed)


def make_bombs():
    """Return chunks that would become 20 MB or claim to, by name, with the codec."""
    zeros = bytes(20_000_000)
    blosc = COMPRESSORS["blosc lz4"]
    array = np.zeros(512, "<u8")
    return {
        "gzip": (COMPRESSORS["gzip"], numcodecs.GZip(1).encode(zeros)),
        "zlib": (COMPRESSORS["zlib"], zlib.compress(zeros, 1)),
        "bz2": (COMPRESSORS["bz2"], numcodecs.BZ2(1).encode(zeros)),
        "xz": (COMPRESSORS["xz"], numcodecs.LZMA(preset=0).encode(zeros)),
        "zstd": (COMPRESSORS["zstd"], numcodecs.Zstd(1).encode(zeros)),
        "zstd without a size": (COMPRESSORS["zstd"], compress_unsized(zeros)),
        "blosc": (blosc, numcodecs.get_codec(blosc).encode(zeros)),
        "blosc that claims": (blosc, claim(numcodecs.get_codec(blosc).encode(array), 4, "<I", 2**31 - 1)),
        "lz4": (COMPRESSORS["lz4"], numcodecs.LZ4().encode(zeros)),
        "lz4 that claims": (COMPRESSORS["lz4"], claim(numcodecs.LZ4().encode(array), 0, "<I", 2**31 - 1)),
    }


def compress_unsized(content):
    import zstandard
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(content)


def test_bombs_are_not_inflated():
    """A chunk that becomes more than its size, or claims to, is refused before that much is allocated."""
    for filters in ((), ({"id": "shuffle", "elementsize": 8},)):
        for name, (codec, payload) in make_bombs().items():
            layout = make_layout((8, 8, 8), codecs=[*filters, codec])
            tracemalloc.start()
            with pytest.raises(CorruptDataError, match="expected"):
                zarr.read_points(payload, layout, every_voxel((1, 1, 1)))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 4_000_000, (name, peak)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_other_sizes(name):
    """A chunk that is a value longer or shorter than it should be is a CorruptDataError with expected and found."""
    layout = make_layout((8, 8, 8), codecs=[COMPRESSORS[name]])
    codec = numcodecs.get_codec(COMPRESSORS[name])
    for number in (511, 513, 256, 1024):
        payload = bytes(codec.encode(np.arange(number, dtype="<u8")))
        with pytest.raises(CorruptDataError, match=r"expected (at most )?4096 bytes|zlib: "):
            zarr.read_points(payload, layout, every_voxel((1, 1, 1)))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_trailing_bytes(name):
    """Bytes after the end of a chunk are a CorruptDataError."""
    layout = make_layout((8, 8, 8), codecs=[COMPRESSORS[name]])
    payload = encode(make_segments(layout), layout)
    for more in (b"\1", bytes(8) + b"\1", payload):
        if name == "lzma" and more != payload:
            continue
        with pytest.raises(CorruptDataError):
            zarr.read_points(payload + more, layout, every_voxel((1, 1, 1)))


CHECKED = ("gzip", "zlib", "bz2", "xz", "zstd checksum")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_flipped_bits(name):
    """Flips are a CorruptDataError or what numcodecs decodes from the same bytes or the original, and end no process.

    Where the format has a checksum, they are a CorruptDataError or the original.
    """
    layout = make_layout((16, 12, 9), codecs=[COMPRESSORS[name]])
    array = make_segments(layout)
    payload = encode(array, layout)
    codec = numcodecs.get_codec(COMPRESSORS[name])
    voxels = every_voxel(layout.shape)
    original = array[tuple(voxels.T)]
    # Of few points one flip at a time: numcodecs decodes all or nothing, also what the points aren't in.
    for some, damaged in ((slice(None), flip_bits(payload, 150)), (slice(0, None, 400), flip_one_bit(payload, 150))):
        outcomes = read_damaged(zarr, layout, damaged, voxels[some])
        assert all(isinstance(outcome, CorruptDataError | np.ndarray) for outcome in outcomes)
        others = [i for i, outcome in enumerate(outcomes)
                  if isinstance(outcome, np.ndarray) and not np.array_equal(outcome, original[some])]
        assert not others or name not in CHECKED
        for i, reference in zip(others, call_in_children(codec.decode, [damaged[i] for i in others]), strict=True):
            assert isinstance(reference, bytes | bytearray), reference
            decoded = np.frombuffer(reference, "<u8").reshape(9, 12, 16).transpose(2, 1, 0)
            assert np.array_equal(outcomes[i][:, 0], decoded[tuple(voxels[some].T)])


def flip_one_bit(payload, number):
    """Return copies with one bit flipped, half of them among the first 100 bytes."""
    rng = np.random.default_rng(3)
    places = np.append(rng.integers(0, 8 * min(100, len(payload)), number), rng.integers(0, 8 * len(payload), number))
    copies = []
    for place in places.tolist():
        damaged = bytearray(payload)
        damaged[place // 8] ^= 1 << place % 8
        copies.append(bytes(damaged))
    return copies


def test_checksums_notice_every_flip():
    """With crc32c around it, no flipped bit of a chunk goes unnoticed."""
    layout = make_layout((8, 8, 8), codecs=[COMPRESSORS["blosc lz4"], {"id": "crc32c"}])
    payload = encode(make_segments(layout), layout)
    for damaged in (*flip_bits(payload, 300), payload[:-1], payload[:3], payload + b"\0"):
        if damaged != payload:
            with pytest.raises(CorruptDataError):
                zarr.read_points(damaged, layout, every_voxel((1, 1, 1)))


def test_larger_layout_than_the_metadata():
    """A grid whose chunks were larger than those stored would be refused, not read at wrong places."""
    layout = make_layout((8, 8, 8), chunk=(8, 8, 4))
    with pytest.raises(CorruptDataError, match=r"expected \(8, 8, 8\) voxels in 1 channels"):
        zarr.read_points(bytes(8 * 8 * 4 * 8), layout, np.array([[7, 0, 0]]))


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
