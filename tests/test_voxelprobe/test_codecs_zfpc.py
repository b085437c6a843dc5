import itertools
import struct

import numpy as np
import pytest
import zfpc as package
import zfpy

import voxelprobe
from voxelprobe.codecs import zfpc
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import PointReaderTests, every_voxel, flip_bits, make_segments, read_damaged
from voxelprobe.testing.encoding_floats import encode_zfpc

DTYPES = ("<f4", "<f8", "<i4", "<i8")
MODES = {"lossless": {}, "rate 8": {"rate": 8}, "rate 16": {"rate": 16}, "rate 13.3": {"rate": 13.3},
         "rate 5": {"rate": 5}, "precision": {"precision": 16}, "tolerance": {"tolerance": 0.01},
         "tolerance 0": {"tolerance": 0}}
LAYOUT = ChunkLayout((9, 8, 7), 2, np.dtype("<f4"))


def decode(payload):
    """Return all values of a chunk by zfpy alone, in the dtype that they were stored in."""
    header = package.ZfpcHeader.frombytes(payload)
    values = np.zeros(header.shape(), header.data_type)
    streams = package.disassemble_container(header, payload)
    for where, stream in zip(package.compute_slices(header), streams, strict=True):
        values[where] = zfpy.decompress_numpy(stream)
    return values


class TestZfpcReader(PointReaderTests):
    reader = zfpc
    layouts = (
        ChunkLayout((9, 8, 5), 1, np.dtype("<f4")),
        *(ChunkLayout((10, 7, 6), channels, np.dtype(name)) for channels in (1, 3) for name in DTYPES),
        ChunkLayout((1, 1, 1), 1, np.dtype("<f8")),
        ChunkLayout((300, 3, 2), 2, np.dtype("<f4")),
    )

    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_zfpc(array)


class TestFixedRate(TestZfpcReader):
    def encode(self, array, layout):  # noqa: D102  # the contract's
        return encode_zfpc(array, (True, True, True, False), rate=24)

    def decoded(self, array, layout):  # noqa: D102  # the contract's
        return decode(self.encode(array, layout))

    def test_one_label(self):
        """A rate so high that zfp loses nothing of one value has that value."""
        for layout in self.layouts:
            array = np.full((*layout.shape, layout.num_channels), 3, layout.dtype)
            payload = encode_zfpc(array, rate=48)
            assert (zfpc.read_points(payload, layout, every_voxel(layout.shape)) == 3).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_mode_and_axes(dtype, mode, monkeypatch):
    """Whichever axes streams go along and however they are compressed, values are zfpy's full decode of the streams."""
    monkeypatch.setattr(zfpc, "_VALUES_FOR_BLOCKS", 0)  # blocks are taken out of these small chunks too
    rng = np.random.default_rng(0)
    joined = []
    join = zfpc._join_blocks
    monkeypatch.setattr(zfpc, "_join_blocks", lambda *some: joined.append(1) or join(*some))
    for shape in ((9, 8, 7, 1), (5, 6, 9, 3)):
        array = (rng.random(shape) * 1000).astype(dtype)
        layout = ChunkLayout(shape[:3], shape[3], np.dtype(dtype))
        voxels = every_voxel(layout.shape)
        for correlated in itertools.product([True, False], repeat=4):
            if not any(correlated) or (mode == "rate 5" and sum(correlated) < 2):
                continue  # zfpc doesn't write the one, zfpy breaks its memory with the other
            payload = encode_zfpc(array, correlated, **MODES[mode])
            stored = decode(payload)
            for some in (voxels, voxels[::7], rng.permutation(voxels)[:3]):
                values = zfpc.read_points(payload, layout, some)
                assert values.tobytes() == stored[tuple(some.T)].tobytes(), (shape, correlated, len(some))
    assert bool(joined) == ("rate" in mode)


@pytest.mark.parametrize("rate", [7, 16])
@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_more_blocks_than_a_header_can_say(axes, rate, monkeypatch):
    """Blocks beyond what a small stream's header has bits for are taken in several, and clipped blocks are right."""
    monkeypatch.setattr(zfpc, "_VALUES_FOR_BLOCKS", -1 << 40)  # whatever the share of blocks
    layout = ChunkLayout((130, 53, 27), 1, np.dtype("<f4"))
    array = np.random.default_rng(0).random((*layout.shape, 1)).astype("<f4")
    payload = encode_zfpc(array, [axis < axes for axis in range(4)], rate=rate)
    voxels = every_voxel(layout.shape)[::3 if axes > 2 else 101]
    stored = decode(payload)
    assert np.array_equal(zfpc.read_points(payload, layout, voxels), stored[tuple(voxels.T)])


