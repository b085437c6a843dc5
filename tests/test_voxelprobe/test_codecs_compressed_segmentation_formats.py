"""compressed_segmentation at its bounds: 32-bit indices, large blocks, shared tables, several channels, 24-bit offsets.

The oracle is TensorStore, which writes and reads 32-bit indices and several channels; the package
`compressed_segmentation`, and so CloudVolume, decodes 32-bit indices wrongly and doesn't end when it should write them.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from voxelprobe.codecs import compressed_segmentation
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError
from voxelprobe.testing.contracts import make_segments
from voxelprobe.testing.encoders import encode_chunk


def open_volume(folder, layout, size=None):
    shape = list(layout.shape)
    return tensorstore.open({
        "driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(folder)},
        "open": True, "create": True,
        "multiscale_metadata": {"data_type": layout.dtype.name, "num_channels": layout.num_channels,
                                "type": "segmentation"},
        "scale_metadata": {"key": "s", "size": size or shape, "resolution": [1, 1, 1], "chunk_size": shape,
                           "encoding": "compressed_segmentation",
                           "compressed_segmentation_block_size": list(layout.block_size)},
    }).result()


def write_by_tensorstore(folder, layout, array):
    """Return the one chunk of a volume that TensorStore wrote."""
    open_volume(folder, layout).write(array).result()
    name, = Path(folder).glob("s/*")
    return name.read_bytes()


def read_by_tensorstore(folder, layout, payload):
    """Return TensorStore's full decode of a chunk."""
    volume = open_volume(folder, layout)
    (folder / "s").mkdir(exist_ok=True)
    (folder / "s" / "_".join(f"0-{size}" for size in layout.shape)).write_bytes(payload)
    return volume.read().result()


def check_same(payload, layout, array):
    """Many voxels together, by numpy, and some one by one have the array's labels."""
    voxels = np.random.default_rng(0).integers(0, layout.shape, (3000, 3))
    voxels[:8] = [[x, y, z] for x in (0, layout.shape[0] - 1) for y in (0, layout.shape[1] - 1)
                  for z in (0, layout.shape[2] - 1)]
    labels = compressed_segmentation.read_points(payload, layout, voxels)
    assert labels.dtype == layout.dtype
    assert np.array_equal(labels, array[tuple(voxels.T)])
    for i in range(60):
        assert np.array_equal(compressed_segmentation.read_points(payload, layout, voxels[i:i + 1]), labels[i:i + 1])


def bits_of(payload, num_blocks, channel=0):
    words = np.frombuffer(payload, "<u4")
    return set((words[words[channel]:][:2 * num_blocks:2] >> 24).tolist())


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_32_bit_indices(tmp_path, dtype, channels):
    """Blocks of more than 65,536 labels, as TensorStore writes them, read as the array, and as it reads them back."""
    layout = ChunkLayout((70, 64, 33), channels, np.dtype(dtype), (64, 64, 32))
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*layout.shape, channels), dtype)
    payload = write_by_tensorstore(tmp_path, layout, array)
    assert 32 in bits_of(payload, 4, channels - 1)
    assert np.array_equal(read_by_tensorstore(tmp_path, layout, payload), array)
    check_same(payload, layout, array)


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize(("number", "bits"), [
    (1, 0), (2, 1), (3, 2), (5, 4), (16, 4), (17, 8), (256, 8), (257, 16), (65536, 16), (65537, 32),
])
def test_numbers_of_labels_at_the_bounds(tmp_path, number, bits, dtype):
    """Where the labels of a block just fit a number of bits, or just don't, TensorStore's chunks read as the array."""
    layout = ChunkLayout((64, 64, 17), 1, np.dtype(dtype), (64, 64, 17))
    array = (np.random.default_rng(1).permutation(64 * 64 * 17) % number).reshape(*layout.shape, 1).astype(dtype)
    array = array * np.array(31, dtype) + np.array(7, dtype)  # no zeros: of them TensorStore stores nothing
    payload = write_by_tensorstore(tmp_path, layout, array)
    assert bits_of(payload, 1) == {bits}
    check_same(payload, layout, array)


