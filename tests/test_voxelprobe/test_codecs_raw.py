import numpy as np
import pytest

from voxelprobe.codecs import raw
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError
from voxelprobe.testing.contracts import PointReaderTests, make_segments
from voxelprobe.volume.info import DATA_TYPES


class TestRawReader(PointReaderTests):
    reader = raw
    layouts = (
        *(ChunkLayout((7, 5, 3), channels, np.dtype(name).newbyteorder("<"))
          for channels in (1, 3) for name in DATA_TYPES),
        ChunkLayout((1, 1, 1), 1, np.dtype("<u8")),
        ChunkLayout((64, 1, 2), 2, np.dtype("<u4")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return array.tobytes("F")

    def test_every_truncation(self):
        """A payload of any other length raises CorruptDataError."""
        layout = self.layouts[0]
        payload = self.encode(make_segments(layout), layout)
        for length in (*range(len(payload)), len(payload) + 1, 2 * len(payload)):
            with pytest.raises(CorruptDataError):
                raw.read_points((2 * payload)[:length], layout, np.zeros((1, 3), np.int64))


def test_message():
    """A wrong length is told with the size, the dtype, what was expected and what was found."""
    layout = ChunkLayout((64, 64, 64), 1, np.dtype("<u8"))
    expected = "a raw chunk of 64 x 64 x 64 uint64 voxels has 2097152 bytes, found 2097000"
    with pytest.raises(CorruptDataError, match=f"^{expected}$"):
        raw.read_points(bytes(2097000), layout, np.zeros((1, 3), np.int64))


def test_same_as_cloudvolume():
    """CloudVolume's encoder writes what the reader reads."""
    from cloudvolume import chunks
    layout = ChunkLayout((6, 5, 4), 2, np.dtype("<u2"))
    array = make_segments(layout)
    voxels = np.random.default_rng(0).integers(0, layout.shape, (50, 3))
    labels = raw.read_points(chunks.encode(array, "raw"), layout, voxels)
    assert np.array_equal(labels, array[tuple(voxels.T)])