def test_special_values():
    """Lossless streams of floats keep NaN, infinities and -0; full-range integers come back too."""
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3e38, -7], "<f4")
    for dtype in DTYPES:
        array = np.random.default_rng(1).choice(special, (*LAYOUT.shape, 2)).astype(dtype) if dtype[1] == "f" else \
            np.random.default_rng(1).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (*LAYOUT.shape, 2), dtype)
        layout = ChunkLayout(LAYOUT.shape, 2, np.dtype(dtype))
        voxels = every_voxel(layout.shape)
        payload = encode_zfpc(array)
        values = zfpc.read_points(payload, layout, voxels)
        assert values.tobytes() == array[tuple(voxels.T)].tobytes() == decode(payload)[tuple(voxels.T)].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cloudvolume_rounds_to_float32(dtype):
    """Where float32 holds them, values are CloudVolume's; where not, they are zfpy's, which CloudVolume's are near."""
    from cloudvolume import chunks

    layout = ChunkLayout((12, 9, 7), 2, np.dtype(dtype))
    array = np.asfortranarray(np.random.default_rng(0).normal(0, 2**28, (*layout.shape, 2)).astype(dtype))
    voxels = every_voxel(layout.shape)
    payload = chunks.encode(array, "zfpc")
    values = zfpc.read_points(payload, layout, voxels)
    assert np.array_equal(values, array[tuple(voxels.T)])
    rounded = chunks.decode(payload, "zfpc", shape=array.shape, dtype=dtype)[tuple(voxels.T)]
    assert rounded.dtype == np.float32
    assert np.array_equal(values.astype(np.float32), rounded)
    assert np.array_equal(values, rounded) == (dtype == "<f4")


def test_array_without_channels():
    """An array of three axes, which a writer other than CloudVolume's may store, is one channel."""
    layout = ChunkLayout((9, 8, 7), 1, np.dtype("<f4"))
    array = make_segments(layout)
    voxels = every_voxel(layout.shape)
    values = zfpc.read_points(package.compress(np.asfortranarray(array[..., 0])), layout, voxels)
    assert np.array_equal(values, array[tuple(voxels.T)])


@pytest.mark.parametrize("mode", MODES)
def test_flipped_bits(mode):
    """Flipped bits raise CorruptDataError or give numbers of the right shape, and end no process."""
    payload = encode_zfpc(make_segments(LAYOUT), (True, True, False, False), **MODES[mode])
    voxels = every_voxel(LAYOUT.shape)
    outcomes = read_damaged(zfpc, LAYOUT, flip_bits(payload, 60) + flip_bits(payload[:300], 60), voxels)
    for outcome in outcomes:
        assert isinstance(outcome, CorruptDataError | np.ndarray), outcome
        assert isinstance(outcome, CorruptDataError) or outcome.shape == (len(voxels), 2)
    assert any(isinstance(outcome, CorruptDataError) for outcome in outcomes)


def patch(payload, at, form, *values):
    return payload[:at] + struct.pack(form, *values) + payload[at + struct.calcsize(form):]


