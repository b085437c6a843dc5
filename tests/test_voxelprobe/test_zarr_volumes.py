"""Whole zarr volumes that zarr-python and TensorStore wrote, read as they, numpy and CloudVolume read them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe import CorruptDataError, InputError, sample_points
from voxelprobe.opening import open_volume
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.zarr_volumes import make_v2_options, make_v3_options, write_zarr

SHAPE, CHUNK = (45, 40, 21), (16, 16, 8)  # x, y, z; chunks clipped along each axis
DTYPES = ["bool", *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)), "float32", "float64"]


def make(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    """Return noise over all of a dtype's range, and zeros at the first chunk."""
    rng = np.random.default_rng(7)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        array = rng.normal(0, 1e9 if kind.itemsize > 2 else 100, shape).astype(dtype)
    elif kind.kind == "b":
        array = rng.random(shape) < 0.5
    else:
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    array[:16, :16, :8] = 0
    return array


def write_tensorstore(path: Path, array: np.ndarray[Any, Any], driver: str, metadata: dict[str, Any]) -> None:
    """Write an array as it is by TensorStore's own code."""
    import tensorstore

    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    store = tensorstore.open(spec, create=True).result()
    store.write(array).result()


def points_of(shape: tuple[int, ...], count: int = 400) -> np.ndarray[Any, Any]:
    """Return random voxels and the corners, x y z."""
    size = np.array(shape[:3])
    corners = np.array(list(np.ndindex(2, 2, 2))) * (size - 1)
    return np.concatenate([corners, np.random.default_rng(3).integers(0, size, (count, 3))])


