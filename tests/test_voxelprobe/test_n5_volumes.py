"""N5 volumes: what their attributes say, and whole ones that TensorStore wrote."""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe import CorruptDataError, InputError, UnsupportedError, sample_points
from voxelprobe.opening import open_volume
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.volume.formats import read_volume

SHAPE, BLOCK = (45, 40, 21), (16, 16, 8)
DTYPES = [*(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)), "float32", "float64"]
SET = {"dimensions": [50, 40, 30], "blockSize": [16, 16, 8], "dataType": "uint32", "compression": {"type": "gzip"}}


def noise(dtype: str = "uint64", shape: tuple[int, ...] = SHAPE) -> Any:
    rng = np.random.default_rng(7)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e9, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def write(path: Path, array: Any, *, block: tuple[int, ...] = BLOCK, compression: Any = None, **more: Any) -> None:
    """Write an array (x, y, z[, …]) by TensorStore."""
    import tensorstore

    metadata = {"dimensions": list(array.shape), "blockSize": list(block), "dataType": array.dtype.name,
                "compression": compression or {"type": "gzip"}} | more
    store = tensorstore.open({"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata},
                             create=True).result()
    store.write(array).result()


def points_of(shape: Any, count: int = 400) -> Any:
    size = np.array(shape[:3])
    corners = np.array(list(np.ndindex(2, 2, 2))) * (size - 1)
    return np.concatenate([corners, np.random.default_rng(3).integers(0, size, (count, 3))])


def check(cloudpath: str, array: Any, **options: Any) -> None:
    points = points_of(array.shape)
    labels, status = sample_points(cloudpath, points, return_status=True, **options)
    assert set(status) == {"ok"}
    assert labels.dtype == array.dtype
    np.testing.assert_array_equal(labels.data, array[tuple(points.T)])


def read(documents: dict[str, Any]) -> Any:
    return read_volume("n5", lambda name: deepcopy(documents.get(name)), "mem://v").scales


def group(root: Any, *sets: dict[str, Any]) -> dict[str, Any]:
    """Return the documents of a group with scales s0, s1, …."""
    documents = {f"s{i}/attributes.json": SET | more for i, more in enumerate(sets)}
    return documents | ({} if root is None else {"attributes.json": root})


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    """A data set of every type that TensorStore wrote has the array's values."""
    array = noise(dtype)
    write(tmp_path, array)
    check(f"n5://file://{tmp_path}", array)


@pytest.mark.parametrize("compression", [
    {"type": "raw"}, {"type": "gzip", "useZlib": True}, {"type": "bzip2"}, {"type": "xz"}, {"type": "zstd"},
    {"type": "blosc", "cname": "lz4", "clevel": 3, "shuffle": 2}, {"type": "blosc", "cname": "zstd", "clevel": 3,
                                                                    "shuffle": 1},
], ids=lambda compression: compression["type"])
def test_every_compression(tmp_path: Path, compression: dict[str, Any]) -> None:
    """All compressions of n5 but lz4 are undone."""
    array = noise()
    write(tmp_path, array, compression=compression)
    check(f"file://{tmp_path}|n5:", array)


@pytest.mark.parametrize(("axes", "channel_block"), [("xyzc", 1), ("cxyz", 2), ("zyxc", 7), ("xyczt", 1)])
def test_axes_and_channels(tmp_path: Path, axes: str, channel_block: int) -> None:
    """Axes as they are named, in n5's order, and channels in blocks of their own are kept apart."""
    array = noise("uint16", (*SHAPE, 3))
    whole = array[..., None] if "t" in axes else array
    sizes = dict(zip("xyzct", (*BLOCK, channel_block, 1), strict=True))
    write(tmp_path, whole.transpose(["xyzct".index(axis) for axis in axes]), block=tuple(sizes[axis] for axis in axes),
          axes=list(axes))
    check(f"n5://file://{tmp_path}", array)


def test_absent_blocks_are_zero(tmp_path: Path) -> None:
    """A block that isn't stored is 0 and ok; as an error it is named."""
    array = noise()
    write(tmp_path, array)
    (tmp_path / "2/2/2").unlink()
    array[32:, 32:, 16:] = 0
    check(f"n5://file://{tmp_path}", array)
    with pytest.raises(InputError, match=r"chunk 32-45_32-40_16-21 of n5://file.* get the volume's fill value 0"):
        sample_points(f"n5://file://{tmp_path}", [44, 39, 20], missing_chunks="error")


@pytest.mark.parametrize("content", [b"", b"\x00\x00", None])
def test_a_damaged_block_costs_its_own_points(tmp_path: Path, content: bytes | None) -> None:
    """An empty or truncated block gives no labels, named; the others' are right."""
    array = noise()
    write(tmp_path, array)
    path = tmp_path / "1/1/1"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    points = points_of(SHAPE)
    labels, status = sample_points(f"n5://file://{tmp_path}", points, return_status=True)
    broken = (points // BLOCK == 1).all(axis=1)
    assert set(status[broken]) == {"corrupt_chunk"}
    assert set(status[~broken]) == {"ok"}
    np.testing.assert_array_equal(labels[~broken].data, array[tuple(points[~broken].T)])
    with pytest.raises(CorruptDataError, match="chunk 16-32_16-32_8-16 of n5"):
        sample_points(f"n5://file://{tmp_path}", points)


def test_each_object_is_asked_for_once(tmp_path: Path) -> None:
    """Over HTTP the attributes of group and scales, and each block, cost one request each."""
    array = noise()
    write(tmp_path / "s0", array)
    write(tmp_path / "s1", array[::2, ::2, ::2], downsamplingFactors=[2, 2, 2])
    (tmp_path / "attributes.json").write_text('{"n5": "2.0.0"}')
    with HttpStore(tmp_path) as store:
        check(f"n5://{store.url}", array)
        asked = Counter(request.path for request in store.requests)
    assert set(asked.values()) == {1}
    assert {path for path in asked if path.endswith("json")} == {
        "attributes.json", "s0/attributes.json", "s1/attributes.json", "s2/attributes.json"}
    assert len(asked) == 4 + 27


@pytest.mark.parametrize(("root", "own"), [
    ({"scales": [[1, 1, 1], [2, 2, 4]], "pixelResolution": {"unit": "nm", "dimensions": [4, 4, 40]}}, [{}, {}]),
    ({"downsamplingFactors": [[1, 1, 1], [2, 2, 4]], "resolution": [4, 4, 40]}, [{}, {}]),
    ({"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.004, 0.04]}},
     [{}, {"downsamplingFactors": [2, 2, 4]}]),
    ({"resolution": [0.004, 4, 40], "units": ["um", "nm", "nanometer"]}, [{}, {"downsamplingFactors": [2, 2, 4]}]),
    (None, [{"pixelResolution": [4, 4, 40]}, {"pixelResolution": [4, 4, 40], "downsamplingFactors": [2, 2, 4]}]),
    (None, [{"resolution": [4, 4, 40]}, {"resolution": [8, 8, 160]}]),
    ({"multiscales": [{"datasets": [{"path": "s0"}, {"path": "s1"}]}]},
     [{"transform": {"axes": list("zyx"), "scale": [40, 4, 4], "translate": [0, 0, 0], "units": ["nm"] * 3}},
      {"transform": {"axes": list("zyx"), "scale": [160, 8, 8], "translate": [60, 2, 2], "units": ["nm"] * 3}}]),
])
def test_sizes_of_voxels(root: Any, own: Any) -> None:
    """However a group says how large voxels are and how much coarser its scales, they are in nm, one corner for all."""
    first, second = read(group(root, *own))
    assert (first.key, first.size, first.chunk_size, first.encoding) == ("s0", (50, 40, 30), (16, 16, 8), "n5")
    assert (first.resolution, second.resolution) == ((4.0, 4.0, 40.0), (8.0, 8.0, 160.0))
    assert first.voxel_offset == second.voxel_offset == (0, 0, 0)
    assert (second.key, first.fill_value, first.names.of(None, (3, 2, 1))) == ("s1", 0, ("3/2/1",))


def test_transforms_place_scales() -> None:
    """A transform's translation is the centre of the first voxel, as in OME-Zarr."""
    def transform(factor: int) -> dict[str, Any]:
        return {"axes": list("zyx"), "units": ["um"] * 3, "scale": [0.04 * factor, 0.004 * factor, 0.004 * factor],
                "translate": [0.4 + 0.04 * (factor - 1) / 2, 0.004 * (factor - 1) / 2, 0.08 + 0.004 * (factor - 1) / 2]}

    multiscales = [{"datasets": [{"path": f"s{i}", "transform": transform(2**i)} for i in range(3)]}]
    scales = read(group({"multiscales": multiscales}, {}, {}, {}))
    assert [scale.voxel_offset for scale in scales] == [(20, 0, 10), (10, 0, 5), (5, 0, 2)]
    assert scales[2].resolution == (16.0, 16.0, 160.0)


def test_what_the_reader_is_told() -> None:
    """`codecs` is JSON with sorted keys, in n5's own order of axes, big-endian."""
    (scale,) = read({"attributes.json": SET | {"compressionType": "xz", "compression": None, "dataType": "int16"}})
    facts = json.loads(scale.codecs)
    assert list(facts) == sorted(facts)
    assert facts == {"axes": [0, 1, 2], "chunk": [16, 16, 8], "dtype": ">i2", "fill_value": 0, "parts": 1,
                     "codecs": [{"id": "lzma", "format": 1}]}
    assert (scale.resolution, scale.dtype.str, scale.key) == ((1.0, 1.0, 1.0), "<i2", "")


@pytest.mark.parametrize(("documents", "error", "said"), [
    ({}, InputError, "no volume at mem://v: expected a data set at 's0', found no s0/attributes.json"),
    (group({"scales": [[1, 1, 1], [2, 2, 2]]}, {}), InputError, "expected a data set at 's1', found no s1/attrib"),
    ({"attributes.json": []}, InputError, "attributes.json: expected a JSON object, found list"),
    (group(None, {"dataType": "string"}), UnsupportedError, "dataType 'string' is not one of uint8"),
    (group(None, {"dataType": "float16"}), UnsupportedError, "dataType 'float16' is not one of"),
    (group(None, {"compression": {"type": "lz4"}}), UnsupportedError, "compression 'lz4' can't be read"),
    (group(None, {"compression": {"type": "jpeg"}}), UnsupportedError, "compression 'jpeg' can't be read"),
    (group(None, {"compression": None}), InputError, "expected a text for compressionType"),
    (group(None, {"dimensions": [9, 9]}), InputError, "blockSize: expected 2 whole numbers, found 3"),
    (group(None, {"dimensions": [9, 9], "blockSize": [3, 3]}), UnsupportedError, "dimensions [9, 9] without axes"),
    (group(None, {"dimensions": [9, 9, 9, 2], "blockSize": [3] * 4}), UnsupportedError, "in an attribute `axes`"),
    (group(None, {"dimensions": [9, 9, 0]}), InputError, "expected at least 1, found 0"),
    (group(None, {"blockSize": [2**20] * 3}), UnsupportedError, "fewer than 2^32 values"),
    (group(None, {"axes": ["x", "y", "t"]}), UnsupportedError, "expected x, y and z"),
    (group(None, {}, {}), InputError, "expected downsamplingFactors or a resolution of its own"),
    (group(None, {}, {"downsamplingFactors": [2, 2]}), InputError, "expected a list of 3"),
    (group(None, {}, {"downsamplingFactors": [2, 2, 0]}), InputError, "expected positive numbers"),
    (group({"pixelResolution": {"unit": "furlong", "dimensions": [1, 1, 1]}}, {}), UnsupportedError, "'furlong'"),
    (group({"multiscales": []}, {}), InputError, "expected a multiscale, found none"),
    (group({"multiscales": [{"datasets": [{"path": "../x"}]}]}, {}), InputError, "path '../x' leads out of the volume"),
    (group(None, {"transform": {"axes": list("zyx"), "scale": [1, 1, 1], "translate": [0.5, 0, 0]}}), UnsupportedError,
     "translation along z is 0.5 of its voxels"),
    (group(None, {"transform": {"axes": list("zyt"), "scale": [1, 1, 1]}}), UnsupportedError, "expected x, y and z"),
    (group(None, {"transform": {"axes": list("zyx"), "scale": [1, 1, 1]}}, {}), InputError, "some without"),
    (group({"scales": [[1, 1, 1]] * 65}), InputError, "expected at most 64 scales, found 65"),
])
def test_what_is_refused(documents: dict[str, Any], error: type[Exception], said: str) -> None:
    """Attributes that can't be read say where and why."""
    with pytest.raises(error) as caught:
        read(documents)
    assert said in str(caught.value)
    assert "mem://v" in str(caught.value)


def test_as_cloudvolume_reads_it(tmp_path: Path) -> None:
    """CloudVolume's download of a group with two scales has the labels, at the resolutions that it finds.

    Of one byte a voxel: it takes longer ones for little-endian, which n5 never is.
    """
    from cloudvolume import CloudVolume

    levels = [noise("uint8"), noise("uint8")[::2, ::2, ::2]]
    for i, level in enumerate(levels):
        write(tmp_path / f"s{i}", level, downsamplingFactors=[2**i] * 3)
    root = {"scales": [[1, 1, 1], [2, 2, 2]], "pixelResolution": {"unit": "nm", "dimensions": [4, 4, 40]}}
    (tmp_path / "attributes.json").write_text(json.dumps(root))
    cloudpath = f"n5://file://{tmp_path}"
    for mip, level in enumerate(levels):
        volume = CloudVolume(cloudpath, mip=mip, progress=False, fill_missing=True)
        np.testing.assert_array_equal(volume[:, :, :][..., 0], level)
        assert tuple(map(float, volume.resolution)) == open_volume(cloudpath, mip=mip).scale.resolution
        check(cloudpath, level, mip=mip, coord_resolution=volume.resolution.tolist())
