"""Damaged chunks of zarr: bombs, other lengths and flipped bits are refused, or read as numcodecs reads them."""

import struct
import tracemalloc
import zlib

import numcodecs
import numpy as np
import pytest

from voxelprobe.codecs import zarr
from voxelprobe.errors import CorruptDataError
from voxelprobe.testing.contracts import call_in_children, every_voxel, flip_bits, make_segments, read_damaged
from voxelprobe.testing.zarr_chunks import COMPRESSORS, encode_zarr, make_layout


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
    payload = encode_zarr(make_segments(layout), layout)
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
    payload = encode_zarr(array, layout)
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
    payload = encode_zarr(make_segments(layout), layout)
    for damaged in (*flip_bits(payload, 300), payload[:-1], payload[:3], payload + b"\0"):
        if damaged != payload:
            with pytest.raises(CorruptDataError):
                zarr.read_points(damaged, layout, every_voxel((1, 1, 1)))


def test_larger_layout_than_the_metadata():
    """A grid whose chunks were larger than those stored would be refused, not read at wrong places."""
    layout = make_layout((8, 8, 8), chunk=(8, 8, 4))
    with pytest.raises(CorruptDataError, match=r"expected \(8, 8, 8\) voxels in 1 channels"):
        zarr.read_points(bytes(8 * 8 * 4 * 8), layout, np.array([[7, 0, 0]]))
