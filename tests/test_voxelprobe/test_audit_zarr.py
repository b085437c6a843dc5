"""The audit's own reading of zarr and n5 volumes, against the arrays that were written."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.audit.places import AuditableScale, find_place
from voxelprobe.audit.reading import AuditedPoints, read_places
from voxelprobe.errors import UnsupportedError
from voxelprobe.locations import parse_location
from voxelprobe.opening import open_volume
from voxelprobe.records import Status
from voxelprobe.testing.audited_scales import open_scale
from voxelprobe.testing.zarr_volumes import make_v2_options, make_v3_options, write_shards, write_zarr
from voxelprobe.transport.sources import open_source

SHAPE, CHUNK = (21, 18, 11), (8, 8, 4)  # x, y, z; clipped along each axis
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not")


def make(dtype: str = "uint64", shape: tuple[int, ...] = SHAPE) -> Any:
    """Return noise over all of a dtype's range."""
    rng = np.random.default_rng(7)
    kind = np.dtype(dtype).kind
    if kind == "f":
        return rng.normal(0, 1e4, shape).astype(dtype)
    if kind == "b":
        return rng.random(shape) < 0.5
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def write_n5(path: Path, array: Any, compression: Any = None, block: Any = CHUNK, **more: Any) -> None:
    """Write an array (x, y, z[, …]) by TensorStore."""
    import tensorstore

    metadata = {"dimensions": list(array.shape), "blockSize": list(block), "dataType": array.dtype.name,
                "compression": compression or {"type": "gzip"}} | more
    store = tensorstore.open({"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata},
                             create=True).result()
    store.write(array).result()


def read_all(kind: str, folder: Path) -> tuple[AuditableScale, AuditedPoints]:
    """Return the labels and statuses of every voxel, in C order."""
    scale = open_scale(kind, folder)
    points = np.indices(scale.size).reshape(3, -1).T + scale.voxel_offset
    scale.explain()
    with closing(open_source(parse_location(str(folder)), threads=4)) as source:
        return scale, read_places(scale, source, [find_place(scale, point) for point in points.tolist()], threads=4)


def check(kind: str, folder: Path, array: Any) -> None:
    """Assert that every voxel and channel has the array's value, (x, y, z[, c]), and the product takes it alike."""
    scale, found = read_all(kind, folder)
    assert not found.status.any(), found.unread
    expected = array.view("u1") if array.dtype.kind == "b" else array
    assert found.labels.dtype == expected.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found.labels.reshape(expected.shape), expected)
    began = open_volume(f"{kind}://file://{folder}").scale
    assert (scale.key, scale.size, scale.voxel_offset, scale.chunk_size, scale.encoding, scale.data_type,
            scale.channels) == (began.key, began.size, began.voxel_offset, began.chunk_size, began.encoding,
                                began.dtype.name, began.num_channels)


DTYPES = ["bool", *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)), "float16", "float32",
          "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "n5"])
def test_every_dtype(kind: str, dtype: str, tmp_path: Path) -> None:
    """Every voxel of every dtype is read as zarr-python and TensorStore wrote it, clipped chunks too."""
    array = make(dtype)
    if kind != "n5":
        write_zarr(tmp_path, array.T, int(kind[-1]), chunks=CHUNK[::-1])
        check("zarr", tmp_path, array)
    elif dtype in ("bool", "float16"):
        return
    else:
        write_n5(tmp_path, array)
    check(kind, tmp_path, array)


@pytest.mark.parametrize("options", [
    {"order": "F"}, {"dtype": ">u8"}, {"dtype": ">u8", "order": "F"},
    {"chunk_key_encoding": {"name": "v2", "separator": "/"}}, {"compressors": None},
    *({"compressors": name} for name in ("zlib", "gzip", "bz2", "lzma", "lzma alone", "lz4", "zstd", "blosc",
                                         "blosc lz4")),
    *({"compressors": "zstd", "filters": name} for name in ("shuffle", "delta", "crc32", "adler32", "fletcher32")),
    {"filters": "astype", "order": "F"}, {"filters": "delta", "order": "F"}, {"filters": "offset"},
], ids=str)
def test_version_2_in_every_form(options: dict[str, Any], tmp_path: Path) -> None:
    """Orders, byte orders, separators, compressors and filters of v2 are undone."""
    array = make() % np.uint64(2**50)  # which float64 holds
    write_zarr(tmp_path, array.T, 2, chunks=CHUNK[::-1], **make_v2_options(options))
    check("zarr2", tmp_path, array)


