import struct

import compresso as package
import numpy as np
import pytest

from voxelprobe.codecs import compresso
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

LAYOUT = ChunkLayout((23, 19, 7), 1, np.dtype("<u8"))
KINDS = {
    "indexed": {},
    "without index": {"random_access_z_index": False},
    "6-connected": {"connectivity": 6},
    "windows of 8 x 8": {"steps": (8, 8, 1)},
    "windows of 3 x 5": {"steps": (3, 5, 1)},
    "windows of 2 x 2": {"steps": (2, 2, 1)},
    "windows of 2 x 2 x 2": {"steps": (2, 2, 2)},
    "windows of 4 x 4 x 2": {"steps": (4, 4, 2)},
}


def compress(array, **options):
    return package.compress(np.asfortranarray(array[..., 0]), **options)


class TestCompressoReader(PointReaderTests):
    reader = compresso
    layouts = (
        ChunkLayout((9, 8, 5), 1, np.dtype("<u8")),
        *(ChunkLayout((20, 17, 37), 1, np.dtype(name)) for name in ("u1", "<u2", "<u4", "<u8")),
        ChunkLayout((1, 1, 1), 1, np.dtype("<u8")),
        ChunkLayout((300, 3, 2), 1, np.dtype("<u4")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return compress(array)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<u8"])
def test_kinds_of_streams(kind, dtype):
    """Every kind of stream reads as it was written, whichever slices are asked for."""
    layout = ChunkLayout(LAYOUT.shape, 1, np.dtype(dtype))
    for seed in (0, 1):
        array = make_segments(layout, seed)
        payload = compress(array, **KINDS[kind])
        voxels = every_voxel(layout.shape)
        for some in (voxels, voxels[::-7], voxels[voxels[:, 2] % 3 == 1], voxels[500:501]):
            assert np.array_equal(compresso.read_points(payload, layout, some), array[tuple(some.T)])


@pytest.mark.parametrize("kind", ["indexed", "without index", "6-connected", "windows of 8 x 8"])
def test_flipped_bits(kind):
    """Flipped bits raise CorruptDataError, or give what the package's full decode of the same bytes gives.

    Or the original's, where only other slices are damaged. No flip ends the process.
    """
    array = make_segments(LAYOUT)[..., 0]
    payload = compress(array[..., None], **KINDS[kind])
    voxels = every_voxel(LAYOUT.shape)
    original = array[tuple(voxels.T)]
    damaged = flip_bits(payload, 120)
    outcomes = read_damaged(compresso, LAYOUT, damaged, voxels)
    assert all(isinstance(outcome, CorruptDataError | np.ndarray) for outcome in outcomes)
    # The package writes outside its arrays here: each decode in a process of its own.
    others = [i for i, outcome in enumerate(outcomes)
              if isinstance(outcome, np.ndarray) and not np.array_equal(outcome[:, 0], original)]
    assert others
    assert len(others) < len(damaged)
    references = call_in_children(package.decompress, [damaged[i] for i in others], calls_a_child=1)
    for i, reference in zip(others, references, strict=True):
        assert isinstance(reference, np.ndarray), reference
        labels = outcomes[i][:, 0]
        assert ((labels == reference[tuple(voxels.T)]) | (labels == original)).all()


@pytest.mark.parametrize("kind", ["without index", "6-connected", "windows of 2 x 2 x 2"])
def test_every_truncation_of_other_kinds(kind):
    """Every kind of stream, cut anywhere, is a CorruptDataError: the windows have to fill the chunk."""
    array = make_segments(LAYOUT)
    payload = compress(array, **KINDS[kind])
    damaged = [payload[:end] for end in range(0, len(payload), 3)]
    for outcome in read_damaged(compresso, LAYOUT, damaged, every_voxel(LAYOUT.shape)):
        assert isinstance(outcome, CorruptDataError), outcome


@pytest.mark.parametrize("section", [0, 1])
@pytest.mark.parametrize(("more", "less"), [(2, None), (2, 4), (5, 3)])
def test_index_that_contradicts_the_slices(section, more, less):
    """Where all slices are read, a label or location too many in a slice, and one too few in another, is noticed."""
    payload = bytearray(compress(make_segments(LAYOUT, 1)))
    index = np.frombuffer(payload, "<u2", offset=len(payload) - 28).reshape(2, 7)
    index[section, more] += 1
    if less is not None:
        index[section, less] -= 1
    with pytest.raises(CorruptDataError, match="compresso"):
        compresso.read_points(bytes(payload), LAYOUT, every_voxel(LAYOUT.shape))


def test_parts_of_a_chunk(monkeypatch):
    """A chunk that is decoded in parts reads the same, whichever slices are asked for."""
    monkeypatch.setattr(compresso, "_VOXELS_AT_ONCE", 2 * 23 * 19)
    array = make_segments(LAYOUT)
    voxels = every_voxel(LAYOUT.shape)
    for some in (voxels, voxels[::-7], voxels[voxels[:, 2] % 3 == 1]):
        assert np.array_equal(compresso.read_points(compress(array), LAYOUT, some), array[tuple(some.T)])


def test_many_numbers():
    """A chunk of more components than two bytes can number reads as it was written."""
    layout = ChunkLayout((160, 150, 30), 1, np.dtype("<u8"))
    array = np.asfortranarray(np.random.default_rng(0).integers(0, 2**63, layout.shape, np.uint64))
    voxels = np.random.default_rng(1).integers(0, layout.shape, (5000, 3))
    payload = package.compress(array)
    assert sum(struct.unpack_from("<Q", payload, at)[0] for at in (15, 27)) > 2**16
    assert np.array_equal(compresso.read_points(payload, layout, voxels)[:, 0], array[tuple(voxels.T)])


def test_size_that_contradicts_the_layout():
    """A chunk that claims 2^48 voxels, or 2^63 labels, is refused before anything of that size is made."""
    payload = bytearray(compress(make_segments(LAYOUT)))
    for place, value in ((6, struct.pack("<3H", 65535, 65535, 65535)), (15, struct.pack("<Q", 2**63)),
                         (23, struct.pack("<I", 2**32 - 1)), (27, struct.pack("<Q", 2**63))):
        claim = bytearray(payload)
        claim[place:place + len(value)] = value
        with pytest.raises(CorruptDataError, match="compresso"):
            compresso.read_points(bytes(claim), LAYOUT, every_voxel((1, 1, 1)))


@pytest.mark.parametrize("layout", [
    ChunkLayout(LAYOUT.shape, 2, np.dtype("<u8")),
    ChunkLayout(LAYOUT.shape, 1, np.dtype("<i8")),
    ChunkLayout(LAYOUT.shape, 1, np.dtype("<f4")),
])
def test_unsupported_layouts(layout):
    """Several channels, signed integers and floats, which the encoding can't hold, are refused as unsupported."""
    with pytest.raises(UnsupportedError, match="compresso"):
        compresso.read_points(compress(make_segments(LAYOUT)), layout, every_voxel((1, 1, 1)))


def test_other_dtype():
    """A chunk of another width than the volume's is a CorruptDataError that says both."""
    with pytest.raises(CorruptDataError, match=r"voxels of 4 bytes, the header has \(23, 19, 7\) of 8"):
        compresso.read_points(compress(make_segments(LAYOUT)), ChunkLayout(LAYOUT.shape, 1, np.dtype("<u4")),
                              every_voxel((1, 1, 1)))


def test_same_as_cloudvolume():
    """CloudVolume's encoder and full decode agree with the reader at every voxel."""
    from cloudvolume import chunks
    payload = chunks.encode(make_segments(LAYOUT), "compresso")
    array = chunks.decode(payload, "compresso", (*LAYOUT.shape, 1), "uint64")
    voxels = every_voxel(LAYOUT.shape)
    assert np.array_equal(compresso.read_points(payload, LAYOUT, voxels), array[tuple(voxels.T)])
