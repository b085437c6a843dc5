import faulthandler
import sys

import fpzip as package
import numpy as np
import pytest

import voxelprobe
from voxelprobe.codecs import fpzip, fpzip_stream
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import (
    Crashed,
    PointReaderTests,
    every_voxel,
    flip_bits,
    make_segments,
    read_damaged,
)
from voxelprobe.testing.encoding_floats import encode_fpzip

LAYOUT = ChunkLayout((13, 11, 6), 2, np.dtype("<f4"))


class TestFpzipReader(PointReaderTests):
    reader = fpzip
    truncation_may_crash = True
    layouts = (
        ChunkLayout((6, 5, 4), 1, np.dtype("<f4")),
        *(ChunkLayout((20, 17, 6), channels, np.dtype(name)) for channels in (1, 3) for name in ("<f4", "<f8")),
        ChunkLayout((1, 1, 1), 1, np.dtype("<f8")),
        ChunkLayout((1, 300, 1), 2, np.dtype("<f4")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_fpzip(array)


@pytest.mark.parametrize("precision", [0, 8, 16, 24])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_same_as_cloudvolume(dtype, channels, precision):
    """Values are to the last bit what CloudVolume decodes, whatever precision was kept."""
    from cloudvolume import chunks

    layout = ChunkLayout((12, 9, 7), channels, np.dtype(dtype))
    array = np.random.default_rng(0).normal(0, 1e3, (*layout.shape, channels)).astype(dtype, order="F")
    payload = chunks.encode(array, "fpzip", compression_params={"level": precision})
    voxels = every_voxel(layout.shape)
    values = fpzip.read_points(payload, layout, voxels)
    assert values.dtype == layout.dtype
    assert values.tobytes() == chunks.decode(payload, "fpzip")[tuple(voxels.T)].tobytes()
    assert np.array_equal(values, array[tuple(voxels.T)]) == (precision == 0)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_special_values(dtype):
    """NaNs with their bits, infinities, the smallest and the largest numbers and -0 come back as they are."""
    limits = np.finfo(dtype)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, limits.tiny, limits.smallest_subnormal, limits.max,
                        limits.min], dtype)
    unsigned = special.view(f"<u{special.itemsize}")
    unsigned[0] += 5
    array = np.random.default_rng(1).choice(special, (*LAYOUT.shape, 2))
    layout = ChunkLayout(LAYOUT.shape, 2, np.dtype(dtype))
    voxels = every_voxel(layout.shape)
    values = fpzip.read_points(encode_fpzip(array), layout, voxels)
    assert values.tobytes() == array[tuple(voxels.T)].tobytes()


def test_flipped_bits():
    """Flipped bits mostly raise CorruptDataError or end the process, as the package trusts its bytes."""
    array = make_segments(LAYOUT)
    payloads = flip_bits(encode_fpzip(array), 100)
    outcomes = read_damaged(fpzip, LAYOUT, payloads, every_voxel(LAYOUT.shape), calls_a_child=1)
    for outcome in outcomes:
        assert isinstance(outcome, CorruptDataError | Crashed | np.ndarray), outcome
    assert sum(isinstance(outcome, np.ndarray) for outcome in outcomes) < 10
    assert sum(isinstance(outcome, CorruptDataError) for outcome in outcomes) > 10


def test_bytes_after_the_end():
    """Zeros after the end are old packages', and anything else there is damage."""
    array = make_segments(LAYOUT)
    payload = encode_fpzip(array)
    voxels = every_voxel(LAYOUT.shape)
    assert np.array_equal(fpzip.read_points(payload + bytes(1000), LAYOUT, voxels), array[tuple(voxels.T)])
    with pytest.raises(CorruptDataError, match=rf"^fpzip: 1716 values end at byte {len(payload)}, found "):
        fpzip.read_points(payload + b"\0\1", LAYOUT, voxels)


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1, 2**9, 1), (13, 11, 12, 1), (11, 13, 6, 2), (13, 11, 6, 1)])
def test_header_of_another_size(size):
    """A header that claims other sizes, 2^71 values among them, is told before anything is decoded."""
    payload = _with_header(size)
    with pytest.raises(CorruptDataError) as caught:
        fpzip.read_points(payload, LAYOUT, np.zeros((1, 3), np.int64))
    assert str(caught.value) == f"fpzip: expected float32 of (13, 11, 6, 2), the header has float32 of {size}"


def test_header_of_another_type():
    """A chunk of float64 in a volume of float32, or the other way round, is told with both types."""
    double = ChunkLayout(LAYOUT.shape, 2, np.dtype("<f8"))
    for layout, other in ((LAYOUT, double), (double, LAYOUT)):
        payload = encode_fpzip(make_segments(other))
        with pytest.raises(CorruptDataError, match=f"expected {layout.dtype.name} of .*the header has {other.dtype}"):
            fpzip.read_points(payload, layout, np.zeros((1, 3), np.int64))


def test_precision_that_is_none():
    """A precision that the package doesn't know is a CorruptDataError with that precision."""
    with pytest.raises(CorruptDataError, match=r"^fpzip: the package can't decode .* which has 77 bits a value$"):
        fpzip.read_points(_with_header((13, 11, 6, 2), precision=77), LAYOUT, np.zeros((1, 3), np.int64))