@pytest.mark.parametrize("name", [
    "transpose", "transposes", "big", "dots", "v2 names", "v2 slashes", "none", "gzip", "zstd", "blosc", "crc32c",
    "zlib", "shuffle", "delta", "delta transposed", "all",
])
def test_version_3_in_every_form(name: str, tmp_path: Path) -> None:
    """Transpositions, byte orders, names, compressors, filters and checksums of v3 are undone."""
    array = make()
    write_zarr(tmp_path, array.T, 3, chunks=CHUNK[::-1], **make_v3_options(name))
    check("zarr3", tmp_path, array)


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("shard", [(16, 16, 8), CHUNK, (64, 64, 64), (8, 24, 4)])
def test_shards(location: str, checksum: bool, shard: Any, tmp_path: Path) -> None:
    """Every voxel in shards of any box, their index at either end, checked or not, has its value."""
    array = make()
    write_shards(tmp_path, array, CHUNK, shard, location=location, checksum=checksum)
    check("zarr3", tmp_path, array)


def test_codecs_inside_of_shards(tmp_path: Path) -> None:
    """Codecs inside of a shard are each chunk's; a chunk that its shard doesn't have is the fill value."""
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec

    array = make()
    array[8:16, 8:16, 4:8] = array[16:, 16:, 8:] = 99
    write_shards(tmp_path, array, CHUNK, (16, 16, 8), fill_value=99, codecs=[
        TransposeCodec(order=(1, 2, 0)), BytesCodec(endian="big"), BloscCodec(cname="lz4"), Crc32cCodec()])
    assert not (tmp_path / "c/1/1/1").exists()
    check("zarr3", tmp_path, array)


@pytest.mark.parametrize(("channels", "chunk", "shard"), [(5, 1, 5), (5, 1, 2), (5, 2, 4), (3, 4, 8)])
def test_channels_in_shards(channels: int, chunk: int, shard: int, tmp_path: Path) -> None:
    """Channels in chunks or shards of their own, or fewer than a chunk has, are all kept apart."""
    array = make("uint16", (*SHAPE, channels))
    write_shards(tmp_path, array, (*CHUNK, chunk), (16, 16, 8, shard))
    check("zarr3", tmp_path, array)


@pytest.mark.parametrize(("names", "axes"), [
    (None, "czyx"), (None, "tczyx"), ("xyzc", "xyzc"), ("cxyz", "cxyz"), ("zcyx", "zcyx"), ("ztyxc", "ztyxc"),
    ("yxz", "yxz"),
])
@pytest.mark.parametrize(("version", "channel_chunk"), [(2, 1), (2, 7), (3, 2)])
def test_axes_and_channels(version: int, channel_chunk: int, names: str | None, axes: str, tmp_path: Path) -> None:
    """Axes in any order and channels chunked apart, together or beyond their number give each channel's value."""
    array = make("uint16", (*SHAPE, 3, 1))
    array = array if "c" in axes else array[:, :, :, :1]
    chunk = dict(zip("xyzct", (*CHUNK, channel_chunk, 5), strict=True))
    stored = np.einsum(f"xyzct->{axes}", array)
    options: dict[str, Any] = {"chunks": [chunk[axis] for axis in axes]}
    if names is not None:
        options |= {"dimension_names": list(names)} if version == 3 else {
            "attributes": {"_ARRAY_DIMENSIONS": list(names)}}
    write_zarr(tmp_path, stored, version, **options)
    check("zarr", tmp_path, array[..., 0] if "c" in axes else array[..., 0, 0])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("dtype", "fill"), [
    ("uint64", 2**64 - 1), ("uint64", 2**53 + 1), ("int64", -(2**63)), ("uint8", 7), ("float32", math.nan),
    ("float64", -math.inf), ("float32", 0.1), ("bool", True),
])
def test_an_absent_chunk_is_the_fill_value(version: int, dtype: str, fill: Any, tmp_path: Path) -> None:
    """Points of a chunk that isn't stored have the fill value to the last bit, and are ok."""
    array = make(dtype)
    write_zarr(tmp_path, array.T, version, chunks=CHUNK[::-1], fill_value=fill)
    (tmp_path / ("c/2/2/2" if version == 3 else "2.2.2")).unlink()
    array[16:, 16:, 8:] = fill
    check("zarr", tmp_path, array)


@pytest.mark.parametrize(("fill", "bits"), [("0x7fc00001", 0x7FC00001), ("0x3fc00000", 0x3FC00000)])
def test_fill_values_in_hexadecimal(fill: str, bits: int, tmp_path: Path) -> None:
    """Bits of a float are those of its value, the highest first."""
    array = make("float32")
    write_zarr(tmp_path, array.T, 3, chunks=CHUNK[::-1])
    document = json.loads((tmp_path / "zarr.json").read_text())
    (tmp_path / "zarr.json").write_text(json.dumps(document | {"fill_value": fill}))
    (tmp_path / "c/0/0/0").unlink()
    array[:8, :8, :4] = np.array([bits], "u4").view("f4")[0]
    check("zarr3", tmp_path, array)