CHUNK = encode_zfpc(make_segments(LAYOUT), (True, True, True, False), rate=8)
FIRST = 23 + 3 * 8  # where the first of two streams begins
DAMAGE = {
    "sizes": (patch(CHUNK, 6, "<4I", 2**30, 2**30, 2**10, 2), "the header has type 3 of (1073741824, 1073741824"),
    "dtype": (patch(CHUNK, 5, "B", CHUNK[5] + 1), "expected float32 of (9, 8, 7, 2), the header has type 4"),
    "version": (patch(CHUNK, 4, "B", 1), "format 0 in a header of 23 bytes, found b'zfpc\\x01'"),
    "no axis": (patch(CHUNK, 22, "B", 0), "the header has no correlated axis"),
    "other axes": (patch(CHUNK, 22, "B", 8), "the index of 504 streams ends at byte 4063"),
    "begin": (patch(CHUNK, 23, "<Q", FIRST - 1), f"streams begin at byte {FIRST - 1}"),
    "huge stream": (patch(CHUNK, 31, "<Q", 2**63), "have up to 9223372036854775808 bytes"),
    "longer stream": (patch(CHUNK, 31, "<Q", 792), f"2 streams end at byte {len(CHUNK) + 8}"),
    "moved border": (patch(CHUNK, 31, "<2Q", 792, 776), "expected 784 bytes of 12 blocks of 512 bits"),
    "stream's sizes": (patch(CHUNK, FIRST + 4, "<Q", 2**51 + 2**30), "expected a zfp stream of float32, (9, 8, 7)"),
    "stream's magic": (patch(CHUNK, FIRST, "B", 0), "that begin with b'\\x00fp\\x05'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_headers_that_contradict(kind):
    """Sizes, types and lengths that contradict the layout or each other are told before anything is decoded."""
    payload, message = DAMAGE[kind]
    with pytest.raises(CorruptDataError) as caught:
        zfpc.read_points(payload, LAYOUT, np.zeros((1, 3), np.int64))
    assert message in str(caught.value)


def test_rate_below_a_blocks_first_bits():
    """Blocks that are said to have fewer bits than an exponent has, so that none knows their lengths, are refused."""
    mode_at = (FIRST * 8 + 84) // 8
    payload = bytearray(CHUNK)
    payload[mode_at] &= 0x0F
    payload[mode_at + 1] = 0
    with pytest.raises(CorruptDataError, match=r"12 blocks of \d bits in a zfp stream, found 784"):
        zfpc.read_points(bytes(payload), LAYOUT, np.zeros((1, 3), np.int64))


@pytest.mark.parametrize("dtype", ["u1", "<u4", "<u8", "<i2"])
def test_volume_of_another_dtype(dtype):
    """A volume of a dtype that zfp hasn't is unsupported, and told so with its type."""
    layout = ChunkLayout((3, 3, 3), 1, np.dtype(dtype))
    with pytest.raises(UnsupportedError, match=rf"^zfpc holds float32, .* the volume has {layout.dtype.name}$"):
        zfpc.read_points(b"", layout, np.zeros((1, 3), np.int64))


SETTINGS = {"default": {}, "z slices": {"zfpc_correlated_dims": [True, True, False, False]},
            "rate": {"zfpc_rate": 8, "zfpc_correlated_dims": [True, True, True, False]},
            "tolerance": {"zfpc_tolerance": 0.001}}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_volumes_of_floats(tmp_path, channels, settings):
    """Every value of a volume that CloudVolume wrote with any setting of its info is what its own download has."""
    from cloudvolume import CloudVolume

    array = np.random.default_rng(5).random((37, 20, 11, channels)).astype("<f4", order="F")
    info = CloudVolume.create_new_info(
        num_channels=channels, data_type="float32", encoding="zfpc", layer_type="image", resolution=(4, 4, 40),
        voxel_offset=(13, 7, 101), volume_size=array.shape[:3], chunk_size=(16, 16, 8),
    )
    info["scales"][0] |= SETTINGS[settings]
    volume = CloudVolume(f"file://{tmp_path}", info=info, progress=False)
    volume.commit_info()
    volume[:] = array
    downloaded = np.asarray(volume[:])
    assert np.array_equal(downloaded, array) == (settings in ("default", "z slices"))
    voxels, offset = every_voxel(array.shape[:3]), np.array((13, 7, 101))
    for some in (voxels, voxels[::97]):
        values, status = voxelprobe.sample_points(f"file://{tmp_path}", some + offset, return_status=True)
        assert set(status) == {"ok"}
        assert values.data.tobytes() == downloaded[tuple(some.T)].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_lossless_streams_of_few_bits_a_block(dtype, monkeypatch):
    """With too few bits a block for what it begins with, zfp reads past the end: refused, or as with zeros behind."""
    layout = ChunkLayout((6, 5, 4), 1, np.dtype(dtype))
    kind = zfpc._TYPES[dtype]
    rng = np.random.default_rng(0)
    joined = []
    decode_stream = zfpc.zfpy.decompress_numpy

    def decode_twice(memory):
        """Decode with zeros behind the stream, and with ones: what is given lies in the middle of other memory."""
        found = decode_stream(memory)
        joined.append(np.array_equal(found.view("u1"), decode_stream(bytes(memory) + b"\xff" * 8192).view("u1")))
        return found

    monkeypatch.setattr(zfpc.zfpy, "decompress_numpy", decode_twice)
    outcomes = []
    for bits in range(1, 33):
        mode = 4095 | bits - 1 << 12 | bits - 1 << 27 | 63 << 42  # and the smallest exponent of all: without loss
        meta = kind - 1 | 2 << 2 | 3 << 4 | 4 << 20 | 5 << 36
        head = zfpc._MAGIC | meta << 32 | mode << 84
        for _ in range(20):
            noise = int.from_bytes(rng.bytes(4 * bits), "little") >> 28 * bits | 1  # of 4 blocks
            size = -(-(148 + 4 * bits) // 64) * 8
            stream = (head | noise << 148).to_bytes(size + 8, "little")[:size]
            header = struct.pack("<4sBB4IB", b"zfpc", 0, kind, *layout.shape, 0, 0b111)
            payload = header + struct.pack("<2Q", len(header) + 16, size) + stream
            try:
                zfpc.read_points(payload, layout, every_voxel(layout.shape))
            except CorruptDataError:
                outcomes.append((bits, False))
            else:
                outcomes.append((bits, True))
    assert all(joined)
    assert {(1, False), (4, False), (32, True)} <= set(outcomes)