def check(cloudpath: str, array: np.ndarray[Any, Any], offset: tuple[int, ...] = (0, 0, 0), **options: Any) -> None:
    """Assert that points have the values of `array`, (x, y, z) or (x, y, z, channel), which begins at `offset`."""
    points = points_of(array.shape)
    labels, status = sample_points(cloudpath, points + offset, return_status=True, **options)
    assert set(status) == {"ok"}
    assert labels.dtype == np.dtype("u1" if array.dtype.kind == "b" else array.dtype.newbyteorder("<"))
    np.testing.assert_array_equal(labels.data, array[tuple(points.T)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", [2, 3])
def test_every_dtype(tmp_path: Path, version: int, dtype: str) -> None:
    """Values of every dtype that zarr-python wrote come back exactly, by both cloudpaths of the version."""
    array = make(dtype)
    write_zarr(tmp_path, array.T, version, chunks=CHUNK[::-1])
    check(f"zarr{version}://file://{tmp_path}", array)
    check(f"zarr://file://{tmp_path}", array)
    check(f"file://{tmp_path}|zarr{version}:", array)


@pytest.mark.parametrize("options", [
    {"order": "F"}, {"dtype": ">u8"}, {"dtype": ">u8", "order": "F"},
    {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    {"compressors": None}, {"compressors": "zlib"}, {"compressors": "gzip"}, {"compressors": "bz2"},
    {"compressors": "lzma"}, {"compressors": "lz4"}, {"compressors": "zstd"}, {"compressors": "blosc"},
    {"compressors": "zstd", "filters": "shuffle"}, {"compressors": "zstd", "filters": "delta"},
    {"compressors": None, "filters": "crc32"},
], ids=str)
def test_version_2_in_every_form(tmp_path: Path, options: dict[str, Any]) -> None:
    """Orders, byte orders, separators, compressors and filters of v2 are undone."""
    array = make("uint64")
    write_zarr(tmp_path, array.T, 2, chunks=CHUNK[::-1], **make_v2_options(options))
    check(f"zarr2://file://{tmp_path}", array)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not")
@pytest.mark.parametrize("name", [
    "transpose", "transposes", "big", "dots", "v2 names", "v2 slashes", "none", "gzip", "zstd", "blosc", "crc32c",
    "zlib", "shuffle", "delta", "all",
])
def test_version_3_in_every_form(tmp_path: Path, name: str) -> None:
    """Transpositions, byte orders, names, compressors and checksums of v3 are undone."""
    array = make("uint64")
    write_zarr(tmp_path, array.T, 3, chunks=CHUNK[::-1], **make_v3_options(name))
    check(f"zarr3://file://{tmp_path}", array)


@pytest.mark.parametrize(("driver", "metadata"), [
    ("zarr", {"chunks": [8, 16, 16], "dtype": "<u8", "compressor": {"id": "blosc"}}),
    ("zarr", {"chunks": [8, 16, 16], "dtype": ">u8", "order": "F", "dimension_separator": "/",
              "compressor": {"id": "zlib"}}),
    ("zarr3", {"data_type": "uint64", "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 16, 16]}},
               "codecs": [{"name": "transpose", "configuration": {"order": [2, 1, 0]}}, "bytes", "gzip", "crc32c"]}),
    ("zarr3", {"data_type": "uint64", "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [16, 32, 32]}},
               "codecs": [{"name": "sharding_indexed", "configuration": {
                   "chunk_shape": [8, 16, 16], "index_location": "start", "codecs": [{"name": "zstd"}]}}]}),
], ids=["v2", "v2 F big", "v3", "v3 sharded"])
def test_what_tensorstore_wrote(tmp_path: Path, driver: str, metadata: dict[str, Any]) -> None:
    """Volumes by TensorStore's writer have the array's values."""
    array = make("uint64")
    write_tensorstore(tmp_path, array.T, driver, {"shape": list(array.T.shape)} | metadata)
    check(f"zarr://file://{tmp_path}", array)


@pytest.mark.parametrize(("names", "axes", "time"), [
    (None, "czyx", 0), (None, "tczyx", 1), ("xyzc", "xyzc", 0), ("cxyz", "cxyz", 0), ("zcyx", "zcyx", 0),
    ("ztyxc", "ztyxc", 1), ("yxz", "yxz", 0),
])
@pytest.mark.parametrize(("version", "channel_chunk"), [(2, 1), (2, 2), (2, 7), (3, 2)])
def test_axes_and_channels(
    tmp_path: Path, version: int, channel_chunk: int, names: str | None, axes: str, time: int
) -> None:
    """Axes in any order and channels chunked apart, together or beyond their number give each channel's value."""
    array = make("uint16", (*SHAPE, 3 if "c" in axes else 1))
    where = {"x": 0, "y": 1, "z": 2, "c": 3, "t": 4}
    whole = array[..., None] if time else array
    stored = whole.transpose([where[axis] for axis in axes if axis in "xyzc" or time]) if "c" in axes else (
        array[..., 0].transpose([where[axis] for axis in axes]))
    chunk = dict(zip("xyzct", (*CHUNK, channel_chunk, 5), strict=True))
    options: dict[str, Any] = {"chunks": [chunk[axis] for axis in axes]}
    if names is not None and version == 3:
        options["dimension_names"] = list(names)
    if names is not None and version == 2:
        options["attributes"] = {"_ARRAY_DIMENSIONS": list(names)}
    write_zarr(tmp_path, stored, version, **options)
    check(f"zarr://file://{tmp_path}", array if "c" in axes else array[..., 0])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("dtype", "fill"), [
    ("uint64", 2**64 - 1), ("uint64", 2**53 + 1), ("int64", -(2**63)), ("uint8", 7), ("float32", math.nan),
    ("float64", -math.inf), ("float32", 0.1), ("bool", True),
])
def test_an_absent_chunk_is_the_fill_value(tmp_path: Path, version: int, dtype: str, fill: Any) -> None:
    """Points of a chunk that isn't stored have the fill value to the last bit, and are ok; as an error it is named."""
    array = make(dtype)
    write_zarr(tmp_path, array.T, version, chunks=CHUNK[::-1], fill_value=fill)
    (tmp_path / ("c/2/2/2" if version == 3 else "2.2.2")).unlink()
    array[32:, 32:, 16:] = fill
    check(f"zarr://file://{tmp_path}", array)
    with pytest.raises(InputError, match=r"chunk 32-45_32-40_16-21 of zarr://.*is not in the store.*the volume's fill"):
        sample_points(f"zarr://file://{tmp_path}", [44, 39, 20], missing_chunks="error")


def test_without_a_fill_value_an_absent_chunk_is_missing(tmp_path: Path) -> None:
    """v2 with a fill value of null: points of a chunk that isn't stored, or lacks a channel, are missing."""
    array = make("uint16", (*SHAPE, 2))
    write_zarr(tmp_path, array.transpose(3, 2, 1, 0), 2, chunks=(1, 8, 16, 16))
    document = json.loads((tmp_path / ".zarray").read_text())
    (tmp_path / ".zarray").write_text(json.dumps(document | {"fill_value": None}))
    (tmp_path / "0.2.2.2").unlink()
    labels, status = sample_points(f"zarr://file://{tmp_path}", [[44, 39, 20], [0, 39, 20]], return_status=True)
    assert status.tolist() == ["missing_chunk", "ok"]
    assert labels[1].tolist() == array[0, 39, 20].tolist()


def test_a_channel_that_is_not_stored_is_the_fill_value(tmp_path: Path) -> None:
    """Of channels chunked apart one that isn't stored has the fill value; missing as an error names the chunk.

    So it does where the chunk was fetched before.
    """
    array = make("uint16", (*SHAPE, 3))
    write_zarr(tmp_path / "v", array.transpose(3, 2, 1, 0), 2, chunks=(1, 8, 16, 16), fill_value=9)
    (tmp_path / "v/1.2.2.2").unlink()
    array[32:, 32:, 16:, 1] = 9
    cloudpath, cache = f"zarr://file://{tmp_path}/v", tmp_path / "cache"
    check(cloudpath, array, cache=cache)
    for options in ({}, {"cache": cache}):
        with pytest.raises(InputError, match="is not in the store"):
            sample_points(cloudpath, [44, 39, 20], missing_chunks="error", **options)
    assert sample_points(cloudpath, [0, 39, 20], missing_chunks="error").shape == (1, 3)


@pytest.mark.parametrize("version", [2, 3])
def test_each_object_is_asked_for_once(tmp_path: Path, version: int) -> None:
    """Over HTTP each document and each chunk, channels apart, costs one request."""
    array = make("uint16", (*SHAPE, 2))
    write_zarr(tmp_path, array.transpose(3, 2, 1, 0), version, chunks=(1, 8, 16, 16))
    with HttpStore(tmp_path) as store:
        check(f"zarr{version}://{store.url}", array)
        asked = Counter(request.path for request in store.requests)
    assert set(asked.values()) == {1}
    chunks = {"/".join(map(str, ("c", *place))) if version == 3 else ".".join(map(str, place))
              for place in np.ndindex(2, 3, 3, 3)}
    assert set(asked) - chunks == ({"zarr.json"} if version == 3 else {".zarray", ".zattrs"})
    assert chunks <= set(asked)


@pytest.mark.parametrize("content", [b"", b"\x00", b"garbage" * 9, None])
@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_chunk_costs_its_own_points(tmp_path: Path, version: int, content: bytes | None) -> None:
    """An empty, broken or truncated chunk gives no label, named; the others' are right."""
    array = make("uint32")
    write_zarr(tmp_path, array.T, version, chunks=CHUNK[::-1])
    path = tmp_path / ("c/1/1/1" if version == 3 else "1.1.1")
    path.write_bytes(path.read_bytes()[:-3] if content is None else content)
    points = points_of(array.shape)
    labels, status = sample_points(f"zarr://file://{tmp_path}", points, return_status=True)
    damaged = (points // CHUNK == 1).all(axis=1)
    assert set(status[damaged]) == {"corrupt_chunk"}
    assert set(status[~damaged]) == {"ok"}
    np.testing.assert_array_equal(labels[~damaged].data, array[tuple(points[~damaged].T)])
    with pytest.raises(CorruptDataError, match="chunk 16-32_16-32_8-16 of zarr"):
        sample_points(f"zarr://file://{tmp_path}", points)


@pytest.mark.parametrize("version", [2, 3])
def test_as_cloudvolume_reads_it(tmp_path: Path, version: int, known: Callable[..., Any]) -> None:
    """CloudVolume's download of a group with two scales has the labels, and its resolutions are those here.

    In v3 its bounds are too, where x and z begin alike: it mixes them up. In v2 it passes over translations.
    """
    from cloudvolume import CloudVolume

    array = known("uint64").array
    levels = [array, array[::2, ::2, ::2]]
    offset = (4, 2, 4) if version == 3 else (0, 0, 0)
    place = {"type": "translation", "translation": [0.04 * offset[2], 0.004 * offset[1], 0.004 * offset[0]]}
    scale = [{"path": str(i), "coordinateTransformations": [
        {"type": "scale", "scale": [0.04 * 2**i, 0.004 * 2**i, 0.004 * 2**i]}, place]} for i in range(2)]
    multiscales = [{"version": "0.4", "datasets": scale, "axes": [
        {"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]}]
    import numcodecs
    from zarr.codecs import GzipCodec

    # In groups of v2 it knows names with slashes only.
    options: dict[str, Any] = {"compressors": [GzipCodec()]} if version == 3 else {
        "compressors": numcodecs.GZip(), "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    for i, level in enumerate(levels):
        write_zarr(tmp_path / str(i), level.T, version, chunks=(8, 8, 8), fill_value=0, **options)
    if version == 2:
        (tmp_path / ".zattrs").write_text(json.dumps({"multiscales": multiscales}))
        (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
    else:
        document = {"zarr_format": 3, "node_type": "group", "attributes": {
            "ome": {"version": "0.5", "multiscales": multiscales}}}
        (tmp_path / "zarr.json").write_text(json.dumps(document))
    cloudpath = f"zarr{version}://file://{tmp_path}"
    for mip, level in enumerate(levels):
        volume = CloudVolume(cloudpath, mip=mip, progress=False, fill_missing=True)
        begin = open_volume(cloudpath, mip=mip).scale.voxel_offset
        assert begin == tuple(o // 2**mip for o in offset) == tuple(volume.bounds.minpt.tolist())
        np.testing.assert_array_equal(volume[volume.bounds][..., 0], level)
        assert open_volume(cloudpath, mip=mip).scale.resolution == (4.0 * 2**mip, 4.0 * 2**mip, 40.0 * 2**mip)
        # Its own are float32: 4.000000189989804 nm.
        np.testing.assert_allclose(volume.resolution, [4 * 2**mip, 4 * 2**mip, 40 * 2**mip], rtol=1e-6)
        check(cloudpath, level, begin, mip=mip, coord_resolution=[4 * 2**mip, 4 * 2**mip, 40 * 2**mip])