def test_chunks_without_a_fill_value(tmp_path: Path) -> None:
    """v2 with a fill value of null: a chunk of which nothing is stored is missing, one without a channel is damaged."""
    array = make("uint16", (*SHAPE, 2))
    write_zarr(tmp_path, array.transpose(3, 2, 1, 0), 2, chunks=(1, *CHUNK[::-1]))
    document = json.loads((tmp_path / ".zarray").read_text())
    (tmp_path / ".zarray").write_text(json.dumps(document | {"fill_value": None}))
    for name in ("0.0.0.0", "1.0.0.0", "1.2.2.2"):
        (tmp_path / name).unlink()
    _, found = read_all("zarr2", tmp_path)
    expected = np.full(SHAPE, Status.OK)
    expected[:8, :8, :4] = Status.MISSING_CHUNK
    expected[16:, 16:, 8:] = Status.CORRUPT_CHUNK
    np.testing.assert_array_equal(found.status.reshape(SHAPE), expected)
    assert list(found.unread) == ["16-21_16-18_8-11"]


@pytest.mark.parametrize("compression", [
    {"type": "raw"}, {"type": "gzip"}, {"type": "gzip", "useZlib": True}, {"type": "bzip2"}, {"type": "xz"},
    {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, {"type": "zstd"},
    {"type": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2},
], ids=str)
def test_n5_in_every_compression(compression: Any, tmp_path: Path) -> None:
    """Blocks of n5, those clipped at its end too, have their values; one that isn't stored is 0."""
    array = make("int32")
    array[8:16, :8, 4:8] = 0
    write_n5(tmp_path, array, compression)
    (tmp_path / "1/0/1").unlink(missing_ok=True)
    check("n5", tmp_path, array)


def test_n5_of_more_axes(tmp_path: Path) -> None:
    """Named axes of n5 in another order, channels chunked apart, are kept apart."""
    array = make("uint8", (*SHAPE, 3))
    write_n5(tmp_path, array.transpose(3, 2, 0, 1), block=(2, 4, 8, 8), axes=["c", "z", "x", "y"])
    check("n5", tmp_path, array)


def altered(**changes: Any) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "array", "shape": [9, 9, 9], "data_type": "uint8", "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, 3, 3]}}, "codecs": ["bytes"],
            "chunk_key_encoding": "default"} | changes


@pytest.mark.parametrize("changes", [
    {"codecs": ["bytes", "numcodecs.pickle"]},
    {"codecs": ["bytes", {"name": "numcodecs.zfpy"}]},
    {"codecs": ["vlen-utf8"]}, {"codecs": []},
    {"codecs": [{"name": "numcodecs.delta", "configuration": {"dtype": "|O"}}, "bytes"]},
    {"codecs": [{"name": "numcodecs.delta", "configuration": {"dtype": "\ud800"}}, "bytes"]},
    {"codecs": [{"name": "numcodecs.delta", "configuration": {"dtype": [1]}}, "bytes"]},
    {"codecs": ["bytes", {"name": "numcodecs.blosc", "configuration": {"cname": "snappy"}}]},
    {"data_type": "complex64"}, {"more": 1},
    {"chunk_grid": {"name": "rectilinear"}}, {"chunk_key_encoding": "fan"},
    {"shape": [9, 9, 9, 9, 9, 9]}, {"dimension_names": list("xyq")},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**20] * 3}}},
    {"shape": [9, 9, 0]}, {"shape": None}, {"data_type": 3}, {"fill_value": None}, {"chunk_grid": []},
    {"codecs": [{"name": "transpose", "configuration": {"order": [0, 1, 3]}}, "bytes"]},
])
def test_what_it_does_not_know(changes: dict[str, Any], tmp_path: Path) -> None:
    """What this reading doesn't know, or can't follow, is said, not guessed."""
    (tmp_path / "zarr.json").write_text(json.dumps(altered(**changes)))
    with pytest.raises(UnsupportedError):
        open_scale("zarr3", tmp_path).explain()


@pytest.mark.parametrize("content", [b"", b"\x00", b"garbage" * 9, None])
@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "shards", "n5"])
def test_a_damaged_chunk_costs_its_own_points(kind: str, content: bytes | None, tmp_path: Path) -> None:
    """An empty, broken or truncated object gives no label, named by its box; the others' are right."""
    array = make("uint32")
    if kind == "n5":
        write_n5(tmp_path, array)
    elif kind == "shards":
        write_shards(tmp_path, array, CHUNK, CHUNK)
    else:
        write_zarr(tmp_path, array.T, int(kind[-1]), chunks=CHUNK[::-1])
    path = tmp_path / {"zarr2": "1.1.1", "n5": "1/1/1"}.get(kind, "c/1/1/1")
    path.write_bytes(path.read_bytes()[:-3] if content is None else content)
    _, found = read_all("zarr3" if kind == "shards" else kind, tmp_path)
    damaged = np.zeros(SHAPE, np.bool_)
    damaged[8:16, 8:16, 4:8] = True
    np.testing.assert_array_equal(found.status.reshape(SHAPE), np.where(damaged, Status.CORRUPT_CHUNK, Status.OK))
    np.testing.assert_array_equal(found.labels.reshape(SHAPE)[~damaged], array[~damaged])
    assert list(found.unread) == ["8-16_8-16_4-8"]
