import json
import struct
import tracemalloc

import numcodecs
import numpy as np
import pytest

from voxelprobe.codecs import n5
from voxelprobe.codecs.parts import pack_parts
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, flip_bits, make_segments, read_damaged

DTYPES = ("u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f4", "<f8")
CODECS = {
    "raw": [], "gzip": [{"id": "gzip", "level": 5}], "zlib": [{"id": "zlib", "level": 5}], "bzip2": [{"id": "bz2"}],
    "xz": [{"id": "lzma", "format": 1}], "zstd": [{"id": "zstd", "level": 3}],
    "blosc": [{"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 512}],
}
CHECKED = ("gzip", "zlib", "bzip2", "xz")


def make_layout(shape, num_channels=1, dtype="<u8", *, chunk=None, axes=(0, 1, 2), codecs=(), parts=1, fill_value=0):
    """Return the layout of a block; unless `chunk` says else, its size is the largest there is."""
    facts = {"axes": axes, "chunk": chunk or shape, "codecs": list(codecs), "dtype": dtype.replace("<", ">"),
             "fill_value": fill_value, "parts": parts}
    return ChunkLayout(shape, num_channels, np.dtype(dtype), codecs=json.dumps(facts, sort_keys=True))


def encode(array, layout, *, whole=False, mode=0):
    """Return a block written by numpy and numcodecs, clipped to the layout's shape or `whole`."""
    facts = json.loads(layout.codecs)
    payloads = []
    channels = facts["chunk"][facts["axes"].index(3)] if 3 in facts["axes"] else 1
    for part in range(facts["parts"]):
        some = array[..., part * channels:(part + 1) * channels]
        missing = [axis for axis in range(4) if axis not in facts["axes"]]
        block = some.reshape([size for axis, size in enumerate(some.shape) if axis not in missing])
        kept = [axis for axis in facts["axes"] if axis >= 0]
        block = block.transpose([sorted(kept).index(axis) for axis in kept])
        for axis, what in enumerate(facts["axes"]):
            if what < 0:
                block = np.expand_dims(block, axis)
        if whole:
            larger = np.full(facts["chunk"], 99, block.dtype)
            larger[tuple(map(slice, block.shape))] = block
            block = larger
        content = np.asfortranarray(block.astype(facts["dtype"])).reshape(-1, order="F")
        for config in facts["codecs"]:
            content = numcodecs.get_codec(config).encode(content)
        head = struct.pack(f">2H{block.ndim}I", mode, block.ndim, *block.shape)
        if mode == 1:
            head += struct.pack(">I", block.size)
        payloads.append(head + bytes(content))
    return payloads[0] if len(payloads) == 1 else pack_parts(payloads)


class TestN5Reader(PointReaderTests):
    reader = n5
    layouts = (
        make_layout((7, 5, 3), dtype="<u4", codecs=CODECS["gzip"]),
        *(make_layout((7, 6, 5), dtype=dtype) for dtype in DTYPES),
        *(make_layout((19, 9, 7), codecs=codecs, chunk=(32, 9, 8)) for codecs in CODECS.values()),
        make_layout((7, 6, 5), axes=(2, 1, 0), chunk=(8, 8, 8)),
        make_layout((7, 6, 1), axes=(0, 1), chunk=(8, 8), codecs=CODECS["xz"]),
        make_layout((7, 6, 5), 3, axes=(0, 1, 2, 3, -1), chunk=(8, 8, 8, 3, 1)),
        make_layout((7, 6, 5), 3, axes=(0, 1, 2, 3), chunk=(8, 8, 8, 1), parts=3, codecs=CODECS["zstd"]),
        make_layout((7, 6, 5), 3, axes=(3, 0, 1, 2), chunk=(2, 8, 8, 8), parts=2, codecs=CODECS["blosc"]),
        make_layout((1, 1, 1)),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode(array, layout)


class TestWholeBlocks(TestN5Reader):
    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode(array, layout, whole=True)


class TestBlocksOfVariableLength(TestN5Reader):
    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode(array, layout, mode=1)


def test_header():
    """A header that contradicts the metadata is a CorruptDataError with expected and found, before values are read."""
    layout = make_layout((6, 5, 4), chunk=(8, 8, 8), codecs=CODECS["zstd"])
    payload = encode(make_segments(layout), layout)
    for place, form, value, match in (
        (0, ">H", 2, "mode 0 or 1 and 3 dimensions, found mode 2"), (2, ">H", 2, "found mode 0 and 2"),
        (2, ">H", 65535, "and 65535"), (4, ">I", 9, r"at most \(8, 8, 8\) values, found \(9, 5, 4\)"),
        (4, ">I", 2**32 - 1, "at most"), (8, ">I", 4, r"expected \(6, 5, 4\) voxels"), (12, ">I", 0, "expected"),
        (4, ">I", 7, "expected 1120 bytes of zstd, found 960"),
    ):
        changed = bytearray(payload)
        struct.pack_into(form, changed, place, value)
        with pytest.raises(CorruptDataError, match=match):
            n5.read_points(bytes(changed), layout, every_voxel((1, 1, 1)))
    variable = bytearray(encode(make_segments(layout), layout, mode=1))
    struct.pack_into(">I", variable, 16, 119)
    with pytest.raises(CorruptDataError, match=r"expected 120 values .* found 119"):
        n5.read_points(bytes(variable), layout, every_voxel((1, 1, 1)))


@pytest.mark.parametrize("name", CODECS)
def test_flipped_bits(name):
    """Flips end no process; behind a compression with a checksum they are noticed, but for those in an unused field."""
    layout = make_layout((16, 12, 9), codecs=CODECS[name])
    array = make_segments(layout)
    damaged = flip_bits(encode(array, layout), 150)
    voxels = every_voxel(layout.shape)
    for outcome in read_damaged(n5, layout, damaged, voxels):
        if not isinstance(outcome, CorruptDataError):
            assert isinstance(outcome, np.ndarray), outcome
            assert name not in CHECKED or np.array_equal(outcome, array[tuple(voxels.T)])


def test_missing_parts():
    """A channel whose block the store doesn't have is the fill value."""
    layout = make_layout((4, 3, 2), 2, axes=(0, 1, 2, 3), chunk=(4, 4, 4, 1), parts=2, fill_value=5)
    array = make_segments(layout)
    first = array[..., :1]
    payload = pack_parts([None, encode(first, make_layout((4, 3, 2), axes=(0, 1, 2, 3), chunk=(4, 4, 4, 1)))])
    labels = n5.read_points(payload, layout, every_voxel(layout.shape))
    assert (labels[:, 0] == 5).all()
    assert np.array_equal(labels[:, 1], first[tuple(every_voxel(layout.shape).T)][:, 0])


def test_block_that_claims_much():
    """A block that inflates to more than its header says is refused before that much is allocated."""
    layout = make_layout((8, 8, 8), codecs=CODECS["gzip"])
    payload = struct.pack(">2H3I", 0, 3, 8, 8, 8) + numcodecs.GZip(1).encode(bytes(20_000_000))
    tracemalloc.start()
    with pytest.raises(CorruptDataError, match="expected at most 4096 bytes"):
        n5.read_points(payload, layout, every_voxel((1, 1, 1)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_unsupported_compression():
    """A compression that isn't known is refused by its name."""
    layout = make_layout((4, 4, 4), codecs=[{"id": "lz4block"}])
    with pytest.raises(UnsupportedError, match="lz4block"):
        n5.read_points(encode(make_segments(layout), make_layout((4, 4, 4))), layout, every_voxel((1, 1, 1)))
