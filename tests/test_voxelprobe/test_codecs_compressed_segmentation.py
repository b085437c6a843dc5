import struct

import compressed_segmentation as package
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.codecs import compressed_segmentation
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, flip_bits, make_segments


def encode(array, layout):
    """Return what the package writes, its channels put behind each other (it has only one)."""
    parts = [package.compress(np.asfortranarray(array[..., channel]), block_size=layout.block_size, order="F")[4:]
             for channel in range(layout.num_channels)]
    lengths = [len(part) // 4 for part in parts]
    starts = np.cumsum([layout.num_channels, *lengths[:-1]]).astype("<u4")
    return starts.tobytes() + b"".join(parts)


def decode_slowly(payload, layout):
    """Return every label by reading the specification aloud: the oracle."""
    words = struct.unpack(f"<{len(payload) // 4}I", payload)
    grid = [-(-s // b) for s, b in zip(layout.shape, layout.block_size, strict=True)]
    bx, by, _ = layout.block_size
    labels = np.zeros((*layout.shape, layout.num_channels), layout.dtype)
    for channel in range(layout.num_channels):
        here = words[words[channel]:]
        for x, y, z in every_voxel(layout.shape).tolist():
            cell = [v // b for v, b in zip((x, y, z), layout.block_size, strict=True)]
            inner = [v % b for v, b in zip((x, y, z), layout.block_size, strict=True)]
            block = cell[0] + grid[0] * (cell[1] + grid[1] * cell[2])
            table, bits, values = here[2 * block] % 2**24, here[2 * block] // 2**24, here[2 * block + 1]
            value = 0
            if bits:
                bit = (inner[0] + bx * (inner[1] + by * inner[2])) * bits
                value = here[values + bit // 32] // 2**(bit % 32) % 2**bits
            if layout.dtype.itemsize == 4:
                labels[x, y, z, channel] = here[table + value]
            else:
                labels[x, y, z, channel] = here[table + 2 * value] + 2**32 * here[table + 2 * value + 1]
    return labels


class TestCompressedSegmentationReader(PointReaderTests):
    reader = compressed_segmentation
    layouts = (
        ChunkLayout((9, 8, 5), 1, np.dtype("<u8"), (4, 4, 4)),
        ChunkLayout((20, 17, 9), 1, np.dtype("<u4"), (8, 8, 8)),
        ChunkLayout((20, 17, 9), 1, np.dtype("<u8"), (8, 8, 8)),
        ChunkLayout((7, 11, 5), 1, np.dtype("<u4"), (3, 5, 2)),
        ChunkLayout((6, 5, 4), 2, np.dtype("<u8"), (8, 8, 8)),
        ChunkLayout((9, 8, 5), 3, np.dtype("<u4"), (4, 2, 3)),
        ChunkLayout((1, 1, 1), 1, np.dtype("<u8"), (8, 8, 8)),
        ChunkLayout((16, 16, 16), 1, np.dtype("<u4"), (16, 16, 16)),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode(array, layout)


@st.composite
def chunks(draw):
    """Draw a layout and an array whose blocks have from one to very many labels."""
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    block_size = draw(st.tuples(*[st.integers(1, 9)] * 3))
    dtype = np.dtype(draw(st.sampled_from(["<u4", "<u8"])))
    layout = ChunkLayout(shape, draw(st.integers(1, 2)), dtype, block_size)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    most = draw(st.sampled_from([1, 2, 3, 5, 20, 300]))
    palette = rng.integers(0, np.iinfo(dtype).max, most, dtype, endpoint=True)
    return layout, palette[rng.integers(0, most, (*shape, layout.num_channels))]


@given(chunks())
@settings(max_examples=60, deadline=None)
def test_same_as_the_slow_decoder(chunk):
    """Any shape, block size, dtype and number of labels reads as the slow decoder and the original have it."""
    layout, array = chunk
    payload = encode(array, layout)
    voxels = every_voxel(layout.shape)
    labels = compressed_segmentation.read_points(payload, layout, voxels)
    assert np.array_equal(labels, array[tuple(voxels.T)])
    assert np.array_equal(labels, decode_slowly(payload, layout)[tuple(voxels.T)])


@given(chunks(), st.data())
@settings(max_examples=60, deadline=None)
def test_loop_and_numpy_agree(chunk, data):
    """One voxel at a time and all together give the same labels, or errors, of whole and of damaged payloads."""
    layout, array = chunk
    payload = encode(array, layout)
    if data.draw(st.booleans()):
        payload = flip_bits(payload, 1, data.draw(st.integers(0, 10**6)))[0]
    voxels = every_voxel(layout.shape)
    block_size = layout.block_size
    outcomes = []
    for read in (compressed_segmentation._read_together, compressed_segmentation._read_one_by_one):
        try:
            outcomes.append(read(payload, layout, block_size, voxels).tolist())
        except (IndexError, CorruptDataError):
            outcomes.append("damaged")
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("layout", TestCompressedSegmentationReader.layouts[:5], ids=str)
def test_flipped_bits(layout):
    """A payload with flipped bits raises CorruptDataError, or reads as the slow decoder reads the same bytes."""
    payload = encode(make_segments(layout), layout)
    voxels = every_voxel(layout.shape)
    if len(voxels) > 400:
        voxels = voxels[::len(voxels) // 400]
    outcomes = {"error": 0, "labels": 0}
    for damaged in flip_bits(payload, 60):
        try:
            labels = compressed_segmentation.read_points(damaged, layout, voxels)
        except CorruptDataError:
            outcomes["error"] += 1
        else:
            outcomes["labels"] += 1
            try:
                expected = decode_slowly(damaged, layout)
            except IndexError:
                continue  # of voxels that weren't asked for
            assert np.array_equal(labels, expected[tuple(voxels.T)])
    assert min(outcomes.values()) > 0


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_garbage(payload):
    """Any bytes at all raise CorruptDataError or give labels of the right shape: nothing else can happen."""
    layout = TestCompressedSegmentationReader.layouts[0]
    for voxels in (every_voxel(layout.shape), every_voxel(layout.shape)[:3]):
        try:
            labels = compressed_segmentation.read_points(payload, layout, voxels)
        except CorruptDataError:
            continue
        assert labels.shape == (len(voxels), 1)


def test_bits_0_at_the_end():
    """A block of one label may say that its values are at the end of the data: there are none to read."""
    layout = ChunkLayout((8, 8, 8), 1, np.dtype("<u8"), (8, 8, 8))
    payload = struct.pack("<3IQ", 1, 2, 4, 2**64 - 1)
    for number in (1, 100):
        labels = compressed_segmentation.read_points(payload, layout, every_voxel(layout.shape)[:number])
        assert (labels == np.uint64(2**64 - 1)).all()


@pytest.mark.parametrize(("words", "message"), [
    ((0, 2, 3, 9, 9), "channel 0 with 1 blocks begins at word 0, expected one from 1 to 3"),
    ((4, 2, 3, 9, 9), "begins at word 4"),
    ((1, 2 | 3 << 24, 3, 9, 9), "block 0 has 3 bits a value, expected 0, 1, 2, 4, 8, 16 or 32"),
    ((1, 2 | 32 << 24, 4, 9, 9), "block 0 has a value at word 4 of its channel, expected one from 2"),
    ((1, 2 | 1 << 24, 0, 9, 9), "block 0 has a value at word 0"),
    ((1, 4, 3, 9, 9), "block 0 has a label at word 4"),
    ((1, 0, 3, 9, 9), "block 0 has a label at word 0"),
])
def test_messages(words, message):
    """A contradiction is told with the block, what was expected and what was found, by both ways of reading."""
    layout = ChunkLayout((8, 8, 8), 1, np.dtype("<u4"), (8, 8, 8))
    for number in (1, 100):
        with pytest.raises(CorruptDataError, match=message):
            compressed_segmentation.read_points(struct.pack("<5I", *words), layout, every_voxel(layout.shape)[:number])


@pytest.mark.parametrize("layout", [
    ChunkLayout((8, 8, 8), 1, np.dtype("<u2"), (8, 8, 8)),
    ChunkLayout((8, 8, 8), 1, np.dtype("<i8"), (8, 8, 8)),
    ChunkLayout((8, 8, 8), 1, np.dtype("<f4"), (8, 8, 8)),
    ChunkLayout((8, 8, 8), 1, np.dtype("<u8"), None),
])
def test_unsupported_layouts(layout):
    """A volume that the encoding can't hold is refused as such, not taken for damaged."""
    with pytest.raises(UnsupportedError, match="compressed_segmentation"):
        compressed_segmentation.read_points(bytes(100), layout, every_voxel((2, 2, 2)))


def test_same_as_tensorstore(tmp_path):
    """TensorStore's chunks of several channels, clipped at the volume's end, read as the array it was given."""
    import tensorstore
    array = make_segments(ChunkLayout((40, 33, 20), 2, np.dtype("<u8")))
    volume = tensorstore.open({
        "driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(tmp_path)}, "create": True,
        "multiscale_metadata": {"data_type": "uint64", "num_channels": 2, "type": "segmentation"},
        "scale_metadata": {"key": "s", "size": [40, 33, 20], "resolution": [1, 1, 1], "chunk_size": [32, 32, 16],
                           "encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 4]},
    }).result()
    volume.write(array).result()
    for x, y, z in ((0, 0, 0), (32, 32, 16), (0, 32, 16)):
        part = array[x:x + 32, y:y + 32, z:z + 16]
        name, = tmp_path.glob(f"s/{x}-*_{y}-*_{z}-*")
        layout = ChunkLayout(part.shape[:3], 2, np.dtype("<u8"), (8, 8, 4))
        voxels = every_voxel(layout.shape)
        assert np.array_equal(
            compressed_segmentation.read_points(name.read_bytes(), layout, voxels), part[tuple(voxels.T)])


def test_same_as_cloudvolume():
    """CloudVolume's encoder and full decode agree with the reader at every voxel."""
    from cloudvolume import chunks
    layout = ChunkLayout((33, 20, 17), 1, np.dtype("<u8"), (8, 8, 8))
    payload = chunks.encode(make_segments(layout), "compressed_segmentation", block_size=(8, 8, 8))
    array = chunks.decode(payload, "compressed_segmentation", (*layout.shape, 1), "uint64", (8, 8, 8))
    voxels = every_voxel(layout.shape)
    labels = compressed_segmentation.read_points(payload, layout, voxels)
    assert np.array_equal(labels, array[tuple(voxels.T)])