@pytest.mark.parametrize("writer", ["ours", "tensorstore"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("block_size", [(8, 8, 8), (64, 64, 32), (5, 3, 7), (1, 1, 1)])
def test_several_channels(tmp_path, block_size, dtype, channels, writer):
    """Every channel reads as the array, whoever wrote it, and as TensorStore decodes it."""
    layout = ChunkLayout((30, 21, 17), channels, np.dtype(dtype), block_size)
    array = make_segments(layout)
    if writer == "ours":
        payload = encode_chunk(array, "compressed_segmentation", block_size)
    else:
        payload = write_by_tensorstore(tmp_path, layout, array)
    assert np.array_equal(read_by_tensorstore(tmp_path, layout, payload), array)
    check_same(payload, layout, array)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_same_as_cloudvolume(dtype):
    """Large blocks with 16-bit indices read as CloudVolume's full decode has them."""
    from cloudvolume import chunks
    layout = ChunkLayout((70, 66, 33), 1, np.dtype(dtype), (64, 64, 32))
    array = np.random.default_rng(2).integers(0, 2**16, (*layout.shape, 1), dtype)
    payload = chunks.encode(np.asfortranarray(array), "compressed_segmentation", block_size=layout.block_size)
    assert 16 in bits_of(payload, 8)
    decoded = chunks.decode(payload, "compressed_segmentation", array.shape, dtype, layout.block_size)
    assert np.array_equal(decoded, array)
    check_same(payload, layout, array)


def test_shared_tables(tmp_path):
    """Blocks that share a table, and tables that overlap each other, read as TensorStore reads them."""
    layout = ChunkLayout((16, 8, 8), 1, np.dtype("<u4"), (8, 8, 8))
    # Two blocks: the second one's table is the end of the first one's, and both have the same values.
    values = np.random.default_rng(0).integers(0, 2**32, 16, np.uint32)
    words = struct.pack("<8I", 1, 4 | 1 << 24, 7, 5 | 1 << 24, 7, 11, 22, 33)
    payload = words + values.tobytes()
    bits = np.unpackbits(values.view(np.uint8), bitorder="little").reshape(8, 8, 8).transpose(2, 1, 0)
    expected = np.concatenate([np.array([11, 22])[bits], np.array([22, 33])[bits]])[..., None]
    assert np.array_equal(read_by_tensorstore(tmp_path, layout, payload), expected)
    check_same(payload, layout, expected)


def large_chunk(first, second):
    """Return a chunk of two blocks with the given first words, and more than 2^24 words."""
    return struct.pack("<7I", 1, first, 4, second, 4, 11, 22) + bytes(4 << 24)


def test_tables_beyond_24_bits(tmp_path):
    """A table offset that ran over into the bits a value makes a chunk corrupt, for TensorStore and for us.

    Also for points of its sound blocks, since other offsets may have run over without a sign.
    """
    layout = ChunkLayout((16, 8, 8), 1, np.dtype("<u4"), (8, 8, 8))
    sound, overrun = large_chunk(4, 5), large_chunk(4, 5 + (16 << 24) + (1 << 24))
    assert (compressed_segmentation.read_points(sound, layout, np.array([[0, 0, 0], [8, 0, 0]])) == [[11], [22]]).all()
    with pytest.raises(ValueError, match="Corrupted"):
        read_by_tensorstore(tmp_path, layout, overrun)
    for number in (1, 100):
        with pytest.raises(CorruptDataError, match="a block of 17 bits a value"):
            compressed_segmentation.read_points(overrun, layout, np.zeros((number, 3), np.int64))


def test_values_beyond_24_bits():
    """Values, whose offsets have 32 bits, may begin beyond word 2^24."""
    layout = ChunkLayout((8, 8, 8), 1, np.dtype("<u4"), (8, 8, 8))
    at = (1 << 24) + 7
    values = np.random.default_rng(0).integers(0, 2**32, 16, np.uint32)
    payload = struct.pack("<5I", 1, 2 | 1 << 24, at, 11, 22) + bytes(4 * (at - 4)) + values.tobytes()
    bits = np.unpackbits(values.view(np.uint8), bitorder="little").reshape(8, 8, 8).transpose(2, 1, 0)
    check_same(payload, layout, np.array([11, 22])[bits][..., None])
