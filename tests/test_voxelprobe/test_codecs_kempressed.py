import numpy as np
import pytest

from voxelprobe.codecs import kempressed
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, make_segments
from voxelprobe.testing.encoding_floats import encode_fpzip, encode_kempressed


class TestKempressedReader(PointReaderTests):
    reader = kempressed
    truncation_may_crash = True
    layouts = (
        ChunkLayout((5, 4, 3), 1, np.dtype("<f4")),
        *(ChunkLayout((20, 17, 6), channels, np.dtype(name)) for channels in (1, 3) for name in ("<f4", "<f8")),
        ChunkLayout((1, 1, 1), 1, np.dtype("<f8")),
        ChunkLayout((300, 3, 2), 2, np.dtype("<f4")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_kempressed(array)

    def decoded(self, array, layout):  # noqa: D102  # the contract's
        from cloudvolume import chunks

        return chunks.decode_kempressed(self.encode(array, layout))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_same_as_cloudvolume(dtype, channels):
    """What CloudVolume encodes is read to the last bit as it decodes it, NaN and infinities too, and near the array."""
    from cloudvolume import chunks

    layout = ChunkLayout((12, 9, 7), channels, np.dtype(dtype))
    array = np.random.default_rng(0).random((*layout.shape, channels)).astype(dtype, order="F")
    array[3, 4, 5], array[5, 4, 3], array[0, 1, 2] = np.nan, np.inf, -np.inf
    payload = chunks.encode(array, "kempressed")
    voxels = every_voxel(layout.shape)
    values = kempressed.read_points(payload, layout, voxels)
    assert values.dtype == layout.dtype
    assert values.tobytes() == chunks.decode(payload, "kempressed").astype(dtype)[tuple(voxels.T)].tobytes()
    np.testing.assert_allclose(values, array[tuple(voxels.T)], atol=2e-7)


def test_axes_in_fpzips_order():
    """A chunk with z before channels, as fpzip has it, is a CorruptDataError with both orders."""
    layout = ChunkLayout((5, 4, 3), 2, np.dtype("<f4"))
    with pytest.raises(CorruptDataError) as caught:
        kempressed.read_points(encode_fpzip(make_segments(layout)), layout, np.zeros((1, 3), np.int64))
    assert str(caught.value) == ("kempressed: expected float32 of (5, 4, 2, 3), the header has float32 of "
                                 "(5, 4, 3, 2)")


def test_volume_of_integers():
    """A volume of integers is unsupported, and told so with its type."""
    layout = ChunkLayout((3, 3, 3), 1, np.dtype("<i4"))
    with pytest.raises(UnsupportedError, match=r"^kempressed holds float32 or float64, the volume has int32$"):
        kempressed.read_points(b"", layout, np.zeros((1, 3), np.int64))
