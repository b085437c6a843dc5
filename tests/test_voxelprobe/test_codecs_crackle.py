import struct

import crackle as package
import numpy as np
import pytest

from voxelprobe.codecs import crackle
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import (
    Crashed,
    PointReaderTests,
    call_in_children,
    every_voxel,
    flip_bits,
    make_segments,
    read_damaged,
)

LAYOUT = ChunkLayout((23, 19, 7), 1, np.dtype("<u8"))


def compress(array, **options):
    return package.compress(np.asfortranarray(array[..., 0]), parallel=1, **options)


class TestCrackleReader(PointReaderTests):
    reader = crackle
    layouts = (
        ChunkLayout((9, 8, 5), 1, np.dtype("<u8")),
        *(ChunkLayout((20, 17, 6), 1, np.dtype(name)) for name in ("u1", "<u2", "<u4", "<u8")),
        ChunkLayout((1, 1, 1), 1, np.dtype("<u8")),
        ChunkLayout((300, 3, 2), 1, np.dtype("<u4")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return compress(array)


def without_checksums(payload):
    """Return a stream of format 1 as format 0, which the package no longer writes."""
    header = package.codec.header(payload)
    header.format_version = 0
    parts = package.codec.components(payload)
    return b"".join((header.tobytes(), bytes(parts["z_index"][:-4]), bytes(parts["labels"]),
                     bytes(parts["crack_codes"])))


def as_signed(payload):
    """Return the stream with its labels declared to be signed, as a writer of int64 has it."""
    fields = bytearray(payload)
    fields[6] |= 1
    fields[28] = package.headers.crc8(fields[5:28])
    return bytes(fields)


KINDS = {
    "flat": compress,
    "C order": lambda array: package.compress(np.ascontiguousarray(array[..., 0]), parallel=1),
    "Markov model": lambda array: compress(array, markov_model_order=3),
    "pins": lambda array: compress(array, allow_pins=2),
    "format 0": lambda array: without_checksums(compress(array)),
    "format 0, pins": lambda array: without_checksums(compress(array, allow_pins=2)),
    "remapped": lambda array: package.operations.remap(compress(array), {0: 5, 1: 5}, preserve_missing_labels=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_kinds_of_streams(kind, seed):
    """Every kind of stream reads as the package's full decode has it, whichever slices are asked for."""
    payload = bytes(KINDS[kind](make_segments(LAYOUT, seed)))
    header = package.codec.header(payload)
    assert header.format_version == (0 if "format 0" in kind else 1)
    assert header.fortran_order == (kind != "C order")
    if seed == 0:
        assert header.label_format == (2 if "pins" in kind else 0)
    array = package.decompress(payload, parallel=1)
    voxels = every_voxel(LAYOUT.shape)
    for some in (voxels, voxels[::-7], voxels[voxels[:, 2] % 3 == 1], voxels[500:501]):
        assert np.array_equal(crackle.read_points(payload, LAYOUT, some)[:, 0], array[tuple(some.T)])


@pytest.mark.parametrize("kind", ["flat", "pins"])
def test_signed_labels(kind):
    """Signed labels keep their sign."""
    array = make_segments(LAYOUT)
    assert (array > np.uint64(2**63)).any()
    payload = as_signed(KINDS[kind](array))
    voxels = every_voxel(LAYOUT.shape)
    labels = crackle.read_points(payload, ChunkLayout(LAYOUT.shape, 1, np.dtype("<i8")), voxels)
    assert labels.dtype == np.int64
    assert np.array_equal(labels[:, 0], array.view(np.int64)[tuple(voxels.T)][:, 0])


@pytest.mark.parametrize("kind", ["flat", "C order", "Markov model", "pins"])
def test_flipped_bits(kind):
    """With checksums, flipped bits raise CorruptDataError or leave the original's labels: never a wrong one.

    The package may end the process, so that a wrong label is not returned either; rarely.
    """
    array = make_segments(LAYOUT)
    payload = KINDS[kind](array)
    voxels = every_voxel(LAYOUT.shape)
    outcomes = read_damaged(crackle, LAYOUT, flip_bits(payload, 120), voxels, calls_a_child=1)
    for outcome in outcomes:
        assert isinstance(outcome, CorruptDataError | Crashed | np.ndarray), outcome
        if isinstance(outcome, np.ndarray):
            assert np.array_equal(outcome, array[tuple(voxels.T)])
    assert sum(isinstance(outcome, Crashed) for outcome in outcomes) < 12
    assert sum(isinstance(outcome, CorruptDataError) for outcome in outcomes) > 60


def test_flipped_bits_without_checksums():
    """Without checksums, flipped bits raise CorruptDataError or give labels of the right shape, or end the process."""
    payload = KINDS["format 0"](make_segments(LAYOUT))
    for outcome in read_damaged(crackle, LAYOUT, flip_bits(payload, 100), every_voxel(LAYOUT.shape), calls_a_child=1):
        assert isinstance(outcome, CorruptDataError | UnsupportedError | Crashed | np.ndarray), outcome


@pytest.mark.parametrize("kind", ["Markov model", "pins", "format 0", "format 0, pins"])
def test_every_truncation_of_other_kinds(kind):
    """Every kind of stream, cut anywhere or a byte too long, is a CorruptDataError: the sizes are in it."""
    payload = KINDS[kind](make_segments(LAYOUT))
    damaged = [payload[:end] for end in range(len(payload))] + [payload + b"\0"]
    for outcome in read_damaged(crackle, LAYOUT, damaged, every_voxel(LAYOUT.shape)):
        assert isinstance(outcome, CorruptDataError), outcome


def test_stale_slices_are_not_taken():
    """A slice that the package gives up isn't answered from what its memory held before."""
    payload = bytearray(KINDS["flat"](make_segments(LAYOUT)))
    other = KINDS["flat"](make_segments(LAYOUT, seed=2))
    after = len(package.codec.components(bytes(payload))["crcs"])
    codes = slice(-after - 40, -after)
    payload[codes] = bytes(byte ^ 0x55 for byte in payload[codes])
    voxels = every_voxel(LAYOUT.shape)

    def read_both(_):
        crackle.read_points(other, LAYOUT, voxels)
        return crackle.read_points(bytes(payload), LAYOUT, voxels[-5:])

    outcome, = call_in_children(read_both, [0])
    assert isinstance(outcome, CorruptDataError | Crashed)


def test_size_that_contradicts_the_layout():
    """A chunk that claims 2^40 voxels is refused before anything of that size is made."""
    payload = bytearray(KINDS["flat"](make_segments(LAYOUT)))
    struct.pack_into("<3I", payload, 7, 2**20, 2**10, 2**10)
    payload[28] = package.headers.crc8(payload[5:28])
    with pytest.raises(CorruptDataError, match=r"expected \(23, 19, 7\) voxels of u8, the header has \(1048576, 1024"):
        crackle.read_points(bytes(payload), LAYOUT, every_voxel((1, 1, 1)))


@pytest.mark.parametrize("layout", [
    ChunkLayout(LAYOUT.shape, 2, np.dtype("<u8")),
    ChunkLayout(LAYOUT.shape, 1, np.dtype("<f4")),
])
def test_unsupported_layouts(layout):
    """Several channels and floats, which no writer has in this encoding, are refused as unsupported."""
    with pytest.raises(UnsupportedError, match="crackle"):
        crackle.read_points(KINDS["flat"](make_segments(LAYOUT)), layout, every_voxel((1, 1, 1)))


@pytest.mark.parametrize("dtype", ["<u4", "<i8"])
def test_other_dtype(dtype):
    """A chunk of another dtype than the volume's is a CorruptDataError that says both."""
    with pytest.raises(CorruptDataError, match=r"the header has \(23, 19, 7\) of u8"):
        crackle.read_points(KINDS["flat"](make_segments(LAYOUT)), ChunkLayout(LAYOUT.shape, 1, np.dtype(dtype)),
                            every_voxel((1, 1, 1)))


def test_same_as_cloudvolume():
    """CloudVolume's encoder and full decode agree with the reader at every voxel."""
    from cloudvolume import chunks
    payload = chunks.encode(make_segments(LAYOUT), "crackle")
    array = chunks.decode(payload, "crackle", (*LAYOUT.shape, 1), "uint64")
    voxels = every_voxel(LAYOUT.shape)
    assert np.array_equal(crackle.read_points(payload, LAYOUT, voxels), array[tuple(voxels.T)])