@pytest.mark.parametrize("dtype", ["u1", "<u8", "<i4"])
def test_volume_of_integers(dtype):
    """A volume of integers is unsupported, and told so with its type."""
    layout = ChunkLayout((3, 3, 3), 1, np.dtype(dtype))
    with pytest.raises(UnsupportedError, match=f"^fpzip holds float32 or float64, the volume has {layout.dtype.name}$"):
        fpzip.read_points(b"", layout, np.zeros((1, 3), np.int64))


def test_library_agrees_with_the_package():
    """The library behind the package says of a stream what the package's own `decompress` does."""
    payload = encode_fpzip(make_segments(LAYOUT))
    values = fpzip_stream.decode_stream(payload, (13, 11, 6, 2), LAYOUT.dtype, encoding="fpzip")
    assert np.array_equal(values, package.decompress(payload, order="F"))


def write_volume(folder, encoding, array, **scale):
    """Return CloudVolume's download of a volume that it wrote, chunks uncompressed, and the array's corner."""
    from cloudvolume import CloudVolume

    offset = np.array((13, 7, 101))
    info = CloudVolume.create_new_info(
        num_channels=array.shape[3], data_type=array.dtype.name, encoding=encoding, layer_type="image",
        resolution=(4, 4, 40), voxel_offset=offset, volume_size=array.shape[:3], chunk_size=(16, 16, 8),
    )
    info["scales"][0] |= scale
    volume = CloudVolume(f"file://{folder}", info=info, compress=False, progress=False)
    volume.commit_info()
    volume[:] = np.asfortranarray(array)
    return np.asarray(volume[:]), offset


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("encoding", ["fpzip", "kempressed", "raw"])
def test_volumes_of_floats(tmp_path, encoding, dtype, channels):
    """Every value of a volume that CloudVolume wrote is what its own download has, to the last bit, float64 too."""
    array = np.random.default_rng(5).random((37, 20, 11, channels)).astype(dtype)
    downloaded, offset = write_volume(tmp_path, encoding, array)
    voxels = every_voxel(array.shape[:3])
    values, status = voxelprobe.sample_points(f"file://{tmp_path}", voxels + offset, return_status=True)
    assert set(status) == {"ok"}
    assert values.dtype == np.dtype(dtype)
    assert values.data.tobytes() == downloaded[tuple(voxels.T)].tobytes()


@pytest.fixture
def quiet_crashes():
    """Keep the tracebacks of processes that are expected to crash out of the tests' output."""
    faulthandler.disable()
    yield
    faulthandler.enable(file=sys.__stderr__)


@pytest.mark.usefixtures("quiet_crashes")
@pytest.mark.parametrize("encoding", ["fpzip", "kempressed"])
def test_truncated_chunks_of_a_volume(tmp_path, encoding):
    """Points of truncated chunks are corrupt_chunk, however they end the decoder; all others have their values."""
    array = np.random.default_rng(5).random((48, 48, 16, 1)).astype("<f4")
    downloaded, offset = write_volume(tmp_path, encoding, array)
    chunks = sorted((tmp_path / "4_4_40").iterdir())
    assert len(chunks) == 18
    voxels = every_voxel(array.shape[:3])
    is_cut = np.zeros(len(voxels), np.bool_)
    size = np.array((16, 16, 8))
    for i, path in enumerate(chunks[::2]):
        content = path.read_bytes()
        path.write_bytes(content[:(i + 1) * len(content) // 10])
        begin = np.array([int(part.split("-")[0]) for part in path.name.split("_")]) - offset
        is_cut |= ((voxels >= begin) & (voxels < begin + size)).all(axis=1)
    values, status = voxelprobe.sample_points(f"file://{tmp_path}", voxels + offset, return_status=True)
    assert set(status[is_cut]) == {"corrupt_chunk"}
    assert set(status[~is_cut]) == {"ok"}
    assert np.array_equal(values[~is_cut].data.ravel(), downloaded[tuple(voxels[~is_cut].T)].ravel())


def _with_header(size, *, precision=0):
    """Return 1,000 bytes that begin with a header of float32, by a range coder of the test's own."""
    fields = [(ord(c), 8) for c in "fpz\0"] + [(0x0110, 16), (1, 8), (0, 1), (precision, 7)]
    for extent in size:
        fields += [(extent & 0xFFFF, 16), (extent >> 16, 16)]
    low, span, coded = 0, 0xFFFFFFFF, b""
    for value, bits in fields:
        span >>= bits
        low += span * value
        while not (low ^ (low + span)) >> 24 & 0xFF:
            coded, low, span = coded + bytes([low >> 24 & 0xFF]), low << 8 & 0xFFFFFFFF, span << 8
        if not span >> 16:
            coded, low = coded + (low >> 16 & 0xFFFF).to_bytes(2, "big"), low << 16 & 0xFFFFFFFF
            span = -low & 0xFFFFFFFF
    return (coded + low.to_bytes(4, "big")).ljust(1000, b"\0")
